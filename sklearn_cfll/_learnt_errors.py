"""What the regressor's exact head learns of its own errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._conformal import ConformalScores
from sklearn_cfll._problem import Problem
from sklearn_cfll._stream import points_of, rows_weight, stream
from sklearn_cfll._unseen import (
    UnseenRows,
    errors_left_out,
    errors_on,
    left_out,
    unseen_rows,
)
from sklearn_cfll.functional.outputs import weighted_sum
from sklearn_cfll.functional.paths import AnyPath
from sklearn_cfll.functional.posterior import (
    HeadPosterior,
    effective_dof,
    fit_noise,
    log_evidence,
    noise_left,
    weight_sums,
)
from sklearn_cfll.net import CFLLNet
from sklearn_cfll.optimizers import has_learnable_parameters


class LearntErrors(BaseCFLL):
    """Noise, posterior, scores and leave-one-out of a regression."""

    _conformal: ConformalScores | None
    _noise_is_seen: bool

    def _finish(self, net: CFLLNet, problem: Problem) -> None:
        super()._finish(net, problem)
        # Leave-one-out is honest as far as the head goes, and no further.
        self._noise_is_seen = (
            problem.held_out_batches is None
            and has_learnable_parameters(net.module_.backbone)
        )

    def _learn_errors(self, net: CFLLNet, problem: Problem, path: AnyPath) -> None:
        """Fit the noise to rows that were left out, and keep the head's posterior."""
        alpha = torch.as_tensor(self.alpha_, dtype=torch.float64)
        self._posterior = HeadPosterior.of(path, alpha)
        rows = unseen_rows(net, problem, path, alpha, self._posterior)
        variance, self.posterior_scale_ = fit_noise(
            rows.residual, rows.leverage, rows.weight
        )
        few = rows.hardly_known
        if rows.held_out and few.any():
            # What the training rows say, which is too little, is better than nothing.
            others = errors_left_out(net, problem, path, alpha, self._posterior)
            least, _ = fit_noise(others.residual, others.leverage, others.weight)
            variance = torch.where(few, torch.maximum(variance, least), variance)
            variance = torch.where(few & rows.unknown, least, variance)
        self._noise_is_seen = False
        self._conformal = None
        if rows.held_out:
            points = points_of(problem.held_out_batches or problem.batches)
            self._conformal = self._scores(rows, variance, points)
        self._describe_errors(path, alpha, variance)
        for name in {"loo_predictions_", "loo_score_"} & set(vars(self)):
            delattr(self, name)  # of an earlier fit
        if self.store_loo:
            self._leave_one_out(net, problem, path, alpha)

    def _describe_errors(self, path: AnyPath, alpha: Tensor, variance: Tensor) -> None:
        """Set what the path and the noise's variance (k,) tell."""
        scale = self._targets.scale
        self.noise_ = self._shaped(variance.sqrt().numpy() * scale)
        self.effective_dof_ = self._shaped(effective_dof(path, alpha).cpu().numpy())
        density = log_evidence(path, alpha, variance).cpu().numpy()
        n_contrasts = weight_sums(path).cpu().numpy() - 1
        self.log_evidence_ = self._shaped(density - n_contrasts * np.log(scale))

    def _unlearnt_noise(self, problem: Problem | None) -> Tensor | None:
        """Fit the noise's variance (k,) to a chunk before it is learnt.

        None where there is no need: where the backbone has not moved with a stream.
        """
        if problem is None or not (self._sums.streamed and self._sums.stepped):
            return None
        rows = errors_on(self.net_, problem.batches, self._posterior)
        weight = rows.weight.reshape(len(rows.residual), -1)
        relative = weight / (1 + rows.leverage)
        square, total = weighted_sum(relative, rows.residual.square()), weight.sum(0)
        last = self._noise_variance()
        return torch.where(total > 0, square / total.clamp_min(1e-300), last)

    def _noise_variance(self) -> Tensor:
        """Variance (k,) of the noise, for targets as they are encoded."""
        noise = np.reshape(self.noise_, -1) / self._targets.scale
        return torch.as_tensor(noise, device="cpu").square()

    def _mean_noise(self, unlearnt: Tensor, n_rows: int) -> Tensor:
        """Average over the chunks, of which later ones weigh more.

        Each counts in proportion to the rows up to it: the head gets better as they
        come. A noise of rows that the backbone had seen does not count.
        """
        if self._noise_is_seen:
            return unlearnt
        share = min(1.0, 2 * n_rows / (self._sums.n_rows + n_rows))
        return (1 - share) * self._noise_variance() + share * unlearnt

    def _update_errors(
        self, net: CFLLNet, problem: Problem, path: AnyPath, unlearnt: Tensor | None
    ) -> None:
        """Bring the posterior up to date, once the head has moved with its sums.

        The noise is that of fit. In a stream that had none it is what the errors on
        the rows leave after the head's degrees of freedom, and where the backbone moves
        with the stream, what chunks show that were predicted before they were learnt.

        Parameters
        ----------
        unlearnt : Tensor of shape (k,) or None
            Variance of the noise by the new chunk, from :meth:`_unlearnt_noise`.
        """
        sums = self._sums
        path = sums.path_per_row(path)
        alpha = torch.as_tensor(self.alpha_, dtype=torch.float64)
        self._posterior = HeadPosterior.of(path, alpha)
        if not sums.streamed:
            variance = self._noise_variance()
        elif unlearnt is not None:
            variance = self._mean_noise(unlearnt, problem.batches.n_samples)
            self._noise_is_seen = False
        elif sums.stepped and not vars(self).get("_noise_is_seen", True):
            variance = self._noise_variance()  # of rows that had not been learnt
        else:
            head = net.module_.head
            variance = noise_left(path, alpha, head.weight.cpu(), head.bias.cpu())
            # A single row is the mean itself, and leaves no error to tell of the noise.
            untold = weight_sums(path) <= 1 + 1e-6
            if untold.any():
                known = "noise_" in vars(self)
                last = self._noise_variance() if known else torch.ones_like(variance)
                variance = torch.where(untold, last, variance)
            self.posterior_scale_, self._noise_is_seen = 1.0, sums.stepped
        self._describe_errors(path, alpha, variance)
        if sums.stale or sums.aged:
            del self.log_evidence_  # which is of rows, not of what is left of them

    def _scores(
        self, rows: UnseenRows, variance: Tensor, points: int
    ) -> ConformalScores:
        """Errors of held-out rows in units of their standard deviations.

        Samples are exchangeable, the points of a grid are not: the largest counts.
        """
        spread = variance * (1 + self.posterior_scale_ * rows.leverage)
        scores = rows.residual.abs() / spread.sqrt()
        scores[rows.weight.reshape(len(scores), -1).expand_as(scores) == 0] = np.nan
        by_sample = scores.reshape(-1, points, scores.shape[1]).amax(1)
        return ConformalScores.of(by_sample.numpy())

    def _leave_one_out(
        self, net: CFLLNet, problem: Problem, path: AnyPath, alpha: Tensor
    ) -> None:
        """Predict each training row by the head that is solved without it."""
        rows = problem.train
        parts = []
        with torch.no_grad():
            for features, targets, weight in stream(net, problem.batches):
                weight = rows_weight(weight, targets)
                residual = left_out(
                    net, problem, path, alpha, (features, targets, weight)
                )
                parts.append((targets.to(residual) - residual).cpu())
        predictions = self._targets.decode(torch.cat(parts).numpy())
        self.loo_score_ = self._targets.score(
            predictions, rows.chosen(rows.y), rows.chosen(rows.weight)
        )
        if rows.index is not None:
            # The head has not seen the others, so that there is nothing to leave out.
            everywhere = np.empty((len(rows.X), *predictions.shape[1:]))
            unseen = np.setdiff1d(np.arange(len(rows.X)), rows.index)
            everywhere[rows.index] = predictions
            outputs = self._run(rows.X[unseen], *self._predicting_head())
            everywhere[unseen] = self._targets.decode(outputs)
            predictions = everywhere
        self.loo_predictions_ = predictions

    def _take_path(self, problem: Problem) -> None:
        """Give the errors of the path of alpha the units of y."""
        batches = {
            "held_out": problem.held_out_batches,
            "leave_one_out": problem.batches,
            "cross_validation": problem.batches,
        }
        for name, rows in batches.items():
            errors = (self.alpha_path_ or {}).get(name)
            if errors is None or rows is None:
                continue
            errors *= np.square(self._targets.scale)
            weight = rows.sample_weight
            if weight is not None and weight.ndim > 1:
                # They are relative to the mean weight of the outputs.
                total = weight.double().sum(0).cpu().numpy()
                total[total == 0] = np.nan
                errors *= np.nan_to_num(total).mean() / total

    def _shaped(self, values: NDArray[np.float64]) -> Any:
        """Give numbers (1,) or (k,) as a float, or in the shape of a row of y."""
        if self._targets.shape == () or values.size < self.n_outputs_:
            return float(values[0])
        return values.copy()
