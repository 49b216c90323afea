"""The displays: what their artists hold, and what they refuse."""

import ast
import builtins
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_instruments import two_stage_least_squares
from small_models import classifier, regressor

from sklearn_cfll.plot import (
    AlphaPathDisplay,
    IntervalCalibrationDisplay,
    PredictionIntervalDisplay,
    TrainingCurveDisplay,
)

WITH_ROWS = [PredictionIntervalDisplay, IntervalCalibrationDisplay]
DISPLAYS = [TrainingCurveDisplay, AlphaPathDisplay, *WITH_ROWS]
by_name = pytest.mark.parametrize("display", DISPLAYS, ids=lambda d: d.__name__)
with_rows = pytest.mark.parametrize("display", WITH_ROWS, ids=lambda d: d.__name__)


@pytest.fixture(autouse=True)
def plt():
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


@pytest.fixture(scope="module")
def two_targets(table):
    X, y = table
    return np.column_stack([y, 100 * X[:, 3] + y])


@pytest.fixture(scope="module")
def model(table, two_targets):
    """Two outputs and sixty rows that are held out."""
    X, _ = table
    held_out = {"X_val": X[120:], "y_val": two_targets[120:]}
    return regressor().fit(X[:120], two_targets[:120], **held_out)


@pytest.fixture(scope="module")
def alone(table):
    """One output, no rows held out."""
    return regressor(max_epochs=4).fit(*table)


@pytest.fixture(scope="module")
def new_rows(fresh_rows):
    X, y = fresh_rows
    noise = np.random.default_rng(5).normal(size=(200, 2))
    return X, np.column_stack([y, 100 * X[:, 3] + y]) + [0.05, 1] * noise


def arguments_of(display, rows):
    return rows if display in WITH_ROWS else ()


def shown(display, model, rows, **settings):
    return display.from_estimator(model, *arguments_of(display, rows), **settings)


# The training ---------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["loss", "score"])
def test_training_curves_are_those_of_the_history(model, quantity):
    display = TrainingCurveDisplay.from_estimator(model, quantity=quantity)
    lines = {"train": display.train_line_, "valid": display.valid_line_}
    for name, line in lines.items():
        epochs, values = line.get_data()
        assert epochs.tolist() == list(range(1, model.n_iter_ + 1))
        assert values.tolist() == model.history_[:, f"{name}_{quantity}"]
    assert display.ax_.get_ylabel() == quantity


def test_the_epoch_that_was_kept_is_marked(model):
    display = TrainingCurveDisplay.from_estimator(model)
    state = dict(model.net_.callbacks_)["best_state"]
    epoch = int(display.best_line_.get_xdata()[0])
    assert model.history_[epoch - 1, "valid_loss"] == state.best_
    assert display.best_line_.get_label() == f"kept: epoch {epoch}"


def test_the_epoch_of_the_best_scoring_is_marked(table):
    X, y = table
    model = regressor(scoring="neg_median_absolute_error", early_stopping=True)
    display = TrainingCurveDisplay.from_estimator(model.fit(X, y))
    scores = model.history_[:, "valid_score"]
    assert scores[display.best_epoch - 1] == max(scores)


@pytest.mark.parametrize("quantity", ["loss", "score"])
@pytest.mark.parametrize("held_out_first", [True, False])
def test_epochs_of_a_warm_start_without_held_out_rows_are_gaps(
    table, held_out_first, quantity
):
    X, y = table
    model = regressor(max_epochs=2, warm_start=True)
    for early_stopping in (held_out_first, not held_out_first):
        model.set_params(early_stopping=early_stopping).fit(X, y)
    display = TrainingCurveDisplay.from_estimator(model, quantity=quantity)
    epochs, values = display.valid_line_.get_data()
    assert epochs.tolist() == [1, 2, 3, 4]
    known = [0, 1] if held_out_first else [2, 3]
    assert values[known].tolist() == model.history_[:, f"valid_{quantity}"]
    assert np.flatnonzero(np.isfinite(values)).tolist() == known
    assert np.isfinite(display.train_line_.get_ydata()).all()


