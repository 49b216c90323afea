"""How far the classifier's probabilities are from the truth, beside other estimators'.

The same fit gives three sets of probabilities: of the solved head's scores by one
factor, of the logistic head by one factor, and of the blend of both, which is what
`predict_proba` gives. Validation rows choose the epoch, the ridges and the factors.
Beside them stand scikit-learn's gradient boosting and its multi-layer perceptron, both
with early stopping on the same number of rows. All figures are of the test rows, which
choose nothing: log loss, Brier score (sum over the classes), and the expected
calibration error of the predicted class in 15 bins of equal counts.

Run it with ``python examples/benchmarks/calibration.py``; ``--help`` lists options.
"""

import sys

import numpy as np
import pandas as pd
from _command_line import made_folder, named_splits, table_parser
from _common import use_one_thread
from _tables import as_list_table
from scipy.special import softmax
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

from sklearn_cfll import CFLLClassifier
from sklearn_cfll._logits import both_sides, fit_blend

BLEND, SOLVED, LOGISTIC = "CFLL", "its solved head", "its logistic head"
METHODS = (BLEND, SOLVED, LOGISTIC, "HistGradientBoosting", "MLP")


def expected_calibration_error(probabilities, y, n_bins=15):
    """Return the mean gap of confidence and accuracy over bins of equal counts."""
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == y
    bins = np.array_split(np.argsort(confidence, kind="stable"), n_bins)
    gaps = [abs(confidence[rows].sum() - hits[rows].sum()) for rows in bins]
    return sum(gaps) / len(y)


def scores_of(probabilities, y):
    """Return accuracy, log loss, Brier score and calibration error."""
    one_hot = np.eye(probabilities.shape[1])[y]
    return {
        "wrong": np.mean(probabilities.argmax(axis=1) != y),
        "log loss": log_loss(y, probabilities, labels=range(probabilities.shape[1])),
        "Brier": np.square(probabilities - one_hot).sum(axis=1).mean(),
        "ECE": expected_calibration_error(probabilities, y),
    }


def by_head(split, seed, max_epochs):
    """Yield the probabilities of the blend and of either head, for the test rows."""
    X_val, y_val = split.validation
    model = CFLLClassifier(random_state=seed, max_epochs=max_epochs)
    model.fit(*split.train, X_val=X_val, y_val=y_val)
    X = split.test[0]
    yield BLEND, model.predict_proba(X)
    solved = [model.net_.predict_proba(rows) for rows in (X_val, X)]
    logits = [
        model.decision_function(rows).reshape(len(rows), -1) for rows in (X_val, X)
    ]
    share, other = model.calibration_
    logistic = [
        (both - share * part) / max(other, 1e-12)
        for both, part in zip(logits, solved, strict=True)
    ]
    for name, (seen, unseen) in ((SOLVED, solved), (LOGISTIC, logistic)):
        if name == LOGISTIC and other == 0:
            continue  # left out of the blend, and not kept
        (factor,) = fit_blend([seen], y_val, np.ones(len(y_val)))
        yield name, softmax(factor * both_sides(unseen), axis=1)


def by_others(split, seed, max_epochs):
    """Yield the probabilities of scikit-learn's estimators, for the test rows."""
    X = np.vstack([split.train[0], split.validation[0]])
    y = np.concatenate([split.train[1], split.validation[1]])
    share = len(split.validation[1]) / len(y)
    settings = {
        "early_stopping": True,
        "validation_fraction": share,
        "random_state": seed,
        "max_iter": 100 if max_epochs == "auto" else max_epochs,
    }
    for name, kind in (
        ("HistGradientBoosting", HistGradientBoostingClassifier),
        ("MLP", MLPClassifier),
    ):
        model = kind(**settings).fit(X, y)
        yield name, model.predict_proba(split.test[0])


def compare(split, seed, max_epochs):
    """Yield a row of the results for each method."""
    for runs in (by_head, by_others):
        for name, probabilities in runs(split, seed, max_epochs):
            scores = scores_of(probabilities.astype(np.float64), split.test[1])
            yield {"table": split.name, "seed": seed, "method": name, **scores}


def summarise(results):
    """Return the means over the seeds, and below them geometric means of ratios.

    A table counts for a ratio where both methods have it; the ratio is that to CFLL.
    """
    means = results.groupby(["table", "method"], sort=False).mean().drop(columns="seed")
    wide = means.unstack("method")
    ratios = {}
    for measure in ("wrong", "log loss", "Brier", "ECE"):
        part = wide[measure].reindex(columns=METHODS)
        part = part[(part.fillna(1) > 0).all(axis=1)]
        logs = np.log(part.div(part[BLEND], axis=0))
        ratios[measure] = np.exp(logs.mean())
    return means, pd.DataFrame(ratios).reindex(METHODS)


def log_losses(means):
    """Return the frame of text that goes to the docs: log loss by table and method."""
    wide = means["log loss"].unstack("method").reindex(columns=METHODS)
    cells = wide.map(lambda value: "" if np.isnan(value) else f"{value:.4f}")
    return cells.reindex(means.index.get_level_values("table").unique()).reset_index()


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__,
        sets=["digits", "breast_cancer"],
        rows=6_000,
        seeds=3,
        output="folder for calibration.csv and .rst",
    )
    parsed = parser.parse_args(arguments)
    parsed.max_epochs = "auto"
    if parsed.quick:
        parsed.rows, parsed.seeds, parsed.max_epochs = 600, 1, 3
    return parsed


def main():
    """Fit on every table and seed, then print and write the scores."""
    arguments = parse_arguments()
    use_one_thread()
    results = []
    for split, seed in named_splits(arguments):
        for row in compare(split, seed, arguments.max_epochs):
            print(*row.values(), file=sys.stderr)
            results.append(row)
    results = pd.DataFrame(results)
    means, ratios = summarise(results)
    print("log loss")
    print(log_losses(means).to_string(index=False))
    print("relative to CFLL, geometric means over the tables")
    print(ratios.round(3).to_string())
    if arguments.output:
        folder = made_folder(arguments.output)
        results.to_csv(folder / "calibration.csv", index=False)
        text = as_list_table(log_losses(means), "Log loss of the test rows")
        shown = ratios.map("{:.3f}".format).rename_axis("method").reset_index()
        text += "\n" + as_list_table(shown, "Relative to CFLL")
        (folder / "calibration.rst").write_text(text)


if __name__ == "__main__":
    main()
