"""The comparison of rules for prox: its criteria, its rule, its scripts."""

import re
import runpy

import numpy as np
import pandas as pd
import pytest
import torch
from test_benchmarks import EXAMPLES, run_quickly

from sklearn_cfll import ClosedFormHead


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
