"""Data that several test modules fit."""

from __future__ import annotations

import numpy as np
import pytest


def curve(X):
    return 3 * X[:, 0] + 2 * np.sin(3 * X[:, 1]) + 2 * X[:, 2] ** 2


@pytest.fixture(scope="session")
def table():
    """Three columns that matter, one that doesn't, and a curved function of them."""
    random = np.random.default_rng(0)
    X = random.uniform(-1, 1, size=(180, 4))
    return X, curve(X) + 0.05 * random.normal(size=len(X))


@pytest.fixture(scope="session")
def fresh_rows():
    """Rows like those of the table, without noise."""
    X = np.random.default_rng(1).uniform(-1, 1, size=(200, 4))
    return X, curve(X)
