"""The square-root filter against the textbook's, and over many steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_models import draw

from sklearn_cfll.functional.kalman import (
    covariance,
    diffuse,
    forget,
    information_root,
    observe,
)

D, K = 4, 2


def test_a_kalman_step_is_the_textbook_filter():
    root = torch.linalg.cholesky(draw(D, D) @ draw(D, D).mT + torch.eye(D)).mT
    features, targets = draw(11, D, seed=1), draw(11, K, seed=2)
    weight = draw(11, seed=3).exp()
    last, forgetting, refill, noise = draw(D, K, seed=9), 0.7, 0.3, 0.2
    identity = torch.eye(D, dtype=torch.float64)

    information = forgetting * root.mT @ root + (1 - forgetting) * refill * identity
    spread = torch.linalg.inv(information) + noise * identity
    innovation = features @ spread @ features.mT + torch.diag(1 / weight)
    gain = torch.linalg.solve(innovation, features @ spread).mT
    residual = targets - features @ last
    expected = spread - gain @ features @ spread

    root = diffuse(forget(root, forgetting, refill), noise)
    root, step = observe(root, features, residual, weight)
    torch.testing.assert_close(step, gain @ residual)
    torch.testing.assert_close(covariance(root), expected)
    assert_array_equal(root.tril(-1), torch.zeros(D, D))


def unexcited_rows(n_rows=1000):
    """Rows of which the third column is the second but for rounding."""
    rows = draw(n_rows, 4)
    rows[:, 2] = rows[:, 1] * (1 + 1e-15)
    return rows


# What rows cannot tell: the difference of the two columns.
UNSEEN = torch.tensor([0.0, 1.0, -1.0, 0.0], dtype=torch.float64) / 2**0.5


@torch.inference_mode()
def test_the_covariance_stays_positive_definite_where_nothing_is_forgotten():
    rows, target = unexcited_rows(), torch.zeros(1, 1, dtype=torch.float64)
    root = information_root(torch.full((D,), 1e-3, dtype=torch.float64))
    for i in range(100_000):
        root, _ = observe(root, rows[i % 1000 : i % 1000 + 1], target)
    # The difference keeps what it had.
    known = float((root @ UNSEEN).square().sum())
    assert known == pytest.approx(1e-3, rel=1e-5)
    assert torch.linalg.eigvalsh(covariance(root)).min() > 0


def dense_filter(rows, targets, forgetting, refill, noise):
    """Textbook filter by covariances, from a start of its own."""
    identity = np.eye(rows.shape[1])
    spread, head = identity, np.zeros(rows.shape[1])
    for row, target in zip(rows, targets, strict=True):
        information = forgetting * np.linalg.inv(spread)
        information += (1 - forgetting) * refill * identity
        spread = np.linalg.inv(information) + noise * identity
        gain = spread @ row / (row @ spread @ row + 1)
        head = head + gain * (target - row @ head)
        rest = identity - np.outer(gain, row)
        spread = rest @ spread @ rest.T + np.outer(gain, gain)  # Joseph's form
    return head, spread


@torch.inference_mode()
def test_forgetting_and_noise_leave_no_error_behind_in_100_000_steps():
    n_steps, forgetting, refill, noise = 100_000, 0.99, 1e-3, 1e-6
    rows, targets = unexcited_rows(), draw(1000, 1, seed=1)
    root = information_root(torch.full((D,), refill, dtype=torch.float64))
    head = torch.zeros(D, 1, dtype=torch.float64)
    level = torch.tensor(refill, dtype=torch.float64)
    for i in range(n_steps):
        row = rows[i % 1000 : i % 1000 + 1]
        residual = targets[i % 1000 : i % 1000 + 1] - row @ head
        root, step = observe(
            diffuse(forget(root, forgetting, level), noise), row, residual
        )
        head = head + step
        if i % 1000 == 999:
            assert torch.linalg.eigvalsh(covariance(root)).min() > 0
    # Of what was known 5,000 steps before the end, 0.99 ** 5000 = 1e-22 is left: a
    # filter that begins there ends alike, unless errors have added up.
    last = np.arange(n_steps - 5000, n_steps) % 1000
    expected, spread = dense_filter(
        rows.numpy()[last], targets.numpy()[last, 0], forgetting, refill, noise
    )
    assert_allclose(covariance(root), spread, rtol=1e-8)
    assert_allclose(head[:, 0] - UNSEEN * (UNSEEN @ head), expected, rtol=1e-8)
    # Nothing pulls the head back where no row excites it, so that rounding, 1e-13 a
    # step at the large gain there, walks at random.
    assert abs(float(UNSEEN @ head)) < 1e-7
