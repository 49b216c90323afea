"""Fourier neural operators with a closed-form last layer, and trained end to end.

The network is that of the neuraloperator package. Times are of the processor, without
what the evaluation takes.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import torch
from _fields import relative_error
from skorch.callbacks import Callback
from torch import nn

from sklearn_cfll import CFLLRegressor, TorchBackbone

with warnings.catch_warnings():  # the package changes the filters for all
    from neuralop.losses import LpLoss
    from neuralop.models import FNO


class FNOFeatures(nn.Module):
    """An FNO up to its last linear layer, its features normalised at each point.

    Parameters
    ----------
    n_modes : tuple
    width : int, default=32
    """

    def __init__(self, n_modes, width=32):
        super().__init__()
        self.fno = make_fno(n_modes, width)
        projection = self.fno.projection
        projection.fcs[-1] = nn.Identity()
        projection.out_channels = projection.hidden_channels

    def forward(self, X):
        """Compute features (n, d, *grid) of X (n, channels, *grid)."""
        features = self.fno(X)
        centred = features - features.mean(1, keepdim=True)
        square = centred.square().mean(1, keepdim=True)
        return centred * (square + 1e-5).rsqrt()


def make_fno(n_modes, width):
    """Make the package's network for one field in and one out."""
    return FNO(n_modes=n_modes, in_channels=1, out_channels=1, hidden_channels=width)


def closed_form(n_modes, width=32, **params):
    """Make the regressor; data without noise want a loose pull and a small ridge."""
    settings = {
        "batch_size": 10,
        "prox": (0.001, 0.1),
        "alpha": 1e-5,
        "lr": 0.01,
        "sample_norm": "relative",
        "early_stopping": False,
        "dtype": "float32",
        **params,
    }
    backbone = TorchBackbone(FNOFeatures, feature_axis=1, n_modes=n_modes, width=width)
    return CFLLRegressor(backbone, **settings)


class Recorder(Callback):
    """Notes the error on other samples after each epoch, and the time without that.

    Parameters
    ----------
    X, y : arrays
    """

    def __init__(self, X, y):
        self.X, self.y = X, y

    def on_train_begin(self, net, **kwargs):
        """Start the clock."""
        self.seconds, self.errors = [], []
        self.spent, self.started = 0.0, time.process_time()

    def on_epoch_end(self, net, **kwargs):
        """Note the error."""
        self.note(net.module_, net.decode)

    def note(self, module, decode):
        """Stop the clock and evaluate a module by chunks."""
        self.spent += time.process_time() - self.started
        module.eval()
        with torch.inference_mode():
            parts = [module(part) for part in torch.from_numpy(self.X).split(50)]
        predicted = decode(torch.cat(parts).numpy())
        self.errors.append(relative_error(predicted, self.y))
        self.seconds.append(self.spent)
        self.started = time.process_time()


def run_closed_form(train, test, n_modes, *, epochs, seed, **params):
    """Train with the closed-form last layer.

    Returns
    -------
    model : CFLLRegressor
    curve : dict
        "seconds" and "errors" after each epoch, those of the exact head last.
    """
    recorder = Recorder(*test)
    model = closed_form(
        n_modes,
        max_epochs=epochs,
        random_state=seed,
        callbacks=[("recorder", recorder)],
        **params,
    )
    started = time.process_time()
    model.fit(*train)
    elapsed = time.process_time() - started
    recorder = dict(model.net_.callbacks_)["recorder"]
    recorder.X = recorder.y = None
    evaluating = recorder.started - started - recorder.spent
    final = relative_error(model.predict(test[0]), test[1])
    curve = {
        "seconds": [*recorder.seconds, max(elapsed - evaluating, recorder.spent)],
        "errors": [*recorder.errors, final],
    }
    return model, curve


def run_end_to_end(train, test, n_modes, *, epochs, seed, rate, package, width=32):
    """Train the whole network by Adam, the rate falling along a cosine to zero.

    Parameters
    ----------
    package : bool
        Whether as the package does, by Adam on the relative L2 error; or else by AdamW
        on its square, which is the loss of the closed form.
    rate : float

    Returns
    -------
    network : FNO
    curve : dict
        "seconds" and "errors" after each epoch.
    """
    X, y = torch.from_numpy(train[0]), torch.from_numpy(train[1])[:, None]
    mean, scale = float(y.mean()), float(y.std())
    torch.manual_seed(seed)
    network = make_fno(n_modes, width)
    kind = torch.optim.Adam if package else torch.optim.AdamW
    optimizer = kind(network.parameters(), lr=rate, weight_decay=1e-4)
    n_batches = -(-len(X) // 10)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * n_batches)
    relative = LpLoss(d=len(n_modes), p=2, reduction="mean")
    recorder = Recorder(*test)
    recorder.on_train_begin(None)
    for _ in range(epochs):
        network.train()
        for index in torch.randperm(len(X)).split(10):
            predicted = network(X[index]) * scale + mean
            if package:
                loss = relative(predicted, y[index])
            else:
                gap = (predicted - y[index]).flatten(1).square().sum(1)
                loss = (gap / y[index].flatten(1).square().sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        recorder.note(network, lambda outputs: outputs[:, 0] * scale + mean)
    return network, {"seconds": recorder.seconds, "errors": recorder.errors}


def time_to(curve, error):
    """Seconds until an error is reached; infinite where it isn't."""
    reached = np.flatnonzero(np.array(curve["errors"]) <= error)
    return curve["seconds"][reached[0]] if len(reached) else np.inf


METHODS = {
    "closed-form last layer": None,
    "Adam, relative L2": {"rate": 1e-2, "package": True},
    "AdamW, its square": {"rate": 1e-2, "package": False},
}


def compare(train, test, n_modes, *, epochs, seeds):
    """Train in each of the ways, with each seed, and print errors and seconds.

    The rate of each end-to-end training is the best of four in the benchmark.

    Returns
    -------
    model : CFLLRegressor
        That of the last seed.
    curves : dict
        By the name of the method, curves as :func:`run_closed_form` gives, one a seed.
    """
    curves = {}
    for name, settings in METHODS.items():
        curves[name] = []
        for seed in seeds:
            arguments = {"epochs": epochs, "seed": seed}
            if settings is None:
                model, curve = run_closed_form(train, test, n_modes, **arguments)
            else:
                _, curve = run_end_to_end(train, test, n_modes, **arguments, **settings)
            curves[name].append(curve)
        error = np.mean([curve["errors"][-1] for curve in curves[name]])
        seconds = np.mean([curve["seconds"][-1] for curve in curves[name]])
        print(f"{name:<24} relative L2 {error:.4f} after {seconds:5.1f} s")
    return model, curves


def draw_curves(axes, curves):
    """Draw test errors against seconds."""
    for name, color in zip(curves, ("C0", "C1", "C2"), strict=True):
        for i, curve in enumerate(curves[name]):
            label = name if i == 0 else None
            axes.plot(curve["seconds"], curve["errors"], color=color, label=label)
    axes.set(
        xlabel="seconds of the processor",
        ylabel="relative L2 error",
        yscale="log",
        title="Test error during the training",
    )
    axes.legend(fontsize="small")
