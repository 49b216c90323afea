"""Second moments of a stream of rows, and every ridge head from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sklearn_cfll.functional.gram import gram_of
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
        wide = wide_dtype(features.device)
        features, targets = features.to(wide), targets.to(wide)
        if sample_weight is None:
            weight = features.new_ones(features.shape[0])
        else:
            weight = sample_weight.to(wide)
        # A batch of weight zero has no mean; it adds nothing.
        weight_sum = weight.sum()
        share = weight / weight_sum.clamp_min(torch.finfo(wide).tiny)
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
        tiny = torch.finfo(total.dtype).tiny
        share = other.weight_sum / total.clamp_min(tiny)
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
        within: Tensor = (self.target_square + quadratic) / self.weight_sum
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
        return self.weight_sum.clamp_min(torch.finfo(self.weight_sum.dtype).tiny)

    @property
    def energy(self) -> Tensor:
        """Mean feature energy, as :func:`feature_energy` gives it."""
        square = self.gram.diagonal().sum() / self.weight_sum_or_tiny
        square = square + self.feature_mean @ self.feature_mean
        return (square + 1) / (self.feature_mean.shape[0] + 1)


class RidgePath:
    """Ridge heads of every ``alpha`` from one eigendecomposition of the moments.

    Parameters
    ----------
    moments : Moments
    energy : Tensor of shape (), default=None
        What ``alpha`` is relative to; None is the mean feature energy.
    """

    def __init__(self, moments: Moments, energy: Tensor | None = None) -> None:
        self.moments = moments
        self.energy = moments.energy if energy is None else energy
        # On the CPU: cuSOLVER's eigh is slow, and MPS has neither eigh nor float64.
        weight_sum = moments.weight_sum_or_tiny
        gram = (moments.gram / weight_sum).to("cpu", torch.float64)
        values, vectors = torch.linalg.eigh(gram)
        self.values = values.clamp_min(0).to(moments.gram)
        self.vectors = vectors.to(moments.gram)
        self.cross = self.vectors.mT @ (moments.cross / weight_sum)
        # Directions that the data don't span to rounding get no weight at alpha 0.
        # The Gram of constant features is rounding of their mean, squared.
        spacing = torch.finfo(gram.dtype).eps * gram.shape[0]
        constant = (spacing * moments.feature_mean).square().sum()
        self.floor = torch.maximum(self.values.amax() * spacing, constant)

    def solve(self, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
        """Weight (d, k) and bias (k,) at one alpha, or one alpha an output."""
        weight = self.vectors @ self.coordinates(alpha)
        bias = self.moments.target_mean - self.moments.feature_mean @ weight
        return weight, bias

    def coordinates(self, alpha: float | Tensor) -> Tensor:
        """Weight (d, k) in the basis of the eigenvectors."""
        shifted = self._shifted(alpha)
        return torch.where(shifted > self.floor, self.cross / shifted, 0.0)

    @property
    def flat(self) -> bool:
        """Whether the features vary in no direction."""
        return bool(self.values.amax() <= self.floor)

    def centre(self, features: Tensor) -> Tensor:
        """Features (n, d) less their mean over the moments' rows."""
        return features.to(self.vectors) - self.moments.feature_mean

    def project(self, features: Tensor) -> Tensor:
        """Centred features (n, d) in the basis of the eigenvectors."""
        return torch.matmul(self.centre(features), self.vectors)

    def predict(self, projected: Tensor, alpha: float | Tensor) -> Tensor:
        """Predictions (n, k) for features that :meth:`project` gave."""
        return torch.addmm(self.moments.target_mean, projected, self.coordinates(alpha))

    def leverage(self, projected: Tensor, alpha: float | Tensor) -> Tensor:
        """Pull (n, 1) or (n, k) of a unit of weight at each row on its own fit."""
        pull: Tensor = projected.square() @ self.inverse(alpha) + 1
        return pull / self.moments.weight_sum

    def leverages(self, projected: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        """Yield the leverage (n, 1) at each alpha, from one product."""
        inverse = self.inverse(torch.tensor(alphas, dtype=torch.float64))
        # Rows last, so that what each alpha is given is contiguous.
        pulls = (inverse.mT @ projected.square().mT).add_(1)
        for pull in pulls.div_(self.moments.weight_sum):
            yield pull[:, None]

    def inverse(self, alpha: float | Tensor) -> Tensor:
        """Eigenvalues (d, 1) or (d, k) of the inverse of the penalised Gram matrix."""
        shifted = self._shifted(alpha)
        return torch.where(shifted > self.floor, 1 / shifted, 0.0)

    def gram_inverse(self, alpha: float) -> Tensor:
        """Inverse (d, d) of the penalised Gram matrix of rows whose weights sum to one.

        Directions that the data don't span to rounding are left out at alpha 0.
        """
        inverse: Tensor = (self.vectors * self.inverse(alpha).mT) @ self.vectors.mT
        return inverse

    def generalized_errors(self, alphas: Sequence[float]) -> Tensor:
        """Generalised cross-validation's estimate of the mean squared error.

        It is leave-one-out with the mean of the leverages in place of each, and needs
        the moments alone (Golub, Heath and Wahba, 1979). A weight is a count of rows.

        Parameters
        ----------
        alphas : sequence of float

        Returns
        -------
        errors : Tensor of shape (n_alphas, k)
            Infinite where the head has as many degrees of freedom as there are rows.
        """
        shifted = self._shifted(torch.tensor(alphas, dtype=torch.float64))
        inverse = torch.where(shifted > self.floor, 1 / shifted, 0.0)
        shrunk = self.values[:, None] * inverse
        weight_sum = self.moments.weight_sum_or_tiny
        kept = 1 - (1 + shrunk.sum(0)) / weight_sum
        gain = (inverse * (2 - shrunk)).mT @ self.cross.square()
        errors = (self.moments.target_square / weight_sum - gain).clamp_min(0)
        errors = errors / kept[:, None].square()
        return torch.where(kept[:, None] > 1e-10, errors, torch.inf)

    def _shifted(self, alpha: float | Tensor) -> Tensor:
        alpha = like(self.values, alpha).reshape(1, -1)
        shifted: Tensor = self.values[:, None] + alpha * self.energy
        return shifted
