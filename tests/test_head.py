"""The head that is solved: what it keeps, replaces and refuses."""

import copy

import pytest
import torch
from small_models import draw
from torch import nn

from sklearn_cfll import ClosedFormHead
from sklearn_cfll.functional import feature_energy, proximal_update
from sklearn_cfll.prox import PrequentialProx


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def solved_head(n_features=4, n_outputs=2):
    features = draw(30, n_features, seed=3)
    return ClosedFormHead(n_features, n_outputs).update_(
        features, draw(30, n_outputs, seed=4), alpha=0.1, prox=0.5
    )


def test_forward_is_a_linear_layer_on_the_last_axis():
    head = solved_head()
    linear = nn.Linear(4, 2, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(head.weight.T)
        linear.bias.copy_(head.bias)
    for shape in [(4,), (5, 4), (5, 3, 2, 4)]:
        features = draw(*shape)
        close(head(features), linear(features))


def test_forward_answers_in_the_dtype_of_the_features():
    head = solved_head()
    features = draw(5, 4)
    assert head(features.float()).dtype == torch.float32
    close(head(features.float()).double(), head(features), 1e-5)


def test_no_optimizer_sees_the_head():
    head = solved_head()
    assert list(head.parameters()) == []
    assert sorted(name for name, _ in head.named_buffers()) == [
        "bias",
        "n_failures",
        "weight",
    ]


def test_an_update_is_the_proximal_solution_from_the_last_head():
    head = solved_head()
    last = head.weight, head.bias
    features, targets, sample_weight = draw(9, 4), draw(9, 2), draw(9).abs()
    returned = head.update_(features, targets, sample_weight, alpha=0.2, prox=0.7)
    expected = proximal_update(
        features, targets, *last, alpha=0.2, prox=0.7, sample_weight=sample_weight
    )
    assert returned is head
    close(head.weight, expected[0])
    close(head.bias, expected[1])


def test_the_first_solution_is_well_damped():
    features, targets = draw(9, 4), draw(9, 2)
    started = ClosedFormHead(4, 2).start_(features, targets, alpha=0.2)
    damped = ClosedFormHead(4, 2).update_(features, targets, alpha=0.2, prox=0.1)
    close(started.weight, damped.weight)
    close(started.bias, damped.bias)


@pytest.mark.parametrize("grid", [(3,), (2, 3)], ids=["line", "plane"])
def test_grid_points_are_rows_that_share_their_samples_weight(grid):
    n_points = torch.Size(grid).numel()
    features, targets = draw(6, *grid, 4), draw(6, *grid, 2, seed=1)
    sample_weight = draw(6).abs()
    head = ClosedFormHead(4, 2)
    head.update_(features, targets, sample_weight, alpha=0.1, prox=0.5)
    rows = ClosedFormHead(4, 2).update_(
        features.reshape(-1, 4),
        targets.reshape(-1, 2),
        torch.cat([weight.expand(n_points) for weight in sample_weight]),
        alpha=0.1,
        prox=0.5,
    )
    close(head.weight, rows.weight)
    close(head.bias, rows.bias)
    unweighted = ClosedFormHead(4, 2).update_(features, targets, alpha=0.1, prox=0.5)
    assert not torch.allclose(unweighted.weight, head.weight)


@pytest.mark.parametrize("broken", ["features", "targets", "weights"])
def test_an_update_without_a_solution_is_counted_and_left_out(broken):
    head = solved_head()
    weight, bias = head.weight.clone(), head.bias.clone()
    values = {"features": draw(9, 4), "targets": draw(9, 2), "weights": draw(9).abs()}
    values[broken].view(-1)[3] = torch.nan
    for count in [1, 2]:
        head.update_(*values.values(), alpha=0.1, prox=0.5)
        assert int(head.n_failures) == count
        assert torch.equal(head.weight, weight)
        assert torch.equal(head.bias, bias)


def test_after_a_failure_the_next_update_goes_on_from_the_kept_head():
    head, other = solved_head(), solved_head()
    head.update_(draw(9, 4) * torch.nan, draw(9, 2), alpha=0.1, prox=0.5)
    for each in [head, other]:
        each.update_(draw(9, 4), draw(9, 2), alpha=0.1, prox=0.5)
    assert torch.equal(head.weight, other.weight)
    assert int(head.n_failures) == 1


@pytest.mark.parametrize("by_output", [False, True], ids=["rows", "outputs"])
def test_a_learnt_pull_takes_integer_weights_as_repeated_rows(by_output):
    weighted, repeated = PrequentialProx(), PrequentialProx()
    heads = [solved_head(), solved_head()]
    for seed in range(5):
        features, targets = draw(9, 4, seed=seed), draw(9, 2, seed=seed + 9)
        weight = torch.arange(9) % 3 * (1 + 4 * (seed % 2))
        own = weight.double()
        own = own[:, None].expand(9, 2) if by_output else own
        heads[0].update_(features, targets, own, alpha=0.1, prox=weighted)
        rows = (
            features.repeat_interleave(weight, 0) for features in (features, targets)
        )
        heads[1].update_(*rows, alpha=0.1, prox=repeated)
    close(heads[0].weight, heads[1].weight)
    close(weighted.value, repeated.value)
    assert abs(weighted.value.log()) > 0.05


@pytest.mark.parametrize("most", [2**22, 1], ids=["rows", "streamed"])
def test_a_plain_pull_ends_what_a_learnt_one_has_begun(most, monkeypatch):
    monkeypatch.setattr("sklearn_cfll.head._MOST_NUMBERS", most)
    head, plain = solved_head(), solved_head()
    head.update_(draw(9, 4), draw(9, 2), alpha=0.1, prox=PrequentialProx())
    assert head.slope is not None
    head.update_(draw(3, 3, 4), draw(3, 3, 2), alpha=0.1, prox=0.5)
    assert head.slope is None
    plain.weight, plain.bias = head.weight, head.bias
    for each in [head, plain]:  # nothing is left to learn from
        each.update_(draw(9, 4, seed=5), draw(9, 2), alpha=0.1, prox=PrequentialProx())
    close(head.weight, plain.weight)


def test_an_update_replaces_the_tensors_that_autograd_may_hold():
    head = solved_head()
    inputs, targets = draw(9, 3), draw(9, 2)
    backbone = nn.Linear(3, 4, dtype=torch.float64)
    features = backbone(inputs)
    old_weight = head.weight
    kept = old_weight.clone()
    loss = (head(features) - targets).square().sum()
    head.update_(features, targets, alpha=0.1, prox=0.5)
    loss.backward()  # at the old head, though the head has moved on
    residual = features.detach() @ kept + solved_head().bias - targets
    close(backbone.bias.grad, (2 * residual @ kept.T).sum(0), 1e-11)
    assert torch.equal(old_weight, kept)
    assert not torch.equal(head.weight, kept)


def test_an_update_leaves_no_graph_in_the_head():
    features = draw(9, 4).requires_grad_()
    head = solved_head().update_(features, draw(9, 2), alpha=0.1, prox=0.5)
    assert not head.weight.requires_grad
    assert not head.bias.requires_grad


@pytest.mark.parametrize("copied", ["state_dict", "deepcopy"])
def test_copies_predict_alike_and_live_on_their_own(copied):
    head = solved_head()
    head.update_(draw(9, 4) * torch.nan, draw(9, 2), alpha=0.1, prox=0.5)
    if copied == "state_dict":
        other = ClosedFormHead(4, 2)
        other.load_state_dict(head.state_dict())
    else:
        other = copy.deepcopy(head)
    assert int(other.n_failures) == 1
    before = head(draw(5, 4))
    assert torch.equal(other(draw(5, 4)), before)
    other.update_(draw(9, 4), draw(9, 2), alpha=0.1, prox=0.5)
    assert torch.equal(head(draw(5, 4)), before)


def test_a_head_in_float32_is_solved_in_float32():
    exact = solved_head()
    head = ClosedFormHead(4, 2, dtype=torch.float32).update_(
        draw(30, 4, seed=3), draw(30, 2, seed=4), alpha=0.1, prox=0.5
    )
    assert head.weight.dtype == torch.float32
    close(head.weight.double(), exact.weight, 1e-5)


def test_the_representation_names_the_sizes():
    assert repr(ClosedFormHead(4, 2)) == (
        "ClosedFormHead(in_features=4, out_features=2)"
    )


# The envelope theorem -------------------------------------------------------------


def penalised_loss_through_the_solve(
    features, targets, last, alpha, prox, sample_weight
):
    """Give the least penalised loss as a differentiable function of the features.

    The energy is a detached number, as in the method.
    """
    share = sample_weight / sample_weight.sum()
    energy = feature_energy(features, sample_weight).detach()
    extended = torch.cat([features, torch.ones(len(features), 1).double()], 1)
    weight, bias = last
    last = torch.cat([weight, bias[None]])
    free = torch.eye(len(last)).double()
    free[-1, -1] = 0
    matrix = extended.T @ (share[:, None] * extended)
    matrix = matrix + energy * (alpha * free + prox * torch.eye(len(last)))
    right = extended.T @ (share[:, None] * targets) + energy * prox * last
    head = torch.linalg.solve(matrix, right)
    residual = (extended @ head - targets).square()
    penalty = alpha * head[:-1].square().sum() + prox * (head - last).square().sum()
    return (share @ residual).sum() + energy * penalty


@pytest.mark.parametrize("n_rows", [30, 3], ids=["tall", "wide"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("prox", [0.0, 0.5], ids=["ridge", "proximal"])
def test_the_gradient_at_the_detached_head_is_that_through_the_solve(
    n_rows, weighted, prox
):
    inputs, targets = draw(n_rows, 3), draw(n_rows, 2)
    sample_weight = draw(n_rows).abs() + 0.1 if weighted else None
    weight = torch.ones(n_rows).double() if sample_weight is None else sample_weight
    layer = nn.Linear(3, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(draw(6, 3))
        layer.bias.copy_(draw(6))
    head = solved_head(6)
    last = head.weight, head.bias

    features = torch.tanh(layer(inputs))
    through = penalised_loss_through_the_solve(
        features, targets, last, 0.2, prox, weight
    )
    expected = torch.autograd.grad(through, list(layer.parameters()))

    features = torch.tanh(layer(inputs))
    head.update_(features, targets, sample_weight, alpha=0.2, prox=prox)
    errors = (head(features) - targets).square().sum(1)
    loss = (weight * errors).sum() / weight.sum()
    actual = torch.autograd.grad(loss, list(layer.parameters()))
    for one, other in zip(actual, expected, strict=True):
        close(one, other, 1e-10)
