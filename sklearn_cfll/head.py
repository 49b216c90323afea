"""The linear head that is solved, not trained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_cfll.functional.plain import check_rows
from sklearn_cfll.functional.proximal import solve_update
from sklearn_cfll.functional.ridge import ProximalHead, proximal_step
from sklearn_cfll.functional.streamed import streamed_update
from sklearn_cfll.prox import PrequentialProx

# Numbers of a grid's features that are rows at once, 32 MB of them in float64.
_MOST_NUMBERS = 2**22

_HALF = (torch.float16, torch.bfloat16)

# A first head that is hardly penalised is large, and large heads make large
# gradients in the backbone.
_FIRST_PROX = 0.1


class ClosedFormHead(nn.Module):
    """Linear layer whose weight is the solution of a proximal ridge problem.

    Its weight and bias are buffers: no optimizer sees them. :meth:`update_` replaces
    them by the exact solution on a batch, tied to the last one; :meth:`forward` maps
    the last axis of the features as :class:`torch.nn.Linear` does.

    Parameters
    ----------
    in_features : int
        Features d that the backbone gives.
    out_features : int
        Outputs k.
    dtype : torch.dtype, default=torch.float64
        Precision of the stored head, and of the factorisation but for large batches of
        float32 features.

    Attributes
    ----------
    weight : Tensor of shape (in_features, out_features)
    bias : Tensor of shape (out_features,)
    n_failures : Tensor of shape ()
        Updates that were left out because their system had no solution.

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606, 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_cfll import ClosedFormHead
    >>> features = torch.randn(50, 3, dtype=torch.float64)
    >>> targets = features @ torch.tensor([[1.0], [2.0], [3.0]]).double() + 4
    >>> head = ClosedFormHead(3, 1).update_(features, targets, alpha=0, prox=0)
    >>> head.weight.ravel().round(decimals=6).tolist()
    [1.0, 2.0, 3.0]
    """

    weight: Tensor
    bias: Tensor
    n_failures: Tensor
    slope: tuple[Tensor, Tensor] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        weight = torch.zeros(in_features, out_features, dtype=dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype))
        self.register_buffer("n_failures", torch.zeros((), dtype=torch.int64))
        self.slope = None

    def forward(self, features: Tensor) -> Tensor:
        """Predictions (..., k) of features (..., d), in the features' dtype.

        Those of features in half precision, as autocast gives them, are in float32.
        """
        features = at_least_single(features)
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        return at_least_single(nn.functional.linear(features, weight.mT, bias))

    @torch.no_grad()
    def update_(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        *,
        alpha: float | Tensor,
        prox: float | Tensor | PrequentialProx,
    ) -> ClosedFormHead:
        """Replace the head by the proximal solution on a batch.

        Parameters
        ----------
        features : Tensor of shape (n, ..., d)
        targets : Tensor of shape (n, ..., k)
        sample_weight : Tensor of shape (n,) or (n, ..., k), default=None
            One weight a sample, shared by the sample's grid points, or one for each
            of the targets, at the cost of a solve for each output.
        alpha : float or Tensor of shape (k,)
            Ridge relative to the mean feature energy.
        prox : float, Tensor of shape () or PrequentialProx
            Pull to the last head relative to the mean feature energy. A
            ``PrequentialProx`` first learns from how the last head predicts this
            batch, which it has not seen.

        Returns
        -------
        self : ClosedFormHead
        """
        features = features.detach()
        self.check_sizes(features, targets)
        if _streams(features, sample_weight) and isinstance(prox, float | int):
            parts = rows_by_rows(features, targets, sample_weight)
            head = streamed_update(
                parts, self.weight, self.bias, alpha=alpha, prox=prox
            )
            self.replace_(head.weight, head.bias, head.solved)
            self.slope = None
            return self
        features, targets, sample_weight = as_rows(features, targets, sample_weight)
        if isinstance(prox, PrequentialProx):
            head = self._learn(
                features, targets, prox, alpha=alpha, sample_weight=sample_weight
            )
        else:
            head = solve_update(
                features,
                targets,
                self.weight,
                self.bias,
                alpha=alpha,
                prox=prox,
                sample_weight=sample_weight,
            )
        self.replace_(head.weight, head.bias, head.solved)
        if head.weight_slope is not None and head.bias_slope is not None:
            self.slope = (head.weight_slope, head.bias_slope)
        elif self.slope is not None:
            self.slope = None
        return self

    @torch.no_grad()
    def replace_(
        self, weight: Tensor, bias: Tensor, solved: Tensor | bool = True
    ) -> Tensor | bool:
        """Take a new solution; one that is not finite leaves the head as it is.

        Parameters
        ----------
        weight : Tensor of shape (d, k)
        bias : Tensor of shape (k,)
        solved : Tensor of shape () or bool, default=True
            False counts as a failure, too.

        Returns
        -------
        solved : bool, or on an accelerator Tensor of shape ()
            Whether the solution was taken.
        """
        # New tensors, not writes in place: autograd may hold the last ones.
        if bias.is_cpu:
            taken = bool(solved) and bool(np.isfinite(bias.numpy()).all())
            if taken:
                # Past the look-ups of nn.Module, which small steps would notice.
                self._buffers.update(weight=weight, bias=bias)
            else:
                self.n_failures += 1
            return taken
        # The choice is made on the device, without a look at the values.
        on_device: Tensor = bias.isfinite().all() & solved
        self.weight = torch.where(on_device, weight, self.weight)
        self.bias = torch.where(on_device, bias, self.bias)
        self.n_failures.add_(~on_device)
        return on_device

    def check_sizes(self, features: Tensor, targets: Tensor) -> None:
        """Refuse features and targets of other sizes, which might broadcast.

        Parameters
        ----------
        features : Tensor of shape (n, ..., d)
        targets : Tensor of shape (n, ..., k)
        """
        if (features.shape[-1], targets.shape[-1]) != self.weight.shape:
            raise ValueError(
                f"features of shape {tuple(features.shape)} and targets of shape "
                f"{tuple(targets.shape)} don't fit a head of {self.extra_repr()}; "
                "their last axes are to be of these sizes."
            )

    def _learn(
        self,
        features: Tensor,
        targets: Tensor,
        prox: PrequentialProx,
        *,
        alpha: float | Tensor,
        sample_weight: Tensor | None,
    ) -> ProximalHead:
        """Let the pull learn from the last head, and solve with the pull's slope."""
        wide = features.to(self.weight.dtype)
        residual, slope = self._look_at(wide, targets)
        if slope is not None:
            prox.learn(residual, slope, sample_weight)
        return proximal_step(
            wide,
            residual,
            self.weight,
            self.bias,
            alpha=alpha,
            prox=prox.value,
            sample_weight=sample_weight,
            with_slope=True,
            mixed=features.dtype == torch.float32,
        )

    def _look_at(
        self, features: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Give targets less predictions, and the predictions' slope in log prox."""
        if self.slope is None:
            return targets.to(features) - self(features), None
        both = nn.functional.linear(
            features,
            torch.cat([self.weight, self.slope[0]], 1).mT,
            torch.cat([self.bias, self.slope[1]]),
        )
        predictions, slope = both.tensor_split(2, dim=-1)
        return targets.to(features) - predictions, slope

    def start_(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        *,
        alpha: float | Tensor,
    ) -> ClosedFormHead:
        """Give a head that is still zero its first, well damped solution."""
        return self.update_(
            features, targets, sample_weight, alpha=alpha, prox=_FIRST_PROX
        )

    def extra_repr(self) -> str:
        """Sizes, as the layers of torch show theirs."""
        in_features, out_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}"


