"""Ridge paths where each output weighs the rows its own way, and of either kind."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sklearn_cfll.functional.errors import PathErrors
from sklearn_cfll.functional.moments import Moments, tiny_of
from sklearn_cfll.functional.outputs import weighs_outputs
from sklearn_cfll.functional.ridge import like, wide_dtype
from sklearn_cfll.functional.ridge_path import RidgePath


@dataclass(frozen=True)
class MomentsByOutput:
    """Moments of each output's own, where the outputs weigh the rows differently.

    They take memory ``O(k d^2)``. Errors are given so that their mean over the outputs
    is the mean over all weights.

    Attributes
    ----------
    parts : tuple of Moments
        One for each output, of that output's targets alone.
    """

    parts: tuple[Moments, ...]

    @classmethod
    def of(
        cls, features: Tensor, targets: Tensor, sample_weight: Tensor
    ) -> MomentsByOutput:
        """Moments of one batch: features (n, d), targets and weights (n, k)."""
        features = features.to(wide_dtype(features.device))
        columns = zip(targets.mT[..., None], sample_weight.mT, strict=True)
        return cls(tuple(Moments.of(features, *column) for column in columns))

    def merge(self, other: MomentsByOutput) -> MomentsByOutput:
        """Moments of both sets of rows together."""
        return MomentsByOutput(tuple(map(Moments.merge, self.parts, other.parts)))

    def without(self, other: MomentsByOutput) -> MomentsByOutput:
        """Moments of the rows that are left when others, merged before, are removed."""
        return MomentsByOutput(tuple(map(Moments.without, self.parts, other.parts)))

    def scaled(self, factor: float) -> MomentsByOutput:
        """Moments as they are when each row weighs ``factor`` times as much."""
        return MomentsByOutput(tuple(part.scaled(factor) for part in self.parts))

    def to(self, device: torch.device, dtype: torch.dtype) -> MomentsByOutput:
        """Moments on a device."""
        return MomentsByOutput(tuple(part.to(device, dtype) for part in self.parts))

    def moved(
        self, weight: Tensor, bias: Tensor, alpha: float | Tensor, error: Tensor
    ) -> MomentsByOutput:
        """Moments whose ridge solution is a given head, as :meth:`Moments.moved`."""
        columns = zip(
            self.parts,
            weight.mT[..., None],
            bias[:, None],
            like(bias, alpha).expand(len(bias))[:, None],
            (error / self._share.clamp_min(tiny_of(error)))[:, None],
            strict=True,
        )
        return MomentsByOutput(tuple(part.moved(*own) for part, *own in columns))

    @property
    def n_outputs(self) -> int:
        """Outputs k."""
        return len(self.parts)

    def holds(self, rest: MomentsByOutput) -> bool:
        """Whether these moments less others, ``rest``, can be those of rows."""
        pairs = zip(self.parts, rest.parts, strict=True)
        return all(part.holds(own) for part, own in pairs)

    def error_of(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Mean squared error (k,) of a head, weight (d, k) and bias (k,)."""
        columns = zip(self.parts, weight.mT[..., None], bias[:, None], strict=True)
        errors = [part.error_of(*column) for part, *column in columns]
        return self._share * torch.cat(errors)

    @property
    def error_of_mean(self) -> Tensor:
        """Mean squared error (k,) of predicting each output's mean."""
        return self._share * torch.cat([part.error_of_mean for part in self.parts])

    @property
    def finite(self) -> bool:
        """Whether all moments are finite."""
        return all(part.finite for part in self.parts)

    @property
    def weight_sum(self) -> Tensor:
        """Sum of the weights over the rows, mean over the outputs."""
        return torch.stack([part.weight_sum for part in self.parts]).mean()

    @property
    def _share(self) -> Tensor:
        weight_sums = torch.stack([part.weight_sum for part in self.parts])
        return weight_sums / self.weight_sum.clamp_min(tiny_of(weight_sums))


