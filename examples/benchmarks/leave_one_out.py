"""What leave-one-out over 50 ridges costs, in solves of the head.

One solve is the Gram matrix of all rows, its Cholesky factor and the solution at one
ridge. Leave-one-out has the eigendecomposition of the Gram matrix in place of the
factor, turns the rows into its basis, and gives the errors of every ridge. Features and
targets are random numbers in float64; times are of one thread, medians of interleaved
repeats.

Run it with ``python examples/benchmarks/leave_one_out.py``; ``--help`` lists options.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from _command_line import made_folder
from _common import use_one_thread
from _tables import as_list_table

from sklearn_cfll.functional import Moments, PathErrors, RidgePath

ALPHAS = np.logspace(-6, 2, 50).tolist()
SIZES = (
    (5_000, 256, 1),
    (20_000, 256, 1),
    (20_000, 256, 10),
    (5_000, 1024, 1),
    (20_000, 64, 1),
)


def solve(features, targets, alpha=0.01):
    """Return the weight of one ridge."""
    moments = Moments.of(features, targets)
    gram = moments.gram.clone()
    gram.diagonal().add_(moments.weight_sum * alpha * moments.energy)
    return torch.cholesky_solve(moments.cross, torch.linalg.cholesky(gram))


def leave_one_out(features, targets):
    """Return the weight of the best of all ridges, and the errors of all of them."""
    path = RidgePath(Moments.of(features, targets))
    projected = path.project(features)
    leverages = path.leverages(projected, ALPHAS)
    squares = PathErrors(path).squares(projected, targets, ALPHAS)
    pairs = zip(leverages, squares, strict=True)
    errors = [(square / (1 - pull).square()).mean(0) for pull, square in pairs]
    best = torch.stack(errors).argmin(0)
    return path.solve(torch.tensor(ALPHAS, dtype=torch.float64)[best])[0], errors


def seconds_of(function, *arguments):
    """Return the processor seconds of one call."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def measure(n_rows, n_features, n_outputs, repeats):
    """Return a row of the results."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    features = torch.randn(n_rows, n_features, **draw)
    targets = torch.randn(n_rows, n_outputs, **draw)
    times = [
        [seconds_of(function, features, targets) for function in (solve, leave_one_out)]
        for _ in range(repeats + 1)
    ]
    one, all_of_them = np.median(times[1:], axis=0)
    return {
        "rows": str(n_rows),
        "features": str(n_features),
        "outputs": str(n_outputs),
        "one solve, ms": f"{1e3 * one:.1f}",
        "leave-one-out adds, in solves": f"{all_of_them / one - 1:.2f}",
    }


def main():
    """Measure every size, then print and write the times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a quick look")
    parser.add_argument("--output", help="folder for leave_one_out.rst")
    arguments = parser.parse_args()
    use_one_thread()
    sizes, repeats = SIZES, arguments.repeats
    if arguments.quick:
        sizes, repeats = ((500, 64, 1), (500, 64, 10)), 3
    table = pd.DataFrame([measure(*size, repeats) for size in sizes])
    print(table.to_string(index=False))
    if arguments.output:
        folder = made_folder(arguments.output)
        text = as_list_table(table, "Leave-one-out over 50 ridges")
        (folder / "leave_one_out.rst").write_text(text)


if __name__ == "__main__":
    main()
