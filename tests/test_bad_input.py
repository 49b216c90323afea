"""Data that can't be used: what is said, and that the last fit stays whole."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
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
    regressor,
    with_value,
)
from small_models import small_network

from sklearn_cfll import _numbers

INFINITE = r"contains infinity or a value too large for dtype\('float64'\)\."
DATES = pd.date_range("2020", periods=N_ROWS)
DAYS = r": for dates take days since one of them, or their month and weekday\."
FLOATS = r": of a column with pd\.NA take astype\('Float64'\)\."
WHOLE = r" \(datetime64\[\w+\]\)"
ROWS_AND_TARGETS = [
    case(
        "NaN in X",
        ValueError,
        r"Input X contains NaN\.\nCFLLRegressor does not accept missing values.*",
        X=with_value(X, np.nan),
    ),
    case("infinity in X", ValueError, f"Input X {INFINITE}", X=with_value(X, np.inf)),
    case("NaN in y", ValueError, MISSING, y=with_value(Y, np.nan)),
    case("infinity in y", ValueError, f"Input y {INFINITE}", y=with_value(Y, -np.inf)),
    case(
        "NaN in labels",
        ValueError,
        r"Input y contains NaN\.",
        make=classifier,
        y=with_value(Y > 0, np.nan),
    ),
    case(
        "one class",
        ValueError,
        r"y holds one class, 'no', where its rows have weight; CFLLClassifier needs "
        r"two classes or more\.",
        make=classifier,
        y=np.full(N_ROWS, "no"),
    ),
    case(
        "one class with weight",
        ValueError,
        r"y holds one class, 'yes', where its rows have weight; CFLLClassifier needs "
        r"two classes or more\.",
        make=classifier,
        sample_weight=(LABELS == "yes").astype(float),
    ),
    case(
        "numbers as labels",
        ValueError,
        r"Unknown label type: continuous\. Maybe you are trying to fit a classifier.*",
        make=classifier,
        y=Y,
    ),
    case(
        "two columns of labels",
        ValueError,
        r"y should be a 1d array, got an array of shape \(60, 2\) instead\.",
        make=classifier,
        y=np.column_stack([LABELS, LABELS]),
    ),
    case(
        "one row",
        ValueError,
        r"Found array with 1 sample\(s\) \(shape=\(1, 4\)\) while a minimum of 2 is "
        r"required by CFLLRegressor\.",
        X=X[:1],
        y=Y[:1],
    ),
    case(
        "no column",
        ValueError,
        r"Found array with 0 feature\(s\) \(shape=\(60, 0\)\) while a minimum of 1 is "
        r"required by CFLLRegressor\.",
        X=X[:, :0],
    ),
    case(
        "no y",
        ValueError,
        r"This CFLLRegressor estimator requires y to be passed, but the target y is "
        r"None\.",
        y=None,
    ),
    case(
        "y of another length",
        ValueError,
        r"Found input variables with inconsistent numbers of samples: \[60, 5\]",
        y=Y[:5],
    ),
    case(
        "y with three axes",
        ValueError,
        r"backbone MLP returned features of shape \(2, \d+\) for X of shape \(2, 4\); "
        r"with these, y must be \(n_samples,\) or \(n_samples, n_outputs\), but it has "
        r"shape \(n_samples, 2, 2\); for others return \(n_samples, \*grid, "
        r"n_features\) with y's grid\.",
        y=np.zeros((N_ROWS, 2, 2)),
    ),
    case(
        "strings in y",
        ValueError,
        r"could not convert string to float: .*'no'.*; y must hold numbers: take "
        r"CFLLClassifier for labels\.",
        y=np.array(["no"] * N_ROWS),
    ),
    case(
        "y whose square overflows",
        ValueError,
        r"y holds values up to \d(\.\d+)?e\+300, whose variance overflows float64; "
        r"scale y\.",
        y=Y * 1e300,
    ),
    case(
        "sparse X",
        TypeError,
        r"Sparse data was passed for X, but dense data is required\. Use "
        r"'\.toarray\(\)' to convert to a dense numpy array\.",
        X=scipy.sparse.csr_matrix(X),
    ),
    case(
        "X with one axis",
        ValueError,
        r"Expected 2D array, got 1D array instead:.*",
        X=X[:, 0],
    ),
    case(
        "X with three axes for the MLP",
        ValueError,
        r"MLP takes X of shape \(n_samples, n_features\), got samples of shape "
        r"\(2, 2\); pass a backbone that takes n-D samples\.",
        X=X.reshape(N_ROWS, 2, 2),
    ),
    case(
        "strings in X",
        ValueError,
        r"could not convert string to float: 'red'; X must hold numbers: encode text, "
        r"by OneHotEncoder in a pipeline for example\.",
        X=pd.DataFrame({"colour": ["red"] * N_ROWS, "size": ONES}),
    ),
    case(
        "text among other kinds of columns",
        ValueError,
        r".*; X must hold numbers: encode text, by OneHotEncoder in a pipeline for "
        r"example\.",
        X=pd.DataFrame(
            {"on": ONES > 0, "colour": pd.Categorical(["red"] * N_ROWS), "size": ONES}
        ),
    ),
    *[
        case(
            f"{name} in X",
            TypeError,
            rf"X holds dates{where}; X must hold numbers{DAYS}",
            X=dates,
        )
        for name, where, dates in [
            (
                "dates beside numbers",
                r" in column 'day' \(datetime64\[\w+\]\)",
                pd.DataFrame({"size": ONES, "day": DATES}),
            ),
            (
                "dates alone",
                r" in column 'day' \(datetime64\[\w+, UTC\]\)",
                pd.DataFrame({"day": DATES.tz_localize("UTC")}),
            ),
            (
                "dates of polars",
                r" in column 'day' \(Datetime\(.*\)\)",
                pl.DataFrame({"day": DATES.to_numpy()}),
            ),
            ("an array of dates", WHOLE, DATES.to_numpy()[:, None]),
            (
                "spans of time",
                r" \(timedelta64\[\w+\]\)",
                (DATES - DATES[0]).to_numpy()[:, None],
            ),
            ("a list of dates", WHOLE, [[day] for day in DATES.to_numpy()]),
        ]
    ],
    *[
        case(
            f"{name} in y",
            TypeError,
            rf"y holds dates{WHOLE}; y must hold numbers{DAYS}",
            params={"missing_targets": missing_targets},
            y=dates,
        )
        for name, missing_targets, dates in [
            ("dates", "error", pd.Series(DATES)),
            ("a missing date", "ignore", pd.Series(DATES.where(DATES[0] < DATES))),
        ]
    ],
    *[
        case(
            f"{name} as objects",
            TypeError,
            rf".* must be a string or a real number, not .*; X must hold numbers{cure}",
            X=pd.DataFrame({"some": objects}, dtype=object),
        )
        for name, cure, objects in [
            ("time stamps", DAYS, DATES),
            ("dates", DAYS, DATES.date),
            ("months", DAYS, DATES.to_period("M")),
            ("spans", DAYS, DATES - DATES[0]),
            ("missing dates", DAYS, [pd.NaT] * N_ROWS),
            ("missing numbers", FLOATS, [pd.NA, *ONES[1:]]),
            ("sets", r"\.", [{1}] * N_ROWS),
        ]
    ],
    case(
        "missing numbers as objects in y",
        TypeError,
        rf".* not 'NAType'; y must hold numbers{FLOATS}",
        params={"missing_targets": "ignore"},
        y=pd.Series([pd.NA, *ONES[1:]], dtype=object),
    ),
    case(
        "complex X", ValueError, r"Complex data not supported\n.*", X=X.astype(complex)
    ),
]
WEIGHTS = [
    case(
        "NaN",
        ValueError,
        r"Input sample_weight contains NaN\.",
        sample_weight=with_value(ONES, np.nan),
    ),
    case(
        "infinity",
        ValueError,
        f"Input sample_weight {INFINITE}",
        sample_weight=with_value(ONES, np.inf),
    ),
    case(
        "negative",
        ValueError,
        r"Negative values in data passed to `sample_weight`.*",
        sample_weight=with_value(ONES, -1),
    ),
    case("all zero", ValueError, NO_WEIGHT, sample_weight=0 * ONES),
    case(
        "another length",
        ValueError,
        r"sample_weight\.shape == \(5,\), expected \(60,\)!",
        sample_weight=ONES[:5],
    ),
    case(
        "two columns",
        ValueError,
        r"Sample weights must be 1D array or scalar.*",
        sample_weight=np.ones((N_ROWS, 2)),
    ),
]


@pytest.mark.parametrize(
    ("make", "params", "arguments", "error", "message"), ROWS_AND_TARGETS
)
def test_bad_rows_and_targets_are_refused(make, params, arguments, error, message):
    assert_refused(make, params, arguments, error, message)


@pytest.mark.parametrize("make", [regressor, classifier])
@pytest.mark.parametrize(("_", "params", "arguments", "error", "message"), WEIGHTS)
def test_bad_weights_are_refused(make, _, params, arguments, error, message):
    assert_refused(make, params, arguments, error, message)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e308])
def test_the_unit_of_the_weights_makes_no_difference(scale):
    # At a given alpha: leave-one-out takes weights as counts.
    weights = np.linspace(0.25, 1, N_ROWS)
    expected = regressor(alpha=0.01).fit(X, Y, weights).predict(X)
    predictions = regressor(alpha=0.01).fit(X, Y, scale * weights).predict(X)
    np.testing.assert_allclose(predictions, expected, rtol=1e-6)


def test_one_row_with_weight_is_predicted_as_it_is():
    weights = np.zeros(N_ROWS)
    weights[7] = 2.0
    model = regressor().fit(X, Y, weights)
    np.testing.assert_allclose(model.predict(X), Y[7])


def test_a_target_beside_which_the_held_out_ones_vanish_makes_r2_minus_infinity():
    y = np.linspace(1e-261, 4e-261, N_ROWS)
    y[0] = 1.0
    model = regressor(early_stopping=True, max_epochs=2)
    model.fit(X[:-9], y[:-9], X_val=X[-9:], y_val=y[-9:])
    assert model.history_[-1]["valid_score"] == -np.inf
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize("numbers_at_a_time", [2**20, 40])
def test_a_row_without_weight_may_hold_any_number(numbers_at_a_time, monkeypatch):
    monkeypatch.setattr(_numbers, "_COPIED", numbers_at_a_time)
    settings = {"backbone": small_network(), "dtype": "float32"}
    spoilt, weights = with_value(X, 1e300), with_value(ONES, 0)
    plain = regressor(**settings).fit(X, Y, weights)
    model = regressor(**settings).fit(spoilt, Y, weights)
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    with pytest.raises(ValueError, match=r"^X holds 1e\+300, beyond float32's range"):
        regressor(**settings).fit(spoilt, Y, 1 - weights / 2)


def test_missing_objects_are_missing_targets_once_they_are_numbers():
    y = pd.Series([pd.NA, *Y[1:]], dtype=object).astype("Float64")
    model = regressor(missing_targets="ignore")
    expected = model.fit(X, np.array([np.nan, *Y[1:]])).predict(X)
    np.testing.assert_array_equal(model.fit(X, y).predict(X), expected)