@pytest.mark.parametrize("settings", [{"early_stopping": False}, {"warm_start": True}])
def test_no_epoch_is_marked_where_none_is_known_to_be_kept(table, settings):
    X, y = table
    model = regressor(max_epochs=3, **settings)
    model.fit(X[:150], y[:150], X_val=X[150:], y_val=y[150:])
    display = TrainingCurveDisplay.from_estimator(model)
    assert display.best_line_ is None
    assert len(display.valid_line_.get_xdata()) == 3


def test_without_held_out_rows_the_training_stands_alone(alone):
    display = TrainingCurveDisplay.from_estimator(alone)
    assert display.valid_line_ is display.best_line_ is None
    assert [text.get_text() for text in display.ax_.get_legend().texts] == [
        "training rows"
    ]


def test_a_quantity_that_is_not_recorded_is_refused(alone):
    with pytest.raises(ValueError, match=r"one of 'loss', 'score', got 'accuracy'"):
        TrainingCurveDisplay.from_estimator(alone, quantity="accuracy")


# The path of alpha ----------------------------------------------------------------


@pytest.mark.parametrize("output", [0, 1])
def test_the_path_has_the_errors_of_its_output_and_the_ridge_taken(model, output):
    display = AlphaPathDisplay.from_estimator(model, output=output)
    assert list(display.lines_) == ["held_out"]
    alphas, errors = display.lines_["held_out"].get_data()
    np.testing.assert_array_equal(alphas, model.alpha_path_["alphas"])
    np.testing.assert_array_equal(errors, model.alpha_path_["held_out"][:, output])
    assert display.alpha_line_.get_xdata()[0] == model.alpha_[output]
    assert display.ax_.get_xscale() == "log"


def test_the_path_has_a_line_for_each_kind_of_error(table):
    X, y = table
    model = regressor(max_epochs=2, store_loo=True, early_stopping=True).fit(X, y)
    display = AlphaPathDisplay.from_estimator(model)
    labels = [text.get_text() for text in display.ax_.get_legend().texts]
    taken = f"taken: {model.alpha_:.3g}"
    assert labels == ["held-out rows", "leave-one-out", taken]


def test_a_classifier_has_one_path(table):
    X, y = table
    labels = np.digitize(y, [-1, 1])
    model = classifier(max_epochs=2).fit(X, labels)
    display = AlphaPathDisplay.from_estimator(model)
    path = model.alpha_path_["leave_one_out"][:, 0]
    np.testing.assert_array_equal(display.lines_["leave_one_out"].get_ydata(), path)
    with pytest.raises(ValueError, match="output must be a whole number below 1"):
        AlphaPathDisplay.from_estimator(model, output=2)


def test_an_alpha_that_was_given_has_no_path(table):
    model = regressor(max_epochs=1, alpha=0.1).fit(*table)
    wanted = r"no path .* as alpha=0\.1 was given; fit with alpha='auto'\."
    with pytest.raises(ValueError, match=wanted):
        AlphaPathDisplay.from_estimator(model)


# Predictions and their intervals --------------------------------------------------


def bars_of(container):
    """Targets, predictions and ends of an ErrorbarContainer."""
    middle, _, (segments,) = container
    ends = np.array(segments.get_segments())
    return (*middle.get_data(), ends[:, 0, 1], ends[:, 1, 1])


