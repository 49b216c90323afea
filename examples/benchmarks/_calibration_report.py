"""Tables and the picture of calibration.py."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _tables import as_list_table

CFLL, OTHERS = "CFLL", ("HistGradientBoosting", "MLP")
METHODS = (CFLL, "its solved head", "its logistic head", *OTHERS)
CHANCE = "ECE by chance"
MEASURES = ("wrong", "log loss", "Brier", "ECE")
TITLES = {
    "log loss": "Log loss of the test rows",
    "Brier": "Brier score of the test rows",
    "ECE": "Calibration error of the test rows",
}


def average(results):
    """Return the means over the seeds, a row for each table and method."""
    keys = ["kind", "table", "method"]
    return results.groupby(keys, sort=False)[[*MEASURES, CHANCE]].mean()


def ratios(means):
    """Return geometric means of the ratios to CFLL over the tables.

    A table counts where all the methods that it has are above zero.
    """
    wide = means.unstack("method")
    found = {}
    for measure in MEASURES:
        part = wide[measure].reindex(columns=METHODS)
        part = part[(part.fillna(1) > 0).all(axis=1)]
        found[measure] = np.exp(np.log(part.div(part[CFLL], axis=0)).mean())
    return pd.DataFrame(found).reindex(METHODS)


def lower_counts(means):
    """Return in how many tables each other estimator is below CFLL."""
    wide = means.unstack("method")
    rows = {
        name: {m: (wide[m, name] < wide[m, CFLL]).sum() for m in MEASURES}
        for name in OTHERS
    }
    return pd.DataFrame(rows).T, len(wide)


def by_table(means, measure):
    """Return a measure as text, a row for each table; the least is in bold."""
    wide = means[measure].unstack("method").reindex(columns=METHODS)
    wide = wide.loc[means.index.droplevel("method").unique()]
    best = wide[[CFLL, *OTHERS]].min(axis=1)
    cells = wide.map(lambda value: "" if np.isnan(value) else f"{value:.4f}")
    judged = wide.eq(best, axis=0)
    judged[[m for m in METHODS if m not in (CFLL, *OTHERS)]] = False
    cells = cells.mask(judged, "**" + cells + "**")
    columns = ["table", "kind", *METHODS]
    if measure == "ECE":
        by_chance = means[CHANCE].xs(CFLL, level="method")
        cells["CFLL by chance"] = by_chance.map("{:.4f}".format)
        columns.append("CFLL by chance")
    return cells.reset_index()[columns]


def summary(means):
    """Return the ratios of each kind of table as text, and the counts."""
    kinds = [*means.index.get_level_values("kind").unique(), None]
    frames = []
    for kind in kinds:
        part = means if kind is None else means.xs(kind, drop_level=False)
        frame = ratios(part).drop(index=CFLL).map("{:.3f}".format)
        counts, n_tables = lower_counts(part)
        for name in OTHERS:
            frame.loc[name] += [f" ({counts.loc[name, m]})" for m in frame]
        frame.insert(0, "method", frame.index)
        frame.insert(0, "tables", f"{kind or 'all'}, {n_tables}")
        frames.append(frame)
    return pd.concat(frames)


def draw(results, path):
    """Draw the reliability curves, a panel for each table."""
    tables = results.sort_values("kind", kind="stable")["table"].unique()
    n_columns = min(5, len(tables))
    n_rows = -(-len(tables) // n_columns)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(1 + 2 * n_columns, 0.7 + 2.1 * n_rows),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(tables) :]:
        ax.remove()
    for ax, table in zip(axes.flat, tables, strict=False):
        ax.plot([0, 1], [0, 1], "k--", linewidth=0.7)
        part = results[results["table"] == table]
        for method in (CFLL, *OTHERS):
            curves = np.stack(part[part["method"] == method]["reliability"])
            ax.plot(*curves.mean(axis=0), marker=".", linewidth=1, label=method)
        ax.set_title(f"{table}\n{part['kind'].iloc[0]}", fontsize="small")
        ax.tick_params(labelsize="x-small")
    figure.supxlabel("mean probability in the bin")
    figure.supylabel("share of hits")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write(rows, folder):
    """Print the summary; write it, the measures by table, and the picture."""
    results = pd.DataFrame(rows).sort_values("kind", kind="stable")
    means = average(results)
    shown = summary(means)
    print("relative to CFLL, geometric means; in brackets the tables that are below it")
    print(shown.to_string(index=False))
    texts = [as_list_table(shown, "Relative to CFLL")]
    for measure, title in TITLES.items():
        cells = by_table(means, measure)
        print(f"\n{title}\n{cells.to_string(index=False)}")
        texts.append(as_list_table(cells, title))
    (folder / "calibration.rst").write_text("\n".join(texts))
    draw(results, folder / "calibration.png")
