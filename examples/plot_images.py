"""
Images: a convolutional network with a closed-form last layer
=============================================================

A small convolutional network reads handwritten digits. Its last layer is solved in
closed form at each step by `CFLLClassifier`; the same network, with an ordinary last
layer, is trained end to end on the squared loss and on the cross-entropy. The images
are moved about at random in the training, by a function of the batch.

The digits of scikit-learn are read, or the images in a file, an ``.npz`` with ``X`` of
shape (n_samples, rows, columns) and labels ``y``::

    python examples/plot_images.py --data mnist5k.npz
"""

import argparse
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from torch import nn

from sklearn_cfll import CFLLClassifier, TorchBackbone

parser = argparse.ArgumentParser(description="Images of digits.")
parser.add_argument("--data", type=Path, help="an .npz with X and y")
parser.add_argument(
    "--quick", action="store_true", help="few rows, to see that it runs"
)
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--epochs", type=int, nargs="+", default=[2, 5, 10, 30])
arguments, _ = parser.parse_known_args()
EPOCHS = [1, 2] if arguments.quick else arguments.epochs
SEEDS = range(1 if arguments.quick else arguments.seeds)
BATCH = 64
torch.set_num_threads(1)  # so that the times compare whatever else the machine does

# %%
# Images
# ------
# X has the shape (n_samples, channels, rows, columns). A fifth is the test, and a fifth
# of the rest is held out: for the closed form's choice of the epoch, the ridge and the
# probabilities, and for the choice of the rate end to end.

if arguments.data is None:
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 8, 8) / 16
else:
    with np.load(arguments.data) as file:
        X, y = file["X"] / file["X"].max(), file["y"]
    X = X.reshape(len(X), *X.shape[-2:])
if arguments.quick:
    X, y = X[::5], y[::5]
X = ((X - X.mean()) / X.std())[:, None].astype(np.float32)
X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
X, X_val, y, y_val = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
n_classes = len(np.unique(y))
print(f"{len(X)} images of {X.shape[-2]} x {X.shape[-1]}, {len(X_test)} for the test")


# %%
# The network
# -----------
# Three convolutions, the mean over the plane, and a LayerNorm without weights of its
# own, from which the closed-form layer profits. The transform moves each batch by a
# pixel or two, in a direction of its own.


