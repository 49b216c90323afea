"""The benchmark against other estimators: its runs, and what it reports of them."""

import json
import sys

import matplotlib
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from test_benchmarks import EXAMPLES, run_quickly

FAST = ["CFLL", "CFLL_4", "MLP", "HistGB", "skorch"]


def results(folder):
    lines = (folder / "peers" / "peers.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the quick mode in a folder; give that and what was printed."""
    folder = tmp_path_factory.mktemp("peers")
    return folder, run_quickly("benchmarks/peers.py", folder)


@pytest.fixture
def peers(monkeypatch):
    """Import the script as a module."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    matplotlib.use("agg")
    import peers

    return peers


def report(peers, folder, *arguments):
    run(peers, folder, "--report", str(folder / "docs"), *arguments)


def run(peers, folder, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["peers.py", "--output", str(folder), *arguments])
        peers.main()


# Runs ------------------------------------------------------------------------------


def test_each_method_learns_each_table_from_the_same_rows(finished):
    folder, printed = finished
    lines = results(folder)
    assert [(line["table"], line["method"]) for line in lines] == [
        (table, method) for table in ("diabetes", "breast_cancer") for method in FAST
    ]
    least = {"diabetes": 0.2, "breast_cancer": 0.9}
    rows = {"diabetes": (353, 89), "breast_cancer": (455, 114)}
    for line in lines:
        assert line["score"] > least[line["table"]]
        assert (line["n_train"], line["n_test"]) == rows[line["table"]]
        assert line["error"] == pytest.approx(1 - line["score"])
        assert f" {line['method']:14} {line['score']:.4f} " in printed
        classes = line["task"] == "classification"
        assert 0 < line["log_loss"] < 0.4 if classes else line["log_loss"] is None


def test_training_and_validation_rows_are_joined_and_no_test_row_is_among_them(peers):
    split = peers.split_table(peers.load_table("diabetes"))
    joined = peers.join_training_rows(split)
    np.testing.assert_array_equal(
        joined.train[0], np.vstack([split.train[0], split.validation[0]])
    )
    trained, tested = (
        {row.tobytes() for row in part[0]} for part in (joined.train, joined.test)
    )
    assert len(trained) == 353
    assert len(tested) == 89
    assert not trained & tested


def test_a_score_is_that_of_the_estimator_fitted_by_hand(finished, peers):
    line = next(line for line in results(finished[0]) if line["method"] == "HistGB")
    split = peers.join_training_rows(peers.split_table(peers.load_table("diabetes")))
    model = HistGradientBoostingRegressor(random_state=0).fit(*split.train)
    assert line["score"] == pytest.approx(model.score(*split.test), rel=1e-6)


def test_cfll_4_is_the_mean_of_four_fits_on_all_rows(peers):
    split = peers.join_training_rows(peers.split_table(peers.load_table("diabetes")))
    X, y = (part[:100] for part in split.train)
    model = peers.make_model("CFLL_4", split, 0).fit(X, y)
    members = [member.predict(X) for member in model.estimators_]
    assert len(members) == 4
    assert np.ptp(members, axis=0).min() > 0
    np.testing.assert_allclose(model.predict(X), np.mean(members, axis=0))
    for rows in model.estimators_samples_:
        np.testing.assert_array_equal(np.sort(rows), range(100))


def test_a_second_call_runs_only_what_is_missing(finished, peers, capsys):
    folder, _ = finished
    before = results(folder)
    run(peers, folder / "peers", "--quick", "--label", "other")
    after = results(folder)
    assert after[: len(before)] == before
    added = after[len(before) :]
    assert [line["method"] for line in added] == ["CFLL", "CFLL_4"] * 2
    assert [line["label"] for line in added] == ["other"] * 4
    assert len(capsys.readouterr().out.splitlines()) == 4
    # The same version under another name: the same results.
    firsts = [line for line in before if line["label"]]
    assert [a["score"] for a in added] == [b["score"] for b in firsts]


def test_a_package_that_is_missing_is_named_and_left_out(
    peers, monkeypatch, tmp_path, capsys
):
    absent = ("not-a-package-of-anyone", None)
    monkeypatch.setitem(peers.METHODS, "TabM_D", absent)
    run(peers, tmp_path, "--methods", "TabM_D", "--sets", "diabetes")
    said = "TabM_D is left out: not-a-package-of-anyone is not installed.\n"
    assert capsys.readouterr().out == said
    assert not (tmp_path / "peers.jsonl").exists()


def test_a_peer_that_fails_is_recorded_and_reported(
    peers, monkeypatch, tmp_path, capsys
):
    def fail(split, seed):
        raise RuntimeError("no memory")

    monkeypatch.setitem(peers.METHODS, "MLP", ("scikit-learn", fail))
    arguments = ("--methods", "MLP", "HistGB", "--sets", "diabetes")
    run(peers, tmp_path, *arguments)
    lines = (tmp_path / "peers.jsonl").read_text().splitlines()
    failed, fitted = map(json.loads, lines)
    assert failed["failed"] == "RuntimeError: no memory"
    assert fitted["score"] > 0.2
    with pytest.raises(SystemExit, match="No table has results of every method"):
        report(peers, tmp_path)
    assert "MLP failed on diabetes, seed 0.\n" in capsys.readouterr().out


def test_probabilities_of_zero_cost_the_same_for_all(peers):
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]])
    scores = peers.class_scores(np.array([1, 0]), probabilities)
    assert scores["score"] == 0.5
    assert scores["log_loss"] == pytest.approx((np.log(1e7) + np.log(2)) / 2)


# The report ------------------------------------------------------------------------


def made_up(table, method, seed=0, **values):
    """Return a line of the file: a regression unless it has a log loss."""
    line = {
        "table": table,
        "rows": 20_000,
        "seed": seed,
        "method": method,
        "label": "0.1" if method == "CFLL" else "",
        "task": "classification" if "log_loss" in values else "regression",
        "n_train": 400,
        "n_test": 100,
        "log_loss": None,
        "fit_cpu_seconds": 1.0,
        "predict_cpu_seconds": 0.001,
        **values,
    }
    return {**line, "score": 1 - line["error"]}


def write(folder, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "peers.jsonl").write_text(text)


MADE_UP = [
    made_up("a", "CFLL", error=0.1, fit_cpu_seconds=1.0),
    made_up("a", "MLP", error=0.2, fit_cpu_seconds=2.0),
    made_up("a", "skorch", error=0.3),
    # A half of a wrong row in a hundred is added: 0.02, 0.005 and 0.02.
    made_up("b", "CFLL", error=0.015, log_loss=0.3, fit_cpu_seconds=4.0),
    made_up("b", "MLP", error=0.0, log_loss=0.1, fit_cpu_seconds=2.0),
    made_up("b", "skorch", error=0.015, log_loss=0.2),
]


def test_the_summary_is_what_a_reader_finds_by_hand(peers, tmp_path, capsys):
    write(tmp_path, MADE_UP)
    report(peers, tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert rows == [
        # name, rank, relative, normalised; the same of the log loss; seconds, ms
        ["MLP", "1.50", "1.414", "0.750", "1.00", "1.000", "1.000", "2.00", "10.00"],
        ["CFLL", "1.75", "2.000", "0.500", "3.00", "3.000", "0.000", "2.00", "10.00"],
        ["skorch", "2.75", "3.464", "0.000", "2.00", "2.000", "0.500", "1.00", "10.00"],
    ]
    rst = (tmp_path / "docs" / "peers.rst").read_text()
    assert "   * - MLP\n     - 1.50\n     - 1.414\n     - 0.750\n" in rst
    by_table = (tmp_path / "docs" / "peers_by_table.rst").read_text()
    titles = ["R2 of the test rows", "Accuracy of the test rows", "Log loss of the"]
    places = [by_table.index(f".. list-table:: {title}") for title in titles]
    assert places == sorted(places)
    row = "   * - a\n     - 400\n     - 0.8000\n     - **0.9000**\n     - 0.7000\n"
    assert row in by_table
    row = "   * - b\n     - 400\n     - **0.1000**\n     - 0.3000\n     - 0.2000\n"
    assert row in by_table
    assert (tmp_path / "docs" / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_tables_and_seeds_that_a_method_lacks_do_not_count(peers, tmp_path, capsys):
    extra = [
        made_up("c", "CFLL", error=0.9),
        made_up("c", "MLP", error=0.1),
        made_up("a", "CFLL", seed=1, error=0.9),
        made_up("a", "CFLL", rows=8_000, error=0.9),
    ]
    write(tmp_path, MADE_UP)
    report(peers, tmp_path)
    expected = capsys.readouterr().out.splitlines()
    write(tmp_path, MADE_UP + extra)
    report(peers, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 tables of 3 are complete;"
    assert printed[1] == "6 runs of 9 count."
    assert printed[2:] == expected[2:]
    # Of these two methods alone, three tables are complete.
    report(peers, tmp_path, "--methods", "CFLL", "MLP")
    assert capsys.readouterr().out.startswith("3 tables of 3 are complete;")


def test_seeds_are_averaged_within_a_table(peers, tmp_path, capsys):
    lines = [
        made_up("a", "CFLL", error=0.2),
        made_up("a", "MLP", error=0.2),
        made_up("a", "CFLL", seed=1, error=0.4),
        made_up("a", "MLP", seed=1, error=0.2),
    ]
    write(tmp_path, lines)
    report(peers, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split()[:4] == ["MLP", "1.00", "1.000", "1.000"]
    assert printed[-1].split()[:4] == ["CFLL", "2.00", "1.500", "0.000"]


def test_versions_of_cfll_are_told_apart_by_their_labels(peers, tmp_path, capsys):
    other = made_up("a", "CFLL", error=0.05, label="0.2")
    write(tmp_path, [*MADE_UP, other])
    report(peers, tmp_path, "--sets", "a", "--name", "both")
    names = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[3:]]
    assert names[:2] == [["CFLL", "0.2"], ["CFLL", "0.1"]]
    assert (tmp_path / "docs" / "both.rst").exists()
    report(peers, tmp_path, "--sets", "a", "--label", "0.1")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[:2] for row in rows] == [
        ["CFLL", "1.00"],
        ["MLP", "2.00"],
        ["skorch", "3.00"],
    ]
