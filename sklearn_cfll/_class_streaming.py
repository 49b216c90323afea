"""Streams of classes: their names up front, and how sure the model may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import _fit_context
from sklearn.utils.multiclass import _check_partial_fit_first_call

from sklearn_cfll._logits import LinearLogits, fit_blend, left_out
from sklearn_cfll._problem import Problem
from sklearn_cfll._stream import stream
from sklearn_cfll._streaming import Streaming
from sklearn_cfll._sums import faded
from sklearn_cfll._targets import ClassTargets, weights_of_classes
from sklearn_cfll._undo import all_or_nothing
from sklearn_cfll._validation import Rows
from sklearn_cfll.functional.paths import AnyPath, by_output, path_of
from sklearn_cfll.net import CFLLNet

# Bounds of the factor of the solved head's scores, as far as rows of a stream set it.
_FACTORS = (1e-2, 1e3)


class _Before(NamedTuple):
    """What was known of the scores' factor, and scores of rows not yet learnt."""

    factor: float
    weight: float
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
        scaling of X. Logits are the solved head's scores times a factor that suits the
        rows of each call, as they are scored before they are learnt; the logistic head
        of fit is dropped.

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
        factor = self._factor()
        weight = float(self._sums.moments.weight_sum)
        if problem is None:
            return _Before(factor, weight, None)
        return _Before(factor, weight, self._scores(self.net_, problem))

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
        return float((logits * mapped).sum() / (head * mapped).sum())

    @torch.no_grad()
    def _scores(
        self, net: CFLLNet, problem: Problem
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Scores of rows, the number of the true class, and weights in rows."""
        head = net.module_.head
        parts = []
        for features, targets, weight in stream(net, problem.batches):
            weight = torch.ones(len(features)) if weight is None else weight
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
        """Average the factors of all calls, in logarithms, by the rows' weights."""
        if before is None:
            # In one unit, and with what they weigh in the sums: the rows and the path.
            batches, _ = faded(problem.batches, float(self.forgetting))
            problem = replace(problem, batches=batches)
            if problem.unit != 1:
                path = path_of(path.moments.scaled(problem.unit))
            scores, index, weight = left_out(net, problem, path, self.alpha_)
            scores = scores / self.target_scale
        elif before.unseen is None:
            return float(before.factor)
        else:
            scores, index, weight = before.unseen
        (new,) = np.clip(fit_blend([scores], index, weight), *_FACTORS)
        if before is None or not _FACTORS[0] <= before.factor <= _FACTORS[1]:
            return float(new)
        given = weight.sum() * problem.row / problem.unit
        share = given / (given + before.weight)
        return float(before.factor ** (1 - share) * new**share)

    def _take(self, logits: LinearLogits) -> None:
        raise NotImplementedError