@pytest.mark.parametrize("kind", ["interval", "std"])
@pytest.mark.parametrize("output", [0, 1])
def test_error_bars_are_the_intervals_told_apart_by_what_they_hold(
    model, new_rows, kind, output
):
    X, y = new_rows
    display = PredictionIntervalDisplay.from_estimator(
        model, X, y, coverage=0.8, kind=kind, output=output
    )
    predictions, deviation = (part[:, output] for part in model.predict(X, True))
    if kind == "interval":
        lower, upper = model.predict_interval(X, 0.8)[:, output].T
    else:
        half = norm.ppf(0.9) * deviation
        lower, upper = predictions - half, predictions + half
    truth = y[:, output]
    held = (lower <= truth) & (truth <= upper)
    assert 0 < held.sum() < 200
    for container, rows in ((display.held_bars_, held), (display.missed_bars_, ~held)):
        expected = [values[rows] for values in (truth, predictions, lower, upper)]
        np.testing.assert_allclose(bars_of(container), expected)
    percent = f"interval holds the target: {100 * held.mean():.1f} %"
    assert display.held_bars_.get_label() == percent


def test_a_subsample_is_drawn_and_the_shares_are_of_all(model, new_rows):
    display = PredictionIntervalDisplay.from_estimator(model, *new_rows)
    label = display.held_bars_.get_label()
    display.plot(subsample=50, random_state=3)
    drawn = [bars_of(c)[0] for c in (display.held_bars_, display.missed_bars_)]
    targets = np.concatenate(drawn)
    assert len(set(targets.tolist())) == 50
    assert set(targets.tolist()) <= set(new_rows[1][:, 0].tolist())
    assert display.held_bars_.get_label() == label
    again = display.plot(subsample=50, random_state=3)
    np.testing.assert_array_equal(bars_of(again.held_bars_)[0], drawn[0])


def test_an_interval_that_leaves_its_prediction_out_is_drawn_up_to_it():
    display = PredictionIntervalDisplay.from_predictions([1.0], [5.0], [[0.0, 4.0]])
    assert [float(v[0]) for v in bars_of(display.held_bars_)] == [1, 5, 0, 5]


@pytest.mark.parametrize("kind", ["interval", "std"])
@pytest.mark.parametrize("output", [0, 1])
def test_calibration_is_the_share_of_targets_within(model, new_rows, kind, output):
    X, y = new_rows
    levels = [0.2, 0.5, 0.9]
    display = IntervalCalibrationDisplay.from_estimator(
        model, X, y, coverages=levels, kind=kind, output=output
    )
    predictions, deviation = model.predict(X, return_std=True)
    error = np.abs(y - predictions)[:, output]
    for level, share in zip(*display.line_.get_data(), strict=True):
        half = norm.ppf((1 + level) / 2) * deviation[:, output]
        if kind == "interval":
            half = np.diff(model.predict_interval(X, level)[:, output])[:, 0] / 2
        assert share == np.mean(error <= half)
    assert display.line_.get_xdata().tolist() == levels
    assert display.line_.get_label() == "CFLLRegressor"


def test_intervals_of_other_estimators_are_drawn_alike(model, new_rows):
    X, y = new_rows
    intervals = [model.predict_interval(X, level) for level in (0.5, 0.9)]
    own = IntervalCalibrationDisplay.from_estimator(model, X, y, coverages=[0.5, 0.9])
    other = IntervalCalibrationDisplay.from_predictions(y, intervals, [0.5, 0.9])
    np.testing.assert_array_equal(own.coverage, other.coverage)
    bars = PredictionIntervalDisplay.from_estimator(model, X, y)
    others = PredictionIntervalDisplay.from_predictions(
        y, model.predict(X), intervals[1]
    )
    np.testing.assert_array_equal(bars_of(bars.held_bars_), bars_of(others.held_bars_))


def test_the_reference_is_drawn_once_on_the_same_axes(model, new_rows):
    first = IntervalCalibrationDisplay.from_estimator(model, *new_rows)
    assert first.reference_line_.get_xydata().tolist() == [[0, 0], [1, 1]]
    second = IntervalCalibrationDisplay.from_estimator(
        model, *new_rows, kind="std", name="Gaussian", ax=first.ax_
    )
    assert second.reference_line_ is None
    labels = [text.get_text() for text in first.ax_.get_legend().texts]
    assert labels == ["as asked for", "CFLLRegressor", "Gaussian"]


