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
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from sklearn_cfll import CFLLRegressor, TorchBackbone

with warnings.catch_warnings():  # the package changes the filters for all
    from neuralop.data.datasets.tensor_dataset import TensorDataset
    from neuralop.data.transforms.data_processors import DefaultDataProcessor
    from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
    from neuralop.losses import H1Loss, LpLoss
    from neuralop.models import FNO
    from neuralop.training import AdamW, Trainer


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
        features = self.fno(X).movedim(1, -1)  # for torch's kernel, a fast one
        normalised = nn.functional.layer_norm(features, features.shape[-1:])
        return normalised.movedim(-1, 1)


def make_fno(n_modes, width):
    """Make the package's network for one field in and one out."""
    return FNO(n_modes=n_modes, in_channels=1, out_channels=1, hidden_channels=width)


def closed_form(n_modes, width=32, **params):
    """Make the regressor for data without noise.

    They want a loose pull and a small ridge, and steps that don't fade with the loss.
    """
    settings = {
        "batch_size": 10,
        "prox": (0.001, 0.01),
        "alpha": 1e-5,
        "lr": 0.01,
        "lr_schedule": "cosine",
        "weight_decay": 0.1,
        "sample_norm": "relative",
        "net_params": {"objective": "log"},
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


def run_end_to_end(train, test, n_modes, *, epochs, seed, rate, loss, width=32):
    """Train the whole network by Adam, the rate falling along a cosine to zero.

    Parameters
    ----------
    loss : {"relative", "square", "log"}
        "relative" is the package's loss, the relative L2 error, by Adam. "square" is
        the mean of its square, the loss of the closed form, and "log" the logarithm of
        that, both by AdamW.
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
    kind = torch.optim.Adam if loss == "relative" else torch.optim.AdamW
    optimizer = kind(network.parameters(), lr=rate, weight_decay=1e-4)
    schedule = CosineAnnealingLR(optimizer, epochs * -(-len(X) // 10))
    relative = LpLoss(d=len(n_modes), p=2, reduction="mean")
    recorder = Recorder(*test)
    recorder.on_train_begin(None)
    for _ in range(epochs):
        network.train()
        for index in torch.randperm(len(X)).split(10):
            predicted = network(X[index]) * scale + mean
            if loss == "relative":
                value = relative(predicted, y[index])
            else:
                gap = (predicted - y[index]).flatten(1).square().sum(1)
                value = (gap / y[index].flatten(1).square().sum(1)).mean()
            optimizer.zero_grad()
            (value.log() if loss == "log" else value).backward()
            optimizer.step()
            schedule.step()
        recorder.note(network, lambda outputs: outputs[:, 0] * scale + mean)
    return network, {"seconds": recorder.seconds, "errors": recorder.errors}


class NotedTrainer(Trainer):
    """The package's trainer, which calls a function before each epoch but the first.

    Parameters
    ----------
    note : callable
    **settings
        Of the trainer.
    """

    def __init__(self, note, **settings):
        super().__init__(**settings)
        self.note = note

    def on_epoch_start(self, epoch):
        """Note how it stands."""
        if epoch:
            self.note()
        return super().on_epoch_start(epoch)


def run_trainer(train, test, n_modes, *, epochs, seed, rate, width=32):
    """Train the whole network by the package's own trainer.

    It has the loss and the optimizer of the package's example: the relative H1 error of
    normalised fields, AdamW and a cosine that falls once an epoch.

    Returns
    -------
    network : FNO
    curve : dict
        "seconds" and "errors" after each epoch.
    """
    X, y = torch.from_numpy(train[0]), torch.from_numpy(train[1])[:, None]
    torch.manual_seed(seed)
    network = make_fno(n_modes, width)
    normalizer = UnitGaussianNormalizer(dim=list(range(y.ndim)))
    normalizer.fit(y)
    optimizer = AdamW(network.parameters(), lr=rate, weight_decay=1e-4)
    mean, scale = float(normalizer.mean), float(normalizer.std)
    recorder = Recorder(*test)

    def note():
        recorder.note(network, lambda outputs: outputs[:, 0] * scale + mean)

    trainer = NotedTrainer(
        note,
        model=network,
        n_epochs=epochs,
        data_processor=DefaultDataProcessor(out_normalizer=normalizer),
    )
    recorder.on_train_begin(None)
    trainer.train(
        train_loader=DataLoader(TensorDataset(X, y), batch_size=10, shuffle=True),
        test_loaders={},
        optimizer=optimizer,
        scheduler=CosineAnnealingLR(optimizer, T_max=epochs),
        training_loss=H1Loss(d=len(n_modes)),
    )
    note()
    return network, {"seconds": recorder.seconds, "errors": recorder.errors}


def time_to(curve, error):
    """Seconds until an error is reached; infinite where it isn't."""
    reached = np.flatnonzero(np.array(curve["errors"]) <= error)
    return curve["seconds"][reached[0]] if len(reached) else np.inf


METHODS = {
    "closed-form last layer": None,
    "Adam, relative L2": {"rate": 1e-2, "loss": "relative"},
    "AdamW, its square": {"rate": 1e-2, "loss": "square"},
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
