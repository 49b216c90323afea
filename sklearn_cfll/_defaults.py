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
_FULL_BATCH_ROWS = 64


def batch_size(n_samples: int) -> int:
    """Rows in a batch: about thirty batches an epoch, from 32 to 256 rows."""
    if n_samples <= _FULL_BATCH_ROWS:
        return n_samples
    return min(256, max(32, 2 ** round(math.log2(n_samples / 32))))


def max_epochs(n_batches: int) -> int:
    """Epochs: a thousand steps or so, from 8 epochs on large tables to 100."""
    return min(100, max(8, math.ceil(1000 / n_batches)))
