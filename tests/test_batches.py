"""Batches in memory: what is shared, cut, shuffled and cast."""

import numpy as np
import pytest
import torch

from sklearn_cfll import batches as batches_module
from sklearn_cfll import chunks as chunks_module
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.one_hot import OneHot


@pytest.fixture(name="X")
def columns():
    return np.random.default_rng(0).normal(size=(50, 3)) * [1, 10, 0.1] + [0, 5, -3]


@pytest.fixture
def y():
    return np.arange(50.0)[:, None]


def passed(batches):
    """Concatenate one pass: X, weights if any, targets."""
    parts = list(batches)
    columns = {
        name: torch.cat([inputs[name] for inputs, _ in parts]) for name in parts[0][0]
    }
    return columns, torch.cat([targets for _, targets in parts])


# Memory ---------------------------------------------------------------------------


def test_the_array_is_shared_not_copied(X, y):
    batches = TensorBatches(X, y, batch_size=20)
    assert np.shares_memory(batches.X, X)
    assert np.shares_memory(batches.in_order().X, X)
    X[7, 1] = 123.0
    columns, _ = passed(batches)
    assert columns["X"][7, 1] == 123.0


def test_splits_share_the_array_too(X, y):
    batches = TensorBatches(X, y, batch_size=20)
    part = batches.take(np.arange(49, 24, -1)).take(np.arange(22))
    X[48, 0] = 123.0
    assert passed(part)[0]["X"][1, 0] == 123.0


def test_a_read_only_array_is_read_without_a_warning(X, y):
    expected = passed(TensorBatches(X, y, batch_size=20))[0]["X"]
    X.flags.writeable = False
    y.flags.writeable = False
    rows = np.arange(50)
    rows.flags.writeable = False
    batches = TensorBatches(X, y, rows=rows, batch_size=20)
    assert torch.equal(passed(batches)[0]["X"], expected)
    assert np.shares_memory(TensorBatches(X, y, batch_size=20).X, X)
    assert not X.flags.writeable


def test_a_memory_mapped_array_stays_on_the_disk(X, y, tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    batches = TensorBatches(mapped, y, batch_size=20, dtype=torch.float64)
    assert np.shares_memory(batches.X, mapped)
    assert torch.equal(passed(batches)[0]["X"], torch.from_numpy(X))


@pytest.mark.parametrize(
    "layout",
    [
        lambda X: X[::-1],
        lambda X: np.asfortranarray(X),
        lambda X: X[:, ::2],
        lambda X: X.astype(X.dtype.newbyteorder())[:, ::-1],
    ],
    ids=["reversed rows", "Fortran order", "every other column", "other byte order"],
)
def test_every_memory_layout_is_read_right(X, y, layout):
    array = layout(X)
    columns, _ = passed(TensorBatches(array, y, batch_size=20, dtype=torch.float64))
    np.testing.assert_array_equal(columns["X"].numpy(), array)


# Batches --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [
        (50, [50]),
        (80, [50]),
        (49, [25, 25]),
        (20, [16, 17, 17]),
        (24, [16, 17, 17]),
        (1, [1] * 50),
    ],
)
def test_batches_are_evened_out(X, y, batch_size, sizes):
    batches = TensorBatches(X, y, batch_size=batch_size)
    assert [len(targets) for _, targets in batches] == sizes
    assert batches.n_batches == len(sizes)
    assert len(batches) == 50


def test_without_a_generator_the_rows_keep_their_order(X, y):
    columns, targets = passed(TensorBatches(X, y, batch_size=20, dtype=torch.float64))
    np.testing.assert_array_equal(columns["X"].numpy(), X)
    np.testing.assert_array_equal(targets.numpy(), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_that_a_batch_holds_has_the_dtype(X, y, dtype):
    batches = TensorBatches(X, y, np.ones(50), batch_size=20, dtype=dtype)
    for inputs, targets in batches:
        assert {inputs["X"].dtype, inputs["sample_weight"].dtype} == {dtype}
        assert targets.dtype == dtype


def shuffled(X, y, seed, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return TensorBatches(X, y, batch_size=20, generator=generator, **kwargs)


def test_a_generator_shuffles_rows_targets_and_weights_together(X, y):
    batches = shuffled(X, y, 0, sample_weight=y[:, 0] + 1, dtype=torch.float64)
    columns, targets = passed(batches)
    order = targets[:, 0].long()
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))
    np.testing.assert_array_equal(columns["X"].numpy(), X[order])
    assert torch.equal(columns["sample_weight"], targets[:, 0] + 1)


def test_each_pass_has_an_order_of_its_own_that_the_seed_fixes(X, y):
    batches, same, other = (shuffled(X, y, seed) for seed in [0, 0, 1])
    orders = [passed(each)[1] for each in [batches, batches, same, same, other]]
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])
    assert torch.equal(orders[1], orders[3])
    assert not torch.equal(orders[0], orders[4])


