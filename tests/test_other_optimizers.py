"""Optimizers of another package plug in, those that average the weights too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytorch_optimizer import MARS, AliG, ScheduleFreeAdamW, ScheduleFreeSGD
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback
from small_models import classifier, regressor, small_network

from sklearn_cfll import CFLLNet

SETTINGS = {
    # The rate and the momentum that optimizer="sgd" has.
    "a Polyak step": {
        "optimizer": AliG,
        "optimizer_params": {"max_lr": 0.1, "momentum": 0.9},
    },
    "variance-reduced": {"optimizer": MARS, "prox": (1, 100)},
    "schedule-free": {"optimizer": ScheduleFreeAdamW, "lr_schedule": "constant"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_optimizer_learns_digits_that_a_linear_model_does_not(settings):
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0)
    linear = RidgeClassifier().fit(X, y).score(X_test, y_test)
    model = classifier(**settings).fit(X, y)
    # Of the linear model's errors less than half are left.
    assert 1 - model.score(X_test, y_test) < 0.5 * (1 - linear)


# Optimizers with a mode for steps and one for predictions ------------------------


class Strict(ScheduleFreeSGD):
    """Refuses, as the authors' own implementation does, to step in eval mode."""

    def step(self, closure=None):
        assert training(self)
        return super().step(closure)


def training(optimizer):
    (mode,) = {group["train_mode"] for group in optimizer.param_groups}
    return mode


class Modes(Callback):
    """Notes the optimizer's mode and its own weights after each batch."""

    def on_train_begin(self, net, **kwargs):
        self.steps, self.rests, self.own = [], [], []

    def on_batch_end(self, net, training=None, **kwargs):
        (self.steps if training else self.rests).append(self.mode(net))
        if training:
            states = net.optimizer_.state.values()
            self.own.append([state["z"].clone() for state in states])

    def on_epoch_end(self, net, **kwargs):
        self.rests.append(self.mode(net))

    def on_train_end(self, net, **kwargs):
        self.rests.append(self.mode(net))

    @staticmethod
    def mode(net):
        return training(net.optimizer_)


def averaging(**params):
    settings = {"optimizer": Strict, "lr": 0.1, "lr_schedule": "constant"}
    callbacks = [*params.pop("callbacks", []), ("modes", Modes())]
    return regressor(**{**settings, **params}, callbacks=callbacks)


def modes_of(model):
    return dict(model.net_.callbacks_)["modes"]


@pytest.mark.parametrize("early_stopping", [False, True])
def test_it_steps_in_train_mode_and_predicts_in_eval_mode(table, early_stopping):
    model = averaging(early_stopping=early_stopping, max_epochs=3).fit(*table)
    seen = modes_of(model)
    assert set(seen.steps) == {True}
    assert set(seen.rests) == {False}


def test_the_fitted_backbone_is_the_average_of_the_optimizers_weights(table):
    model = averaging(max_epochs=4).fit(*table)
    own = modes_of(model).own
    assert len(own) == 24
    for i, parameter in enumerate(model.backbone_.parameters()):
        average = torch.stack([weights[i] for weights in own]).mean(0)
        assert_allclose(parameter.detach(), average, rtol=1e-9, atol=1e-12)
        assert float((parameter - own[-1][i]).abs().max().detach()) > 1e-3


class Reached(Callback):
    """Computes the held-out loss of the network as it is when the training ended."""

    def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
        self.held_out = dataset_valid

    @torch.no_grad()
    def on_train_end(self, net, **kwargs):
        predictions = net.module_.eval()(torch.from_numpy(self.held_out.X))
        self.loss = float((predictions - self.held_out.targets).square().mean())


def test_early_stopping_restores_the_average_of_the_best_epoch(table, fresh_rows):
    random = np.random.default_rng(0)
    noise = [random.normal(size=len(X)) for X, _ in (table, fresh_rows)]
    model = averaging(callbacks=[("reached", Reached())], prox=0.1, lr=1.0)
    model.fit(table[0], noise[0], X_val=fresh_rows[0], y_val=noise[1])
    losses = model.history_[:, "valid_loss"]
    assert min(losses) < 0.99 * losses[-1]
    reached = dict(model.net_.callbacks_)["reached"].loss
    assert reached == pytest.approx(min(losses), rel=1e-9)


class Interrupt(Callback):
    def on_batch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            raise KeyboardInterrupt


class Spoil(Callback):
    @torch.no_grad()
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            for parameter in net.module_.backbone.parameters():
                parameter.fill_(torch.nan)


@pytest.mark.parametrize(
    "callbacks",
    [[Interrupt()], [Spoil()], [Spoil(), Interrupt()]],
    ids=["interrupted", "spoilt", "both"],
)
def test_an_interrupted_or_spoilt_training_ends_at_the_average(table, callbacks):
    model = averaging(callbacks=callbacks, max_epochs=5)
    with pytest.warns(ConvergenceWarning, match="^training was interrupted|went back"):
        model.fit(*table)
    assert set(modes_of(model).rests) == {False}
    assert model.score(*table) > 0.9


def test_more_epochs_go_on_from_the_optimizers_own_weights(table):
    X, y = table[0], table[1][:, None]
    settings = {"optimizer": Strict, "lr": 0.1, "lr_schedule": "constant", "prox": 1.0}
    at_once, in_parts = (
        CFLLNet(
            small_network(),
            n_features=8,
            n_outputs=1,
            batch_size=len(X),
            max_epochs=n,
            **settings,
        ).fit(X, y)
        for n in (20, 10)
    )
    first = in_parts.predict(X)
    in_parts.partial_fit(X, y)
    assert_allclose(in_parts.predict(X), at_once.predict(X), rtol=1e-3)
    assert abs(in_parts.predict(X) - first).max() > 0.05
