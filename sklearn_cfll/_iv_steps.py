"""Gradient steps of both stages: on minibatches, and on all rows at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_losses import Pair, Penalties, Trainee, first_loss, losses_of
from sklearn_cfll._iv_rows import MemberRows
from sklearn_cfll.functional.instrument import first_stage_update
from sklearn_cfll.prox import Prox

# Computes, at a progress from zero to one, the loss to descend, and the mean losses
# (2,) of both stages, each over the variance of what it predicts.
Compute = Callable[[float], tuple[Tensor, Tensor]]


class Steps:
    """The steps of one pass.

    Parameters
    ----------
    trainee : Trainee
    pair : pair of MemberRows
        The rows of both stages.
    penalties : Penalties

    Attributes
    ----------
    modules : dict of str to torch.nn.Module
        What each kind of step trains.
    complete : str
        The kind that solves the heads of both stages and knows both losses, so that it
        is computed where it has nothing to train, too.
    """

    modules: dict[str, nn.Module]
    complete: str

    def __init__(
        self,
        trainee: Trainee,
        pair: tuple[MemberRows, MemberRows],
        penalties: Penalties,
    ) -> None:
        self.trainee, self.pair, self.penalties = trainee, pair, penalties

    def n_steps(self) -> int:
        """Count the steps of a pass."""
        raise NotImplementedError

    def of_pass(self) -> Iterator[tuple[str, Compute]]:
        """Yield each step: what kind it is, and what computes its loss."""
        raise NotImplementedError

    def noted(self, first: Tensor, second: Tensor) -> Tensor:
        """Mean losses over the members, that of stage 1 over the features, too."""
        n_features = self.trainee.first_weight.shape[-1]
        return torch.stack([first.detach().mean() / n_features, second.detach().mean()])


class MinibatchSteps(Steps):
    """Both stages' losses on a minibatch train all networks in one step.

    Parameters
    ----------
    trainee, pair, penalties
        As :class:`Steps` takes them.
    batch_size : int
    generator : torch.Generator
        Shuffles the rows.
    """

    complete = "all"

    def __init__(
        self,
        trainee: Trainee,
        pair: tuple[MemberRows, MemberRows],
        penalties: Penalties,
        *,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(trainee, pair, penalties)
        self.batch_size, self.generator = batch_size, generator
        self.modules = {"all": trainee}

    def n_steps(self) -> int:
        """Count the batches of a pass."""
        return min(rows.n_batches(self.batch_size) for rows in self.pair)

    def of_pass(self) -> Iterator[tuple[str, Compute]]:
        """Yield a step for each batch."""
        rows, others = self.pair
        pairs: Iterable[Pair]
        batches = rows.batches(self.batch_size, self.generator)
        if others is rows:
            pairs = ((batch, batch) for batch in batches)
        else:
            own = others.batches(self.batch_size, self.generator)
            pairs = zip(batches, own, strict=False)
        for pair in pairs:
            yield "all", functools.partial(self._compute, pair)

    def _compute(self, pair: Pair, progress: float) -> tuple[Tensor, Tensor]:
        first, second = losses_of(self.trainee, pair, self.penalties, progress)
        return (first + second).sum(), self.noted(first, second)


class FullBatchSteps(Steps):
    """Steps on all rows with exact heads: the published full-batch method.

    Some steps on the instrument network by the loss of stage 1, then one on the others
    by that of stage 2.

    References
    ----------
    Xu et al., "Learning Deep Features in Instrumental Variable Regression", ICLR 2021,
    arXiv 2010.07154, algorithm 1.
    """

    complete = "others"

    def __init__(
        self,
        trainee: Trainee,
        pair: tuple[MemberRows, MemberRows],
        penalties: Penalties,
    ) -> None:
        exact = replace(penalties, instrument_prox=Prox(0.0), prox=Prox(0.0))
        super().__init__(trainee, pair, exact)
        others: list[nn.Module] = [trainee.treatment]
        if trainee.covariate is not None:
            others.append(trainee.covariate)
        self.modules = {
            "instrument": trainee.instrument,
            "others": nn.ModuleList(others),
        }
        first = pair[0].whole()
        self.whole = first, first if pair[1] is pair[0] else pair[1].whole()

    def n_steps(self) -> int:
        """Count the steps of a round."""
        return 1 + defaults.FULL_BATCH_INSTRUMENT_STEPS

    def of_pass(self) -> Iterator[tuple[str, Compute]]:
        """Yield the steps on the instrument network, then the one on the others."""
        with torch.no_grad():
            psi = self.trainee.treatment(self.whole[0].treatment)
        for _ in range(defaults.FULL_BATCH_INSTRUMENT_STEPS):
            yield "instrument", functools.partial(self._first, psi)
        yield "others", self._second

    def _first(self, psi: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        rows, trainee = self.whole[0], self.trainee
        phi = trainee.instrument(rows.inputs)
        with torch.no_grad():
            head = first_stage_update(
                phi,
                psi,
                trainee.first_weight,
                trainee.first_bias,
                alpha=self.penalties.instrument_alpha,
                prox=0.0,
                sample_weight=rows.weight,
            )
        trainee.count_failures(head.solved)
        loss = first_loss(rows, phi, psi, head.weight, head.bias)
        return loss.sum(), self.noted(loss, torch.full_like(loss, torch.nan))

    def _second(self, progress: float) -> tuple[Tensor, Tensor]:
        first, second = losses_of(self.trainee, self.whole, self.penalties, progress)
        return second.sum(), self.noted(first, second)