def test_groups_reach_the_intervals(model, new_rows):
    X, y = new_rows
    groups = X[:, 0] > 0
    scores = model._conformal
    model.conformalize(X[:100], y[:100], groups=groups[:100])
    try:
        display = PredictionIntervalDisplay.from_estimator(
            model, X[100:], y[100:], groups=groups[100:]
        )
        intervals = model.predict_interval(X[100:], groups=groups[100:])
    finally:
        model._conformal = scores
    np.testing.assert_array_equal(display.upper, intervals[:, 0, 1])


# What all of them share -----------------------------------------------------------


@by_name
def test_a_display_draws_where_it_is_told_and_says_where(display, model, new_rows, plt):
    figure, (_, ax) = plt.subplots(1, 2)
    drawn = shown(display, model, new_rows, ax=ax)
    assert (drawn.ax_, drawn.figure_) == (ax, figure)
    assert drawn.plot() is drawn
    assert drawn.ax_ is not ax
    assert plt.get_fignums() == [1, 2]


@by_name
def test_a_pipeline_is_shown_as_its_last_step(display, table, new_rows, plt):
    X, y = table
    model = regressor(max_epochs=2, early_stopping=True, validation_fraction=0.3)
    pipe = make_pipeline(StandardScaler(), model).fit(X, y)
    rows = new_rows[0], new_rows[1][:, 0]
    whole = shown(display, pipe, rows)
    inner = shown(display, pipe[-1], (pipe[0].transform(rows[0]), rows[1]))
    for one, other in zip(whole.ax_.lines, inner.ax_.lines, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())


@by_name
def test_an_estimator_that_is_not_fitted_is_refused(display, new_rows):
    with pytest.raises(NotFittedError, match="CFLLRegressor instance is not fitted"):
        shown(display, regressor(), new_rows)


@by_name
@pytest.mark.parametrize(
    "other", [Ridge(), GridSearchCV(regressor(), {})], ids=["Ridge", "GridSearchCV"]
)
def test_other_estimators_are_refused(display, other, new_rows):
    name = type(other).__name__
    wanted = rf"{display.__name__} shows .* got {name}\(.*pass its best_estimator_"
    with pytest.raises(TypeError, match=f"(?s){wanted}"):
        shown(display, other, new_rows)


@by_name
def test_instruments_are_said_to_have_a_history_and_a_summary(display, table, new_rows):
    X, y = table
    Z = X[:, :1] + y[:, None]
    model = two_stage_least_squares().fit(X[:, :1], y, instruments=Z)
    wanted = (
        rf"{display.__name__} shows a CFLLRegressor or a CFLLClassifier, or a pipeline "
        r"that ends in one, got CFLLIVRegressor\(.*\); its losses are in history_, and "
        r"what it has found in summary\(\)\."
    )
    with pytest.raises(TypeError, match=f"(?s)^{wanted}$"):
        shown(display, model, new_rows)


@with_rows
def test_a_classifier_has_no_intervals_to_show(display, table):
    X, y = table
    model = classifier(max_epochs=1).fit(X, y > 0)
    wanted = "needs predict_interval, which CFLLClassifier doesn't have; pass a CFLLR"
    with pytest.raises(TypeError, match=wanted):
        display.from_estimator(model, X, y > 0)


@with_rows
def test_intervals_need_rows_that_were_held_out(display, alone, table):
    with pytest.raises(ValueError, match=r"no rows were held out in fit.*conformalize"):
        display.from_estimator(alone, *table)


