"""Pure tensor functions: the mathematics, without state."""

from sklearn_cfll.functional.errors import PathErrors
from sklearn_cfll.functional.folds import kfold_residuals, leave_one_out_residuals
from sklearn_cfll.functional.instrument import combine_features, solve_two_stages
from sklearn_cfll.functional.linear_tests import (
    durbin_wu_hausman,
    first_stage,
    overidentification,
)
from sklearn_cfll.functional.moments import Moments
from sklearn_cfll.functional.paths import solve_ridge
from sklearn_cfll.functional.posterior import (
    HeadPosterior,
    effective_dof,
    fit_noise,
    log_evidence,
)
from sklearn_cfll.functional.proximal import proximal_update
from sklearn_cfll.functional.ridge import feature_energy
from sklearn_cfll.functional.ridge_path import RidgePath

__all__ = [
    "HeadPosterior",
    "Moments",
    "PathErrors",
    "RidgePath",
    "combine_features",
    "durbin_wu_hausman",
    "effective_dof",
    "feature_energy",
    "first_stage",
    "fit_noise",
    "kfold_residuals",
    "leave_one_out_residuals",
    "log_evidence",
    "overidentification",
    "proximal_update",
    "solve_ridge",
    "solve_two_stages",
]
