"""The examples run in their quick mode, and print what they promise."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sklearn_cfll import ClosedFormHead, ProximalUpdate
from sklearn_cfll.functional import Moments, RidgePath, kfold_residuals

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


@pytest.fixture
def benchmark_module(monkeypatch):
    """Import a file of the benchmarks, which find each other in their own folder."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    return importlib.import_module


def test_quickstart_prints_scores_and_saves_a_picture(tmp_path):
    printed = run_quickly("plot_quickstart.py", tmp_path)
    scores = re.findall(r"(0\.\d{4}) +(\d+) dollars +(\d+\.\d)$", printed, re.M)
    r2, error, _ = map(float, scores[0])
    assert len(scores) == 2
    assert r2 > 0.9
    assert error < 600
    assert (tmp_path / "plot_quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_step_cost_counts_operations_and_measures(tmp_path):
    printed = run_quickly("benchmarks/step_cost.py", tmp_path, "--output", "cost")
    results = pd.read_csv(tmp_path / "cost" / "step_cost.csv")
    points = results[["Batch", "Features", "Outputs"]].to_numpy().tolist()
    assert points == [[32, 16, 1], [32, 256, 1], [256, 16, 1], [256, 256, 1]]
    over = results["CFLL / AdamW"] / results["Count"]
    np.testing.assert_allclose(results["Over count"], over)
    assert (results["AdamW, us"] > 0).all()
    parts = results.loc[:, "Forward, backward":]
    assert parts.shape[1] == 7
    np.testing.assert_allclose(parts.sum(axis=1), 100)
    assert (parts > 0).all(axis=None)
    rst = (tmp_path / "cost" / "step_cost.rst").read_text()
    for ratio in results["CFLL / AdamW"]:
        assert f" {ratio:.2f} " in printed
        assert f"     - {ratio:.2f}\n" in rst
    picture = (tmp_path / "cost" / "step_cost.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_step_cost_counts_what_a_step_multiplies(benchmark_module):
    count = benchmark_module("step_cost").count_operations
    # By hand: 3 columns, 5 units twice, a batch of 7, 2 outputs.
    layers = 2 * 7 * np.array([3 * 5, 5 * 5, 5 * 2])
    plain = 2 * layers[0] + 3 * layers[1] + 3 * layers[2]
    matrix = 7 * 5**2 + 5**3 / 3
    head = 2 * layers[2] + matrix + 2 * layers[2] + 2 * 5**2 * 2
    expected = [plain, 2 * layers[0] + 3 * layers[1] + head, plain + matrix]
    counted = count(columns=3, width=5, depth=2, batch_size=7, n_outputs=2)
    np.testing.assert_allclose(counted, expected)


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


def test_defaults_compares_settings_and_keeps_each_fit(tmp_path):
    printed = run_quickly("benchmarks/defaults.py", tmp_path, "--output", "fits.jsonl")
    lines = (tmp_path / "fits.jsonl").read_text().splitlines()
    fits = pd.DataFrame([json.loads(line) for line in lines])
    assert fits["setting"].tolist() == ["default", "width=128"] * 2
    errors = fits["error"].clip(lower=1e-3).to_numpy().reshape(2, 2)
    ratios = errors[:, 1] / errors[:, 0]
    assert re.search(rf"^diabetes +1\.0 +{ratios[0]:.2g}", printed, re.M)
    mean = np.exp(np.log(ratios).mean())
    assert float(re.search(r"^width=128 +(\S+)", printed, re.M)[1]) == pytest.approx(
        mean, abs=1e-3
    )
    again = run_quickly("benchmarks/defaults.py", tmp_path, "--output", "fits.jsonl")
    assert again == printed
    assert (tmp_path / "fits.jsonl").read_text().splitlines() == lines


def test_cheaper_heads_compares_every_setting_and_runs_none_twice(tmp_path):
    settings = ["default", "last layer of 64", "half of the rows", "every 4th step"]
    arguments = ["--output", "fits.jsonl", "--report", "tables", "--settings"]
    arguments = ["benchmarks/cheaper_heads.py", tmp_path, *arguments, *settings]
    printed = run_quickly(*arguments)
    fits = pd.read_json(tmp_path / "fits.jsonl", lines=True)
    assert fits["setting"].tolist() == settings * 2
    seconds = fits.pivot_table("seconds", "setting", "table")
    ratio = np.exp(np.log(seconds / seconds.loc["default"]).mean(axis=1))
    rst = (tmp_path / "tables" / "cheaper_heads.rst").read_text()
    for name in settings[1:]:
        assert f"{ratio[name]:.3f}" in rst.split(f"   * - {name}\n")[1]
    assert run_quickly(*arguments) == printed


def test_rules_of_cheaper_heads_see_fewer_rows_and_steps(benchmark_module):
    module = benchmark_module("cheaper_heads")
    features, targets = torch.randn(40, 3), torch.randn(40, 1)
    part, whole, few = (ClosedFormHead(3, 1) for _ in range(3))
    module.PartOfRows(1 / 4).update_(part, features, targets)
    ProximalUpdate().update_(whole, features[:10], targets[:10])
    assert torch.equal(part.weight, whole.weight)
    rule = module.FewSteps(3)
    rule.start_(few, features, targets)
    moved = []
    for _ in range(7):
        before = few.weight.clone()
        rule.update_(few, features, targets)
        moved.append(not torch.equal(before, few.weight))
    assert moved == [True, False, False] * 2 + [True]


def test_fields_takes_the_best_rate_and_runs_nothing_twice(tmp_path):
    arguments = ["benchmarks/fields.py", tmp_path, "--output", "fields.jsonl"]
    shorter = run_quickly(*arguments, "--short", "1")
    lines = (tmp_path / "fields.jsonl").read_text().splitlines()
    errors = {
        tuple(row["key"][5:]): row["curve"]["errors"][-1]
        for row in map(json.loads, lines)
        if row["key"][4] == 2
    }
    rates = (1e-3, 3e-3, 1e-2, 3e-2)
    printed = run_quickly(*arguments)
    for method in ("package", "trainer", "adamw", "adamw, log"):
        best = min(rates, key=lambda rate: errors[method, 0, rate, "validation"])
        error = errors[method, 0, best, "test"]
        assert re.search(rf"^{method} +{best:g} +{error:.5f} ", printed, re.M)
        ratio = errors["closed form", 0, 0.01, "test"] / error
        assert f"closed form / {method}: error {ratio:.3f}, " in printed
        assert f"error of {method}: " in shorter
    assert (tmp_path / "fields.jsonl").read_text().splitlines() == lines
    assert len(lines) == 4 * 5 + 2


def test_grid_memory_tells_the_size_of_the_features_and_the_peak(tmp_path):
    printed = run_quickly("benchmarks/grid_memory.py", tmp_path)
    heading, *lines = printed.splitlines()
    assert re.split(" {2,}", heading.strip()) == [
        "samples",
        "X and y, MB",
        "features, MB",
        "peak, MB",
    ]
    rows = [list(map(float, line.split())) for line in lines]
    assert [row[0] for row in rows] == [1000, 2000]
    for n_samples, data, features, peak in rows:
        assert data == pytest.approx(n_samples * 2 * 32 * 4 / 1e6, abs=0.05)
        assert features == pytest.approx(n_samples * 32 * 64 * 4 / 1e6, abs=0.05)
        assert np.isnan(peak) or 0 < peak < 200


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


def test_rate_range_writes_the_ranges_that_its_runs_imply(tmp_path):
    printed = run_quickly("benchmarks/rate_range.py", tmp_path, "--output", "tables")
    folder = tmp_path / "tables"
    runs = pd.read_csv(folder / "rate_range.csv")
    assert runs.groupby(["table", "optimizer", "method"])["rate"].nunique().eq(3).all()
    assert runs.groupby(["table", "optimizer"]).ngroups == 4
    errors = runs.pivot(
        index=["table", "optimizer", "rate"], columns="method", values="error"
    )
    assert (errors["CFLL"] < 1).all()
    assert (errors["end to end, refitted"] < errors["end to end"]).mean() > 0.5
    assert "CFLL runs that recovered: 0 of 12" in printed
    rst = (folder / "rate_range.rst").read_text()
    for _, curve in runs.groupby(["table", "optimizer", "method"]):
        least = curve.loc[curve["error"].idxmin()]
        cell = f"{least['error']:.4f} at {least['rate']:g}"
        assert cell in printed
        assert f"     - {cell}\n" in rst
        low, high = dense_range(curve["rate"], curve["error"], 1.05 * least["error"])
        assert f"{np.log10(high / low):.2f} ({low:.2g} to {high:.2g}, x " in rst
    assert (folder / "rate_range.png").read_bytes().startswith(b"\x89PNG")


def dense_range(rates, errors, limit, points=2_000_001):
    """Walk from the best rate along a dense grid as long as the error is in the limit.

    An infinite error is reached at once on leaving the rate beside it.
    """
    logs = np.log10(np.asarray(rates))
    errors = np.nan_to_num(np.asarray(errors), posinf=1e30)
    grid = np.linspace(logs[0], logs[-1], points)
    grid = np.sort(np.concatenate([grid, logs]))
    inside = np.interp(grid, logs, errors) <= limit
    best = np.searchsorted(grid, logs[errors.argmin()])
    outside = np.flatnonzero(~inside)
    first = outside[outside < best].max(initial=-1) + 1
    last = outside[outside > best].min(initial=len(grid)) - 1
    return 10 ** grid[first], 10 ** grid[last]


@pytest.mark.parametrize("n_diverged", [0, 2])
@pytest.mark.parametrize("seed", range(5))
def test_a_range_of_rates_is_where_the_interpolated_error_is_small(
    benchmark_module, seed, n_diverged
):
    rates_within = benchmark_module("_ranges").rates_within
    rng = np.random.default_rng(seed)
    rates = 10.0 ** np.linspace(-3, 0, 7)
    errors = 1 + 0.2 * rng.random(7)
    errors[7 - n_diverged :] = np.inf
    limit = 1.05 * errors.min()
    low, high, cut = rates_within(rates, errors, limit)
    assert (low, high) == pytest.approx(dense_range(rates, errors, limit), rel=2e-5)
    assert cut == (low == rates[0] or high == rates[-1])


def test_no_rate_is_within_a_limit_below_the_best_or_where_all_diverge(
    benchmark_module,
):
    rates_within = benchmark_module("_ranges").rates_within
    rates = np.array([0.1, 1.0])
    for errors, limit in ([2.0, 3.0], 1.9), ([np.inf, np.inf], np.inf):
        low, high, cut = rates_within(rates, np.array(errors), limit)
        assert np.isnan([low, high]).all()
        assert not cut


def test_runs_that_diverge_have_an_infinite_error(benchmark_module):
    script, common = benchmark_module("rate_range"), benchmark_module("_common")
    split = common.split_table(common.load_table("diabetes"), 200)
    error, recoveries = script.run_cfll(split, "adamw", 1e30, 2, 0)
    assert error == np.inf
    assert np.isnan(recoveries)
    network = common.build_network(split, 0)
    errors = script.run_end_to_end(network, split, "sgd", 1e6, 32, 1, 0)
    assert errors == (np.inf, np.inf)


def test_the_refitted_head_is_no_worse_on_the_validation_rows(benchmark_module):
    script, common = benchmark_module("rate_range"), benchmark_module("_common")
    split = common.split_table(common.load_table("breast_cancer"))
    network = common.build_network(split, 0)
    run = common.train_end_to_end(network, split, 1e-4, batch_size=32, epochs=1)
    X, y = split.validation
    before, after = (
        common.errors(common.predict_in_batches(each, X), y, split.task)[0]
        for each in (run.network, script.refit_head(run.network, split))
    )
    assert after < 0.9 * before


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


def test_growth_measures_each_fit_and_gives_the_exponent_in_rows(tmp_path):
    printed = run_quickly("benchmarks/growth.py", tmp_path, "--output", "tables")
    folder = tmp_path / "tables"
    runs = pd.read_csv(folder / "growth.csv")
    counts = {"rows": 4, "outputs": 1, "classes": 1, "features": 1}
    assert runs["sweep"].value_counts().to_dict() == counts
    assert (runs[["processor", "wall"]] > 0).all(axis=None)
    assert not (runs["peak"] > 500).any()
    rst = (folder / "growth.rst").read_text()
    for seconds in runs["processor"]:
        assert f"     - {seconds:.1f}\n" in rst
    for task in ("regression", "classification"):
        own = runs[(runs["sweep"] == "rows") & (runs["task"] == task)]
        logs = np.log(own[["size", "processor"]].to_numpy())
        gaps = logs - logs.mean(0)
        slope = gaps.prod(1).sum() / (gaps[:, 0] ** 2).sum()
        assert f"{task}: {slope:.2f}, nan" in printed
    again = run_quickly("benchmarks/growth.py", tmp_path, "--output", "tables")
    assert printed.endswith(again)  # measured once, reported twice
    assert (folder / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_peak_of_memory_is_what_the_call_held_at_most(benchmark_module):
    def hold(megabytes):
        np.ones(megabytes * 125_000).sum()
        np.ones(125_000).sum()

    measure = benchmark_module("_memory").measure
    small, large = (measure(lambda size=size: hold(size))["peak"] for size in (1, 200))
    if not np.isnan(small):  # where the system counts it
        assert small < 20
        assert 190 < large < 220


def test_predict_relates_each_call_to_the_faster_bare_one(tmp_path):
    printed = run_quickly("benchmarks/predict.py", tmp_path, "--output", "tables")
    folder = tmp_path / "tables"
    results = pd.read_csv(folder / "predict.csv")
    assert results["rows"].tolist() == [1, 100, 3_000]
    rst = (folder / "predict.rst").read_text()
    for _, row in results.iterrows():
        bare = min(row["bare, in chunks"], row["bare, one call"])
        seconds = row["regressor, predict"]
        cell = f"{1e6 * seconds:,.0f}, x {seconds / bare:.2f}"
        assert cell in printed
        assert f"     - {cell}\n" in rst
    assert (folder / "predict.png").read_bytes().startswith(b"\x89PNG")


def test_stress_ends_in_fits_and_documented_refusals(tmp_path):
    printed = run_quickly("benchmarks/stress.py", tmp_path)
    counts = dict(re.findall(r"^(\w[\w ]*?) +(\d+)$", printed, re.M))
    counts = {name: int(count) for name, count in counts.items()}
    assert counts["fitted"] + counts["recovered"] + counts["refused"] == 20
    assert counts["fitted"] >= 15
    bad = ("not finite", "worse than the mean", "crashed")
    assert [counts[name] for name in bad] == [0, 0, 0]


def test_solve_precision_tells_the_errors_of_each_scheme(tmp_path):
    printed = run_quickly("benchmarks/solve_precision.py", tmp_path)
    worst = printed.partition("worst of all conditions")[2]
    rows = re.findall(
        r"^ *([\d.]+) +([\d.]+) " + 3 * r" +(\d\.\de-\d\d)" + "$", worst, re.M
    )
    # All of five values of prox and three of alpha, but for no penalty at all.
    assert len(rows) == 14
    for prox, _, *errors in rows:
        float32, mixed, float64 = map(float, errors)
        if float(prox) >= 0.1:
            assert 1e-9 < float32 < 1e-5
        # The quick look is at small batches, whose solves are in float64.
        assert float64 <= mixed < 1e-11
        assert float64 < 1e-11


def test_coverage_writes_what_its_intervals_hold(tmp_path):
    printed = run_quickly(
        "benchmarks/coverage.py", tmp_path, "--no-mapie", "--output", "tables"
    )
    results = pd.read_csv(tmp_path / "tables" / "coverage.csv")
    methods = ["held out", "calibrated", "Gaussian", "Gaussian, leave-one-out"]
    assert sorted(results["method"].unique()) == sorted(methods)
    means = results.groupby("method")[["coverage", "width"]].mean()
    assert means.loc[["held out", "calibrated"], "coverage"].between(0.8, 1).all()
    rst = (tmp_path / "tables" / "coverage.rst").read_text()
    for method in methods:
        share, width = means.loc[method]
        cell = f"{100 * share:.1f} / {width:.3f}"
        assert cell in printed
        assert f"     - {cell}\n" in rst
        gap = 100 * (share - 0.9)
        line = rf"^{method} +{gap:.2f} +{abs(gap):.2f}$"
        assert re.search(line, printed, re.M)


def test_gaussian_intervals_hold_as_much_of_the_draws_as_they_should(benchmark_module):
    script, common = benchmark_module("coverage"), benchmark_module("_common")
    split = common.split_table(common.load_table("diabetes"))
    model = script.CFLLRegressor(max_epochs=2, random_state=0).fit(*split.train)
    X = split.test[0]
    low, high = script.gaussian(model, X, 0.8).T[..., None]
    draws = model.sample_y(X, 2_000)
    assert np.mean((low < draws) & (draws < high)) == pytest.approx(0.8, abs=0.01)


def test_leave_one_out_prints_its_cost_in_solves(tmp_path):
    printed = run_quickly("benchmarks/leave_one_out.py", tmp_path, "--output", "tables")
    rows = re.findall(r"^ *500 +64 +(\d+) +(\d+\.\d) +(-?\d+\.\d\d)$", printed, re.M)
    assert [outputs for outputs, _, _ in rows] == ["1", "10"]
    rst = (tmp_path / "tables" / "leave_one_out.rst").read_text()
    for row in rows:
        assert "".join(f"     - {cell}\n" for cell in row) in rst


def test_leave_one_out_of_the_benchmark_is_that_of_refits(benchmark_module):
    script = benchmark_module("leave_one_out")
    generator = torch.Generator().manual_seed(0)
    features, targets = (
        torch.randn(30, n, generator=generator, dtype=torch.float64) for n in (4, 2)
    )
    weight, errors = script.leave_one_out(features, targets)
    path = RidgePath(Moments.of(features, targets))
    for alpha, error in zip(script.ALPHAS, errors, strict=True):
        residual = kfold_residuals(path, features, targets, torch.arange(30), alpha)
        torch.testing.assert_close(error, residual.square().mean(0))
    best = torch.stack(errors).argmin(0)
    for output, index in enumerate(best):
        expected = script.solve(features, targets, script.ALPHAS[index])
        torch.testing.assert_close(weight[:, output], expected[:, output])


def test_streaming_predicts_each_chunk_before_it_is_learnt(tmp_path, benchmark_module):
    printed = run_quickly("benchmarks/streaming.py", tmp_path, "--output", "stream")
    results = pd.read_csv(tmp_path / "stream" / "streaming_100.csv")
    assert sorted(set(results["method"])) == sorted(
        ["auto", "one pass", "frozen", "MLP", "linear"]
    )
    assert np.isfinite(results[["all", "late"]]).all(axis=None)
    assert "diabetes" in (tmp_path / "stream" / "streaming_100.rst").read_text()
    assert "ratios to auto" in printed

    streaming = benchmark_module("streaming")
    X, y = np.ones((30, 2)), np.repeat([0.0, 1.0, 0.0], 10)

    class Last:
        value = None

        def learn(self, X, y):
            self.value = y.mean()

        def predict(self, X):
            return np.full(len(X), self.value)

    split = argparse.Namespace(name="steps", task="regression", train=(X, y))
    arguments = argparse.Namespace(chunk=10, settings={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "make", lambda *_: Last())
        row = streaming.measure(split, 0, "auto", arguments)
    assert row["all"] == pytest.approx(1 / y.var())


def test_iv_compares_all_methods_and_fits_nothing_twice(tmp_path):
    arguments = ["benchmarks/iv.py", tmp_path, "--output", "tables"]
    printed = run_quickly(*arguments)
    lines = (tmp_path / "iv.jsonl").read_text().splitlines()
    fits = pd.DataFrame(map(json.loads, lines))
    plain = fits[fits["rho"].isna()].set_index(["design", "method"])["error"]
    assert plain.groupby("design").size().to_dict() == {"C": 8, "M": 8}
    assert np.isfinite(fits["error"]).all()
    for name in ("polynomials", "linear"):
        assert (plain[:, "2SLS, best degree"] <= plain[:, f"2SLS, {name}"]).all()
    assert plain["M", "2SLS, polynomials"] < plain["M", "2SLS, linear"]
    rst = (tmp_path / "tables" / "iv_tables.rst").read_text()
    for error in fits["error"]:
        shown = f"{error:.0f}" if error >= 100 else f"{error:.3g}"
        assert f"{shown} ({shown} to {shown})" in printed
        assert f"     - {shown} ({shown} to {shown})\n" in rst
    picture = (tmp_path / "tables" / "iv.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    again = run_quickly(*arguments)
    assert (tmp_path / "iv.jsonl").read_text().splitlines() == lines
    assert again in printed


def test_designs_of_iv_have_the_structural_function_that_they_say(benchmark_module):
    designs = benchmark_module("_iv_designs").DESIGNS
    for name in [*sorted(set(designs) - {"S", "C", "L"}), "L"]:
        data = designs[name][1](20_000, 0)
        # Instruments and covariates are exogenous, treatments aren't.
        fresh = designs[name][1](20_000, 1)
        assert data.X_test.shape == (3_000, data.X.shape[1])
        assert not np.array_equal(data.X_test, fresh.X_test)
    coefficients = np.linalg.lstsq(
        np.column_stack([np.ones(3_000), data.X_test]), data.structural
    )[0]
    np.testing.assert_allclose(coefficients, [1, 1, -2, 0.5, 1.5], atol=1e-9)
    error = data.y - np.column_stack([np.ones(20_000), data.X]) @ coefficients
    own = np.column_stack([data.instruments, data.X[:, 2:]])
    assert abs(np.corrcoef(error, own, rowvar=False)[0, 1:]).max() < 0.03
    treatments = np.corrcoef(error, data.X[:, :2], rowvar=False)[0, 1:]
    assert (treatments > 0.2).all()


def test_polynomials_of_iv_are_two_stage_least_squares(benchmark_module):
    peers = benchmark_module("_iv_peers")
    data = benchmark_module("_iv_designs").DESIGNS["L"][1](300, 0)
    Z = np.column_stack([np.ones(300), data.instruments, data.X[:, 2:]])
    X = np.column_stack([np.ones(300), data.X])
    coefficients = np.linalg.solve(
        (projected := Z @ np.linalg.lstsq(Z, X)[0]).T @ X, projected.T @ data.y
    )
    rows = data.X_test[:20]
    expected = np.column_stack([np.ones(20), rows]) @ coefficients
    predict = peers.two_stage_linear(data, 0)
    np.testing.assert_allclose(predict(rows), expected, rtol=1e-7)
    # Of five columns there are 56 terms of the third degree, and 126 of the fourth.
    assert peers.possible_degrees(data) == [1, 2, 3]


def test_full_batch_of_iv_descends_and_leaves_the_global_seed(benchmark_module):
    peers = benchmark_module("_iv_peers")
    data = benchmark_module("_iv_designs").DESIGNS["M"][1](400, 0)
    state = torch.get_rng_state()
    few, many, again = (peers.FullBatch(data, 0, rounds=n) for n in (1, 40, 40))
    assert torch.equal(torch.get_rng_state(), state)
    errors = [
        np.mean((model.predict(data.X_test) - data.structural) ** 2)
        for model in (few, many)
    ]
    assert errors[1] < errors[0]
    np.testing.assert_array_equal(many.predict(data.X), again.predict(data.X))
