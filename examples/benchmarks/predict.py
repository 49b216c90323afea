"""What a prediction costs beside the bare network's forward pass.

The bare network is the trained backbone and its head, a torch module in inference mode,
called on a float32 tensor that is there already: in one call, or in chunks of as many
rows as the estimator takes. The estimator gets the same memory as an array, checks it,
and gives labels, probabilities or targets in float64.

All are called in turn, in an order that is drawn anew for each round, on one CPU
thread; times are medians of processor seconds. Ratios are to the faster of the bare
network's two ways: chunks of a thousand rows stay in the cache, and one call of many
doesn't.

Run it with ``python examples/benchmarks/predict.py``; ``--help`` lists options.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from _command_line import made_folder
from _common import use_one_thread
from _tables import as_list_table

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.chunks import chunk_slices

ROWS = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)
CALLS = ("regressor, predict", "classifier, predict", "classifier, predict_proba")
BARE, ONE_CALL = "bare, in chunks", "bare, one call"


def bare_forward(network, X, rows_a_chunk):
    """Return the network's outputs, in chunks."""
    with torch.inference_mode():
        parts = [network(chunk) for chunk in X.split(rows_a_chunk)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def calls_by_name(X, regressor, classifier):
    """Return functions without arguments, each a whole prediction of X."""
    network = regressor.net_.module_.eval()
    tensor = torch.from_numpy(X)
    numbers = sum(network.head.weight.shape)
    first = next(chunk_slices(len(X), numbers, tensor.device))
    return {
        BARE: lambda: bare_forward(network, tensor, first.stop),
        ONE_CALL: lambda: bare_forward(network, tensor, len(X)),
        CALLS[0]: lambda: regressor.predict(X),
        CALLS[1]: lambda: classifier.predict(X),
        CALLS[2]: lambda: classifier.predict_proba(X),
    }


def medians(functions, repeats):
    """Return each function's median of processor seconds, called in turn."""
    seconds = {name: [] for name in functions}
    names = list(functions)
    rng = np.random.default_rng(0)
    for _ in range(repeats + 1):
        for name in rng.permutation(names):
            start = time.process_time()
            functions[name]()
            seconds[name].append(time.process_time() - start)
    # The first round warms up.
    return {name: float(np.median(each[1:])) for name, each in seconds.items()}


def run(arguments):
    """Yield a row for each number of rows."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((max(arguments.rows), arguments.columns), np.float32)
    few = rng.standard_normal((2_000, arguments.columns), np.float32)
    y = few[:, 0] + np.sin(few[:, 1])
    regressor = CFLLRegressor(max_epochs=2, random_state=0).fit(few, y)
    classifier = CFLLClassifier(max_epochs=2, random_state=0).fit(few, y > 0)
    for rows in arguments.rows:
        repeats = int(np.clip(arguments.budget // rows, 5, 1_000))
        seconds = medians(calls_by_name(X[:rows], regressor, classifier), repeats)
        yield {"rows": rows, **seconds}


def as_texts(results):
    """Return seconds as text, each estimator's with its ratio to the bare network."""
    bare = results[[BARE, ONE_CALL]].min(axis=1)
    cells = pd.DataFrame({"rows": results["rows"].map("{:,}".format)})
    for name in (BARE, ONE_CALL):
        cells[name] = [_microseconds(value) for value in results[name]]
    for name in CALLS:
        ratios = results[name] / bare
        cells[name] = [
            f"{_microseconds(value)}, x {ratio:.2f}"
            for value, ratio in zip(results[name], ratios, strict=True)
        ]
    speed = results["rows"] / results[CALLS[0]]
    cells["regressor, rows a second"] = speed.map("{:,.0f}".format)
    return cells


def _microseconds(seconds):
    return f"{1e6 * seconds:,.0f}"


def draw(results, path):
    """Draw times relative to the bare network's."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
    bare = results[[BARE, ONE_CALL]].min(axis=1)
    for name, style in zip((*CALLS, ONE_CALL), ("o-", "s-", "^-", "k:"), strict=True):
        ax.semilogx(results["rows"], results[name] / bare, style, label=name)
    ax.axhspan(1, 1.1, color="0.9")
    ax.set(xlabel="rows", ylabel="time / bare network's", ylim=(0.8, None))
    ax.legend()
    figure.savefig(path, dpi=80)


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument(
        "--budget", type=int, default=1_000_000, help="rows of each call, about"
    )
    parser.add_argument("--quick", action="store_true", help="a quick look")
    parser.add_argument("--output", help="folder for predict.csv, .rst and .png")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.rows, parsed.budget = (1, 100, 3_000), 3_000
    return parsed


def main():
    """Time predictions, then print and write the table."""
    arguments = parse_arguments()
    use_one_thread()
    results = pd.DataFrame(run(arguments))
    cells = as_texts(results)
    title = "Microseconds of a prediction, and their ratio to the bare network's"
    print(f"{title}\n{cells.to_string(index=False)}")
    if arguments.output:
        folder = made_folder(arguments.output)
        results.to_csv(folder / "predict.csv", index=False)
        (folder / "predict.rst").write_text(as_list_table(cells, title))
        draw(results, folder / "predict.png")


if __name__ == "__main__":
    main()
