"""Pictures of fitted estimators; they need matplotlib."""

from sklearn_cfll._plot_calibration import IntervalCalibrationDisplay
from sklearn_cfll._plot_fit import AlphaPathDisplay, TrainingCurveDisplay
from sklearn_cfll._plot_intervals import PredictionIntervalDisplay

__all__ = [
    "AlphaPathDisplay",
    "IntervalCalibrationDisplay",
    "PredictionIntervalDisplay",
    "TrainingCurveDisplay",
]