def network(in_features, width=16):
    return nn.Sequential(
        nn.Conv2d(in_features, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.GroupNorm(4, 2 * width),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(8 * width, elementwise_affine=False),
    )


def shifted(X, most=X.shape[-1] // 8):
    """Move each image by up to a few pixels."""
    rows, columns = torch.randint(-most, most + 1, (2, len(X)))
    grid = torch.arange(X.shape[-1])
    across = (grid + columns[:, None]).clamp(0, len(grid) - 1)
    along = (grid + rows[:, None]).clamp(0, len(grid) - 1)
    index = torch.arange(len(X))[:, None, None]
    return X.movedim(1, -1)[index, along[:, :, None], across[:, None]].movedim(-1, 1)


# %%
# Training
# --------
# Each training has its number of epochs and a rate that falls along a cosine within
# them. The squared loss end to end has targets of minus and plus one, as the closed
# form has; its probabilities are a softmax of the scores times a factor, fitted on the
# held-out images. The rate is the best of four on these, at the most epochs.


def measures(probabilities, y, n_bins=15):
    """Accuracy, log loss and expected calibration error."""
    hit = probabilities.argmax(1) == y
    sure = probabilities.max(1)
    bins = np.minimum((sure * n_bins).astype(int), n_bins - 1)
    gaps = [abs((hit[bins == b] - sure[bins == b]).sum()) for b in np.unique(bins)]
    loss = log_loss(y, probabilities, labels=np.arange(n_classes))
    return hit.mean(), loss, sum(gaps) / len(y)


def closed_form(epochs, seed):
    model = CFLLClassifier(
        TorchBackbone(network),
        batch_size=BATCH,
        max_epochs=epochs,
        prox=(1, 100),
        lr_schedule="cosine",
        net_params={"batch_transform": shifted},
        random_state=seed,
    )
    started = time.process_time()
    model.fit(X, y, X_val=X_val, y_val=y_val)
    seconds = time.process_time() - started
    return seconds, measures(model.predict_proba(X_test), y_test)


def end_to_end(epochs, seed, rate, squared, test=True):
    """Train with AdamW; measure on the test or on the held-out images."""
    torch.manual_seed(seed)
    body = network(1)
    width = body(torch.from_numpy(X[:1])).shape[1]
    module = nn.Sequential(body, nn.Linear(width, n_classes))
    inputs, labels = torch.from_numpy(X), torch.from_numpy(y).long()
    signs = 2.0 * nn.functional.one_hot(labels, n_classes) - 1
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    n_steps = epochs * -(-len(X) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    started = time.process_time()
    for _ in range(epochs):
        for index in torch.randperm(len(X)).split(BATCH):
            scores = module(shifted(inputs[index]))
            if squared:
                loss = (scores - signs[index]).square().mean()
            else:
                loss = nn.functional.cross_entropy(scores, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.process_time() - started
    with torch.inference_mode():
        held_out = module(torch.from_numpy(X_val))
        scores = module(torch.from_numpy(X_test)) if test else held_out
    target = torch.from_numpy(y_val).long()
    factors = torch.logspace(-1, 1.5, 51) if squared else torch.ones(1)
    losses = [nn.functional.cross_entropy(f * held_out, target) for f in factors]
    best = factors[int(np.argmin(losses))]
    probabilities = (best * scores.double()).softmax(1).numpy()
    return seconds, measures(probabilities, y_test if test else y_val)


RATES = [1e-3, 3e-3, 1e-2, 3e-2]
rates = {}
for name, squared in {"squared loss": True, "cross-entropy": False}.items():
    losses = [end_to_end(EPOCHS[-1], 0, r, squared, test=False)[1][1] for r in RATES]
    rates[name] = RATES[int(np.argmin(losses))]
METHODS = {
    "closed form": lambda epochs, seed: closed_form(epochs, seed),
    "squared loss": lambda *of: end_to_end(*of, rates["squared loss"], True),
    "cross-entropy": lambda *of: end_to_end(*of, rates["cross-entropy"], False),
}
table = {}
print(f"{'':<14} rate  epochs seconds accuracy log loss   ECE")
for name, method in METHODS.items():
    for epochs in EPOCHS:
        runs = [method(epochs, seed) for seed in SEEDS]
        seconds = np.mean([run[0] for run in runs])
        values = np.mean([run[1] for run in runs], 0)
        table[name, epochs] = (seconds, *values)
        print(
            f"{name:<14} {rates.get(name, 0.02):<6g} {epochs:>4} {seconds:>7.1f} "
            f"{values[0]:>8.4f} {values[1]:>8.4f} {values[2]:>6.4f}"
        )

# %%
# Pictures
# --------

figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
for axis, column, label in zip(
    axes[:3],
    (1, 2, 3),
    ("share of wrong classes", "log loss", "calibration error"),
    strict=True,
):
    for name in METHODS:
        rows = np.array([table[name, epochs] for epochs in EPOCHS])
        values = 1 - rows[:, 1] if column == 1 else rows[:, column]
        axis.plot(rows[:, 0], values, marker="o", markersize=4, label=name)
    axis.set(xlabel="seconds of the processor", ylabel=label, yscale="log")
    axis.set_xlim(left=0)
axes[0].legend(fontsize="small")
pair = torch.cat([torch.from_numpy(X[:6]), shifted(torch.from_numpy(X[:6]))])[:, 0]
rows = [np.hstack(list(pair[i : i + 6])) for i in (0, 6)]
axes[3].imshow(np.vstack(rows), cmap="gray_r")
axes[3].set(title="Images, and moved ones", xticks=[], yticks=[])
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_images.png", dpi=150)
    print("The picture is in plot_images.png.")
