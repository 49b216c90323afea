"""Training with weights of single outputs: the loss, its gradient, the net."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_theory import (
    N_FEATURES,
    N_OUTPUTS,
    close,
    draw,
    gradient,
    make_backbone,
    make_head,
)

from sklearn_cfll import (
    MLP,
    CFLLNet,
    CFLLRegressor,
    KalmanUpdate,
    ProximalUpdate,
    RunningAverageUpdate,
)
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional import feature_energy, proximal_update, solve_ridge
from sklearn_cfll.losses import SquaredLoss, TrueClassWeight
from sklearn_cfll.prox import PrequentialProx

# The loss, its gradient and the training -------------------------------------------


def test_the_loss_is_the_mean_over_all_weights():
    predictions, targets = draw(5, 4, 3), draw(5, 4, 3, seed=1)
    weight = draw(5, 4, 3, seed=2).abs()
    expected = np.average((predictions - targets).numpy() ** 2, weights=weight.numpy())
    actual = SquaredLoss()(predictions, targets, weight)
    assert actual.item() == pytest.approx(expected, rel=1e-12)
    samples = weight[:, 0, 0]
    columns = samples[:, None, None].expand_as(targets)
    close(
        SquaredLoss()(predictions, targets, columns),
        SquaredLoss()(predictions, targets, samples),
        1e-12,
    )


def test_the_true_classs_output_has_its_weight():
    targets = torch.tensor([[-2.0, 2.0, -2.0], [2.0, -2.0, -2.0]])
    plain = torch.tensor([[1.0, 5.0, 1.0], [5.0, 1.0, 1.0]])
    close(TrueClassWeight(5.0)(targets), plain, 0)
    weight = torch.tensor([3.0, 0.5])
    close(TrueClassWeight(5.0)(targets, weight), weight[:, None] * plain, 0)


@pytest.mark.parametrize("grid", [(30,), (3,), (6, 4)], ids=["tall", "wide", "grid"])
@pytest.mark.parametrize("prox", [0.0, 0.5], ids=["ridge", "proximal"])
def test_the_gradient_at_the_detached_head_is_that_through_the_solve(grid, prox):
    inputs, targets = draw(*grid, 3), draw(*grid, N_OUTPUTS, seed=1)
    weight = draw(*grid, N_OUTPUTS, seed=2).abs() + 0.1
    backbone, head, alpha = make_backbone(), make_head(), 0.2
    last = copy.deepcopy(head)

    rows = backbone(inputs).flatten(0, -2)
    row_weight, row_targets = weight.flatten(0, -2), targets.flatten(0, -2)
    # Divided by the energy that the solve multiplies by, a penalty is held.
    energy = feature_energy(rows, row_weight)
    least = rows.new_zeros(())
    for k in range(N_OUTPUTS):
        solved = proximal_update(
            rows,
            row_targets[:, [k]],
            last.weight[:, [k]],
            last.bias[[k]],
            alpha=alpha * energy[k].detach() / energy[k],
            prox=prox * energy[k].detach() / energy[k] if prox else 0.0,
            sample_weight=row_weight[:, k],
        )
        errors = (rows @ solved.weight + solved.bias - row_targets[:, [k]]).square()
        pull = (solved.weight - last.weight[:, [k]]).square().sum()
        pull = pull + (solved.bias - last.bias[k]).square().sum()
        ridge = solved.weight.square().sum()
        penalty = energy[k].detach() * (alpha * ridge + prox * pull)
        share = row_weight[:, k].sum() / row_weight.sum()
        mean = (row_weight[:, [k]] * errors).sum() / row_weight[:, k].sum()
        least = least + share * (mean + penalty)
    expected = gradient(least, backbone)

    head.update_(backbone(inputs), targets, weight, alpha=alpha, prox=prox)
    loss = SquaredLoss()(head(backbone(inputs)), targets, weight)
    close(gradient(loss, backbone), expected, 1e-10)
    elsewhere = SquaredLoss()(last(backbone(inputs)), targets, weight)
    assert (gradient(elsewhere, backbone) - expected).norm() > 0.1 * expected.norm()


def test_a_line_search_sees_the_reduced_objective_and_its_gradient():
    inputs, targets = draw(40, 3), draw(40, N_OUTPUTS, seed=1)
    alpha, rule = 0.05, TrueClassWeight(4.0)
    samples = draw(40, seed=2).abs() + 0.1
    net = CFLLNet(
        make_backbone(),
        n_features=N_FEATURES,
        n_outputs=N_OUTPUTS,
        alpha=alpha,
        prox=0.0,
        output_weight=rule,
        optimizer=torch.optim.LBFGS,
        max_epochs=2,
    )
    batches = TensorBatches(
        inputs, targets, samples, batch_size=40, dtype=torch.float64
    )
    net.fit(batches, None)
    backbone = net.module_.backbone
    net._remember_head()
    backbone.zero_grad()
    step = net.train_step_single(next(iter(batches)))
    actual = torch.cat([p.grad.ravel() for p in backbone.parameters()])

    weight, features = rule(targets, samples), backbone(inputs)
    head, bias = solve_ridge(features, targets, alpha, weight)
    loss = SquaredLoss()(features @ head + bias, targets, weight)
    ridge = alpha * feature_energy(features, weight) * head.square().sum(0)
    objective = loss + (weight.sum(0) * ridge).sum() / weight.sum()
    close(step["objective"], objective.detach(), 1e-10)
    close(actual, gradient(objective, backbone), 1e-8)


def test_a_learnt_pull_takes_equal_columns_as_one_weight_a_row():
    weight = draw(20, seed=2).abs()
    values = []
    for each in (weight, weight[:, None].expand(-1, 3)):
        prox = PrequentialProx()
        for seed in range(4):
            prox.learn(draw(20, 3, seed=seed), draw(20, 3, seed=seed + 9), each)
        values.append(prox.value)
    close(values[1], values[0], 1e-12)
    assert abs(values[0] - 1) > 0.01


def test_a_net_learns_each_output_from_the_rows_that_have_its_target():
    features = draw(60, N_FEATURES)
    targets = features @ draw(N_FEATURES, 2, seed=1) + draw(60, 2, seed=3)
    missing = draw(60, 2, seed=2) > 0
    net = CFLLNet(
        torch.nn.Identity(),
        n_features=N_FEATURES,
        n_outputs=2,
        alpha=0.1,
        prox=0.0,
        output_weight=lambda targets, sample_weight: (targets != 99).to(targets),
        batch_size=60,
        max_epochs=1,
    ).fit(features.numpy(), torch.where(missing, 99, targets).numpy())
    for output in range(2):
        present = ~missing[:, output]
        weight, bias = solve_ridge(
            features[present].float(), targets[present][:, [output]].float(), 0.1
        )
        close(net.module_.head.weight[:, [output]], weight, 1e-6)
        close(net.module_.head.bias[[output]], bias, 1e-6)


@pytest.mark.parametrize(
    "rule", [KalmanUpdate(), RunningAverageUpdate()], ids=["Kalman", "running average"]
)
def test_rules_with_one_factor_for_all_outputs_refuse(rule):
    message = (
        rf"^{type(rule).__name__} has one factor for all outputs, but each output has "
        r"weights of its own; set true_class_weight=1 \(output_weight=None in CFLLNet\)"
        r", or leave head_update out\.$"
    )
    head, weight = make_head(), torch.ones(9, N_OUTPUTS)
    batch = draw(9, N_FEATURES), draw(9, N_OUTPUTS)
    for method in (rule.start_, rule.update_):
        with pytest.raises(ValueError, match=message):
            method(head, *batch, weight)
    ProximalUpdate().update_(head, *batch, weight)


@pytest.mark.parametrize("sample_weight", [None, np.arange(1, 41)])
def test_a_loss_that_takes_no_weights_is_for_rows_without_any(sample_weight):
    X, y = draw(40, 3).numpy(), draw(40, seed=1).numpy()
    params = {"net_params": {"criterion": torch.nn.HuberLoss}, "max_epochs": 2}
    model = CFLLRegressor(MLP(width=4), **params)
    if sample_weight is None:
        assert model.fit(X, y).n_iter_ == 2
        return
    message = "^criterion HuberLoss takes no weights, but the rows have some; "
    with pytest.raises(TypeError, match=message):
        model.fit(X, y, sample_weight)
