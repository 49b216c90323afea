"""Ranges of good learning rates, from errors by rate, and their tables."""

import numpy as np
import pandas as pd

METHODS = ("CFLL", "end to end", "end to end, refitted")
PLAIN = METHODS[1:]
CRITERIA = ("own", "all")
TOLERANCE = 1.05


def rates_within(rates, error, limit):
    """Return the ends of the interval of rates around the best, and whether it is cut.

    `error` at each of the ascending `rates`; the interval is where its interpolation is
    at most `limit`. Where the best is above the limit the ends are not numbers.
    """
    best = int(np.argmin(error))
    if not np.isfinite(error[best]) or error[best] > limit:
        return np.nan, np.nan, False
    (low, low_is_cut), (high, high_is_cut) = (
        _edge(np.log10(rates), error, limit, best, step) for step in (-1, 1)
    )
    return 10**low, 10**high, low_is_cut or high_is_cut


def _edge(logarithms, error, limit, i, step):
    """Go on from the i-th rate to where the error crosses the limit, if it does."""
    while 0 <= i + step < len(error) and error[i + step] <= limit:
        i += step
    if not 0 <= i + step < len(error):
        return logarithms[i], True
    if np.isinf(error[i + step]):
        return logarithms[i], False
    share = (limit - error[i]) / (error[i + step] - error[i])
    return logarithms[i] + share * (logarithms[i + step] - logarithms[i]), False


def find_ranges(runs):
    """Return a row for each table, optimizer, method and criterion."""
    keys = ["table", "optimizer"]
    rows = []
    for names, group in runs.groupby(keys, sort=False):
        means = group.groupby(["method", "rate"], sort=False)["error"].mean()
        least = means.min()
        for method in METHODS:
            error = means[method].sort_index()
            bests = (error.min(), least)
            for criterion, best in zip(CRITERIA, bests, strict=True):
                low, high, cut = rates_within(
                    error.index.to_numpy(), error.to_numpy(), TOLERANCE * best
                )
                rows.append(
                    {
                        **dict(zip(keys, names, strict=True)),
                        "method": method,
                        "within 5 % of": criterion,
                        "best error": error.min(),
                        "best rate": error.idxmin(),
                        "lowest": low,
                        "highest": high,
                        "decades": np.log10(high / low),
                        "cut": cut,
                    }
                )
    return pd.DataFrame(rows)


# Tables and picture -----------------------------------------------------------------


def as_errors(ranges):
    """Return the least error of each method, with its rate, as text."""
    own = ranges[ranges["within 5 % of"] == "own"]
    cells = own.assign(
        cell=[
            f"{e:.4f} at {r:g}"
            for e, r in zip(own["best error"], own["best rate"], strict=True)
        ]
    )
    return _by_method(cells, "cell")


def as_widths(ranges, criterion):
    """Return the ranges of one criterion and CFLL's factors, as text."""
    chosen = ranges[ranges["within 5 % of"] == criterion]
    cells = _by_method(chosen.assign(cell=chosen.apply(_describe, axis=1)), "cell")
    for plain in PLAIN:
        column = f"CFLL / {plain}"
        cells[column] = [
            _factor(group.set_index("method"), plain)
            for _, group in chosen.groupby(["table", "optimizer"], sort=False)
        ]
    return cells


def _by_method(frame, column):
    table = frame.pivot(index=["table", "optimizer"], columns="method", values=column)
    order = frame[["table", "optimizer"]].drop_duplicates()
    table = table.loc[pd.MultiIndex.from_frame(order), list(METHODS)]
    return table.rename_axis(columns=None).reset_index()


def _describe(row):
    if np.isnan(row["decades"]):
        return "none"
    sign = ">= " if row["cut"] else ""
    ends = f"{row['lowest']:.2g} to {row['highest']:.2g}"
    return f"{sign}{row['decades']:.2f} ({ends}, x {10 ** row['decades']:.1f})"


def _factor(group, plain):
    """Return the factor between widths; what is cut off bounds it on one side."""
    cfll, other = group.loc["CFLL"], group.loc[plain]
    if np.isnan(other["decades"]):
        return "neither" if np.isnan(cfll["decades"]) else "CFLL alone"
    if np.isnan(cfll["decades"]):
        return f"{plain} alone"
    signs = {(True, False): ">= ", (False, True): "<= ", (True, True): "both cut: "}
    sign = signs.get((bool(cfll["cut"]), bool(other["cut"])), "")
    return f"{sign}{10 ** (cfll['decades'] - other['decades']):.2f}"


def as_means(ranges):
    """Return the mean decades of each method, and CFLL's factors of them, as text.

    Ranges that are cut off count as they stand. No range counts as one of zero decades,
    and leaves no factor.
    """
    rows = []
    keys = ["within 5 % of", "optimizer"]
    for names, group in ranges.groupby(keys, sort=False):
        decades = group.pivot(index="table", columns="method", values="decades")
        means, factors = decades.fillna(0).mean(), decades.mean(skipna=False)
        row = dict(zip(keys, names, strict=True))
        row |= {method: f"{means[method]:.2f}" for method in METHODS}
        for plain in PLAIN:
            factor = 10 ** (factors["CFLL"] - factors[plain])
            row[f"CFLL / {plain}"] = "none" if np.isnan(factor) else f"{factor:.2f}"
        rows.append(row)
    return pd.DataFrame(rows).sort_values(keys, ascending=False)
