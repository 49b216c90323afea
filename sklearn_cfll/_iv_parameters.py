"""The parameters of the instrumental variable regressor, and what each may be."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._parameters import HoldsBackbones, Parameters
from sklearn_cfll.functional.instrument import COMBINATIONS

# What may be as in the other estimators.
SHARED = (
    "optimizer",
    "lr",
    "optimizer_params",
    "lr_schedule",
    "batch_size",
    "max_epochs",
    "dtype",
    "device",
    "random_state",
    "verbose",
)


class IVParameters(HoldsBackbones):
    """Stores the parameters; scikit-learn checks them by the table in fit."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "backbone": "no_validation",
        "instrument_backbone": "no_validation",
        "covariate_backbone": "no_validation",
        "endogenous": "no_validation",
        "combine": [StrOptions(set(COMBINATIONS))],
        "alpha": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "instrument_alpha": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="left"),
        ],
        "shrink_to": [StrOptions({"regression", "zero"})],
        "prox": "no_validation",
        "instrument_prox": "no_validation",
        "n_estimators": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "sample_splitting": ["boolean"],
        "cov_type": [StrOptions({"robust", "unadjusted"})],
        "weight_decay": [
            None,
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="left"),
        ],
        "validation_fraction": [
            StrOptions({"auto"}),
            Interval(Real, 0, 1, closed="left"),
        ],
        **{name: Parameters._parameter_constraints[name] for name in SHARED},
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        instrument_backbone: Any = None,
        covariate_backbone: Any = None,
        endogenous: Any = None,
        combine: str = "product",
        alpha: Any = "auto",
        instrument_alpha: Any = "auto",
        shrink_to: str = "regression",
        prox: Any = defaults.PROX,
        instrument_prox: Any = defaults.PROX,
        n_estimators: Any = "auto",
        sample_splitting: bool = False,
        cov_type: str = "robust",
        optimizer: Any = "adamw",
        lr: Any = "auto",
        weight_decay: Any = "auto",
        optimizer_params: dict[str, Any] | None = None,
        lr_schedule: Any = "cosine",
        batch_size: Any = "auto",
        max_epochs: Any = "auto",
        validation_fraction: Any = "auto",
        dtype: str = "auto",
        device: Any = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.instrument_backbone = instrument_backbone
        self.covariate_backbone = covariate_backbone
        self.endogenous = endogenous
        self.combine = combine
        self.alpha = alpha
        self.instrument_alpha = instrument_alpha
        self.shrink_to = shrink_to
        self.prox = prox
        self.instrument_prox = instrument_prox
        self.n_estimators = n_estimators
        self.sample_splitting = sample_splitting
        self.cov_type = cov_type
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer_params = optimizer_params
        self.lr_schedule = lr_schedule
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.dtype = dtype
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # Python's errors on arguments name the class that users know.
    __init__.__qualname__ = "CFLLIVRegressor.__init__"
