"""How often intervals hold the target, and how wide they are.

Intervals for 90 per cent of the test rows, by five ways. The default regressor is
fitted on all rows but the test, of which it holds out a tenth: its own intervals, and
those of a Gaussian with its standard deviation. It is fitted on the same rows without
holding out any: the Gaussian whose noise is fitted to leave-one-out residuals. And it
is fitted on four fifths of these rows and calibrated on the fifth: by `conformalize`,
and by mapie's split-conformal regressor with its default score, around the same fitted
estimator. Widths are in standard deviations of the target.

Run it with ``python examples/benchmarks/coverage.py``; ``--help`` lists options.
"""

import sys
import warnings

import numpy as np
import pandas as pd
from _command_line import made_folder, named_splits, table_parser
from _common import use_one_thread
from _tables import as_list_table
from scipy.stats import norm

from sklearn_cfll import CFLLRegressor

HELD_OUT, CALIBRATED, MAPIE = "held out", "calibrated", "mapie"
GAUSSIAN, LEFT_OUT = "Gaussian", "Gaussian, leave-one-out"
METHODS = (HELD_OUT, CALIBRATED, MAPIE, GAUSSIAN, LEFT_OUT)


def gaussian(model, X, coverage):
    """Return the central intervals of the predictive distribution."""
    predictions, deviation = model.predict(X, return_std=True)
    half = norm.ppf((1 + coverage) / 2) * deviation
    return np.stack([predictions - half, predictions + half], axis=1)


def by_mapie(model, calibration, X, coverage):
    """Return mapie's intervals around a fitted estimator."""
    from mapie.regression import SplitConformalRegressor

    regressor = SplitConformalRegressor(model, confidence_level=coverage, prefit=True)
    regressor.conformalize(*calibration)
    return regressor.predict_interval(X)[1][:, :, 0]


def intervals_of(split, seed, settings, coverage, with_mapie):
    """Yield the intervals of each way for the test rows."""
    X = split.test[0]
    pairs = zip(split.train, split.validation, strict=True)
    all_rows = [np.concatenate(parts) for parts in pairs]
    model = CFLLRegressor(random_state=seed, early_stopping=True, **settings)
    model.fit(*all_rows)
    yield HELD_OUT, model.predict_interval(X, coverage)
    yield GAUSSIAN, gaussian(model, X, coverage)
    model.set_params(early_stopping=False).fit(*all_rows)
    yield LEFT_OUT, gaussian(model, X, coverage)
    model.set_params(early_stopping=True).fit(*split.train)
    model.conformalize(*split.validation)
    yield CALIBRATED, model.predict_interval(X, coverage)
    if with_mapie:
        yield MAPIE, by_mapie(model, split.validation, X, coverage)


def measure(split, seed, settings, coverage, with_mapie):
    """Yield a row of the results for each way."""
    y = split.test[1]
    ways = intervals_of(split, seed, settings, coverage, with_mapie)
    for method, intervals in ways:
        low, high = intervals.astype(np.float64).T
        yield {
            "table": split.name,
            "seed": seed,
            "method": method,
            "coverage": np.mean((low <= y) & (y <= high)),
            "width": np.mean(high - low),
        }


def summarise(results):
    """Return the cells by table, and below them the means over the tables.

    A cell has the coverage in per cent and the mean width, means over the seeds.
    """
    means = results.groupby(["table", "method"], sort=False)[["coverage", "width"]]
    wide = means.mean().unstack("method")
    wide.loc["mean"] = wide.mean()
    methods = [name for name in METHODS if name in wide["coverage"]]
    cells = pd.DataFrame({"table": wide.index})
    for name in methods:
        pairs = zip(wide["coverage", name], wide["width", name], strict=True)
        cells[name] = [f"{100 * share:.1f} / {width:.3f}" for share, width in pairs]
    return wide, cells


def furthest(wide, coverage):
    """Return, by method, how far the tables' coverage is off: mean and worst."""
    gaps = 100 * (wide["coverage"].drop(index="mean") - coverage)
    return pd.DataFrame({"mean": gaps.mean(), "worst": gaps.abs().max()})


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__,
        sets=["diabetes"],
        rows=8_000,
        seeds=5,
        output="folder for coverage.csv and .rst",
    )
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--no-mapie", action="store_true", help="leave mapie out")
    parsed = parser.parse_args(arguments)
    parsed.settings = {}
    if parsed.quick:
        parsed.rows, parsed.seeds, parsed.settings = 400, 2, {"max_epochs": 3}
    return parsed


def main():
    """Fit on every table and seed, then print and write coverages and widths."""
    arguments = parse_arguments()
    use_one_thread()
    # What that warns of is among what is measured.
    warnings.filterwarnings("ignore", "no rows were held out in fit")
    results = []
    for split, seed in named_splits(arguments):
        for row in measure(
            split,
            seed,
            arguments.settings,
            arguments.coverage,
            not arguments.no_mapie,
        ):
            print(*row.values(), file=sys.stderr)
            results.append(row)
    results = pd.DataFrame(results)
    wide, cells = summarise(results)
    print("coverage in per cent / mean width")
    print(cells.to_string(index=False))
    print(f"points from {100 * arguments.coverage:g} per cent")
    print(furthest(wide, arguments.coverage).round(2).to_string())
    if arguments.output:
        folder = made_folder(arguments.output)
        results.to_csv(folder / "coverage.csv", index=False)
        title = "Coverage of test rows in per cent / mean width"
        (folder / "coverage.rst").write_text(as_list_table(cells, title))


if __name__ == "__main__":
    main()
