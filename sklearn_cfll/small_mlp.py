"""A small network for few columns, for regression with instrumental variables."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import StrOptions
from torch import Tensor, nn

from sklearn_cfll.backbones import Backbone
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.mlp import ACTIVATIONS, make_activation


class SmallMLP(Backbone):
    """Multi-layer perceptron of given widths, on columns that are standardised already.

    :class:`CFLLIVRegressor` standardises the columns before any of its backbones.

    Parameters
    ----------
    widths : sequence of int, default=(16, 4)
        Units of each layer; the last ones are the features that the head sees.
    activation : {"silu", "relu", "gelu", "mish", "selu", "tanh"} or callable, \
default="relu"
        Non-linearity after each layer but the last; a callable makes the module.
    normalize : bool, default=False
        Follow the last layer with a LayerNorm without parameters. Not for a network of
        one column, whose features it would make all but two-valued.
    linear : bool, default=True
        Append the columns to the features, so that what is linear in them need not be
        learnt. The final heads of :class:`CFLLIVRegressor` all but spare them the
        ridge, so that two-stage least squares lies within the model.

    Examples
    --------
    >>> from sklearn_cfll import CFLLIVRegressor, SmallMLP
    >>> model = CFLLIVRegressor(SmallMLP((32, 8)))
    >>> model.get_params()["backbone__widths"]
    (32, 8)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "widths": [tuple, list],
        "activation": [StrOptions(set(ACTIVATIONS)), callable],
        "normalize": ["boolean"],
        "linear": ["boolean"],
    }

    def __init__(
        self,
        widths: Any = (16, 4),
        *,
        activation: str | Callable[[], nn.Module] = "relu",
        normalize: bool = False,
        linear: bool = True,
    ) -> None:
        self.widths = widths
        self.activation = activation
        self.normalize = normalize
        self.linear = linear

    def build(self, batches: TensorBatches) -> nn.Module:
        """Build the network for the columns at hand.

        Parameters
        ----------
        batches : TensorBatches
            The training rows, standardised.

        Returns
        -------
        module : torch.nn.Module
            Maps (n, n_columns) to (n, n_features).
        """
        self._validate_params()
        widths = list(self.widths)
        if not widths or not all(
            isinstance(w, Integral) and int(w) > 0 for w in widths
        ):
            raise ValueError(
                f"widths must be one positive integer or several, got {self.widths!r}."
            )
        layers: list[nn.Module] = []
        size = batches.sample_shape[0]
        for width in widths:
            layers += [nn.Linear(size, int(width)), make_activation(self.activation)]
            size = int(width)
        layers.pop()  # the head itself is linear in what the last layer gives
        if self.normalize:
            layers.append(nn.LayerNorm(size, elementwise_affine=False))
        network = nn.Sequential(*layers)
        return WithColumns(network) if self.linear else network


class WithColumns(nn.Module):
    """Append a module's input to what it returns.

    Parameters
    ----------
    module : torch.nn.Module
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, X: Tensor) -> Tensor:
        """Compute features.

        Parameters
        ----------
        X : Tensor of shape (..., n, n_columns)

        Returns
        -------
        features : Tensor of shape (..., n, d + n_columns)
        """
        return torch.cat([self.module(X), X], -1)
