"""What the instrumental variable regressor keeps of a fit, and tells of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted, column_or_1d

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_diagnostics import (
    diagnose,
    unexplained_shares,
    warn_of_memorising,
    warn_of_weak_instruments,
)
from sklearn_cfll._iv_final import ExactStages, covariance_of, solve_stages
from sklearn_cfll._iv_fitting import count_of_a_weight
from sklearn_cfll._iv_network import IVNetwork
from sklearn_cfll._iv_predicting import IVPredicting
from sklearn_cfll._iv_problem import IVProblem
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll._iv_summary import summarise
from sklearn_cfll._iv_training import IVTraining
from sklearn_cfll._validation import read_weights


class IVResults(IVPredicting):
    """Publishes a fit, and diagnoses it."""

    def _backbones(self, rows: StageRows) -> dict[str, Any]:
        """Backbones by the name of their parameter, the default ones filled in."""
        made = {
            "backbone": self.backbone,
            "instrument_backbone": self.instrument_backbone,
            "covariate_backbone": self.covariate_backbone,
        }
        if made["backbone"] is None:
            made["backbone"] = defaults.treatment_backbone(rows.treatment.shape[1])
        if made["instrument_backbone"] is None:
            made["instrument_backbone"] = defaults.instrument_backbone(len(rows))
        if made["covariate_backbone"] is None:
            made["covariate_backbone"] = defaults.covariate_backbone()
        return made

    # Publishing -----------------------------------------------------------------

    def _finish(
        self, network: IVNetwork, problem: IVProblem, training: IVTraining | None
    ) -> None:
        """Solve both stages, diagnose them on held-out rows, and solve on all."""
        self.network_ = network
        self.history_ = [] if training is None else training.history
        self.n_iter_ = len(self.history_)
        self.n_recoveries_ = 0 if training is None else training.n_recoveries
        self.endogenous_ = self._columns.endogenous
        self._dtype = problem.dtype
        rows = problem.rows(network.scales, problem.train)
        stages = self._solve(network, rows, problem)
        train, unseen = unexplained_shares(network, rows), None
        if len(problem.held_out):
            held_out = problem.rows(network.scales, problem.held_out)
            found = self._diagnosed(network, stages, held_out, True, problem)
            unseen = unexplained_shares(network, held_out)
            everything = np.arange(len(problem.X))
            rows = problem.rows(network.scales, everything)
            stages = self._solve(network, rows, problem)
            if found["durbin_wu_hausman"] is None:
                seen = self._diagnosed(network, stages, rows, False, problem)
                for name in ("durbin_wu_hausman", "overidentification", "tests_on"):
                    found[name] = seen[name]
        else:
            found = self._diagnosed(network, stages, rows, False, problem)
        unexplained = {"train": train, "unseen": unseen}
        self.diagnostics_ = {**found, "unexplained": unexplained}
        self._publish(network, rows, stages)
        warn_of_weak_instruments(found)
        if unseen is not None and len(problem.held_out) >= defaults.FEW_HELD_OUT:
            warn_of_memorising(train, unseen)

    def _solve(
        self, network: IVNetwork, rows: StageRows, problem: IVProblem
    ) -> ExactStages:
        return solve_stages(
            network,
            rows,
            instrument_alpha=self.instrument_alpha,
            alpha=self.alpha,
            unit=count_of_a_weight(problem.weight),
        )

    def _publish(
        self, network: IVNetwork, rows: StageRows, stages: ExactStages
    ) -> None:
        robust = self.cov_type == "robust"
        covariance = covariance_of(network, rows, stages, robust=robust)
        self._head_mean, self._head_covariance = covariance
        self._stage_alphas = stages.instrument_alpha, stages.alpha
        self.instrument_alpha_, self.alpha_ = self._stage_alphas
        # In the units of y; where the features are columns, those of X, too.
        scale, mean = float(self._targets.scale[0]), float(self._targets.mean[0])
        shift, unit = self._feature_units()
        weight = network.second.weight[:, 0].cpu().numpy() / unit
        bias = float(network.second.bias[0]) - weight @ shift
        self.coef_ = weight * scale
        self.intercept_ = bias * scale + mean
        self.coef_std_ = covariance.of_weight.cpu().numpy() / unit * scale
        origin = torch.as_tensor(-shift / unit).to(covariance.mean)
        self.intercept_std_ = float(covariance.deviation(origin[None])[0]) * scale

    # Diagnostics ----------------------------------------------------------------

    def _diagnosed(
        self,
        network: IVNetwork,
        stages: ExactStages | None,
        rows: StageRows,
        unseen: bool,
        problem: IVProblem | None = None,
    ) -> dict[str, Any]:
        """Diagnose on rows, with the names of the columns and in the units of y."""
        alphas = (
            self._stage_alphas
            if stages is None
            else (stages.instrument_alpha, stages.alpha)
        )
        found = diagnose(
            network,
            alphas,
            rows,
            unseen=unseen,
            robust=self.cov_type == "robust",
            generator=torch.Generator().manual_seed(problem.seed if problem else 0),
        )
        if found["first_stage"] is not None:
            names = self._names["endogenous"]
            tests = zip(names, found["first_stage"], strict=True)
            found["first_stage"] = dict(tests)
        found["non_iv_difference"] *= float(self._targets.scale[0])
        return found

    def diagnose(
        self, X: Any, y: Any, *, instruments: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Test the instruments on rows that the fit has not seen.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        instruments : array-like of shape (n_samples, n_instruments)
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        diagnostics : dict
            "first_stage" has for each endogenous column the "partial_r2", and
            "statistic" and "p_value" of the F test. Where the instrument network is
            trained, the instruments tested are its predictions of the columns, and
            what the exogenous columns predict is controlled for. "cragg_donald" is the
            least eigenvalue that goes with the Fs. "durbin_wu_hausman" tests whether
            the columns are exogenous after all, "overidentification" whether the
            instruments agree (Sargan's test; with ``cov_type="robust"``
            Wooldridge's); None where the rows are too few or, for the latter, the model
            is just identified. "non_iv_difference" is the root mean square, in units of
            y, of what the instruments change of the predictions.
        """
        check_is_fitted(self)
        y = column_or_1d(y, dtype=np.float64, warn=True)
        weight = read_weights(sample_weight, y)
        rows = self._rows_of(X, y, instruments, weight)
        return self._diagnosed(self.network_.eval(), None, rows, True)

    def summary(self) -> str:
        """Describe the fit: columns, coefficients where it is linear, diagnostics.

        Returns
        -------
        text : str
        """
        check_is_fitted(self)
        return summarise(self)
