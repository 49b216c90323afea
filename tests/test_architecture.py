"""The layers of the package: a file imports only from files above it."""

import ast
import re
from pathlib import Path

import pytest

import sklearn_cfll

PACKAGE = Path(sklearn_cfll.__file__).parent

# From the top down: each may import from those that stand before it alone.
ORDER = [
    "datasets",
    "functional.plain",
    "functional.systems",
    "functional.lapack",
    "functional.gram",
    "functional.outputs",
    "functional.ridge",
    "functional.proximal",
    "functional.moments",
    "functional.ridge_path",
    "functional.streamed",
    "functional.errors",
    "functional.paths",
    "functional.posterior",
    "functional.folds",
    "functional.kalman",
    "functional.instrument",
    "functional.sandwich",
    "functional.projections",
    "functional.linear_tests",
    "functional",
    "prox",
    "head",
    "updates",
    "kalman",
    "one_hot",
    "chunks",
    "batches",
    "layers",
    "backbones",
    "mlp",
    "small_mlp",
    "losses",
    "optimizers",
    "schedules",
    "stepping",
    "checks",
    "callbacks",
    "recovery",
    "network",
    "loop",
    "step",
    "loading",
    "net",
    "_defaults",
    "_device",
    "_docs",
    "_parameters",
    "_undo",
    "_targets",
    "_numbers",
    "_grids",
    "_validation",
    "_problem",
    "_sums",
    "_stream_terms",
    "_first_chunk",
    "_scoring",
    "_build",
    "_stream",
    "_left_out",
    "_final",
    "_logits",
    "_score_factor",
    "_unseen",
    "_conformal",
    "_predicting",
    "_base",
    "_calibration",
    "_regression_targets",
    "_learnt_errors",
    "_uncertainty",
    "_sets",
    "_transfer",
    "_streaming",
    "_class_streaming",
    "regressor",
    "classifier",
    "_iv_defaults",
    "_iv_parameters",
    "_iv_columns",
    "_iv_instruments",
    "_iv_rows",
    "_iv_problem",
    "_iv_network",
    "_iv_build",
    "_iv_stacks",
    "_iv_losses",
    "_iv_steps",
    "_iv_training",
    "_iv_fitting",
    "_iv_choice",
    "_iv_final",
    "_iv_unseen",
    "_iv_diagnostics",
    "_iv_summary",
    "_iv_predicting",
    "_iv_results",
    "iv",
    "_display",
    "_plot_fit",
    "_plot_intervals",
    "_plot_calibration",
    "plot",
    "_names",
    "_whole",
    "_codec",
    "_modules",
    "persistence",
    "",
]


PAGE = PACKAGE.parent / "docs" / "design" / "module_order.md"


def files_by_name():
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
    return names


def imported_names(path):
    """Every module of the package that a file imports, wherever in the file."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*package[: len(package) - node.level + 1], *base]
            # "from package import module" imports the module.
            submodules = [".".join([*base, alias.name]) for alias in node.names]
            found = [n for n in submodules if n in MODULES] or [".".join(base)]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == "sklearn_cfll")


FILES = files_by_name()
MODULES = {f"sklearn_cfll.{name}".rstrip("."): name for name in FILES}


def test_every_file_has_its_place_in_the_order():
    assert sorted(FILES) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER, ids=lambda name: name or "sklearn_cfll")
def test_a_file_imports_only_from_files_above_it(name):
    above = ORDER[: ORDER.index(name)]
    imported = {MODULES[module] for module in imported_names(FILES[name])}
    assert sorted(imported - set(above)) == []


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    source = (
        "import sklearn_cfll.net\n"
        "from sklearn_cfll import _base\n"
        "def later():\n"
        "    from . import head\n"
        "    from .losses import Tally\n"
        "    import numpy\n"
    )
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "sklearn_cfll")
    path = tmp_path / "sklearn_cfll" / "room.py"
    path.parent.mkdir()
    path.write_text(source)
    assert list(imported_names(path)) == [
        f"sklearn_cfll.{name}" for name in ["net", "_base", "head", "losses"]
    ]


def test_the_mathematics_knows_nothing_but_arrays():
    plain = {"collections", "copy", "dataclasses", "itertools", "math", "typing"}
    allowed = {"__future__", *plain, "numpy", "scipy", "torch", "sklearn_cfll"}
    for name in [n for n in ORDER if n.startswith("functional")]:
        tree = ast.parse(FILES[name].read_text())
        roots = {
            (node.module if isinstance(node, ast.ImportFrom) else alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert {root.split(".")[0] for root in roots} <= allowed


def test_the_page_on_the_order_names_each_file():
    named = re.findall(r"`([\w/]+)\.py`", PAGE.read_text().split("**Reasons.**")[0])
    packages = {"functional", ""}
    assert [name.replace("/", ".") for name in named] == [
        name for name in ORDER if name not in packages
    ]
