"""What the weight of the true class and the scale of the targets do.

The rescaled square loss (Hui and Belkin, arXiv 2006.07322, 2020) has two numbers: the
targets' scale M and the weight k of the true class's output. For each table and seed
the default classifier is fitted with some values of either, the other at one. M = 30 is
fitted a second time with AdamW's `eps` times M squared, which is all of the optimizer
that knows of M. Validation rows choose the epoch and the ridge, and calibrate logits;
accuracy and log loss are those of the test rows, which choose nothing.

Run it with ``python examples/benchmarks/true_class_weight.py``; ``--help`` lists
options.
"""

import sys
import time

import pandas as pd
from _command_line import made_folder, named_splits, table_parser
from _common import use_one_thread
from sklearn.metrics import accuracy_score, log_loss

from sklearn_cfll import CFLLClassifier

WEIGHTS = (1, 2, 5, 15)
SCALE = 30
SETTINGS = {
    **{f"k={weight}": {"true_class_weight": weight} for weight in WEIGHTS},
    f"M={SCALE}": {"target_scale": SCALE},
    f"M={SCALE}, eps": {
        "target_scale": SCALE,
        "optimizer_params": {"eps": 1e-8 * SCALE**2},
    },
}


def fit_and_score(split, seed, name, max_epochs):
    """Return one row of the results: a fit, scored on the test rows."""
    model = CFLLClassifier(random_state=seed, max_epochs=max_epochs, **SETTINGS[name])
    X_val, y_val = split.validation
    start = time.process_time()
    model.fit(*split.train, X_val=X_val, y_val=y_val)
    seconds = time.process_time() - start
    X_test, y_test = split.test
    probabilities = model.predict_proba(X_test)
    return {
        "table": split.name,
        "seed": seed,
        "rows": len(split.train[1]),
        "classes": len(model.classes_),
        "setting": name,
        "accuracy": accuracy_score(y_test, model.predict(X_test)),
        "log loss": log_loss(y_test, probabilities, labels=model.classes_),
        "seconds": seconds,
    }


def summarise(results):
    """Return a row for each table and setting, averaged over the seeds."""
    means = results.groupby(["table", "setting"], sort=False).mean().reset_index()
    # Where rare classes are left out, the numbers of rows differ by the seed.
    counts = means[["rows", "classes"]].round().astype(int)
    return means.assign(**counts).drop(columns="seed")


def as_text(summary):
    """Return a line for each table: accuracy / log loss / CPU seconds."""
    cells = [
        f"{row.accuracy:.4f} / {row['log loss']:.4f} / {row.seconds:.1f}"
        for _, row in summary.iterrows()
    ]
    table = summary.assign(cell=cells)
    wide = table.pivot(index=["table", "rows", "classes"], columns="setting")["cell"]
    wide = wide.reindex(table["table"].unique(), level=0)
    return wide[list(SETTINGS)].to_string()


def wins(summary):
    """Return a line for each setting: on how many tables it is better than k=1.

    M=30 with its own `eps` differs by rounding alone: what it wins is chance.
    """
    scores = summary.set_index("table")
    plain = scores[scores["setting"] == "k=1"]
    lines = []
    for setting in list(SETTINGS)[1:]:
        gain = scores[scores["setting"] == setting][["accuracy", "log loss"]]
        gain = gain - plain[["accuracy", "log loss"]]
        accurate, sure = gain["accuracy"] > 1e-9, gain["log loss"] < -1e-9
        lines.append(
            f"{setting}: better in accuracy on {accurate.sum()}, in log loss on "
            f"{sure.sum()}, in both on {(accurate & sure).sum()} of {len(plain)}"
        )
    return "\n".join(lines)


def differences(results):
    """Return a line for each setting: its fits' accuracy less that at k=1."""
    fits = results.pivot(index=["table", "seed"], columns="setting", values="accuracy")
    lines = []
    for setting in list(SETTINGS)[1:]:
        gain = fits[setting] - fits["k=1"]
        error = gain.std() / len(gain) ** 0.5
        lines.append(
            f"{setting}: accuracy {gain.mean():+.4f}, standard error {error:.4f}"
        )
    return "\n".join(lines)


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__,
        sets=["digits"],
        rows=8_000,
        seeds=3,
        output="folder for true_class_weight.csv",
    )
    parsed = parser.parse_args(arguments)
    parsed.max_epochs = "auto"
    if parsed.quick:
        # Few enough to be trained on in float64: rounding plays no part.
        parsed.rows, parsed.seeds, parsed.max_epochs = 450, 1, 3
    return parsed


def main():
    """Fit with every setting on every table and seed, then print the scores."""
    arguments = parse_arguments()
    use_one_thread()
    results = []
    for split, seed in named_splits(arguments):
        for setting in SETTINGS:
            row = fit_and_score(split, seed, setting, arguments.max_epochs)
            print(*row.values(), file=sys.stderr)
            results.append(row)
    results = pd.DataFrame(results)
    summary = summarise(results)
    print("accuracy / log loss / CPU seconds of fit")
    print(as_text(summary))
    print(wins(summary))
    print(differences(results))
    if arguments.output:
        folder = made_folder(arguments.output)
        results.to_csv(folder / "true_class_weight.csv", index=False)


if __name__ == "__main__":
    main()
