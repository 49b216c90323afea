"""The parameters that all estimators share, and what each may be."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.metrics import get_scorer_names
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_cfll.optimizers import OPTIMIZERS
from sklearn_cfll.schedules import SCHEDULES


class HoldsBackbones(BaseEstimator):
    """Says which backbones have parameters to set, where one has none."""

    def set_params(self, **params: Any) -> Any:
        """Set parameters of the estimator, or of a backbone as ``backbone__name``.

        Parameters
        ----------
        **params
            Values by name.

        Returns
        -------
        self : estimator

        Raises
        ------
        ValueError
            For a name that isn't there, or one of a backbone that has no parameters.
        """
        for name in params:
            part, _, own = name.partition("__")
            if own and part.endswith("backbone") and part in self._get_param_names():
                _check_has_parameters(params.get(part, getattr(self, part)), part, name)
        return super().set_params(**params)


def _check_has_parameters(backbone: Any, part: str, name: str) -> None:
    """Refuse to set a parameter of a backbone that has none."""
    if hasattr(backbone, "set_params") and not isinstance(backbone, type):
        return
    what = "None" if backbone is None else f"a {type(backbone).__name__}"
    cure = f"pass one that has them, such as {part}=MLP() or TorchBackbone(...)."
    if isinstance(backbone, type):
        what = f"the class {backbone.__name__}"
        if hasattr(backbone, "set_params"):
            cure = f"pass an instance, {part}={backbone.__name__}(...)."
    raise ValueError(
        f"{name!r} can't be set, since {part} is {what} and has no parameters; {cure}"
    )


class Parameters(HoldsBackbones):
    """Stores the parameters; scikit-learn checks them by the table in fit."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "backbone": "no_validation",
        "alpha": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="left"),
            "array-like",
        ],
        "prox": [
            None,
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="left"),
            tuple,
            list,
            np.ndarray,
        ],
        "update_order": [StrOptions({"head_first", "backbone_first"})],
        "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
        "lr": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "weight_decay": [None, Interval(Real, 0, None, closed="left")],
        "optimizer_params": [None, dict],
        "lr_schedule": [StrOptions(set(SCHEDULES)), callable],
        "batch_size": [
            StrOptions({"auto", "full"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "max_epochs": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "early_stopping": [StrOptions({"auto"}), "boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "scoring": [None, StrOptions(set(get_scorer_names())), callable],
        "dtype": [StrOptions({"auto", "float32", "float64"})],
        "device": [str, torch.device],
        "callbacks": [None, list, tuple],
        "net_params": [None, dict],
        "warm_start": ["boolean"],
        "stream_epochs": [
            StrOptions({"auto"}),
            Interval(Integral, 0, None, closed="left"),
        ],
        "forgetting": [Interval(Real, 0, 1, closed="right")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        alpha: Any = "auto",
        prox: Any = None,
        update_order: str = "head_first",
        optimizer: Any = "adamw",
        lr: Any = "auto",
        weight_decay: float | None = None,
        optimizer_params: dict[str, Any] | None = None,
        lr_schedule: Any = "cooldown",
        batch_size: Any = "auto",
        max_epochs: Any = "auto",
        early_stopping: Any = "auto",
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        scoring: Any = None,
        dtype: str = "auto",
        device: Any = "auto",
        callbacks: Any = None,
        net_params: dict[str, Any] | None = None,
        warm_start: bool = False,
        stream_epochs: Any = "auto",
        forgetting: float = 1.0,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.alpha = alpha
        self.prox = prox
        self.update_order = update_order
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer_params = optimizer_params
        self.lr_schedule = lr_schedule
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.scoring = scoring
        self.dtype = dtype
        self.device = device
        self.callbacks = callbacks
        self.net_params = net_params
        self.warm_start = warm_start
        self.stream_epochs = stream_epochs
        self.forgetting = forgetting
        self.random_state = random_state
        self.verbose = verbose
