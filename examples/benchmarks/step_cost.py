"""What a training step of CFLL costs beside a plain AdamW step of the same network.

A `head_first` step solves the head on top of the forward and backward pass, so it
costs more: by the count of floating-point operations, and as measured here, in turn
with a hand-written loop over the same batches. Times are processor seconds on one
thread, of whole steps of either loop, from one batch to the next. The network is the
default one without its embedding of the columns, which costs both the same.

Run it with ``python examples/benchmarks/step_cost.py``; ``--help`` lists options.
"""

import argparse
import itertools
import time
import warnings

import numpy as np
import pandas as pd
import torch
from _command_line import made_folder
from _common import use_one_thread
from _step_report import as_text, draw
from _step_shares import PARTS, Stopwatch
from _tables import as_list_table
from torch import nn

from sklearn_cfll import MLP, CFLLNet
from sklearn_cfll.batches import TensorBatches

BATCHES_IN_MEMORY = 8
LEAST_BLOCKS = 3
BASELINES = {"AdamW": {}, "AdamW, fused": {"fused": True}}


# Counting ---------------------------------------------------------------------------


def count_operations(columns, width, depth, batch_size, n_outputs):
    """Return the operations of a plain step, of a CFLL step, and of a lesser one.

    A multiplication and an addition are two. A dense layer has three passes, forward
    and backward to the weights and to the inputs, but for the first, whose inputs
    have no gradient, and CFLL's head, whose weights have none. To these the head's
    update adds its matrix: the Gram matrix of the smaller side, of which half is
    computed, and its Cholesky factor; and the right-hand sides: the residual of the
    last head, its product with the features, and two triangles. The lesser count is a
    plain step and the matrix alone. What is done element by element isn't counted.
    """
    hidden = [columns, *[width] * depth]
    layers = [2 * batch_size * a * b for a, b in itertools.pairwise(hidden)]
    head = 2 * batch_size * width * n_outputs
    plain = 3 * sum(layers) - layers[0] + 3 * head
    smaller, larger = sorted((width, batch_size))
    matrix = larger * smaller**2 + smaller**3 / 3
    right_sides = 2 * head + 2 * smaller**2 * n_outputs
    return plain, plain - head + matrix + right_sides, plain + matrix


def worth_a_run(size, most):
    """Tell whether a plain step has at most so many operations, times 1e9."""
    return count_operations(depth=MLP().depth, **size)[0] <= 1e9 * most


# Steps ------------------------------------------------------------------------------


def make_backbone(width):
    """Return the network that both train."""
    return MLP(width=width, embedding=None)


