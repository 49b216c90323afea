"""Targets of classes that are made as they are used: as if they had been there."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from small_models import classifier, watched
from torch.utils.data import DataLoader

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.one_hot import OneHot

INDEX = torch.tensor([2, 0, 1, 3, 0, 2, 1])


def dense(scale=1.0):
    """Fill the table entry by entry."""
    table = np.full((len(INDEX), 4), -scale)
    for row, label in enumerate(INDEX.tolist()):
        table[row, label] = scale
    return table


@pytest.mark.parametrize(
    "rows",
    [slice(None), slice(2, 5), slice(3, 3), torch.tensor([6, 1, 1]), np.array([4, 0])],
    ids=["all", "slice", "none", "tensor", "array"],
)
def test_rows_are_those_of_the_table(rows):
    targets = OneHot(INDEX, 4, 0.3)
    expected = torch.from_numpy(dense(0.3))[rows]
    torch.testing.assert_close(targets[rows], expected, rtol=0, atol=0)
    torch.testing.assert_close(targets.take(rows)[:], expected, rtol=0, atol=0)


def test_one_row_is_that_of_the_table():
    expected = torch.from_numpy(dense(0.3))[3]
    row = OneHot(INDEX, 4, 0.3)[torch.tensor(3)]
    torch.testing.assert_close(row, expected, rtol=0, atol=0)


def test_another_precision_rounds_as_the_table_does():
    narrow = OneHot(INDEX, 4, 0.1).to(torch.device("cpu"), torch.float32)
    expected = torch.from_numpy(dense(0.1)).float()
    torch.testing.assert_close(narrow[:], expected, rtol=0, atol=0)
    assert narrow.shape == expected.shape


@pytest.mark.parametrize("batch_size", [2, 7], ids=["batches", "all rows"])
def test_batches_are_those_of_the_table(batch_size):
    X = np.arange(7.0)[:, None]
    passes = []
    for targets in (OneHot(INDEX, 4), dense()):
        batches = TensorBatches(
            X,
            targets,
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(0),
        )
        np.testing.assert_array_equal(batches.y, dense())
        parts = [*batches, *batches.take([5, 0, 3]), batches[[6, 2]]]
        passes.append([(inputs["X"], targets) for inputs, targets in parts])
    torch.testing.assert_close(*passes, rtol=0, atol=0)


def test_a_data_loader_takes_rows_of_several_classes():
    X, y = load_iris(return_X_y=True)
    loaders = {"iterator_train": DataLoader, "iterator_train__shuffle": True}
    assert classifier(net_params=loaders, max_epochs=3).fit(X, y).score(X, y) > 0.8


def test_a_fit_makes_no_table_of_all_classes():
    X, y = load_iris(return_X_y=True)
    _, seen = watched(classifier(max_epochs=1, early_stopping=False), X, y)
    assert isinstance(seen.rows.targets, OneHot)
    assert seen.rows.targets.index.numel() == len(y)
