"""The envelope theorem, and the equivalence of alternation and descent on L*.

Penalties are absolute here: an energy that is held does not move with the backbone.
"""

import copy

import pytest
import torch
from small_models import draw
from small_theory import (
    N_FEATURES,
    N_OUTPUTS,
    close,
    curved_data,
    gradient,
    make_backbone,
    make_head,
    parameters_of,
    with_ones,
)

from sklearn_cfll import CFLLNet, ClosedFormHead
from sklearn_cfll.functional import feature_energy, proximal_update
from sklearn_cfll.losses import SquaredLoss


def detached_gradient(backbone, head, inputs, targets, sample_weight=None):
    """Gradient of the package's loss, its mean over outputs made a sum."""
    loss = SquaredLoss()(head(backbone(inputs)), targets, sample_weight)
    return gradient(N_OUTPUTS * loss, backbone)


def least_loss(features, targets, last, alpha, prox, sample_weight=None):
    """Least penalised loss, differentiable through the solve, one output at a time.

    Features (n, ..., d), absolute penalties, ``alpha`` (k,).
    """
    rows = with_ones(features).flatten(0, -2)
    targets = targets.flatten(0, -2)
    if sample_weight is None:
        share = rows.new_full((len(rows),), 1 / len(rows))
    else:
        share = sample_weight.repeat_interleave(len(rows) // len(sample_weight))
        share = share / share.sum()
    anchor = torch.cat([last.weight, last.bias[None]])
    free = rows.new_ones(len(anchor))
    free[-1] = 0
    total = rows.new_zeros(())
    for k in range(targets.shape[-1]):
        ridge = torch.diag(alpha[k] * free + prox)
        matrix = rows.mT @ (share[:, None] * rows) + ridge
        right = rows.mT @ (share * targets[:, k]) + prox * anchor[:, k]
        head = torch.linalg.solve(matrix, right)
        total = total + share @ (rows @ head - targets[:, k]).square()
        total = total + alpha[k] * (free * head).square().sum()
        total = total + prox * (head - anchor[:, k]).square().sum()
    return total


# The envelope theorem: ridge (theorem 1) and proximal loss (theorem 2) ------------

GRIDS = {"tall grid": (8, 2, 3), "wide grid": (2, 2)}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("prox", [0.0, 0.5], ids=["ridge", "proximal"])
@pytest.mark.parametrize(
    "alpha", [[0.2, 0.2], [0.02, 0.7]], ids=["one alpha", "alpha per output"]
)
def test_the_gradient_at_the_detached_head_is_that_through_the_solve(
    grid, weighted, prox, alpha
):
    inputs, targets = draw(*grid, 3), draw(*grid, N_OUTPUTS, seed=1)
    sample_weight = draw(grid[0], seed=2).abs() + 0.1 if weighted else None
    backbone, head, alpha = make_backbone(), make_head(), torch.tensor(alpha).double()
    features = backbone(inputs)
    n_points = features[0, ..., 0].numel()
    row_weight = sample_weight
    if weighted:
        row_weight = sample_weight.repeat_interleave(n_points)
    energy = feature_energy(features.detach().flatten(0, -2), row_weight)
    through = least_loss(
        features, targets, head, alpha * energy, prox * energy, sample_weight
    )
    expected = gradient(through, backbone)

    last = copy.deepcopy(head)
    one_for_all = alpha[0].item() if alpha[0] == alpha[1] else alpha
    head.update_(backbone(inputs), targets, sample_weight, alpha=one_for_all, prox=prox)
    actual = detached_gradient(backbone, head, inputs, targets, sample_weight)
    close(actual, expected, 1e-10)
    # It takes the solution: at the head before it, the gradient is another.
    elsewhere = detached_gradient(backbone, last, inputs, targets, sample_weight)
    assert (elsewhere - expected).norm() > 0.1 * expected.norm()


def loss_through_the_packages_own_solve(features, targets, last, alpha, prox, share):
    """Give the solution, and the penalised loss at it, both with their graphs."""
    # Divided by the energy that the solve multiplies by, a penalty is held.
    energy = feature_energy(features, share)
    head = proximal_update(
        features,
        targets,
        last.weight,
        last.bias,
        alpha=alpha / energy,
        prox=prox / energy,
        sample_weight=share,
    )
    errors = (features @ head.weight + head.bias - targets).square().sum(1)
    pull = (head.weight - last.weight).square().sum()
    pull = pull + (head.bias - last.bias).square().sum()
    ridge = head.weight.square().sum()
    return head, share @ errors + alpha * ridge + prox * pull


@pytest.mark.parametrize("n_rows", [30, 4], ids=["tall", "wide"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_autograd_through_the_packages_own_solve_gives_the_same_gradient(
    n_rows, weighted
):
    inputs, targets = draw(n_rows, 3), draw(n_rows, N_OUTPUTS, seed=1)
    weight = draw(n_rows, seed=2).abs() + 0.1 if weighted else torch.ones(n_rows)
    share = weight.double() / weight.sum()
    backbone, head, alpha, prox = make_backbone(), make_head(), 0.2, 0.5

    features = backbone(inputs)
    solution, through = loss_through_the_packages_own_solve(
        features, targets, head, alpha, prox, share
    )
    expected = gradient(through, backbone)

    features = backbone(inputs)
    energy = feature_energy(features.detach(), share)
    head.update_(features, targets, share, alpha=alpha / energy, prox=prox / energy)
    close(head.weight, solution.weight.detach(), 1e-12)
    actual = detached_gradient(backbone, head, inputs, targets, share)
    close(actual, expected, 1e-10)


def test_the_head_itself_moves_with_the_backbone():
    # So that the equalities above aren't those of a head that stands still.
    inputs, targets = draw(30, 3), draw(30, N_OUTPUTS, seed=1)
    share = torch.full((30,), 1 / 30, dtype=torch.float64)
    backbone, last = make_backbone(), make_head()
    solution, _ = loss_through_the_packages_own_solve(
        backbone(inputs), targets, last, 0.2, 0.5, share
    )
    assert gradient(solution.weight.square().sum(), backbone).norm() > 0.1


# Gradient descent on L* and alternation are the same -------------------------------


def descend(backbone, loss_of, rate=0.05, n_steps=200):
    """Plain gradient descent on the backbone; gives the losses."""
    optimizer = torch.optim.SGD(backbone.parameters(), lr=rate)
    losses = []
    for _ in range(n_steps):
        loss = loss_of(backbone)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("alpha", [0.0, 0.02], ids=["least squares", "ridge"])
def test_descent_through_the_solve_and_alternation_give_the_same_backbone(alpha):
    inputs, targets = curved_data()
    start = make_backbone()
    alternated, through = copy.deepcopy(start), copy.deepcopy(start)
    head = ClosedFormHead(N_FEATURES, N_OUTPUTS)

    def loss_at_the_solved_head(backbone):
        features = backbone(inputs)
        held = alpha / feature_energy(features.detach())
        head.update_(features, targets, alpha=held, prox=0.0)
        return N_OUTPUTS * SquaredLoss()(head(features), targets)

    def loss_through_the_solve(backbone):
        ridges = torch.full((N_OUTPUTS,), alpha, dtype=torch.float64)
        return least_loss(backbone(inputs), targets, make_head(), ridges, prox=0.0)

    descend(alternated, loss_at_the_solved_head)
    losses = descend(through, loss_through_the_solve)
    assert losses[-1] < 0.7 * losses[0]
    assert (parameters_of(through) - parameters_of(start)).norm() > 0.5
    close(parameters_of(alternated), parameters_of(through), 1e-8)


def test_the_net_on_all_rows_without_prox_descends_through_the_solve():
    inputs, targets = curved_data()
    start = make_backbone()
    through = copy.deepcopy(start)
    net = CFLLNet(
        start,
        n_features=N_FEATURES,
        n_outputs=N_OUTPUTS,
        alpha=0.0,
        prox=0.0,
        optimizer=torch.optim.SGD,
        lr=0.05 * N_OUTPUTS,  # its loss is the mean over the outputs
        lr_schedule="constant",
        batch_size=len(inputs),
        max_epochs=200,
    ).fit(inputs.numpy(), targets.numpy())

    def loss_through_least_squares(backbone):
        rows = with_ones(backbone(inputs))
        head = torch.linalg.lstsq(rows, targets, driver="gels").solution
        return (rows @ head - targets).square().sum(1).mean()

    losses = descend(through, loss_through_least_squares)
    trained = net.module_.backbone
    close(parameters_of(trained), parameters_of(through), 1e-8)
    close(net.history[:, "train_loss"][-1] * N_OUTPUTS, losses[-1], 1e-8)


def test_autograd_through_an_unpulled_solve_is_finite():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(10, 3, dtype=torch.float64, generator=generator)
    targets = torch.randn(10, 2, dtype=torch.float64, generator=generator)
    features.requires_grad_()
    start = {"weight": torch.zeros(3, 2).double(), "bias": torch.zeros(2).double()}

    def solved(features):
        return proximal_update(features, targets, **start, alpha=0.1, prox=0.0).weight

    assert torch.autograd.gradcheck(solved, (features,))
