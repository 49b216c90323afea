"""Neural networks with a closed-form last layer, as scikit-learn estimators."""

from sklearn_cfll.backbones import TorchBackbone
from sklearn_cfll.classifier import CFLLClassifier
from sklearn_cfll.head import ClosedFormHead
from sklearn_cfll.iv import CFLLIVRegressor
from sklearn_cfll.kalman import KalmanUpdate
from sklearn_cfll.mlp import MLP
from sklearn_cfll.net import CFLLNet
from sklearn_cfll.persistence import load, save
from sklearn_cfll.regressor import CFLLRegressor
from sklearn_cfll.small_mlp import SmallMLP
from sklearn_cfll.updates import (
    BatchRidgeUpdate,
    HeadUpdate,
    ProximalUpdate,
    RunningAverageUpdate,
)

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "BatchRidgeUpdate",
    "CFLLClassifier",
    "CFLLIVRegressor",
    "CFLLNet",
    "CFLLRegressor",
    "ClosedFormHead",
    "HeadUpdate",
    "KalmanUpdate",
    "ProximalUpdate",
    "RunningAverageUpdate",
    "SmallMLP",
    "TorchBackbone",
    "load",
    "save",
]
