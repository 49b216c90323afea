"""Pure tensor functions: the mathematics, without state."""

from sklearn_cfll.functional.ridge import (
    Moments,
    RidgePath,
    feature_energy,
    proximal_update,
    solve_ridge,
)

__all__ = [
    "Moments",
    "RidgePath",
    "feature_energy",
    "proximal_update",
    "solve_ridge",
]
