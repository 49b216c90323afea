"""Numbers, estimators that fit in a fraction of a second, a callback that watches."""

from __future__ import annotations

import torch
from skorch.callbacks import Callback
from torch import nn

from sklearn_cfll import MLP, CFLLClassifier, CFLLRegressor


def draw(*shape, seed=0):
    """Draw normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def regressor(backbone=None, **params):
    settings = {"max_epochs": 30, "batch_size": 32, "random_state": 0, **params}
    return CFLLRegressor(MLP(width=32) if backbone is None else backbone, **settings)


def classifier(backbone=None, **params):
    settings = {"max_epochs": 10, "random_state": 0, **params}
    return CFLLClassifier(MLP(width=32) if backbone is None else backbone, **settings)


def small_network(width=8):
    """Make a module of four inputs, with the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, width), nn.Tanh())


class LogOfFirst(nn.Module):
    """Takes the logarithm of the first of four columns, too."""

    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, X):
        return torch.cat([self.network(X), X[:, :1].log()], 1)


class Watcher(Callback):
    """Notes what the estimator hands to its net."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        groups = net.optimizer_.param_groups
        self.optimizer = type(net.optimizer_)
        self.options = {k: v for k, v in groups[0].items() if k != "params"}
        self.rows = X
        self.sizes, self.lr, self.held_out = [], [], None

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.held_out = dataset_valid

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        if training:
            self.sizes.append(len(batch[1]))

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            self.lr.append(net.optimizer_.param_groups[0]["lr"])


def watched(model, X, y, *args, **kwargs):
    """Fit with a watcher; give the fitted model and what was seen."""
    callbacks = [*(model.callbacks or []), ("watcher", Watcher())]
    model.set_params(callbacks=callbacks).fit(X, y, *args, **kwargs)
    return model, dict(model.net_.callbacks_)["watcher"]
