"""Instruments and columns that can't be used: what is said, and what is kept."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import sklearn
from refusals import NO_WEIGHT
from sklearn.exceptions import NotFittedError, UndefinedMetricWarning
from sklearn.model_selection import KFold, cross_val_score
from small_instruments import IDENTITY, confounded, small, two_stage_least_squares
from torch import nn

from sklearn_cfll import CFLLIVRegressor, TorchBackbone

X, Z, Y, _ = confounded(60)
FRAME = pd.DataFrame(X, columns=["price", "time"])


def case(name, message, /, *, error=ValueError, endogenous=(0,), **changed):
    return pytest.param(endogenous, changed, error, message, id=name)


class Infinite(nn.Linear):
    """Divides by zero from the start."""

    def __init__(self, in_features):
        super().__init__(in_features, 4)

    def forward(self, X):
        return super().forward(X) / 0


class Casts(nn.Linear):
    """Takes its input in float32, whatever it is given."""

    def __init__(self, in_features):
        super().__init__(in_features, 4)

    def forward(self, X):
        return super().forward(X.float())


CASES = [
    case(
        "no instruments",
        "instruments is missing: pass instruments=Z, an array or a frame of one row a "
        "sample, whose columns move the endogenous columns of X and have no other "
        "effect on y. In a pipeline or a search enable metadata routing, and call "
        "set_fit_request(instruments=True), in a search "
        "set_score_request(instruments=True), too.",
        instruments=None,
    ),
    case(
        "rows",
        "instruments has 50 rows but X has 60; pass one row of instruments for each "
        "sample.",
        instruments=Z[:50],
    ),
    case(
        "axes",
        "instruments has shape (60, 2, 1); pass (n_samples, n_instruments).",
        instruments=Z[..., None],
    ),
    case(
        "fewer instruments than endogenous columns",
        "instruments has 1 column but X has 2 columns that endogenous names; pass at "
        "least as many instruments, or name fewer columns in endogenous.",
        endogenous=None,
        instruments=Z[:, :1],
    ),
    case(
        "instruments that are exogenous columns",
        "instruments has 0 columns, besides 1 that X's exogenous columns hold, too, "
        "but X has 1 column that endogenous names; pass at least as many instruments, "
        "or name fewer columns in endogenous.",
        instruments=3 * X[:, 1] + 2,
    ),
    case(
        "two rows",
        "Found array with 2 sample(s) (shape=(2, 2)) while a minimum of 3 is required "
        "by CFLLIVRegressor.",
        X=X[:2],
        y=Y[:2],
        instruments=Z[:2],
    ),
    case(
        "two rows with weight",
        "X has 2 rows with a sample_weight above zero, where 3 are needed at least; "
        "give more rows a weight.",
        sample_weight=np.arange(60) < 2,
    ),
    case(
        "a constant treatment",
        "column 0 (price) of X is endogenous and constant, so that its effect can't be "
        "told; leave it out.",
        X=FRAME.assign(price=3.0),
    ),
    case(
        "a treatment that is there twice",
        "columns 0 (x0, endogenous) and 2 (x2) of X are the same, but for shift and "
        "scale; leave one of them out.",
        X=np.column_stack([X, 1 - 2 * X[:, 0]]),
    ),
    case(
        "a constant instrument",
        "column 1 (z1) of instruments is constant, so that it moves nothing; leave it "
        "out (a constant is added anyhow).",
        instruments=np.column_stack([Z[:, 0], np.full(60, 3.0)]),
    ),
    case(
        "an instrument constant where there is weight",
        "column 0 (z0) of instruments is constant, so that it moves nothing; leave it "
        "out (a constant is added anyhow).",
        instruments=np.arange(60.0) < 30,
        sample_weight=(np.arange(60) < 30).astype(float),
    ),
    case(
        "a duplicated instrument",
        "columns 0 (cost) and 2 (again) of instruments are the same, but for shift and "
        "scale; leave one of them out.",
        instruments=pd.DataFrame({"cost": Z[:, 0], "b": Z[:, 1], "again": -Z[:, 0]}),
    ),
    case(
        "an instrument that is a sum of exogenous columns",
        "instruments has 1 column that holds nothing beside sums of multiples of each "
        "other and of X's exogenous columns, where the endogenous columns hold 1; "
        "pass instruments that are no such sums, or name fewer columns in endogenous.",
        X=np.column_stack([X, Z]),
        instruments=Z[:, 0] - 2 * Z[:, 1] + 3,
    ),
    case(
        "instruments that differ by exogenous columns",
        "instruments has 3 columns that hold no more than 1 beside sums of multiples "
        "of each other and of X's exogenous columns, where the endogenous columns "
        "hold 2; pass instruments that are no such sums, or name fewer columns in "
        "endogenous.",
        endogenous=[0, 1],
        X=np.column_stack([X[:, 0], X[:, 0] ** 2, X[:, 1], Z[:, 1]]),
        instruments=Z[:, [0]] + np.column_stack([0 * Y, X[:, 1], Z[:, 1] - X[:, 1]]),
    ),
    case(
        "an endogenous column that exogenous ones give",
        "column 1 (x1) of X is endogenous and a sum of multiples of exogenous ones, so "
        "that instruments have nothing to move; leave it out, or one of those.",
        endogenous=[1],
        X=np.column_stack([Z[:, 0], Z[:, 0] - 5 * X[:, 1] + 1, X[:, 1]]),
        instruments=Z[:, 1],
    ),
    case(
        "not-a-number among the instruments",
        "Input instruments contains NaN.",
        instruments=np.where(Z > 1.5, np.nan, Z),
    ),
    case(
        "text among the instruments",
        "could not convert string to float: 'a'; instruments must hold numbers: encode "
        "text, by OneHotEncoder for example.",
        instruments=pd.DataFrame({"a": ["a"] * 60, "b": Z[:, 0]}),
    ),
    case(
        "text among the targets",
        "could not convert string to float: 'a'; y must hold numbers: take "
        "CFLLClassifier for labels.",
        y=["a"] * 60,
    ),
    case(
        "objects that are text among the targets",
        "could not convert string to float: 'a'; y must hold numbers: take "
        "CFLLClassifier for labels.",
        y=np.array(["a"] * 60, dtype=object),
    ),
    case(
        "text in X",
        "could not convert string to float: 'a'; X must hold numbers: encode text, by "
        "OneHotEncoder in a pipeline for example.",
        X=FRAME.assign(price="a"),
    ),
    case(
        "text among the weights",
        "could not convert string to float: 'a'; sample_weight must hold numbers: pass "
        "one for each row, or None.",
        sample_weight=["a"] * 60,
    ),
    case(
        "an unknown name",
        "endogenous names the column 'prise', which X does not have; its columns are "
        "['price', 'time'].",
        endogenous=["prise"],
        X=FRAME,
    ),
    case(
        "names without a frame",
        "endogenous names the column 'price' but X has no column names; pass a data "
        "frame, or indices.",
        endogenous="price",
    ),
    case(
        "an index outside",
        "endogenous holds the index 2 but X has 2 columns; pass indices from 0 to 1.",
        endogenous=[2],
    ),
    case(
        "a mask of another length",
        "endogenous is a mask of 3 values but X has 2 columns; pass one value for each "
        "column.",
        endogenous=[True, False, False],
    ),
    case(
        "a mask of nothing",
        "endogenous names no column, so that there is nothing to instrument; name the "
        "columns that are correlated with the error, or use CFLLRegressor.",
        endogenous=[False, False],
    ),
    case(
        "no names",
        "endogenous names no column, so that there is nothing to instrument; name the "
        "columns that are correlated with the error, or use CFLLRegressor.",
        endogenous=[],
    ),
    case(
        "fractions",
        "endogenous must be None, names, indices or a boolean mask of X's columns, got "
        "[0.5].",
        error=TypeError,
        endogenous=[0.5],
    ),
    case(
        "a table of indices",
        "endogenous must be names, indices or a mask of one axis, got an array of "
        "shape (1, 1).",
        endogenous=[[0]],
    ),
]


def learnt_by(model):
    return {name for name in vars(model) if name.endswith("_")}


@pytest.mark.parametrize(("endogenous", "changed", "error", "message"), CASES)
def test_what_is_said(endogenous, changed, error, message):
    model = two_stage_least_squares(endogenous)
    data = {"X": X, "y": Y, "instruments": Z, **changed}
    pattern = rf"\A{re.escape(message)}(\n.*)?\Z"
    with pytest.raises(error, match=re.compile(pattern, re.DOTALL)):
        model.fit(**data)
    assert learnt_by(model) == set()


def test_weights_that_are_all_zero():
    with pytest.raises(ValueError, match=NO_WEIGHT):
        small().fit(X, Y, instruments=Z, sample_weight=np.zeros(60))


def test_a_fit_that_fails_leaves_the_last_one_whole():
    model = small().fit(X, Y, instruments=Z)
    before, predictions = dict(vars(model)), model.predict(X)
    with pytest.raises(ValueError, match="instruments has 1 rows"):
        model.fit(X, Y, instruments=Z[:1])
    assert {name: id(value) for name, value in vars(model).items()} == {
        name: id(value) for name, value in before.items()
    }
    assert (model.predict(X) == predictions).all()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            {"prox": (0, 1)},
            ValueError,
            r"prox must be a positive number or a pair \(start, end\) of them, got "
            r"\(0, 1\)\.",
        ),
        (
            {"instrument_prox": "auto"},
            ValueError,
            r"instrument_prox must be a positive number or a pair \(start, end\) of "
            r"them, got 'auto'\.",
        ),
        (
            {"optimizer": "lbfgs"},
            ValueError,
            r"optimizer 'lbfgs' needs batch_size='full', got batch_size='auto': .*",
        ),
        (
            {"lr_schedule": lambda progress: float("nan")},
            ValueError,
            r"lr_schedule gave nan at the progress 0; it must give a finite factor of "
            r"the rate for each progress in \[0, 1\)\.",
        ),
        (
            {"instrument_backbone": Casts(3)},
            ValueError,
            r"instrument_backbone Casts raised RuntimeError for columns of shape "
            r"\(2, 3\): .*; tables of up to 299 rows are trained in float64: set "
            r"dtype='float32', or let the backbone take the dtype of X\.",
        ),
        (
            {"instrument_backbone": TorchBackbone(Infinite)},
            ValueError,
            r"instrument_backbone Infinite returned features that are not finite for "
            r"columns of shape \(2, 3\); check its initial weights\.",
        ),
        (
            {"validation_fraction": 0.001},
            ValueError,
            r"validation_fraction=0\.001 of 60 rows leaves none to hold out or fewer "
            r"than 2 to train on; set validation_fraction=0\.",
        ),
        ({"combine": "sum"}, ValueError, r"The 'combine' parameter .*"),
        ({"alpha": -1.0}, ValueError, r"The 'alpha' parameter .*"),
        ({"n_estimators": 0}, ValueError, r"The 'n_estimators' parameter .*"),
        (
            {"instrument_backbone": nn.Linear},
            TypeError,
            r"instrument_backbone must be None, .* wrap a class or a function as "
            r"TorchBackbone\(Linear\)\.",
        ),
        (
            {"covariate_backbone": nn.Linear(7, 2)},
            ValueError,
            r"covariate_backbone Linear raised RuntimeError for columns of shape "
            r"\(2, 1\): .*",
        ),
        (
            {"instrument_backbone": TorchBackbone(lambda n: nn.LSTM(n, 2))},
            TypeError,
            r"instrument_backbone <lambda> returned a tuple for columns of shape "
            r"\(2, 3\); it must return one tensor of features, .*",
        ),
        (
            {"backbone": nn.Flatten(0)},
            ValueError,
            r"backbone Flatten returned torch\.float64 features of shape \(2,\) for "
            r"columns of shape \(2, 1\); it must return real ones of shape "
            r"\(2, n_features\)\.",
        ),
    ],
    ids=lambda value: "" if isinstance(value, type | str) else "-".join(value),
)
def test_parameters_that_are_refused(params, error, message):
    pattern = re.compile(rf"\A{message}\Z", re.DOTALL)
    with pytest.raises(error, match=pattern):
        small(**params).fit(X, Y, instruments=Z)


def test_an_unknown_parameter_is_one_of_the_estimators_own_class():
    message = (
        r"\ACFLLIVRegressor\.__init__\(\) got an unexpected keyword argument "
        r"'max_iter'(\. Did you mean .*)?\Z"
    )
    with pytest.raises(TypeError, match=message):
        CFLLIVRegressor(max_iter=3)


def test_further_rows_must_have_the_same_instruments():
    frame = pd.DataFrame(Z, columns=["cost", "rain"])
    model = two_stage_least_squares([0]).fit(X, Y, instruments=frame)
    with pytest.raises(ValueError, match=r"\Ainstruments has 1 columns but fit had 2"):
        model.score(X, Y, instruments=Z[:, :1])
    swapped = r"\Ainstruments has the columns \['rain', 'cost'\] but fit had"
    with pytest.raises(ValueError, match=swapped):
        model.diagnose(X, Y, instruments=frame[["rain", "cost"]])
    with pytest.raises(ValueError, match=r"\Ainstruments has 5 rows but X has 60"):
        model.score(X, Y, instruments=Z[:5])
    with pytest.raises(ValueError, match=r"\Ainstruments is missing"):
        model.diagnose(X, Y, instruments=None)


@pytest.mark.parametrize(
    ("instruments", "what"),
    [
        (np.column_stack([Z[:, 0], 1 - X[:, 0]]), "column 0 of X, which is endogenous"),
        (np.column_stack([Z[:, 0], Y]), "y"),
    ],
    ids=["the treatment", "the target"],
)
def test_an_instrument_that_is_what_it_should_explain_is_a_warning(instruments, what):
    message = rf"\Acolumn 1 \(z1\) of instruments is {what}, but for shift and scale: "
    with pytest.warns(UserWarning, match=message):
        two_stage_least_squares([0]).fit(X, Y, instruments=instruments)


def test_text_in_further_rows_is_told():
    model = two_stage_least_squares([0]).fit(X, Y, instruments=Z)
    with pytest.raises(ValueError, match=r"; X must hold numbers: encode text, by "):
        model.predict(FRAME.assign(price="a").to_numpy())
    with pytest.raises(ValueError, match=r"; y must hold numbers: take CFLLClass"):
        model.score(X, ["a"] * 60)
    with pytest.raises(ValueError, match=r"; y must hold numbers: take CFLLClass"):
        model.diagnose(X, ["a"] * 60, instruments=Z)


SHUFFLED = np.random.default_rng(0).permutation(60)
OTHER_ROWS = (
    r"\Athe index of instruments is not that of X; rows are matched by their position, "
    r"whatever their labels\. Where the labels say which rows belong together, pass "
    r"instruments\.loc\[X\.index\]; where the order is right, "
    r"instruments\.to_numpy\(\)\.\Z"
)


@pytest.mark.parametrize(
    "other",
    [
        lambda frame: frame.set_index(SHUFFLED),
        lambda frame: frame.set_index(SHUFFLED)["cost"],
        lambda frame: frame.set_index(np.arange(60) + 1),
    ],
    ids=["another order", "a series", "other labels"],
)
def test_frames_whose_rows_have_other_labels_are_a_warning(other):
    frame = pd.DataFrame(Z, columns=["cost", "rain"])
    aligned, instruments = two_stage_least_squares([0]), other(frame)
    with pytest.warns(UserWarning, match=OTHER_ROWS):
        model = two_stage_least_squares([0]).fit(FRAME, Y, instruments=instruments)
    with pytest.warns(UserWarning, match=OTHER_ROWS):
        model.diagnose(FRAME, Y, instruments=instruments)
    # No warning, and the rows are taken by position as they were.
    aligned.fit(FRAME, Y, instruments=instruments.to_numpy())
    np.testing.assert_array_equal(aligned.coef_, model.coef_)


def test_frames_in_a_cross_validation_have_the_same_labels():
    X, Z, _, _ = confounded(300)
    order = np.random.default_rng(0).permutation(300)
    frame = pd.DataFrame(X, columns=["price", "time"]).iloc[order]
    instruments = pd.DataFrame(Z, columns=["cost", "rain"]).iloc[order]
    with sklearn.config_context(enable_metadata_routing=True):
        model = two_stage_least_squares([0]).set_fit_request(instruments=True)
        scores = cross_val_score(
            model.set_score_request(instruments=True),
            frame,
            3 * frame["price"] - frame["time"],
            params={"instruments": instruments},
            cv=KFold(3, shuffle=True, random_state=0),
        )
    np.testing.assert_allclose(scores, 1, atol=1e-6)


@pytest.mark.parametrize("make", [two_stage_least_squares, small])
@pytest.mark.parametrize("n_rows", [3, 4])
def test_rows_without_a_degree_of_freedom_are_a_warning(make, n_rows):
    model = make(endogenous=[0])
    message = (
        rf"\AX has {n_rows} rows, on which 3 instruments and exogenous columns and a "
        r"constant leave no degree of freedom: nothing can be told of the instruments, "
        r"and standard errors mean nothing; pass more rows, or fewer columns\.\Z"
    )
    with pytest.warns(UserWarning, match=message):
        model.fit(X[:n_rows], Y[:n_rows], instruments=Z[:n_rows])
    assert model.diagnostics_["first_stage"] is None
    assert "not available: too few rows." in model.summary()


def test_a_score_needs_more_rows_than_instrument_features():
    model = small(max_epochs=1).fit(X, Y, instruments=Z)
    message = (
        r"\AX has 12 rows, but the instrument network has 11 features and there is a "
        r"constant, which predict any y on so few; pass more rows, or fit with an "
        r"instrument_backbone of fewer features\.\Z"
    )
    assert model.network_.networks[0].first.weight.shape[0] == 11
    with pytest.raises(ValueError, match=message):
        model.score(X[:12], Y[:12], instruments=Z[:12])
    with pytest.warns(UndefinedMetricWarning, match="the score is not defined") as told:
        assert np.isnan(model.score(X, np.ones(60), instruments=Z))
    assert [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize(("n_rows", "kind"), [(80, "training"), (250, "held-out")])
def test_instruments_that_move_nothing_are_weak_on_small_tables_too(n_rows, kind):
    random = np.random.default_rng(0)
    Z, (w, hidden) = random.normal(size=(n_rows, 3)), random.normal(size=(2, n_rows))
    X, y = np.column_stack([0.5 * w + hidden, w]), 2 * hidden + w
    with pytest.warns(UserWarning, match="the instruments are weak for x0"):
        model = small(max_epochs=60).fit(X, y, instruments=Z)
    assert model.diagnostics_["rows"] == kind
    assert ("as they are" in model.summary()) == (kind == "training")


@pytest.mark.parametrize("method", ["predict", "transform", "score", "summary"])
def test_before_fit(method):
    arguments = {"summary": (), "score": (X, Y)}.get(method, (X,))
    with pytest.raises(NotFittedError):
        getattr(CFLLIVRegressor(IDENTITY), method)(*arguments)


def test_diagnose_leaves_rows_of_weight_zero_out():
    X, Z, Y, _ = confounded(400)
    model = two_stage_least_squares(endogenous=[0]).fit(X, Y, instruments=Z)
    weight = (np.arange(len(X)) % 2).astype(float)
    used = weight > 0
    whole = model.diagnose(X, Y, instruments=Z, sample_weight=weight)
    assert whole == model.diagnose(X[used], Y[used], instruments=Z[used])
    scores = [
        model.score(X, Y, instruments=Z, sample_weight=weight),
        model.score(X[used], Y[used], instruments=Z[used]),
    ]
    assert scores[0] == pytest.approx(scores[1])


def test_diagnose_wants_rows_that_belong_together():
    model = two_stage_least_squares(endogenous=[0]).fit(X, Y, instruments=Z)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.diagnose(X, Y[:-1], instruments=Z)
