"""Each parameter has its effect; scores, diagnostics, files and pipelines."""

from __future__ import annotations

import inspect
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_instruments import IDENTITY, confounded, small, two_stage_least_squares
from torch import nn

from sklearn_cfll import CFLLIVRegressor, SmallMLP, TorchBackbone, load, save

X, Z, Y, F = confounded()

OTHER_VALUES = {
    "backbone": SmallMLP((5, 2)),
    "instrument_backbone": SmallMLP((7,), activation="tanh"),
    "covariate_backbone": SmallMLP((3,), linear=False),
    "endogenous": [1],
    "combine": "concatenate",
    "alpha": 10.0,
    "instrument_alpha": 10.0,
    "prox": 3.0,
    "instrument_prox": 3.0,
    "n_estimators": 1,
    "sample_splitting": True,
    "cov_type": "unadjusted",
    "optimizer": "sgd",
    "shrink_to": "zero",
    "lr": 0.005,
    "weight_decay": 1.0,
    "optimizer_params": {"betas": (0.5, 0.9)},
    "lr_schedule": "constant",
    "batch_size": 50,
    "max_epochs": 3,
    "validation_fraction": 0.0,
    "dtype": "float64",
    "random_state": 1,
}
WITHOUT_EFFECT = {"device", "verbose", "cov_type"}  # on predictions


def parameters():
    signature = inspect.signature(CFLLIVRegressor.__init__).parameters.values()
    return {p.name: p.default for p in signature if p.name != "self"}


@pytest.fixture(scope="module")
def fitted():
    return small().fit(X, Y, instruments=Z)


def test_every_parameter_is_tried():
    assert set(OTHER_VALUES) | {"device", "verbose"} == set(parameters())


@pytest.mark.filterwarnings("ignore:the instruments are weak for x1")  # as they are
@pytest.mark.parametrize("name", sorted(set(OTHER_VALUES) - WITHOUT_EFFECT))
def test_a_parameter_changes_the_fit(fitted, name):
    model = small(**{name: OTHER_VALUES[name]}).fit(X, Y, instruments=Z)
    difference = model.predict(X) - fitted.predict(X)
    assert np.abs(difference).max() > 1e-7


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_clone_keeps_a_parameter(name):
    value = OTHER_VALUES[name]
    copied = getattr(clone(CFLLIVRegressor(**{name: value})), name)
    if hasattr(value, "get_params"):
        assert type(copied) is type(value)
        value, copied = value.get_params(), copied.get_params()
        assert copied == value
    else:
        assert copied == value != parameters()[name]


def test_a_larger_alpha_makes_a_smaller_head():
    sizes = []
    for alpha in (0.01, 1.0, 100.0):
        model = small(alpha=alpha, shrink_to="zero")
        model.set_params(backbone=SmallMLP((6,), linear=False))
        model.set_params(covariate_backbone=SmallMLP((4,), linear=False))
        sizes.append(np.linalg.norm(model.fit(X, Y, instruments=Z).coef_))
    assert sizes == sorted(sizes, reverse=True)


def test_the_type_of_covariance_changes_the_errors_alone(fitted):
    model = small(cov_type="unadjusted").fit(X, Y, instruments=Z)
    f, deviation = model.predict(X, return_std=True)
    robust, other = fitted.predict(X, return_std=True)
    assert (f == robust).all()
    assert (deviation > 0).all()
    assert not np.allclose(deviation, other, rtol=1e-3)


def test_verbose_prints_a_line_an_epoch(capsys):
    small(verbose=1, max_epochs=3).fit(X, Y, instruments=Z)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("epoch 1, stage1_loss ")


@pytest.mark.parametrize(
    "endogenous",
    ["price", ["price"], 0, -2, [0], np.array([True, False]), [True, False]],
    ids=str,
)
def test_ways_to_name_the_endogenous_columns(endogenous):
    frame = pd.DataFrame(X, columns=["price", "time"])
    model = two_stage_least_squares(endogenous).fit(frame, Y, instruments=Z)
    assert model.endogenous_.tolist() == [0]
    other = two_stage_least_squares([0]).fit(X, Y, instruments=Z)
    assert_allclose(model.predict(frame), other.predict(X))


