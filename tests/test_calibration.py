"""The benchmark of probabilities: its measures, and its quick mode."""

import re

import numpy as np
import pandas as pd
import pytest
from test_benchmarks import EXAMPLES, run_quickly


@pytest.fixture
def script(monkeypatch):
    """Import the script as a module."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    import calibration

    return calibration


def test_the_calibration_error_is_the_gap_of_confidence_and_hits_by_bin(script):
    # Sure of it in half of the rows, and right in three quarters of these; less sure
    # in the others, and right in all.
    confidence = np.repeat([0.9, 0.6], 40)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    y = np.zeros(80, dtype=int)
    y[:10] = 1
    error = script.expected_calibration_error(probabilities, y, n_bins=2)
    assert error == pytest.approx((0.15 + 0.4) / 2)
    shuffled = np.random.default_rng(0).permutation(80)
    again = script.expected_calibration_error(
        probabilities[shuffled], y[shuffled], n_bins=2
    )
    assert again == pytest.approx(error)


def test_the_scores_are_those_of_their_definitions(script):
    y = np.array([0, 2, 1])
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    scores = script.scores_of(probabilities, y)
    assert scores["wrong"] == pytest.approx(1 / 3)
    assert scores["log loss"] == pytest.approx(-np.log([0.7, 0.3, 0.8]).mean())
    squares = [0.09 + 0.04 + 0.01, 0.25 + 0.04 + 0.49, 0.01 + 0.04 + 0.01]
    assert scores["Brier"] == pytest.approx(np.mean(squares))


def test_the_error_by_chance_is_that_of_labels_drawn_from_the_probabilities(script):
    random = np.random.default_rng(0)
    first = random.uniform(size=600)
    probabilities = np.stack([first, 1 - first], axis=1)
    errors = [
        script.expected_calibration_error(
            probabilities, (random.uniform(size=600) > first).astype(int)
        )
        for _ in range(300)
    ]
    # The deviation of one is a fifth of it, that of the mean of 300 a hundredth.
    assert script.error_by_chance(probabilities) == pytest.approx(
        np.mean(errors), rel=0.05
    )


def test_reliability_is_of_the_rarer_of_two_classes_and_of_the_predicted_of_more(
    script,
):
    first = np.array([0.1, 0.9, 0.2, 0.7, 0.8, 0.3])
    y = np.array([0, 0, 1, 0, 0, 1])
    curve = script.reliability(np.stack([first, 1 - first], axis=1), y, n_bins=2)
    # The rarer class is the second: its probabilities are .1, .2, .3, and .7, .8, .9.
    np.testing.assert_allclose(curve, [[0.2, 0.8], [0, 2 / 3]])
    three = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    curve = script.reliability(three, np.array([1, 2]), n_bins=2)
    np.testing.assert_allclose(curve, [[0.5, 0.8], [0, 1]])


def test_kinds_are_told_by_the_classes_and_the_rarer_ones_share(script):
    kinds = [script.kind_of(np.repeat(np.arange(len(n)), n)) for n in KINDS.values()]
    assert kinds == list(KINDS)


KINDS = {"binary": [5, 3], "imbalanced": [9, 2], "multiclass": [9, 9, 1]}


def test_calibration_writes_the_scores_of_each_method_and_runs_none_twice(tmp_path):
    arguments = ("benchmarks/calibration.py", tmp_path, "--report", "tables")
    printed = run_quickly(*arguments)
    path = tmp_path / "calibration" / "calibration.jsonl"
    written = path.read_text()
    results = pd.read_json(path, lines=True)
    assert results["table"].unique().tolist() == ["digits", "breast_cancer"]
    assert results["kind"].unique().tolist() == ["multiclass", "binary"]
    rst = (tmp_path / "tables" / "calibration.rst").read_text()
    for measure in ("log loss", "Brier", "ECE"):
        scores = results.pivot_table(measure, "table", "method")
        for score in scores.to_numpy().ravel():
            if not np.isnan(score):  # a head that the blend leaves out
                assert f"{score:.4f}" in printed
                assert re.search(rf"^     - (\*\*)?{score:.4f}(\*\*)?$", rst, re.M)
    losses = results.pivot_table("log loss", "table", "method")
    assert (losses["CFLL"] < 0.5).all()
    ratio = np.exp(np.log(losses["MLP"] / losses["CFLL"]).mean())
    lower = (losses["MLP"] < losses["CFLL"]).sum()
    assert re.search(rf"^ *all, 2 +MLP .* {ratio:.3f} \({lower}\) ", printed, re.M)
    picture = tmp_path / "tables" / "calibration.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run_quickly(*arguments).endswith(printed[printed.index("relative to") :])
    assert path.read_text() == written
