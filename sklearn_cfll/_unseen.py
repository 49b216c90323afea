"""Errors of the final head on rows that it was not solved on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_cfll._left_out import leaves_samples_out, left_out_rows
from sklearn_cfll._problem import Problem
from sklearn_cfll._stream import points_of, removed_weight, rows_weight, stream
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.folds import leave_one_out_residuals
from sklearn_cfll.functional.paths import AnyPath
from sklearn_cfll.functional.posterior import HeadPosterior
from sklearn_cfll.net import CFLLNet

# Rows, and numbers in their errors, that are enough to fit a few numbers by.
_MOST_ROWS = 20_000
_MOST_NUMBERS = 2**20
_LEAST_ROWS = 1_000
_LEAST_SAMPLES = 100

# Held-out rows that must know an output's target for the noise to be theirs.
_LEAST_KNOWN = 20


class UnseenRows(NamedTuple):
    """Errors on rows that the head, and mostly the backbone too, has not seen.

    Attributes
    ----------
    residual : Tensor of shape (n, k)
        Encoded targets less predictions.
    leverage : Tensor of shape (n, 1) or (n, k)
        Variance of the predictions in units of the noise's.
    weight : Tensor of shape (n,) or (n, k)
    held_out : bool
        Whether the rows were held out; otherwise they are training rows, each left out
        of the head in turn.
    """

    residual: Tensor
    leverage: Tensor
    weight: Tensor
    held_out: bool

    @property
    def unknown(self) -> Tensor:
        """Whether no row knows an output's target, (k,)."""
        return self._n_known == 0

    @property
    def hardly_known(self) -> Tensor:
        """Whether fewer rows than are enough know an output's target, (k,)."""
        return self._n_known < min(_LEAST_KNOWN, len(self.residual))

    def without_single_ones(self) -> UnseenRows:
        """Take the weight of outputs whose target one training row alone knows.

        The head predicts it as it is, whatever is left out.
        """
        single = self._n_known <= 1
        if not single.any():
            return self
        weight = self.weight.reshape(len(self.residual), -1) * ~single
        return self._replace(weight=weight)

    @property
    def _n_known(self) -> Tensor:
        known = self.weight.reshape(len(self.residual), -1) > 0
        return known.sum(0).expand(self.residual.shape[1])


@torch.no_grad()
def unseen_rows(
    net: CFLLNet, problem: Problem, path: AnyPath, alpha: Any, posterior: HeadPosterior
) -> UnseenRows:
    """Gather the held-out rows' errors, or leave-one-out errors where there are none.

    Many rows are sampled evenly.
    """
    if problem.held_out_batches is not None:
        return errors_on(net, problem.held_out_batches, posterior)
    return errors_left_out(net, problem, path, alpha, posterior)


@torch.no_grad()
def errors_left_out(
    net: CFLLNet, problem: Problem, path: AnyPath, alpha: Any, posterior: HeadPosterior
) -> UnseenRows:
    """Gather leave-one-out errors; many rows are sampled evenly."""
    if leaves_samples_out(problem):
        return _joined(left_out_rows(net, problem, alpha), held_out=False)
    parts = []
    for features, targets, weight in stream(net, sample_of(problem.batches)):
        targets = targets.to(posterior.vectors)
        weight = rows_weight(weight, targets)
        rows = features, targets, weight
        residual = left_out(net, problem, path, alpha, rows).to(targets)
        taken = removed_weight(net, problem, targets, weight)
        taken = taken.reshape(len(taken), -1)
        leverage = posterior.leverage(features.cpu())
        # The head without the row knows less of it: h / (1 - h), by Woodbury.
        leverage = leverage / (1 - taken * leverage).clamp_min(1e-10)
        parts.append((residual, leverage, weight))
    return _joined(parts, held_out=False).without_single_ones()


@torch.no_grad()
def errors_on(
    net: CFLLNet, batches: TensorBatches, posterior: HeadPosterior
) -> UnseenRows:
    """Errors of a head on rows that it was not solved on; many are sampled evenly."""
    parts = []
    for features, targets, weight in stream(net, sample_of(batches)):
        targets = targets.to(posterior.vectors)
        residual = targets - net.module_.head(features).to(targets)
        leverage = posterior.leverage(features.cpu())
        parts.append((residual, leverage, rows_weight(weight, targets)))
    return _joined(parts, held_out=True)


def _joined(
    parts: Iterable[tuple[Tensor, Tensor, Tensor]], held_out: bool
) -> UnseenRows:
    residual, leverage, weight = map(torch.cat, zip(*parts, strict=True))
    return UnseenRows(residual, leverage, weight, held_out)


def left_out(
    net: CFLLNet, problem: Problem, path: AnyPath, alpha: Any, rows: Any
) -> Tensor:
    """Leave-one-out residuals of features, targets and weights.

    A weight is a number of rows: one unit of it is left out, or less where it is less.
    """
    features, targets, weight = rows
    removed = removed_weight(net, problem, targets, weight)
    alpha = torch.as_tensor(alpha, dtype=torch.float64)
    return leave_one_out_residuals(path, features, targets, alpha, removed)


def sample_of(batches: TensorBatches) -> TensorBatches:
    """Evenly spaced rows, where there are more than are needed."""
    points = points_of(batches)
    most = max(_LEAST_ROWS, _MOST_NUMBERS // batches.encoded.shape[-1])
    most = min(most, _MOST_ROWS)
    if points > 1:  # intervals need samples, of which each is one score
        most = max(_LEAST_SAMPLES, _MOST_NUMBERS // points)
    if batches.n_samples <= most:
        return batches
    return batches.take(np.linspace(0, batches.n_samples - 1, most))
