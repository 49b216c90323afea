"""Targets that would broadcast to features are refused, wherever both are taken."""

import re

import pytest
import torch
from small_models import draw

from sklearn_cfll import (
    BatchRidgeUpdate,
    ClosedFormHead,
    KalmanUpdate,
    ProximalUpdate,
    RunningAverageUpdate,
)
from sklearn_cfll.functional import (
    Moments,
    RidgePath,
    kfold_residuals,
    leave_one_out_residuals,
    proximal_update,
    solve_ridge,
)

N_ROWS, N_FEATURES = 9, 3
FEATURES, COLUMN = draw(N_ROWS, N_FEATURES), draw(N_ROWS, 1, seed=1)


def path():
    return RidgePath(Moments.of(FEATURES, COLUMN))


def by_rule(rule):
    return lambda targets: rule().update_(
        ClosedFormHead(N_FEATURES, 1), FEATURES, targets
    )


def by_head(alpha):
    head = ClosedFormHead(N_FEATURES, 1)
    return lambda targets: head.update_(FEATURES, targets, alpha=alpha, prox=1.0)


TAKERS = {
    "solve_ridge": lambda targets: solve_ridge(FEATURES, targets, 0.1),
    "proximal_update": lambda targets: proximal_update(
        FEATURES, targets, draw(N_FEATURES, 1), draw(1), alpha=0.1, prox=1.0
    ),
    "Moments": lambda targets: Moments.of(FEATURES, targets),
    "leave-one-out": lambda targets: leave_one_out_residuals(
        path(), FEATURES, targets, 0.1
    ),
    "folds": lambda targets: kfold_residuals(
        path(), FEATURES, targets, torch.arange(N_ROWS) % 3, 0.1
    ),
}
HEADS = {
    "head": by_head(0.1),
    "head with a ridge for each output": by_head(torch.tensor([0.1])),
    "ProximalUpdate": by_rule(ProximalUpdate),
    "BatchRidgeUpdate": by_rule(BatchRidgeUpdate),
    "KalmanUpdate": by_rule(KalmanUpdate),
    "RunningAverageUpdate": by_rule(RunningAverageUpdate),
}


@pytest.mark.parametrize("take", [*TAKERS.values()], ids=[*TAKERS])
@pytest.mark.parametrize(
    ("targets", "cure"),
    [
        (COLUMN[:, 0], "pass a single output as a column, targets[..., None]."),
        (COLUMN[:1], "pass a row of targets for each row of features."),
    ],
    ids=["flat", "one row"],
)
def test_targets_without_a_row_for_each_row_are_refused(take, targets, cure):
    message = (
        f"targets of shape {tuple(targets.shape)} don't fit features of shape "
        f"{tuple(FEATURES.shape)}; {cure}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        take(targets)
    take(COLUMN)


@pytest.mark.parametrize("take", [*HEADS.values()], ids=[*HEADS])
@pytest.mark.parametrize(
    "targets", [COLUMN[:, 0], COLUMN.expand(-1, 2)], ids=["flat", "two columns"]
)
def test_a_head_refuses_targets_of_other_outputs(take, targets):
    message = (
        f"features of shape {tuple(FEATURES.shape)} and targets of shape "
        f"{tuple(targets.shape)} don't fit a head of in_features=3, out_features=1; "
        "their last axes are to be of these sizes."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        take(targets)
    take(COLUMN)
