"""Tables and a picture of how fits grow."""

import numpy as np
import pandas as pd

# Of rows, those from here on have the least number of epochs.
LARGE = 100_000
TITLES = {
    "rows": "Rows",
    "outputs": "Outputs of a regression",
    "classes": "Classes",
    "features": "Features into the head",
}


def exponent(runs, least=0):
    """Return the slope of log processor seconds in log size, from `least` on."""
    chosen = runs[runs["size"] >= least]
    if len(chosen) < 2:
        return np.nan
    return float(np.polyfit(np.log(chosen["size"]), np.log(chosen["processor"]), 1)[0])


def exponents(runs):
    """Return for each task the exponents in rows: of all sizes, and of large ones."""
    of_rows = runs[runs["sweep"] == "rows"]
    return {
        task: (exponent(own), exponent(own, LARGE))
        for task, own in of_rows.groupby("task", sort=False)
    }


def as_texts(runs):
    """Return a table of text for each sweep, by its title."""
    tables = {}
    for sweep, own in runs.groupby("sweep", sort=False):
        cells = pd.DataFrame(
            {
                sweep: own["size"].map("{:,}".format),
                "task": own["task"],
                "processor s": own["processor"].map("{:.1f}".format),
                "peak above the data, MB": own["peak"].map("{:,.0f}".format),
            }
        )
        tables[TITLES[sweep]] = cells.drop(
            columns=[] if own["task"].nunique() > 1 else "task"
        )
    return tables


def draw(runs, path):
    """Draw processor seconds and memory by size, for every sweep."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    sweeps = runs["sweep"].unique()
    figure, axes = plt.subplots(
        2,
        len(sweeps),
        figsize=(2.8 * len(sweeps), 5),
        squeeze=False,
        sharex="col",
        layout="constrained",
    )
    for column, sweep in zip(axes.T, sweeps, strict=True):
        own = runs[runs["sweep"] == sweep]
        for task, part in own.groupby("task", sort=False):
            column[0].loglog(part["size"], part["processor"], "o-", label=task)
            column[1].loglog(part["size"], part["peak"].clip(lower=1), "o-")
        column[0].legend(fontsize=7)
        for axis in (column[0].yaxis, column[1].xaxis, column[1].yaxis):
            axis.set_minor_formatter(NullFormatter())
        column[1].set_xlabel(sweep)
    axes[0, 0].set_ylabel("processor seconds")
    axes[1, 0].set_ylabel("MB above the data")
    figure.savefig(path, dpi=80)
