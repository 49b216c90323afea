"""Held-out rows that can't be used, and callbacks that fail."""

import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from refusals import (
    LABELS,
    MISSING,
    N_ROWS,
    NO_WEIGHT,
    ONES,
    X,
    Y,
    assert_refused,
    case,
    classifier,
    not_finite,
    regressor,
    with_value,
)
from skorch.callbacks import Callback, EarlyStopping
from small_models import LogOfFirst, watched

TWO = np.column_stack([Y, -Y])
HELD_OUT = r"held-out rows \(X_val, y_val\): "
VALIDATION = [
    case(
        "other columns",
        ValueError,
        HELD_OUT + r"X has 3 features, but CFLLRegressor is expecting 4 features as "
        r"input\.",
        X_val=X[:, :3],
        y_val=Y,
    ),
    case(
        "X_val without y_val",
        ValueError,
        r"y_val is missing; pass X_val and y_val together\.",
        X_val=X,
    ),
    case(
        "y_val without X_val",
        ValueError,
        r"X_val is missing; pass X_val and y_val together\.",
        y_val=Y,
    ),
    case(
        "weights without rows",
        ValueError,
        r"sample_weight_val was given without X_val and y_val\.",
        sample_weight_val=ONES,
    ),
    case(
        "NaN in X_val",
        ValueError,
        HELD_OUT + r"Input X contains NaN\..*",
        X_val=with_value(X, np.nan),
        y_val=Y,
    ),
    case(
        "NaN in y_val",
        ValueError,
        HELD_OUT + MISSING,
        X_val=X,
        y_val=with_value(Y, np.nan),
    ),
    case(
        "another length",
        ValueError,
        HELD_OUT + r"Found input variables with inconsistent numbers of samples: "
        r"\[60, 5\]",
        X_val=X,
        y_val=Y[:5],
    ),
    case(
        "negative weights",
        ValueError,
        HELD_OUT + r"Negative values in data passed to `sample_weight`.*",
        X_val=X,
        y_val=Y,
        sample_weight_val=-ONES,
    ),
    case(
        "zero weights",
        ValueError,
        HELD_OUT + NO_WEIGHT,
        X_val=X,
        y_val=Y,
        sample_weight_val=0 * ONES,
    ),
    case(
        "more outputs",
        ValueError,
        r"y_val has shape \(60, 2\) but the y of the training has shape "
        r"\(n_samples,\); pass the same outputs\.",
        X_val=X,
        y_val=TWO,
    ),
    case(
        "fewer outputs",
        ValueError,
        r"y_val has shape \(60,\) but the y of the training has shape "
        r"\(n_samples, 2\); pass the same outputs\.",
        y=TWO,
        X_val=X,
        y_val=Y,
    ),
    case(
        "unknown label",
        ValueError,
        r"y_val holds the label 'perhaps', none of the classes \['no', 'yes'\] of the "
        r"training; leave its rows out\.",
        make=classifier,
        X_val=X,
        y_val=np.where(Y > 1, "perhaps", LABELS),
    ),
    case(
        "labels of another kind",
        ValueError,
        r"y_val holds the labels \[0, 1\], none of the classes \['no', 'yes'\] of the "
        r"training; leave their rows out\.",
        make=classifier,
        X_val=X,
        y_val=(Y > 0).astype(int),
    ),
    case(
        "numbers beyond float32's range",
        ValueError,
        not_finite("predictions of the held-out rows", N_ROWS // 2, "X_val"),
        params={"dtype": "float32"},
        X_val=with_value(X, 1e300),
        y_val=Y,
    ),
]


@pytest.mark.parametrize(
    ("make", "params", "arguments", "error", "message"), VALIDATION
)
def test_bad_held_out_rows_are_refused(make, params, arguments, error, message):
    assert_refused(make, params, arguments, error, message)


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_begin",
        "on_epoch_begin",
        "on_batch_begin",
        "on_grad_computed",
        "on_batch_end",
        "on_epoch_end",
        "on_train_end",
    ],
)
def test_a_callback_that_raises_leaves_the_last_fit_whole(hook):
    callback = type("Raises", (Callback,), {hook: _raise})()
    assert_refused(
        regressor, {"callbacks": [callback]}, {}, KeyError, r"'from the callback'"
    )


def _raise(*args, **kwargs):
    raise KeyError("from the callback")


