"""How far the classifier's probabilities are from the truth, beside other estimators'.

The same fit gives three sets of probabilities: of the solved head's scores by one
factor, of the logistic head by one factor, and of the blend of both, which is what
`predict_proba` gives. Validation rows choose the epoch, the ridges and the factors.
Beside them stand scikit-learn's gradient boosting and its multi-layer perceptron, both
with early stopping on the same number of rows. All figures are of the test rows, which
choose nothing: log loss, Brier score (sum over the classes), and the expected
calibration error of the predicted class in 15 bins of equal counts. The reliability
curve, in ten such bins, is that of the rarer class's probability where there are two,
and else that of the predicted class.

Run it with ``python examples/benchmarks/calibration.py``; ``--help`` lists options.
Results are kept in a file, a line each, and what is there is not run again.
"""

import json

import numpy as np
from _command_line import made_folder, named_splits, table_parser
from _common import use_one_thread
from scipy.special import softmax
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

from sklearn_cfll import CFLLClassifier
from sklearn_cfll._logits import both_sides, fit_blend

BLEND, SOLVED, LOGISTIC = "CFLL", "its solved head", "its logistic head"
# Two classes count as imbalanced where the rarer one has less than this share.
RARE = 0.25


def in_bins(confidence, hits, n_bins):
    """Return the sums of confidence and of hits over bins of equal counts."""
    bins = np.array_split(np.argsort(confidence, kind="stable"), n_bins)
    sums = [(confidence[rows].sum(), hits[rows].sum()) for rows in bins]
    return np.array(sums, dtype=float).T, np.array([len(rows) for rows in bins])


def expected_calibration_error(probabilities, y, n_bins=15):
    """Return the mean gap of confidence and accuracy over bins of equal counts."""
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == y
    (expected, found), _ = in_bins(confidence, hits, n_bins)
    return np.abs(expected - found).sum() / len(y)


def error_by_chance(probabilities, n_bins=15):
    """Return the calibration error to expect of probabilities that are right.

    The sum of a bin's hits has then a known variance, and is about normal.
    """
    confidence = probabilities.max(axis=1)
    variances, _ = in_bins(confidence, confidence * (1 - confidence), n_bins)
    return np.sqrt(2 / np.pi * variances[1]).sum() / len(confidence)


def reliability(probabilities, y, n_bins=10):
    """Return mean probabilities and shares of hits in bins of equal counts.

    Of two classes the rarer one counts, of more the predicted one.
    """
    if probabilities.shape[1] == 2:
        rarer = np.bincount(y, minlength=2).argmin()
        probability, hits = probabilities[:, rarer], y == rarer
    else:
        probability, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    sums, counts = in_bins(probability, hits, n_bins)
    return (sums / counts).tolist()


def scores_of(probabilities, y):
    """Return accuracy, log loss, Brier score and calibration error."""
    one_hot = np.eye(probabilities.shape[1])[y]
    return {
        "wrong": np.mean(probabilities.argmax(axis=1) != y),
        "log loss": log_loss(y, probabilities, labels=range(probabilities.shape[1])),
        "Brier": np.square(probabilities - one_hot).sum(axis=1).mean(),
        "ECE": expected_calibration_error(probabilities, y),
        "ECE by chance": error_by_chance(probabilities),
    }


def kind_of(y):
    """Say whether the labels are of two classes, of two uneven ones, or of more."""
    counts = np.bincount(y)
    if len(counts) > 2:
        return "multiclass"
    return "imbalanced" if counts.min() < RARE * len(y) else "binary"


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
    y = split.test[1]
    kind = kind_of(split.train[1])
    for runs in (by_head, by_others):
        for name, probabilities in runs(split, seed, max_epochs):
            probabilities = probabilities.astype(np.float64)
            # Those of float32 sum to one but for its rounding.
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            yield {
                "table": split.name,
                "kind": kind,
                "seed": seed,
                "method": name,
                **scores_of(probabilities, y),
                "reliability": reliability(probabilities, y),
            }


def run_missing(arguments, path):
    """Run the tables and seeds that the file hasn't, and append them to it."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["table"], row["seed"]) for row in rows}
    for split, seed in named_splits(arguments):
        if (split.name, seed) in done:
            continue
        new = list(compare(split, seed, arguments.max_epochs))
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        for row in new:
            numbers = " ".join(f"{row[n]:.4f}" for n in ("wrong", "log loss", "ECE"))
            print(row["table"], seed, row["method"], numbers, flush=True)
        rows += new
    return rows


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__,
        sets=["digits", "breast_cancer"],
        rows=6_000,
        seeds=5,
        output="folder for calibration.jsonl; default: calibration",
    )
    parser.add_argument(
        "--report", metavar="FOLDER", help="write tables and the picture there"
    )
    parsed = parser.parse_args(arguments)
    parsed.max_epochs = "auto"
    if parsed.quick:
        parsed.rows, parsed.seeds, parsed.max_epochs = 600, 1, 3
    return parsed


def main():
    """Run what is missing; report what was asked for."""
    arguments = parse_arguments()
    use_one_thread()
    path = made_folder(arguments.output or "calibration") / "calibration.jsonl"
    rows = run_missing(arguments, path)
    if arguments.report:
        from _calibration_report import write  # matplotlib is needed here alone

        write(rows, made_folder(arguments.report))


if __name__ == "__main__":
    main()
