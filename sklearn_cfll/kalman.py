"""The head's update by a Kalman filter, which carries its covariance."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_cfll.functional.kalman import (
    diffuse,
    forget,
    information_root,
    observe,
)
from sklearn_cfll.functional.ridge import feature_energy
from sklearn_cfll.head import ClosedFormHead, as_rows
from sklearn_cfll.updates import HeadUpdate, refuse_output_weights


class KalmanUpdate(HeadUpdate):
    """Filter the head: a pull to the last head that knows what was learnt.

    The pull is the information of a Kalman filter, shared by all outputs, where
    :class:`ProximalUpdate` has a multiple of the identity. With ``forgetting`` zero,
    the covariance is reset at every step and both are the same (at ``alpha`` zero).

    Parameters
    ----------
    process_noise : float, default=0.0
        Growth of the covariance at each step, in the unit of ``covariance``.
    forgetting : float, default=0.95
        Share of the information that each step keeps, in [0, 1]; the rest comes from
        the initial covariance again. With one, and without process noise, all rows
        count alike: ridge regression on the rows of all steps.
    covariance : float, default=0.03
        Initial variance of each weight, in units of one over the mean feature energy
        and the batch's sum of weights: it is what one over ``prox`` is. The intercept
        is free at the start.

    Attributes
    ----------
    root : Tensor of shape (d + 1, d + 1) or None
        Factor R of the information ``R'R``, the intercept last.

    Notes
    -----
    A step costs a QR factorisation of the batch under the factor, ``O(n d^2 + d^3)``.
    An optimizer that searches along a line sees the loss without the filter's prior.

    References
    ----------
    Bierman, "Factorization Methods for Discrete Sequential Estimation", 1977.

    Examples
    --------
    >>> import torch
    >>> from sklearn_cfll import ClosedFormHead, KalmanUpdate
    >>> features = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    >>> head = ClosedFormHead(1, 1)
    >>> update = KalmanUpdate()
    >>> update.start_(head, features, 3 * features)
    >>> update.update_(head, features, 3 * features)
    >>> round(head.weight.item(), 6)
    0.099448
    """

    def __init__(
        self,
        process_noise: float = 0.0,
        forgetting: float = 0.95,
        covariance: float = 0.03,
    ) -> None:
        if not 0 <= forgetting <= 1:
            raise ValueError(f"forgetting must be in [0, 1], got {forgetting!r}.")
        if process_noise < 0:
            raise ValueError(
                f"process_noise must not be negative, got {process_noise!r}."
            )
        if covariance <= 0:
            raise ValueError(f"covariance must be positive, got {covariance!r}.")
        self.process_noise = process_noise
        self.forgetting = forgetting
        self.covariance = covariance
        self.root: Tensor | None = None

    def start_(
        self,
        head: ClosedFormHead,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Set the prior; the batch gives its unit alone."""
        refuse_output_weights(self, sample_weight)
        features, _, sample_weight = as_rows(features, targets, sample_weight)
        head.slope = None
        unit = self._unit(features.detach(), sample_weight)
        diagonal = (unit / self.covariance).repeat(features.shape[1] + 1)
        diagonal[-1] = 0.0
        self.root = information_root(diagonal.to(head.weight))

    @torch.no_grad()
    def update_(
        self,
        head: ClosedFormHead,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        progress: float = 0.0,
    ) -> None:
        """Predict the covariance, then take in the batch."""
        refuse_output_weights(self, sample_weight)
        head.check_sizes(features, targets)
        if self.root is None:
            self.start_(head, features, targets, sample_weight)
        assert self.root is not None
        features, targets, sample_weight = as_rows(features, targets, sample_weight)
        wide = features.to(head.weight)
        unit = self._unit(wide, sample_weight)
        root = forget(self.root, self.forgetting, unit / self.covariance)
        if self.process_noise > 0:
            root = diffuse(root, self.process_noise / unit)
        extended = torch.cat([wide, wide.new_ones(len(wide), 1)], 1)
        root, step = observe(root, extended, targets - head(wide), sample_weight)
        solved = head.replace_(
            head.weight + step[:-1], head.bias + step[-1], step.isfinite().all()
        )
        solved = torch.as_tensor(solved, device=root.device)
        self.root = torch.where(solved, root, self.root)

    @staticmethod
    def _unit(features: Tensor, sample_weight: Tensor | None) -> Tensor:
        """Compute the batch's sum of weights times its mean feature energy."""
        energy = feature_energy(features, sample_weight)
        if sample_weight is None:
            return energy * len(features)
        return energy * sample_weight.sum()
