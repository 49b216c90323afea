"""Second moments of a stream of rows, which merge exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sklearn_cfll.functional.gram import gram_of
from sklearn_cfll.functional.plain import check_rows
from sklearn_cfll.functional.ridge import like, wide_dtype


@dataclass(frozen=True)
class Moments:
    """Weighted centred second moments of features and targets, in float64.

    Sums over batches merge exactly (pairwise update of means and co-moments), so a
    data set streams through in memory ``O(d^2 + d k)``.

    Attributes
    ----------
    weight_sum : Tensor of shape ()
    feature_mean : Tensor of shape (d,)
    target_mean : Tensor of shape (k,)
    gram : Tensor of shape (d, d)
        ``sum_i w_i (phi_i - mean)(phi_i - mean)'``.
    cross : Tensor of shape (d, k)
    target_square : Tensor of shape (k,)
        ``sum_i w_i (y_i - mean)^2``.
    """

    weight_sum: Tensor
    feature_mean: Tensor
    target_mean: Tensor
    gram: Tensor
    cross: Tensor
    target_square: Tensor

    @classmethod
    def of(
        cls, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> Moments:
        """Moments of one batch: features (n, d), targets (n, k)."""
        check_rows(features, targets)
        wide = wide_dtype(features.device)
        features, targets = features.to(wide), targets.to(wide)
        if sample_weight is None:
            weight = features.new_ones(features.shape[0])
        else:
            weight = sample_weight.to(wide)
        # A batch of weight zero has no mean; it adds nothing.
        weight_sum = weight.sum()
        share = weight / weight_sum.clamp_min(tiny_of(weight_sum))
        feature_mean, target_mean = share @ features, share @ targets
        features, targets = features - feature_mean, targets - target_mean
        if sample_weight is not None:
            root = weight.sqrt()[:, None]
            features, targets = features * root, targets * root
        return cls(
            weight_sum,
            feature_mean,
            target_mean,
            gram_of(features),
            features.mT @ targets,
            (targets * targets).sum(0),
        )

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        total = self.weight_sum + other.weight_sum
        share = other.weight_sum / total.clamp_min(tiny_of(total))
        feature_gap = other.feature_mean - self.feature_mean
        target_gap = other.target_mean - self.target_mean
        between = self.weight_sum * share
        return Moments(
            total,
            self.feature_mean + share * feature_gap,
            self.target_mean + share * target_gap,
            self.gram + other.gram + between * torch.outer(feature_gap, feature_gap),
            self.cross + other.cross + between * torch.outer(feature_gap, target_gap),
            self.target_square + other.target_square + between * target_gap**2,
        )

    def without(self, other: Moments) -> Moments:
        """Moments of the rows that are left when others, merged before, are removed."""
        return self.merge(other.scaled(-1.0))

    def scaled(self, factor: float) -> Moments:
        """Moments as they are when each row weighs ``factor`` times as much."""
        return Moments(
            factor * self.weight_sum,
            self.feature_mean,
            self.target_mean,
            factor * self.gram,
            factor * self.cross,
            factor * self.target_square,
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Moments:
        """Moments on a device."""
        return Moments(*(part.to(device, dtype) for part in vars(self).values()))

    def moved(
        self, weight: Tensor, bias: Tensor, alpha: float | Tensor, error: Tensor
    ) -> Moments:
        """Moments of the same features whose ridge solution is a given head.

        Parameters
        ----------
        weight : Tensor of shape (d, k)
        bias : Tensor of shape (k,)
        alpha : float or Tensor of shape (k,)
        error : Tensor of shape (k,)
            Mean squared error that the head shall have.
        """
        weight = weight.to(self.gram)
        penalty = like(weight, alpha).reshape(1, -1) * self.energy * self.weight_sum
        mapped, shrunk = self.gram @ weight, penalty * weight
        square = (weight * (mapped + 2 * shrunk)).sum(0) + self.weight_sum * error
        return replace(
            self,
            target_mean=self.feature_mean @ weight + bias.to(weight),
            cross=mapped + shrunk,
            target_square=square,
        )

    def less(self, weight: Tensor) -> Moments:
        """Moments of what the targets are more than features times a weight (d, k)."""
        weight = weight.to(self.gram)
        mapped = self.gram @ weight
        square = self.target_square + (weight * (mapped - 2 * self.cross)).sum(0)
        return replace(
            self,
            target_mean=self.target_mean - self.feature_mean @ weight,
            cross=self.cross - mapped,
            target_square=square.clamp_min(0),
        )

    @property
    def n_outputs(self) -> int:
        """Outputs k."""
        return len(self.target_mean)

    def error_of(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Mean squared error (k,) of a head, weight (d, k) and bias (k,), on the rows.

        Differences of large numbers: good to about 1e-16 of the targets' square.
        """
        weight = weight.to(self.gram)
        quadratic = (weight * (self.gram @ weight - 2 * self.cross)).sum(0)
        offset = self.target_mean - self.feature_mean @ weight - bias.to(self.gram)
        within: Tensor = (self.target_square + quadratic) / self.weight_sum_or_tiny
        return within + offset.square()

    @property
    def error_of_mean(self) -> Tensor:
        """Mean squared error (k,) of predicting each output's mean."""
        return self.target_square / self.weight_sum

    @property
    def finite(self) -> bool:
        """Whether all moments are finite."""
        return all(bool(part.isfinite().all()) for part in vars(self).values())

    def holds(self, rest: Moments) -> bool:
        """Whether these moments less others, ``rest``, can be those of rows.

        Moments of rows have a positive sum of weights, a Gram matrix without negative
        eigenvalues, and errors of least squares that aren't negative. What is less than
        rounding of these moments counts as zero.
        """
        spacing = float(torch.finfo(self.gram.dtype).eps) ** 0.5
        if self.weight_sum == rest.weight_sum == 0:
            return True
        if not (rest.finite and rest.weight_sum > spacing * self.weight_sum):
            return False
        values, vectors = torch.linalg.eigh(rest.gram.to("cpu", torch.float64))
        floor = spacing * self.gram.diagonal().sum().to(values)
        cross = vectors.mT @ rest.cross.to(values)
        spanned = torch.where(values > floor, values, torch.inf)[:, None]
        error = rest.target_square.to(values) - (cross.square() / spanned).sum(0)
        least = -spacing * self.target_square.to(values)
        return bool((values >= -floor).all() and (error >= least).all())

    @property
    def weight_sum_or_tiny(self) -> Tensor:
        """The sum of the weights, positive where there are no rows, too."""
        return self.weight_sum.clamp_min(tiny_of(self.weight_sum))

    @property
    def weight_sum_to_divide_by(self) -> Tensor:
        """The sum of the weights, so large that what is divided by it is finite.

        Leverages of rows that have lost all weight are huge, and can be told so.
        """
        return self.weight_sum.clamp_min(tiny_of(self.weight_sum) ** 0.5)

    @property
    def energy(self) -> Tensor:
        """Mean feature energy, as :func:`feature_energy` gives it."""
        square = self.gram.diagonal().sum() / self.weight_sum_or_tiny
        square = square + self.feature_mean @ self.feature_mean
        return (square + 1) / (self.feature_mean.shape[0] + 1)


def tiny_of(values: Tensor) -> float:
    """Give the smallest normal number of a tensor's precision, to divide by."""
    return torch.finfo(values.dtype).tiny
