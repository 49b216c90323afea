"""The training of both stages: members, steps, methods, and going back."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytorch_optimizer import ScheduleFreeAdamW
from sklearn.exceptions import ConvergenceWarning
from small_instruments import IDENTITY, confounded, small, two_stage_least_squares
from small_models import draw
from torch import nn
from torch.testing import assert_close

from sklearn_cfll import MLP, CFLLIVRegressor, CFLLRegressor, SmallMLP, TorchBackbone
from sklearn_cfll._iv_choice import largest_within_error
from sklearn_cfll._iv_problem import IVProblem
from sklearn_cfll._iv_stacks import Stack, StackedLinear
from sklearn_cfll._iv_unseen import mean_predictions
from sklearn_cfll.functional.instrument import combine_features, solve_two_stages

X, Z, Y, F = confounded()


def error_of(model, truth=None):
    truth = F if truth is None else truth
    return np.mean((model.predict(X) - truth) ** 2)


# What is learnt ---------------------------------------------------------------------


def demand(n_rows, seed):
    """Draw a slope that varies with an exogenous column, and strong confounding."""
    random = np.random.default_rng(seed)
    own_Z, w, v = random.normal(size=(3, n_rows))
    x = own_Z + 0.5 * w + v
    f = np.sin(w) * x + w
    return np.column_stack([x, w]), own_Z, f + 2 * v, f


@pytest.mark.parametrize("seed", range(2))
def test_the_structural_function_is_found_where_a_plain_fit_is_confounded(seed):
    own_X, own_Z, y, f = demand(400, seed)
    model = CFLLIVRegressor(endogenous=[0], max_epochs=60, random_state=seed)
    model.fit(own_X, y, instruments=own_Z)
    plain = CFLLRegressor(MLP(width=32), max_epochs=10, random_state=seed)
    plain.fit(own_X, y)
    error, confused = (np.mean((m.predict(own_X) - f) ** 2) for m in (model, plain))
    assert 3 * error < confused


def test_several_endogenous_columns_and_none_that_is_exogenous():
    random = np.random.default_rng(0)
    own_Z = random.normal(size=(400, 3))
    hidden = random.normal(size=400)
    own_X = own_Z[:, :2] + 0.3 * own_Z[:, 2:] + 0.7 * hidden[:, None]
    f = np.tanh(2 * own_X[:, 0]) - own_X[:, 1]
    model = CFLLIVRegressor(max_epochs=40, random_state=0)
    model.fit(own_X, f + 2 * hidden, instruments=own_Z)
    plain = CFLLRegressor(MLP(width=32), max_epochs=10, random_state=0)
    plain.fit(own_X, f + 2 * hidden)
    errors = [np.mean((m.predict(own_X) - f) ** 2) for m in (model, plain)]
    assert 3 * errors[0] < errors[1]
    assert model.network_.networks[0].covariate is None


def test_linear_data_are_fitted_as_by_two_stage_least_squares():
    random = np.random.default_rng(0)
    own_Z, hidden = random.normal(size=(400, 1)), random.normal(size=400)
    x = own_Z[:, 0] + hidden
    y = 2 * x - 3 * hidden + 0.1 * random.normal(size=400)
    model = CFLLIVRegressor(max_epochs=40, random_state=0)
    model.fit(x[:, None], y, instruments=own_Z)
    slope = np.cov(own_Z[:, 0], y)[0, 1] / np.cov(own_Z[:, 0], x)[0, 1]
    ends = model.predict(np.array([[-1.0], [1.0]]))
    assert (ends[1] - ends[0]) / 2 == pytest.approx(slope, abs=0.1)


def test_the_largest_ridge_within_a_standard_error_is_chosen():
    even = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.5, 1.5, 0.8, 0.6]]).double()
    weight = torch.ones(4).double()
    assert largest_within_error(even, weight) == 1  # 0.1 more, give or take 0.2
    heavy = torch.tensor([10.0, 10.0, 1.0, 1.0]).double()
    assert largest_within_error(even, heavy) == 0


# Final heads ------------------------------------------------------------------------


@pytest.mark.parametrize("shrink_to", ["regression", "zero"])
def test_the_final_heads_are_the_exact_ones_of_the_features(shrink_to):
    model = small(n_estimators=1, alpha=0.1, instrument_alpha=0.2, dtype="float64")
    model.set_params(shrink_to=shrink_to)
    model.set_params(
        backbone=SmallMLP((8, 3)),
        instrument_backbone=SmallMLP((6,), linear=False),
        covariate_backbone=SmallMLP((4, 2), linear=False),
    )
    model.fit(X, Y, instruments=Z)
    network = model.network_.networks[0]
    unit = (
        np.column_stack([X, Z]) - np.column_stack([X, Z]).mean(0)
    ) / np.column_stack([X, Z]).std(0)
    columns = torch.as_tensor(unit)
    with torch.no_grad():
        psi, phi = network.treatment(columns[:, :1]), network.instrument(columns[:, 1:])
        chi = network.covariate(columns[:, 1:2])
    targets = torch.as_tensor((Y - Y.mean()) / Y.std())[:, None]
    # The ridge of stage 2 is measured by the features at the actual treatment.
    first = solve_two_stages(phi, psi, targets, instrument_alpha=0.2)
    predicted = combine_features(phi @ first.first_weight + first.first_bias, chi)
    actual = combine_features(psi, chi)
    unit = actual.std(0, correction=0)

    def ridge(features, start, alpha):
        share = torch.where(network.free_second, 1e-8, 1.0)
        penalty = alpha * torch.diag(share * unit.square())
        centred = features - features.mean(0)
        gram = centred.mT @ centred / len(X) + penalty
        return torch.linalg.solve(gram, centred.mT @ targets / len(X) + penalty @ start)

    slopes = torch.zeros(len(unit), 1).double()
    if shrink_to == "regression":
        slopes = ridge(actual, slopes, model.plain_alpha_)
    slopes = ridge(predicted, slopes, 0.1)
    predictions = (actual - predicted.mean(0)) @ slopes
    expected = predictions[:, 0].numpy() * Y.std() + Y.mean()
    # The spared columns' small ridge magnifies rounding.
    assert_allclose(model.predict(X), expected, rtol=1e-6)
    assert (model.alpha_, model.instrument_alpha_) == (0.1, 0.2)
    assert model.column_alphas_.tolist() == [0.2]


def test_a_large_ridge_leaves_what_instruments_tell_of_the_columns():
    random = np.random.default_rng(0)
    hidden, own_Z = random.normal(size=600), random.normal(size=600)
    x = own_Z + hidden
    y = np.abs(x) + x - 2 * hidden  # the fit without instruments has no slope
    model = small(alpha=1000.0, endogenous=None, max_epochs=60)
    at = np.linspace(-1.5, 1.5, 50)
    errors = []
    for shrink_to in ("regression", "zero"):
        model.set_params(shrink_to=shrink_to).fit(x[:, None], y, instruments=own_Z)
        f = model.predict(at[:, None])
        errors.append(np.var(f - np.abs(at) - at))
        assert np.polyfit(at, f, 1)[0] == pytest.approx(1, abs=0.2)
    assert errors[0] < 0.6 * errors[1]


def test_without_columns_or_unseen_rows_the_ridge_pulls_to_zero():
    no_columns = small(backbone=SmallMLP((8, 3), linear=False))
    no_rows = small(validation_fraction=0.0)
    for model in (no_columns, no_rows):
        fits = [
            copy.deepcopy(model).set_params(shrink_to=to).fit(X, Y, instruments=Z)
            for to in ("regression", "zero")
        ]
        assert_allclose(fits[0].predict(X), fits[1].predict(X), rtol=1e-9)


@pytest.mark.parametrize("n_rows", [2_000, 20_000])
def test_automatic_ridges_of_a_linear_model_leave_two_stage_least_squares(n_rows):
    random = np.random.default_rng(0)
    hidden, own_Z = random.normal(size=(2, n_rows))
    x = 0.3 * own_Z + hidden
    y = x + hidden  # without instruments 1.9
    slopes = [
        two_stage_least_squares(**ridges).fit(x[:, None], y, instruments=own_Z).coef_[0]
        for ridges in ({}, {"alpha": "auto", "instrument_alpha": "auto"})
    ]
    assert slopes[1] == pytest.approx(slopes[0], abs=0.02)


def test_standard_errors_count_those_of_the_fit_that_the_ridge_pulls_to():
    random = np.random.default_rng(0)
    hidden, own_Z = random.normal(size=(2, 500))
    x = own_Z + hidden
    y = x + hidden + random.normal(size=500)
    errors = []
    for alpha, instruments in ((1e9, own_Z), (0, x)):
        model = two_stage_least_squares(alpha=alpha)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # x as its own instrument
            model.fit(x[:, None], y, instruments=instruments)
        errors.append(model.coef_std_[0])
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


def test_members_that_a_product_would_change_are_run_one_by_one():
    calls, layer = [], nn.Linear(4, 4)
    twice = nn.Sequential(nn.Linear(1, 4), layer, nn.ReLU(), layer)
    hooked = nn.Sequential(nn.Linear(1, 4))
    hooked[0].register_forward_hook(lambda *_: calls.append(1))
    plain = nn.Sequential(nn.Linear(1, 4), nn.ReLU())
    stacks = [
        Stack([module, copy.deepcopy(module)], together=True)
        for module in (twice, hooked, plain)
    ]
    assert [stack.joint is None for stack in stacks] == [True, True, False]
    stacks[1](torch.ones(2, 3, 1))
    assert calls == [1, 1]


def test_more_members_than_rows_each_leave_out_one():
    model = small(n_estimators=120, max_epochs=1).fit(
        X[:110], Y[:110], instruments=Z[:110]
    )
    assert model.diagnostics_["n_rows"] == 110


def test_columns_of_rows_that_networks_saw_are_predicted_from_other_rows():
    noise = np.random.default_rng(0).normal(size=(80, 3))
    with pytest.warns(UserWarning, match="the instruments are weak"):
        model = small(max_epochs=100).fit(X[:80], Y[:80], instruments=noise)
    rows = model._rows_of(X[:80], Y[:80], noise, None)
    alphas = torch.full((1,), 1e-3).double()
    errors = []
    for settings in ({}, {"column_alphas": alphas}):
        generator = torch.Generator().manual_seed(0)
        found = mean_predictions(model.network_, rows, generator, **settings)
        errors.append(float((found.columns - rows.treatment).square().mean()))
    # The networks saw all rows, but the heads that predict did not.
    assert errors[1] > 1.2 * errors[0]


def test_columns_have_stage_1_ridges_of_their_own():
    random = np.random.default_rng(0)
    hidden, own_Z = random.normal(size=(400, 2)), random.normal(size=(400, 2))
    # Linear in the instruments, and what no line comes near.
    x = own_Z + hidden
    x[:, 1] = 3 * np.abs(own_Z[:, 1]) + 0.1 * hidden[:, 1]
    model = small(endogenous=None, max_epochs=60)
    model.fit(x, x[:, 0] + hidden[:, 0], instruments=own_Z)
    assert model.column_alphas_[0] > 100 * model.column_alphas_[1]


def test_columns_beside_learnt_features_are_spared_the_ridge():
    random = np.random.default_rng(0)
    hidden, own_Z = random.normal(size=400), random.normal(size=400)
    x = (own_Z + hidden > 0).astype(float)
    y = 3 * x - hidden
    model = small(backbone=IDENTITY, endogenous=None, instrument_alpha=1e-3)
    model.set_params(alpha=1000.0).fit(x[:, None], y, instruments=own_Z)
    low, high = model.predict(np.array([[0.0], [1.0]]))
    assert high - low == pytest.approx(3, abs=0.5)
    # The mean of the members is linear in the column, too.
    assert model.coef_[0] == pytest.approx(high - low, rel=1e-5)
    f, error = model.predict(np.array([[1e6]]), return_std=True)
    assert f[0] == pytest.approx(1e6 * model.coef_[0], rel=1e-4)
    assert error[0] == pytest.approx(1e6 * model.coef_std_[0], rel=1e-4)
    assert_allclose(model.transform(x[:, None])[:, 0], x, atol=1e-6)
    assert "Coefficients" in model.summary()
    ridge = two_stage_least_squares(alpha=1e5, shrink_to="zero")
    assert abs(ridge.fit(x[:, None], y, instruments=own_Z).coef_[0]) < 0.1
    ridge.set_params(shrink_to="regression").fit(x[:, None], y, instruments=own_Z)
    assert ridge.coef_[0] == pytest.approx(np.polyfit(x, y, 1)[0], rel=2e-3)


def test_the_mean_of_the_members_predicts():
    model = small(n_estimators=3).fit(X, Y, instruments=Z)
    own = []
    for network in model.network_.networks:
        alone = copy.deepcopy(model)
        alone.network_.members = nn.ModuleList([network])
        own.append(alone.predict(X))
    assert not np.allclose(own[0], own[1])
    assert_allclose(model.predict(X), np.mean(own, axis=0))


def test_predictions_are_linear_in_the_features():
    model = small().fit(X, Y, instruments=Z)
    features = model.transform(X)
    assert features.shape == (len(X), len(model.coef_))
    assert_allclose(features @ model.coef_ + model.intercept_, model.predict(X))
    names = model.get_feature_names_out()
    assert names[0] == "cfllivregressor0"
    assert len(names) == features.shape[1]


# Members ----------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["small", "plain", "dropout in evaluation"])
def test_stacked_members_compute_and_learn_as_they_do_alone(backbone):
    torch.manual_seed(0)
    make = {
        "small": lambda: SmallMLP((6, 4), normalize=True).build(_rows_of(3)),
        "plain": lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
        "dropout in evaluation": lambda: nn.Sequential(
            nn.Linear(3, 5), nn.Dropout(0.5), nn.ReLU()
        ),
    }[backbone]
    members = [make().double().eval() for _ in range(3)]
    alone = copy.deepcopy(members)
    stack = Stack(members, together=True).eval()
    assert any(isinstance(module, StackedLinear) for module in stack.modules())
    rows = draw(3, 10, 3)
    separate = torch.stack([m(part) for m, part in zip(alone, rows, strict=True)])
    assert_close(stack(rows), separate)
    for module in (stack, nn.ModuleList(alone)):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            features = (
                stack(rows)
                if module is stack
                else torch.stack([m(part) for m, part in zip(alone, rows, strict=True)])
            )
            features.square().sum().backward()
            optimizer.step()
    stack.write_back()
    for member, own in zip(members, alone, strict=True):
        assert_close(member.state_dict(), own.state_dict())


def _rows_of(n_columns):
    class Rows:
        sample_shape = (n_columns,)

    return Rows()


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        nn.Linear(3, 4, bias=False),
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)),
        nn.Bilinear(3, 3, 2),
    ],
    ids=["BatchNorm", "no bias", "affine LayerNorm", "another module"],
)
def test_members_of_other_modules_run_one_by_one(module):
    members = [copy.deepcopy(module) for _ in range(2)]
    stack = Stack(members, together=True)
    assert stack.joint is None
    assert [id(m) for m in stack.members] == [id(m) for m in members]


def test_an_optimizer_of_matrices_gets_each_member_s_own():
    model = small(optimizer="muon", max_epochs=2).fit(X, Y, instruments=Z)
    assert np.isfinite(model.predict(X)).all()
    assert Stack([nn.Linear(2, 2)], together=False).joint is None


def folds_of(n_rows, n_members, fraction):
    problem = object.__new__(IVProblem)
    problem.X, problem.seed = np.zeros((n_rows, 1)), 0
    problem.hold_out(n_members, fraction)
    return problem.train, problem.held_out


def test_each_member_is_kept_from_a_fold_of_its_own():
    train, held_out = folds_of(100, 5, 0.2)
    assert sorted(held_out.ravel()) == list(range(100))
    for own, other in zip(train, held_out, strict=True):
        assert sorted([*own, *other]) == list(range(100))


def test_larger_shares_overlap_and_smaller_ones_leave_rows_out():
    _, held_out = folds_of(100, 4, 0.5)
    assert np.bincount(held_out.ravel()).tolist() == [2] * 100
    _, held_out = folds_of(100, 2, 0.1)
    assert len(np.unique(held_out)) == 20
    train, held_out = folds_of(7, 2, 0.0)
    assert held_out.shape == (2, 0)
    assert train.tolist() == [list(range(7))] * 2


# Randomness and rows ----------------------------------------------------------------


def test_a_seed_makes_a_fit_and_torch_s_own_state_is_left():
    before = torch.random.get_rng_state()
    fits = [
        small(random_state=s).fit(X, Y, instruments=Z).predict(X) for s in (0, 0, 1)
    ]
    assert (fits[0] == fits[1]).all()
    assert not np.allclose(fits[0], fits[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_user_s_module_is_copied():
    module = nn.Sequential(nn.Linear(1, 6), nn.Tanh())
    before = copy.deepcopy(module.state_dict())
    model = small(backbone=module).fit(X, Y, instruments=Z)
    assert_close(module.state_dict(), before)
    moved = model.network_.networks[0].treatment[0].weight
    assert not torch.allclose(moved, before["0.weight"])


@pytest.mark.filterwarnings("ignore:the instruments are weak")  # rows are few
@pytest.mark.parametrize("params", [{}, {"batch_size": "full"}], ids=["batch", "full"])
def test_integer_weights_are_repeated_rows_where_a_batch_is_all_rows(params):
    n = 30
    weight = np.random.default_rng(0).integers(0, 3, size=n)
    rows = np.repeat(np.arange(n), weight)
    model = small(max_epochs=5, batch_size=100, alpha=0.1, instrument_alpha=0.1)
    # The fit without instruments takes the smallest ridge, which magnifies rounding.
    model.set_params(shrink_to="zero", **params)
    weighted = copy.deepcopy(model).fit(
        X[:n], Y[:n], instruments=Z[:n], sample_weight=weight
    )
    repeated = model.fit(X[rows], Y[rows], instruments=Z[rows])
    assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-6)


# Methods ----------------------------------------------------------------------------


def test_the_history_tells_of_each_epoch():
    model = small(max_epochs=8).fit(X, Y, instruments=Z)
    assert [row["epoch"] for row in model.history_] == list(range(1, 9))
    assert model.n_iter_ == 8
    assert model.history_[-1]["lr"] < 0.1 * max(row["lr"] for row in model.history_)
    assert_allclose([model.history_[-1][p] for p in ("prox", "instrument_prox")], 10.0)
    longer = small(max_epochs=60).fit(X, Y, instruments=Z).history_
    for stage in ("stage1_loss", "stage2_loss"):
        assert longer[-1][stage] < longer[0][stage]


def test_full_batches_are_rounds_on_both_stages():
    model = small(batch_size="full", max_epochs=30).fit(X, Y, instruments=Z)
    rows = model.history_
    assert len(rows) == 30
    assert rows[-1]["stage1_loss"] < rows[0]["stage1_loss"]
    assert rows[-1]["stage2_loss"] < rows[0]["stage2_loss"]


def test_full_batches_with_a_line_search():
    model = small(batch_size="full", max_epochs=2, optimizer="lbfgs")
    assert np.isfinite(model.fit(X, Y, instruments=Z).predict(X)).all()


def test_the_stages_may_train_on_halves_of_their_own():
    own_X, own_Z, y, f = demand(400, 0)
    for params in ({"max_epochs": 60}, {"max_epochs": 10, "batch_size": "full"}):
        model = small(sample_splitting=True, **params)
        model.fit(own_X, y, instruments=own_Z)
        error = np.mean((model.predict(own_X) - f) ** 2)
        assert 3 * error < np.mean((y - f) ** 2)


def test_where_there_is_nothing_to_train_nothing_is_trained():
    model = CFLLIVRegressor(
        TorchBackbone(nn.Tanh),
        instrument_backbone=IDENTITY,
        covariate_backbone=IDENTITY,
        endogenous=[0],
        validation_fraction=0.3,
    )
    model.fit(X, Y, instruments=Z)
    assert model.history_ == []
    assert len(model.network_.networks) == 1
    assert model.diagnostics_["rows"] == "all"
    assert model.diagnostics_["unexplained"]["unseen"] is None


@pytest.mark.parametrize("seed", range(3))
def test_where_the_instruments_alone_are_learnt_both_methods_find_the_slope(seed):
    own_Z, hidden = np.random.default_rng(seed).normal(size=(2, 300))
    x = own_Z + hidden
    full, batches = (
        CFLLIVRegressor(IDENTITY, max_epochs=3, random_state=0, **params).fit(
            x[:, None], 2 * x - hidden, instruments=own_Z
        )
        for params in ({"batch_size": "full"}, {})
    )
    deviation = batches.coef_std_
    assert_allclose(full.coef_std_, deviation, rtol=0.01)
    for model in (full, batches):
        assert abs(model.coef_ - 2) < 3 * deviation
        losses = [row["stage2_loss"] for row in model.history_]
        assert len(losses) == 3
        assert np.isfinite(losses).all()
    assert abs(full.coef_ - batches.coef_) < 0.05 * deviation
    plain = np.polyfit(x, 2 * x - hidden, 1)[0]
    assert abs(plain - 2) > 3 * deviation


def test_a_frozen_network_is_left_as_it_is():
    module = nn.Linear(1, 3)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    model = small(backbone=module, n_estimators=2).fit(X, Y, instruments=Z)
    for network in model.network_.networks:
        assert_close(network.treatment.weight.float(), module.weight)


# Divergence and interruption --------------------------------------------------------


class Exploding(nn.Module):
    """Gives features that are not finite from some pass on, once or for ever."""

    n_passes, stop = 0, None

    def __init__(self, in_features):
        super().__init__()
        self.linear = nn.Linear(in_features, 3)

    def forward(self, columns):
        Exploding.n_passes += self.training
        features = self.linear(columns)
        first, last = Exploding.stop
        return features / 0 if first <= Exploding.n_passes < last else features


@pytest.fixture
def exploding():
    Exploding.n_passes = 0
    return small(backbone=TorchBackbone(Exploding), n_estimators=1, max_epochs=20)


def test_a_divergence_is_told_and_undone(exploding):
    Exploding.stop = 30, 32
    with pytest.warns(
        ConvergenceWarning, match=r"\Atraining diverged in epoch \d+ \(a"
    ):
        exploding.fit(X, Y, instruments=Z)
    assert exploding.n_recoveries_ == 1
    assert exploding.n_iter_ == 20
    assert np.isfinite(exploding.predict(X)).all()
    assert max(row["lr"] for row in exploding.history_[-5:]) < 0.01


TOO_OFTEN = (
    r"after going back 5 times to half the rate; decrease lr \(now 0\.02\), or "
    r"increase alpha, instrument_alpha and the proxes\.\Z"
)


@pytest.mark.filterwarnings(
    "ignore:training diverged:sklearn.exceptions.ConvergenceWarning"
)
def test_a_divergence_without_end_is_an_error(exploding):
    Exploding.stop = 30, np.inf
    with pytest.raises(FloatingPointError, match=TOO_OFTEN):
        exploding.fit(X, Y, instruments=Z)
    assert not hasattr(exploding, "network_")


@pytest.mark.filterwarnings(
    "ignore:training diverged:sklearn.exceptions.ConvergenceWarning"
)
def test_a_divergence_on_weights_of_any_size_names_them(exploding):
    Exploding.stop = 30, np.inf
    message = (
        r"\Asample_weight ranges from 1e-300 to 1e\+300, so that 400 rows count for"
    )
    weight = np.logspace(-300, 300, len(X))
    with pytest.raises(FloatingPointError, match=message):
        exploding.fit(X, Y, instruments=Z, sample_weight=weight)


class Interrupting(Exploding):
    """Presses Ctrl-C in some pass."""

    def forward(self, columns):
        if self.training:
            Exploding.n_passes += 1
            if Exploding.n_passes == 25:
                raise KeyboardInterrupt
        return self.linear(columns)


def test_an_interruption_leaves_a_fitted_estimator():
    Exploding.n_passes = 0
    model = small(backbone=TorchBackbone(Interrupting), n_estimators=1)
    with pytest.warns(ConvergenceWarning, match=r"interrupted in epoch \d+ of 15"):
        model.fit(X, Y, instruments=Z)
    assert 0 < model.n_iter_ < 15
    assert np.isfinite(model.predict(X)).all()


def test_an_interruption_leaves_the_average_of_an_optimizer_that_averages():
    made = []

    class Noting(ScheduleFreeAdamW):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    Exploding.n_passes = 0
    model = small(backbone=TorchBackbone(Interrupting), optimizer=Noting)
    with pytest.warns(ConvergenceWarning, match=r"interrupted in epoch \d+ of 15"):
        model.fit(X, Y, instruments=Z)
    modes = [g["train_mode"] for optimizer in made for g in optimizer.param_groups]
    assert modes == [False] * len(made)


def test_dead_features_are_told():
    dead = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    nn.init.constant_(dead[0].bias, -100.0)
    model = small(backbone=dead, covariate_backbone=None, endogenous=None)
    message = "stage 1 predicts the same treatment features for all rows"
    with pytest.warns(ConvergenceWarning, match=message):
        model.fit(X[:, :1], Y, instruments=Z)
    assert_allclose(model.predict(X[:, :1]), Y.mean())