class RidgePathByOutput:
    """What :class:`RidgePath` is, from moments of each output's own.

    Parameters
    ----------
    moments : MomentsByOutput
    """

    def __init__(self, moments: MomentsByOutput) -> None:
        self.moments = moments
        self.paths = [RidgePath(part) for part in moments.parts]

    def solve(self, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
        """Weight (d, k) and bias (k,) at one alpha, or one alpha an output."""
        heads = [path.solve(own) for path, own in self._each(alpha)]
        weights, biases = zip(*heads, strict=True)
        return torch.cat(weights, 1), torch.cat(biases)

    def scaled(self, factor: float) -> RidgePathByOutput:
        """Path of the moments where each row weighs ``factor`` times as much."""
        path = copy.copy(self)
        path.moments = self.moments.scaled(factor)
        path.paths = [part.scaled(factor) for part in self.paths]
        return path

    @property
    def flat(self) -> bool:
        """Whether the features vary in no direction."""
        return all(path.flat for path in self.paths)

    def project(self, features: Tensor) -> Tensor:
        """Centred features (k, n, d), in the basis of each output's eigenvectors."""
        return torch.stack([path.project(features) for path in self.paths])

    def predict(self, projected: Tensor, alpha: float | Tensor) -> Tensor:
        """Predictions (n, k) for features that :meth:`project` gave."""
        each = zip(self._each(alpha), projected, strict=True)
        return torch.cat([path.predict(own, a) for (path, a), own in each], 1)

    def leverage(self, projected: Tensor, alpha: float | Tensor) -> Tensor:
        """Pull (n, k) of a unit of weight at each row on its own fit."""
        each = zip(self._each(alpha), projected, strict=True)
        return torch.cat([path.leverage(own, a) for (path, a), own in each], 1)

    def leverages(self, projected: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        """Yield the leverage (n, k) at each alpha."""
        for alpha in alphas:
            yield self.leverage(projected, alpha)

    def generalized_errors(self, alphas: Sequence[float]) -> Tensor:
        """Errors (n_alphas, k), as :meth:`RidgePath.generalized_errors` has them."""
        return torch.cat([path.generalized_errors(alphas) for path in self.paths], 1)

    def _each(self, alpha: float | Tensor) -> Iterator[tuple[RidgePath, Tensor]]:
        alphas = like(self.paths[0].values, alpha).expand(len(self.paths))
        return zip(self.paths, alphas, strict=True)


class PathErrorsByOutput:
    """What :class:`PathErrors` is, for paths of each output's own.

    Parameters
    ----------
    path : RidgePathByOutput
    """

    def __init__(self, path: RidgePathByOutput) -> None:
        self.path = path

    def squares(
        self, projected: Tensor, targets: Tensor, alphas: Iterable[float | Tensor]
    ) -> Iterator[Tensor]:
        """Yield the squared errors (n, k) of each alpha.

        Parameters
        ----------
        projected : Tensor of shape (k, n, d)
        targets : Tensor of shape (n, k)
        alphas : iterable of float or Tensor of shape (k,)

        Yields
        ------
        squares : Tensor of shape (n, k)
        """
        for alpha in alphas:
            yield (self.path.predict(projected, alpha) - targets).square()

    def squares_of_rows(
        self, features: Tensor, targets: Tensor, alphas: Iterable[float | Tensor]
    ) -> Iterator[Tensor]:
        """Yield the squared errors (n, k) of each alpha, of rows as they are.

        Parameters
        ----------
        features : Tensor of shape (n, d)
        targets : Tensor of shape (n, k)
        alphas : iterable of float or Tensor of shape (k,)

        Yields
        ------
        squares : Tensor of shape (n, k)
        """
        return self.squares(self.path.project(features), targets, alphas)


AnyMoments = Moments | MomentsByOutput
AnyPath = RidgePath | RidgePathByOutput


def moments_of(
    features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
) -> AnyMoments:
    """Moments of a batch, with weights (n,) or (n, k)."""
    if sample_weight is not None and weighs_outputs(sample_weight, targets):
        return MomentsByOutput.of(features, targets, sample_weight)
    return Moments.of(features, targets, sample_weight)


def by_output(moments: AnyMoments) -> MomentsByOutput:
    """Give the same moments, each output's apart."""
    if isinstance(moments, MomentsByOutput):
        return moments
    own = zip(moments.target_mean, moments.cross.mT, moments.target_square, strict=True)
    parts = (
        replace(
            moments,
            target_mean=mean[None],
            cross=cross[:, None],
            target_square=square[None],
        )
        for mean, cross, square in own
    )
    return MomentsByOutput(tuple(parts))


def merge(first: AnyMoments, second: AnyMoments) -> AnyMoments:
    """Moments of both sets of rows together; of each output where one has them so."""
    if isinstance(first, Moments) and isinstance(second, Moments):
        return first.merge(second)
    return by_output(first).merge(by_output(second))


def remove(whole: AnyMoments, rows: AnyMoments) -> AnyMoments | None:
    """Moments of the rows that are left; None where ``rows`` can't be among them."""
    if isinstance(whole, Moments) and isinstance(rows, Moments):
        rest = whole.without(rows)
        return rest if whole.holds(rest) else None
    first, second = by_output(whole), by_output(rows)
    left = first.without(second)
    return left if first.holds(left) else None


def path_of(moments: AnyMoments) -> AnyPath:
    """Ridge path of moments of either kind."""
    if isinstance(moments, MomentsByOutput):
        return RidgePathByOutput(moments)
    return RidgePath(moments)


def errors_of(path: AnyPath, *, pooled: bool) -> PathErrors | PathErrorsByOutput:
    """Squared errors of a path of either kind."""
    if isinstance(path, RidgePathByOutput):
        return PathErrorsByOutput(path)
    return PathErrors(path, pooled=pooled)


def solve_ridge(
    features: Tensor,
    targets: Tensor,
    alpha: float | Tensor,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of least penalised squared error; the bias is free.

    Parameters
    ----------
    features : Tensor of shape (n, d)
    targets : Tensor of shape (n, k)
    alpha : float or Tensor of shape (k,)
        Ridge relative to the mean feature energy.
    sample_weight : Tensor of shape (n,) or (n, k), default=None
        One for each row, or one for each row and output.

    Returns
    -------
    weight : Tensor of shape (d, k)
    bias : Tensor of shape (k,)
    """
    return path_of(moments_of(features, targets, sample_weight)).solve(alpha)
