"""Conformal intervals and sets: the quantile, the coverage, and what is refused."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from small_models import classifier, regressor


def draw_rows(n, seed):
    """Rows whose noise is three times as large where the first column is positive."""
    random = np.random.default_rng(seed)
    X = random.uniform(-1, 1, size=(n, 3))
    noise = random.normal(size=n) * np.where(X[:, 0] > 0, 0.6, 0.2)
    return X, np.sin(3 * X[:, 1]) + noise


def draw_classes(n, seed):
    X, y = draw_rows(n, seed)
    return X, np.array(["low", "middle", "high"])[np.digitize(y, [-0.5, 0.5])]


@pytest.fixture(scope="module")
def model():
    X, y = draw_rows(300, 0)
    return regressor(max_epochs=10).fit(X[:200], y[:200], X_val=X[200:], y_val=y[200:])


@pytest.fixture(scope="module")
def labeller():
    X, y = draw_classes(400, 0)
    return classifier().fit(X[:300], y[:300], X_val=X[300:], y_val=y[300:])


def covered(intervals, y):
    return (intervals[..., 0] <= y) & (y <= intervals[..., 1])


@pytest.fixture
def restored():
    """Models that a test calibrates anew, given back as they were."""
    before = []

    def keep(model):
        before.append((model, model._conformal))
        return model

    yield keep
    for model, scores in before:
        model._conformal = scores


# Intervals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coverage", "rank"), [(0.5, 51), (0.9, 91), (0.93, 94), (0.99, 100)]
)
def test_intervals_are_deviations_times_a_quantile_of_the_held_out_scores(
    model, coverage, rank
):
    X_val, y_val = (part[200:] for part in draw_rows(300, 0))
    predictions, deviation = model.predict(X_val, return_std=True)
    limit = np.sort(np.abs(y_val - predictions) / deviation)[rank - 1]
    X, _ = draw_rows(20, 5)
    predictions, deviation = model.predict(X, return_std=True)
    half = limit * deviation
    expected = np.stack([predictions - half, predictions + half], axis=1)
    intervals = model.predict_interval(X, coverage)
    np.testing.assert_allclose(intervals, expected, rtol=1e-9)


def test_calibrated_intervals_cover_as_often_as_theory_says(model, restored):
    restored(model)
    shares = []
    for seed in range(150):
        model.conformalize(*draw_rows(49, 100 + seed))
        X, y = draw_rows(1_000, 1_000 + seed)
        shares.append(covered(model.predict_interval(X, 0.9), y).mean())
    # A new score is below the 45th of 49 with a probability of 45 / 50. The share has
    # a beta distribution, of deviation 0.042, here 0.0035 for the mean.
    assert np.mean(shares) == pytest.approx(0.9, abs=0.011)
    assert np.std(shares) == pytest.approx(0.042, abs=0.012)


@pytest.mark.parametrize(
    ("coverage", "rank"),
    [(0.5, 1001), (0.9, 1801), (0.975, 1951), (0.901, 1821), (0.9994, 2000)],
)
def test_of_many_rows_the_quantiles_of_whole_per_cents_are_kept(
    model, restored, coverage, rank
):
    restored(model)
    X, y = draw_rows(2_000, 7)
    model.conformalize(X, y)
    predictions, deviation = model.predict(X, return_std=True)
    limit = np.sort(np.abs(y - predictions) / deviation)[rank - 1]
    half = np.diff(model.predict_interval(X, coverage))[:, 0] / 2
    np.testing.assert_allclose(half, limit * deviation, rtol=1e-9)


def test_groups_are_each_covered(model, restored):
    restored(model)
    X, y = draw_rows(20_000, 2)
    X_test, y_test = draw_rows(20_000, 3)

    def shares(**groups):
        hits = covered(model.predict_interval(X_test, 0.9, **groups), y_test)
        noisy = X_test[:, 0] > 0
        return hits[noisy].mean(), hits[~noisy].mean()

    model.conformalize(X, y)
    noisy, quiet = shares()
    assert noisy < 0.86
    assert quiet > 0.94
    model.conformalize(X, y, groups=X[:, 0] > 0)
    # Deviations of a share are 0.003 in a group, in calibration and test alike.
    assert shares(groups=X_test[:, 0] > 0) == pytest.approx((0.9, 0.9), abs=0.013)


def test_the_order_of_groups_does_not_matter(model, restored):
    restored(model)
    X, y = draw_rows(200, 2)
    names = np.where(X[:, 0] > 0, "noisy", "quiet")
    model.conformalize(X, y, groups=names)
    together = model.predict_interval(X, groups=names)
    for name in ("noisy", "quiet"):
        rows = names == name
        model.conformalize(X[rows], y[rows])
        np.testing.assert_allclose(
            model.predict_interval(X[rows]), together[rows], rtol=1e-9
        )


def test_outputs_have_an_interval_each(model):
    X, y = draw_rows(300, 0)
    both = regressor(max_epochs=10).fit(
        X[:200],
        np.column_stack([y, -y])[:200],
        X_val=X[200:],
        y_val=np.column_stack([y, -y])[200:],
    )
    intervals = both.predict_interval(X[:9])
    assert intervals.shape == (9, 2, 2)
    mirrored = -intervals[:, 1, ::-1]
    np.testing.assert_allclose(mirrored, intervals[:, 0], rtol=1e-6, atol=1e-6)


def test_calibration_changes_no_prediction(model, restored):
    restored(model)
    X, y = draw_rows(200, 4)
    before = model.predict(X, return_std=True)
    assert model.conformalize(X, y) is model
    np.testing.assert_array_equal(model.predict(X, return_std=True), before)


# What is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "coverage", "wanted"), [(8, 0.9, 9), (98, 0.99, 99), (1, 0.6, 2)]
)
def test_too_few_rows_are_an_error_that_says_how_many_are_needed(
    model, restored, rows, coverage, wanted
):
    restored(model)
    message = re.escape(
        f"coverage={coverage} needs at least {wanted} calibration rows, got {rows}; "
        "hold out more rows (validation_fraction or X_val), pass more to conformalize, "
        "or ask for less coverage."
    )
    model.conformalize(*draw_rows(rows, 6))
    X, _ = draw_rows(3, 5)
    with pytest.raises(ValueError, match=message):
        model.predict_interval(X, coverage)
    model.conformalize(*draw_rows(wanted, 6))
    assert np.isfinite(model.predict_interval(X, coverage)).all()


def test_a_group_of_few_rows_is_named(model, restored):
    restored(model)
    X, y = draw_rows(50, 6)
    model.conformalize(X, y, groups=["a"] * 45 + ["b"] * 5)
    assert len(model.predict_interval(X, groups=["a"] * 50)) == 50
    with pytest.raises(ValueError, match="9 calibration rows of group 'b', got 5"):
        model.predict_interval(X, groups=["a", "b"] * 25)
    with pytest.raises(ValueError, match=r"groups holds 'c', none of the groups \['a'"):
        model.predict_interval(X, groups=["c"] * 50)


MISSING = {
    "None": np.array(["a", None] * 25, dtype=object),
    "not-a-number": np.array([1.0, np.nan] * 25),
    "not-a-number among words": np.array(["a", np.nan] * 25, dtype=object),
    "NA": pd.Series(["a", pd.NA] * 25, dtype="string"),
    "not-a-time": np.array(["2024-01-01", "NaT"] * 25, dtype="datetime64[D]"),
}


@pytest.mark.parametrize("groups", MISSING.values(), ids=MISSING)
def test_a_row_without_a_group_is_named(model, restored, groups):
    restored(model)
    X, y = draw_rows(50, 6)
    wanted = (
        r"^groups has no label for row 1; give each row one, by fillna for example\.$"
    )
    with pytest.raises(ValueError, match=wanted):
        model.conformalize(X, y, groups=groups)
    model.conformalize(X, y, groups=["a"] * 50)
    with pytest.raises(ValueError, match=wanted):
        model.predict_interval(X, groups=groups)


def test_groups_of_several_types_are_refused(model, restored):
    restored(model)
    X, y = draw_rows(50, 6)
    wanted = (
        r"^groups holds labels that can't be sorted \(int, str\); pass labels of one "
        r"type, by astype\(str\) for example\.$"
    )
    with pytest.raises(TypeError, match=wanted):
        model.conformalize(X, y, groups=np.array(["a", 1] * 25, dtype=object))
    with pytest.raises(
        ValueError, match=r"^groups has shape \(50, 2\); pass one label"
    ):
        model.conformalize(X, y, groups=np.ones((50, 2)))


@pytest.mark.parametrize("words", [np.array, pd.Series], ids=["array", "series"])
def test_groups_of_another_type_are_none_of_those_of_conformalize(
    model, restored, words
):
    restored(model)
    X, y = draw_rows(50, 6)
    names, numbers = words(["a"] * 50), np.ones(50, dtype=int)
    for given, other, found in ((names, numbers, "1"), (numbers, names, "'a'")):
        model.conformalize(X, y, groups=given)
        with pytest.raises(ValueError, match=rf"^groups holds {found}, none of the gr"):
            model.predict_interval(X, groups=other)


def test_groups_are_for_both_calls_or_neither(model, restored):
    restored(model)
    X, y = draw_rows(50, 6)
    with pytest.raises(ValueError, match="were calibrated without groups"):
        model.predict_interval(X, groups=np.ones(50))
    model.conformalize(X, y, groups=np.ones(50))
    with pytest.raises(ValueError, match="were calibrated with groups"):
        model.predict_interval(X)


@pytest.mark.parametrize("kind", ["intervals", "sets"])
def test_without_held_out_rows_there_are_none_until_calibrated(kind):
    X, y = draw_rows(60, 0) if kind == "intervals" else draw_classes(60, 0)
    make, name = (
        (regressor, "predict_interval")
        if kind == "intervals"
        else (classifier, "predict_set")
    )
    model = make(max_epochs=2).fit(X, y)
    with pytest.raises(ValueError, match="no rows were held out in fit"):
        getattr(model, name)(X)
    model.conformalize(X, y)
    assert len(getattr(model, name)(X)) == 60


@pytest.mark.parametrize("coverage", [0, 1, -0.5, 90, "0.9", None, np.nan])
def test_a_coverage_is_between_0_and_1(model, labeller, coverage):
    X, _ = draw_rows(3, 5)
    for question in (model.predict_interval, labeller.predict_set):
        with pytest.raises(ValueError, match="coverage must be a number between 0 and"):
            question(X, coverage)


def test_calibration_rows_must_fit_the_model(model, labeller):
    X, y = draw_rows(30, 5)
    with pytest.raises(ValueError, match="pass the same outputs"):
        model.conformalize(X, y[:, None])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.conformalize(X, y[:20])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.conformalize(X, y, groups=np.ones(20))
    with pytest.raises(ValueError, match="y holds the label 'none'"):
        labeller.conformalize(X, ["none"] * 30)


# Sets -----------------------------------------------------------------------------


def test_sets_hold_the_labels_that_are_as_probable_as_held_out_ones(labeller):
    X_val, y_val = (part[300:] for part in draw_classes(400, 0))
    index = np.searchsorted(labeller.classes_, y_val)
    true = np.sort(labeller.predict_proba(X_val)[np.arange(100), index])[::-1]
    X, _ = draw_classes(500, 5)
    probabilities = labeller.predict_proba(X)
    for coverage, rank in [(0.5, 51), (0.9, 91), (0.95, 96)]:
        expected = probabilities >= true[rank - 1] - 1e-12
        np.testing.assert_array_equal(labeller.predict_set(X, coverage), expected)


def test_calibrated_sets_cover_as_often_as_theory_says(labeller, restored):
    restored(labeller)
    shares = []
    for seed in range(150):
        labeller.conformalize(*draw_classes(49, 100 + seed))
        X, y = draw_classes(1_000, 1_000 + seed)
        index = np.searchsorted(labeller.classes_, y)
        shares.append(labeller.predict_set(X, 0.9)[np.arange(1_000), index].mean())
    assert np.mean(shares) == pytest.approx(0.9, abs=0.011)


def test_more_coverage_only_adds_labels(labeller):
    X, _ = draw_classes(500, 5)
    sets = [labeller.predict_set(X, coverage) for coverage in (0.6, 0.8, 0.95)]
    for small, large in itertools.pairwise(sets):
        assert not (small & ~large).any()
        assert small.sum() < large.sum()


def test_two_classes_and_groups_have_sets_too(restored):
    X, y = draw_rows(300, 0)
    model = restored(classifier().fit(X, y > 0))
    assert model.predict_set(X).shape == (300, 2)
    X, y = draw_rows(4_000, 1)
    groups = X[:, 0] > 0
    model.conformalize(X, y > 0, groups=groups)
    sets = model.predict_set(X, groups=groups)[np.arange(4_000), (y > 0).astype(int)]
    # On the calibration rows themselves the share is the rank's.
    for group in (True, False):
        assert sets[groups == group].mean() == pytest.approx(0.9, abs=1e-3)


# Ties -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "make", [regressor, classifier], ids=["regressor", "classifier"]
)
def test_rows_that_equal_calibration_rows_are_not_lost_to_rounding(make, dtype):
    random = np.random.default_rng(0)
    X = random.integers(0, 3, size=(500, 3)).astype(float)
    y = 5 * (X[:, 0] - X[:, 1] + random.integers(-1, 2, size=500)).astype(int)
    model = make(dtype=dtype, early_stopping=False).fit(X[:450], y[:450])
    X, y = X[450:], y[450:]
    model.conformalize(X, y)
    alone = np.split(X, 50)
    for coverage in (0.5, 0.6, 0.7, 0.8):
        if make is regressor:
            parts = [model.predict_interval(rows, coverage) for rows in alone]
            held = covered(np.concatenate(parts), y)
        else:
            parts = [model.predict_set(rows, coverage) for rows in alone]
            label = np.searchsorted(model.classes_, y)
            held = np.concatenate(parts)[np.arange(50), label]
        assert held.sum() >= np.ceil(51 * coverage)
