"""Memory of the solve over the points of grids, against that of all their features.

A convolution is the backbone, since it needs little itself; it is trained for one pass.
The peak of a fit is above what the process had before, with the data in it.

    python examples/benchmarks/grid_memory.py
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _memory import measure
from torch import nn

from sklearn_cfll import CFLLRegressor, TorchBackbone


def convolution(in_features, width):
    """Make a backbone of channels first, for periodic fields on a line."""
    layer = nn.Conv1d(in_features, width, 9, padding=4, padding_mode="circular")
    return nn.Sequential(layer, nn.SiLU())


def fit(X, y, n_features):
    """Fit in batches of ten, without held-out samples."""
    backbone = TorchBackbone(convolution, feature_axis=1, width=n_features)
    model = CFLLRegressor(
        backbone, max_epochs=1, batch_size=10, early_stopping=False, random_state=0
    )
    return model.fit(X, y)


def main():
    """Fit a few samples first, for what torch loads once; then all, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--grid", type=int, default=1024)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a quick look")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.samples, arguments.grid = [1000, 2000], 32
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    print("samples  X and y, MB  features, MB  peak, MB")
    for n_samples in arguments.samples:
        shape = (n_samples, 1, arguments.grid)
        X = random.standard_normal(shape, dtype=np.float32)
        y = X[:, 0] * np.roll(X[:, 0], 1, axis=1)
        fit(X[:20], y[:20], arguments.features)
        peak = measure(lambda X=X, y=y: fit(X, y, arguments.features))["peak"]
        data = (X.nbytes + y.nbytes) / 1e6
        features = X.nbytes * arguments.features / 1e6  # in float32, as they are
        print(f"{n_samples:>7} {data:>12.1f} {features:>13.1f} {peak:>9.1f}")


if __name__ == "__main__":
    main()