def test_shuffling_leaves_the_global_generator_alone(X, y):
    state = torch.get_rng_state()
    passed(shuffled(X, y, 0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("batches_at_once", "gathers"), [(0, 7), (1, 7), (3, 3), (9, 1)]
)
@pytest.mark.parametrize("classes", [False, True])
def test_small_batches_are_gathered_some_at_a_time(
    X, y, classes, batches_at_once, gathers, monkeypatch
):
    targets = OneHot(torch.arange(50) % 4, 4) if classes else y
    numbers_per_row = 3 + targets.shape[1]
    calls = []
    gather = TensorBatches._gather

    def counted(self, index):
        calls.append(len(index))
        return gather(self, index)

    monkeypatch.setattr(TensorBatches, "_gather", counted)

    def cut(numbers):
        monkeypatch.setattr(batches_module, "_GATHERED_NUMBERS", numbers)
        calls.clear()
        return list(
            TensorBatches(
                X,
                targets,
                np.linspace(1, 2, 50),
                batch_size=8,
                generator=torch.Generator().manual_seed(0),
            )
        )

    one_by_one = cut(0)
    assert calls == [len(targets) for _, targets in one_by_one]
    at_once = cut(batches_at_once * 8 * numbers_per_row)
    assert len(calls) == gathers
    assert sum(calls) == 50
    for (inputs, rows), (expected, expected_rows) in zip(
        at_once, one_by_one, strict=True
    ):
        assert inputs.keys() == expected.keys() == {"X", "sample_weight"}
        assert all(torch.equal(inputs[name], expected[name]) for name in inputs)
        assert torch.equal(rows, expected_rows)
        assert inputs["X"].is_contiguous()


def test_a_tensor_with_a_graph_is_taken_as_data(X, y):
    wanting = torch.tensor(X, requires_grad=True)
    batches = TensorBatches(3 * wanting, y, 1 + wanting[:, 0] ** 2, batch_size=20)
    columns, _ = passed(batches)
    assert not any(values.requires_grad for values in columns.values())
    assert torch.equal(columns["X"], torch.from_numpy(3 * X).float())


def test_in_order_gives_the_same_rows_unshuffled(X, y):
    batches = shuffled(X, y, 0)
    np.testing.assert_array_equal(passed(batches.in_order())[1].numpy(), y)
    assert not torch.equal(passed(batches)[1], torch.from_numpy(y).float())


def test_batches_without_targets_still_cut_the_rows(X):
    batches = TensorBatches(X, batch_size=20, dtype=torch.float64)
    columns = torch.cat([inputs["X"] for inputs, _ in batches])
    np.testing.assert_array_equal(columns.numpy(), X)
    with pytest.raises(
        ValueError, match=r"^these batches hold no targets; pass targets to train\.$"
    ):
        _ = batches.encoded


# Rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 100], ids=["several", "whole"])
def test_rows_choose_from_the_samples_alone(X, y, batch_size):
    rows = np.array([40, 3, 3, 17])
    batches = TensorBatches(
        X,
        y[rows],
        [1.0, 2.0, 3.0, 4.0],
        rows=rows,
        batch_size=batch_size,
        dtype=torch.float64,
    )
    columns, targets = passed(batches)
    np.testing.assert_array_equal(columns["X"].numpy(), X[rows])
    np.testing.assert_array_equal(batches.X, X[rows])
    np.testing.assert_array_equal(targets.numpy(), y[rows])
    assert columns["sample_weight"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert len(batches) == 4


@pytest.mark.parametrize("batch_size", [2, 100], ids=["several", "whole"])
def test_take_chooses_among_the_rows_with_all_that_belongs_to_them(X, y, batch_size):
    rows, labels = np.array([40, 3, 9, 17]), np.array(["a", "b", "c", "d"])
    whole = TensorBatches(
        X,
        y[rows],
        [1.0, 2.0, 3.0, 4.0],
        rows=rows,
        labels=labels,
        batch_size=batch_size,
        dtype=torch.float64,
    )
    part = whole.take([3, 0])
    columns, targets = passed(part)
    np.testing.assert_array_equal(columns["X"].numpy(), X[[17, 40]])
    np.testing.assert_array_equal(targets.numpy(), y[[17, 40]])
    assert columns["sample_weight"].tolist() == [4.0, 1.0]
    assert part.y.tolist() == ["d", "a"]
    assert len(whole) == 4


def test_labels_are_given_back_to_callbacks_and_targets_where_there_are_none(X, y):
    labels = np.array(["no", "yes"])[np.arange(50) % 2]
    assert TensorBatches(X, y, labels=labels).y is labels
    np.testing.assert_array_equal(TensorBatches(X, y).y, y)
    assert TensorBatches(X).y is None


# Passes without gradients ---------------------------------------------------------


def test_chunks_cover_the_rows_in_order_in_bounded_memory(X, y, monkeypatch):
    monkeypatch.setattr(chunks_module, "_CHUNK_NUMBERS", 64)
    batches = shuffled(X, y, 0, dtype=torch.float64)
    chunks = list(batches.chunks(10))
    assert all(len(chunk) * 10 <= 64 for chunk, _ in chunks)
    assert len(chunks) == 9
    np.testing.assert_array_equal(torch.cat([c for c, _ in chunks]).numpy(), X)
    covered = [i for _, rows in chunks for i in range(rows.start, rows.stop)]
    assert covered == list(range(50))


def test_chunks_hold_a_row_at_least_and_no_more_than_fits(X, y, monkeypatch):
    monkeypatch.setattr(chunks_module, "_CHUNK_NUMBERS", 9)
    sizes = [len(chunk) for chunk, _ in TensorBatches(X, y).chunks(1000)]
    assert sizes == [1] * 50
    sizes = [len(chunk) for chunk, _ in TensorBatches(X, y).chunks(1)]
    assert max(sizes) == 3  # three numbers a row, nine in all


def test_chunks_follow_the_rows_index(X, y):
    rows = np.array([40, 3])
    ((chunk, where),) = TensorBatches(X, y[rows], rows=rows, batch_size=1).chunks(1)
    assert where == slice(0, 2)
    np.testing.assert_array_equal(chunk.numpy(), X[rows].astype(np.float32))


@pytest.mark.parametrize("numbers", [2**22, 20], ids=["one chunk", "many chunks"])
def test_column_moments_are_those_of_numpy(X, monkeypatch, numbers):
    monkeypatch.setattr(chunks_module, "_CHUNK_NUMBERS", numbers)
    weights = np.random.default_rng(1).uniform(size=50)
    mean, deviation = TensorBatches(
        X, sample_weight=weights, dtype=torch.float64
    ).column_moments()
    expected = np.average(X, axis=0, weights=weights)
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    expected = np.average((X - expected) ** 2, axis=0, weights=weights)
    np.testing.assert_allclose(deviation, np.sqrt(expected), rtol=1e-12)


def test_weighted_column_moments_are_those_of_repeated_rows(X, monkeypatch):
    monkeypatch.setattr(chunks_module, "_CHUNK_NUMBERS", 20)
    counts = np.arange(50) // 10  # the first chunk has no weight at all
    weighted = TensorBatches(X, sample_weight=counts, dtype=torch.float64)
    repeated = TensorBatches(np.repeat(X, counts, axis=0), dtype=torch.float64)
    for one, other in zip(
        weighted.column_moments(), repeated.column_moments(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_column_moments_far_from_zero_keep_their_digits(X, monkeypatch):
    monkeypatch.setattr(chunks_module, "_CHUNK_NUMBERS", 20)
    near = TensorBatches(X, dtype=torch.float64).column_moments()[1]
    far = TensorBatches(X + 2.0**20, dtype=torch.float64).column_moments()[1]
    torch.testing.assert_close(far, near, rtol=1e-6, atol=0)


def test_samples_of_any_shape_pass(y):
    images = np.random.default_rng(0).normal(size=(50, 2, 4, 4)).astype(np.float32)
    batches = TensorBatches(images, y, batch_size=20)
    assert batches.sample_shape == (2, 4, 4)
    np.testing.assert_array_equal(passed(batches)[0]["X"].numpy(), images)
    mean, _ = batches.column_moments()
    np.testing.assert_allclose(mean, images.mean(0, dtype=float), rtol=1e-6)


def test_the_ranges_of_the_columns_take_one_pass_for_all_uses(monkeypatch):
    X = np.random.default_rng(0).normal(size=(500, 3))
    alone = TensorBatches(X).numeric_columns().tolist()
    batches, passes = TensorBatches(X, batch_size=50), []
    chunks = TensorBatches.chunks
    monkeypatch.setattr(
        TensorBatches, "chunks", lambda self, n: passes.append(n) or chunks(self, n)
    )
    batches.column_moments()
    before = len(passes)
    assert batches.numeric_columns().tolist() == alone == [0, 1, 2]
    assert len(passes) == before + 1
    half = batches.take(np.arange(250))
    low, high = half._column_ranges
    np.testing.assert_array_equal(low, X[:250].min(0).astype(np.float32))
    np.testing.assert_array_equal(high, X[:250].max(0).astype(np.float32))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("rows", [None, np.array([3, 1, 2])], ids=["all", "some"])
def test_one_row_has_no_axis_of_rows(order, rows):
    X = np.asarray(np.arange(20.0).reshape(4, 5), order=order)
    targets = np.arange(8.0).reshape(4, 2)[: len(X if rows is None else rows)]
    batches = TensorBatches(X, targets, rows=rows, batch_size=2)
    inputs, target = batches[1]
    assert inputs["X"].tolist() == X[1].tolist()
    assert target.tolist() == targets[1].tolist()


@pytest.mark.parametrize("shuffled", [True, False])
def test_the_default_device_of_torch_makes_no_difference(X, y, shuffled):
    def drawn():
        generator = torch.Generator().manual_seed(0) if shuffled else None
        return passed(TensorBatches(X, y, batch_size=20, generator=generator))

    columns, targets = drawn()
    with torch.device("meta"):
        again, targets_again = drawn()
    assert torch.equal(again["X"], columns["X"])
    assert torch.equal(targets_again, targets)