def test_small_mlp_refuses_widths_that_are_none():
    with pytest.raises(ValueError, match="widths must be one positive integer or sev"):
        small(backbone=SmallMLP((4, 0))).fit(X, Y, instruments=Z)


# Scores -----------------------------------------------------------------------------


def test_without_instruments_the_score_is_r2(fitted):
    weight = np.arange(len(X)) % 3
    assert fitted.score(X, F) == r2_score(F, fitted.predict(X))
    own = fitted.score(X, F, sample_weight=weight)
    assert own == r2_score(F, fitted.predict(X), sample_weight=weight)


def test_with_instruments_the_score_prefers_the_structural_function():
    own_X, own_Z, y, f = confounded(4000, seed=5)
    fitted = two_stage_least_squares([0], combine="product")
    fitted.fit(own_X, y, instruments=own_Z)

    def scores(prediction):
        fitted.predict = lambda X: prediction
        return fitted.score(own_X, y, instruments=own_Z), fitted.score(own_X, y)

    design = np.column_stack([np.ones(4000), own_X, np.abs(own_X)])
    confused = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    true, plain = scores(f), scores(confused)
    assert true[0] > 0.95 > plain[0] + 0.1
    assert plain[1] > true[1]  # the usual R2 is misled
    assert scores(np.full(4000, y.mean()))[0] == pytest.approx(0.0, abs=1e-9)


def test_the_score_weighs_rows(fitted):
    rows = np.arange(0, 400, 2)
    weight = (np.arange(400) % 2 == 0).astype(float)
    own = fitted.score(X, Y, instruments=Z, sample_weight=weight)
    half = fitted.score(X[rows], Y[rows], instruments=Z[rows])
    assert own == pytest.approx(half, rel=1e-6)


# Metadata routing -------------------------------------------------------------------


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_instruments_reach_a_step_of_a_pipeline(routing):
    model = two_stage_least_squares([0])
    model.set_fit_request(instruments=True).set_score_request(instruments=True)
    pipeline = make_pipeline(StandardScaler(), model).fit(X, Y, instruments=Z)
    alone = two_stage_least_squares([0]).fit(X, Y, instruments=Z)
    assert_allclose(pipeline.predict(X), alone.predict(X))
    assert_allclose(
        pipeline.score(X, Y, instruments=Z), alone.score(X, Y, instruments=Z)
    )


def test_a_grid_search_splits_the_instruments(routing):
    model = small(max_epochs=3, n_estimators=1)
    model.set_fit_request(instruments=True).set_score_request(instruments=True)
    grid = {"backbone__widths": [(4, 2), (8, 2)], "alpha": [1e-3, 100.0]}
    search = GridSearchCV(model, grid, cv=3, error_score="raise")
    search.fit(X, Y, instruments=Z)
    assert search.cv_results_["split2_test_score"].shape == (4,)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert np.isfinite(search.score(X, Y, instruments=Z))


def test_instruments_that_are_not_asked_for_are_refused(routing):
    pipeline = make_pipeline(StandardScaler(), small())
    with pytest.raises(
        sklearn.exceptions.UnsetMetadataPassedError, match="instruments"
    ):
        pipeline.fit(X, Y, instruments=Z)


# Diagnostics ------------------------------------------------------------------------


def test_weak_instruments_are_told():
    random = np.random.default_rng(3)
    weak = random.normal(size=(400, 1))
    message = (
        r"\Athe instruments are weak for x0 \(F .*\): the first stage's F is below"
    )
    with pytest.warns(UserWarning, match=message):
        model = two_stage_least_squares([0]).fit(X, Y, instruments=weak)
    assert model.diagnostics_["first_stage"]["x0"]["statistic"] < 10


def test_the_f_of_the_first_stage_is_robust_where_standard_errors_are():
    random = np.random.default_rng(3)
    z, noise = random.normal(size=(2, 400))
    x = (z * noise)[:, None]  # z tells how far x goes, not where to
    x += 0.15 * z[:, None]
    found = two_stage_least_squares(cov_type="unadjusted").fit(x, Y, instruments=z)
    assert found.diagnostics_["first_stage"]["x0"]["statistic"] > 10
    with pytest.warns(UserWarning, match=r"\Athe instruments are weak for x0 \(F "):
        found = two_stage_least_squares().fit(x, Y, instruments=z)
    assert found.diagnostics_["first_stage"]["x0"]["statistic"] < 10


