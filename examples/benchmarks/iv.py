"""Structural functions by instruments: CFLLIVRegressor against other methods.

Mean squared errors against the structural function, which is known, in ten designs:
the demand of ``sklearn_cfll.datasets`` with its small error (S) and with a large one
that is confounded (C), several treatments without covariates (M), many weak
instruments (W), a linear model (L), three curves (A, I, J), a confounding that is bent
(B) and heavy tails (H). All methods run in turn on the same rows, on
one thread. Fits go to a file, a line each, and what is in it is not run again.

    python examples/benchmarks/iv.py --fits iv.jsonl --output docs/benchmarks
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _command_line import made_folder
from _iv_designs import DESIGNS
from _iv_peers import METHODS, VARIANTS
from _tables import as_list_table

EVERY = {**METHODS, **VARIANTS}
KEY = ["design", "rows", "rho", "seed", "method"]
RHOS = [0.1, 0.25, 0.5, 0.75, 0.9]
WIDTH = 5  # designs in a table
RHO_METHODS = ["CFLLIVRegressor", "full batch", "outer product, no instruments"]


def main():
    """Run what is not in the file; print and write the tables and the picture."""
    arguments = read_arguments()
    torch.set_num_threads(1)
    lines = read_lines(arguments.fits)
    done = {tuple(line[name] for name in KEY) for line in lines}
    for key in wanted_fits(arguments):
        if key not in done:
            lines.append(dict(zip(KEY, key, strict=True)) | fit(key, arguments.quick))
            with arguments.fits.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    wanted = set(wanted_fits(arguments))
    lines = [line for line in lines if tuple(line[name] for name in KEY) in wanted]
    report(pd.DataFrame(lines), arguments.output)


def read_arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 5_000])
    parser.add_argument(
        "--large",
        nargs="+",
        choices=DESIGNS,
        default=["S", "C"],
        help="designs that have more than the fewest rows, too",
    )
    parser.add_argument("--methods", nargs="+", choices=EVERY, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument(
        "--rhos", type=float, nargs="*", default=RHOS, help="of S and C, fewest rows"
    )
    parser.add_argument("--quick", action="store_true", help="a quick look")
    parser.add_argument("--fits", type=Path, default=Path("iv.jsonl"))
    parser.add_argument("--output", help="folder of tables and a picture")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.designs, arguments.rows, arguments.seeds = ["C", "M"], [200], 1
        arguments.rhos = [0.5]
    return arguments


def read_lines(path):
    """Return the fits that the file holds."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def wanted_fits(arguments):
    """Yield keys: for each seed every design and size, and the methods in turn."""
    for i in range(arguments.seeds):
        seed = arguments.first_seed + i
        for rows in arguments.rows:
            for design in arguments.designs:
                if rows > min(arguments.rows) and design not in arguments.large:
                    continue
                for method in turned(arguments.methods, i):
                    yield design, rows, None, seed, method
        for design in [d for d in ("S", "C") if d in arguments.designs]:
            for rho in arguments.rhos:
                for method in turned(arguments.methods, i):
                    if method in RHO_METHODS:
                        yield design, min(arguments.rows), rho, seed, method


def turned(names, start):
    """Return the names in the same order from another start."""
    start %= len(names)
    return [*names[start:], *names[:start]]


def fit(key, quick):
    """Fit a method to a design; return its error and processor seconds."""
    design, rows, rho, seed, method = key
    draw = DESIGNS[design][1]
    data = draw(rows, seed) if rho is None else draw(rows, seed, rho)
    start = time.process_time()
    with warnings.catch_warnings():
        # Weak instruments and stages that memorise are what some designs are for.
        warnings.simplefilter("ignore", UserWarning)
        predict = EVERY[method](data, seed, quick=quick)
    seconds = time.process_time() - start
    error = float(np.mean((predict(data.X_test) - data.structural) ** 2))
    print(*key, f"{error:.4g}", f"{seconds:.1f} s", flush=True)
    return {"error": error, "seconds": seconds}


def report(fits, output):
    """Print the tables; write them and the picture where a folder is given."""
    plain = fits[fits["rho"].isna()]
    texts = []
    for rows, part in plain.groupby("rows"):
        title = f"{rows:,} rows: median error (least to most)"
        names = list(part["design"].unique())
        for start in range(0, len(names), WIDTH):
            some = part[part["design"].isin(names[start : start + WIDTH])]
            texts.append((title, spread_table(some, "design")))
    seconds = plain.groupby(["method", "rows"], sort=False)["seconds"].median()
    cells = seconds.unstack("rows").map(lambda s: "" if np.isnan(s) else f"{s:.1f}")
    cells.columns = [f"{rows:,} rows" for rows in cells.columns]
    texts.append(("Processor seconds of a fit, medians", cells))
    for design, part in fits.dropna(subset="rho").groupby("design"):
        title = f"Design {design} by rho: median error (least to most)"
        texts.append((title, spread_table(part, "rho")))
    for title, cells in texts:
        print(f"\n{title}\n{cells.to_string()}")
    if output:
        folder = made_folder(output)
        tables = [
            as_list_table(cells.rename_axis("Method").reset_index(), title)
            for title, cells in texts
        ]
        (folder / "iv_tables.rst").write_text("\n".join(tables))
        plot(plain, folder / "iv.png")


def spread_table(fits, by):
    """Return a table of medians with the least and the most, by method."""
    groups = fits.groupby(["method", by], sort=False)["error"]
    cells = groups.agg(
        lambda e: f"{number(e.median())} ({number(e.min())} to {number(e.max())})"
    )
    order = [method for method in EVERY if method in set(fits["method"])]
    table = cells.unstack(by).loc[order].fillna("")
    return table.rename(columns=str).rename_axis(columns=None)


def number(value):
    """Return three digits, without an exponent up to a million."""
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def plot(fits, path):
    """Draw errors relative to the variance of the structural function."""
    import matplotlib.pyplot as plt

    groups = [
        (rows, list(part["design"].unique())) for rows, part in fits.groupby("rows")
    ]
    widths = [2 + len(names) for _, names in groups]
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(1 + 0.75 * sum(widths), 4.2),
        sharey=True,
        squeeze=False,
        width_ratios=widths,
        layout="constrained",
    )
    methods = [method for method in EVERY if method in set(fits["method"])]
    for axis, (rows, names) in zip(axes[0], groups, strict=True):
        scales = pd.Series({name: variance(name) for name in names})
        for i, method in enumerate(methods):
            part = fits[(fits["rows"] == rows) & (fits["method"] == method)]
            errors = part.groupby("design")["error"]
            table = errors.agg(["median", "min", "max"]).reindex(names)
            table = table.div(scales, axis=0)
            places = np.arange(len(names)) + 0.1 * (i - (len(methods) - 1) / 2)
            axis.vlines(places, table["min"], table["max"], color=f"C{i}", alpha=0.5)
            axis.plot(places, table["median"], "o", color=f"C{i}", label=method)
        axis.axhline(1, color="0.6", linestyle=":")
        words = {name: DESIGNS[name][0].replace(" ", "\n", 1) for name in names}
        labels = [f"{name}\n{words[name]}" for name in names]
        axis.set_xticks(range(len(names)), labels, fontsize="x-small")
        axis.set(yscale="log", title=f"{rows:,} rows", xlim=(-0.6, len(names) - 0.4))
    axes[0, 0].set_ylabel("error / variance of the truth")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def variance(design):
    """Return the variance of the structural function where errors are judged."""
    return DESIGNS[design][1](1_000, 0).structural.var()


if __name__ == "__main__":
    main()
