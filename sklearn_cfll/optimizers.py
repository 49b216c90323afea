"""Optimizers by name, with the rate that suits each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Closure = Callable[[], Any]

# Ways in which torch's Adam steps, of which it takes one at a time.
_FORMS = {"fused", "foreach", "differentiable"}


def _sgd(params: Any, lr: float, momentum: float = 0.9, **kwargs: Any) -> Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=momentum, **kwargs)


# With a line search the rate is but the first length that it tries.
_lbfgs = functools.partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")


class MuonWithAdamW(Optimizer):
    """Muon on the real matrices of the backbone, AdamW on all else.

    Parameters
    ----------
    params : iterable of Parameter, of (name, Parameter) or of groups of these
        Options of a group are not used.
    lr : float, default=0.02
        Rate of the matrices.
    adamw_lr : float, default=0.01
        Rate of everything else; it follows the schedule as ``lr`` does.
    weight_decay : float, default=0.0
    **kwargs
        Further arguments of :class:`torch.optim.Muon`.

    Notes
    -----
    :class:`torch.optim.Muon` came with torch 2.9.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        *,
        adamw_lr: float = 0.01,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(
                "optimizer 'muon' needs torch 2.9 or newer, this is torch "
                f"{torch.__version__}; upgrade it or choose another optimizer."
            )
        plain = _plain_parameters(params)
        matrices = [p for p in plain if _suits_muon(p)]
        others = [p for p in plain if not _suits_muon(p)]
        self.parts: list[Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, **kwargs
            )
            self.parts.append(muon)
        if others:
            adamw = torch.optim.AdamW(others, lr=adamw_lr, weight_decay=weight_decay)
            self.parts.append(adamw)
        # The groups are the parts' own, so that a schedule reaches both.
        super().__init__(plain, {})
        self.param_groups = [g for part in self.parts for g in part.param_groups]

    def step(self, closure: Closure | None = None) -> Any:
        """Take one step of both parts.

        Parameters
        ----------
        closure : callable, default=None
            Computes the loss and its gradient.

        Returns
        -------
        loss : Tensor or None
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of both parts.

        Returns
        -------
        state : dict
        """
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave.

        Parameters
        ----------
        state_dict : dict
        """
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [g for part in self.parts for g in part.param_groups]


def _suits_muon(parameter: Tensor) -> bool:
    """Whether torch's Muon takes it: none that is complex, as in Fourier layers."""
    return parameter.ndim == 2 and not parameter.is_complex()


def _plain_parameters(params: Iterable[Any]) -> list[Tensor]:
    """Parameters from an iterable of them, of named ones, or of groups of these."""
    plain: list[Tensor] = []
    for item in params:
        if isinstance(item, dict):
            plain += _plain_parameters(item["params"])
        else:
            plain.append(item[1] if isinstance(item, tuple) else item)
    return plain


class NoOptimizer(Optimizer):
    """Stands in where the backbone has nothing to train."""

    def __init__(self, params: Iterable[Any] = (), lr: float = 0.0) -> None:
        super().__init__([torch.zeros(0)], {"lr": lr})

    def step(self, closure: Closure | None = None) -> Any:
        """Compute the loss alone.

        Parameters
        ----------
        closure : callable, default=None

        Returns
        -------
        loss : Tensor or None
        """
        return None if closure is None else closure()


# name: (what makes it, the rate that "auto" stands for)
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], float]] = {
    "adamw": (torch.optim.AdamW, 2e-2),
    "adam": (torch.optim.Adam, 2e-2),
    "nadam": (torch.optim.NAdam, 2e-2),
    "radam": (torch.optim.RAdam, 2e-2),
    "rmsprop": (torch.optim.RMSprop, 3e-3),
    "adagrad": (torch.optim.Adagrad, 3e-2),
    "sgd": (_sgd, 1e-1),
    "muon": (MuonWithAdamW, 2e-2),
    "lbfgs": (_lbfgs, 1.0),
}

_RATE_OF_UNNAMED = 2e-2


def optimizer_factory(
    optimizer: str | Callable[..., Optimizer],
    lr: float | str,
    weight_decay: float | None,
    params: dict[str, Any] | None,
    module: nn.Module,
) -> tuple[Callable[..., Optimizer], float, dict[str, Any]]:
    """Resolve an estimator's optimizer parameters.

    Parameters
    ----------
    optimizer : str, class or callable
    lr : float or "auto"
    weight_decay : float or None
        None leaves it to the optimizer.
    params : dict or None
    module : torch.nn.Module
        What it will train.

    Returns
    -------
    factory : callable
    lr : float
    params : dict
        Keyword arguments besides ``lr``.

    Raises
    ------
    ValueError
        Where ``params`` holds what has a parameter of its own or what can't train a
        backbone, or the optimizer has no weight decay.
    """
    factory, rate = (
        OPTIMIZERS[optimizer]
        if isinstance(optimizer, str)
        else (optimizer, _RATE_OF_UNNAMED)
    )
    params = dict(params or {})
    for name, own in (("lr", lr), ("weight_decay", weight_decay)):
        if own is not None and name in params:
            raise ValueError(
                f"optimizer_params holds {name!r} beside {name}={own!r}; set {name} "
                "alone."
            )
    if weight_decay is not None:
        if not accepts(factory, "weight_decay"):
            raise ValueError(
                f"weight_decay={weight_decay} was given but optimizer {optimizer!r} "
                "takes none; set weight_decay=None."
            )
        params["weight_decay"] = weight_decay
    if factory in (torch.optim.AdamW, torch.optim.Adam):
        _choose_form(params, module)
    return factory, rate if lr == "auto" else float(lr), params


def _choose_form(params: dict[str, Any], module: nn.Module) -> None:
    """Set how Adam steps, where its parameters leave that open."""
    if params.get("differentiable"):
        raise ValueError(
            "optimizer_params holds differentiable=True, by which torch steps copies "
            "of parameters alone, not those of a backbone; leave it out."
        )
    if not _FORMS & params.keys():
        # One kernel for all tensors, on the CPU too; it knows no complex ones.
        params["fused"] = all(p.is_floating_point() for p in module.parameters())


def searches_along_lines(optimizer: Any) -> bool:
    """Whether an optimizer, or what makes it, compares losses within a step."""
    if isinstance(optimizer, functools.partial):
        optimizer = optimizer.func
    if isinstance(optimizer, type):
        return issubclass(optimizer, torch.optim.LBFGS)
    return isinstance(optimizer, torch.optim.LBFGS)


def check_batch_size(factory: Any, optimizer: Any, batch_size: int | str) -> None:
    """Refuse batches of some rows for an optimizer that needs all of them.

    Parameters
    ----------
    factory : callable
    optimizer : str or callable
        As the user gave it.
    batch_size : int or str
    """
    if searches_along_lines(factory) and batch_size != "full":
        raise ValueError(
            f"optimizer {optimizer!r} needs batch_size='full', got "
            f"batch_size={batch_size!r}: it compares losses along a line, which are of "
            "all rows or of little use."
        )


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether a function, or what makes an optimizer, takes an argument of a name."""
    try:
        signature = inspect.signature(function).parameters.values()
    except ValueError:
        return True
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in signature)


def has_learnable_parameters(module: nn.Module) -> bool:
    """Whether an optimizer has anything to do."""
    return any(parameter.requires_grad for parameter in module.parameters())
