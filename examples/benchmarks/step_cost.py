"""What a training step of CFLL costs beside a plain AdamW step of the same network.

A `head_first` step solves the head on top of the forward and backward pass, so it
costs more: by the count of floating-point operations, and as measured here, in turn
with a hand-written loop over the same batches, on one CPU thread.

Run it with ``python examples/benchmarks/step_cost.py``; ``--help`` lists options.
"""

import argparse
import itertools
import time

import numpy as np
import torch
from _common import Split, build_network, use_one_thread
from torch import nn

from sklearn_cfll import MLP, CFLLNet
from sklearn_cfll.batches import TensorBatches


def count_operations(columns, width, depth, batch_size, n_outputs):
    """Return the operations of a plain step and of a CFLL step.

    Multiplications and additions of the dense layers, three passes each (forward, and
    backward to the inputs and to the weights); for the head the Gram matrix of the
    smaller side and its Cholesky factor.
    """
    sizes = [columns, *[width] * depth, n_outputs]
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    plain = 3 * 2 * batch_size * weights
    features, smaller = width + 1, min(width + 1, batch_size)
    larger = max(features, batch_size)
    return plain, plain + 2 * larger * smaller**2 + smaller**3 / 3


def plain_steps(network, batches, lr=1e-3, **options):
    """Yield after each AdamW step over the batches, again and again."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, **options)
    network.train()
    for X, y in itertools.cycle(batches):
        loss = nn.functional.mse_loss(network(X), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def cfll_steps(split, batches, batch_size):
    """Yield after each `head_first` step over the batches, with the defaults."""
    X, y = (torch.from_numpy(part) for part in split.train)
    backbone = MLP().build(TensorBatches(X))
    net = CFLLNet(
        backbone,
        n_features=MLP().width,
        n_outputs=1,
        optimizer__fused=True,  # as the estimators have it
        max_epochs=1,
        callbacks="disable",
    )
    net.fit(TensorBatches(X, y, batch_size=batch_size), None)
    for X, y in itertools.cycle(batches):
        net.step_ = 1  # stay at the start of the schedules, with the head solved
        net.train_step(({"X": X}, y))
        yield


def measure(runs, blocks, steps):
    """Return the median seconds of a step of each run, timed in turn by blocks."""
    seconds = {name: [] for name in runs}
    for _ in range(blocks):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(steps):
                next(run)
            seconds[name].append((time.perf_counter() - start) / steps)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def compare(columns, batch_size, blocks, steps, seed=0):
    """Return the median seconds of a step by each of the three ways."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((32 * batch_size, columns)).astype(np.float32)
    y = (np.sin(X[:, :1]) + X[:, 1:2]).astype(np.float32)
    split = Split("made", "regression", (X, y), (X, y), (X, y))
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    batches = list(zip(X.split(batch_size), y.split(batch_size), strict=True))
    runs = {
        "AdamW": plain_steps(build_network(split, seed), batches),
        "AdamW, fused": plain_steps(build_network(split, seed), batches, fused=True),
        "CFLL head_first": cfll_steps(split, batches, batch_size),
    }
    measure(runs, 2, 5)  # the first steps of each warm up
    return measure(runs, blocks, steps)


def main():
    """Print counts and measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=60, help="timings of each way")
    parser.add_argument("--steps", type=int, default=10, help="steps in a timing")
    parser.add_argument("--quick", action="store_true", help="a few seconds' look")
    arguments = parser.parse_args()
    blocks, steps = (3, 3) if arguments.quick else (arguments.blocks, arguments.steps)
    use_one_thread()
    seconds = compare(arguments.columns, arguments.batch_size, blocks, steps)
    size = {"columns": arguments.columns, "batch_size": arguments.batch_size}
    plain, cfll = count_operations(width=256, depth=2, n_outputs=1, **size)
    counted = cfll / plain
    print(f"{arguments.columns} columns, 256-256 units, batch {arguments.batch_size}")
    print(f"counted: {plain / 1e6:.0f} and {cfll / 1e6:.0f} MFLOP, ratio {counted:.2f}")
    for name, value in seconds.items():
        print(f"{name:16s} {1e6 * value:7.0f} microseconds a step")
    for name in ("AdamW", "AdamW, fused"):
        ratio = seconds["CFLL head_first"] / seconds[name]
        print(f"CFLL / {name}: {ratio:.2f}, {ratio / counted:.2f} times the count")


if __name__ == "__main__":
    main()
