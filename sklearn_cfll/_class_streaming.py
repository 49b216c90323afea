"""Streams of classes: their names up front, and how sure the model may be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import _fit_context
from sklearn.utils.multiclass import _check_partial_fit_first_call

from sklearn_cfll._logits import LinearLogits, fit_blend, left_out
from sklearn_cfll._problem import Problem
from sklearn_cfll._score_factor import (
    curvature_of,
    moved_factor,
    typical_curvature,
)
from sklearn_cfll._stream import stream
from sklearn_cfll._streaming import Streaming
from sklearn_cfll._sums import faded
from sklearn_cfll._targets import ClassTargets, weights_of_classes
from sklearn_cfll._undo import all_or_nothing
from sklearn_cfll._validation import Rows
from sklearn_cfll.functional.paths import AnyPath, by_output
from sklearn_cfll.net import CFLLNet

# Bounds of the factor of the solved head's scores, as far as rows of a stream set it.
_FACTORS = (1e-2, 1e3)


class _Before(NamedTuple):
    """What was known of the scores' factor, and scores of rows not yet learnt."""

    factor: float
    weight: float
    curvature: float
    unseen: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None


class ClassStreaming(Streaming):
    """Streams of the classifier."""

    target_scale: float
    class_weight: Any
    classes_: NDArray[Any]

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> Any:
        """Learn from further rows, which need not be kept.

        After fit the backbone stays as it is, unless ``stream_epochs`` is a number
        above zero; without fit it is trained on each chunk. While it stays, the head
        is the exact one of all rows, but for those that fit held out, from sums over
        them. Once it has moved, earlier rows count through the head as it was trained.
        The first call of a stream without fit builds the backbone and learns the
        scaling of X. Logits are the solved head's scores times a factor that suits all
        rows so far, as they were scored before they were learnt; the logistic head of
        fit is dropped.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            New rows; two at least in the first call.
        y : array-like of shape (n_samples,)
            Their classes; some may be absent.
        classes : array-like of shape (n_classes,), default=None
            All classes that will come; needed in the first call, and later the same.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, on one scale in all calls.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            Where the data can't be used, ``classes`` is missing or another than
            before, ``early_stopping`` is True, ``class_weight`` is "balanced", or a
            parameter that the first rows settle has changed since (``backbone``,
            ``dtype``, ``class_weight``, ``target_scale``, ``true_class_weight``).

        Warns
        -----
        UserWarning
            Where X is constant in the first call, or a column of a later one lies 20
            standard deviations of the first off; once, and not after fit.
        """
        with all_or_nothing(self):
            if _check_partial_fit_first_call(self, classes):
                self._start_classes()
            return self._learn_chunk(X, y, sample_weight)

    def _start_classes(self) -> None:
        if len(self.classes_) < 2:
            raise ValueError(
                f"classes holds {self.classes_.tolist()}; CFLLClassifier needs two "
                "classes or more."
            )
        self._targets, self.n_outputs_ = ClassTargets(self.classes_), 1
        if self.class_weight is None:
            return
        if isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight='balanced' needs the counts of all rows, which a stream "
                "doesn't tell; pass a dict of weights."
            )
        self._class_weight = weights_of_classes(self.class_weight, self.classes_, None)

    def _meet_targets(self, train: Rows, first: bool) -> None:
        """Learn nothing: the classes are known before the first rows."""
        if first or self._sums.streamed:
            whose = "that classes named in the first call"
            cure = "name all that will come there, or "
        else:
            whose, cure = "of fit", "call fit with rows of all classes, or "
        self._targets.refuse_unknown(train.chosen(train.y), "y", whose, cure)

    def _before(self, problem: Problem | None) -> _Before:
        unseen = None if problem is None else self._scores(self.net_, problem)
        weight = float(self._sums.moments.weight_sum)
        return _Before(self._factor(), weight, self._sums.curvature, unseen)

    def _factor(self) -> float:
        """Factor by which scores are most like the logits, over the rows so far."""
        head = self.net_.module_.head.weight.double().cpu() / self.target_scale
        logits = torch.tensor(self.coef_.T, dtype=torch.float64)
        mapped = torch.cat(
            [
                part.gram.double().cpu() @ head[:, [i]]
                for i, part in enumerate(by_output(self._sums.moments).parts)
            ],
            1,
        )
        factor = float((logits * mapped).sum() / (head * mapped).sum())
        # The head of rows of one class has no scores to compare.
        return factor if math.isfinite(factor) else self._last_factor

    @property
    def _last_factor(self) -> float:
        return float(self.calibration_[0] * self.target_scale)

    @torch.no_grad()
    def _scores(
        self, net: CFLLNet, problem: Problem
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Scores of rows, the number of the true class, and weights in rows."""
        head = net.module_.head
        parts = []
        for features, targets, weight in stream(net, problem.batches):
            weight = features.new_ones(len(features)) if weight is None else weight
            parts.append((head(features), targets, weight))
        columns = (
            torch.cat(c).double().cpu().numpy() for c in zip(*parts, strict=True)
        )
        scores, targets, weight = columns
        index = ClassTargets.index(targets)
        return scores / self.target_scale, index, weight / problem.row

    def _publish_streamed(
        self, net: CFLLNet, problem: Problem, path: AnyPath, before: Any
    ) -> None:
        factor = self._next_factor(net, problem, path, before)
        scale = float(self.target_scale)
        self.calibration_ = np.array([factor / scale, 0.0])
        head = net.module_.head
        self._take(LinearLogits(head.weight, head.bias).times(factor / scale))

    def _next_factor(
        self, net: CFLLNet, problem: Problem, path: AnyPath, before: Any
    ) -> float:
        """Fit the factor to the first rows, and let further ones move it.

        What earlier rows said of its logarithm is kept as a parabola, by which a few
        rows move it as little as they say.
        """
        if before is None:
            # In one unit, and with what they weigh in the sums: the rows and the path.
            batches, _ = faded(problem.batches, float(self.forgetting))
            problem = replace(problem, batches=batches)
            if problem.unit != 1:
                path = path.scaled(problem.unit)
            rows = left_out(net, problem, path, self.alpha_)
            rows = (rows[0] / self.target_scale, *rows[1:])
        elif before.unseen is None:
            return float(before.factor)
        else:
            rows = before.unseen
        unit, curvature = problem.row / problem.unit, 0.0
        if before is not None and _FACTORS[0] <= before.factor <= _FACTORS[1]:
            left = float(self.forgetting) ** len(rows[0])
            curvature = before.curvature / unit
            if not curvature:  # after fit, which did not say
                typical = typical_curvature(before.factor, rows[0], rows[2])
                curvature = before.weight / unit * typical
            curvature *= left
            factor = moved_factor(before.factor, curvature, *rows, bounds=_FACTORS)
        else:
            (factor,) = np.clip(fit_blend([rows[0]], *rows[1:]), *_FACTORS)
        curvature += curvature_of(factor, rows[0], rows[2])
        self._sums = replace(self._sums, curvature=curvature * unit)
        return float(factor)

    def _take(self, logits: LinearLogits) -> None:
        raise NotImplementedError
