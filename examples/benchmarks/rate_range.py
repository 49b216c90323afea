"""How wide the range of good learning rates is, for CFLL and end to end.

For each table, seed, optimizer and rate the default backbone is trained:

1. by CFLL, with the estimator's defaults but for the optimizer, its rate and the
   epochs;
2. end to end, with a linear layer on top;
3. as 2, and then its head is refitted as CFLL's is: an exact ridge solve over all
   training rows, kept where the validation rows agree.

All have the same rows, batch size, epochs and cosine schedule, and go back to the epoch
that is best on the validation rows. The error of a rate is the squared error on the
test rows, its mean over the seeds. A run that diverges has an infinite error.

The range is the interval of rates around the best one whose error is within 5 % of a
best error: of the method's own, or of the least of all methods on that table with that
optimizer. Between the rates that were tried the error is interpolated, linearly in the
rate's logarithm; next to an infinite error the range ends at the last rate tried. Where
it reaches an end of the rates tried it is cut off there, and is marked ``>=``.

CFLL goes back and halves its rate when a run explodes, at most five times, so that a
large rate may stand for a smaller one. Such runs are counted.

Run it with ``python examples/benchmarks/rate_range.py``; ``--help`` lists options.
"""

import copy
import warnings
from types import SimpleNamespace

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
from _ranges import (
    CRITERIA,
    METHODS,
    PLAIN,
    as_errors,
    as_means,
    as_widths,
    find_ranges,
)
from _tables import as_list_table
from sklearn.exceptions import ConvergenceWarning
from time_to_quality import cfll_outputs

from sklearn_cfll import CFLLClassifier, CFLLNet, CFLLRegressor, ClosedFormHead
from sklearn_cfll._final import solve_head
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.network import Network

