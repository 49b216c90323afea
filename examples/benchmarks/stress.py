"""What random settings on awkward data lead to: fits, refusals, and nothing else.

Each configuration draws rows (far from zero, constant, duplicated, heavy-tailed, few),
weights, a backbone and settings, and is fitted once. It may end in an estimator with
finite predictions that are no worse than the mean, or in a documented error.

Run it with ``python examples/benchmarks/stress.py``; ``--seed 7 --count 1`` repeats
the configuration of seed 7.
"""

import argparse
import time
import warnings
from collections import Counter

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn

from sklearn_cfll import MLP, CFLLClassifier, CFLLRegressor, TorchBackbone

REFUSALS = (ValueError, TypeError, FloatingPointError)
OUTCOMES = ("fitted", "recovered", "refused", "not finite", "worse than the mean")


class Rows(Callback):
    """Keeps the rows that the backbone sees, those held out left out."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Note the rows."""
        weight = X.sample_weight
        weight = np.ones(len(X)) if weight is None else weight.double().numpy()
        self.rows = X.X.copy(), np.array(X.y), weight / weight.sum()


def relu(in_features):
    return nn.Sequential(nn.Linear(in_features, 16), nn.ReLU())


def batch_norm(in_features):
    return nn.Sequential(nn.Linear(in_features, 16), nn.BatchNorm1d(16), nn.Tanh())


def dead(in_features):
    network = relu(in_features)
    nn.init.constant_(network[0].bias, -1e6)
    return network


BACKBONES = {
    "MLP": lambda: MLP(width=32),
    "MLP without LayerNorm": lambda: MLP(width=32, normalize=False),
    "deep tanh": lambda: MLP(width=16, depth=4, activation="tanh"),
    "ReLU": lambda: MLP(width=16, activation="relu", normalize=False),
    "dropout": lambda: MLP(width=32, dropout=0.9),
    "one unit": lambda: MLP(width=1),
    "identity": nn.Identity,
    "ReLU on raw X": lambda: TorchBackbone(relu),
    "BatchNorm on raw X": lambda: TorchBackbone(batch_norm),
    "dead ReLU": lambda: TorchBackbone(dead),
}

SETTINGS = {
    "alpha": ["auto", "auto", 0.0, 1e-12, 1e-2, 1e3],
    "prox": [None, (1.0, 100.0), "auto", 1e-8, 1e-3, 1.0, 1e6, (1e-3, 1e3)],
    "update_order": ["head_first", "backbone_first"],
    "optimizer": ["adamw", "adamw", "sgd", "rmsprop", "adagrad", "nadam", "lbfgs"],
    "lr": ["auto", "auto", 1e-6, 1e-2, 1.0, 100.0, 1e6],
    "lr_schedule": ["cooldown", "cosine", "linear", "constant"],
    "batch_size": ["auto", "full", 1, 2, 7, 32],
    "max_epochs": [1, 2, 5, 12],
    "early_stopping": ["auto", True, False],
    "dtype": ["auto", "float32", "float64"],
}


def draw_rows(rng):
    """Draw X, awkward in one or two ways."""
    n = int(rng.choice([2, 3, 5, 17, 60, 60, 250, 250, 500]))
    columns = int(rng.choice([1, 2, 5, 20, 150]))
    X = rng.standard_normal((n, columns))
    column = int(rng.integers(columns))
    names = []
    for _ in range(rng.integers(1, 3)):
        kind = rng.choice(list(AWKWARD))
        with np.errstate(all="ignore"):
            X = AWKWARD[kind](rng, X.copy(), column)
        names.append(str(kind))
    return X, names


def _set(X, column, values):
    X[:, column] = values
    return X


AWKWARD = {
    "plain": lambda rng, X, column: X,
    "large": lambda rng, X, column: X * 1e6,
    "small": lambda rng, X, column: X * 1e-6,
    "huge": lambda rng, X, column: X * 1e30,
    "tiny": lambda rng, X, column: X * 1e-30,
    "far from zero": lambda rng, X, column: X + 1e9,
    "constant column": lambda rng, X, column: _set(X, column, 0.1),
    "all constant": lambda rng, X, column: np.full_like(X, 0.1),
    "all zero": lambda rng, X, column: np.zeros_like(X),
    "duplicated columns": lambda rng, X, column: X[:, [column] * X.shape[1]],
    "duplicated rows": lambda rng, X, column: X[rng.integers(2, size=len(X))],
    "one dominates": lambda rng, X, column: _set(X, column, X[:, column] * 1e9),
    "rank one": lambda rng, X, column: np.outer(X[:, column], X[0]),
    "Cauchy": lambda rng, X, column: rng.standard_cauchy(X.shape),
    "outlier": lambda rng, X, column: _set(X, column, np.where(X[:, 0] > 2, 1e12, 0.0)),
    "integers": lambda rng, X, column: np.round(X),
}


def draw_targets(rng, X):
    """Draw the y of a regression."""
    size = np.abs(X).max() or 1.0
    y = np.sin(3 * X[:, 0] / size) + X.mean(1) / size
    noise = rng.standard_normal(len(X))
    kinds = {
        "curve": y + 0.1 * noise,
        "noise": noise,
        "far and large": 1e8 * y + 1e9,
        "small": 1e-8 * y,
        "huge": 1e100 * (y + noise),
        "Cauchy": y + rng.standard_cauchy(len(X)),
        "constant": np.full(len(X), 3.3),
        "one outlier": np.where(np.arange(len(X)) == 0, 1e9, y),
        "two outputs": np.column_stack([1e6 * y, noise - 1e6]),
        "counts": np.floor(np.exp(noise)),
    }
    kind = str(rng.choice(list(kinds)))
    return kinds[kind], kind


