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


def test_true_class_weight_scores_every_setting(tmp_path):
    printed = run_quickly(
        "benchmarks/true_class_weight.py", tmp_path, "--output", "scores"
    )
    results = pd.read_csv(tmp_path / "scores" / "true_class_weight.csv")
    assert results["setting"].tolist() == [
        *("k=1", "k=2", "k=5", "k=15"),
        *("M=30", "M=30, eps"),
    ]
    assert results["accuracy"].min() > 0.85
    scores = results.set_index("setting")[["accuracy", "log loss"]]
    for accuracy, loss in scores.to_numpy():
        assert f" {accuracy:.4f} / {loss:.4f} / " in printed
    # But for the optimizer's eps, the scale of the targets has no effect.
    difference = scores.loc["M=30, eps"] - scores.loc["k=1"]
    assert difference.abs().max() < 1e-6
    assert scores["log loss"].nunique() > 3
    line = (
        r"^k=5: better in accuracy on [01], in log loss on [01], in both on [01] of 1$"
    )
    assert re.search(line, printed, re.M)
    gain = scores.loc["k=5", "accuracy"] - scores.loc["k=1", "accuracy"]
    assert f"k=5: accuracy {gain:+.4f}, standard error" in printed


def test_paper_claims_compares_all_methods_and_saves_a_picture(tmp_path):
    printed = run_quickly("plot_paper_claims.py", tmp_path)
    head, *rows = printed.splitlines()[:5]
    assert head.split("  ")[0] == "table"
    assert [row.split()[:2] for row in rows] == [
        ["diabetes", "8"],
        ["diabetes", "264"],
        ["breast_cancer", "8"],
        ["breast_cancer", "341"],
    ]
    cells = [re.findall(r"(\d\.\d{4}) \+- (\d\.\d{4}) (0\.\d+)", row) for row in rows]
    assert [len(row) for row in cells] == [5] * 4
    assert {rate for row in cells for _, _, rate in row} <= {"0.003", "0.01", "0.03"}
    kalman = [float(row[-1][0]) for row in cells]
    assert max(kalman[:2]) < 0.8
    assert max(kalman[2:]) < 0.1
    picture = (tmp_path / "plot_paper_claims.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_stress_ends_in_fits_and_documented_refusals(tmp_path):
    printed = run_quickly("benchmarks/stress.py", tmp_path)
    counts = dict(re.findall(r"^(\w[\w ]*?) +(\d+)$", printed, re.M))
    counts = {name: int(count) for name, count in counts.items()}
    assert counts["fitted"] + counts["recovered"] + counts["refused"] == 20
    assert counts["fitted"] >= 15
    bad = ("not finite", "worse than the mean", "crashed")
    assert [counts[name] for name in bad] == [0, 0, 0]