@pytest.mark.parametrize("error", [SystemExit, MemoryError])
def test_not_even_an_exit_takes_the_last_fit_away(error):
    class Leaves(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise error("now")

    assert_refused(regressor, {"callbacks": [Leaves()]}, {}, error, "now")


@pytest.mark.parametrize("scoring", [None, "r2"])
def test_a_held_out_row_without_finite_features_is_named_by_its_place_in_X(scoring):  # noqa: N802
    model = regressor(backbone=LogOfFirst(), early_stopping=True, scoring=scoring)
    problem = watched(model, np.abs(X), Y)[1]
    row = int(np.flatnonzero(np.abs(X[:, 0]) == problem.held_out.X[2, 0])[0])
    spoilt = np.abs(X)
    spoilt[row, 0] = 0
    pattern = not_finite("predictions of the held-out rows", row)
    with pytest.raises(ValueError, match=rf"^{pattern}$"):
        model.fit(spoilt, Y)


def test_scoring_that_fails_on_the_held_out_rows_is_named():
    labels = np.zeros(N_ROWS, dtype=int)
    labels[7] = 1  # so rare that no held-out row has it
    message = (
        r"scoring='neg_log_loss' failed on the 6 held-out rows: .+; hold out rows that "
        r"it can score, with each class among them \(X_val, or a larger "
        r"validation_fraction\), or set scoring=None\."
    )
    params = {"scoring": "neg_log_loss", "early_stopping": True}
    assert_refused(classifier, params, {"y": labels}, ValueError, message)


def test_scoring_that_fails_on_numbers_speaks_of_no_classes():
    message = (
        r"scoring='neg_mean_squared_log_error' failed on the 6 held-out rows: Mean "
        r"Squared Logarithmic Error cannot be used when .+[^.]; choose a scorer that "
        r"takes such targets and predictions, or set scoring=None\."
    )
    params = {"scoring": "neg_mean_squared_log_error", "early_stopping": True}
    assert_refused(regressor, params, {}, ValueError, message)


@pytest.mark.filterwarnings("ignore:R.2 score is not well-defined")
def test_scoring_that_gives_not_a_number_is_an_error_before_any_epoch_is_chosen():
    message = (
        r"scoring='r2' failed on the 1 held-out rows: it gave not-a-number; choose a "
        r"scorer that takes such targets and predictions, or set scoring=None\."
    )
    held_out = {"X_val": X[:1], "y_val": Y[:1]}
    assert_refused(regressor, {"scoring": "r2"}, held_out, ValueError, message)


def test_scoring_may_give_not_a_number_once_an_epoch_has_a_score():
    numbers = iter([1.0, np.nan, 2.0, 0.0])
    model = regressor(scoring=lambda *args: next(numbers), max_epochs=4)
    model.fit(X, Y, X_val=X, y_val=Y)
    assert_array_equal(model.history_[:, "valid_score"], [1.0, np.nan, 2.0, 0.0])


def several(estimator, X, y):
    return {"r2": 1.0}


def test_scoring_that_gives_no_number_is_named():
    params = {"scoring": several, "early_stopping": True}
    message = (
        r"scoring=<function several at \w+> gave a dict; it must give one number, the "
        r"larger the better\."
    )
    assert_refused(regressor, params, {}, TypeError, message)


def always_one(estimator, X, y):
    return 1.0


@pytest.mark.parametrize(
    ("make", "params", "weights"),
    [
        (
            regressor,
            {"scoring": "neg_max_error"},
            {"sample_weight": ONES + X[:, 0] ** 2},
        ),
        (classifier, {"scoring": always_one, "class_weight": "balanced"}, {}),
    ],
    ids=["named", "function"],
)
def test_scoring_without_weights_is_told_where_there_are_some(make, params, weights):
    shown = re.escape(repr(params["scoring"]))
    message = (
        rf"scoring={shown} takes no sample_weight, but the held-out rows have weights, "
        r"of their own or by class_weight; choose a scorer that takes them, or set "
        r"scoring=None\."
    )
    params = {"early_stopping": True, **params}
    assert_refused(make, params, weights, ValueError, message)


def test_a_callback_that_looks_for_held_out_rows_is_told_that_there_are_none():
    message = (
        r"a callback raised KeyError: .*'valid_loss' was not found in history.*; no "
        r"rows are held out, as is usual for small tables: in fit set "
        r"early_stopping=True or pass X_val and y_val \(to a CFLLNet a train_split\)\."
    )
    params = {"callbacks": [EarlyStopping(patience=3)]}
    assert_refused(regressor, params, {}, ValueError, message)


def test_a_scorer_that_raises_leaves_the_last_fit_whole():
    def scorer(estimator, X, y):
        raise ArithmeticError("no score")

    params = {"scoring": scorer, "early_stopping": True}
    assert_refused(regressor, params, {}, ArithmeticError, "no score")
