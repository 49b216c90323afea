"""Ridge and proximal solves of a linear head with a free intercept.

Conventions: features are ``(..., n, d)``, targets ``(..., n, k)``, sample weights
``(..., n)``, a head is a weight ``(..., d, k)`` and a bias ``(..., k)``. Penalties
``alpha`` and ``prox`` are relative: they multiply the mean feature energy
:func:`feature_energy`, which makes them dimensionless.

Sample weights may also be ``(..., n, k)``, one for each output. The outputs are then
separate problems, each with its own sum of weights and its own energy, and each solve
costs as much as all outputs do together where they share their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklearn_cfll.functional.outputs import step_by_output, weighs_outputs
from sklearn_cfll.functional.systems import System, system_for, worth_mixing


def feature_energy(features: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Weighted mean square of the features, the intercept's constant one included.

    Parameters
    ----------
    features : Tensor of shape (..., n, d)
    sample_weight : Tensor of shape (..., n) or (..., n, k), default=None

    Returns
    -------
    energy : Tensor of shape (...), or (..., k) with one weight for each output
        ``(sum_i w_i (||phi_i||^2 + 1)) / ((d + 1) sum_i w_i)``.
    """
    features = features.to(wide_dtype(features.device))
    weight = None if sample_weight is None else sample_weight.to(features.dtype)
    if weight is not None and weighs_outputs(weight, features):
        features, weight = features.unsqueeze(-3), weight.mT
    return _energy(features, weight, _total(features, weight))


class ProximalHead(NamedTuple):
    """Solution of a proximal problem.

    Attributes
    ----------
    weight : Tensor of shape (..., d, k)
    bias : Tensor of shape (..., k)
    solved : Tensor of shape (...), or bool
        Whether the system, or that of every output, had a Cholesky factor; where not,
        weight and bias are not-a-number.
        A tensor stays on the device, so that nothing need be waited for.
    weight_slope, bias_slope : Tensor or None
        Derivatives by the logarithm of ``prox``.
    """

    weight: Tensor
    bias: Tensor
    solved: Tensor | bool
    weight_slope: Tensor | None = None
    bias_slope: Tensor | None = None


def proximal_step(
    features: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float | Tensor,
    prox: float | Tensor,
    sample_weight: Tensor | None = None,
    with_slope: bool = False,
    mixed: bool = False,
) -> ProximalHead:
    """Solve the problem of ``proximal_update`` from the last head's residual.

    Parameters
    ----------
    features : Tensor of shape (..., n, d)
        In the dtype of ``weight``.
    residual : Tensor of shape (..., n, k)
        Targets less the last head's predictions, in the dtype of ``weight``.
    weight, bias, alpha, prox, sample_weight, with_slope
        As ``proximal_update`` takes them.
    mixed : bool, default=False
        Take the Gram matrix in float32 and refine the solution, where ``prox`` makes
        that safe: for features whose numbers are float32's anyhow.

    Returns
    -------
    head : ProximalHead
        Arbitrary where it is not ``solved``.
    """
    solve: Callable[..., ProximalHead] = _shared_step
    if sample_weight is not None:
        sample_weight = sample_weight.to(weight.dtype)
        if weighs_outputs(sample_weight, residual):
            solve = _step_by_output
    return solve(
        features,
        residual,
        weight,
        bias,
        alpha=alpha,
        sample_weight=sample_weight,
        prox=prox,
        with_slope=with_slope,
        mixed=mixed,
    )


def _step_by_output(
    features: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float | Tensor,
    **settings: Any,
) -> ProximalHead:
    """Do what :func:`_shared_step` does, for weights of each output's own."""
    alpha = like(weight, alpha)
    head: ProximalHead = step_by_output(
        _shared_step, features, residual, weight, bias, alpha=alpha, **settings
    )
    return head


