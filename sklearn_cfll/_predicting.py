"""What a fitted estimator computes from rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklearn_cfll._device import device_or_cpu, own_settings
from sklearn_cfll._grids import refuse_other_shape
from sklearn_cfll._numbers import refuse_not_finite
from sklearn_cfll._parameters import Parameters
from sklearn_cfll._validation import read_X
from sklearn_cfll.chunks import chunk_slices, numbers_in, share_memory
from sklearn_cfll.head import at_least_single
from sklearn_cfll.net import CFLLNet


class Predicting(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Parameters):
    """Features and outputs of the network that was trained."""

    net_: CFLLNet
    _input_dtype: torch.dtype
    _targets: Any

    @property
    def backbone_(self) -> torch.nn.Module:
        """The trained backbone."""
        check_is_fitted(self)
        return self.net_.module_.backbone

    def transform(self, X: Any) -> NDArray[Any]:
        """Compute the backbone's features.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        features : array of shape (n_samples, d), on a grid (n_samples, ..., d)
            In the dtype of X; what the head multiplies by ``coef_``.
        """
        check_is_fitted(self)
        X = read_X(self, X, reset=False)
        return self._run(X).astype(X.dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return int(self.net_.module_.head.weight.shape[0])

    def _raw_predictions(
        self, X: Any, beside: Callable[[Tensor], Tensor] | None = None
    ) -> NDArray[np.float64]:
        """Compute the outputs (n_samples, k), still encoded, in float64.

        What ``beside`` makes of the features, on the CPU, comes in columns after them.
        """
        check_is_fitted(self)
        X = read_X(self, X, reset=False)
        outputs = self._run(X, *self._predicting_head(), beside)
        outputs = outputs.astype(np.float64, copy=False)
        refuse_not_finite(outputs)
        return outputs

    def _run(
        self,
        X: NDArray[Any],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        beside: Callable[[Tensor], Tensor] | None = None,
    ) -> NDArray[Any]:
        """Compute features of X, or a head's outputs, in chunks of bounded memory.

        What is done once a call counts here, since X may be a single row.
        """
        network = self.net_.module_
        if any(module.training for module in network.modules()):
            network.eval()
        backbone, head = network.backbone, network.head.weight
        source, dtype, device = share_memory(X), self._input_dtype, head.device
        # On a grid no more points than X has numbers.
        points = source[0].numel() if self._targets.n_grid_axes else 1
        numbers = max(points * sum(head.shape), numbers_in(source.shape[1:]))
        outputs = []
        with torch.inference_mode(), own_settings():
            for rows in chunk_slices(len(source), numbers, device):
                try:
                    # A copy: a network may write to its input, which is the user's.
                    chunk = source[rows].to(device, dtype, copy=True)
                    features = at_least_single(backbone(chunk))
                except Exception as error:
                    refuse_other_shape(self, X, error)
                    raise
                output = features
                if weight is not None and bias is not None:
                    weight, bias = weight.to(features), bias.to(features)
                    output = nn.functional.linear(features, weight, bias)
                if beside is not None:
                    # Torch takes the wider of the two precisions.
                    output = torch.cat([output.cpu(), beside(features.cpu())], -1)
                outputs.append(output)
            whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return whole.cpu().numpy()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "net_"):
            # What was trained on a device that isn't there goes on on the CPU.
            self._move_to(device_or_cpu(self.device))

    def _move_to(self, device: torch.device) -> None:
        """Predict on a device from now on."""
        self.net_.move_to(device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _predicting_head(self) -> tuple[Tensor, Tensor]:
        """Weight (k, d) and bias (k,) of the head that predicts."""
        head = self.net_.module_.head
        return head.weight.mT, head.bias
