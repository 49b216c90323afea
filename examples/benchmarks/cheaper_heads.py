"""What cheaper updates of the head save in time, and what they cost in quality.

The default estimators, and the same with a last hidden layer of fewer units, with a
head that is updated on a part of each batch's rows or at some of the steps alone, and
with batches half as large. All have the same rows, four fifths of a table, of which
they hold out a tenth, and are judged on the other fifth: the squared error relative to
the variance, or the share of wrong classes, and the log loss. Seconds are of the
processor for the whole fit, and for an epoch of it, as early stopping ends fits after
different numbers of epochs. The head that is updated at the first step alone shows how
much time could be saved at all.

Shown are ratios to the default: geometric means over the tables, of which each is the
geometric mean over its seeds, and the standard error of the error's logarithm over the
tables.

Run it with ``python examples/benchmarks/cheaper_heads.py``; ``--help`` lists options.
With ``--output`` each fit is kept as a line, and what is there isn't run again.
"""

import pandas as pd
from _command_line import made_folder
from _common import use_one_thread
from _settings import fit_and_score, look_quickly, ratios, run_missing, settings_parser
from _tables import as_list_table
from torch import nn

from sklearn_cfll import MLP, ProximalUpdate
from sklearn_cfll._defaults import batch_size, max_epochs

DEFAULT = "default"
MEASURES = ["error", "log_loss", "seconds", "seconds_an_epoch"]
TITLES = ["error", "log loss", "seconds of a fit", "seconds of an epoch"]


class NarrowEnd(MLP):
    """The default backbone with a last hidden layer of fewer units.

    Parameters
    ----------
    n_features : int
        Units of the last hidden layer, which the head sees.
    """

    def __init__(self, n_features=64):
        super().__init__()
        self.n_features = n_features

    def build(self, batches):
        """Build the network, and replace its end."""
        layers = list(super().build(batches))
        layers[-3] = nn.Linear(self.width, self.n_features)
        layers[-1] = nn.LayerNorm(self.n_features, elementwise_affine=False)
        return nn.Sequential(*layers)


class PartOfRows(ProximalUpdate):
    """The default update, on the first rows of each batch, which are shuffled.

    Parameters
    ----------
    share : float
        Share of the rows.
    """

    def __init__(self, share):
        super().__init__()
        self.share = share

    def update_(self, head, features, targets, sample_weight=None, progress=0.0):
        """Move the head by the first rows alone."""
        rows = slice(max(1, round(self.share * len(features))))
        weight = None if sample_weight is None else sample_weight[rows]
        super().update_(head, features[rows], targets[rows], weight, progress)


class FewSteps(ProximalUpdate):
    """The default update, at every few steps alone.

    Parameters
    ----------
    every : int
        Steps from one update to the next; the first step has one.
    """

    def __init__(self, every):
        super().__init__()
        self.every, self.step = every, 0

    def start_(self, head, features, targets, sample_weight=None):
        """Begin to count."""
        super().start_(head, features, targets, sample_weight)
        self.step = 0

    def update_(self, head, features, targets, sample_weight=None, progress=0.0):
        """Move the head, or leave it as it is."""
        if self.step % self.every == 0:
            super().update_(head, features, targets, sample_weight, progress)
        self.step += 1


def by_rule(rule):
    """Return the parameters of an estimator with this update of the head."""
    return lambda n_rows: {"net_params": {"head_update": rule}}


def half_batches(epochs):
    """Return parameters by the rows: batches half as large, a share of the epochs."""

    def parameters(n_rows):
        size = batch_size(n_rows)
        whole = max_epochs(-(-n_rows // size))
        return {"batch_size": size // 2, "max_epochs": max(1, round(epochs * whole))}

    return parameters


SETTINGS = {
    DEFAULT: lambda n_rows: {},
    "last layer of 128": lambda n_rows: {"backbone": NarrowEnd(128)},
    "last layer of 64": lambda n_rows: {"backbone": NarrowEnd(64)},
    "half of the rows": by_rule(PartOfRows(1 / 2)),
    "a quarter of the rows": by_rule(PartOfRows(1 / 4)),
    "every 2nd step": by_rule(FewSteps(2)),
    "every 4th step": by_rule(FewSteps(4)),
    "every 8th step": by_rule(FewSteps(8)),
    "first step alone": by_rule(FewSteps(2**62)),
    "half batches": half_batches(1),
    "half batches, half the epochs": half_batches(1 / 2),
}


def complete(results):
    """Return the runs of the tables and seeds that have every setting."""
    counts = results.groupby(["table", "seed"])["setting"].transform("nunique")
    return results[counts == results["setting"].nunique()]


def write(summary, tables, folder):
    """Write both tables."""
    shown = summary[["error", "spread", *MEASURES[1:]]]
    shown = shown.map("{:.3f}".format).drop(index=DEFAULT)
    shown.columns = [TITLES[0], "its standard error", *TITLES[1:]]
    shown = shown.rename_axis("head").reset_index()
    cells = tables.drop(index=DEFAULT).T.map("{:.2f}".format)
    cells = cells.rename_axis("table").reset_index()
    text = as_list_table(shown, "Relative to the default, geometric means")
    text += "\n" + as_list_table(cells, "The error relative to the default's")
    (folder / "cheaper_heads.rst").write_text(text)


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = settings_parser(__doc__, SETTINGS)
    parser.add_argument("--report", metavar="FOLDER", help="write the tables there")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        look_quickly(parsed)
    return parsed


def measure(split, seed, setting, quick):
    """Return the measures of one fit."""
    n_rows = len(split.train[0])
    # Of which a tenth is held out; a quick look needs no more than to run.
    parameters = SETTINGS[setting](n_rows - -(-n_rows // 10))
    if quick:
        parameters["max_epochs"] = 3
    scores, model = fit_and_score(split, seed, parameters)
    seconds = scores["seconds"] / model.n_iter_
    return scores | {"seconds_an_epoch": seconds, "epochs": model.n_iter_}


def main():
    """Fit with every setting on every table and seed, then print the ratios."""
    arguments = parse_arguments()
    use_one_thread()

    def fit(split, seed, setting):
        return measure(split, seed, setting, arguments.quick)

    results = pd.DataFrame(run_missing(arguments, fit))
    results = results[results["setting"].isin(arguments.settings)]
    summary, tables = ratios(complete(results), MEASURES, arguments.settings)
    print(summary.round(3).to_string())
    print(tables.T.round(2).to_string())
    if arguments.report:
        write(summary, tables, made_folder(arguments.report))


if __name__ == "__main__":
    main()