def at_least_single(values: Tensor) -> Tensor:
    """Give float16 and bfloat16, whose two or three digits are few, as float32.

    NumPy, too, has no bfloat16.
    """
    return values.float() if values.dtype in _HALF else values


def as_rows(
    features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Flatten sample and grid axes into rows; a sample's weight goes to each."""
    check_rows(features, targets)
    if features.ndim == 2:
        return features, targets, sample_weight
    if sample_weight is not None and sample_weight.ndim > 1:
        sample_weight = sample_weight.reshape(-1, sample_weight.shape[-1])
    elif sample_weight is not None:
        n_points = features[0, ..., 0].numel()
        sample_weight = sample_weight.repeat_interleave(n_points)
    n_features, n_outputs = features.shape[-1], targets.shape[-1]
    return (
        features.reshape(-1, n_features),
        targets.reshape(-1, n_outputs),
        sample_weight,
    )


def rows_by_rows(
    features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Flatten as :func:`as_rows` does, large grids in parts.

    Parameters
    ----------
    features : Tensor of shape (n, ..., d)
    targets : Tensor of shape (n, ..., k)
    sample_weight : Tensor of shape (n,), default=None

    Yields
    ------
    features, targets, sample_weight
        Of some of the rows.
    """
    check_rows(features, targets)
    if features.ndim == 2 or features.numel() <= _MOST_NUMBERS:
        yield as_rows(features, targets, sample_weight)
        return
    n_lines = max(1, _MOST_NUMBERS // features[0, 0].numel())
    for i in range(len(features)):
        weight = None if sample_weight is None else sample_weight[i : i + 1]
        for start in range(0, features.shape[1], n_lines):
            part = (slice(i, i + 1), slice(start, start + n_lines))
            yield as_rows(features[part], targets[part], weight)


def _streams(features: Tensor, sample_weight: Tensor | None) -> bool:
    """Whether a batch's grids are too large to be copied as rows."""
    shared = sample_weight is None or sample_weight.ndim == 1
    return features.ndim > 2 and shared and features.numel() > _MOST_NUMBERS
