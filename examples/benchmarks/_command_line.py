"""Options that the benchmarks over tables share, and what they name."""

import argparse
from pathlib import Path

from _common import load_table, split_table, table_names


def table_parser(description, *, sets=None, rows, seeds, output):
    """Return a parser with the shared options, for a script to add its own.

    `description` is the script's docstring, of which the first line is shown; `sets`,
    `rows` and `seeds` are defaults, and `output` says what `--output` names.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--data", help="folder of NAME.parquet with `__target__`")
    parser.add_argument(
        "--sets",
        nargs="+",
        default=sets,
        help=f"names of tables; default: {' '.join(sets) if sets else 'all'}",
    )
    parser.add_argument("--rows", type=int, default=rows, help="at most so many")
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds")
    parser.add_argument("--quick", action="store_true", help="a quick look")
    parser.add_argument("--output", help=output)
    return parser


def named_splits(arguments):
    """Yield a split and its seed, for every seed and table that was asked for."""
    for seed in range(arguments.seeds):
        for name in arguments.sets or table_names(arguments.data):
            table = load_table(name, arguments.data)
            yield split_table(table, arguments.rows, seed), seed


def made_folder(path):
    """Return a folder, which is made where it isn't there."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