RATES = {
    "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
STYLES = dict(zip(METHODS, ("C0-o", "C1-s", "C2--^"), strict=True))


# Training ---------------------------------------------------------------------------


def run_cfll(split, optimizer, lr, epochs, seed):
    """Return the test error of CFLL, and how often it went back to half the rate."""
    kind = CFLLRegressor if split.task == "regression" else CFLLClassifier
    model = kind(
        optimizer=optimizer,
        lr=lr,
        lr_schedule="cosine",
        prox=(1, 100),
        max_epochs=epochs,
        random_state=seed,
    )
    X_val, y_val = split.validation
    try:
        with warnings.catch_warnings():
            # Recoveries warn; they are counted here.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(*split.train, X_val=X_val, y_val=y_val)
    except FloatingPointError:
        return np.inf, np.nan
    X_test, y_test = split.test
    error = errors(cfll_outputs(model, X_test), y_test, split.task)
    return finite(error), model.n_recoveries_


def run_end_to_end(network, split, optimizer, lr, batch_size, epochs, seed):
    """Return the test errors of the network, and of its head's refit."""
    run = train_end_to_end(
        copy.deepcopy(network),
        split,
        lr,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        optimizer=optimizer,
    )
    X_test, y_test = split.test
    plain = finite(errors(predict_in_batches(run.network, X_test), y_test, split.task))
    try:
        refitted = refit_head(run.network, split)
    except FloatingPointError:
        return plain, np.inf
    outputs = predict_in_batches(refitted, X_test)
    return plain, finite(errors(outputs, y_test, split.task))


def finite(squared_and_wrong):
    """Return the squared error; infinity where it is not a number."""
    return float(np.nan_to_num(squared_and_wrong[0], nan=np.inf, posinf=np.inf))


def refit_head(network, split):
    """Solve the head on the trained backbone just as CFLL does in the end."""
    backbone, linear = network.eval()
    head = ClosedFormHead(linear.in_features, linear.out_features)
    head.weight = linear.weight.detach().double().T
    head.bias = linear.bias.detach().double()
    refitted = Network(backbone, head)
    train, validation = (
        TensorBatches(X, as_outputs(y, split.task))
        for X, y in (split.train, split.validation)
    )
    pooled = split.task == "classification"
    net = CFLLNet(
        refitted,
        n_features=refitted.head.weight.shape[0],
        n_outputs=refitted.head.weight.shape[1],
    ).initialize()
    rows = SimpleNamespace(batches=train, held_out_batches=validation, unit=1.0)
    solve_head(net, rows, alpha="auto", pooled=pooled, loss_unit=1.0)
    return net.module_


def sweep(split, seed, arguments):
    """Yield a row for each optimizer, rate and method."""
    kind = CFLLRegressor if split.task == "regression" else CFLLClassifier
    batch_size = kind(max_epochs=1).fit(*split.train).net_.batch_size
    network = build_network(split, seed, normalize=not arguments.no_layer_norm)
    for optimizer, rates in arguments.rates.items():
        for rate in rates:
            cfll, recoveries = run_cfll(split, optimizer, rate, arguments.epochs, seed)
            plain = run_end_to_end(
                network, split, optimizer, rate, batch_size, arguments.epochs, seed
            )
            for method, error in zip(METHODS, (cfll, *plain), strict=True):
                yield {
                    "table": split.name,
                    "optimizer": optimizer,
                    "method": method,
                    "rate": rate,
                    "seed": seed,
                    "error": error,
                    "recoveries": 0 if method in PLAIN else recoveries,
                }


# Output -----------------------------------------------------------------------------


def texts(ranges):
    """Return tables of text by their titles."""
    titles = (
        "Range within 5 % of the method's own best error, in decades",
        "Range within 5 % of the least error of all methods, in decades",
    )
    widths = [as_widths(ranges, criterion) for criterion in CRITERIA]
    return {
        "Least test error, and the rate that has it": as_errors(ranges),
        **dict(zip(titles, widths, strict=True)),
        "Mean decades over the tables": as_means(ranges),
    }


def draw(runs, path):
    """Draw errors by rate, relative to the least of all methods."""
    import matplotlib.pyplot as plt

    tables, optimizers = runs["table"].unique(), runs["optimizer"].unique()
    figure, axes = plt.subplots(
        len(optimizers),
        len(tables),
        figsize=(2.7 * len(tables), 5),
        squeeze=False,
        layout="constrained",
    )
    for (i, j), ax in np.ndenumerate(axes):
        chosen = runs[
            (runs["optimizer"] == optimizers[i]) & (runs["table"] == tables[j])
        ]
        means = chosen.groupby(["method", "rate"])["error"].mean()
        for method, style in STYLES.items():
            error = means[method] / means.min()
            ax.semilogx(error.index, error, style, label=method, ms=4, lw=1)
        ax.axhspan(1, 1.05, color="0.9")
        ax.set(ylim=(0.97, 1.6), title=f"{tables[j]}, {optimizers[i]}", xlabel="lr")
        ax.title.set_fontsize(9)
    axes[0, 0].legend(fontsize=7)
    figure.supylabel("test error / least of all methods")
    figure.savefig(path, dpi=80)


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__, rows=8_000, seeds=3, output="folder for rate_range.csv, .rst and .png"
    )
    parser.add_argument("--epochs", type=int, default=10)
    for name, rates in RATES.items():
        parser.add_argument(f"--{name}-rates", nargs="*", type=float, default=rates)
    parser.add_argument(
        "--no-layer-norm",
        action="store_true",
        help="train end to end without the LayerNorm that CFLL keeps",
    )
    parsed = parser.parse_args(arguments)
    parsed.rates = {"sgd": parsed.sgd_rates, "adamw": parsed.adamw_rates}
    if parsed.quick:
        parsed.sets = parsed.sets or ["diabetes", "breast_cancer"]
        parsed.rates = {name: rates[::3] for name, rates in RATES.items()}
        parsed.epochs, parsed.seeds = 2, 1
    return parsed


def main():
    """Sweep over the rates of every table and seed, then print and write the tables."""
    arguments = parse_arguments()
    use_one_thread()
    runs = []
    for split, seed in named_splits(arguments):
        runs += sweep(split, seed, arguments)
    runs = pd.DataFrame(runs)
    tables = texts(find_ranges(runs))
    for title, cells in tables.items():
        print(f"{title}\n{cells.to_string(index=False)}\n")
    cfll = runs[runs["method"] == METHODS[0]]
    print(f"CFLL runs that recovered: {(cfll['recoveries'] > 0).sum()} of {len(cfll)}")
    if arguments.output:
        folder = made_folder(arguments.output)
        runs.to_csv(folder / "rate_range.csv", index=False)
        rst = [as_list_table(cells, title) for title, cells in tables.items()]
        (folder / "rate_range.rst").write_text("\n".join(rst))
        draw(runs, folder / "rate_range.png")


if __name__ == "__main__":
    main()
