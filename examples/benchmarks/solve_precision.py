"""How exact a head's solve is in float32, mixed and float64, by the condition.

Features are made with singular values from 1 down to one over the condition number,
and rounded to float32 once, so that all solves get the same numbers. The reference is
a QR factorisation in NumPy's `longdouble`, 80 bits on x86. What is compared are the
predictions of the heads on fresh rows, computed in `longdouble` for all:
`||prediction - reference|| / ||reference||`.

- float32: rows, head and factor, as on a device without float64 (MPS);
- mixed: the head and the factor in float64, the Gram matrix in float32 where `prox`
  makes that safe, as in the training of a float32 network elsewhere;
- float64: all in float64.

Run it with ``python examples/benchmarks/solve_precision.py``; ``--help`` lists options.
"""

import argparse
import itertools

import numpy as np
import torch
from _common import use_one_thread

from sklearn_cfll.functional import proximal_update

CONDITIONS = (1e0, 1e2, 1e4, 1e6, 1e8, 1e10)
PROX = (0.0, 0.1, 0.3, 1.0, 100.0)
ALPHAS = (0.0, 1e-4, 1e-2)
# Rows and features of a batch: the Gram matrix of the features, and of the rows.
SHAPES = {"primal": (512, 128), "dual": (128, 512)}
N_OUTPUTS = 3
SCHEMES = ("float32", "mixed", "float64")


def make_batch(n_rows, n_features, condition, offset, seed=0):
    """Make features, targets, fresh features and a last head, in float32."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
    sizes = np.logspace(0, -np.log10(condition), n_features)[:, None]
    shaping = np.sqrt(n_features) * sizes * directions
    features, fresh = rng.standard_normal((2, n_rows, n_features)) @ shaping
    truth = rng.standard_normal((n_features, N_OUTPUTS)) / np.sqrt(n_features)
    targets = np.sin(features @ truth) + 0.1 * rng.standard_normal((n_rows, N_OUTPUTS))
    last = truth + 0.1 * rng.standard_normal(truth.shape)
    batch = features + offset, targets, fresh + offset, last
    return tuple(part.astype(np.float32) for part in batch)


def least_squares(rows, right_side):
    """Solve by Householder reflections in the precision of the rows."""
    table = np.concatenate([rows, right_side], axis=1)
    n_columns = rows.shape[1]
    for i in range(n_columns):
        normal = table[i:, i].copy()
        normal[0] += np.copysign(np.sqrt(normal @ normal), normal[0])
        square = normal @ normal
        if square > 0:
            table[i:, i:] -= np.outer(2 * normal / square, normal @ table[i:, i:])
    solution = np.zeros((n_columns, right_side.shape[1]), table.dtype)
    for i in reversed(range(n_columns)):
        rest = table[i, n_columns:] - table[i, i + 1 : n_columns] @ solution[i + 1 :]
        solution[i] = rest / table[i, i]
    return solution


def reference_head(features, targets, last, alpha, prox):
    """Solve the proximal problem as one least-squares problem in `longdouble`."""
    wide = np.longdouble
    n_rows, n_features = features.shape
    features, targets, last = (part.astype(wide) for part in (features, targets, last))
    extended = np.concatenate([features, np.ones((n_rows, 1), wide)], axis=1)
    energy = np.square(extended).sum() / (n_rows * (n_features + 1))
    both = np.eye(n_features + 1, dtype=wide)
    anchor = np.concatenate([last, np.zeros((1, last.shape[1]), wide)])
    ridge = np.sqrt(wide(alpha) * energy) * both[:-1]
    pull = np.sqrt(wide(prox) * energy) * both
    scale = np.sqrt(wide(n_rows))
    # The step from the last head, whose bias is zero.
    step = least_squares(
        np.concatenate([extended / scale, ridge, pull]),
        np.concatenate(
            [
                (targets - features @ last) / scale,
                -ridge @ anchor,
                np.zeros_like(anchor),
            ]
        ),
    )
    head = anchor + step
    return head[:-1], head[-1]


def solve(features, targets, last, alpha, prox, scheme):
    """Solve by the package in one of the schemes."""
    narrow = torch.float32
    of_features = torch.float64 if scheme == "float64" else narrow
    of_head = narrow if scheme == "float32" else torch.float64
    features, targets, last = map(torch.from_numpy, (features, targets, last))
    head = proximal_update(
        features.to(of_features),
        targets.to(of_features),
        last.to(of_head),
        torch.zeros(last.shape[1], dtype=of_head),
        alpha=alpha,
        prox=prox,
    )
    return head.weight.numpy(), head.bias.numpy()


def predictions_of(head, features):
    """Predict in `longdouble`."""
    weight, bias = (part.astype(np.longdouble) for part in head)
    return features.astype(np.longdouble) @ weight + bias


def errors_at(n_rows, n_features, condition, alpha, prox, offset=0.0, seed=0):
    """Return the relative error of each scheme's predictions on fresh rows."""
    features, targets, fresh, last = make_batch(
        n_rows, n_features, condition, offset, seed
    )
    expected = predictions_of(
        reference_head(features, targets, last, alpha, prox), fresh
    )
    errors = {}
    for scheme in SCHEMES:
        head = solve(features, targets, last, alpha, prox, scheme)
        gap = predictions_of(head, fresh) - expected
        errors[scheme] = float(
            np.sqrt(np.square(gap).sum() / np.square(expected).sum())
        )
    return errors


def print_table(shape, conditions, offset):
    """Print the errors at each prox, alpha and condition; return the worst of each."""
    worst = {}
    print(" prox  alpha condition ", *(f"{scheme:>8s}" for scheme in SCHEMES))
    for prox, alpha, condition in itertools.product(PROX, ALPHAS, conditions):
        if prox == alpha == 0 and shape[0] < shape[1]:
            continue  # many heads fit
        errors = errors_at(*shape, condition, alpha, prox, offset)
        values = [errors[scheme] for scheme in SCHEMES]
        print(f"{prox:5g} {alpha:6g} {condition:9.0e} ", *(f"{v:8.1e}" for v in values))
        worst[prox, alpha] = np.maximum(worst.get((prox, alpha), 0.0), values)
    return worst


def main():
    """Print a table for each system, and the worst of all conditions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--offset", type=float, default=0.0, help="added to features")
    parser.add_argument("--quick", action="store_true", help="a few seconds' look")
    arguments = parser.parse_args()
    quick = arguments.quick
    use_one_thread()
    worst = {}
    for name, (n_rows, n_features) in SHAPES.items():
        shape = (n_rows // 8, n_features // 8) if quick else (n_rows, n_features)
        print(f"{name}: {shape[0]} rows, {shape[1]} features")
        conditions = CONDITIONS[::5] if quick else CONDITIONS
        for key, errors in print_table(shape, conditions, arguments.offset).items():
            worst[key] = np.maximum(worst.get(key, 0.0), errors)
    print("worst of all conditions; nan: no solution was found")
    print(" prox  alpha ", *(f"{scheme:>8s}" for scheme in SCHEMES))
    for (prox, alpha), errors in worst.items():
        print(f"{prox:5g} {alpha:6g} ", *(f"{error:8.1e}" for error in errors))


if __name__ == "__main__":
    main()
