"""The examples run in their quick mode, and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_quickly(script, folder, *arguments):
    """Run an example as a user does; return what it printed."""
    finished = subprocess.run(
        [sys.executable, EXAMPLES / script, "--quick", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_quickstart_prints_scores_and_saves_a_picture(tmp_path):
    printed = run_quickly("plot_quickstart.py", tmp_path)
    scores = re.findall(r"(0\.\d{4}) +(\d+) dollars +(\d+\.\d)$", printed, re.M)
    r2, error, _ = map(float, scores[0])
    assert len(scores) == 2
    assert r2 > 0.9
    assert error < 600
    assert (tmp_path / "plot_quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_step_cost_counts_operations_and_measures(tmp_path):
    printed = run_quickly("benchmarks/step_cost.py", tmp_path)
    assert "counted: 109 and 148 MFLOP, ratio 1.36" in printed
    assert len(re.findall(r"[1-9]\d* microseconds a step$", printed, re.M)) == 3
    ratio, of_count = re.search(
        r"AdamW, fused: (\d+\.\d+), (\d+\.\d+) times the count", printed
    ).groups()
    assert abs(float(ratio) / 1.364 - float(of_count)) < 0.02


def test_time_to_quality_writes_a_row_for_each_table(tmp_path):
    printed = run_quickly(
        "benchmarks/time_to_quality.py", tmp_path, "--output", "tables"
    )
    results = pd.read_csv(tmp_path / "tables" / "time_to_quality.csv")
    assert results["table"].tolist() == ["diabetes", "breast_cancer"]
    assert results["outputs"].tolist() == [1, 1]
    assert results["AdamW wrong"].isna().tolist() == [True, False]
    reached = results[results["CFLL epochs"].notna()]
    assert (reached["CFLL error"] <= reached["AdamW error"]).all()
    assert (results["CFLL best error"] < 1).all()
    rst = (tmp_path / "tables" / "time_to_quality.rst").read_text()
    for error in results["AdamW error"]:
        assert f" {error:.4f} " in printed
        assert f"     - {error:.4f}\n" in rst
