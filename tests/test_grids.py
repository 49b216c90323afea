"""Targets on grids: each point of a sample is a row of the solve."""

import copy
import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_models import draw
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor, ClosedFormHead, TorchBackbone
from sklearn_cfll.head import rows_by_rows

GRIDS = {"line": (12,), "plane": (5, 4), "volume": (3, 4, 2)}
on_each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
FULL = {"batch_size": "full", "early_stopping": False, "random_state": 0}


class Pointwise(nn.Module):
    """A layer on the last axis, the same at each point, with weights of its own."""

    def __init__(self, in_features=3, width=6):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(width, in_features, generator=generator)
        self.weight = nn.Parameter(weight)

    def forward(self, X):
        return torch.tanh(nn.functional.linear(X, self.weight))


class Convolution(nn.Module):
    """Channels first, and any resolution."""

    def __init__(self, in_features, n_axes=1, width=8):
        super().__init__()
        layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][n_axes - 1]
        self.layer = layer(in_features, width, 3, padding=1, padding_mode="circular")

    def forward(self, X):
        return nn.functional.silu(self.layer(X))


def fields(grid, n_samples=40, n_outputs=None, seed=0):
    """Draw inputs with their channels last, and a curved function of them."""
    X = draw(n_samples, *grid, 3, seed=seed).numpy()
    y = np.sin(X[..., 0]) + X[..., 1] * X[..., 2]
    if n_outputs is not None:
        y = np.stack([(1 + i) * y + i for i in range(n_outputs)], -1)
    return X, y


