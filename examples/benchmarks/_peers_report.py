"""Tables and a picture of the runs of peers.py."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _tables import as_list_table

# For each title of a table of results: what it shows, and of which tables.
SCORES = {
    "R2 of the test rows": ("score", "regression"),
    "Accuracy of the test rows": ("score", "classification"),
    "Log loss of the test rows": ("log_loss", "classification"),
}
FORMATS = {
    "method": "{}",
    "rank": "{:.2f}",
    "relative error": "{:.3f}",
    "normalised score": "{:.3f}",
    "log loss: rank": "{:.2f}",
    "relative log loss": "{:.3f}",
    "log loss: normalised score": "{:.3f}",
    "seconds to fit": "{:.2f}",
    "ms to predict 1,000 rows": "{:.2f}",
}


def select(lines, arguments):
    """Return the runs asked for as a frame, CFLL's named by their label."""
    runs = pd.DataFrame(lines)
    if "failed" not in runs:
        runs["failed"] = np.nan
    wanted = {
        "table": arguments.sets,
        "rows": [arguments.rows],
        "seed": arguments.seeds,
        "method": arguments.methods,
        "label": arguments.label and [arguments.label, ""],
    }
    for name, values in wanted.items():
        runs = runs[runs[name].isin(values)] if values else runs
    runs = runs.assign(log_loss=runs["log_loss"].astype(float))
    labels = runs.loc[runs["label"] != "", "label"]
    if labels.nunique() > 1:
        runs = runs.assign(method=(runs["method"] + " " + runs["label"]).str.strip())
    return runs


def keep_complete(runs):
    """Keep the tables and seeds of which every method has a result."""
    good = runs[runs["failed"].isna()]
    counts = good.groupby(["table", "seed"])["method"].transform("nunique")
    return good[counts == runs["method"].nunique()]


def average_over_seeds(runs):
    """Return one row for each table and method, the largest tables last."""
    # Half a row more counts as wrong, so that no share is zero and all have a ratio.
    half = np.where(runs["task"] == "classification", 0.5 / runs["n_test"], 0.0)
    runs = runs.assign(
        error=runs["error"] + half,
        predict=1e6 * runs["predict_cpu_seconds"] / runs["n_test"],
    )
    means = runs.groupby(["task", "table", "method"]).mean(numeric_only=True)
    return means.reset_index().sort_values(["n_train", "table"], kind="stable")


def compare(means, column):
    """Return the mean rank, relative value and normalised score of each method.

    `column` is a loss. Relative is the geometric mean over the tables of its ratio to
    the least of the table; normalised is the mean of a score that is one for the best
    method of a table and zero for the worst.
    """
    losses = means.pivot(index="table", columns="method", values=column).dropna()
    least, most = losses.min(axis=1), losses.max(axis=1)
    spread = (most - least).where(most > least, 1.0)
    return pd.DataFrame(
        {
            "rank": losses.round(12).rank(axis=1).mean(),
            "relative": geometric_mean(losses.div(least, axis=0)),
            "normalised": 1 - losses.sub(least, axis=0).div(spread, axis=0).mean(),
        }
    )


def geometric_mean(values):
    """Return the geometric mean of each column, or of a series."""
    return np.exp(np.log(values).mean())


def summarise(means):
    """Return one row for each method, the best first."""
    errors, losses = compare(means, "error"), compare(means, "log_loss")
    groups = means.groupby("method")
    summary = pd.DataFrame(
        {
            "rank": errors["rank"],
            "relative error": errors["relative"],
            "normalised score": errors["normalised"],
            "log loss: rank": losses["rank"],
            "relative log loss": losses["relative"],
            "log loss: normalised score": losses["normalised"],
            "seconds to fit": groups["fit_cpu_seconds"].agg(geometric_mean),
            "ms to predict 1,000 rows": groups["predict"].agg(geometric_mean),
        }
    )
    return summary.sort_values("rank").rename_axis("method").reset_index()


def as_text(frame, formats):
    """Return the frame with text for numbers, and nothing where one is missing."""
    columns = [
        ["" if pd.isna(v) else formats[name].format(v) for v in frame[name]]
        for name in frame
    ]
    return pd.DataFrame(dict(zip(frame, columns, strict=True)))


def score_table(means, column, task, methods):
    """Return the scores as text, a row for each table and the best one in bold."""
    part = means[means["task"] == task]
    scores = part.pivot(index="table", columns="method", values=column)[methods]
    scores = scores.loc[part["table"].unique()]
    best = scores.min(axis=1) if column == "log_loss" else scores.max(axis=1)
    cells = scores.map("{:.4f}".format)
    cells = cells.mask(scores.eq(best, axis=0), "**" + cells + "**")
    cells.insert(
        0, "rows", part.groupby("table")["n_train"].first().map("{:.0f}".format)
    )
    return cells.reset_index()


def draw(summary, path):
    """Draw the losses over the time to fit, a point for each method."""
    names = ("relative error", "relative log loss")
    panels = [name for name in names if summary[name].notna().any()]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2 + 3.5 * len(panels), 3.6),
        squeeze=False,
        layout="constrained",
    )
    for ax, name in zip(axes[0], panels, strict=True):
        for (_, row), marker in zip(summary.iterrows(), itertools.cycle("osD^vPX*<>")):
            ax.plot(row["seconds to fit"], row[name], marker, label=row["method"], ms=8)
        ax.set(xscale="log", xlabel="seconds of one CPU to fit", ylabel=name)
        ax.margins(0.1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(lines, arguments):
    """Print the summary; write it, the scores of each table, and the picture."""
    runs = select(lines, arguments)
    for _, run in runs[runs["failed"].notna()].iterrows():
        print(f"{run['method']} failed on {run['table']}, seed {run['seed']}.")
    complete = keep_complete(runs)
    if complete.empty:
        raise SystemExit(
            "No table has results of every method; name fewer with --methods, or give "
            f"--rows of the runs (now {arguments.rows})."
        )
    means = average_over_seeds(complete)
    summary = summarise(means)
    print(
        f"{means['table'].nunique()} tables of {runs['table'].nunique()} are complete;"
    )
    print(f"{len(complete)} runs of {len(runs)} count.")
    text = as_text(summary, FORMATS)
    print(text.to_string(index=False))
    stem = Path(arguments.report) / arguments.name
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".rst").write_text(as_list_table(text))
    methods = summary["method"].tolist()
    scores = [
        as_list_table(score_table(means, column, task, methods), title)
        for title, (column, task) in SCORES.items()
        if task in means["task"].to_numpy()
    ]
    Path(f"{stem}_by_table.rst").write_text("\n".join(scores))
    draw(summary, stem.with_suffix(".png"))
