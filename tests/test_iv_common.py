"""The contract with scikit-learn, for the estimator with instruments."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from sklearn_cfll import CFLLIVRegressor, TorchBackbone


class OwnInstruments(CFLLIVRegressor):
    """X is its own instruments, as the checks know of none."""

    def fit(self, X, y, *, instruments=None, sample_weight=None):
        instruments = X if instruments is None else instruments
        return super().fit(X, y, instruments=instruments, sample_weight=sample_weight)


IDENTITY = TorchBackbone(nn.Identity)


@pytest.mark.filterwarnings("ignore:stage [12]:UserWarning")  # tiny noisy tables
@pytest.mark.filterwarnings("ignore:the instruments are weak:UserWarning")
@pytest.mark.filterwarnings(r"ignore:X has \d rows, on which \d+:UserWarning")
# Which is so here: X is its own instruments.
@pytest.mark.filterwarnings(r"ignore:column \d+ .* of instruments is :UserWarning")
@parametrize_with_checks(
    [
        OwnInstruments(max_epochs=40, n_estimators=2),
        OwnInstruments(IDENTITY, instrument_backbone=IDENTITY),
    ]
)
def test_scikit_learn_check(estimator, check):
    check(estimator)
