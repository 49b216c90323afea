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


def test_calibration_writes_the_log_loss_of_each_method(tmp_path):
    printed = run_quickly("benchmarks/calibration.py", tmp_path, "--output", "tables")
    results = pd.read_csv(tmp_path / "tables" / "calibration.csv")
    assert results["table"].unique().tolist() == ["digits", "breast_cancer"]
    losses = results.pivot_table("log loss", "table", "method")
    assert (losses["CFLL"] < 0.5).all()
    rst = (tmp_path / "tables" / "calibration.rst").read_text()
    for loss in losses.to_numpy().ravel():
        if not np.isnan(loss):  # a head that the blend leaves out
            assert f" {loss:.4f}" in printed
            assert f"     - {loss:.4f}\n" in rst
    ratio = np.exp(np.log(losses["MLP"] / losses["CFLL"]).mean())
    assert re.search(rf"^MLP +\d+\.\d+ +{ratio:.3f} ", printed, re.M)