def draw_labels(rng, X):
    """Draw the y of a classification, of two classes or more."""
    n_classes = min(len(X), int(rng.choice([2, 2, 3, 10, 100])))
    kind = str(rng.choice(["balanced", "skewed", "by X"]))
    if kind == "by X":
        order = np.argsort(np.argsort(X[:, 0]))
        return order * n_classes // len(X), f"{n_classes} classes {kind}"
    share = np.ones(n_classes) if kind == "balanced" else 0.1 ** np.arange(n_classes)
    y = rng.choice(n_classes, size=len(X), p=share / share.sum())
    y[:2] = [0, n_classes - 1]
    return y, f"{n_classes} classes {kind}"


def draw_weights(rng, n):
    """Draw weights of the rows, in half of the cases none."""
    kinds = {
        "none": None,
        "uniform": rng.uniform(size=n),
        "wide": 10.0 ** rng.uniform(-8, 8, size=n),
        "many zeros": rng.integers(0, 2, size=n) * 2.0,
    }
    kind = str(rng.choice(["none", "none", "none", *kinds]))
    return kinds[kind], kind


def draw(seed):
    """Draw one configuration: an estimator, its rows, and their description."""
    rng = np.random.default_rng(seed)
    X, kinds = draw_rows(rng)
    settings = {name: rng.choice(len(values)) for name, values in SETTINGS.items()}
    settings = {name: SETTINGS[name][i] for name, i in settings.items()}
    name = str(rng.choice(list(BACKBONES)))
    classes = rng.uniform() < 0.4
    y, kind = draw_labels(rng, X) if classes else draw_targets(rng, X)
    weight, weights = draw_weights(rng, len(X))
    make = CFLLClassifier if classes else CFLLRegressor
    if classes:  # drawn last, so that all else is as it was without
        settings["target_scale"] = float(rng.choice([1.0, 1.0, 1e-3, 30.0]))
        settings["true_class_weight"] = float(rng.choice([1.0, 1.0, 0.1, 15.0]))
    fixed = {"random_state": seed % 1000, "device": "cpu", "callbacks": [Rows()]}
    model = make(BACKBONES[name](), **fixed, **settings)
    what = {"X": (X.shape, kinds), "y": kind, "weights": weights, "backbone": name}
    return model, X, y, weight, {**what, **settings}


def judge(model, X, targets):
    """Say whether a fitted model's predictions make sense on its training rows."""
    rows, y, share = dict(model.net_.callbacks_)["Rows"].rows
    if isinstance(model, CFLLClassifier):
        learnt = [model.coef_, model.calibration_, model.predict_proba(X)]
        hit = model.predict_proba(rows)[np.arange(len(y)), _index(model, y)]
        loss = -share @ np.log(hit.clip(1e-300))
        usual = np.log(len(model.classes_))
    else:
        learnt = [model.coef_, model.intercept_, model.predict(X)]
        scale = np.maximum(np.abs(targets).max(axis=0), 1e-300)
        y, predictions = y / scale, model.predict(rows) / scale
        loss = share @ np.square(predictions - y).reshape(len(y), -1).mean(1)
        usual = share @ np.square(y - share @ y).reshape(len(y), -1).mean(1)
    if not all(np.isfinite(values).all() for values in learnt):
        return "not finite"
    # The mean of all rows, those held out among them, is a little worse.
    if loss > 1.5 * usual + 1e-12:
        return "worse than the mean"
    return "recovered" if model.n_recoveries_ else "fitted"


def _index(model, y):
    return np.searchsorted(model.classes_, y)


def run(seed):
    """Fit one configuration; return its outcome, the detail and the description."""
    model, X, y, weight, what = draw(seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            model.fit(X, y, weight)
            return judge(model, X, y), "", what
        except REFUSALS as error:
            return "refused", f"{type(error).__name__}: {error}", what
        except Exception as error:
            return "crashed", f"{type(error).__name__}: {error}", what


def main():
    """Run configurations and print how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--quick", action="store_true", help="20 configurations")
    parser.add_argument("--verbose", action="store_true", help="show each refusal")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes, kinds, start = Counter(), Counter(), time.perf_counter()
    count = 20 if arguments.quick else arguments.count
    for seed in range(arguments.seed, arguments.seed + count):
        outcome, detail, what = run(seed)
        outcomes[outcome] += 1
        if outcome == "refused":
            kinds[detail.split(":")[0]] += 1
        shown = outcome not in ("fitted", "recovered", "refused")
        if shown or (arguments.verbose and detail):
            print(f"seed {seed}, {outcome}: {detail.splitlines()[:1]}, {what}")
    seconds = time.perf_counter() - start
    print(f"{count} configurations in {seconds:.0f} s")
    for outcome in (*OUTCOMES, "crashed"):
        print(f"{outcome:20s} {outcomes[outcome]:5d}")
        if outcome == "refused":
            for kind, number in sorted(kinds.items()):
                print(f"  {kind:18s} {number:5d}")


if __name__ == "__main__":
    main()
