"""Gradient steps of both stages: on minibatches, and on all rows at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_network import IVNetwork
from sklearn_cfll._iv_rows import StageRows, weighted_mean
from sklearn_cfll.functional.instrument import first_stage_update
from sklearn_cfll.head import ClosedFormHead
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


@dataclass(frozen=True)
class StageLosses:
    """Losses of one step, before it is taken.

    Attributes
    ----------
    first : Tensor of shape ()
        Stage 1: squared error of the treatment features, over their variance.
    second : Tensor of shape ()
        Stage 2: squared error of the encoded targets.
    """

    first: Tensor
    second: Tensor


# Computes, at a progress from zero to one, the loss to descend, and both stages'.
Compute = Callable[[float], tuple[Tensor, StageLosses]]

# The two sets of rows of a step; the same ones unless the stages share none.
Pair = tuple[StageRows, StageRows]


def losses_of(
    network: IVNetwork, pair: Pair, penalties: Penalties, progress: float
) -> StageLosses:
    """Solve both heads on a batch, pulled to the last ones; give the losses at them.

    The gradient of stage 2 reaches the treatment network through the solve of stage 1,
    in which the instrument features are held fixed; that of stage 1 reaches the
    instrument network alone. The stage-2 head minimises its own loss, so that its
    gradient term vanishes (envelope theorem), and it is held fixed.
    """
    rows, others = pair
    psi, phi = network.treatment(rows.treatment), network.instrument(rows.inputs)
    head = network.first
    solved = first_stage_update(
        phi,
        psi,
        head.weight,
        head.bias,
        alpha=penalties.instrument_alpha,
        prox=float(penalties.instrument_prox.at(progress)),  # type: ignore[arg-type]
        sample_weight=rows.weight,
    )
    first = first_loss(rows, phi, psi.detach(), solved.weight, solved.bias)
    wide = head.weight.dtype
    if others is not rows:
        with torch.no_grad():
            phi = network.instrument(others.inputs)
    predicted = phi.detach().to(wide) @ solved.weight + solved.bias
    features = network.combined(predicted, network.covariates(others.exogenous))
    network.second.update_(
        features,
        others.targets,
        others.weight,
        alpha=penalties.alpha,
        prox=penalties.prox.at(progress),
    )
    head.replace_(solved.weight.detach(), solved.bias.detach(), solved.solved)
    return StageLosses(first, second_loss(network.second, features, others))


def first_loss(
    rows: StageRows,
    phi: Tensor,
    psi: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Loss of stage 1 over the variance of psi, at a head that is held fixed."""
    psi = psi.to(weight.dtype)
    mean = psi.mean(0) if rows.weight is None else rows.weight @ psi / rows.weight.sum()
    variance = weighted_mean((psi - mean).square(), rows.weight)
    error = phi.to(weight.dtype) @ weight.detach() + bias.detach() - psi
    least = torch.finfo(variance.dtype).eps
    return weighted_mean(error.square(), rows.weight) / variance.clamp_min(least)


def second_loss(head: ClosedFormHead, features: Tensor, rows: StageRows) -> Tensor:
    """Loss of stage 2, at a head that is held fixed."""
    return weighted_mean((head(features) - rows.targets).square(), rows.weight)


class Steps:
    """The steps of one pass.

    Parameters
    ----------
    network : IVNetwork
    pair : pair of StageRows
        The rows of both stages.
    penalties : Penalties

    Attributes
    ----------
    modules : dict of str to torch.nn.Module
        What each kind of step trains.
    """

    modules: dict[str, nn.Module]

    def __init__(self, network: IVNetwork, pair: Pair, penalties: Penalties) -> None:
        self.network, self.pair, self.penalties = network, pair, penalties

    def n_steps(self) -> int:
        """Count the steps of a pass."""
        raise NotImplementedError

    def of_pass(self) -> Iterator[tuple[str, Compute]]:
        """Yield each step: what kind it is, and what computes its loss."""
        raise NotImplementedError


class MinibatchSteps(Steps):
    """Both stages' losses on a minibatch train all networks in one step.

    Parameters
    ----------
    network, pair, penalties
        As :class:`Steps` takes them.
    batch_size : int
    generator : torch.Generator
        Shuffles the rows.
    """

    def __init__(
        self,
        network: IVNetwork,
        pair: Pair,
        penalties: Penalties,
        *,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(network, pair, penalties)
        self.batch_size, self.generator = batch_size, generator
        self.modules = {"all": network}

    def n_steps(self) -> int:
        """Batches of a pass."""
        return min(rows.n_batches(self.batch_size) for rows in self.pair)

    def of_pass(self) -> Iterator[tuple[str, Compute]]:
        """Yield a step for each batch."""
        rows, others = self.pair
        pairs: Iterable[Pair]
        batches = rows.batches(self.batch_size, self.generator)
        if others is rows:
            pairs = ((batch, batch) for batch in batches)
        else:
            pairs = zip(
                batches, others.batches(self.batch_size, self.generator), strict=False
            )
        for pair in pairs:
            yield "all", functools.partial(self._compute, pair)

    def _compute(self, pair: Pair, progress: float) -> tuple[Tensor, StageLosses]:
        losses = losses_of(self.network, pair, self.penalties, progress)
        return losses.first + losses.second, losses


class FullBatchSteps(Steps):
    """Steps on all rows with exact heads: the published full-batch method.

    Some steps on the instrument network by the loss of stage 1, then one on the others
    by that of stage 2.

    References
    ----------
    Xu et al., "Learning Deep Features in Instrumental Variable Regression", ICLR 2021,
    arXiv 2010.07154, algorithm 1.
    """

    def __init__(self, network: IVNetwork, pair: Pair, penalties: Penalties) -> None:
        exact = replace(penalties, instrument_prox=Prox(0.0), prox=Prox(0.0))
        super().__init__(network, pair, exact)
        others = [network.treatment]
        if network.covariate is not None:
            others.append(network.covariate)
        self.modules = {
            "instrument": network.instrument,
            "others": nn.ModuleList(others),
        }

    def n_steps(self) -> int:
        """Count the steps of a round."""
        return 1 + defaults.FULL_BATCH_INSTRUMENT_STEPS

    def of_pass(self) -> Iterator[tuple[str, Compute]]:
        """Yield the steps on the instrument network, then the one on the others."""
        rows = self.pair[0]
        with torch.no_grad():
            psi = self.network.treatment(rows.treatment)
        for _ in range(defaults.FULL_BATCH_INSTRUMENT_STEPS):
            yield "instrument", functools.partial(self._first, psi)
        yield "others", self._second

    def _first(self, psi: Tensor, progress: float) -> tuple[Tensor, StageLosses]:
        rows, head = self.pair[0], self.network.first
        phi = self.network.instrument(rows.inputs)
        alpha = self.penalties.instrument_alpha
        head.update_(phi, psi, rows.weight, alpha=alpha, prox=0.0)
        loss = first_loss(rows, phi, psi, head.weight, head.bias)
        return loss, StageLosses(loss.detach(), torch.zeros_like(loss))

    def _second(self, progress: float) -> tuple[Tensor, StageLosses]:
        losses = losses_of(self.network, self.pair, self.penalties, progress)
        return losses.second, losses
