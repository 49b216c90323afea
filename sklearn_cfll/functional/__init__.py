"""Pure tensor functions: the mathematics, without state."""

from sklearn_cfll.functional.errors import PathErrors
from sklearn_cfll.functional.moments import Moments, RidgePath
from sklearn_cfll.functional.paths import solve_ridge
from sklearn_cfll.functional.proximal import proximal_update
from sklearn_cfll.functional.ridge import feature_energy

__all__ = [
    "Moments",
    "PathErrors",
    "RidgePath",
    "feature_energy",
    "proximal_update",
    "solve_ridge",
]
