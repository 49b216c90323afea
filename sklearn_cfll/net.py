"""The skorch net: one training step of backbone and closed-form head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback, EpochTimer
from torch import Tensor

from sklearn_cfll.checks import check_parameters
from sklearn_cfll.head import ClosedFormHead
from sklearn_cfll.loading import Loading
from sklearn_cfll.losses import SquaredLoss
from sklearn_cfll.network import Network
from sklearn_cfll.optimizers import NoOptimizer, has_learnable_parameters
from sklearn_cfll.updates import HeadUpdate, ProximalUpdate


class CFLLNet(Loading):
    """Train a backbone by gradient steps and its last layer in closed form.

    The estimators compose this net; it is for those who want skorch itself. Targets
    are taken as they are: centre and scale them.

    Parameters
    ----------
    module : class or torch.nn.Module
        The backbone, without its last linear layer.
    n_features : int
        Features that the backbone gives.
    n_outputs : int
        Columns of the targets.
    alpha : float or Tensor of shape (n_outputs,), default=0.01
        Ridge of the head relative to the mean feature energy.
    prox : float, (start, end) or "auto", default=(1.0, 100.0)
        Pull of each solution to the last head; a pair is annealed geometrically, and
        "auto" follows how well each head predicts the next batch.
    head_update : HeadUpdate, default=None
        Another rule by which a batch moves the head, such as ``KalmanUpdate()``; it
        then rules alone, and ``alpha`` and ``prox`` are not used. It is copied.
    output_weight : callable, default=None
        ``f(targets, sample_weight)``, which gives a weight for each of the targets, in
        the loss and in the solves; then each output has a solve of its own. None
        weighs all outputs of a row alike.
    objective : {"root", "log"} or callable, default=None
        Increasing function of a batch's loss, along whose gradient the backbone steps
        in place of the loss's own; the head, the history and the held-out losses stay
        those of the loss. With "root" and "log" the steps don't fade as the loss
        falls, which pays where the targets have next to no noise. A callable gets and
        gives a Tensor of shape ().
    update_order : {"head_first", "backbone_first"}, default="head_first"
        Whether a step solves the head before the backbone's gradient step, with one
        forward pass, or after it, with two (the paper's algorithm 1).
    lr_schedule : {"cooldown", "cosine", "linear", "constant"} or callable, \
default="cooldown"
        Factor of the rate at a progress in [0, 1), which begins anew in each training,
        ``partial_fit`` among them. An ``LRScheduler`` among the callbacks rules alone.
    batch_transform : callable, default=None
        ``f(X)``, which gives each training batch its augmented inputs, a Tensor of the
        same samples on the device. The exact head is solved on the rows as they are.
    train_score : callable, default=None
        ``f(predictions, targets, sample_weight)``, tallied over each epoch's batches;
        None records R2.
    valid_score : callable, default=None
        ``f(net, predictions)``, the score of the held-out rows after an epoch.
    decode : callable, default=None
        Turns raw predictions into what :meth:`predict` returns.
    **kwargs
        As :class:`skorch.NeuralNet` takes them. Unlike there, ``criterion`` is the
        squared loss, ``optimizer`` AdamW and ``lr`` 0.02, ``train_split`` and
        ``verbose`` are off, and arrays are shuffled and cut in memory. Those of
        ``iterator_train``, or of settings of it other than ``batch_size`` and
        ``shuffle``, and a Dataset, go through a DataLoader, which shuffles
        with ``iterator_train__shuffle=True``. A backbone of several inputs gets them by
        name, from a dict of arrays or a Dataset of dicts; the one named ``X`` comes
        first, and ``sample_weight`` holds the weights.

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606, 2025.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.preprocessing import scale
    >>> from torch import nn
    >>> from sklearn_cfll import CFLLNet
    >>> X, y = load_diabetes(return_X_y=True)
    >>> X, Y = scale(X).astype("float32"), scale(y)[:, None].astype("float32")
    >>> backbone = nn.Sequential(nn.Linear(10, 32), nn.SiLU(), nn.LayerNorm(32))
    >>> net = CFLLNet(backbone, n_features=32, n_outputs=1, max_epochs=3, batch_size=64)
    >>> net.fit(X, Y).predict(X).shape
    (442, 1)
    """

    def __init__(
        self,
        module: Any,
        *,
        n_features: int,
        n_outputs: int,
        alpha: float | Tensor = 1e-2,
        prox: str | float | tuple[float, float] = (1.0, 100.0),
        head_update: HeadUpdate | None = None,
        output_weight: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        objective: str | Callable[[Tensor], Tensor] | None = None,
        update_order: str = "head_first",
        lr_schedule: str | Callable[[float], float] = "cooldown",
        batch_transform: Callable[[Tensor], Tensor] | None = None,
        train_score: Callable[..., Tensor] | None = None,
        valid_score: Callable[..., float] | None = None,
        decode: Callable[[np.ndarray], np.ndarray] | None = None,
        criterion: Any = SquaredLoss,
        optimizer: Any = torch.optim.AdamW,
        lr: float = 2e-2,
        train_split: Any = None,
        iterator_train: Any = None,
        iterator_valid: Any = None,
        use_caching: Any = False,
        verbose: int = 0,
        **kwargs: Any,
    ) -> None:
        self.n_features = n_features
        self.n_outputs = n_outputs
        self.alpha = alpha
        self.prox = prox
        self.head_update = head_update
        self.output_weight = output_weight
        self.objective = objective
        self.update_order = update_order
        self.lr_schedule = lr_schedule
        self.batch_transform = batch_transform
        self.train_score = train_score
        self.valid_score = valid_score
        self.decode = decode
        super().__init__(
            module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            train_split=train_split,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            use_caching=use_caching,
            verbose=verbose,
            **kwargs,
        )

    module_: Any
    optimizer_: Any
    last_: Any

    # Building -------------------------------------------------------------------

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("epoch_timer", EpochTimer())]

    def check_training_readiness(self) -> None:
        """Check, before anything is made or trained, the parameters that can be."""
        super().check_training_readiness()
        check_parameters(self)
        self._own_update()

    def initialize_module(self) -> CFLLNet:
        """Join the backbone to a head that is zero, or take a network as it is."""
        super().initialize_module()
        if not isinstance(self.module_, Network):
            head = ClosedFormHead(self.n_features, self.n_outputs)
            if self.device is None:  # skorch moves nothing then
                head.to(next((p.device for p in self.module_.parameters()), None))
            self.module_ = Network(self.module_, head)
        return self

    def initialize_criterion(self, *args: Any, **kwargs: Any) -> CFLLNet:
        """Make the loss, once it is known to be one."""
        if not callable(self.criterion):
            raise TypeError(
                "criterion must be a torch.nn.Module or what makes one, which gives "
                f"the loss of predictions and targets; got {self.criterion!r}."
            )
        super().initialize_criterion(*args, **kwargs)
        return self

    def torch_compile(self, module: Any, name: str) -> Any:
        """Compile the backbone in place, which keeps the names of its state."""
        if self.compile and isinstance(module, Network):
            module.backbone.compile(**self.get_params_for("compile"))
        return module

    def get_all_learnable_params(self) -> Any:
        """Yield the backbone's parameters; the head has none."""
        return self.module_.backbone.named_parameters()

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> CFLLNet:
        """Make the optimizer, where the backbone has parameters to train."""
        if has_learnable_parameters(self.module_.backbone):
            super().initialize_optimizer(*args, **kwargs)
            if not hasattr(self.optimizer_, "param_groups"):
                raise TypeError(
                    f"optimizer {self.optimizer!r} made a "
                    f"{type(self.optimizer_).__name__}; it must make a "
                    "torch.optim.Optimizer."
                )
            return self
        self.optimizer_ = NoOptimizer()
        return self

    # Training -------------------------------------------------------------------

    def _own_update(self) -> HeadUpdate:
        if self.head_update is None:
            return ProximalUpdate(self.alpha, self.prox)
        if not isinstance(self.head_update, HeadUpdate):
            raise TypeError(
                "head_update must be None or a HeadUpdate, such as KalmanUpdate(); got "
                f"{self.head_update!r}."
            )
        return copy.deepcopy(self.head_update)

    # Using ----------------------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray:
        """Predict targets, decoded where the net has a decoder.

        Parameters
        ----------
        X : array of shape (n_samples, ...), Dataset, or dict
            A dict of inputs, such as a batch's, gets encoded predictions.

        Returns
        -------
        y : array of shape (n_samples, n_outputs), or as ``decode`` gives it
        """
        predictions = self.predict_proba(X)
        if self.decode is None or isinstance(X, dict):
            return predictions
        return self.decode(predictions)

    def release(self) -> None:
        """Let go of the optimizer and of all that holds training data."""
        self.valid_score = self.train_score = self.train_split = None
        self.optimizer_ = None
        self.progress_, self.last_ = [], None

    def move_to(self, device: torch.device) -> None:
        """Move the network, for predictions on another device.

        Parameters
        ----------
        device : torch.device
        """
        self.module_.to(device)
        self.device = str(device)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        module = state.get("module_")
        if module is not None and next(module.buffers()).device.type != "cpu":
            state["module_"] = copy.deepcopy(module).cpu()
            state["device"] = "cpu"
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
