"""Without networks and ridges the estimator is two-stage least squares, to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from linearmodels.datasets import card, fertility, meps, mroz
from linearmodels.iv import IV2SLS
from numpy.testing import assert_allclose
from small_instruments import confounded, two_stage_least_squares

DATA = {
    "card": (
        card,
        "lwage",
        ["exper", "expersq", "black", "south", "smsa"],
        ["educ"],
        ["nearc2", "nearc4"],
    ),
    "fertility": (
        fertility,
        "kids",
        ["age", "agesq", "black", "east", "northcen", "west", "farm", "town"],
        ["educ"],
        ["meduc", "feduc"],
    ),
    "mroz": (mroz, "lwage", ["exper", "expersq"], ["educ"], ["motheduc", "fatheduc"]),
    "meps": (
        meps,
        "ldrugexp",
        ["totchr", "female", "age", "linc", "blhisp"],
        ["hi_empunion"],
        ["ssiratio", "multlc"],
    ),
    "no exogenous columns": (
        mroz,
        "lwage",
        [],
        ["educ", "exper"],
        ["motheduc", "fatheduc", "age"],
    ),
}


@pytest.fixture(scope="module", params=DATA)
def table(request):
    module, target, exogenous, endogenous, instruments = DATA[request.param]
    columns = [target, *exogenous, *endogenous, *instruments]
    data = module.load()[columns].dropna()
    return data, target, exogenous, endogenous, instruments


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "weighted"])
def pair(request, table):
    """Fit the same rows by both; columns of X stand in another order."""
    data, target, exogenous, endogenous, instruments = table
    weight = None
    if request.param:
        weight = np.random.default_rng(0).uniform(0.2, 3, size=len(data))
        weight *= len(data) / weight.sum()
    X = data[[*exogenous, *endogenous][::-1]]
    theirs = IV2SLS(
        data[target],
        sm.add_constant(data[exogenous]) if exogenous else np.ones((len(data), 1)),
        data[endogenous],
        data[instruments],
        weights=weight,
    )

    def fitted(cov_type):
        own = two_stage_least_squares(endogenous, cov_type=cov_type)
        own.fit(X, data[target], instruments=data[instruments], sample_weight=weight)
        return own, theirs.fit(cov_type=cov_type)

    return X, fitted


def numbers_of(theirs, attribute, names):
    values = getattr(theirs, attribute)
    constant = values["const"] if "const" in values else values["exog"]
    return values[names].to_numpy(), constant


@pytest.mark.parametrize("cov_type", ["robust", "unadjusted"])
@pytest.mark.filterwarnings("ignore:the instruments are weak:UserWarning")  # of card
def test_coefficients_and_standard_errors_are_those_of_linearmodels(pair, cov_type):
    X, fitted = pair
    own, theirs = fitted(cov_type)
    coefficients, constant = numbers_of(theirs, "params", list(X.columns))
    assert_allclose(own.coef_, coefficients, rtol=1e-6)
    assert_allclose(own.intercept_, constant, rtol=1e-6)
    errors, error = numbers_of(theirs, "std_errors", list(X.columns))
    assert_allclose(own.coef_std_, errors, rtol=1e-6)
    assert_allclose(own.intercept_std_, error, rtol=1e-6)
    assert_allclose(own.predict(X), X @ coefficients + constant, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:the instruments are weak:UserWarning")  # of card
def test_tests_are_those_of_linearmodels(pair):
    _, fitted = pair
    (own, theirs), (robust, _) = fitted("unadjusted"), fitted("robust")
    hausman = theirs.wu_hausman()
    found = own.diagnostics_["durbin_wu_hausman"]
    assert_allclose(found["statistic"], hausman.stat, rtol=1e-6)
    assert_allclose(found["p_value"], hausman.pval, rtol=1e-5)
    sargan, found = theirs.sargan, own.diagnostics_["overidentification"]
    assert_allclose(found["statistic"], sargan.stat, rtol=1e-6)
    assert_allclose(found["p_value"], sargan.pval, rtol=1e-5)
    wooldridge = theirs.wooldridge_overid
    found = robust.diagnostics_["overidentification"]
    assert_allclose(found["statistic"], wooldridge.stat, rtol=1e-6)
    partial = theirs.first_stage.diagnostics["partial.rsquared"]
    for name, test in own.diagnostics_["first_stage"].items():
        assert_allclose(test["partial_r2"], partial[name], rtol=1e-6)


def test_predictions_have_the_standard_errors_of_their_coefficients():
    X, Z, y, _ = confounded()
    model = two_stage_least_squares([0]).fit(X, y, instruments=Z)
    f, deviation = model.predict(np.zeros((1, 2)), return_std=True)
    assert_allclose([f[0], deviation[0]], [model.intercept_, model.intercept_std_])
    _, far = model.predict(np.array([[1e6, 0.0]]), return_std=True)
    assert_allclose(far[0], 1e6 * model.coef_std_[0], rtol=1e-4)


def test_a_just_identified_model_has_no_overidentification_test():
    X, Z, y, _ = confounded()
    model = two_stage_least_squares([0]).fit(X, y, instruments=Z[:, 0])
    assert model.diagnostics_["overidentification"] is None
    assert "just identified" in model.summary()


def test_tests_are_on_all_rows_of_a_long_table():
    X, Z, y, _ = confounded(60_000)
    model = two_stage_least_squares([0], cov_type="unadjusted")
    model.fit(X, y, instruments=Z)
    theirs = IV2SLS(y, sm.add_constant(X[:, 1:]), X[:, :1], Z).fit()
    for found in (model.diagnostics_, model.diagnose(X, y, instruments=Z)):
        assert found["n_rows"] == 60_000
        hausman = found["durbin_wu_hausman"]["statistic"]
        assert_allclose(hausman, theirs.wu_hausman().stat, rtol=1e-6)
    assert model.diagnostics_["rows"] == "all"


def test_exogenous_columns_among_the_instruments_change_nothing():
    X, Z, y, _ = confounded()
    plain = two_stage_least_squares([0]).fit(X, y, instruments=Z)
    both = np.column_stack([Z[:, 0], 5 - 2 * X[:, 1], Z[:, 1]])
    with_them = two_stage_least_squares([0]).fit(X, y, instruments=both)
    assert_allclose(with_them.coef_, plain.coef_, rtol=1e-10)
    assert_allclose(
        with_them.score(X, y, instruments=both), plain.score(X, y, instruments=Z)
    )


def test_integer_weights_are_repeated_rows():
    X, Z, y, _ = confounded(100)
    weight = np.random.default_rng(1).integers(0, 4, size=100)
    weighted = two_stage_least_squares([0], alpha="auto", instrument_alpha="auto")
    weighted.fit(X, y, instruments=Z, sample_weight=weight)
    rows = np.repeat(np.arange(100), weight)
    repeated = two_stage_least_squares([0], alpha="auto", instrument_alpha="auto")
    repeated.fit(X[rows], y[rows], instruments=Z[rows])
    assert weighted.alpha_ == repeated.alpha_
    assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-9)


def test_the_product_is_two_stage_least_squares_with_products():
    X, Z, y, _ = confounded()
    model = two_stage_least_squares([0], combine="product").fit(X, y, instruments=Z)
    design = np.column_stack([np.ones(len(X)), X[:, 1], Z])
    predicted = design @ np.linalg.lstsq(design, X[:, 0], rcond=None)[0]
    columns = [np.ones(len(X)), predicted, X[:, 1], predicted * X[:, 1]]
    head = np.linalg.lstsq(np.column_stack(columns), y, rcond=None)[0]
    actual = [np.ones(len(X)), X[:, 0], X[:, 1], X[:, 0] * X[:, 1]]
    assert_allclose(model.predict(X), np.column_stack(actual) @ head, rtol=1e-9)


def test_targets_too_small_to_be_squared_are_no_constant():
    X, Z, y, _ = confounded()
    plain = two_stage_least_squares([0]).fit(X, y, instruments=Z)
    small = two_stage_least_squares([0]).fit(X, 2.0**-600 * y, instruments=Z)
    assert_allclose(small.coef_, 2.0**-600 * plain.coef_, rtol=1e-12)
    assert_allclose(small.coef_std_, 2.0**-600 * plain.coef_std_, rtol=1e-12)
    for instruments in (None, Z):
        scores = [
            model.score(X, factor * y, instruments=instruments)
            for model, factor in [(plain, 1), (small, 2.0**-600)]
        ]
        assert scores[1] == pytest.approx(scores[0], rel=1e-9)
