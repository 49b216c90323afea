"""Rows that come in chunks: the head is as if they had come together."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError
from small_models import classifier, regressor

from sklearn_cfll import MLP, TorchBackbone, load, save
from sklearn_cfll._final import ALPHA_PATH
from sklearn_cfll.functional import Moments, RidgePath, solve_ridge

FROZEN = {"stream_epochs": 0, "dtype": "float64"}


@pytest.fixture(scope="module")
def rows():
    """240 rows, two outputs."""
    random = np.random.default_rng(0)
    X = random.uniform(-1, 1, size=(240, 4))
    Y = np.c_[3 * X[:, 0] + np.sin(3 * X[:, 1]), X[:, 2] ** 2]
    return X, Y + 0.05 * random.normal(size=Y.shape)


@pytest.fixture(scope="module")
def labels(rows):
    X, _ = rows
    return np.array(["a", "b", "c"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0.3)]


def stream(model, X, y, size, **kwargs):
    for start in range(0, len(X), size):
        part = slice(start, start + size)
        own = {
            name: value if name == "classes" else value[part]
            for name, value in kwargs.items()
        }
        model.partial_fit(X[part], y[part], **own)
    return model


def same_head(first, second, tolerance=1e-8):
    for name in ("coef_", "intercept_"):
        actual, expected = getattr(first, name), getattr(second, name)
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def expected_head(model, X, y, alpha, weight=None):
    """Solve for the head of rows that are all at hand."""
    features, targets = torch.tensor(model.transform(X)), torch.tensor(y)
    weight = None if weight is None else torch.tensor(weight)
    alpha = torch.as_tensor(alpha, dtype=torch.float64)
    coefficients, bias = solve_ridge(features, targets, alpha, weight)
    return coefficients.T.numpy(), bias.numpy()


# Chunks equal the whole --------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("forgetting", [1.0, 0.98])
@pytest.mark.parametrize("alpha", ["auto", 1e-3])
def test_chunks_of_any_size_give_the_head_of_all_rows(rows, size, forgetting, alpha):
    X, Y = rows
    start = regressor(alpha=alpha, forgetting=forgetting, **FROZEN)
    start.partial_fit(X[:40], Y[:40])
    whole = copy.deepcopy(start).partial_fit(X[40:], Y[40:])
    parts = stream(copy.deepcopy(start), X[40:], Y[40:], size)
    same_head(parts, whole)
    weight = forgetting ** np.arange(len(X) - 1.0, -1, -1)
    coef, intercept = expected_head(whole, X, Y, whole.alpha_, weight)
    np.testing.assert_allclose(whole.coef_, coef, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(whole.intercept_, intercept, rtol=1e-8, atol=1e-8)


def test_a_stream_goes_on_from_a_fit_with_the_head_of_all_rows(rows):
    X, Y = rows
    model = regressor(dtype="float64", early_stopping=False).fit(X[:100], Y[:100])
    features, alpha = model.transform(X), model.alpha_
    stream(model, X[100:], Y[100:], 30)
    np.testing.assert_array_equal(model.transform(X), features)
    np.testing.assert_array_equal(model.alpha_, alpha)
    coef, intercept = expected_head(model, X, Y, alpha)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-8, atol=1e-8)


def test_a_fit_of_a_backbone_without_parameters_equals_its_stream(rows):
    X, Y = rows
    backbone = torch.nn.LayerNorm(4, elementwise_affine=False)
    settings = {"alpha": 0.01, "dtype": "float64", "early_stopping": False}
    whole = regressor(backbone, **settings).fit(X, Y)
    parts = stream(regressor(backbone, stream_epochs=3, **settings), X, Y, 50)
    same_head(parts, whole)


def test_weights_are_on_one_scale_in_all_chunks(rows):
    X, Y = rows
    counts = np.arange(len(X)) % 3 * np.where(np.arange(len(X)) < 120, 1, 5)
    model = regressor(alpha=1e-3, **FROZEN).partial_fit(X[:40], Y[:40])
    repeated = copy.deepcopy(model)
    stream(model, X[40:], Y[40:], 40, sample_weight=counts[40:].astype(float))
    index = np.repeat(np.arange(40, len(X)), counts[40:])
    same_head(model, repeated.partial_fit(X[index], Y[index]))


def test_chunks_of_classes_give_the_solved_head_of_all_rows(rows, labels):
    X, _ = rows
    start = classifier(true_class_weight=3.0, **FROZEN)
    start.partial_fit(X[:40], labels[:40], classes=["a", "b", "c"])
    whole = copy.deepcopy(start).partial_fit(X[40:], labels[40:])
    parts = stream(copy.deepcopy(start), X[40:], labels[40:], 25)
    for name in ("weight", "bias"):
        actual = getattr(parts.net_.module_.head, name)
        expected = getattr(whole.net_.module_.head, name)
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    assert parts.score(X, labels) > 0.8


# Removal ----------------------------------------------------------------------------


def test_classes_of_a_stream_share_the_ridge_that_suits_them_together(rows, labels):
    X, _ = rows
    model = classifier(**FROZEN).partial_fit(X, labels, classes=["a", "b", "c"])
    moments = model._sums.moments
    errors = RidgePath(moments).generalized_errors(ALPHA_PATH).mean(1)
    assert isinstance(model.alpha_, float)
    best = errors[list(ALPHA_PATH).index(model.alpha_)]
    assert errors.min() <= best < 1.01 * errors.min()


def test_forget_undoes_an_update(rows):
    X, Y = rows
    model = regressor(**FROZEN).partial_fit(X[:150], Y[:150])
    before = copy.deepcopy(model)
    model.partial_fit(X[150:], Y[150:])
    assert np.abs(model.coef_ - before.coef_).max() > 1e-3
    same_head(model.forget(X[150:], Y[150:]), before)


def test_forget_leaves_the_head_of_the_other_rows_of_a_fit(rows):
    X, Y = rows
    model = regressor(dtype="float64", early_stopping=False).fit(X, Y)
    model.forget(X[:30], Y[:30])
    coef, _ = expected_head(model, X[30:], Y[30:], model.alpha_)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-8, atol=1e-8)


def test_forget_keeps_the_factor_of_a_classifiers_scores(rows, labels):
    X, _ = rows
    model = classifier(**FROZEN)
    model.partial_fit(X[:200], labels[:200], classes=["a", "b", "c"])
    before = copy.deepcopy(model)
    model.forget(X[:20], labels[:20])
    factor = before.calibration_[0]
    np.testing.assert_allclose(model.calibration_, [factor, 0], rtol=1e-10)
    expected = factor * model.net_.module_.head.weight.numpy().T
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-10)


@pytest.mark.parametrize("change", [lambda X, Y: (3 * X, Y), lambda X, Y: (X, 9 * Y)])
def test_rows_that_no_head_can_hold_are_refused(rows, change):
    X, Y = rows
    model = regressor(**FROZEN).partial_fit(X[:60], Y[:60])
    before = model.coef_.copy()
    with pytest.raises(ValueError, match="X and y hold rows that are not in the head"):
        model.forget(*change(X[60:110], Y[60:110]))
    np.testing.assert_array_equal(model.coef_, before)


def test_all_rows_can_not_be_forgotten(rows):
    X, Y = rows
    model = regressor(**FROZEN).partial_fit(X, Y)
    with pytest.raises(ValueError, match="or all of those that are"):
        model.forget(X, Y)


@pytest.mark.parametrize(
    ("settings", "cure"),
    [({"stream_epochs": 1}, "stream_epochs=0"), ({"forgetting": 0.9}, "forgetting=1")],
)
def test_what_can_not_be_removed_exactly_is_refused(rows, settings, cure):
    X, Y = rows
    model = regressor(**{**FROZEN, **settings})
    stream(model, X[:80], Y[:80], 40)
    with pytest.raises(ValueError, match=f"stream with {cure}"):
        model.forget(X[:5], Y[:5])


def test_forget_needs_a_fitted_estimator(rows):
    with pytest.raises(NotFittedError):
        regressor().forget(*rows)


# A backbone that moves --------------------------------------------------------------


def test_a_stream_from_scratch_trains_the_backbone(rows):
    X, Y = rows
    frozen = stream(regressor(**FROZEN), X, Y, 40)
    moving = stream(regressor(dtype="float64"), X, Y, 40)
    assert np.abs(moving.transform(X) - frozen.transform(X)).max() > 0.1
    # As many passes over the first of six chunks as in fit, and three over the others.
    assert moving.n_iter_ == 30 + 5 * 3
    once = stream(regressor(dtype="float64", stream_epochs=1), X, Y, 40)
    assert once.n_iter_ == 6
    assert moving.score(X, Y) > 0.9
    # Of chunks on which steps are whole ones.
    once = stream(regressor(dtype="float64", stream_epochs=1), X, Y, 120)
    assert once.score(X, Y) < 0.8


def test_earlier_rows_stand_for_the_head_that_was_trained(rows):
    X, Y = rows
    moments = Moments.of(torch.tensor(X), torch.tensor(Y))
    weight, bias = torch.randn(4, 2).double(), torch.randn(2).double()
    error = torch.tensor([0.3, 0.7]).double()
    alpha = torch.tensor([0.0, 0.2]).double()
    moved = moments.moved(weight, bias, alpha, error)
    for actual, expected in zip(
        RidgePath(moved).solve(alpha), (weight, bias), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(moved.error_of(weight, bias), error)
    assert moments.holds(moments)


def test_the_same_seed_gives_the_same_stream(rows):
    X, Y = rows
    first, second = (stream(regressor(), X, Y, 60) for _ in range(2))
    np.testing.assert_array_equal(first.predict(X), second.predict(X))


# Generalised cross-validation ---------------------------------------------------------


def test_generalised_errors_are_those_of_the_hat_matrix(rows):
    X, Y = (torch.tensor(part) for part in rows)
    path, n = RidgePath(Moments.of(X, Y)), len(X)
    errors = path.generalized_errors([1e-3, 0.5])
    centred = X - X.mean(0)
    for alpha, actual in zip([1e-3, 0.5], errors, strict=True):
        penalty = alpha * n * path.energy * torch.eye(4).double()
        hat = centred @ torch.linalg.solve(centred.T @ centred + penalty, centred.T)
        hat = hat + 1 / n
        residual = Y - hat @ Y
        expected = residual.square().mean(0) / (1 - hat.trace() / n) ** 2
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


# Contract ---------------------------------------------------------------------------


def test_a_stream_of_classes_needs_their_names_first(rows, labels):
    X, _ = rows
    message = "classes must be passed on the first call to partial_fit"
    with pytest.raises(ValueError, match=message):
        classifier().partial_fit(X, labels)
    model = classifier().partial_fit(X[:50], labels[:50], classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="is not the same as on last call"):
        model.partial_fit(X[50:], labels[50:], classes=["a", "b"])


@pytest.mark.parametrize(
    ("labels", "named"),
    [(["a", "d"], "label 'd'"), (["x", "d"], r"labels \['d', 'x'\]")],
)
def test_labels_that_no_call_named_are_told(rows, labels, named):
    X, _ = rows
    known = ["a", "b"]
    stream = (
        rf"^y holds the {named}, none of the classes \['a', 'b'\] that classes named "
        r"in the first call; name all that will come there, or leave (its|their) rows "
        r"out\.$"
    )
    with pytest.raises(ValueError, match=stream):
        classifier().partial_fit(X[:2], labels, classes=known)
    model = classifier().partial_fit(X[:2], known, classes=known)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=stream):
        model.partial_fit(X[:2], labels)
    assert vars(model) == before
    fitted = classifier().fit(X[:4], known * 2)
    message = rf"the {named}, none of the classes .* of fit; call fit with rows of all"
    with pytest.raises(ValueError, match=message):
        fitted.partial_fit(X[:2], labels)


def test_a_stream_of_one_class_is_refused(rows):
    model = classifier()
    message = r"^classes holds \['a'\]; CFLLClassifier needs two classes or more\.$"
    with pytest.raises(ValueError, match=message):
        model.partial_fit(rows[0][:2], ["a", "a"], classes=["a"])
    assert not hasattr(model, "classes_")


def test_classes_may_come_later_than_the_first_chunk(rows, labels):
    X, _ = rows
    order = np.argsort(labels, kind="stable")
    model = stream(
        classifier(**FROZEN), X[order], labels[order], 40, classes=["a", "b", "c"]
    )
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.score(X, labels) > 0.8


def test_a_stream_holds_out_no_rows(rows):
    with pytest.raises(ValueError, match="partial_fit holds out no rows"):
        regressor(early_stopping=True).partial_fit(*rows)


def test_balanced_classes_need_all_rows(rows, labels):
    model = classifier(class_weight="balanced")
    with pytest.raises(ValueError, match="a stream doesn't tell; pass a dict"):
        model.partial_fit(rows[0], labels, classes=["a", "b", "c"])


def test_a_chunk_that_fails_leaves_no_trace(rows):
    X, Y = rows
    model = regressor(**FROZEN).partial_fit(X[:50], Y[:50])
    before = dict(vars(model))
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(np.full((3, 4), np.nan), Y[:3])
    assert vars(model) == before


def test_a_stream_keeps_no_rows(rows):
    X, Y = rows
    model = regressor(**FROZEN).partial_fit(X[:50], Y[:50])
    size = len(pickle.dumps(model))
    for _ in range(20):
        model.partial_fit(X, Y)
    assert len(pickle.dumps(model)) - size < X.nbytes / 2


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.0), ("stream_epochs", -3), ("forgetting", 2.0)]
)
def test_parameters_are_checked_in_each_call(rows, name, value):
    X, Y = rows
    model = regressor(max_epochs=1).partial_fit(X[:100], Y[:100])
    before = model.predict(X)
    model.set_params(**{name: value})
    with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter of CFLL"):
        model.partial_fit(X[100:], Y[100:])
    np.testing.assert_array_equal(model.predict(X), before)


# What the first rows settle --------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self, in_features, width=8):
        super().__init__()
        self.linear = torch.nn.Linear(in_features, width)

    def forward(self, X):
        return self.linear(X).tanh()


CHANGES = [
    (
        {"backbone": MLP(width=16)},
        r"backbone__width has changed .*, from 32 to 16, but",
    ),
    ({"backbone": TorchBackbone(Net)}, r"backbone has .*, from MLP to TorchBackbone,"),
    ({"backbone": Net(4)}, r"backbone has .*, from MLP to Net\(\n  \(linear\): Linear"),
    ({"backbone__width": 16}, "backbone__width has changed .*, from 32 to 16, but"),
    ({"dtype": "float32"}, "dtype has changed .*, from float64 to float32, but"),
    ({"sample_norm": "relative"}, "sample_norm has .*, from None to 'relative', but"),
]


@pytest.mark.parametrize("begin", ["fit", "partial_fit"])
@pytest.mark.parametrize(("params", "message"), CHANGES)
def test_what_the_first_rows_settle_can_not_change(rows, begin, params, message):
    X, Y = rows
    model = getattr(regressor(max_epochs=1), begin)(X[:100], Y[:100])
    before, predictions = dict(vars(model)), model.predict(X)
    last = model.get_params()
    model.set_params(**params)
    message = (
        rf"(?s)^{message}.* set it back, or call fit, or partial_fit of a clone, to"
    )
    for method in [model.partial_fit, model.forget]:
        with pytest.raises(ValueError, match=message):
            method(X[50:100], Y[50:100])
    np.testing.assert_array_equal(model.predict(X), predictions)
    model.set_params(**last)
    assert vars(model).keys() == before.keys()
    model.partial_fit(X[100:], Y[100:])
    model.set_params(**params).fit(X, Y + 9).partial_fit(X, Y + 9)


def test_a_head_for_new_targets_goes_by_the_network_that_was_trained(rows):
    X, Y = rows
    model = regressor(max_epochs=1).fit(X[:100], Y[:100])
    model.set_params(backbone__width=16)
    other = model.refit_head(X[:100], -Y[:100])
    message = "^backbone__width has changed .*, from 32 to 16, but the network"
    with pytest.raises(ValueError, match=message):
        other.partial_fit(X[100:], -Y[100:])
    other.set_params(backbone__width=32).partial_fit(X[100:], -Y[100:])


def test_a_stream_of_classes_keeps_their_scale_and_weights(rows, labels):
    X, _ = rows
    model = classifier(max_epochs=1).partial_fit(X, labels, classes=["a", "b", "c"])
    for name, value in [
        ("target_scale", 30.0),
        ("true_class_weight", 2.0),
        ("class_weight", {"a": 2.0, "b": 1.0, "c": 1.0}),
    ]:
        changed = copy.deepcopy(model).set_params(**{name: value})
        with pytest.raises(ValueError, match=f"^{name} has changed since the first"):
            changed.partial_fit(X, labels)
    names = {"a": 1.0, "b": 1.0, "c": 1.0}
    weighted = classifier(max_epochs=1, class_weight=names)
    weighted.partial_fit(X, labels, classes=["a", "b", "c"])
    weighted.set_params(class_weight=dict(reversed(names.items())))
    weighted.partial_fit(X, labels)


def test_what_holds_for_a_chunk_may_change(rows):
    X, Y = rows
    model = regressor(max_epochs=1).partial_fit(X[:80], Y[:80])
    model.set_params(lr=1e-3, stream_epochs=1, verbose=0, alpha=0.1, prox=2.0)
    model.set_params(optimizer="sgd", batch_size=16, forgetting=0.9, random_state=7)
    # The defaults by another name, and what "auto" has come to.
    model.set_params(dtype="float64", backbone=MLP(width=np.int64(32)))
    assert model.partial_fit(X[80:], Y[80:]).history_[0, "lr"] == 1e-3


def pickled(model, folder):
    return pickle.loads(pickle.dumps(model))


def saved(model, folder):
    save(model, folder / "model")
    return load(folder / "model", backbone=Net)


@pytest.mark.parametrize("copied", [pickled, saved])
def test_a_stream_goes_on_from_a_file(rows, tmp_path, copied):
    X, Y = rows
    model = regressor(TorchBackbone(Net, width=5), max_epochs=1)
    model = copied(model.partial_fit(X[:80], Y[:80]), tmp_path)
    model.partial_fit(X[80:], Y[80:])
    with pytest.raises(ValueError, match=r"^backbone__width has changed"):
        model.set_params(backbone__width=6).partial_fit(X, Y)


class Activated(Net):
    """Takes what it computes from a dict."""

    def __init__(self, in_features, settings):
        super().__init__(in_features, settings["width"])
        self.activation = settings["activation"]

    def forward(self, X):
        return self.activation(super().forward(X))


def test_functions_in_a_dict_go_by_their_names(rows):
    X, Y = rows
    settings = {"width": 5, "activation": lambda X: X.tanh()}
    model = regressor(TorchBackbone(Activated, settings=settings), max_epochs=1)
    model.partial_fit(X[:80], Y[:80])
    again = {"activation": lambda X: X.tanh(), "width": 5}
    model.set_params(backbone__settings=again).partial_fit(X[80:], Y[80:])
    with pytest.raises(ValueError, match=r"^backbone__settings has changed"):
        model.set_params(backbone__settings={**again, "width": 6}).partial_fit(X, Y)


# Scales ------------------------------------------------------------------------------


def far(what, mean, spread):
    return pytest.warns(
        UserWarning,
        match=rf"^{what} has the mean {mean} and the standard deviation {spread} in "
        r"these rows, where it had [\d.e-]+ and \d\.\d+ in the first ones of the "
        r"stream; scales are learnt from the first rows alone, .* scale X and y "
        r"beforehand\.$",
    )


def test_rows_unlike_the_first_ones_are_told_once(rows):
    X, Y = rows
    shifted, scaled = X + np.eye(4)[2] * 30, X * [1, 300.0, 1, 1]
    model = regressor(max_epochs=1).partial_fit(X[:100], Y[:100])
    first = copy.deepcopy(model).partial_fit(X[100:], Y[100:])
    with far("column 2 of X", r"(29\.9|30|30\.\d)", r"0\.\d+"):
        model.partial_fit(shifted[-60:], Y[-60:])
    model.partial_fit(scaled, Y)
    with far("column 1 of X", r"-?[\d.]+", r"1\d\d"):
        first.partial_fit(scaled[-60:], Y[-60:])


def test_few_rows_are_not_compared(rows):
    X, Y = rows
    rare = (np.arange(len(X)) == 0).astype(float)[:, None]
    model = regressor(max_epochs=1).partial_fit(np.hstack([X, rare])[:100], Y[:100])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.partial_fit(np.hstack([X, 1 - rare])[-1:], Y[-1:])


def test_targets_unlike_the_first_ones_are_told_once(rows):
    X, Y = rows
    model = regressor(max_epochs=1).partial_fit(X[:100], Y[:100, 0])
    with far("y", r"1e\+03", r"\d\.\d+"):
        model.partial_fit(X[-60:], Y[-60:, 0] + 1e3)
    model.partial_fit(X, Y[:, 0] - 1e3)


def test_a_column_goes_by_its_name(rows):
    X, Y = rows
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = regressor(max_epochs=1).partial_fit(frame[:100], Y[:100])
    with far(r"column 3 \(d\) of X", r"\d+", r"0\.\d+"):
        model.partial_fit(frame[-60:].assign(d=lambda part: part["d"] + 50), Y[-60:])


def test_first_rows_that_are_all_the_same_are_told(rows):
    X, Y = rows
    message = (
        r"^X is constant in the first 20 rows of the stream; scales are learnt from"
    )
    with pytest.warns(UserWarning, match=message):
        model = regressor(max_epochs=1).partial_fit(np.full((20, 4), 3.0), Y[:20])
    model.partial_fit(X, Y)


def test_scales_that_no_first_rows_tell_are_no_matter(rows, labels):
    X, Y = rows
    few = regressor(max_epochs=1).partial_fit(X[:2], Y[:2])
    few.partial_fit(X + 1e3, Y)
    constant = X * [1, 1, 1, 0]
    regressor(max_epochs=1).partial_fit(constant, Y).partial_fit(X, Y)
    numbers = (labels == "a") * 1.0
    some = classifier(max_epochs=1)
    some.partial_fit(X[:20], numbers[:20], classes=[0.0, 1.0]).partial_fit(X, numbers)
    missing = regressor(max_epochs=1, missing_targets="ignore")
    missing.partial_fit(X[:100], Y[:100])
    missing.partial_fit(X, np.where([True, False], np.nan, Y))
