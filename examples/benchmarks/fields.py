"""Fourier neural operators: the closed form against training end to end.

The same network of the neuraloperator package maps fields to fields, on the equations
of ``examples/_fields.py``. End to end it is trained by Adam on the package's relative
L2 error ("package"), by the package's own trainer on its H1 error ("trainer"), and by
AdamW on the square of the L2 error and on the logarithm of that, the objective of the
closed form. Each has its best of four rates, by the error on validation samples at the
first seed. The closed form has one setting for
all equations, chosen on other samples of Burgers' equation. Errors are on test samples.
Results go to a file, a line a run; what is in it is not run again.

    python examples/benchmarks/fields.py --problem burgers --output fields.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _fields import make_burgers, make_darcy, make_vorticity
from _fno import run_closed_form, run_end_to_end, run_trainer, time_to

RATES = [1e-3, 3e-3, 1e-2, 3e-2]
# Trained end to end, and the loss that each has in a loop of ours.
END_TO_END = {
    "package": "relative",
    "trainer": None,
    "adamw": "square",
    "adamw, log": "log",
}
# Maker, grid, modes, training samples, validation and test samples.
PROBLEMS = {
    "burgers": (make_burgers, 128, (16,), 1000, 200),
    "darcy": (make_darcy, 16, (8, 8), 1000, 200),
    "vorticity": (make_vorticity, 32, (12, 12), 200, 50),
}

# The closed form's objective, by the name of the method.
CLOSED_FORM = {
    "closed form": "log",
    "closed form, root": "root",
    "closed form, square": None,
}


def main():
    """Run what is not in the file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=PROBLEMS, default="burgers")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, help="training samples")
    parser.add_argument("--grid", type=int)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument(
        "--short",
        type=int,
        nargs="*",
        default=[],
        help="epochs of further trainings by the closed form, each with its schedule",
    )
    parser.add_argument(
        "--objectives",
        action="store_true",
        help="train the closed form along the root of its loss and that itself, too",
    )
    parser.add_argument("--quick", action="store_true", help="a quick look")
    parser.add_argument("--output", type=Path, default=Path("fields.jsonl"))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.seeds, arguments.width = 2, 1, 8
        arguments.samples = 40
    torch.set_num_threads(1)
    runs = Runs(arguments)
    best = {}
    for method in END_TO_END:
        curves = {rate: runs.get(method, 0, rate, "validation") for rate in RATES}
        best[method] = min(RATES, key=lambda rate: curves[rate]["errors"][-1])
    for method in list(CLOSED_FORM)[: 3 if arguments.objectives else 1]:
        best[method] = 0.01
    curves = {
        method: [runs.get(method, s, rate, "test") for s in range(arguments.seeds)]
        for method, rate in best.items()
    }
    report(best, curves)
    short = {
        epochs: [
            runs.get("closed form", seed, 0.01, "test", epochs)
            for seed in range(arguments.seeds)
        ]
        for epochs in sorted(arguments.short)
    }
    for epochs, own in short.items():
        errors = [curve["errors"][-1] for curve in own]
        seconds = np.median([curve["seconds"][-1] for curve in own])
        print(f"closed form, {epochs} epochs: {np.median(errors):.5f}, {seconds:.1f} s")
    for method in END_TO_END if short else ():
        report_shortest(method, curves[method], short)


class Runs:
    """Curves of errors by method, seed, rate and the samples that they are on."""

    def __init__(self, arguments):
        self.arguments = arguments
        make, grid, self.modes, n_train, n_other = PROBLEMS[arguments.problem]
        self.grid = arguments.grid or grid
        self.n_train = arguments.samples or n_train
        self.make, self.n_other, self.data = make, n_other, None
        self.done = {}
        if arguments.output.exists():
            lines = arguments.output.read_text().splitlines()
            self.done = {
                tuple(row["key"]): row["curve"] for row in map(json.loads, lines)
            }

    def get(self, method, seed, rate, samples, epochs=None):
        """Give a curve from the file, or make it."""
        a = self.arguments
        epochs = epochs or a.epochs
        size = (self.n_train, self.grid, a.width, epochs)
        key = (a.problem, *size, method, seed, rate, samples)
        if key not in self.done:
            self.done[key] = self.run(method, seed, rate, samples, epochs)
            with a.output.open("a") as file:
                row = {"key": key, "curve": self.done[key]}
                file.write(json.dumps(row) + "\n")
            print(*key, f"{self.done[key]['errors'][-1]:.5f}", flush=True)
        return self.done[key]

    def run(self, method, seed, rate, samples, epochs):
        """Train once; give the errors after each epoch."""
        if self.data is None:
            pairs = {"train": self.n_train, "validation": self.n_other}
            parts = self._draw({**pairs, "test": self.n_other})
            self.data = parts
        settings = {
            "epochs": epochs,
            "seed": seed,
            "width": self.arguments.width,
        }
        train, test = self.data["train"], self.data[samples]
        if method in CLOSED_FORM:
            settings["net_params"] = {"objective": CLOSED_FORM[method]}
            return run_closed_form(train, test, self.modes, lr=rate, **settings)[1]
        settings["rate"] = rate
        if method == "trainer":
            return run_trainer(train, test, self.modes, **settings)[1]
        settings["loss"] = END_TO_END[method]
        return run_end_to_end(train, test, self.modes, **settings)[1]

    def _draw(self, sizes):
        """Draw samples; standardise the inputs by those of the training."""
        parts = {
            name: self.make(n_samples, self.grid, seed=seed)
            for seed, (name, n_samples) in enumerate(sizes.items())
        }
        mean, scale = np.mean(parts["train"][0]), np.std(parts["train"][0])
        return {
            name: (
                ((X - mean) / scale)[:, None].astype(np.float32),
                y.astype(np.float32),
            )
            for name, (X, y) in parts.items()
        }


def report(best, curves):
    """Print medians over the seeds."""
    print(f"{'method':<20} {'rate':>6} {'error':>8} {'least':>8} {'most':>8} {'s':>6}")
    for method, rate in best.items():
        errors = [curve["errors"][-1] for curve in curves[method]]
        seconds = np.median([curve["seconds"][-1] for curve in curves[method]])
        print(
            f"{method:<20} {rate:>6g} {np.median(errors):>8.5f} {min(errors):>8.5f} "
            f"{max(errors):>8.5f} {seconds:>6.1f}"
        )
    for method in END_TO_END:
        ratios, shares = [], []
        for mine, other in zip(curves["closed form"], curves[method], strict=True):
            ratios.append(mine["errors"][-1] / other["errors"][-1])
            shares.append(time_to(mine, other["errors"][-1]) / other["seconds"][-1])
        print(
            f"closed form / {method}: error {np.median(ratios):.3f}, time to its error "
            f"{np.median(shares):.3f}"
        )


def report_shortest(method, others, short):
    """Print the fewest epochs that reach a method's error, seed by seed."""
    for epochs, own in short.items():
        pairs = list(zip(own, others, strict=True))
        if all(a["errors"][-1] <= b["errors"][-1] for a, b in pairs):
            share = np.median([a["seconds"][-1] / b["seconds"][-1] for a, b in pairs])
            print(f"error of {method}: {epochs} epochs, {share:.3f} of its time")
            return
    print(f"error of {method}: more epochs")


if __name__ == "__main__":
    main()
