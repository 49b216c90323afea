"""Every ridge head from the second moments of rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sklearn_cfll.functional.moments import Moments
from sklearn_cfll.functional.ridge import like


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

    def scaled(self, factor: float) -> RidgePath:
        """Path of the moments where each row weighs ``factor`` times as much."""
        path = copy.copy(self)
        path.moments = self.moments.scaled(factor)
        return path

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
        return pull / self.moments.weight_sum_to_divide_by

    def leverages(self, projected: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        """Yield the leverage (n, 1) at each alpha, from one product."""
        inverse = self.inverse(self.values.new_tensor(alphas))
        # Rows last, so that what each alpha is given is contiguous.
        pulls = (inverse.mT @ projected.square().mT).add_(1)
        for pull in pulls.div_(self.moments.weight_sum_to_divide_by):
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
        shifted = self._shifted(self.values.new_tensor(alphas))
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
