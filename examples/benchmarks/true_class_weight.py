"""What the weight of the true class and the scale of the targets do.

The rescaled square loss (Hui and Belkin, arXiv 2006.07322, 2020) has two numbers: the
targets' scale M and the weight k of the true class's output. For each table and seed the
default classifier is fitted with some values of either, the other at one. Validation rows
choose the epoch and the ridge and set the temperature; accuracy and log loss are those
of the test rows. No value is chosen by them.

Run it with ``python examples/benchmarks/true_class_weight.py``; ``--help`` lists options.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
from _common import load_table, split_table, use_one_thread
from sklearn.metrics import accuracy_score, log_loss

from sklearn_cfll import CFLLClassifier

WEIGHTS = (1, 2, 5, 15)
SCALES = (2, 30)
SETTINGS = [
    *({"target_scale": 1, "true_class_weight": weight} for weight in WEIGHTS),
    *({"target_scale": scale, "true_class_weight": 1} for scale in SCALES),
]


def fit_and_score(split, seed, setting, max_epochs):
    """Return one row of the results: a fit, scored on the test rows."""
    model = CFLLClassifier(random_state=seed, max_epochs=max_epochs, **setting)
    X_val, y_val = split.validation
    start = time.perf_counter()
    model.fit(*split.train, X_val=X_val, y_val=y_val)
    seconds = time.perf_counter() - start
    X_test, y_test = split.test
    probabilities = model.predict_proba(X_test)
    return {
        "table": split.name,
        "seed": seed,
        "rows": len(split.train[1]),
        "classes": len(model.classes_),
        **setting,
        "accuracy": accuracy_score(y_test, model.predict(X_test)),
        "log loss": log_loss(y_test, probabilities, labels=model.classes_),
        "seconds": seconds,
    }


def summarise(results):
    """Return a row for each table and setting, averaged over the seeds."""
    keys = ["table", "rows", "classes", "target_scale", "true_class_weight"]
    return results.groupby(keys, sort=False).mean().drop(columns="seed").reset_index()


def as_text(summary):
    """Return a line for each table: accuracy / log loss / seconds by the setting."""
    cells = [
        f"{row.accuracy:.4f} / {row['log loss']:.4f} / {row.seconds:.1f}"
        for _, row in summary.iterrows()
    ]
    settings = [
        f"M={row.target_scale:g}, k={row.true_class_weight:g}"
        for _, row in summary.iterrows()
    ]
    table = summary.assign(cell=cells, setting=settings)
    wide = table.pivot(index=["table", "rows", "classes"], columns="setting")["cell"]
    wide = wide.reindex(table["table"].unique(), level=0)
    return wide[table["setting"].unique()].to_string()


def wins(summary):
    """Return a line for each weight: on how many tables it is better than one."""
    scores = summary[summary["target_scale"] == 1].set_index("table")
    plain = scores[scores["true_class_weight"] == 1]
    lines = []
    for weight in WEIGHTS[1:]:
        other = scores[scores["true_class_weight"] == weight]
        accurate = other["accuracy"] > plain["accuracy"]
        sure = other["log loss"] < plain["log loss"]
        lines.append(
            f"k={weight}: better in accuracy on {accurate.sum()}, in log loss on "
            f"{sure.sum()}, in both on {(accurate & sure).sum()} of {len(plain)}"
        )
    return "\n".join(lines)


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder of NAME.parquet with `__target__`")
    parser.add_argument("--sets", nargs="+", default=["digits"], help="tables")
    parser.add_argument("--rows", type=int, default=8_000, help="at most so many")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--quick", action="store_true", help="a few seconds' look")
    parser.add_argument("--output", help="folder for true_class_weight.csv")
    parsed = parser.parse_args(arguments)
    parsed.max_epochs = "auto"
    if parsed.quick:
        parsed.rows, parsed.seeds, parsed.max_epochs = 500, 1, 3
    return parsed


def main():
    """Fit with every setting on every table and seed, then print the scores."""
    arguments = parse_arguments()
    use_one_thread()
    results = []
    for name in arguments.sets:
        table = load_table(name, arguments.data)
        for seed in range(arguments.seeds):
            split = split_table(table, arguments.rows, seed)
            results += [
                fit_and_score(split, seed, setting, arguments.max_epochs)
                for setting in SETTINGS
            ]
    results = pd.DataFrame(results)
    summary = summarise(results)
    print("accuracy / log loss / seconds of fit")
    print(as_text(summary))
    print(wins(summary))
    if arguments.output:
        folder = Path(arguments.output)
        folder.mkdir(parents=True, exist_ok=True)
        results.to_csv(folder / "true_class_weight.csv", index=False)


if __name__ == "__main__":
    main()