def flat(X, y):
    """Make each point of a grid a row."""
    return X.reshape(-1, 3), y.reshape(X.size // 3, *y.shape[X.ndim - 1 :])


def model(backbone=None, **params):
    settings = {"max_epochs": 8, "dtype": "float64", "alpha": 0.01, **FULL, **params}
    return CFLLRegressor(Pointwise() if backbone is None else backbone, **settings)


# What a grid is -----------------------------------------------------------------


@pytest.mark.parametrize("n_outputs", [None, 1, 2], ids=["one", "(1,)", "(2,)"])
@on_each_grid
def test_a_grid_is_fitted_as_its_points_are_as_rows(grid, n_outputs):
    X, y = fields(grid, n_outputs=n_outputs)
    on_grid, by_row = model().fit(X, y), model().fit(*flat(X, y))
    predictions = on_grid.predict(X)
    assert predictions.shape == y.shape
    assert_allclose(predictions.ravel(), by_row.predict(flat(X, y)[0]).ravel(), 1e-8)
    assert_allclose(on_grid.coef_, by_row.coef_, 1e-8)
    assert_allclose(on_grid.score(X, y), by_row.score(*flat(X, y)), 1e-8)
    assert_allclose(on_grid.log_evidence_, by_row.log_evidence_, rtol=0.2)
    assert on_grid.n_outputs_ == (n_outputs or 1)


@on_each_grid
def test_a_samples_weight_is_that_of_each_of_its_points(grid):
    X, y = fields(grid)
    weight = np.arange(1.0, 1 + len(X))
    on_grid = model().fit(X, y, weight)
    points = np.prod(grid)
    by_row = model().fit(*flat(X, y), np.repeat(weight, points))
    assert_allclose(on_grid.predict(X).ravel(), by_row.predict(flat(X, y)[0]), 1e-8)
    score = on_grid.score(X, y, weight)
    assert_allclose(score, by_row.score(*flat(X, y), np.repeat(weight, points)), 1e-8)


@on_each_grid
def test_points_without_a_target_are_left_out_of_the_score(grid):
    X, y = fields(grid)
    gaps = np.where(np.random.default_rng(0).random(y.shape) < 0.2, np.nan, y)
    fitted = model(missing_targets="ignore").fit(X, y)
    known = ~np.isnan(gaps)
    predictions, truth = fitted.predict(X)[known], y[known]
    left = np.square(predictions - truth).sum() / np.square(truth - truth.mean()).sum()
    assert_allclose(fitted.score(X, gaps), 1 - left, 1e-8)


def test_samples_of_a_weight_twice_as_large_are_samples_given_twice():
    X, y = fields((5,), 30)
    weight = np.r_[np.full(10, 2.0), np.ones(20)]
    weighted = model().fit(X, y, weight)
    repeated = model().fit(np.r_[X[:10], X], np.r_[y[:10], y])
    assert_allclose(weighted.predict(X), repeated.predict(X), 1e-7)


def test_features_of_the_last_axis_alone_make_targets_of_several_outputs():
    X, y = fields((1,), n_outputs=4)
    plain = model().fit(X[:, 0], y[:, 0])
    assert plain.predict(X[:, 0]).shape == (40, 4)
    assert plain.coef_.shape == (4, 6)


@pytest.mark.parametrize("n_axes", [1, 2, 3])
def test_channels_first_are_moved_last_without_a_copy(n_axes):
    grid = (4, 5, 3)[:n_axes]
    X = draw(30, 2, *grid).float()
    y = X.sin().sum(1).numpy()
    backbone = TorchBackbone(Convolution, feature_axis=1, n_axes=n_axes)
    fitted = model(backbone, dtype="float32").fit(X.numpy(), y)
    module = fitted.backbone_.module
    expected = module(X).movedim(1, -1).detach()
    assert_array_equal(fitted.transform(X.numpy()), expected)
    seen = []
    module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    features = fitted.backbone_(X)
    assert features.data_ptr() == seen[0].data_ptr()
    assert features.shape == (30, *grid, 8)


@pytest.mark.filterwarnings("ignore:no rows were held out in fit")
@pytest.mark.parametrize("channels_last", [True, False])
def test_predictions_at_another_resolution_are_those_of_its_points(channels_last):
    X, y = fields((8,), 30)
    finer = fields((24,), 6, seed=5)[0]
    if channels_last:
        fitted = model().fit(X, y)
    else:
        X, finer = np.swapaxes(X, 1, 2), np.swapaxes(finer, 1, 2)
        backbone = TorchBackbone(Convolution, feature_axis=1)
        fitted = model(backbone, dtype="float64").fit(X, y)
    expected = fitted.transform(finer) @ fitted.coef_ + fitted.intercept_
    predictions = fitted.predict(finer)
    assert predictions.shape == (6, 24)
    assert_allclose(predictions, expected, 1e-10)
    deviation = fitted.predict(finer, return_std=True)[1]
    leverage = fitted.leverage(finer)
    assert_allclose(
        deviation, fitted.noise_ * np.sqrt(1 + fitted.posterior_scale_ * leverage)
    )


def test_an_x_without_channels_may_be_of_another_resolution_too():
    def network(in_features):
        return nn.Sequential(nn.Unflatten(1, (1, -1)), Convolution(1))

    X = draw(30, 16).numpy()
    fitted = model(TorchBackbone(network, feature_axis=1)).fit(X, np.sin(X))
    assert fitted.predict(draw(4, 32).numpy()).shape == (4, 32)


# Relative errors ----------------------------------------------------------------


def test_the_relative_norm_is_a_weight_of_each_sample():
    X, y = fields((6,))
    y = y * np.linspace(0.1, 10, len(y))[:, None]
    relative = model(sample_norm="relative").fit(X, y)
    by_hand = model().fit(X, y, 1 / np.square(y).sum(1))
    assert_allclose(relative.predict(X), by_hand.predict(X), 1e-8)
    weight = np.arange(1.0, 1 + len(y))
    relative = model(sample_norm="relative").fit(X, y, weight)
    by_hand = model().fit(X, y, weight / np.square(y).sum(1))
    assert_allclose(relative.predict(X), by_hand.predict(X), 1e-8)


@pytest.mark.parametrize("n_outputs", [None, 2])
def test_the_relative_loss_is_the_mean_squared_relative_l2_error(n_outputs):
    X, y = fields((6,), n_outputs=n_outputs)
    y = y * np.linspace(0.1, 10, len(y)).reshape(-1, *[1] * (y.ndim - 1))
    fitted = model(
        sample_norm="relative", max_epochs=1, early_stopping=True, lr=1e-12
    ).fit(X, y, X_val=X, y_val=y)
    axes = tuple(range(1, y.ndim))
    squares = np.square(y).sum(axes)
    net = fitted.net_
    outputs = net.module_(torch.from_numpy(X)).detach().numpy()
    weight = 1 / squares
    encoded = fitted._encode(y)
    loss = (weight * np.square(outputs - encoded).mean((1, 2))).sum() / weight.sum()
    decoded = fitted._targets.decode(outputs)
    relative = np.mean(np.square(decoded - y).sum(axes) / squares)
    factors = loss / relative
    again = fitted._targets.decode(outputs + 0.3)
    moved = np.mean(np.square(again - y).sum(axes) / squares)
    other = np.square(outputs + 0.3 - encoded).mean((1, 2))
    assert_allclose((weight * other).sum() / weight.sum(), factors * moved, 1e-8)


def test_the_relative_norm_counts_the_targets_that_are_known():
    X = draw(60, 3).numpy()
    y = np.column_stack([1 + X[:, 0] ** 2, 5 + X[:, 1], 3 + X[:, 2]])
    y[::3, 1] = y[::4, 0] = y[12] = np.nan
    settings = {"missing_targets": "ignore", "early_stopping": False}
    relative = model(sample_norm="relative", **settings).fit(X, y)
    known = np.arange(len(y)) != 12
    weight = 1 / np.nanmean(np.square(y[known]), 1)
    targets = relative._targets
    np.testing.assert_array_equal(targets.scale, targets.scale[0])
    features = relative.transform(X)
    for i in range(3):
        rows = ~np.isnan(y[:, i])
        own = weight[rows[known]]
        centred = features[rows] - np.average(features[rows], 0, own)
        residual = y[rows, i] - relative.predict(X[rows])[:, i]
        assert_allclose(np.average(residual, weights=own), 0, atol=1e-8)
        pull = (own * residual) @ centred
        assert_allclose(pull / pull[0], relative.coef_[i] / relative.coef_[i][0], 1e-6)


def test_the_relative_norm_weighs_the_rows_of_a_stream_alike():
    X = draw(120, 3).numpy()
    y = np.exp(X[:, 0]) + 2 * np.abs(X[:, 1])
    y[60:] *= 5
    settings = {"sample_norm": "relative", "early_stopping": False, "alpha": 0.01}
    start = model(**settings).fit(X[:40], y[:40])
    whole = copy.deepcopy(start).partial_fit(X[40:], y[40:])
    parts = start.partial_fit(X[40:80], y[40:80]).partial_fit(X[80:], y[80:])
    assert_allclose(parts.coef_, whole.coef_, 1e-8)
    anew = whole.refit_head(X, y)
    assert_allclose(anew.coef_, whole.coef_, 1e-8)
    before = parts.coef_
    again = parts.partial_fit(X[:9] + 1, y[:9]).forget(X[:9] + 1, y[:9])
    assert_allclose(again.coef_, before, 1e-7)


def test_a_sample_that_is_zero_has_no_relative_error():
    X, y = fields((6,))
    y[3] = 0
    message = (
        "y is zero for all of sample 3, so that an error relative to it has no sense; "
        "leave the sample out, or set sample_norm=None."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model(sample_norm="relative").fit(X, y)
    model(sample_norm="relative").fit(X, y, np.arange(len(y)) != 3)


# Bounded memory -----------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, "by output"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_large_grid_moves_the_head_as_its_rows_do(monkeypatch, weighted, alpha):
    features, targets = draw(5, 7, 3, 4), draw(5, 7, 3, 2, seed=1)
    weight = draw(5, seed=2).abs() if weighted else None
    alpha = torch.tensor([0.1, 2.0]).double() if alpha == "by output" else alpha
    heads = []
    for most in (2**22, 25):  # two lines of the first grid axis at once
        monkeypatch.setattr("sklearn_cfll.head._MOST_NUMBERS", most)
        head = ClosedFormHead(4, 2)
        for prox in (0.1, 3.0):
            head.update_(features, targets, weight, alpha=alpha, prox=prox)
        heads.append(head)
    assert_allclose(heads[0].weight, heads[1].weight, 1e-10)
    assert_allclose(heads[0].bias, heads[1].bias, 1e-10)


def test_parts_of_a_grid_are_all_of_its_rows_in_order(monkeypatch):
    features, targets, weight = draw(3, 7, 2, 4), draw(3, 7, 2, 1), draw(3).abs()
    monkeypatch.setattr("sklearn_cfll.head._MOST_NUMBERS", 25)
    parts = list(rows_by_rows(features, targets, weight))
    assert max(part[0].numel() for part in parts) <= 25
    joined = [torch.cat(part) for part in zip(*parts, strict=True)]
    assert torch.equal(joined[0], features.reshape(-1, 4))
    assert torch.equal(joined[1], targets.reshape(-1, 1))
    assert torch.equal(joined[2], weight.repeat_interleave(14))


def test_the_final_solve_is_the_same_in_small_chunks(monkeypatch):
    X, y = fields((6, 2))
    whole = model(alpha="auto").fit(X, y)
    monkeypatch.setattr("sklearn_cfll.chunks._CHUNK_NUMBERS", 200)
    monkeypatch.setattr("sklearn_cfll.head._MOST_NUMBERS", 30)
    parts = model(alpha="auto").fit(X, y)
    assert_allclose(parts.predict(X), whole.predict(X), 1e-7)
    assert_allclose(parts.noise_, whole.noise_, 1e-7)


# What the head knows of its errors ----------------------------------------------


def test_alpha_is_chosen_by_samples_that_are_left_out_whole():
    X, y = fields((6,), 20)
    fitted = model(alpha="auto").fit(X, y)
    features = fitted.transform(X)
    errors = []
    for alpha in fitted.alpha_path_["alphas"]:
        squares = np.zeros(len(X))
        for fold in range(10):
            out = np.arange(len(X)) % 10 == fold
            rows = features[~out].reshape(-1, 6)
            centre = rows.mean(0)
            energy = (np.square(rows).sum() / len(rows) + 1) / 7
            gram = (rows - centre).T @ (rows - centre) / len(rows)
            cross = (rows - centre).T @ y[~out].ravel() / len(rows)
            weight = np.linalg.solve(gram + alpha * energy * np.eye(6), cross)
            predicted = (features[out] - centre) @ weight + y[~out].mean()
            squares[out] = np.square(predicted - y[out]).mean(1)
        errors.append(squares.mean())
    assert_allclose(fitted.alpha_path_["cross_validation"][:, 0], errors, 1e-7)


def test_noise_is_fitted_to_samples_that_are_left_out():
    # Each sample has a shift of its own, which its other points would tell.
    X, y = fields((50,), 60)
    shift = np.random.default_rng(0).normal(size=(60, 1))
    fitted = model(max_epochs=30).fit(X, y + 3 * shift)
    assert fitted.noise_ == pytest.approx(3 * shift.std(), rel=0.2)


def test_a_band_holds_whole_fields_with_its_probability():
    X, y = fields((10,), 700)
    y = y + 0.3 * np.random.default_rng(1).normal(size=y.shape)
    fitted = model(max_epochs=10).fit(X[:100], y[:100])
    fitted.conformalize(X[100:400], y[100:400])
    low, high = np.moveaxis(fitted.predict_interval(X[400:], 0.8), -1, 0)
    inside = ((low <= y[400:]) & (y[400:] <= high)).all(1)
    # Two standard errors of 300 calibration and 300 test samples.
    assert inside.mean() == pytest.approx(0.8, abs=0.07)


def test_bands_come_from_the_held_out_samples_largest_errors():
    X, y = fields((4, 3), 60, n_outputs=2)
    fitted = model(early_stopping=True).fit(X[:40], y[:40], X_val=X[40:], y_val=y[40:])
    for rank in (20, 19, 10):
        low, high = np.moveaxis(fitted.predict_interval(X[40:], rank / 21), -1, 0)
        # The last sample that is inside touches the band.
        inside = (low - 1e-9 <= y[40:]) & (y[40:] <= high + 1e-9)
        assert (inside.all((1, 2)).sum(0) == rank).all()


@pytest.mark.filterwarnings("ignore:no rows were held out in fit")
def test_draws_have_the_mean_and_the_deviation_that_are_predicted():
    X, y = fields((3, 2), 50)
    fitted = model().fit(X, y)
    mean, deviation = fitted.predict(X[:5], return_std=True)
    draws = fitted.sample_y(X[:5], 4000)
    assert draws.shape == (5, 3, 2, 4000)
    assert_allclose(draws.mean(-1), mean, atol=5 * deviation.max() / np.sqrt(4000))
    assert_allclose(draws.std(-1), deviation, rtol=0.1)


@pytest.mark.filterwarnings("ignore:no rows were held out in fit")
@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda fitted, X: fitted.predict(X, return_cov=True),
            "return_cov=True is not available for targets on a grid, whose points are "
            "too many; take return_std=True, or draws of sample_y.",
        ),
        (
            lambda fitted, X: model(store_loo=True).fit(X, X[..., 0]),
            "store_loo=True is not available for targets on a grid, whose points "
            "resemble each other; leave it out, and hold samples out instead "
            "(early_stopping=True or X_val).",
        ),
        (
            lambda fitted, X: fitted.score(X, X[:, :2, 0]),
            "y has shape (40, 2) but the predictions for X have shape (40, 6); pass "
            "the targets of the same samples and points.",
        ),
        (
            lambda fitted, X: fitted.conformalize(X, X[:, 0, 0]),
            "y has shape (40,) but the y of the training has shape (n_samples, "
            "grid_1); pass the same outputs.",
        ),
    ],
    ids=["covariance", "leave one out", "score", "conformalize"],
)
def test_what_a_grid_does_not_have_is_said(use, message):
    X, y = fields((6,))
    fitted = model().fit(X, y)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        use(fitted, X)


