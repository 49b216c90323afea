"""The examples in their quick mode: the numbers that they compute."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from linearmodels.iv import IV2SLS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_quickly(script, folder):
    """Run an example in this process; give what it computed and what it printed."""
    matplotlib.use("agg")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [script, "--quick"])
        patch.chdir(folder)
        computed = runpy.run_path(str(EXAMPLES / script))
    plt.close("all")
    picture = (folder / script).with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    return computed, printed.getvalue()


@pytest.fixture(scope="module")
def wide_networks(tmp_path_factory):
    return run_quickly("plot_ntk.py", tmp_path_factory.mktemp("wide_networks"))


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    return run_quickly("plot_landscape.py", tmp_path_factory.mktemp("landscape"))


# Wide networks ---------------------------------------------------------------------


def test_kernel_and_predictions_move_less_from_their_course_with_width(wide_networks):
    computed, printed = wide_networks
    runs, widths = computed["runs"], computed["WIDTHS"]
    medians = []
    for i in (0, 1):
        by_width = {width: [run[2][i] for run in runs[width]] for width in widths}
        medians.append([np.median(by_width[width]) for width in widths])
        assert (np.diff(medians[i]) < 0).all()
        assert computed["exponent"](by_width) < -0.5
    assert medians[0][-1] < 0.03
    assert medians[1][-1] < 0.02
    rows = re.findall(r"^(\d+) +(0\.\d{4}) +(0\.\d{4}) ", printed, re.M)
    shown = np.array(rows, dtype=float).T
    assert shown[0].tolist() == widths
    np.testing.assert_allclose(shown[1:], medians, atol=5.1e-5)


def test_a_wide_network_goes_to_zero_loss_as_its_kernel_foretells(wide_networks):
    computed, _ = wide_networks
    for losses, kernel_losses, (*_, rate, kernel_rate, _) in computed["runs"][256]:
        assert losses[0] == pytest.approx(kernel_losses[0], rel=1e-10)
        assert (np.diff(losses) < 0).all()
        assert losses[-1] < 2e-3 * losses[0]
        assert rate == pytest.approx(kernel_rate, rel=0.15)
        # Much closer than the loss falls, at every step.
        logarithms = np.log10(losses / kernel_losses)
        assert np.abs(logarithms).max() < 0.15 * np.log10(losses[0] / losses[-1])


def test_the_recursion_ends_at_the_rate_of_the_linearised_dynamics(wide_networks):
    computed, _ = wide_networks
    backbone = computed["WideBackbone"](64, seed=0)
    kernel = computed["tangent_kernel"](backbone)
    features = backbone(computed["inputs"]).detach()
    for _ in range(8):
        _, losses, features, head = computed["train_by_kernel"](features, kernel)
    limit = computed["limiting_rate"](kernel, features, head)
    assert computed["last_rate"](losses) == pytest.approx(limit, rel=0.05)
    assert losses[-1] < 1e-9


def test_the_kernel_is_that_of_the_parameters_gradients(wide_networks):
    computed, _ = wide_networks
    backbone = computed["WideBackbone"](16, seed=0)
    kernel = computed["tangent_kernel"](backbone)
    features = backbone(computed["inputs"])
    rows = [(0, 0), (0, 3), (5, 1)]
    gradients = []
    for sample, feature in rows:
        backbone.zero_grad()
        features[sample, feature].backward(retain_graph=True)
        parts = [parameter.grad.flatten() for parameter in backbone.parameters()]
        gradients.append(np.concatenate([part.numpy() for part in parts]))
    index = [sample * features.shape[1] + feature for sample, feature in rows]
    expected = np.array(gradients) @ np.array(gradients).T
    np.testing.assert_allclose(kernel[index][:, index], expected, rtol=1e-12)


# The landscape ---------------------------------------------------------------------


def test_the_floor_of_the_landscape_is_its_least_loss_at_each_theta(landscape):
    computed, _ = landscape
    loss_at, best_weight = computed["loss_at"], computed["best_weight"]
    for theta in computed["grid"][::500]:
        best = best_weight(theta)
        for step in (-1e-3, 1e-3):
            assert loss_at(theta, best + step) > loss_at(theta, best)
    theta = computed["best_theta"]
    # Both weights are decayed alike, so that they are equal at the minimum.
    best = best_weight(computed["grid"].new_tensor(theta)).item()
    assert best == pytest.approx(theta, abs=2e-3)


def test_the_closed_form_descends_along_the_floor(landscape):
    computed, _ = landscape
    for side in computed["STARTS"]:
        path = computed["paths"]["closed-form last layer", side]
        on_the_floor = path[1::2]
        theta = computed["grid"].new_tensor(on_the_floor[:, 0])
        best = computed["best_weight"](theta).numpy()
        np.testing.assert_allclose(on_the_floor[:, 1], best, rtol=1e-12)
        assert (np.diff(path[:, 2]) < 0).all()
        assert path[-1, 2] == pytest.approx(computed["lowest"], abs=1e-5)


def test_the_closed_form_takes_fewer_steps_and_larger_rates(landscape):
    computed, printed = landscape
    plain, closed = computed["METHODS"]
    steps, best = computed["steps"], computed["best"]
    assert steps[plain, "left"] is None
    assert steps[closed, "left"] < 40
    assert steps[closed, "right"] < steps[plain, "right"] < 100
    assert best[closed, "right"][0] > best[plain, "right"][0]
    assert best[closed, "right"][1] < best[plain, "right"][1]
    assert re.search(r"^end to end +left +not in 300 +not in 300$", printed, re.M)
    count = steps[closed, "left"]
    assert re.search(rf"^closed-form last layer +left +{count} ", printed, re.M)


# Error bars ------------------------------------------------------------------------


def test_error_bars_widen_where_no_rows_are(tmp_path):
    computed, printed = run_quickly("plot_error_bars.py", tmp_path)
    spread = {
        float(place): float(value)
        for place, value in re.findall(
            r"^standard deviation at +(-?[\d.]+): ([\d.]+)$", printed, re.M
        )
    }
    assert spread[-1.0] < spread[1.25] < spread[5.0]
    assert spread[-1.0] == pytest.approx(computed["model"].noise_, rel=0.1)
    # Both are means over 5,000 rows; the calibration rows are 40 and 200.
    assert computed["share"] == pytest.approx(0.9, abs=0.12)
    assert computed["calibrated"] == pytest.approx(0.9, abs=0.065)
    assert f"hold {100 * computed['share']:.1f} % of 5000 fresh rows" in printed


# Displays --------------------------------------------------------------------------


def test_displays_say_how_far_coverage_is_off(tmp_path):
    computed, printed = run_quickly("plot_displays.py", tmp_path)
    for name in ("conformal", "gaussian"):
        display = computed[name]
        gap = 100 * np.abs(display.coverage - display.nominal).max()
        line = f"{display.name}: coverage is off by {gap:.1f} points at most"
        assert line in printed
        # A share of 120 held-out rows, and one of 300 fresh ones: 5 points at one half.
        assert gap < 20
    model = computed["model"]
    assert computed["path"].alpha == model.alpha_[0]
    assert computed["training"].best_epoch <= model.n_iter_
    assert len(computed["bars"].y_true) == 300


# Streams and new targets -------------------------------------------------------------


@pytest.fixture(scope="module")
def new_targets(tmp_path_factory):
    return run_quickly("plot_new_targets.py", tmp_path_factory.mktemp("new_targets"))


@pytest.fixture(scope="module")
def drifting_stream(tmp_path_factory):
    return run_quickly("plot_streaming.py", tmp_path_factory.mktemp("streaming"))


def test_trained_features_serve_targets_that_they_were_not_trained_on(new_targets):
    computed, printed = new_targets
    medians = {name: np.median(values) for name, values in computed["scores"].items()}
    linear, untrained, trained = medians.values()
    assert trained > untrained + 0.1 > linear + 0.1
    assert computed["many"].predict(computed["X_test"]).shape[1] == 50
    assert f"{trained:5.2f}" in printed


def test_forgetting_follows_a_drift(drifting_stream):
    computed, _ = drifting_stream
    last = {name: np.mean(errors[-5:]) for name, errors in computed["errors"].items()}
    still, alike, forgetful = last.values()
    assert forgetful < 0.5 * alike < 0.5 * still
    for errors in computed["errors"].values():
        assert np.mean(errors[:10]) < 0.03


# Instruments -------------------------------------------------------------------------


def test_demand_is_fitted_by_four_methods_of_which_instruments_help(tmp_path):
    computed, printed = run_quickly("plot_iv_demand.py", tmp_path)
    errors = computed["errors"]
    assert list(errors) == [
        *("CFLLIVRegressor", "CFLLRegressor", "2SLS, polynomials", "full batch"),
    ]
    truth = computed["truth"]
    assert errors["CFLLIVRegressor"] < 0.5 * truth.var()
    for name, error in errors.items():
        predicted = computed["predictions"][name](computed["grid"])
        assert np.mean((predicted - truth) ** 2) == pytest.approx(error)
        assert re.search(rf"^{name} +{error:.0f} +\d+\.\d$", printed, re.M)
    assert "Durbin-Wu-Hausman" in printed


def test_fertility_has_the_effect_of_two_stage_least_squares(tmp_path):
    computed, printed = run_quickly("plot_iv_fertility.py", tmp_path)
    X, Z, y = (computed[name] for name in "XZy")
    own = X.drop(columns="third child").assign(constant=1.0)
    exact = IV2SLS(y, own, X["third child"], Z).fit(cov_type="robust")
    effect, error = computed["effects"]["two-stage least squares"]
    assert effect == pytest.approx(exact.params["third child"], rel=1e-6)
    assert error == pytest.approx(exact.std_errors["third child"], rel=1e-3)
    assert f"{effect:7.2f} weeks, standard error {error:.2f}" in printed
    mean, spread = computed["effects"]["CFLLIVRegressor, mean effect"]
    assert mean == pytest.approx(
        computed["difference"](computed["model"], computed["some"]).mean()
    )
    assert spread == pytest.approx(np.std(computed["means"], ddof=1))
