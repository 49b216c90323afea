"""Steps along the root or the logarithm of the loss, which have its minimisers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from refusals import assert_refused, case
from skorch.callbacks import Callback
from small_theory import (
    N_FEATURES,
    N_OUTPUTS,
    close,
    curved_data,
    gradient,
    make_backbone,
    parameters_of,
    with_ones,
)

from sklearn_cfll import MLP, CFLLNet, CFLLRegressor, load, save
from sklearn_cfll.batches import TensorBatches

RATE = 0.01
NAMES = ["root", "log"]
# The factor that each gives to the gradient of a loss.
FACTORS = {"root": lambda loss: 0.5 / loss**0.5, "log": lambda loss: 1 / loss}


class Steps(Callback):
    """Keeps what each step computed and left behind."""

    def on_train_begin(self, net, **kwargs):
        self.states, self.values = [parameters_of(net.module_.backbone)], []

    def on_batch_end(self, net, training=False, loss=None, objective=None, **kwargs):
        self.states.append(parameters_of(net.module_.backbone))
        self.values.append((loss, objective))


def train(objective=None, *, data=None, batch_size=1000, **settings):
    """Train a net in float64; give it and its steps."""
    inputs, targets = curved_data() if data is None else data
    defaults = {
        "optimizer": torch.optim.SGD,
        "lr": RATE,
        "lr_schedule": "constant",
        "max_epochs": 3,
        "prox": 1.0,
    }
    net = CFLLNet(
        make_backbone(),
        n_features=N_FEATURES,
        n_outputs=N_OUTPUTS,
        objective=objective,
        callbacks=[("steps", Steps())],
        **{**defaults, **settings},
    )
    batches = TensorBatches(inputs, targets, batch_size=batch_size, dtype=torch.float64)
    net.fit(batches, None)
    return net, dict(net.callbacks_)["steps"]


@pytest.mark.parametrize("order", ["head_first", "backbone_first"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_that_along_the_loss_times_the_derivative(name, order):
    settings = {"max_epochs": 1, "update_order": order}
    _, plain = train(**settings)
    _, steps = train(name, **settings)
    loss = plain.values[0][0]
    step = plain.states[1] - plain.states[0]
    close(steps.values[0][0], loss, 1e-12)
    close(steps.states[1] - steps.states[0], FACTORS[name](loss) * step, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_gradient_through_the_solve(name):
    """By the envelope theorem, where the head is the minimiser on the batch."""
    _, steps = train(name, max_epochs=1, prox=0.0, alpha=0.0)
    inputs, targets = curved_data()
    backbone = make_backbone()
    extended = with_ones(backbone(inputs))
    solved = torch.linalg.lstsq(extended, targets).solution
    loss = (extended @ solved - targets).square().mean()
    value = loss.sqrt() if name == "root" else loss.log()
    step = steps.states[1] - steps.states[0]
    close(step, -RATE * gradient(value, backbone), 1e-9)


def test_history_and_held_out_losses_stay_those_of_the_loss():
    net, steps = train("log", batch_size=20)
    losses = [float(loss) for loss, _ in steps.values]
    assert_allclose([float(value) for _, value in steps.values], np.log(losses))
    expected = np.reshape(losses, (3, 2)).mean(1)
    assert_allclose(net.history[:, "train_loss"], expected)
    assert_allclose(net.history[:, "train_score"], 1 - expected)


def test_a_function_of_ones_own_serves_too():
    named, own = train("root")[1], train(lambda loss: loss.square() ** 0.25)[1]
    close(own.states[-1], named.states[-1], 1e-12)
    assert not torch.equal(named.states[-1], train()[1].states[-1])


@pytest.mark.parametrize("name", NAMES)
def test_where_the_loss_is_zero_the_backbone_stays(name):
    inputs, targets = curved_data()
    _, steps = train(name, data=(inputs, torch.zeros_like(targets)))
    assert [float(loss) for loss, _ in steps.values] == [0.0] * 3
    for state in steps.states[1:]:
        assert_array_equal(state, steps.states[0])


def test_a_line_search_compares_it_with_the_penalty_inside():
    settings = {"optimizer": torch.optim.LBFGS, "lr": 1.0, "max_epochs": 1}
    settings |= {"optimizer__line_search_fn": "strong_wolfe", "alpha": 0.05}
    _, plain = train(**settings)
    _, steps = train("root", **settings)
    loss, penalised = plain.values[0]
    assert penalised > loss
    close(steps.values[0][1], penalised.sqrt(), 1e-12)
    close(steps.values[0][0], loss, 1e-12)


@pytest.fixture(scope="module")
def smooth():
    """Make a table whose targets have no noise."""
    X = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    return X, np.sin(X[:, 0] + X[:, 1]) + X[:, 2] * X[:, 3]


def regressor(objective=None, **params):
    return CFLLRegressor(
        MLP(width=32),
        max_epochs=30,
        batch_size=32,
        prox=(0.01, 1.0),
        alpha=1e-5,
        lr_schedule="cosine",
        net_params={"objective": objective},
        early_stopping=False,
        random_state=0,
        **params,
    )


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_the_error_falls_further(smooth, name):
    X, y = smooth
    errors = [
        np.square(regressor(each).fit(X[:400], y[:400]).predict(X[400:]) - y[400:])
        for each in [None, name]
    ]
    assert errors[1].mean() < 0.7 * errors[0].mean()


def test_it_goes_with_the_estimator_into_a_file(smooth, tmp_path):
    X, y = smooth
    model = regressor("log").fit(X, y)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.net_params == {"objective": "log"}
    assert loaded.net_.objective == "log"
    again = copy.deepcopy(loaded).fit(X, y)
    assert_array_equal(again.predict(X), model.predict(X))


@pytest.mark.parametrize(
    ("make", "params", "fit_arguments", "error", "message"),
    [
        case(
            "unknown name",
            ValueError,
            r"objective must be None, 'root', 'log' or a function of the loss, got "
            r"'sqrt'; pass one of these\.",
            params={"net_params": {"objective": "sqrt"}},
        ),
        case(
            "a number",
            ValueError,
            r"objective must be None, 'root', 'log' or a function of the loss, got "
            r"0\.5; pass one of these\.",
            params={"net_params": {"objective": 0.5}},
        ),
        case(
            "no tensor",
            ValueError,
            r"objective returned NoneType for a loss of shape \(\); it must return a "
            r"tensor of that shape, as torch\.sqrt does\.",
            params={"net_params": {"objective": lambda loss: None}},
        ),
        case(
            "no gradient",
            ValueError,
            r"objective returned a tensor without a gradient, by which nothing would "
            r"be learnt; compute it from the loss by torch's functions, without "
            r"detach\(\)\.",
            params={"net_params": {"objective": lambda loss: loss.detach()}},
        ),
        case(
            "a wrong shape",
            ValueError,
            r"objective returned \(1,\) for a loss of shape \(\); it must return a "
            r"tensor of that shape, as torch\.sqrt does\.",
            params={"net_params": {"objective": lambda loss: loss[None]}},
        ),
        case(
            "NumPy's functions",
            ValueError,
            r"objective raised RuntimeError for a loss of [\d.e-]+: Can't call "
            r"numpy\(\) on Tensor that requires grad\..*; it must take a tensor of "
            r"shape \(\) and give one, computed by torch's functions, such as "
            r"torch\.log, and not by numpy's or math's\.",
            params={"net_params": {"objective": np.log}},
        ),
        case(
            "not a number",
            ValueError,
            r"objective returned nan for a loss of [\d.e-]+; it must give a number "
            r"for any loss above zero, a larger one for a larger loss, as torch\.sqrt "
            r"does\.",
            params={"net_params": {"objective": lambda loss: torch.log(loss - 1e3)}},
        ),
    ],
)
def test_what_is_no_objective_is_refused(make, params, fit_arguments, error, message):
    assert_refused(make, params, fit_arguments, error, message)
