"""The solvers of the examples on fields, and the examples in their quick mode."""

import re
import runpy
import sys

import numpy as np
import pytest
from test_examples import EXAMPLES, run_quickly

POINTS = np.arange(64) / 64


@pytest.fixture(scope="module")
def solvers():
    return runpy.run_path(str(EXAMPLES / "_fields.py"))


@pytest.fixture
def examples_path(monkeypatch):
    """Let an example find the modules beside it, as a script does."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "modules", sys.modules)


def cole_hopf(x, time, viscosity=0.01, offset=1.5):
    """Solve Burgers' equation by the heat equation for offset + cos(2 pi x)."""
    decay = np.exp(-4 * np.pi**2 * viscosity * time)
    slope = 4 * np.pi * viscosity * decay * np.sin(2 * np.pi * x)
    return slope / (offset + decay * np.cos(2 * np.pi * x))


def test_burgers_equation_is_solved_as_by_cole_and_hopf(solvers):
    x = np.arange(256) / 256
    start = np.stack([cole_hopf(x, 0), cole_hopf(x, 0, offset=1.2)])
    solved = solvers["solve_burgers"](start, time=1.0)
    exact = [cole_hopf(x, 1), cole_hopf(x, 1, offset=1.2)]
    np.testing.assert_allclose(solved, exact, atol=1e-7)


def test_the_steps_in_time_are_of_fourth_order(solvers):
    x = np.arange(128) / 128
    start = 5 * cole_hopf(x, 0)[None]
    finest = solvers["solve_burgers"](start, n_steps=3200)
    gaps = [
        np.abs(solvers["solve_burgers"](start, n_steps=n) - finest).max()
        for n in (50, 100)
    ]
    assert np.log2(gaps[0] / gaps[1]) == pytest.approx(4, abs=0.4)


def test_darcys_equation_is_solved_to_second_order(solvers):
    errors = []
    for n in (16, 32):
        centres = (np.arange(n) + 0.5) / n
        x, y = np.meshgrid(centres, centres, indexing="ij")
        exact = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
        along = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y)
        across = 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
        medium = 1 + x + y**2
        # -div(a grad u) of that u.
        force = 5 * np.pi**2 * medium * exact - along - 2 * y * across
        errors.append(np.abs(solvers["solve_darcy"](medium, force) - exact).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_what_flows_through_layers_in_series_sees_their_harmonic_mean(solvers):
    # Constant along one axis but for the edges; the middle line is nearly 1-D.
    n = 64
    medium = np.where(np.arange(n)[:, None] < n // 2, 1.0, 100.0) * np.ones((n, n))
    pressure = solvers["solve_darcy"](medium)
    steps = np.diff(pressure[:, n // 2])
    # The flux a du/dx is continuous across the jump.
    before, after = 1.0 * steps[n // 2 - 2], 100.0 * steps[n // 2 + 1]
    assert after == pytest.approx(before, rel=0.15)


def test_a_vortex_of_taylor_and_green_decays(solvers):
    wave = np.cos(2 * np.pi * POINTS)
    vortex = wave[:, None] * wave
    solved = solvers["solve_vorticity"](vortex[None], viscosity=0.01, time=1.0)
    np.testing.assert_allclose(solved[0], vortex * np.exp(-0.08 * np.pi**2), atol=1e-12)


def test_a_flow_without_viscosity_keeps_its_energy_and_enstrophy(solvers):
    start = solvers["random_fields"](
        (2, 64, 64),
        scale=20.0,
        decay=4.0,
        inverse_length=7.0,
        random=np.random.default_rng(0),
    )
    start -= start.mean((1, 2), keepdims=True)
    start *= 3 / start.std()
    end = solvers["solve_vorticity"](start, viscosity=0.0, time=0.5)
    waves = solvers["squared_waves"]((64, 64))
    inverse = 1 / np.where(waves > 0, waves, np.inf)
    for symbol in (1.0, inverse):  # enstrophy and energy, by Parseval's theorem
        first, last = (
            (symbol * np.abs(np.fft.fft2(field)) ** 2).sum((1, 2))
            for field in (start, end)
        )
        np.testing.assert_allclose(last, first, rtol=1e-3)
    assert np.abs(end - start).max() > 0.1 * np.abs(start).max()


def test_random_fields_have_their_covariance(solvers):
    settings = {"scale": 25.0, "decay": 2.0, "inverse_length": 5.0}
    random = np.random.default_rng(0)
    fields = solvers["random_fields"]((4000, 64), **settings, random=random)
    spectrum = np.mean(np.abs(np.fft.fft(fields)) ** 2, 0) / 64**2
    waves = (2 * np.pi * np.arange(6)) ** 2
    expected = 625.0 * (waves + 25) ** -2.0
    np.testing.assert_allclose(spectrum[:6], expected, rtol=0.1)


@pytest.mark.usefixtures("examples_path")
@pytest.mark.parametrize("script", ["plot_fno_burgers.py", "plot_fno_darcy.py"])
@pytest.mark.filterwarnings("ignore::UserWarning:neuralop")
def test_an_operator_is_trained_in_each_way(script, tmp_path):
    computed, printed = run_quickly(script, tmp_path)
    errors = re.findall(r"relative L2 (0\.\d{4}) after", printed)
    assert len(errors) == 3
    for name, shown in zip(computed["curves"], errors, strict=True):
        curve = computed["curves"][name][0]
        assert float(shown) == pytest.approx(curve["errors"][-1], abs=5.1e-5)
        assert (np.diff(curve["seconds"]) >= 0).all()
        assert curve["errors"][-1] < 1
    model, (X, y) = computed["model"], computed["test"]
    assert computed["relative_error"](model.predict(X), y) == pytest.approx(
        curve_of(computed)["errors"][-1]
    )
    assert computed["finer"][1].shape == model.predict(computed["finer"][0]).shape


def curve_of(computed):
    return computed["curves"]["closed-form last layer"][-1]
