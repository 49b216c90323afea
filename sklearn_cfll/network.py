"""A backbone and its head as one module."""

from __future__ import annotations

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

    def forward(self, X: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Predict targets; the weight is there for batches that carry one.

        Parameters
        ----------
        X : Tensor of shape (n, ...)
        sample_weight : Tensor of shape (n,), default=None
            Unused.

        Returns
        -------
        predictions : Tensor of shape (n, ..., k)
        """
        return self.head(self.backbone(X))