def test_instruments_that_move_columns_by_one_combination_are_weak():
    random = np.random.default_rng(3)
    both = Z[:, [0]] + 0.5 * random.normal(size=(400, 2))
    message = (
        r"\Athe instruments are weak for the endogenous columns together, each of "
        r"which they predict by much the same combination: Cragg and Donald's "
        r"statistic is [\d.]+, below 10 \("
    )
    with pytest.warns(UserWarning, match=message):
        model = two_stage_least_squares().fit(both, Y, instruments=Z)
    found = model.diagnostics_
    assert min(test["statistic"] for test in found["first_stage"].values()) > 100
    assert found["cragg_donald"] < 10


@pytest.mark.filterwarnings("ignore:stage [12]")
def test_learnt_instruments_that_tell_nothing_are_weak():
    noise = np.random.default_rng(3).normal(size=(400, 2))
    curved = X.copy()
    curved[:, 0] = X[:, 1] ** 2 + np.random.default_rng(4).normal(size=400)
    with pytest.warns(UserWarning, match=r"\Athe instruments are weak for x0 \(F "):
        model = small(max_epochs=40, n_estimators=5).fit(curved, Y, instruments=noise)
    # The exogenous column predicts x0, which is no merit of the instruments.
    assert model.diagnostics_["first_stage"]["x0"]["partial_r2"] < 0.03


def test_memorised_rows_are_told():
    model = small(
        instrument_backbone=SmallMLP((256, 256)),
        max_epochs=150,
        lr=0.03,
        weight_decay=0.0,
        instrument_alpha=1e-5,
    )
    rows = slice(0, 320)
    message = r"\Astage 1 \(instruments to treatment\) leaves .* it has memorised rows"
    with pytest.warns(UserWarning, match=message):
        model.fit(X[rows], Y[rows], instruments=Z[rows])
    shares = model.diagnostics_["unexplained"]
    assert 2 * shares["train"]["stage1"] < shares["unseen"]["stage1"]


def test_diagnostics_are_of_unseen_rows_by_names_in_units_of_y():
    frame = pd.DataFrame(X, columns=["price", "time"])
    model = small(n_estimators=5).fit(frame, Y, instruments=Z)
    found = model.diagnostics_
    assert (found["rows"], found["n_rows"]) == ("held-out", 400)
    assert found["first_stage"]["price"]["statistic"] > 100
    assert found["durbin_wu_hausman"]["p_value"] < 1e-3
    tenfold = small(n_estimators=5).fit(frame, 10 * Y, instruments=Z).diagnostics_
    ratio = tenfold["non_iv_difference"] / found["non_iv_difference"]
    assert ratio == pytest.approx(10, rel=1e-3)
    few = small(validation_fraction=0.0).fit(frame, Y, instruments=Z)
    assert few.diagnostics_["rows"] == "training"
    assert few.diagnostics_["unexplained"]["unseen"] is None


def test_an_exogenous_column_is_not_taken_for_endogenous():
    random = np.random.default_rng(1)
    x = Z[:, 0] + random.normal(size=400)
    y = np.sin(x) + 0.3 * random.normal(size=400)
    model = small(endogenous=None, n_estimators=5, max_epochs=40)
    model.fit(x[:, None], y, instruments=Z)
    assert model.diagnostics_["durbin_wu_hausman"]["p_value"] > 0.01


def test_an_instrument_with_an_effect_of_its_own_is_found():
    y = Y + 2 * Z[:, 1]
    model = two_stage_least_squares([0], combine="product").fit(X, y, instruments=Z)
    assert model.diagnostics_["overidentification"]["p_value"] < 1e-3


def test_further_rows_can_be_diagnosed(fitted):
    new_X, new_Z, new_y, _ = confounded(300, seed=7)
    found = fitted.diagnose(new_X, new_y, instruments=new_Z)
    assert (found["rows"], found["n_rows"]) == ("further", 300)
    assert found["first_stage"]["x0"]["statistic"] > 100


