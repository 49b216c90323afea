"""Rules by which a batch moves the head, against each other and the exact ridge."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from small_models import classifier, draw, regressor

from sklearn_cfll import (
    BatchRidgeUpdate,
    ClosedFormHead,
    HeadUpdate,
    KalmanUpdate,
    ProximalUpdate,
    RunningAverageUpdate,
)
from sklearn_cfll.functional import feature_energy, solve_ridge
from sklearn_cfll.losses import SquaredLoss
from sklearn_cfll.prox import PrequentialProx

D, K = 4, 2
RULES = {
    "proximal": ProximalUpdate(0.1, 0.7),
    "ridge": BatchRidgeUpdate(0.1),
    "average": RunningAverageUpdate(0.1, 0.6),
    "kalman": KalmanUpdate(process_noise=0.1, forgetting=0.8),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def batches(n_batches=3, n_rows=11, weighted=False):
    """Batches whose features have means and sizes of their own."""
    for i in range(n_batches):
        features = draw(n_rows, D, seed=3 * i) * (1 + i) + i
        targets = draw(n_rows, K, seed=3 * i + 1) + features[:, :K].sin()
        weight = draw(n_rows, seed=3 * i + 2).exp() if weighted else None
        yield features, targets, weight


def run(rule, stream, head=None):
    """Send batches through a copy of a rule; give the head and the copy."""
    head = ClosedFormHead(D, K) if head is None else head
    rule = copy.deepcopy(rule)
    stream = list(stream)
    rule.start_(head, *stream[0])
    for i, batch in enumerate(stream):
        rule.update_(head, *batch, i / max(1, len(stream) - 1))
    assert int(head.n_failures) == 0
    return head, rule


def joined(stream):
    features, targets, weights = zip(*stream, strict=True)
    weighted = weights[0] is not None
    return (
        torch.cat(features),
        torch.cat(targets),
        torch.cat(weights) if weighted else None,
    )


def assert_same_head(head, weight, bias, tolerance=1e-10):
    torch.testing.assert_close(head.weight, weight, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(head.bias, bias, rtol=tolerance, atol=tolerance)


# Kalman -------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_kalman_that_forgets_nothing_is_ridge_on_all_rows(weighted):
    stream = list(batches(5, weighted=weighted))
    head, _ = run(KalmanUpdate(forgetting=1.0, covariance=2.0), stream)
    features, targets, weight = joined(stream)
    # The prior's unit is the first batch's energy times its sum of weights.
    first, _, first_weight = stream[0]
    total = len(first) if first_weight is None else first_weight.sum()
    of_all = len(features) if weight is None else weight.sum()
    prior = feature_energy(first, first_weight) * total / 2.0
    alpha = prior / (feature_energy(features, weight) * of_all)
    assert_same_head(head, *solve_ridge(features, targets, alpha, weight))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("n_rows", [3, 11], ids=["wide", "tall"])
def test_kalman_with_its_covariance_reset_is_proximal(n_rows, weighted):
    stream = list(batches(4, n_rows, weighted=weighted))
    kalman, _ = run(KalmanUpdate(forgetting=0.0, covariance=1 / 0.7), stream)
    proximal = ClosedFormHead(D, K)  # zero, where start_ would solve it once
    for batch in stream:
        ProximalUpdate(0.0, 0.7).update_(proximal, *batch)
    assert_same_head(kalman, proximal.weight, proximal.bias)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_kalman_leaves_all_as_it_is_at_a_batch_without_sense(noise):
    features, targets, _ = next(batches())
    head, rule = run(KalmanUpdate(process_noise=noise), batches())
    before = head.weight, head.bias, rule.root
    rule.update_(head, features * torch.nan, targets)
    assert int(head.n_failures) == 1
    for now, then in zip((head.weight, head.bias, rule.root), before, strict=True):
        assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: KalmanUpdate(forgetting=1.1),
            "forgetting must be in [0, 1], got 1.1.",
        ),
        (
            lambda: KalmanUpdate(process_noise=-1.0),
            "process_noise must not be negative, got -1.0.",
        ),
        (lambda: KalmanUpdate(covariance=0.0), "covariance must be positive, got 0.0."),
        (lambda: RunningAverageUpdate(decay=2), "decay must be in [0, 1], got 2."),
    ],
    ids=["forgetting", "process noise", "covariance", "decay"],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared whole below)
        make()
    assert str(caught.value) == message


# The others -----------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_running_average_that_keeps_all_is_ridge_on_all_rows(weighted):
    stream = list(batches(4, weighted=weighted))
    head, _ = run(RunningAverageUpdate(0.2, decay=1.0), stream)
    features, targets, weight = joined(stream)
    assert_same_head(head, *solve_ridge(features, targets, 0.2, weight))


def test_a_running_average_weighs_old_batches_by_its_decay():
    stream = list(batches(3))
    head, _ = run(RunningAverageUpdate(0.2, decay=0.5), stream)
    features, targets, _ = joined(stream)
    weight = torch.tensor([0.25, 0.5, 1.0]).double().repeat_interleave(11)
    assert_same_head(head, *solve_ridge(features, targets, 0.2, weight))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_naive_update_is_ridge_on_the_batch(weighted):
    stream = list(batches(3, weighted=weighted))
    head, _ = run(BatchRidgeUpdate(0.2), stream)
    assert_same_head(head, *solve_ridge(*stream[-1][:2], 0.2, stream[-1][2]))


@pytest.mark.parametrize("shape", [None, (11,), (11, K)], ids=str)
def test_loss_and_penalty_are_least_at_the_updated_head(shape):
    features, targets, _ = next(batches(1))
    weight = None if shape is None else draw(*shape, seed=7).exp()
    head = ClosedFormHead(D, K)
    head.weight, head.bias = draw(D, K, seed=8), draw(K, seed=9)
    last, rule = (head.weight, head.bias), ProximalUpdate(0.3, 0.7)
    rule.update_(head, features, targets, weight)
    head.weight.requires_grad_()
    head.bias.requires_grad_()
    penalty = rule.penalty(head, features, weight, last)
    objective = SquaredLoss()(head(features), targets, weight) + penalty
    for slope in torch.autograd.grad(objective, [head.weight, head.bias]):
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [None, (6,), (6, 3, K)], ids=str)
def test_the_pull_learns_by_adam_from_the_weighted_gain(shape):
    prox = PrequentialProx(start=2.0)
    logarithm = torch.tensor(2.0).double().log().requires_grad_()
    adam = torch.optim.Adam([logarithm], lr=0.1, betas=(0.9, 0.99), eps=0)
    for seed in range(5):
        residual, slope = draw(6, 3, K, seed=seed), draw(6, 3, K, seed=seed + 10)
        weight = None if shape is None else (1 + seed) * draw(*shape, seed=seed).exp()
        each = residual.new_ones(6) if weight is None else weight
        each = each.reshape(6, *each.shape[1:], *[1] * (3 - each.ndim))
        each = each.expand_as(residual)
        logarithm.grad = -(each * residual * slope).sum() / each.sum()
        adam.step()
        prox.learn(residual, slope, weight)
        torch.testing.assert_close(prox.value, logarithm.detach().exp())


def test_the_pull_learns_nothing_of_nothing_and_stays_in_its_bounds():
    prox, ones = PrequentialProx(start=3.0), torch.ones(2, 1).double()
    prox.learn(0 * ones, ones)
    assert float(prox.value) == pytest.approx(3)
    for sign, bound in [(1, 1e4), (-1, 0.1)]:
        for _ in range(300):
            prox.learn(ones, sign * ones)
        assert float(prox.value) == pytest.approx(bound)


@each_rule
def test_a_rule_begins_anew_with_each_training(rule):
    stream = list(batches(3))
    (head, _), (_, used) = run(rule, stream), run(rule, stream[::-1])
    assert_same_head(run(used, stream)[0], head.weight, head.bias)
    head.slope = head.weight, head.bias
    used.start_(head, *stream[0])
    assert head.slope is None


def test_proximal_anneals_its_pull_and_tells_it():
    stream = list(batches(3))
    head, rule = run(ProximalUpdate(0.1, (0.5, 50.0)), stream)
    by_hand = ClosedFormHead(D, K).start_(*stream[0], alpha=0.1)
    for batch, prox in zip(stream, [0.5, 5.0, 50.0], strict=True):
        by_hand.update_(*batch, alpha=0.1, prox=prox)
    assert_same_head(head, by_hand.weight, by_hand.bias)
    assert rule.prox == pytest.approx(50.0)
    assert [RULES[name].prox for name in RULES] == [0.7, 0.0, None, None]


# All of them ------------------------------------------------------------------------


@each_rule
def test_weights_equal_repeated_rows(rule):
    counts = torch.arange(11) % 3 + 1
    weighted = [(f, t, counts.double()) for f, t, _ in batches(3)]
    repeated = [
        (f.repeat_interleave(counts, 0), t.repeat_interleave(counts, 0), None)
        for f, t, _ in batches(3)
    ]
    head, _ = run(rule, weighted)
    other, _ = run(rule, repeated)
    assert_same_head(head, other.weight, other.bias, 1e-9)


@each_rule
def test_grid_points_are_rows(rule):
    flat = [(f, t, None) for f, t, _ in batches(2, 12)]
    grid = [(f.reshape(3, 4, D), t.reshape(3, 4, K), None) for f, t, _ in flat]
    head, _ = run(rule, grid)
    other, _ = run(rule, flat)
    assert_same_head(head, other.weight, other.bias)


@each_rule
def test_the_scale_of_the_features_does_not_matter(rule):
    # Features of mean zero: the constant one that stands beside them has no scale.
    plain = [(draw(30, D, seed=i), draw(30, K, seed=i + 5), None) for i in range(2)]
    large = [(1e4 * f, t, None) for f, t, _ in plain]
    larger = [(1e6 * f, t, None) for f, t, _ in plain]
    head, _ = run(rule, large)
    other, _ = run(rule, larger)
    assert_same_head(head, 1e2 * other.weight, other.bias, 1e-5)


@each_rule
def test_an_estimator_takes_it_by_net_params_and_leaves_it_alone(
    rule, table, fresh_rows
):
    before = pickle.dumps(rule)
    settings = {"net_params": {"head_update": rule}, "batch_size": 60}
    model = regressor(alpha=0.05, **settings).fit(*table)
    assert pickle.dumps(rule) == before
    assert type(model.net_.head_update_) is type(rule)
    assert model.score(*fresh_rows) > 0.9
    assert ("prox" in model.history_[-1]) == (rule.prox is not None)
    again = pickle.loads(pickle.dumps(model)).fit(*table)
    assert_array_equal(again.predict(table[0]), model.predict(table[0]))
    default = regressor(alpha=0.05, batch_size=60).fit(*table)
    assert default.history_[:, "train_loss"] != model.history_[:, "train_loss"]


def test_a_classifier_takes_a_kalman_update(table):
    X, y = table
    classes = np.digitize(y, np.quantile(y, [0.3, 0.7]))
    settings = {"net_params": {"head_update": KalmanUpdate()}, "max_epochs": 40}
    assert classifier(**settings).fit(X, classes).score(X, classes) > 0.9


def test_a_rule_of_ones_own_moves_the_head(table):
    class Still(HeadUpdate):
        def update_(self, head, features, targets, sample_weight=None, progress=0.0):
            head.replace_(head.weight, torch.full_like(head.bias, 2.0))

    settings = {"net_params": {"head_update": Still()}, "max_epochs": 1}
    net = regressor(alpha=0.1, **settings).fit(*table).net_
    assert net.history[0, "train_loss"] == pytest.approx(4 + 1, rel=1e-3)