def _shared_step(
    features: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float | Tensor,
    prox: float | Tensor,
    sample_weight: Tensor | None,
    with_slope: bool,
    mixed: bool,
) -> ProximalHead:
    """Do what :func:`proximal_step` does, for weights that all outputs share."""
    batch = _CentredBatch(features, sample_weight, prox)
    # Everything below is in sums over the rows, not in means: no row is scaled.
    matrix_scale = (batch.total * batch.energy)[..., None, None]
    if not isinstance(alpha, float):
        alpha = like(features, alpha)
    system = system_for(
        batch.rows,
        ridge=matrix_scale * alpha,
        pull=matrix_scale * prox,
        mixed=mixed and worth_mixing(features, prox),
    )
    residual_mean = _mean(residual, sample_weight, batch.total)
    step = system.step(batch.centre(residual, residual_mean), weight)
    bias_step = batch.bias_of(step, residual_mean)
    slopes = batch.slopes(system, step, bias_step) if with_slope else ()
    return ProximalHead(weight + step, bias + bias_step, system.solved(), *slopes)


class _CentredBatch:
    """A batch from whose problem the bias is eliminated.

    A Schur complement does it, which is a partial centring of the rows: whole at prox
    0, none as prox grows.
    """

    def __init__(
        self, features: Tensor, sample_weight: Tensor | None, prox: float | Tensor
    ) -> None:
        self.sample_weight = sample_weight
        self.total = _total(features, sample_weight)
        self.energy = _energy(features, sample_weight, self.total)
        self.pull = prox * self.energy
        no_pull = isinstance(prox, float | int) and prox == 0
        # The root has no derivative at zero, which autograd would make not-a-number.
        self.centring = 1 - (
            torch.zeros_like(self.pull)
            if no_pull
            else torch.sqrt(self.pull / (1 + self.pull))
        )
        self.mean = _mean(features, sample_weight, self.total)
        self.rows = self.centre(features, self.mean)

    def centre(self, rows: Tensor, mean: Tensor) -> Tensor:
        """Rows ``sqrt(w_i) (row_i - centring * mean)``."""
        centred = rows - (self.centring[..., None] * mean)[..., None, :]
        if self.sample_weight is None:
            return centred
        return centred.mul_(self.sample_weight.sqrt()[..., None])

    def bias_of(self, step: Tensor, right_side: Tensor) -> Tensor:
        """Give the bias's part of a solution, from the weight's."""
        rest = right_side - (self.mean[..., None, :] @ step)[..., 0, :]
        bias_step: Tensor = rest / (1 + self.pull[..., None])
        return bias_step

    def slopes(
        self, system: System, step: Tensor, bias_step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Differentiate a solution by the logarithm of prox."""
        # The step solves A step = r, so that its slope solves A slope = -A' step,
        # where A' is the pull itself; the bias is eliminated as before.
        bias_side = -self.pull[..., None] * bias_step
        shared = self.total[..., None] * bias_side / (1 + self.pull[..., None])
        system.mixed = False  # a slope needs no refinement
        weight_slope = system.solve(
            -system.pull * step - self.mean[..., :, None] * shared[..., None, :]
        )
        return weight_slope, self.bias_of(weight_slope, bias_side)


def like(tensor: Tensor, value: float | Tensor) -> Tensor:
    """Give a number the dtype and device of a tensor, without rounding on the way.

    A plain one is made on the device: to send it would wait for the device.
    """
    if isinstance(value, float | int):
        return tensor.new_full((), value)
    return torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _total(rows: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return rows.new_full((), rows.shape[-2])
    return weight.sum(-1)


def _energy(features: Tensor, weight: Tensor | None, total: Tensor) -> Tensor:
    if weight is None:
        flat = features.flatten(-2)
        square = torch.linalg.vecdot(flat, flat)
    else:
        square = torch.linalg.vecdot(weight, torch.linalg.vecdot(features, features))
    energy: Tensor = (square / total + 1) / (features.shape[-1] + 1)
    return energy


def _mean(rows: Tensor, weight: Tensor | None, total: Tensor) -> Tensor:
    if weight is None:
        return rows.mean(-2)
    return torch.matmul(weight[..., None, :], rows)[..., 0, :] / total[..., None]
