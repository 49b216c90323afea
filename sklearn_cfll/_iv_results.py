"""What the instrumental variable regressor keeps of a fit, and tells of it."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._device import own_settings
from sklearn_cfll._iv_diagnostics import (
    diagnose,
    unexplained_shares,
    warn_of_few_rows,
    warn_of_memorising,
    warn_of_weak_instruments,
)
from sklearn_cfll._iv_final import ExactStages
from sklearn_cfll._iv_network import IVEnsemble
from sklearn_cfll._iv_predicting import IVPredicting
from sklearn_cfll._iv_problem import IVProblem
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll._iv_summary import summarise
from sklearn_cfll._iv_training import IVTraining
from sklearn_cfll._iv_unseen import (
    RowPredictions,
    mean_predictions,
    predictions_of_unseen,
)
from sklearn_cfll._validation import read_column, read_weights, weighed_rows


class IVResults(IVPredicting):
    """Publishes a fit, and diagnoses it."""

    _cov_type: str

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
            made["instrument_backbone"] = defaults.instrument_backbone()
        if made["covariate_backbone"] is None:
            made["covariate_backbone"] = defaults.covariate_backbone()
        return made

    # Publishing -----------------------------------------------------------------

    def _finish(
        self, ensemble: IVEnsemble, problem: IVProblem, training: IVTraining | None
    ) -> None:
        """Solve both stages, diagnose them on held-out rows, and solve on all."""
        self.network_ = ensemble
        self.history_ = [] if training is None else training.history
        self.n_iter_ = len(self.history_)
        self.n_recoveries_ = 0 if training is None else training.n_recoveries
        self.endogenous_ = self._columns.endogenous
        self._dtype = problem.dtype
        rows = problem.rows(ensemble.scales)
        stages = ExactStages(
            ensemble,
            instrument_alpha=self.instrument_alpha,
            alpha=self.alpha,
            shrink_to=self.shrink_to,
            unit=problem.unit,
        )
        self.diagnostics_ = self._solve_and_diagnose(stages, rows, problem)
        stages.warn_if_flat()
        self._publish(stages, rows)
        warn_of_few_rows(self.diagnostics_, rows.inputs.shape[1])
        warn_of_weak_instruments(self.diagnostics_)
        shares = self.diagnostics_["unexplained"]
        if problem.held_out.shape[1] >= defaults.FEW_HELD_OUT:
            warn_of_memorising(shares["train"], shares["unseen"])

    def _solve_and_diagnose(
        self, stages: ExactStages, rows: StageRows, problem: IVProblem
    ) -> dict[str, Any]:
        ensemble, generator = stages.ensemble, problem.generator()
        everything = [rows] * len(ensemble.networks)
        device = rows.treatment.device
        held = [torch.as_tensor(i, device=device) for i in problem.held_out]
        if not problem.held_out.size:
            stages.solve(everything)
            shares = {"train": unexplained_shares(ensemble, everything), "unseen": None}
            some = rows.evenly(defaults.tested_rows(rows.n_columns))
            if ensemble.learns_instruments:
                some = some.evenly(defaults.DIAGNOSTIC_ROWS)
            predictions = mean_predictions(
                ensemble, some, generator, column_alphas=stages.column_alphas
            )
            kind = "training" if ensemble.learns else "all"
            found = self._diagnosed(ensemble, some, predictions, kind)
            return {**found, "unexplained": shares}
        own = [rows.take(torch.as_tensor(i, device=device)) for i in problem.train]
        others = [rows.take(i) for i in held]
        few = problem.held_out.size < defaults.FEW_HELD_OUT
        stages.solve(own, None if few else others)
        shares = {
            "train": unexplained_shares(ensemble, own),
            "unseen": unexplained_shares(ensemble, others),
        }
        known, predictions = predictions_of_unseen(ensemble, rows, held, generator)
        found = self._diagnosed(ensemble, known, predictions, "held-out")
        stages.solve(everything)
        return {**found, "unexplained": shares}

    def _publish(self, stages: ExactStages, rows: StageRows) -> None:
        covariance = stages.covariance(rows, robust=self.cov_type == "robust")
        self._head_mean, self._head_covariance = covariance
        self._cov_type = self.cov_type
        self.instrument_alpha_ = float(stages.instrument_alpha)
        self.column_alphas_ = stages.column_alphas.cpu().numpy()
        self.alpha_, self.plain_alpha_ = float(stages.alpha), float(stages.plain_alpha)
        # In the units of y; where the features are columns, those of X, too.
        scale, mean = float(self._targets.scale[0]), float(self._targets.mean[0])
        shift, unit = self._feature_units()
        networks = stages.ensemble.networks
        weights = torch.stack([n.second.weight[:, 0] for n in networks])
        weights = weights / len(networks)
        errors = covariance.of_weight / len(networks)
        if self._is_linear:
            weights, errors = weights.sum(0), covariance.of_mean_weight
        bias = torch.cat([n.second.bias for n in networks]).mean()
        weight = weights.flatten().cpu().numpy() / unit
        self.coef_ = weight * scale
        self.intercept_ = float(bias - weight @ shift) * scale + mean
        self.coef_std_ = errors.flatten().cpu().numpy() / unit * scale
        origin = torch.as_tensor(-shift / unit).to(covariance.mean)
        size = covariance.mean.shape[1]
        origin = origin.reshape(-1, 1, size).expand(len(networks), 1, size)
        self.intercept_std_ = float(covariance.deviation(origin)[0]) * scale

    # Diagnostics ----------------------------------------------------------------

    def _diagnosed(
        self,
        ensemble: IVEnsemble,
        rows: StageRows,
        predictions: RowPredictions,
        kind: str,
    ) -> dict[str, Any]:
        """Diagnose on rows, with the names of the columns and in the units of y."""
        robust, seen = self.cov_type == "robust", kind == "training"
        found = diagnose(ensemble, rows, predictions, robust=robust, seen=seen)
        if found["first_stage"] is not None:
            names = self._names["endogenous"]
            found["first_stage"] = dict(zip(names, found["first_stage"], strict=True))
        found["non_iv_difference"] *= float(self._targets.scale[0])
        return {"rows": kind, "n_rows": len(rows), **found}

    @own_settings()
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
            "first_stage" has for each endogenous column the "partial_r2", the
            "statistic" and the "p_value" of the F test (with ``cov_type="robust"`` by
            the HC3 covariance), and its degrees of freedom "dof" and "dof_residual".
            Where the instrument networks are trained, the instruments tested are their
            predictions of the columns, and what is owed to the exogenous columns is
            controlled for: these columns, and the predictions' mean over instruments of
            other rows. (``diagnostics_`` of rows that the networks have seen tests the
            instruments as they are.) "cragg_donald" is the least eigenvalue that goes
            with the Fs, those that aren't robust. "durbin_wu_hausman" tests whether the
            columns are exogenous after all: whether the residuals of stage 1 explain
            what X, the structural fit and the fit without instruments leave of y.
            "overidentification" tests whether the instruments explain the structural
            residuals (Sargan's test; with ``cov_type="robust"`` Wooldridge's); None
            where the model is just identified. "non_iv_difference" is the root mean
            square, in units of y, of the difference between the predictions and those
            of the same features without instruments. Of tables of more than 50,000
            rows and 67 million numbers evenly spaced rows are taken.
        """
        check_is_fitted(self)
        y = read_column(y)
        check_consistent_length(X, y)
        weight = read_weights(sample_weight, y)
        X, y, instruments, weight = weighed_rows(X, y, instruments, weight)
        rows = self._rows_of(X, y, instruments, weight)
        rows = rows.evenly(defaults.tested_rows(rows.n_columns))
        ensemble = self.network_.eval()
        generator = torch.Generator().manual_seed(0)
        predictions = mean_predictions(ensemble, rows, generator)
        return self._diagnosed(ensemble, rows, predictions, "further")

    def summary(self) -> str:
        """Describe the fit: columns, coefficients where it is linear, diagnostics.

        Returns
        -------
        text : str
        """
        check_is_fitted(self)
        return summarise(self)
