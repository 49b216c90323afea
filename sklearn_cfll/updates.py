"""How a minibatch moves the head: one object for each rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_cfll.functional.moments import Moments
from sklearn_cfll.functional.ridge import feature_energy
from sklearn_cfll.functional.ridge_path import RidgePath
from sklearn_cfll.head import ClosedFormHead, as_rows
from sklearn_cfll.prox import as_prox


class HeadUpdate:
    """What all rules share; a rule of one's own overrides ``update_``.

    A net trains with a copy, so that one object serves many fits. Where its
    ``output_weight`` is set, ``sample_weight`` is one for each of the targets.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_cfll import CFLLRegressor, HeadUpdate
    >>> class FirstBatch(HeadUpdate):
    ...     def update_(self, head, features, targets, sample_weight=None, progress=0):
    ...         if not head.weight.any():
    ...             head.update_(features, targets, sample_weight, alpha=0.1, prox=1.0)
    >>> X, y = load_diabetes(return_X_y=True)
    >>> rule = {"head_update": FirstBatch()}
    >>> model = CFLLRegressor(max_epochs=2, net_params=rule, random_state=0)
    >>> model.fit(X, y).n_iter_
    2
    """

    @property
    def prox(self) -> float | None:
        """The pull of the last update, for the history; None where there is none."""
        return None

    def start_(
        self,
        head: ClosedFormHead,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Prepare for a training that begins with this batch.

        Parameters
        ----------
        head : ClosedFormHead
            Zero, or one to go on from.
        features : Tensor of shape (n, ..., d)
        targets : Tensor of shape (n, ..., k)
        sample_weight : Tensor of shape (n,) or (n, ..., k), default=None
        """

    def update_(
        self,
        head: ClosedFormHead,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        progress: float = 0.0,
    ) -> None:
        """Move the head by a batch.

        Parameters
        ----------
        head : ClosedFormHead
        features : Tensor of shape (n, ..., d)
        targets : Tensor of shape (n, ..., k)
        sample_weight : Tensor of shape (n,) or (n, ..., k), default=None
        progress : float, default=0.0
            Share of the training's steps that are done, from zero to one.
        """
        raise NotImplementedError

    def penalty(
        self,
        head: ClosedFormHead,
        features: Tensor,
        sample_weight: Tensor | None,
        last: tuple[Tensor, Tensor],
    ) -> Tensor | float:
        """Compute what the update minimises besides the loss.

        An optimizer that compares values of the loss along a line needs it.

        Parameters
        ----------
        head : ClosedFormHead
            As the update left it.
        features : Tensor of shape (n, ..., d)
        sample_weight : Tensor of shape (n,) or (n, ..., k), or None
        last : (Tensor of shape (d, k), Tensor of shape (k,))
            Weight and bias before the update.

        Returns
        -------
        penalty : Tensor of shape () or float
            Averaged over the outputs, as the loss is.
        """
        return 0.0