def plain_steps(X, y, width, batch_size, lr=1e-3, **options):
    """Yield after each AdamW step over shuffled batches, again and again."""
    backbone = make_backbone(width).build(TensorBatches(X))
    network = nn.Sequential(backbone, nn.Linear(width, y.shape[1])).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, **options)
    while True:
        for rows in torch.randperm(len(X)).split(batch_size):
            loss = nn.functional.mse_loss(network(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


class _Enough(KeyboardInterrupt):
    """Ends the training, as Ctrl-C does."""


class ObservedBatches(TensorBatches):
    """Batches of one endless pass, which tells how long each step took.

    ``observe(seconds)`` is called after each step of the training loop, outside of
    the time that is measured; it raises ``_Enough`` in the end.
    """

    observe = None

    def __iter__(self):
        """Yield batches, again and again."""
        start = time.process_time()
        for batch in itertools.chain.from_iterable(
            super(ObservedBatches, self).__iter__() for _ in itertools.count()
        ):
            yield batch
            self.observe(time.process_time() - start)
            start = time.process_time()


def train_observed(X, y, width, batch_size, observe, lr=1e-3):
    """Train with the net's own loop and its defaults, at the start of the schedules."""
    batches = ObservedBatches(
        X, y, batch_size=batch_size, generator=torch.Generator().manual_seed(0)
    )
    batches.observe = observe
    net = CFLLNet(
        make_backbone(width).build(TensorBatches(X)),
        n_features=width,
        n_outputs=y.shape[1],
        lr=lr,
        optimizer__fused=True,  # as the estimators have it
        max_epochs=10**6,
        callbacks="disable",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "training was interrupted")
        net.fit(batches, None)


def make_rows(columns, batch_size, n_outputs, seed=0):
    """Return some batches of rows, and targets that a network can learn."""
    torch.manual_seed(seed)
    n_rows = BATCHES_IN_MEMORY * batch_size
    X = torch.randn(n_rows, columns)
    mixed = X @ torch.randn(columns, n_outputs) / columns**0.5
    return X, mixed.sin() + 0.1 * torch.randn(n_rows, n_outputs)


# Measuring --------------------------------------------------------------------------


class Turns:
    """Takes a block of plain steps of each kind after each block of CFLL's.

    Its ``seconds`` are those of a step, by the way and the block.
    """

    def __init__(self, plain, steps, limit):
        self.plain, self.steps, self.limit = plain, steps, limit
        self.seconds = {name: [] for name in ("CFLL", *plain)}
        self.block, self.start = [], time.perf_counter()

    def __call__(self, seconds):
        """Take the time of a CFLL step."""
        self.block.append(seconds)
        if len(self.block) < self.steps:
            return
        self.seconds["CFLL"].append(np.mean(self.block))
        self.block = []
        for name, run in self.plain.items():
            start = time.process_time()
            for _ in range(self.steps):
                next(run)
            self.seconds[name].append((time.process_time() - start) / self.steps)
        elapsed = time.perf_counter() - self.start
        if len(self.seconds["CFLL"]) >= LEAST_BLOCKS and elapsed > self.limit:
            raise _Enough

    def medians(self):
        """Return the seconds of a plain step, and CFLL's ratio to each kind of it.

        The ratios are of neighbouring blocks, between which the machine changes least;
        the first blocks warm up.
        """
        cfll = np.array(self.seconds["CFLL"][1:])
        ratios = {name: np.median(cfll / self.seconds[name][1:]) for name in self.plain}
        return np.median(self.seconds["AdamW"][1:]), ratios


def compare(columns, batch_size, width, n_outputs, limit):
    """Return the seconds of an AdamW step, and CFLL's ratios to both kinds of it."""
    rows = make_rows(columns, batch_size, n_outputs)
    plain = {
        name: plain_steps(*rows, width, batch_size, **options)
        for name, options in BASELINES.items()
    }
    start = time.process_time()
    for run in [*plain.values(), *plain.values()]:
        next(run)
    step = (time.process_time() - start) / 4
    turns = Turns(plain, int(np.clip(0.03 / step, 1, 50)), limit)
    train_observed(*rows, width, batch_size, turns)
    return turns.medians()


def shares(columns, batch_size, width, n_outputs, limit):
    """Return where the time of a CFLL step goes, as shares of it."""
    watch = Stopwatch()
    start = time.perf_counter()
    n_steps = itertools.count(1)

    def observe(seconds):
        watch.end_step(seconds)
        if next(n_steps) > LEAST_BLOCKS and time.perf_counter() - start > limit:
            raise _Enough

    rows = make_rows(columns, batch_size, n_outputs)
    with watch:
        train_observed(*rows, width, batch_size, observe)
    return watch.shares()


def measure(size, limit):
    """Return one row of the table."""
    plain, cfll, lesser = count_operations(depth=MLP().depth, **size)
    seconds, ratios = compare(**size, limit=limit)
    parts = shares(**size, limit=limit / 4)
    ratio = ratios["AdamW"]
    return {
        "Batch": size["batch_size"],
        "Features": size["width"],
        "Outputs": size["n_outputs"],
        "AdamW, us": 1e6 * seconds,
        "CFLL / AdamW": ratio,
        "Count": cfll / plain,
        "Over count": ratio / (cfll / plain),
        "Matrix alone": lesser / plain,
        "Over that": ratio / (lesser / plain),
        "CFLL / fused": ratios["AdamW, fused"],
        **{part: 100 * parts[part] for part in PARTS},
    }


# Output -----------------------------------------------------------------------------


def parse_arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256, 4096])
    sizes = [32, 256, 1024, 4096]
    parser.add_argument("--features", type=int, nargs="+", default=sizes)
    parser.add_argument("--outputs", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--seconds", type=float, default=5, help="for each point")
    parser.add_argument("--most", type=float, default=200, help="GFLOP of a plain step")
    parser.add_argument("--quick", action="store_true", help="a few seconds' look")
    parser.add_argument("--output", help="folder for step_cost.csv, .rst and .png")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batches, arguments.features = [32, 256], [16, 256]
        arguments.outputs, arguments.seconds = [1], 0.3
    return arguments


def main():
    """Print counts and measurements for the whole grid."""
    arguments = parse_arguments()
    use_one_thread()
    rows = []
    for point in itertools.product(
        arguments.batches, arguments.features, arguments.outputs
    ):
        names = ("batch_size", "width", "n_outputs")
        size = {"columns": arguments.columns, **dict(zip(names, point, strict=True))}
        if worth_a_run(size, arguments.most):
            rows.append(measure(size, arguments.seconds))
    results = pd.DataFrame(rows)
    tables = as_text(results)
    for title, cells in tables.items():
        print(f"{title}\n{cells.to_string(index=False)}\n")
    over = results["Over count"]
    print(f"over the count: median {over.median():.2f}, largest {over.max():.2f}")
    if arguments.output:
        folder = made_folder(arguments.output)
        results.to_csv(folder / "step_cost.csv", index=False)
        rst = [as_list_table(cells, title) for title, cells in tables.items()]
        (folder / "step_cost.rst").write_text("\n".join(rst))
        draw(results, folder / "step_cost.png")


if __name__ == "__main__":
    main()
