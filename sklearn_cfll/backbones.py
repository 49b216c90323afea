"""Backbones: parameter objects that build a torch module from the data's shape."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from sklearn.base import BaseEstimator
from torch import nn

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.layers import FeaturesLast


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


_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class TorchBackbone(Backbone):
    """A user's module class, or a function that makes a module, with its parameters.

    Parameters
    ----------
    factory : class or callable
        Called with ``params`` and the size of the input: as ``in_features`` where it
        has a parameter of that name, else as its first argument where that is not
        among ``params`` and has no default.
    feature_axis : int, default=-1
        Axis of the features in what the module returns: 1 for convolutions and Fourier
        neural operators, which return (n_samples, n_features, ...). It is moved to the
        end as a view, without a copy.
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

    def __init__(
        self,
        factory: Callable[..., nn.Module],
        *,
        feature_axis: int = -1,
        **params: Any,
    ) -> None:
        self.factory = factory
        self.feature_axis = feature_axis
        self._names = tuple(params)
        for name, value in params.items():
            setattr(self, name, value)

    _OWN = ("factory", "feature_axis")

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
        own = ("factory",) if self.feature_axis == -1 else self._OWN
        names = (*own, *self._names)
        return {name: getattr(self, name) for name in names}

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
            known = name in (*self._OWN, *self._names, *signature)
            if not (known or open_ended):
                raise ValueError(
                    f"Invalid parameter {name!r} for backbone {name_of(factory)}; "
                    f"valid parameters are {sorted({*signature, *self._names})}."
                )
            if name not in (*self._OWN, *self._names):
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
        if isinstance(self.factory, nn.Module):
            raise TypeError(
                "TorchBackbone takes a class or a function that makes a module, got "
                f"the module {name_of(self.factory)}; pass the module itself as "
                "backbone, or its class."
            )
        params = {name: getattr(self, name) for name in self._names}
        size = batches.sample_shape[0] if batches.sample_shape else 1
        args = self._size_argument(params, size)
        try:
            module = self.factory(*args, **params)
        except Exception as error:
            raise ValueError(
                f"backbone {name_of(self.factory)} could not be built: {error}"
                f"{self._cure(error, args, params)}"
            ) from error
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"backbone {name_of(self.factory)} returned a "
                f"{type(module).__name__}; it must return a torch.nn.Module."
            )
        if self.feature_axis != -1:
            module = FeaturesLast(module, self.feature_axis)
        return module

    def _size_argument(self, params: dict[str, Any], size: int) -> tuple[int, ...]:
        """Offer the input size by keyword (into ``params``) or by position."""
        signature = self._signature()
        if any(p.name == "in_features" for p in signature):
            params.setdefault("in_features", size)
            return ()
        if (
            signature
            and signature[0].kind in _POSITIONAL
            and signature[0].name not in params
            and signature[0].default is inspect.Parameter.empty
        ):
            return (size,)
        return ()

    def _signature(self) -> list[inspect.Parameter]:
        """Parameters of the factory; none of a callable of C without a signature."""
        try:
            return list(inspect.signature(self.factory).parameters.values())
        except ValueError:
            return []

    def _cure(
        self, error: Exception, args: tuple[int, ...], params: dict[str, Any]
    ) -> str:
        """Name the arguments that the factory misses, where that is its error."""
        if not isinstance(error, TypeError) or " missing " not in str(error):
            return ""
        missing = [
            f"{parameter.name}=..."
            for parameter in self._signature()[len(args) :]
            if parameter.kind in _NAMED
            and parameter.default is inspect.Parameter.empty
            and parameter.name not in params
        ]
        if not missing:
            return ""
        given = ", ".join([name_of(self.factory), *missing])
        return f"; pass what it needs: TorchBackbone({given})."


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


def describe(backbone: Any) -> str:
    """Name of what a backbone builds or copies, or of its class."""
    if isinstance(backbone, ModuleBackbone):
        return type(backbone.module).__name__
    return name_of(getattr(backbone, "factory", backbone))


def name_of(factory: Any) -> str:
    """Name of a class or a function, or of an object's class."""
    if isinstance(factory, functools.partial):
        return f"partial({name_of(factory.func)}, ...)"
    return getattr(factory, "__name__", type(factory).__name__)
