"""A backbone and its head as one module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sklearn_cfll.head import ClosedFormHead


class Network(nn.Module):
    """A backbone and the closed-form head on its features.

    Parameters
    ----------
    backbone : torch.nn.Module
    head : ClosedFormHead
    """

    def __init__(self, backbone: nn.Module, head: ClosedFormHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(
        self, X: Any = None, sample_weight: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        """Predict targets; the weight is there for batches that carry one.

        Parameters
        ----------
        X : Tensor of shape (n, ...), default=None
            None where all inputs of the backbone have names of their own.
        sample_weight : Tensor of shape (n,), default=None
            Unused.
        **inputs : Tensor of shape (n, ...)
            Further inputs of the backbone, by name.

        Returns
        -------
        predictions : Tensor of shape (n, ..., k)
        """
        predictions: Tensor = self.head(features_of(self.backbone, X, inputs))
        return predictions


def features_of(backbone: nn.Module, X: Any, inputs: dict[str, Any]) -> Any:
    """Run a backbone of one input, or of several with names.

    Parameters
    ----------
    backbone : torch.nn.Module
    X : Tensor of shape (n, ...) or None
        What it takes by place; None where it takes nothing so.
    inputs : dict of Tensor
        By name; the name of the weights isn't for the backbone.

    Returns
    -------
    features : Tensor of shape (n, ..., d)
    """
    further = {k: v for k, v in inputs.items() if k not in ("X", "sample_weight")}
    return backbone(**further) if X is None else backbone(X, **further)
