"""The examples run in their quick mode, and print what they promise."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sklearn_cfll import ClosedFormHead

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


# Rules for prox --------------------------------------------------------------------


@pytest.fixture(scope="module")
def prox_rules():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES / "benchmarks")
        return runpy.run_path(str(EXAMPLES / "benchmarks" / "prox_rules.py"))


def proximal_head(features, targets, weight, bias, prox):
    head = ClosedFormHead(features.shape[1], targets.shape[1])
    head.weight, head.bias = weight, bias
    return head.update_(features, targets, alpha=0.3, prox=prox)


@pytest.fixture(params=[(7, 12, 2), (20, 5, 1)], ids=["few rows", "many rows"])
def batch(request):
    n_rows, n_features, n_outputs = request.param
    generator = torch.Generator().manual_seed(0)
    sizes = [(n_rows, n_features), (n_rows, n_outputs), (n_features, n_outputs)]
    parts = [torch.randn(s, generator=generator).double() for s in sizes]
    return (parts[0] + 0.5, *parts[1:], torch.ones(n_outputs).double())


def test_gcv_is_that_of_the_heads_that_the_update_solves(prox_rules, batch):
    features, targets, weight, bias = batch
    prox = torch.tensor([0.1, 1.0, 30.0, 1e4]).double()
    residual = targets - features @ weight - bias
    errors = prox_rules["cross_validate"](features, residual, weight, 0.3, prox)["GCV"]
    n_rows, n_features = features.shape
    unit = torch.eye(n_rows).double()
    zero = torch.zeros(n_features, n_rows).double(), torch.zeros(n_rows).double()
    for error, value in zip(errors, prox.tolist(), strict=True):
        left = targets - proximal_head(features, targets, weight, bias, value)(features)
        hat = proximal_head(features, unit, *zero, value)(features)
        expected = left.square().mean() / (1 - hat.trace() / n_rows) ** 2
        torch.testing.assert_close(error, expected, rtol=1e-10, atol=0)


def test_leave_one_out_is_what_solutions_without_a_row_leave_of_it(prox_rules, batch):
    features, targets, weight, bias = batch
    prox = torch.tensor([0.1, 30.0]).double()
    residual = targets - features @ weight - bias
    errors = prox_rules["cross_validate"](features, residual, weight, 0.3, prox)["LOO"]
    rows = torch.nn.functional.pad(features, (0, 1), value=1.0)
    last = torch.cat([weight, bias[None]])
    scale = rows.square().mean() * len(rows)  # of all rows: a row less changes no pull
    ridge = 0.3 * torch.ones(len(last)).double()
    ridge[-1] = 0
    for error, value in zip(errors, prox, strict=True):
        pull = scale * value
        left = []
        for i in range(len(rows)):
            kept = torch.arange(len(rows)) != i
            matrix = rows[kept].T @ rows[kept] + torch.diag(scale * ridge + pull)
            side = rows[kept].T @ targets[kept] + pull * last
            left.append(targets[i] - rows[i] @ torch.linalg.solve(matrix, side))
        expected = torch.stack(left).square().mean()
        torch.testing.assert_close(error, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("criterion", ["GCV", "LOO"])
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_the_choice_of_the_batch_is_followed_at_the_rate(
    prox_rules, batch, criterion, rate
):
    features, targets, weight, bias = batch
    head = ClosedFormHead(*weight.shape)
    head.weight, head.bias = weight, bias
    grid = prox_rules["GRID"]
    residual = targets - head(features)
    errors = prox_rules["cross_validate"](features, residual, weight, 0.3, grid)
    choice = float(grid[errors[criterion].argmin()])
    update = prox_rules["BatchChoiceUpdate"](criterion, rate, alpha=0.3)
    update.update_(head, features, targets)
    assert update.prox == pytest.approx(choice**rate)
    expected = proximal_head(features, targets, weight, bias, update.prox)
    torch.testing.assert_close(head.weight, expected.weight)


def test_prox_rules_prints_each_rule_by_table(tmp_path):
    printed = run_quickly("benchmarks/prox_rules.py", tmp_path, "--output", "runs.csv")
    runs = pd.read_csv(tmp_path / "runs.csv")
    rules = ["(1, 100)", '"auto"', "GCV", "GCV, 0.1", "LOO", "LOO, 0.1"]
    assert runs["table"].tolist() == ["diabetes"] * 6 + ["breast_cancer"] * 6
    assert runs["rule"].tolist() == rules * 2
    assert (runs["error"] < 1).all()
    error = runs.pivot_table("error", "table", "rule")
    ratios = error.div(error["(1, 100)"], axis=0)
    for rule in rules:
        mean = np.exp(np.log(ratios[rule]).mean())
        assert re.search(rf"^{re.escape(rule)} +{mean:.4f} ", printed, re.M)
    for table in error.index:
        cells = " +".join(f"{error.loc[table, rule]:.4f}" for rule in rules)
        assert re.search(rf"^{table} +{cells}$", printed, re.M)


def test_prox_choices_prints_the_median_of_each_choice(tmp_path):
    printed = run_quickly("benchmarks/prox_choices.py", tmp_path, "--output", "all.csv")
    found = pd.read_csv(tmp_path / "all.csv")
    medians = found.groupby(["table", "epochs", "rows"]).median(numeric_only=True)
    assert len(medians) == 8
    for table in ("diabetes", "breast_cancer"):
        shown = printed[printed.index(table) :].splitlines()
        for line, epochs in zip(shown, ("first", "later"), strict=False):
            parts = [medians.loc[table, epochs, r] for r in ("trained on", "held out")]
            cells = [f"{p[c]:.2f}" for p in parts for c in ("GCV", "LOO", "best")]
            assert line.split()[-7:] == [epochs, *cells]
