"""Tests of instruments: relevance, endogeneity, over-identifying restrictions.

All take rows of features as tensors, in float64, and weights of mean one. A constant is
added to what is controlled for. Columns that others span to rounding are left out, and
count for no degree of freedom.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.special import chdtrc, fdtrc
from torch import Tensor

from sklearn_cfll.functional.projections import controlled, orthonormal, without

# Least share of its error that a row may leave beside its pull on its own prediction.
_LEAST_KEPT = 1e-10


class LinearTest(NamedTuple):
    """A statistic and what is expected of it where the null hypothesis holds.

    Attributes
    ----------
    statistic, p_value : float
    dof : int
        Degrees of freedom of the numerator, or of the chi-squared distribution.
    dof_residual : int or None
        Degrees of freedom of the denominator of an F statistic.
    """

    statistic: float
    p_value: float
    dof: int
    dof_residual: int | None = None


class FirstStage(NamedTuple):
    """How well instruments predict endogenous columns, beyond the controls.

    Attributes
    ----------
    partial_r2 : tuple of float
        Share of the variance of each column, as far as the controls leave it, that the
        instruments explain.
    tests : tuple of LinearTest
        Each column's F test that they explain none.
    cragg_donald : float
        The least eigenvalue of the matrix of the F statistics that take the errors for
        homoscedastic: what the instruments do for the combination of columns that they
        predict worst. With one column it is its F.
    """

    partial_r2: tuple[float, ...]
    tests: tuple[LinearTest, ...]
    cragg_donald: float


def first_stage(
    endogenous: Tensor,
    instruments: Tensor,
    controls: Tensor | None = None,
    sample_weight: Tensor | None = None,
    *,
    robust: bool = False,
) -> FirstStage | None:
    """Test whether instruments predict endogenous columns.

    Parameters
    ----------
    endogenous : Tensor of shape (n, p)
    instruments : Tensor of shape (n, q)
        The excluded ones.
    controls : Tensor of shape (n, r), default=None
        Exogenous columns.
    sample_weight : Tensor of shape (n,), default=None
    robust : bool, default=False
        Whether the F tests allow for heteroscedastic errors (HC3).

    Returns
    -------
    result : FirstStage or None
        None where the rows are too few.

    References
    ----------
    Cragg, Donald, "Testing Identifiability and Specification in Instrumental Variable
    Models", Econometric Theory 9, 1993.

    MacKinnon, White, "Some Heteroskedasticity-Consistent Covariance Matrix Estimators
    with Improved Finite Sample Properties", Journal of Econometrics 29, 1985: HC3.
    """
    basis, root = controlled(controls, endogenous, sample_weight)
    left = without(endogenous.double() * root, basis)
    excluded = orthonormal(without(instruments.double() * root, basis), instruments)
    dof, rest = excluded.shape[1], len(left) - basis.shape[1] - excluded.shape[1]
    if dof == 0 or rest < 1:
        return None
    fitted = excluded.mT @ left
    unexplained = left - excluded @ fitted
    explained, total = fitted.square().sum(0), left.square().sum(0)
    errors = unexplained.square().sum(0)
    # Many instruments follow their own rows: without HC3's factor they would seem
    # strong, with an F of 3 in place of 1 for thirty of them on sixty rows.
    own = basis.square().sum(1) + excluded.square().sum(1)
    alone = unexplained / (1 - own).clamp_min(_LEAST_KEPT)[:, None]
    tests = tuple(
        _wald_test(excluded, fitted[:, i], alone[:, i], rest)
        if robust and errors[i] > 0
        else _f_test(float(explained[i]), float(errors[i]), dof, rest)
        for i in range(len(errors))
    )
    return FirstStage(
        tuple((explained / total.clamp_min(_tiny())).tolist()),
        tests,
        _least_eigenvalue(fitted, unexplained) * rest / dof,
    )


def durbin_wu_hausman(
    targets: Tensor,
    features: Tensor,
    first_stage_residuals: Tensor,
    sample_weight: Tensor | None = None,
    *,
    robust: bool = False,
) -> LinearTest | None:
    """Test whether the endogenous columns are endogenous, by their stage-1 residuals.

    Under the null hypothesis the regression without instruments is consistent, and the
    residuals of stage 1 add nothing to it.

    Parameters
    ----------
    targets : Tensor of shape (n,)
    features : Tensor of shape (n, d)
        Stage-2 features at the actual treatment.
    first_stage_residuals : Tensor of shape (n, p)
    sample_weight : Tensor of shape (n,), default=None
    robust : bool, default=False
        Whether to allow for heteroscedastic errors.

    Returns
    -------
    result : LinearTest or None
        An F test; None where the rows are too few, or the residuals are zero.

    References
    ----------
    Wooldridge, "Econometric Analysis of Cross Section and Panel Data", 2nd edition,
    MIT Press 2010, section 6.3.1: the regression-based form of the test.
    """
    basis, root = controlled(features, targets, sample_weight)
    added = first_stage_residuals.double() * root
    added = orthonormal(without(added, basis), added)
    left = without(targets.double()[:, None] * root, basis)
    dof, rest = added.shape[1], len(left) - basis.shape[1] - added.shape[1]
    if dof == 0 or rest < 1:
        return None
    fitted = added.mT @ left
    errors = left - added @ fitted
    if not robust:
        gain, error = fitted.square().sum(), errors.square().sum()
        return _f_test(float(gain), float(error), dof, rest)
    errors = errors * (len(left) / rest) ** 0.5
    return _wald_test(added, fitted[:, 0], errors[:, 0], rest)


def overidentification(
    residuals: Tensor,
    predicted: Tensor,
    instruments: Tensor,
    sample_weight: Tensor | None = None,
    *,
    robust: bool = False,
) -> LinearTest | None:
    """Test whether the instruments that weren't needed agree with those that were.

    Under the null hypothesis no instrument explains the structural residuals.

    Parameters
    ----------
    residuals : Tensor of shape (n,)
        Targets less structural predictions.
    predicted : Tensor of shape (n, d)
        Stage-2 features with the treatment as stage 1 predicts it.
    instruments : Tensor of shape (n, q)
        All of them, or their features.
    sample_weight : Tensor of shape (n,), default=None
    robust : bool, default=False
        Whether to allow for heteroscedastic errors (Wooldridge's score test) or not
        (Sargan's).

    Returns
    -------
    result : LinearTest or None
        A chi-squared test; None where the model is just identified.

    References
    ----------
    Sargan, "The Estimation of Economic Relationships Using Instrumental Variables",
    Econometrica 26, 1958.

    Wooldridge, "Score Diagnostics for Linear Models Estimated by Two Stage Least
    Squares", in Advances in Econometrics and Quantitative Economics, Blackwell 1995.
    """
    basis, root = controlled(predicted, residuals, sample_weight)
    spare = instruments.double() * root
    spare = orthonormal(without(spare, basis), spare)
    dof = spare.shape[1]
    if dof == 0 or len(residuals) <= basis.shape[1] + dof:
        return None
    errors = residuals.double()[:, None] * root
    sums = spare.mT @ errors
    if robust:
        scores = spare * errors
        solution = torch.linalg.lstsq(scores.mT @ scores, sums).solution
        statistic = float((sums * solution).sum())
    else:
        square = errors.square().mean().clamp_min(_tiny())
        statistic = float(sums.square().sum() / square)
    return LinearTest(statistic, float(chdtrc(dof, statistic)), dof)


def _wald_test(basis: Tensor, fitted: Tensor, errors: Tensor, rest: int) -> LinearTest:
    """Test whether coefficients (m,) of an orthonormal basis (n, m) are zero.

    Errors (n,) may differ in their size, and are of the size of the true ones.
    """
    dof, scores = len(fitted), basis * errors[:, None]
    solution = torch.linalg.lstsq(scores.mT @ scores, fitted[:, None]).solution
    statistic = float(fitted @ solution[:, 0]) / dof
    return LinearTest(statistic, float(fdtrc(dof, rest, statistic)), dof, rest)


def _f_test(gain: float, error: float, dof: int, rest: int) -> LinearTest:
    statistic = (gain / dof) / max(error / rest, _tiny())
    return LinearTest(statistic, float(fdtrc(dof, rest, statistic)), dof, rest)


def _least_eigenvalue(fitted: Tensor, unexplained: Tensor) -> float:
    """Least eigenvalue of explained by unexplained products."""
    if len(fitted) < fitted.shape[1]:
        return 0.0
    values, vectors = torch.linalg.eigh(unexplained.mT @ unexplained)
    whitening = vectors / values.clamp_min(_tiny()).sqrt()
    return float(torch.linalg.svdvals(fitted @ whitening)[-1].square())


def _tiny() -> float:
    return torch.finfo(torch.float64).tiny
