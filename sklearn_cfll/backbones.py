"""Backbones: parameter objects that build a torch module from the data's shape."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.layers import Standardize

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
}


class Backbone(BaseEstimator):
    """Base of the parameter objects that an estimator takes as its backbone.

    A subclass stores its parameters in ``__init__``, as scikit-learn's estimators
    do, so that ``backbone__width`` works in a grid search, and builds a fresh module
    in :meth:`build`.
    """

    # Whether the module takes X in float64 and casts it itself.
    takes_float64 = False

    def build(self, batches: TensorBatches) -> nn.Module:
        """Build the module for the training rows.

        Parameters
        ----------
        batches : TensorBatches
            The training rows; ``batches.sample_shape`` is the shape of one sample.

        Returns
        -------
        module : torch.nn.Module
            Maps X to features whose last axis the head acts on.
        """
        raise NotImplementedError


class MLP(Backbone):
    """Multi-layer perceptron for tables: the default backbone.

    It standardises its inputs itself, with the training rows' means and standard
    deviations, and normalises its features by a LayerNorm without parameters, from
    which the closed-form head profits much.

    Parameters
    ----------
    width : int, default=256
        Units of each hidden layer, the features that the head sees among them.
    depth : int, default=2
        Hidden layers.
    activation : {"silu", "relu", "gelu", "mish", "selu", "tanh"} or callable, \
