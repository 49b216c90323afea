"""How long CFLL takes to be as good as the same network trained end to end.

For each table and seed:

1. The default backbone with a linear layer on top is trained end to end with AdamW at
   four rates, with a cosine schedule over 30 epochs. The rate and the epoch that are
   best on the validation rows count. Its time is the training time up to that epoch,
   without the passes over the validation rows.
2. CFLL is fitted with 2, 3, 5, 8, 12 and 20 epochs, each with its own schedule. Its
   time is that of the whole call to `fit`: checks, validation and last solve included.
   The shortest fit that reaches the test error of 1 counts.

Both get the same rows and one thread, and the same batch size unless AdamW is given one
of its own. Seconds are of the processor, the clock's on a machine with nothing else to
do. The runs that count are timed again in turn; the medians are reported.

Run it with ``python examples/benchmarks/time_to_quality.py``; ``--help`` lists options.
With ``--output`` each comparison is kept as it ends; those there are not run again.
"""

import copy
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _command_line import made_folder, named_splits, table_parser
from _common import (
    as_outputs,
    build_network,
    errors,
    predict_in_batches,
    train_end_to_end,
    use_one_thread,
)
from _tables import as_list_table

from sklearn_cfll import CFLLClassifier, CFLLRegressor

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
EPOCHS = (2, 3, 5, 8, 12, 20)
FORMATS = {
    "table": "{}",
    "rows": "{:.0f}",
    "AdamW epochs": "{:.0f}",
    "AdamW seconds": "{:.2f}",
    "AdamW error": "{:.4f}",
    "AdamW wrong": "{:.4f}",
    "CFLL epochs": "{:.1f}",
    "CFLL seconds": "{:.2f}",
    "CFLL error": "{:.4f}",
    "CFLL wrong": "{:.4f}",
    "ratio": "{:.2f}",
    "ratio for wrong": "{:.2f}",
    "CFLL error at equal time": "{:.4f}",
    "reached": "{}",
}


def fit_cfll(split, max_epochs, seed):
    """Return a fitted estimator and the seconds that `fit` took."""
    kind = CFLLRegressor if split.task == "regression" else CFLLClassifier
    model = kind(max_epochs=max_epochs, random_state=seed)
    X_val, y_val = split.validation
    start = time.process_time()
    model.fit(*split.train, X_val=X_val, y_val=y_val)
    return model, time.process_time() - start


def cfll_outputs(model, X):
    """Return predictions, or a classifier's scores, as the squared loss sees them."""
    if hasattr(model, "classes_"):
        return model.net_.predict_proba(X)  # the solved head's
    return np.asarray(model.predict(X)).reshape(len(X), -1)


def best_end_to_end(split, batch_size, epochs, seed):
    """Train at each rate from the same start; return the best run and its errors."""
    network = build_network(split, seed)
    runs = [
        train_end_to_end(
            copy.deepcopy(network),
            split,
            lr,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
        )
        for lr in RATES
    ]
    best = min(runs, key=lambda run: run.best_error)
    X_test, y_test = split.test
    return best, errors(predict_in_batches(best.network, X_test), y_test, split.task)


def compare(split, seed, arguments):
    """Return one row of the table of results."""
    batch_size = arguments.batch_size or fit_cfll(split, 1, seed)[0].net_.batch_size
    best, plain = best_end_to_end(split, batch_size, arguments.epochs, seed)
    X_test, y_test = split.test
    fits = {}
    for max_epochs in arguments.cfll_epochs:
        model, seconds = fit_cfll(split, max_epochs, seed)
        fits[max_epochs] = (
            seconds,
            *errors(cfll_outputs(model, X_test), y_test, split.task),
        )

    def shortest(column):
        return next(
            (e for e, fit in fits.items() if fit[column] <= plain[column - 1]), None
        )

    by_error, by_rate = shortest(1), shortest(2)
    plain_seconds, seconds = time_in_turn(
        split, best, batch_size, {by_error, by_rate} - {None}, seed, arguments
    )
    missing = (np.nan, np.nan, np.nan)
    reached = fits.get(by_error, missing)
    affordable = [fit for fit in fits.values() if fit[0] <= plain_seconds]
    return {
        "table": split.name,
        "seed": seed,
        "rows": len(split.train[1]),
        "columns": split.train[0].shape[1],
        "outputs": as_outputs(split.train[1], split.task).shape[1],
        "AdamW lr": best.lr,
        "AdamW epochs": best.best_epoch + 1,
        "AdamW seconds": plain_seconds,
        "AdamW error": plain[0],
        "AdamW wrong": plain[1],
        "CFLL epochs": by_error or np.nan,
        "CFLL seconds": seconds.get(by_error, np.nan),
        "CFLL error": reached[1],
        "CFLL wrong": reached[2],
        "ratio": seconds.get(by_error, np.nan) / plain_seconds,
        "ratio for wrong": seconds.get(by_rate, np.nan) / plain_seconds,
        "CFLL best error": min(fit[1] for fit in fits.values()),
        "CFLL error at equal time": affordable[-1][1] if affordable else np.nan,
    }