class ProximalUpdate(HeadUpdate):
    """Solve each batch, pulled to the last head.

    Parameters
    ----------
    alpha : float or Tensor of shape (k,), default=0.01
        Ridge relative to the mean feature energy.
    prox : float, (start, end) or "auto", default=(1.0, 100.0)
        Pull relative to the mean feature energy; a pair is annealed geometrically,
        "auto" follows how well each head predicts the next batch. Zero is for
        batches of all rows.

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606, 2025.

    Examples
    --------
    >>> import torch
    >>> from sklearn_cfll import ClosedFormHead, ProximalUpdate
    >>> features = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    >>> head = ClosedFormHead(1, 1)
    >>> ProximalUpdate(alpha=0, prox=1.0).update_(head, features, 3 * features)
    >>> round(head.weight.item(), 6)
    1.548387
    """

    def __init__(
        self,
        alpha: float | Tensor = 1e-2,
        prox: str | float | tuple[float, float] = (1.0, 100.0),
    ) -> None:
        self.alpha = checked_ridge(alpha)
        self._rule = as_prox(prox)

    @property
    def prox(self) -> float:
        """The pull of the last update."""
        return float(self._rule.value)

    def start_(
        self,
        head: ClosedFormHead,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Give a head that is still zero a first, well damped solution."""
        head.slope = None
        if not head.weight.any():
            head.start_(features, targets, sample_weight, alpha=self.alpha)

    def update_(
        self,
        head: ClosedFormHead,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        progress: float = 0.0,
    ) -> None:
        """Replace the head by the proximal solution on the batch."""
        head.update_(
            features,
            targets,
            sample_weight,
            alpha=self.alpha,
            prox=self._rule.at(progress),
        )

    def penalty(
        self,
        head: ClosedFormHead,
        features: Tensor,
        sample_weight: Tensor | None,
        last: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Compute the ridge and the pull at the head, averaged over its outputs."""
        features, _, sample_weight = as_rows(features, features, sample_weight)
        energy = feature_energy(features, sample_weight)
        ridge = self.alpha * head.weight.square().sum(0)
        weight, bias = last
        pull = (head.weight - weight).square().sum(0) + (head.bias - bias).square()
        if sample_weight is None or sample_weight.ndim == 1:
            return energy * (ridge.mean() + self._rule.value * pull.mean())
        # The loss, too, counts an output by its share of the weights.
        share = (sample_weight.sum(0) / sample_weight.sum()).to(energy)
        return share @ (energy * (ridge + self._rule.value * pull))


class BatchRidgeUpdate(ProximalUpdate):
    """Solve each batch alone: the naive rule, which fits the batch's noise.

    Parameters
    ----------
    alpha : float or Tensor of shape (k,), default=0.01
        Ridge relative to the mean feature energy.

    Examples
    --------
    >>> import torch
    >>> from sklearn_cfll import ClosedFormHead, BatchRidgeUpdate
    >>> features = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    >>> head = ClosedFormHead(1, 1)
    >>> BatchRidgeUpdate(alpha=0).update_(head, features, 3 * features)
    >>> round(head.weight.item(), 6)
    3.0
    """

    def __init__(self, alpha: float | Tensor = 1e-2) -> None:
        super().__init__(alpha, 0.0)


def checked_ridge(alpha: Any) -> Any:
    """Give a ridge, or say that it is none.

    Parameters
    ----------
    alpha : float or Tensor of shape (k,)
        On an accelerator its values aren't looked at.

    Returns
    -------
    alpha : float or Tensor of shape (k,)
    """
    if isinstance(alpha, Tensor) and not alpha.is_cpu:
        return alpha
    try:
        values = np.asarray(alpha, dtype=float)
    except (TypeError, ValueError):
        values = np.full(1, np.nan)
    if values.ndim > 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            "alpha must be a number, or one for each output, finite and not negative; "
            f"got {alpha!r}."
        )
    return alpha


def refuse_output_weights(rule: HeadUpdate, sample_weight: Tensor | None) -> None:
    """Raise where weights differ by the output, in a rule with one factor for all."""
    if sample_weight is not None and sample_weight.ndim > 1:
        raise ValueError(
            f"{type(rule).__name__} has one factor for all outputs, but each output "
            "has weights of its own; set true_class_weight=1 (output_weight=None in "
            "CFLLNet), or leave head_update out."
        )


class RunningAverageUpdate(HeadUpdate):
    """Solve a running sum of the batches' moments.

    The moments of old batches belong to features that the backbone no longer gives.

    Parameters
    ----------
    alpha : float or Tensor of shape (k,), default=0.01
        Ridge relative to the mean feature energy.
    decay : float, default=0.9
        Share of the sum that each update keeps, in [0, 1]; at one nothing is
        forgotten.

    Examples
    --------
    >>> import torch
    >>> from sklearn_cfll import ClosedFormHead, RunningAverageUpdate
    >>> features = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    >>> head = ClosedFormHead(1, 1)
    >>> RunningAverageUpdate(alpha=0).update_(head, features, 3 * features)
    >>> round(head.weight.item(), 6)
    3.0
    """

    def __init__(self, alpha: float | Tensor = 1e-2, decay: float = 0.9) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {decay!r}.")
        self.alpha = checked_ridge(alpha)
        self.decay = decay
        self.moments: Moments | None = None

    def start_(
        self,
        head: ClosedFormHead,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Begin with an empty sum."""
        refuse_output_weights(self, sample_weight)
        self.moments, head.slope = None, None

    @torch.no_grad()
    def update_(
        self,
        head: ClosedFormHead,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        progress: float = 0.0,
    ) -> None:
        """Add the batch's moments, and solve the ridge problem of the sum."""
        refuse_output_weights(self, sample_weight)
        head.check_sizes(features, targets)
        moments = Moments.of(*as_rows(features, targets, sample_weight))
        if self.moments is not None:
            moments = self.moments.scaled(self.decay).merge(moments)
        self.moments = moments
        head.replace_(*RidgePath(moments).solve(self.alpha))
