"""Values that stand behind "auto", each with what chose it."""

from __future__ import annotations

import math

# A small table is where rounding shows, and up to here float64 costs little.
FLOAT64_ROWS = 300

# From here on some rows are held out: they choose the epoch and the ridge, and
# calibrate probabilities.
HELD_OUT_ROWS = 200

# Ridge inside the training, relative to the mean feature energy.
ALPHA_IN_TRAINING = 1e-2

# Tables of this size are trained on all rows at each step, so that integer weights
# equal repeated rows.
FULL_BATCH_ROWS = 64

# They have no held-out rows, and overfit the soonest.
FULL_BATCH_EPOCHS = 30

# Pull of each head to the last one: fast learning first, averages in the end.
PROX = (1.0, 100.0)

# Steps from which on the pull is that one, and the least share of it.
_USUAL_STEPS = 1000
_LEAST_PULL = 0.3


def batch_size(n_samples: int) -> int:
    """Rows in a batch: about thirty batches an epoch, from 32 to 256 rows."""
    if n_samples <= FULL_BATCH_ROWS:
        return n_samples
    return min(256, max(32, 2 ** round(math.log2(n_samples / 32))))


def max_epochs(n_batches: int) -> int:
    """Epochs: a thousand steps or so, from 8 epochs on large tables to 100."""
    return min(100, max(8, math.ceil(_USUAL_STEPS / n_batches)))


def prox(n_epochs: int, usual_epochs: int, n_batches: int) -> tuple[float, float]:
    """Pull at the start and at the end: weaker in a training that is cut short."""
    usual = min(_USUAL_STEPS, n_batches * usual_epochs)
    share = min(1.0, max(_LEAST_PULL, n_epochs * n_batches / usual))
    return share * PROX[0], share * PROX[1]
