"""Logits from the solved head, and from a logistic head on the same features.

Squared loss finds classes well and says poorly how probable they are. A logistic head
on the trained backbone's features is a convex problem; logits are a blend of both
heads, whose two weights minimise the log loss of rows that the backbone did not see.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from sklearn_cfll._final import leave_one_out
from sklearn_cfll._problem import Problem
from sklearn_cfll._stream import stream
from sklearn_cfll._targets import ClassTargets
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.paths import AnyPath
from sklearn_cfll.net import CFLLNet

# Ridges of the logistic head, relative to the mean square of the centred features.
_RIDGES = (0.3, 0.03, 0.003)

# Each ridge goes on from the one before, so that a few iterations do; the rows bound
# the time and the memory on large tables.
_ITERATIONS = 12
_MOST_TRAINING_ROWS = 5_000
_MOST_HELD_OUT_ROWS = 20_000

# Of held-out rows fewer do where the classes are many, whose logits stand in memory
# several times: two numbers and a ridge are chosen by them.
_MOST_HELD_OUT_LOGITS = 2**22
_LEAST_HELD_OUT_ROWS = 2_000

# Least weight of the solved head: scores that say nothing, or the opposite, as
# leave-one-out scores of two rows do, still order the classes.
_LEAST = 1e-2


@torch.no_grad()
def calibrate(
    net: CFLLNet, problem: Problem, path: AnyPath, alpha: Any, scale: float
) -> tuple[NDArray[np.float64], LinearLogits]:
    """Find logits of little log loss.

    Where no rows were held out, they are the solved head's scores alone, by a factor
    that suits its leave-one-out scores.

    Parameters
    ----------
    net : CFLLNet
    problem : Problem
    path : RidgePath or RidgePathByOutput
        Of the training rows, for leave-one-out.
    alpha : float or array of shape (k,)
        Ridge of the solved head.
    scale : float
        Targets are minus and plus this.

    Returns
    -------
    blend : array of shape (2,)
        Weights of the solved head's scores and of the logistic head's logits.
    logits : LinearLogits
        Both heads as one.
    """
    head = net.module_.head
    solved = LinearLogits(head.weight / scale, head.bias / scale)
    if problem.held_out_batches is None:
        scores, index, weight = left_out(net, problem, path, alpha)
        (factor,) = fit_blend([scores / scale], index, weight)
        factors = np.array([factor, 0.0])
        return factors / [scale, 1.0], solved.times(factor)
    train = ClassRows.of(net, problem.batches, _MOST_TRAINING_ROWS)
    n_outputs = head.weight.shape[1]
    most = max(_MOST_HELD_OUT_LOGITS // n_outputs, _LEAST_HELD_OUT_ROWS)
    most = min(most, _MOST_HELD_OUT_ROWS)
    held_out = ClassRows.of(net, problem.held_out_batches, most)
    logistic = fit_logistic(train, held_out, n_outputs)
    factors = fit_blend(
        [solved.of(held_out.features), logistic.of(held_out.features)],
        held_out.label.cpu().numpy(),
        _wide(held_out.weight) / problem.held_out_row,
    )
    both = solved.times(factors[0]).plus(logistic.times(factors[1]))
    return factors / [scale, 1.0], both


def left_out(
    net: CFLLNet, problem: Problem, path: AnyPath, alpha: Any
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Leave-one-out scores, the number of the true class, and weights in rows."""
    chunks = leave_one_out(net, path, problem, [alpha])
    columns = zip(*((part[1:]) for part in chunks), strict=True)
    targets, scores, weight = (np.concatenate([*map(_wide, c)]) for c in columns)
    return scores, ClassTargets.index(targets), weight / problem.row


class ClassRows(NamedTuple):
    """Features, the number of the true class, and the weight of some rows."""

    features: Tensor
    label: Tensor
    weight: Tensor

    @classmethod
    def of(cls, net: CFLLNet, batches: TensorBatches, most: int) -> ClassRows:
        """Gather up to ``most`` rows, evenly spaced."""
        if batches.n_samples > most:
            batches = batches.take(np.linspace(0, batches.n_samples - 1, most))
        parts = []
        for features, targets, weight in stream(net, batches):
            weight = features.new_ones(len(features)) if weight is None else weight
            label = torch.from_numpy(ClassTargets.index(_wide(targets)))
            parts.append((features, label.to(features.device), weight))
        return cls(*map(torch.cat, zip(*parts, strict=True)))


class LinearLogits(NamedTuple):
    """Weight (d, k) and bias (k,) of logits; one column for two classes."""

    weight: Tensor
    bias: Tensor

    def of(self, features: Tensor) -> NDArray[np.float64]:
        """Logits of features (n, d)."""
        return _wide(features @ self.weight.to(features) + self.bias.to(features))

    def times(self, factor: float) -> LinearLogits:
        """Logits that are so many times as large."""
        return LinearLogits(factor * self.weight, factor * self.bias)

    def plus(self, other: LinearLogits) -> LinearLogits:
        """Sum of both, in the precision of the first."""
        weight, bias = other.weight.to(self.weight), other.bias.to(self.bias)
        return LinearLogits(self.weight + weight, self.bias + bias)


def _wide(values: Tensor) -> NDArray[np.float64]:
    wide: NDArray[np.float64] = values.detach().cpu().double().numpy()
    return wide


