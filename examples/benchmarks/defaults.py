"""What a default is worth: the estimators with one setting changed at a time.

Every setting gets the same rows, four fifths of a table, of which it holds out its own,
and is judged on the other fifth: the squared error relative to the variance, or the
share of wrong classes, the log loss, and the processor seconds of the fit. Shown are
ratios to the first setting: geometric means over the tables, of which each is the
geometric mean over its seeds, and the standard error of the error's logarithm over the
tables.

Run it with ``python examples/benchmarks/defaults.py``; ``--help`` lists options. With
``--output`` each fit is kept as a line, and those that are there are not run again.
"""

import pandas as pd
from _common import use_one_thread
from _settings import fit_and_score, look_quickly, ratios, run_missing, settings_parser

from sklearn_cfll import MLP

SETTINGS = {
    "default": {},
    "embedding=None": {"backbone": MLP(embedding=None)},
    "n_frequencies=8": {"backbone": MLP(n_frequencies=8)},
    "embedding_size=7": {"backbone": MLP(embedding_size=7)},
    "frequency_scale=0.1": {"backbone": MLP(frequency_scale=0.1)},
    "frequency_scale=0.2": {"backbone": MLP(frequency_scale=0.2)},
    "gain_rate=0": {"backbone": MLP(gain_rate=0)},
    "width=128": {"backbone": MLP(width=128)},
    "dropout=0.1": {"backbone": MLP(dropout=0.1)},
    "lr=0.01": {"lr": 0.01},
    "cosine": {"lr_schedule": "cosine"},
    "prox=(1, 100)": {"prox": (1, 100)},
    "cosine, prox=(1, 100)": {"lr_schedule": "cosine", "prox": (1, 100)},
    "100 epochs": {"max_epochs": 100},
    "50 epochs": {"max_epochs": 50},
    "alpha=0.1": {"alpha": 0.1},
}
MEASURES = ["error", "log_loss", "seconds"]


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = settings_parser(__doc__, SETTINGS)
    parser.add_argument("--epochs", type=int, help="of each fit; default: automatic")
    parsed = parser.parse_args(arguments)
    parsed.max_epochs = parsed.epochs or "auto"
    if parsed.quick:
        look_quickly(parsed)
        parsed.max_epochs = parsed.epochs or 3
        parsed.settings = ["default", "width=128"]
    return parsed


def main():
    """Fit with every setting on every table and seed, then print the ratios."""
    arguments = parse_arguments()
    use_one_thread()

    def fit(split, seed, setting):
        parameters = {"max_epochs": arguments.max_epochs, **SETTINGS[setting]}
        return fit_and_score(split, seed, parameters)[0]

    results = pd.DataFrame(run_missing(arguments, fit))
    results = results[results["setting"].isin(arguments.settings)]
    summary, tables = ratios(results, MEASURES, arguments.settings)
    print(summary.round(3).to_string())
    print(tables.T.round(2).to_string())


if __name__ == "__main__":
    main()
