"""Scores of the held-out rows after each epoch of a training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.metrics import check_scoring
from torch import Tensor

from sklearn_cfll._numbers import refuse_not_finite
from sklearn_cfll._problem import Problem, missing_targets
from sklearn_cfll.net import CFLLNet
from sklearn_cfll.optimizers import accepts

# Gives the score of a net's predictions of the held-out rows.
Score = Callable[[CFLLNet, Tensor], float]


def valid_score(estimator: Any, problem: Problem) -> Score:
    """Make the net's ``valid_score``: the user's or the estimator's own."""
    rows = problem.held_out
    assert rows is not None
    y, weight = rows.chosen(rows.y), rows.chosen(rows.weight)
    name = "X" if rows.X is problem.train.X else "X_val"

    def checked(predictions: Tensor) -> NDArray[Any]:
        wide = torch.promote_types(predictions.dtype, torch.float32)
        outputs = predictions.to(wide).cpu().numpy()
        what = "predictions of the held-out rows"
        refuse_not_finite(outputs, what, name, rows.index, training=True)
        return outputs

    if estimator.scoring is None:
        targets = estimator._targets

        def own_score(net: CFLLNet, predictions: Tensor) -> float:
            outputs = checked(predictions)
            return float(targets.score(targets.decode(outputs), y, weight))

        return own_score
    scorer = _checked_scorer(estimator, y, weight)
    X = rows.chosen(rows.X)
    scored = False

    def score(net: CFLLNet, predictions: Tensor) -> float:
        checked(predictions)
        # The estimator as it stands in the midst of the training.
        view = copy.copy(estimator)
        view._adopt(net, problem.batches.input_dtype)
        vars(view).pop("feature_names_in_", None)
        nonlocal scored
        value = _scored(scorer, view, X, y, weight)
        if not scored and math.isnan(value):
            # Otherwise no epoch would be the best one, and patience would run out.
            raise ValueError(_unscored(estimator, len(X), "it gave not-a-number"))
        scored = True
        return value

    return score


def _checked_scorer(estimator: Any, y: Any, weight: Any) -> Any:
    """Give the scorer of ``scoring``, which must suit the held-out rows."""
    if missing_targets(y):
        raise ValueError(
            f"scoring={estimator.scoring!r} can't score missing targets (held-out rows "
            "have some); set scoring=None."
        )
    scorer = check_scoring(estimator, scoring=estimator.scoring)
    # Of scikit-learn's scorers the metric says what they take.
    metric = getattr(scorer, "_score_func", scorer)
    if weight is not None and not accepts(metric, "sample_weight"):
        raise ValueError(
            f"scoring={estimator.scoring!r} takes no sample_weight, but the held-out "
            "rows have weights, of their own or by class_weight; choose a scorer that "
            "takes them, or set scoring=None."
        )
    return scorer


def _scored(scorer: Any, estimator: Any, X: Any, y: Any, weight: Any) -> float:
    """Score held-out rows by the user's ``scoring``."""
    kwargs = {} if weight is None else {"sample_weight": weight}
    try:
        value = scorer(estimator, X, y, **kwargs)
    except ValueError as error:
        said = str(error).rstrip(".")
        raise ValueError(_unscored(estimator, len(X), said)) from error
    try:
        return float(value)
    except TypeError as error:
        raise TypeError(
            f"scoring={estimator.scoring!r} gave a {type(value).__name__}; it must "
            "give one number, the larger the better."
        ) from error


def _unscored(estimator: Any, n_rows: int, reason: str) -> str:
    """Say that held-out rows can't be scored, and what to do."""
    cure = "choose a scorer that takes such targets and predictions, or"
    if is_classifier(estimator):
        cure = (
            "hold out rows that it can score, with each class among them (X_val, "
            "or a larger validation_fraction), or"
        )
    return (
        f"scoring={estimator.scoring!r} failed on the {n_rows} held-out rows: "
        f"{reason}; {cure} set scoring=None."
    )