def fit_logistic(train: ClassRows, held_out: ClassRows, n_outputs: int) -> LinearLogits:
    """Fit a logistic head by L-BFGS; held-out rows choose its ridge.

    Parameters
    ----------
    train, held_out : ClassRows
    n_outputs : int
        Logits: the number of classes, or one for two classes.

    Returns
    -------
    logits : LinearLogits
        Of finite log loss on the held-out rows; zero where the first ridge has none.
    """
    mean = train.weight @ train.features / train.weight.sum()
    loss = PenalisedLogLoss(train._replace(features=train.features - mean), n_outputs)
    unseen = held_out._replace(features=held_out.features - mean)
    head = np.zeros((n_outputs, len(mean) + 1))
    best, least = loss.logits(head), np.inf
    for ridge in _RIDGES:
        head = loss.descend(head, ridge)
        logits = loss.logits(head)
        unseen_loss = _log_loss(logits, unseen)
        if not unseen_loss < least:
            break
        best, least = logits, unseen_loss
    return LinearLogits(best.weight, best.bias - mean @ best.weight)


class PenalisedLogLoss:
    """Log loss of rows, and a ridge, as a function of a head's numbers.

    Logits lie as classes by rows: products with few columns are slow.

    Parameters
    ----------
    rows : ClassRows
        With centred features.
    n_outputs : int
        Logits k: the number of classes, or one for two classes.
    """

    def __init__(self, rows: ClassRows, n_outputs: int) -> None:
        self.features, label, weight = rows
        self.columns = self.features.T.contiguous()
        self.energy = float(self.features.square().mean())
        self.weight = (weight / weight.sum()).to(self.features)
        # Where the logits lie whose probabilities should be one, and their weights.
        self.truth: Tensor | slice = slice(None)
        self.weight_of_truth = self.weight * label
        if n_outputs > 1:
            position = torch.arange(len(label), device=label.device)
            self.truth = len(label) * label + position
            self.weight_of_truth = self.weight

    def descend(self, head: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        """Go a few iterations of L-BFGS from a head (k, d + 1), biases last."""
        found = minimize(
            self,
            head.ravel(),
            args=(ridge * self.energy,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _ITERATIONS, "ftol": 1e-9, "gtol": 1e-7},
        )
        return found.x.reshape(head.shape)

    def logits(self, head: NDArray[np.float64]) -> LinearLogits:
        """Logits of centred features by a head (k, d + 1)."""
        both = torch.from_numpy(head).to(self.features)
        return LinearLogits(both[:, :-1].T, both[:, -1])

    @torch.no_grad()
    def __call__(
        self, numbers: NDArray[np.float64], penalty: float
    ) -> tuple[float, NDArray[np.float64]]:
        """Loss and gradient."""
        size = self.features.shape[1] + 1
        both = torch.from_numpy(numbers).to(self.features).view(-1, size)
        weight, bias = both[:, :-1], both[:, -1:]
        logits = torch.addmm(bias, weight, self.columns)
        of_truth = self.weight_of_truth @ logits.view(-1)[self.truth]
        # In place, since of thousands of classes these are hundreds of megabytes.
        if len(logits) == 1:
            partition = nn.functional.softplus(logits[0])
            error = logits.sigmoid_().mul_(self.weight)
        else:
            largest = logits.amax(0)
            total = logits.sub_(largest).exp_().sum(0)
            partition = largest + total.log()
            error = logits.mul_(self.weight / total)
        loss = self.weight @ partition - of_truth + penalty * weight.square().sum()
        error.view(-1)[self.truth] -= self.weight_of_truth
        slope = torch.addmm(weight, error, self.features, beta=2 * penalty)
        gradient = torch.cat([slope, error.sum(1, keepdim=True)], 1)
        return float(loss), _wide(gradient).ravel()


def _log_loss(logits: LinearLogits, rows: ClassRows) -> float:
    losses = -log_softmax(both_sides(logits.of(rows.features)), axis=1)
    weight = _wide(rows.weight)
    of_truth = losses[np.arange(len(losses)), rows.label.cpu().numpy()]
    return float(weight @ of_truth / weight.sum())


def fit_blend(
    parts: list[NDArray[np.float64]], index: NDArray[Any], weight: NDArray[Any]
) -> NDArray[np.float64]:
    """Weights of several logits whose sum has the least log loss.

    None is negative, and the first is at least a hundredth.

    The loss is convex in them. One more row, which has every label alike, keeps few
    rows, all of them right, from certainty.

    Parameters
    ----------
    parts : list of arrays of shape (n, k)
    index : array of shape (n,)
        The number of the true class.
    weight : array of shape (n,)
        In units of rows.

    Returns
    -------
    blend : array of shape (n_parts,)
    """
    stacked = np.stack([both_sides(part) for part in parts])
    rows, total = np.arange(len(index)), weight.sum()
    share = weight / total
    truth = (stacked[:, rows, index] @ weight + stacked.mean(2) @ share) / (total + 1)

    def loss(blend: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        logits = np.tensordot(blend, stacked, 1)
        expected = np.einsum("nc,pnc,n->p", softmax(logits, axis=1), stacked, share)
        partition = (logits - log_softmax(logits, axis=1))[:, 0]
        return share @ partition - blend @ truth, expected - truth

    start = np.full(len(parts), 1 / len(parts))
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(_LEAST, None)] + [(0, None)] * (len(parts) - 1),
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 200},
    )
    blend: NDArray[np.float64] = found.x
    return blend


def both_sides(logits: NDArray[Any]) -> NDArray[Any]:
    """Logits of both classes where there is one of the second alone."""
    return np.hstack([0 * logits, logits]) if logits.shape[1] == 1 else logits