def time_in_turn(split, best, batch_size, chosen_epochs, seed, arguments):
    """Repeat the runs that count, one after another; return their median seconds."""
    network = build_network(split, seed)
    plain, fits = [], {e: [] for e in chosen_epochs}
    for _ in range(arguments.repeats):
        run = train_end_to_end(
            copy.deepcopy(network),
            split,
            best.lr,
            batch_size=batch_size,
            epochs=arguments.epochs,
            stop_after=best.best_epoch + 1,
            seed=seed,
        )
        plain.append(run.seconds[-1])
        for epochs, seconds in fits.items():
            seconds.append(fit_cfll(split, epochs, seed)[1])
    return np.median(plain), {e: np.median(seconds) for e, seconds in fits.items()}


def summarise(results):
    """Average over the seeds: means, but geometric means of the ratios of times."""
    ratios = ["ratio", "ratio for wrong"]
    groups = results.groupby("table", sort=False)
    summary = groups.mean(numeric_only=True).drop(columns=["seed", *ratios])
    for column in ratios:
        # A ratio that is missing, for a fit that never got there, stays missing.
        summary[column] = groups[column].agg(
            lambda values: np.exp(np.log(values).mean(skipna=False))
        )
    summary["reached"] = groups["ratio"].agg(
        lambda values: f"{values.notna().sum()}/{len(values)}"
    )
    return summary.reset_index()


def as_text(summary):
    """Return the columns that matter, as text to read and as reStructuredText."""
    cells = pd.DataFrame(
        {
            name: ["" if pd.isna(v) else form.format(v) for v in summary[name]]
            for name, form in FORMATS.items()
        }
    )
    return cells.to_string(index=False), as_list_table(cells)


def in_one_line(summary):
    """Return the mean of the ratios, and how often the error was reached."""
    ratios = summary["ratio"].dropna()
    mean = np.exp(np.log(ratios).mean())
    counts = summary["reached"].str.split("/", expand=True).astype(int).sum()
    return (
        f"ratio of seconds: geometric mean {mean:.3f} over {len(ratios)} of "
        f"{len(summary)} tables, largest {ratios.max():.2f}; the error was reached in "
        f"{counts[0]} of {counts[1]} comparisons"
    )


def shown_between(axes, value):
    """Return whether a value lies within the horizontal limits."""
    low, high = axes.get_xlim()
    return low <= value <= high


def draw(summary, path):
    """Draw the ratio of seconds of each table."""
    shown = summary.dropna(subset="ratio").sort_values("ratio", ascending=False)
    figure, axes = plt.subplots(
        figsize=(6, 1.2 + 0.22 * len(shown)), layout="constrained"
    )
    axes.plot(shown["ratio"], shown["table"], "o")
    mean = np.exp(np.log(shown["ratio"]).mean())
    axes.axvline(mean, color="black", label=f"geometric mean {mean:.2f}")
    for ratio in (0.2, 0.5):
        axes.axvline(ratio, color="grey", linestyle=":")
    axes.set_xscale("log")
    ticks = [
        tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5) if shown_between(axes, tick)
    ]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("seconds of CFLL / seconds of AdamW, to the same test error")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__,
        rows=20_000,
        seeds=1,
        output="folder for time_to_quality.csv and .rst",
    )
    parser.add_argument(
        "--batch-size", type=int, help="of AdamW's training; default: CFLL's own"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timings of each run")
    parsed = parser.parse_args(arguments)
    parsed.epochs, parsed.cfll_epochs = 30, EPOCHS
    if parsed.quick:
        parsed.sets = parsed.sets or ["diabetes", "breast_cancer"]
        parsed.epochs, parsed.cfll_epochs, parsed.repeats = 3, EPOCHS[:2], 1
    return parsed


def main():
    """Compare on every table and seed, then print and write the table."""
    arguments = parse_arguments()
    use_one_thread()
    path = None
    if arguments.output:
        path = made_folder(arguments.output) / "time_to_quality.csv"
    results = pd.read_csv(path).to_dict("records") if path and path.exists() else []
    done = {(row["table"], row["seed"]) for row in results}
    for split, seed in named_splits(arguments):
        if (split.name, seed) in done:
            continue
        results.append(compare(split, seed, arguments))
        if path:
            pd.DataFrame(results).to_csv(path, index=False)
    summary = summarise(pd.DataFrame(results))
    text, rst = as_text(summary)
    print(text)
    print(in_one_line(summary))
    if path:
        path.with_suffix(".rst").write_text(rst)
        draw(summary, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