def test_the_columns_of_the_summary_stay_apart():
    n_rows = len(X)
    frame = pd.DataFrame(X * 1e-7, columns=["price_of_a_night_in_a_hotel", "w"])
    y = 1e120 * (frame["price_of_a_night_in_a_hotel"] - frame["w"])
    y[0] += 1e100  # next to no noise: z is huge
    model = two_stage_least_squares([0]).fit(frame, y, instruments=Z)
    lines = model.summary().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Coefficients"))
    head, *rows = lines[start + 1 : start + 5]
    assert head.split(maxsplit=1)[0] == "coefficient"
    for row, name in zip(rows, [*frame.columns, "intercept"], strict=True):
        cells = re.split(r"\s{2,}", row)
        assert cells[0] == name
        assert len(cells) == 6
        assert re.fullmatch(r"\S+ to \S+", cells[-1])
    assert len({len(line) for line in [head, *rows]}) == 1
    assert "price_of_a_night_in_a_hotel  " in model.summary().split("First stage")[1]
    assert model.diagnostics_["n_rows"] == n_rows


def test_the_summary_tells_it_all():
    frame = pd.DataFrame(X, columns=["price", "time"])
    instruments = pd.DataFrame(Z, columns=["cost", "rain"])
    text = two_stage_least_squares("price").fit(frame, Y, instruments=instruments)
    text = text.summary()
    for part in (
        "endogenous:  price",
        "exogenous:   time",
        "instruments: cost, rain",
        "Coefficients, with robust standard errors",
        "First stage, on 400 rows (no network was trained)",
        "  robust F  ",
        "Durbin-Wu-Hausman",
        "chi2(1) = ",
    ):
        assert part in text
    learnt = small().fit(frame, Y, instruments=instruments).summary()
    assert "Coefficients" not in learnt
    assert "held-out rows" in learnt


def test_the_summary_is_that_of_the_fit_whatever_is_set_since():
    model = two_stage_least_squares([0]).fit(X, Y, instruments=Z)
    before = model.summary()
    model.set_params(cov_type="unadjusted", combine="product")
    assert model.summary() == before


# Files ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["small", "frames", "module", "linear"])
def test_what_is_saved_comes_back_to_the_bit(tmp_path, kind):
    data, instruments = X, Z
    model = small()
    if kind == "frames":
        data = pd.DataFrame(X, columns=["price", "time"])
        instruments = pd.DataFrame(Z, columns=["cost", "rain"])
        model.set_params(endogenous=["price"], dtype="float32")
    elif kind == "module":
        model.set_params(backbone=nn.Sequential(nn.Linear(1, 4), nn.Tanh()))
    elif kind == "linear":
        model = two_stage_least_squares([0])
    model.fit(data, Y, instruments=instruments)
    path = tmp_path / "model.safetensors"
    save(model, path)
    for other in (load(path), pickle.loads(pickle.dumps(model))):
        for one, two in zip(
            model.predict(data, return_std=True),
            other.predict(data, return_std=True),
            strict=True,
        ):
            assert (one == two).all()
        assert other.summary() == model.summary()
        assert other.score(data, Y, instruments=instruments) == model.score(
            data, Y, instruments=instruments
        )
        assert other.diagnostics_ == model.diagnostics_
        assert (other.coef_ == model.coef_).all()


def test_a_loaded_estimator_can_be_fitted_again(tmp_path, fitted):
    path = tmp_path / "model.safetensors"
    save(fitted, path)
    again = load(path).fit(X, Y, instruments=Z)
    assert (again.predict(X) == fitted.predict(X)).all()


def test_float32_networks_have_heads_in_float64():
    model = small(dtype="float32").fit(X, Y, instruments=Z)
    network = model.network_.networks[0]
    assert next(network.treatment.parameters()).dtype == torch.float32
    assert network.second.weight.dtype == torch.float64
    assert model.predict(X).dtype == np.float64


def test_a_torch_backbone_sees_standardised_columns():
    seen = []

    class Seeing(nn.Module):
        def __init__(self, in_features):
            super().__init__()
            self.linear = nn.Linear(in_features, 2)

        def forward(self, columns):
            seen.append(columns.detach())
            return self.linear(columns)

    far = np.column_stack([1e6 + 1e3 * X[:, 0], X[:, 1]])
    model = small(backbone=TorchBackbone(Seeing), batch_size=400, max_epochs=1)
    model.set_params(covariate_backbone=IDENTITY)
    model.fit(far, Y, instruments=Z)
    whole = max(seen, key=len)
    assert_allclose([whole.mean(), whole.std()], [0, 1], atol=0.05)
