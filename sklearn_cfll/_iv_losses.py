"""The losses of both stages on a batch, at heads that are solved on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sklearn_cfll._iv_network import IVEnsemble
from sklearn_cfll._iv_rows import StageRows, weighted_mean
from sklearn_cfll._iv_stacks import Stack
from sklearn_cfll.functional.instrument import first_stage_update
from sklearn_cfll.functional.proximal import solve_update
from sklearn_cfll.prox import Prox


@dataclass(frozen=True)
class Penalties:
    """Ridges and pulls of the heads of both stages in the training.

    Attributes
    ----------
    instrument_alpha, alpha : float
    instrument_prox, prox : Prox
    """

    instrument_alpha: float
    alpha: float
    instrument_prox: Prox
    prox: Prox


class Trainee(nn.Module):
    """The networks of all members, stacked, and the heads that their batches move.

    Parameters
    ----------
    ensemble : IVEnsemble
    together : bool
        Whether the members' layers may be one product.

    Attributes
    ----------
    n_failures : Tensor of shape ()
        Solves that had no solution.
    """

    first_weight: Tensor
    first_bias: Tensor
    weight: Tensor
    bias: Tensor
    n_failures: Tensor

    def __init__(self, ensemble: IVEnsemble, together: bool) -> None:
        super().__init__()
        networks = ensemble.networks
        self.treatment = Stack([n.treatment for n in networks], together)
        self.instrument = Stack([n.instrument for n in networks], together)
        covariates = [n.covariate for n in networks if n.covariate is not None]
        self.covariate = Stack(covariates, together) if covariates else None
        self.combiner = ensemble.combiner
        for name, parts in (
            ("first_weight", [n.first.weight for n in networks]),
            ("first_bias", [n.first.bias for n in networks]),
            ("weight", [n.second.weight for n in networks]),
            ("bias", [n.second.bias for n in networks]),
        ):
            self.register_buffer(name, torch.stack(parts))
        self.register_buffer("n_failures", torch.zeros((), dtype=torch.int64))

    def covariates(self, exogenous: Tensor) -> Tensor | None:
        """Features of the exogenous columns, where there are any."""
        return None if self.covariate is None else self.covariate(exogenous)

    def write_back(self) -> None:
        """Give the members their networks."""
        for stack in (self.treatment, self.instrument, self.covariate):
            if stack is not None:
                stack.write_back()

    @torch.no_grad()
    def count_failures(self, solved: Tensor | bool) -> None:
        """Count the members whose system had no solution."""
        failed = ~torch.as_tensor(solved, device=self.n_failures.device)
        self.n_failures = self.n_failures + failed.sum()


# The rows of both stages; the same ones unless the stages share none.
Pair = tuple[StageRows, StageRows]


def losses_of(
    trainee: Trainee, pair: Pair, penalties: Penalties, progress: float
) -> tuple[Tensor, Tensor]:
    """Solve both heads on a batch, pulled to the last ones; give the losses at them.

    The gradient of stage 2 reaches the treatment network through the solve of stage 1,
    in which the instrument features are held fixed; that of stage 1 reaches the
    instrument network alone. The stage-2 head minimises its own loss, so that its
    gradient term vanishes (envelope theorem), and it is held fixed.

    Returns
    -------
    first, second : Tensor of shape (n_members,)
    """
    rows, others = pair
    psi, phi = trainee.treatment(rows.treatment), trainee.instrument(rows.inputs)
    solved = first_stage_update(
        phi,
        psi,
        trainee.first_weight,
        trainee.first_bias,
        alpha=penalties.instrument_alpha,
        prox=penalties.instrument_prox.at(progress),  # type: ignore[arg-type]
        sample_weight=rows.weight,
    )
    first = first_loss(rows, phi, psi.detach(), solved.weight, solved.bias)
    if others is not rows:
        with torch.no_grad():
            phi = trainee.instrument(others.inputs)
    # The solves are in float64, and what is differentiated in the networks' precision.
    predicted = phi.detach() @ solved.weight.to(phi) + solved.bias.to(phi)[..., None, :]
    features = trainee.combiner(predicted, trainee.covariates(others.exogenous))
    head = solve_update(
        features.detach(),
        others.targets,
        trainee.weight,
        trainee.bias,
        alpha=penalties.alpha,
        prox=penalties.prox.at(progress),  # type: ignore[arg-type]
        sample_weight=others.weight,
    )
    trainee.count_failures(solved.solved)
    trainee.count_failures(head.solved)
    trainee.first_weight, trainee.first_bias = (
        solved.weight.detach(),
        solved.bias.detach(),
    )
    trainee.weight, trainee.bias = head.weight, head.bias
    fitted = features @ head.weight.to(features) + head.bias.to(features)[..., None, :]
    error = fitted - others.targets.to(features)
    return first, weighted_mean(error.square(), others.weight).sum(-1)


def first_loss(
    rows: StageRows, phi: Tensor, psi: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Loss (...) of stage 1 at a head that is held fixed.

    The sum over the treatment features of their squared errors, each over the feature's
    variance.
    """
    weight, bias = weight.detach().to(phi), bias.detach().to(phi)
    mean = weighted_mean(psi, rows.weight)[..., None, :]
    variance = weighted_mean((psi - mean).square(), rows.weight)
    fitted = phi @ weight + bias[..., None, :]
    error = weighted_mean((fitted - psi).square(), rows.weight)
    least = torch.finfo(torch.float32).eps
    return (error / variance.clamp_min(least)).sum(-1)