@pytest.mark.parametrize("output", [2, -1, 0.0, True, "y"])
@pytest.mark.parametrize("display", [AlphaPathDisplay, *WITH_ROWS])
def test_an_output_that_is_not_there_is_refused(display, output, model, new_rows):
    wanted = f"output must be a whole number below 2, .*counted from 0; got {output!r}"
    with pytest.raises(ValueError, match=wanted):
        shown(display, model, new_rows, output=output)


@with_rows
@pytest.mark.parametrize("kind", ["interval", "std"])
def test_a_coverage_that_is_none_is_refused(display, kind, model, new_rows):
    name = "coverage" if display is PredictionIntervalDisplay else "coverages"
    with pytest.raises(ValueError, match="coverage must be a number between 0 and 1"):
        display.from_estimator(model, *new_rows, kind=kind, **{name: 1.5})


@with_rows
def test_a_kind_of_interval_that_is_not_known_is_refused(display, model, new_rows):
    with pytest.raises(ValueError, match="kind must be one of 'interval', 'std', got"):
        display.from_estimator(model, *new_rows, kind="gaussian")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intervals": np.zeros((3, 3))}, r"intervals have shape \(3, 3\); they must"),
        ({"intervals": np.zeros((2, 2))}, "inconsistent numbers of samples"),
        ({"y_true": [1.0, np.nan, 2.0]}, "y_true holds numbers that are not finite"),
        ({"y_pred": np.zeros((3, 1, 1))}, r"y_pred has shape \(3, 1, 1\); it must be"),
    ],
    ids=["no pairs", "rows missing", "not-a-number", "three axes"],
)
def test_predictions_of_a_wrong_form_are_refused(change, message):
    good = {"y_true": np.zeros(3), "y_pred": np.zeros(3), "intervals": np.zeros((3, 2))}
    with pytest.raises(ValueError, match=message):
        PredictionIntervalDisplay.from_predictions(**good | change)


def test_each_coverage_needs_its_intervals():
    intervals = np.zeros((2, 5, 2))
    with pytest.raises(ValueError, match="2 sets of intervals for 3 coverages"):
        IntervalCalibrationDisplay.from_predictions(np.zeros(5), intervals, [0.1] * 3)


@by_name
def test_without_matplotlib_the_error_names_the_cure(
    display, model, new_rows, monkeypatch
):
    real_import = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    wanted = rf"{display.__name__} draws with matplotlib.*pip install matplotlib"
    with pytest.raises(ImportError, match=wanted):
        shown(display, model, new_rows)


def test_a_training_curve_wants_an_epoch(table):
    X, y = table
    model = regressor(stream_epochs=0).partial_fit(X, y)
    with pytest.raises(ValueError, match=r"history_ is empty: .*stream_epochs of at"):
        TrainingCurveDisplay.from_estimator(model)


def test_a_path_that_a_stream_has_left_behind_is_refused(table):
    X, y = table
    model = regressor(max_epochs=1).fit(X[:90], y[:90]).partial_fit(X[90:], y[90:])
    with pytest.raises(AttributeError, match="alpha_path_ is that of the head"):
        AlphaPathDisplay.from_estimator(model)


def test_no_file_imports_matplotlib_as_it_is_imported():
    package = Path(sys.modules["sklearn_cfll.plot"].__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            assert not [name for name in names if name.startswith("matplotlib")]


def test_intervals_of_many_coverages_take_one_pass(monkeypatch):
    X, y = np.random.default_rng(0).normal(size=(2, 150, 3))
    model = regressor(early_stopping=True, max_epochs=1).fit(X, y[:, 0])
    passes = []
    one_pass = type(model)._raw_predictions

    def counted(self, *args):
        passes.append(self)
        return one_pass(self, *args)

    monkeypatch.setattr(type(model), "_raw_predictions", counted)
    for kind in ("interval", "std"):
        display = IntervalCalibrationDisplay.from_estimator(
            model, X, y[:, 0], kind=kind, coverages=[0.2, 0.5, 0.8]
        )
        assert len(display.coverage) == 3
    assert len(passes) == 2