# Shapes that don't fit ----------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 5), (40, 6, 2, 2), (40, 2, 6), (40, 6, 3, 1)])
def test_targets_that_do_not_fit_the_features_grid_are_named(shape):
    X, _ = fields((6,))
    rest = ", ".join(["n_samples", *map(str, shape[1:])])
    message = (
        "backbone Pointwise returned features of shape (2, 6, 6) for X of shape "
        "(2, 6, 3); with these, y must be (n_samples, 6) or (n_samples, 6, n_outputs), "
        f"but it has shape ({rest}); for others return (n_samples, *grid, n_features) "
        "with y's grid."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model().fit(X, np.ones(shape))


def test_features_that_stand_first_are_told_from_a_grid():
    X, y = np.ones((20, 3, 12)), np.ones((20, 12))
    message = (
        r"must be \(n_samples, 8\) or \(n_samples, 8, n_outputs\), but it has shape "
        r"\(n_samples, 12\); pass TorchBackbone\(\.\.\., feature_axis=1\) if the"
    )
    with pytest.raises(ValueError, match=message):
        model(TorchBackbone(Convolution)).fit(X, y)
    model(TorchBackbone(Convolution, feature_axis=1)).fit(X, y)


def test_a_classifier_needs_one_row_of_features_a_sample():
    X, y = fields((6,))
    message = (
        "backbone Pointwise returned features of shape (2, 6, 6) for X of shape "
        "(2, 6, 3); it must return (2, n_features) with n_features of at least 1."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        CFLLClassifier(Pointwise()).fit(X, y[:, 0] > 0)


def test_samples_that_the_backbone_refuses_are_named_with_those_of_the_training():
    X, y = fields((6,))
    fitted = model().fit(X, y)
    message = (
        "X has shape (40, 6, 2) but the X of the training had shape (n_samples, 6, 3), "
        "and the backbone raised RuntimeError: mat1 and mat2"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        fitted.predict(X[..., :2])
    message = (
        "X has shape (40, 6) but the X of the training had shape (n_samples, 6, 3); "
        "pass the same axes."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fitted.predict(X[..., 0])


def test_held_out_samples_may_be_of_another_resolution():
    X, y = fields((6,), 60)
    X_val, y_val = fields((15,), 20, seed=3)
    fitted = model(early_stopping=True, alpha="auto").fit(
        X, y, X_val=X_val, y_val=y_val
    )
    loss = fitted.history_[fitted.n_iter_ - 1, "valid_loss"]
    assert loss < 1
    assert fitted.predict_interval(X_val, 0.8).shape == (20, 15, 2)


# Backbones that keep more than tensors in their state ----------------------------


class Noted(Pointwise):
    """Adds a note to its state, which its parents can't load."""

    def state_dict(self, *args, **kwargs):
        return {**super().state_dict(*args, **kwargs), "_note": {"version": 1}}


class Extra(Pointwise):
    """Has a state beside its tensors, as torch provides for."""

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        assert state == {"version": 1}


@pytest.mark.parametrize("kind", [Noted, Extra])
def test_a_backbone_may_note_more_in_its_state_than_tensors(kind):
    X, y = fields((6,))
    held_out = {"X_val": X, "y_val": y}
    plain = model(early_stopping=True).fit(X, y, **held_out)
    noted = model(kind(), early_stopping=True).fit(X, y, **held_out)
    assert_array_equal(noted.predict(X), plain.predict(X))


# Augmentation -------------------------------------------------------------------


def augmented(transform, **params):
    X, y = fields((6,))
    settings = {"net_params": {"batch_transform": transform}, "lr": 1e-2, **params}
    return model(**settings).fit(X, y)


def test_a_transform_that_changes_nothing_has_no_effect():
    X, _ = fields((6,))
    plain = augmented(None)
    assert_array_equal(augmented(lambda X: X).predict(X), plain.predict(X))


@pytest.mark.parametrize("order", ["head_first", "backbone_first"])
def test_the_transform_sees_each_training_batch_once_and_no_other(order):
    shapes = []

    def note(X):
        shapes.append(tuple(X.shape))
        return X + 0.1 * torch.randn_like(X)

    augmented(note, max_epochs=3, batch_size=20, update_order=order)
    assert shapes == [(20, 6, 3)] * 6


@pytest.mark.parametrize("batch_size", [4, 20, "full"])
def test_a_transform_may_write_in_place(batch_size):
    X, y = fields((6,))
    X = X.astype(np.float32)  # as the network takes it, so that no copy is made of it
    given = X.copy()
    settings = {"batch_size": batch_size, "lr": 1e-2, "max_epochs": 3}
    predictions = []
    for transform in (lambda batch: 2 * batch, lambda batch: batch.mul_(2)):
        fitted = model(net_params={"batch_transform": transform}, **settings)
        predictions.append(fitted.fit(X, y).predict(X))
        assert_array_equal(X, given)
    assert_array_equal(*predictions)


def test_random_transforms_follow_the_seed():
    X, _ = fields((6,))

    def jitter(X):
        return X + 0.5 * torch.randn_like(X)

    first, again = augmented(jitter).predict(X), augmented(jitter).predict(X)
    assert_array_equal(first, again)
    assert np.abs(first - augmented(None).predict(X)).max() > 1e-3


def test_the_exact_head_is_solved_on_the_rows_as_they_are():
    X, y = fields((6,))
    fitted = augmented(lambda X: X * 0 + 1.0 * torch.randn_like(X), alpha=1e-9)
    features = fitted.transform(X).reshape(-1, 6)
    rows = np.c_[features, np.ones(len(features))]
    head = np.linalg.lstsq(rows, y.ravel(), rcond=None)[0]
    assert_allclose(fitted.predict(X).ravel(), rows @ head, atol=1e-6)


@pytest.mark.parametrize(
    ("transform", "got"),
    [(lambda X: X[:1], r"\(1, 6, 3\)"), (lambda X: X.numpy(), "ndarray")],
    ids=["fewer samples", "an array"],
)
def test_a_transform_must_give_the_same_samples(transform, got):
    message = (
        rf"^batch_transform returned {got} for X of shape \(40, 6, 3\); it must return "
        r"a tensor of as many samples\.$"
    )
    with pytest.raises(ValueError, match=message):
        augmented(transform)


# Streams and new targets ------------------------------------------------------


def test_streams_and_new_targets_are_refused_on_a_grid():
    X, y = fields(GRIDS["line"])
    fitted = model().fit(X, y)
    for method in ("partial_fit", "forget", "refit_head"):
        with pytest.raises(ValueError, match=f"{method} is not available for targets"):
            getattr(fitted, method)(X, y)
    with pytest.raises(ValueError, match="partial_fit is not available for targets"):
        model().partial_fit(X, y)


def test_missing_targets_are_refused_on_a_grid():
    X, y = fields(GRIDS["line"])
    y[0, 0] = np.nan
    with pytest.raises(ValueError, match="fill the points"):
        model(missing_targets="ignore").fit(X, y)
