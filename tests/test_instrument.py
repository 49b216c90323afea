"""The mathematics of two stages, against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import draw
from torch.testing import assert_close

from sklearn_cfll.functional.instrument import (
    StageRidge,
    combine_features,
    first_stage_update,
    solve_two_stages,
)
from sklearn_cfll.functional.moments import Moments
from sklearn_cfll.functional.ridge import feature_energy
from sklearn_cfll.functional.sandwich import Terms, head_covariance

PHI, PSI, CHI, Y = (draw(40, d, seed=d) for d in (5, 2, 3, 1))
WEIGHT = draw(40, seed=9).abs() + 0.1


def with_ones(columns):
    return torch.cat([columns, torch.ones(len(columns), 1).to(columns)], 1)


def ridge_by_hand(features, targets, penalty, weight=None):
    """Solve the normal equations of features and a constant, of weights of sum one."""
    weight = torch.ones(len(features)) if weight is None else weight
    share = (weight / weight.sum()).double()[:, None]
    design = with_ones(features)
    gram = design.mT @ (share * design)
    gram += torch.diag(torch.cat([penalty, torch.zeros(1).double()]))
    return torch.linalg.solve(gram, design.mT @ (share * targets))


def variance_of(features, weight):
    share = (weight / weight.sum())[:, None]
    mean = (share * features).sum(0)
    return (share * (features - mean).square()).sum(0)


# Features ---------------------------------------------------------------------------


def test_the_product_holds_all_products_with_a_constant():
    product = combine_features(PSI, CHI, "product")
    outer = torch.einsum("ni,nj->nij", with_ones(PSI), with_ones(CHI)).flatten(1)
    # The constant's own product is the intercept.
    assert sorted(product[0].tolist()) == pytest.approx(sorted(outer[0, :-1].tolist()))
    assert_close(product[:, :2], PSI)
    assert_close(product[:, 2:5], CHI)
    assert_close(product[:, 5:8], PSI[:, :1] * CHI)


def test_side_by_side_and_without_covariates():
    assert_close(combine_features(PSI, CHI, "concatenate"), torch.cat([PSI, CHI], 1))
    assert combine_features(PSI, None, "product") is PSI


def test_members_are_combined_one_by_one():
    stacked = combine_features(torch.stack([PSI, 2 * PSI]), torch.stack([CHI, -CHI]))
    assert_close(stacked[0], combine_features(PSI, CHI))
    assert_close(stacked[1], combine_features(2 * PSI, -CHI))


# Exact solves -----------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_both_stages_are_ridge_regressions(alpha, weight):
    known = torch.ones(40).double() if weight is None else weight
    heads = solve_two_stages(
        PHI,
        PSI,
        Y,
        covariates=CHI,
        alpha=alpha,
        instrument_alpha=2 * alpha,
        sample_weight=weight,
    )
    first = ridge_by_hand(PHI, PSI, 2 * alpha * variance_of(PHI, known), known)
    assert_close(torch.cat([heads.first_weight, heads.first_bias[None]]), first)
    features = combine_features(with_ones(PHI) @ first, CHI)
    second = ridge_by_hand(features, Y, alpha * variance_of(features, known), known)
    assert_close(torch.cat([heads.weight, heads.bias[None]]), second)


def test_without_a_ridge_it_is_two_stage_least_squares():
    heads = solve_two_stages(PHI, PSI, Y)
    instruments, treatment = with_ones(PHI), with_ones(PSI)
    projection = instruments @ torch.linalg.pinv(instruments)
    slopes = torch.linalg.solve(
        treatment.mT @ projection @ treatment, treatment.mT @ projection @ Y
    )
    assert_close(torch.cat([heads.weight, heads.bias[None]]), slopes)


def test_free_features_are_all_but_spared_the_ridge():
    free = torch.tensor([True, False, False, True, False])
    moments = Moments.of(PHI, PSI)
    weight, bias = StageRidge(moments, free).solve(5.0)
    variance = variance_of(PHI, torch.ones(40).double())
    penalty = 5.0 * variance * torch.where(free, 1e-8, 1.0)
    assert_close(torch.cat([weight, bias[None]]), ridge_by_hand(PHI, PSI, penalty))


def test_a_ridge_pulls_to_its_start():
    moments = Moments.of(PHI, PSI, WEIGHT)
    start = torch.arange(10.0).double().reshape(5, 2)
    left = StageRidge(Moments.of(PHI, PSI - PHI @ start, WEIGHT))
    change, offset = left.solve(0.5)
    ridge = StageRidge(moments, start=start)
    weight, bias = ridge.solve(0.5)
    assert_close(weight, start + change)
    assert_close(bias, offset)
    assert_close(ridge.solve(1e12)[0], start)
    errors = ridge.generalized_errors([0.5]), left.generalized_errors([0.5])
    assert_close(*errors)


def test_each_output_may_have_a_ridge_of_its_own():
    ridge = StageRidge(Moments.of(PHI, PSI))
    weight, bias = ridge.solve(torch.tensor([0.1, 10.0]).double())
    for output, alpha in enumerate([0.1, 10.0]):
        own = ridge.solve(alpha)
        assert_close(weight[:, output], own[0][:, output])
        assert_close(bias[output], own[1][output])


@pytest.mark.parametrize("start", [None, torch.ones(5, 2).double()])
def test_the_errors_of_a_path_are_those_of_its_heads(start):
    ridge = StageRidge(Moments.of(PHI[:30], PSI[:30]), start=start)
    alphas = [0.01, 1.0]
    for alpha, squares in zip(
        alphas, ridge.squares(PHI[30:], PSI[30:], alphas), strict=True
    ):
        weight, bias = ridge.solve(alpha)
        assert_close(squares, (PHI[30:] @ weight + bias - PSI[30:]).square())


def test_generalized_errors_count_rows():
    weight = torch.tensor([1.0, 2.0, 3.0, 2.0] * 10).double()
    rows = torch.repeat_interleave(torch.arange(40), weight.long())
    repeated = StageRidge(Moments.of(PHI[rows], PSI[rows])).generalized_errors([0.1])
    scaled = weight / weight.mean()
    ridge = StageRidge(Moments.of(PHI, PSI, scaled))
    counted = ridge.generalized_errors([0.1], unit=float(weight.mean()))
    assert_close(counted, repeated)


def test_the_scale_of_a_feature_does_not_matter():
    unit = torch.tensor([1e4, 1.0, 1e-3, 1.0, 50.0]).double()
    moments, scaled = (Moments.of(features, PSI) for features in (PHI, PHI * unit))
    weight, bias = StageRidge(moments).solve(0.5)
    own, offset = StageRidge(scaled).solve(0.5)
    assert_close(own * unit[:, None], weight)
    assert_close(offset, bias)


# Stage 1 of a batch -----------------------------------------------------------------


def proximal_by_hand(phi, psi, weight, bias, alpha, prox, sample_weight):
    """Dense solve of the proximal problem of stage 1, of which autograd knows all."""
    share = (sample_weight / sample_weight.sum())[:, None]
    energy = feature_energy(phi, sample_weight)
    design, last = with_ones(phi), torch.cat([weight, bias[None]])
    size = design.shape[1]
    ridge = alpha * energy * torch.eye(size).double()
    ridge[-1, -1] = 0
    pull = prox * energy * torch.eye(size).double()
    left = design.mT @ (share * design) + ridge + pull
    return torch.linalg.inv(left) @ (design.mT @ (share * psi) + pull @ last)


@pytest.mark.parametrize("n_rows", [40, 4], ids=["primal", "dual"])
def test_gradients_of_stage_2_pass_through_the_solve_of_stage_1(n_rows):
    phi, weight = PHI[:n_rows], WEIGHT[:n_rows]
    last = draw(5, 2, seed=20), draw(2, seed=21)
    inner = PSI[:n_rows].clone().requires_grad_()

    def loss(head):
        predicted = with_ones(phi) @ head
        features = combine_features(predicted, CHI[:n_rows])
        return (features.sum(1).sin() * Y[:n_rows, 0]).sum()

    solved = first_stage_update(
        phi, inner, *last, alpha=0.1, prox=0.5, sample_weight=weight
    )
    head = torch.cat([solved.weight, solved.bias[None]])
    by_hand = proximal_by_hand(phi, inner, *last, 0.1, 0.5, weight)
    assert_close(head, by_hand)
    (own,), (dense,) = (torch.autograd.grad(loss(h), inner) for h in (head, by_hand))
    assert_close(own, dense)
    assert own.abs().min() > 0


def test_instrument_features_are_held_fixed():
    phi, psi = PHI.clone().requires_grad_(), PSI.clone().requires_grad_()
    last = torch.zeros(5, 2).double(), torch.zeros(2).double()
    solved = first_stage_update(phi, psi, *last, alpha=0.1, prox=0.5)
    solved.weight.sum().backward()
    assert phi.grad is None
    assert psi.grad.abs().sum() > 0


def test_members_are_solved_one_by_one():
    stacked = first_stage_update(
        torch.stack([PHI, PHI.flip(0)]),
        torch.stack([PSI, PSI]),
        torch.zeros(2, 5, 2).double(),
        torch.zeros(2, 2).double(),
        alpha=0.1,
        prox=0.5,
    )
    for i, phi in enumerate([PHI, PHI.flip(0)]):
        last = torch.zeros(5, 2).double(), torch.zeros(2).double()
        alone = first_stage_update(phi, PSI, *last, alpha=0.1, prox=0.5)
        assert_close(stacked.weight[i], alone.weight)
        assert_close(stacked.bias[i], alone.bias)


# Covariance -------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [True, False])
def test_the_covariance_of_one_member_is_a_sandwich(robust):
    features, residual = PHI, Y[:, 0]
    weight = WEIGHT / WEIGHT.mean()
    ridge = StageRidge(Moments.of(features, Y, weight))
    terms = [Terms(features[None], residual[None], ridge.moments.feature_mean[None])]
    found = head_covariance([ridge], 0.2, [(terms, weight)], robust=robust)
    design = with_ones(features)
    penalty = torch.diag(
        torch.cat([0.2 * variance_of(features, weight), torch.zeros(1)])
    )
    bread = torch.linalg.inv(design.mT @ (weight[:, None] * design) + 40 * penalty)
    middle = design.mT @ ((weight * residual).square()[:, None] * design)
    if not robust:
        variance = (weight * residual.square()).mean()
        middle = variance * design.mT @ (weight[:, None] * design)
    covariance = bread @ middle @ bread
    assert_close(found.of_weight[0], covariance.diagonal()[:-1].sqrt())
    at = with_ones(features)
    assert_close(
        found.deviation(features[None]),
        torch.einsum("ni,ij,nj->n", at, covariance, at).sqrt(),
    )


@pytest.mark.parametrize("robust", [True, False])
def test_two_equal_members_err_as_one(robust):
    ridge = StageRidge(Moments.of(PHI, Y))
    mean = ridge.moments.feature_mean
    found = []
    for n_members in (1, 2):
        parts = PHI.expand(n_members, -1, -1), Y[:, 0].expand(n_members, -1)
        terms = [Terms(*parts, mean.expand(n_members, -1))]
        batches = [(terms, None)]
        covariance = head_covariance([ridge] * n_members, 0.1, batches, robust=robust)
        found.append(covariance.deviation(parts[0]))
    assert_close(*found)


@pytest.mark.parametrize("robust", [True, False])
def test_a_head_that_is_pulled_to_another_errs_by_that_ones_errors_too(robust):
    # Heads are linear in the targets: those of each row's target alone say how.
    each, phi = torch.eye(40).double(), PHI.flip(0)
    plain = StageRidge(Moments.of(phi, each))
    ridge = StageRidge(Moments.of(PHI, each), start=plain.solve(0.3)[0])
    by_target = ridge.solve(0.2)[0]
    residual = Y[:, 0]
    size = residual if robust else residual.square().mean().sqrt()
    terms = [
        Terms(features[None], residual[None], own.moments.feature_mean[None])
        for features, own in ((PHI, ridge), (phi, plain))
    ]
    pull = {"robust": robust, "plain": [plain], "plain_alpha": 0.3}
    found = head_covariance([ridge], 0.2, [(terms, None)], **pull)
    assert_close(found.of_weight[0], (by_target * size).square().sum(1).sqrt())


@pytest.mark.parametrize("robust", [True, False])
def test_batches_of_rows_add_up(robust):
    ridges = [StageRidge(Moments.of(x, Y, WEIGHT)) for x in (PHI, PHI.flip(0))]

    def batch(rows):
        features = torch.stack([PHI[rows], PHI.flip(0)[rows]])
        residual = torch.stack([Y[rows, 0], Y[rows, 0].square()])
        mean = torch.stack([ridge.moments.feature_mean for ridge in ridges])
        terms = Terms(features, residual, mean)
        return [terms, terms._replace(residual=-residual)], WEIGHT[rows]

    found = [
        head_covariance(ridges, 0.1, batches, robust=robust, plain=ridges)
        for batches in (
            [batch(slice(None))],
            [batch(slice(0, 15)), batch(slice(15, 40))],
        )
    ]
    assert_close(found[0].covariance, found[1].covariance)


def test_the_deviation_shrinks_with_the_rows():
    random = np.random.default_rng(0)
    sizes = []
    for n_rows in (100, 10_000):
        features = torch.as_tensor(random.normal(size=(n_rows, 2)))
        residual = torch.as_tensor(random.normal(size=n_rows))
        ridge = StageRidge(Moments.of(features, residual[:, None]))
        mean = ridge.moments.feature_mean[None]
        batches = [([Terms(features[None], residual[None], mean)], None)]
        at = torch.ones(1, 1, 2).double()
        sizes.append(float(head_covariance([ridge], 0.0, batches).deviation(at)[0]))
    assert sizes[1] == pytest.approx(sizes[0] / 10, rel=0.3)
