"""Where the time of a CFLL step goes: a stopwatch at each part of it."""

import contextlib
import functools
import time
from collections import Counter
from unittest.mock import patch

import torch

from sklearn_cfll import CFLLNet, ClosedFormHead
from sklearn_cfll.functional import lapack

# Parts of the head's update by what computes them, in the order of LAPACK's table.
ROUTINES = ("Gram", "Factor", "Solve")
PARTS = (
    "Forward, backward",
    "Optimizer",
    *ROUTINES,
    "Rest of head",
    "Rest of loop",
)


class Stopwatch(contextlib.ExitStack):
    """Takes the processor seconds of each part while it is entered.

    It costs about a microsecond a call, which counts to what calls it.
    """

    def __enter__(self):
        """Set a watch around each part."""
        super().__enter__()
        self.seconds, self.total, self.warm = Counter(), 0.0, False
        for owner, name in [
            (CFLLNet, "_features_of"),
            (CFLLNet, "get_loss"),
            (ClosedFormHead, "forward"),
            (torch.Tensor, "backward"),
        ]:
            self._watch(owner, name, "Forward, backward")
        self._watch(ClosedFormHead, "update_", "head")
        self._watch(CFLLNet, "train_step_single", "closure")
        self._watch(torch.optim.AdamW, "step", "step and closure")
        timed = {
            number: tuple(map(self._timed, routines, ROUTINES))
            for number, routines in lapack._ROUTINES.items()
        }
        self.enter_context(patch.dict(lapack._ROUTINES, timed))
        return self

    def _watch(self, owner, name, part):
        timed = self._timed(getattr(owner, name), part)
        self.enter_context(patch.object(owner, name, timed))

    def _timed(self, function, part):
        @functools.wraps(function)
        def timed(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            self.seconds[part] += time.process_time() - start
            return result

        return timed

    def end_step(self, seconds):
        """Add a step; the first one warms up."""
        if not self.warm:
            self.seconds.clear()
            self.warm = True
            return
        self.total += seconds

    def shares(self):
        """Return the share of each part."""
        seconds = self.seconds
        parts = {name: seconds[name] for name in ("Forward, backward", *ROUTINES)}
        parts["Optimizer"] = seconds["step and closure"] - seconds["closure"]
        parts["Rest of head"] = seconds["head"] - sum(seconds[r] for r in ROUTINES)
        parts["Rest of loop"] = self.total - sum(parts.values())
        return {name: value / self.total for name, value in parts.items()}