default="silu"
        Non-linearity; a callable makes the module.
    dropout : float, default=0.0
        Share of the units that are dropped after each hidden layer but the last.
    normalize : bool, default=True
        End with a LayerNorm without parameters.

    Examples
    --------
    >>> from sklearn_cfll import MLP, CFLLRegressor
    >>> CFLLRegressor(MLP(width=64)).get_params()["backbone__width"]
    64
    """

    takes_float64 = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "width": [Interval(Integral, 1, 2**31, closed="left")],
        "depth": [Interval(Integral, 1, 2**31, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS)), callable],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "normalize": ["boolean"],
    }

    def __init__(
        self,
        width: int = 256,
        depth: int = 2,
        *,
        activation: str | Callable[[], nn.Module] = "silu",
        dropout: float = 0.0,
        normalize: bool = True,
    ) -> None:
        self.width = width
        self.depth = depth
        self.activation = activation
        self.dropout = dropout
        self.normalize = normalize

    def build(self, batches: TensorBatches) -> nn.Module:
        """Build the network, its input scaling fitted on the rows given.

        Parameters
        ----------
        batches : TensorBatches
            The training rows.

        Returns
        -------
        module : torch.nn.Sequential
            Maps (n, n_columns) to (n, width).
        """
        self._validate_params()
        if len(batches.sample_shape) != 1:
            raise ValueError(
                f"MLP takes X of shape (n_samples, n_features), got samples of shape "
                f"{batches.sample_shape}; pass a backbone that takes n-D samples."
            )
        activation = self.activation
        if isinstance(activation, str):
            activation = ACTIVATIONS[activation]
        size = batches.sample_shape[0]
        layers: list[nn.Module] = [Standardize.fitted(batches)]
        for i in range(self.depth):
            layers += [nn.Linear(size, self.width), activation()]
            if self.dropout > 0 and i < self.depth - 1:
                layers.append(nn.Dropout(self.dropout))
            size = self.width
        if self.normalize:
            layers.append(nn.LayerNorm(size, elementwise_affine=False))
        return nn.Sequential(*layers)


class TorchBackbone(Backbone):
    """A user's module class, or a function that makes a module, with its parameters.

    Parameters
    ----------
    factory : class or callable
        Called with ``params`` and the size of the input: as ``in_features`` where it
        has a parameter of that name, else as its first argument where that is not
        among ``params`` and has no default.
    **params
        The factory's other parameters; ``get_params``, ``set_params`` and a grid
        search see them as ``backbone__name``.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_cfll import CFLLRegressor, TorchBackbone
    >>> def network(in_features, width=32):
    ...     return nn.Sequential(nn.Linear(in_features, width), nn.Tanh())
    >>> model = CFLLRegressor(TorchBackbone(network, width=8))
    >>> model.set_params(backbone__width=16).get_params()["backbone__width"]
    16
    """

    def __init__(self, factory: Callable[..., nn.Module], **params: Any) -> None:
        self.factory = factory
        self._names = tuple(params)
        for name, value in params.items():
            setattr(self, name, value)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, the factory among them.

        Parameters
        ----------
        deep : bool, default=True
            Unused: the factory's parameters are taken as they are.

        Returns
        -------
        params : dict
        """
        return {name: getattr(self, name) for name in ("factory", *self._names)}

    def set_params(self, **params: Any) -> TorchBackbone:
        """Set the factory or any parameter that the factory takes.

        Parameters
        ----------
        **params
            Values by name.

        Returns
        -------
        self : TorchBackbone
        """
        factory = params.get("factory", self.factory)
        signature = inspect.signature(factory).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.values())
        for name, value in params.items():
            if name not in ("factory", *self._names, *signature) and not open_ended:
                raise ValueError(
                    f"Invalid parameter {name!r} for backbone {_name_of(factory)}; "
                    f"valid parameters are {sorted({*signature, *self._names})}."
                )
            if name not in ("factory", *self._names):
                self._names += (name,)
            setattr(self, name, value)
        return self

    def build(self, batches: TensorBatches) -> nn.Module:
        """Call the factory with its parameters and the size of the input.

        Parameters
        ----------
        batches : TensorBatches
            The training rows.

        Returns
        -------
        module : torch.nn.Module
        """
        params = {name: getattr(self, name) for name in self._names}
        size = batches.sample_shape[0] if batches.sample_shape else 1
        args = self._size_argument(params, size)
        try:
            module = self.factory(*args, **params)
        except Exception as error:
            raise ValueError(
                f"backbone {_name_of(self.factory)} could not be built: {error}"
            ) from error
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"backbone {_name_of(self.factory)} returned a "
                f"{type(module).__name__}; it must return a torch.nn.Module."
            )
        return module

    def _size_argument(self, params: dict[str, Any], size: int) -> tuple[int, ...]:
        """Offer the input size by keyword (into ``params``) or by position."""
        try:
            signature = list(inspect.signature(self.factory).parameters.values())
        except ValueError:  # a callable of C without a signature
            return ()
        if any(p.name == "in_features" for p in signature):
            params.setdefault("in_features", size)
            return ()
        positional = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
        if (
            signature
            and signature[0].kind in positional
            and signature[0].name not in params
            and signature[0].default is inspect.Parameter.empty
        ):
            return (size,)
        return ()


class ModuleBackbone(Backbone):
    """A module instance: copied, so that the user's own stays as it is.

    Parameters
    ----------
    module : torch.nn.Module
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def build(self, batches: TensorBatches) -> nn.Module:
        """Copy the module with its weights.

        Parameters
        ----------
        batches : TensorBatches
            Unused.

        Returns
        -------
        module : torch.nn.Module
        """
        return copy.deepcopy(self.module)


def as_backbone(backbone: Any) -> Backbone:
    """Turn what a user passes as ``backbone`` into a parameter object."""
    if backbone is None:
        return MLP()
    if isinstance(backbone, nn.Module):
        return ModuleBackbone(backbone)
    if isinstance(backbone, type) or not hasattr(backbone, "build"):
        raise TypeError(
            f"backbone must be None, a torch.nn.Module instance, MLP(...) or "
            f"TorchBackbone(...), got {backbone!r}; wrap a class or a function as "
            f"TorchBackbone({_name_of(backbone)})."
        )
    return backbone  # type: ignore[no-any-return]


def _name_of(factory: Any) -> str:
    return getattr(factory, "__name__", type(factory).__name__)
