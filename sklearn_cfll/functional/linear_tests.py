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

# A column of which less than this share is left beside the others is spanned by them.
_SPANNED = 1e-8


class TestResult(NamedTuple):
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

    __test__ = False  # pytest would take the name for a class of tests


class FirstStage(NamedTuple):
    """How well instruments predict endogenous columns, beyond the controls.

    Attributes
    ----------
    partial_r2 : tuple of float
        Share of the variance of each column, as far as the controls leave it, that the
        instruments explain.
    tests : tuple of TestResult
        Each column's F test that they explain none.
    cragg_donald : float
        The least eigenvalue of the matrix of the F statistics: what the instruments do
        for the combination of columns that they predict worst. With one column it is
        its F.
    """

    partial_r2: tuple[float, ...]
    tests: tuple[TestResult, ...]
    cragg_donald: float


def first_stage(
    endogenous: Tensor,
    instruments: Tensor,
    controls: Tensor | None = None,
    sample_weight: Tensor | None = None,
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

    Returns
    -------
    result : FirstStage or None
        None where the rows are too few.

    References
    ----------
    Cragg, Donald, "Testing Identifiability and Specification in Instrumental Variable
    Models", Econometric Theory 9, 1993.
    """
    basis, root = _controls(controls, endogenous, sample_weight)
    left = _without(endogenous.double() * root, basis)
    excluded = orthonormal(_without(instruments.double() * root, basis), instruments)
    dof, rest = excluded.shape[1], len(left) - basis.shape[1] - excluded.shape[1]
    if dof == 0 or rest < 1:
        return None
    fitted = excluded.mT @ left
    unexplained = left - excluded @ fitted
    explained, total = fitted.square().sum(0), left.square().sum(0)
    errors = unexplained.square().sum(0)
    tests = tuple(
        _f_test(float(gain), float(error), dof, rest)
        for gain, error in zip(explained, errors, strict=True)
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
) -> TestResult | None:
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
    result : TestResult or None
        An F test; None where the rows are too few, or the residuals are zero.

    References
    ----------
    Wooldridge, "Econometric Analysis of Cross Section and Panel Data", 2nd edition,
    MIT Press 2010, section 6.3.1: the regression-based form of the test.
    """
    basis, root = _controls(features, targets, sample_weight)
    added = first_stage_residuals.double() * root
    added = orthonormal(_without(added, basis), added)
    left = _without(targets.double()[:, None] * root, basis)
    dof, rest = added.shape[1], len(left) - basis.shape[1] - added.shape[1]
    if dof == 0 or rest < 1:
        return None
    fitted = added.mT @ left
    errors = left - added @ fitted
    if not robust:
        gain, error = fitted.square().sum(), errors.square().sum()
        return _f_test(float(gain), float(error), dof, rest)
    scores = added * errors
    gain = (fitted * torch.linalg.lstsq(scores.mT @ scores, fitted).solution).sum()
    statistic = float(gain) / dof * rest / len(left)
    return TestResult(statistic, float(fdtrc(dof, rest, statistic)), dof, rest)


def overidentification(
    residuals: Tensor,
    predicted: Tensor,
    instruments: Tensor,
    sample_weight: Tensor | None = None,
    *,
    robust: bool = False,
) -> TestResult | None:
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
    result : TestResult or None
        A chi-squared test; None where the model is just identified.

    References
    ----------
    Sargan, "The Estimation of Economic Relationships Using Instrumental Variables",
    Econometrica 26, 1958.

    Wooldridge, "Score Diagnostics for Linear Models Estimated by Two Stage Least
    Squares", in Advances in Econometrics and Quantitative Economics, Blackwell 1995.
    """
    basis, root = _controls(predicted, residuals, sample_weight)
    spare = instruments.double() * root
    spare = orthonormal(_without(spare, basis), spare)
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
    return TestResult(statistic, float(chdtrc(dof, statistic)), dof)


def orthonormal(columns: Tensor, before: Tensor | None = None) -> Tensor:
    """Orthonormal basis of columns, those that others span to rounding left out.

    Parameters
    ----------
    columns : Tensor of shape (n, d)
    before : Tensor of shape (n, d), default=None
        What the columns were before something was taken off them: that of which hardly
        anything is left is spanned, too.

    Returns
    -------
    basis : Tensor of shape (n, rank)
    """
    norm = torch.linalg.vector_norm(columns, dim=0)
    whole = norm if before is None else torch.linalg.vector_norm(before.double(), dim=0)
    columns = columns[:, norm > _SPANNED * whole]
    columns = columns / torch.linalg.vector_norm(columns, dim=0)
    columns = columns[:, : len(columns)]
    # What a column has beside those before it stands on the diagonal of R.
    rest = torch.linalg.qr(columns).R.diagonal().abs()
    return torch.linalg.qr(columns[:, rest > _SPANNED]).Q


def projected_share(
    residuals: Tensor, centred: Tensor, features: Tensor, sample_weight: Tensor | None
) -> float:
    """Share of what instruments predict of targets that they predict of residuals.

    Both are ``r' (P - diag P) r`` with the projection P on the features and a constant:
    without its diagonal a residual that no instrument explains gives zero in the mean,
    whatever the number of features.

    Parameters
    ----------
    residuals, centred : Tensor of shape (n,)
        Targets less structural predictions, and targets less their mean.
    features : Tensor of shape (n, q)
        Of the instruments.
    sample_weight : Tensor of shape (n,) or None

    Returns
    -------
    share : float
        Not-a-number where the instruments predict nothing of the targets.

    References
    ----------
    Angrist, Imbens, Krueger, "Jackknife Instrumental Variables Estimation", Journal of
    Applied Econometrics 14, 1999: the projection without its diagonal.
    """
    basis, root = _controls(features, residuals, sample_weight)
    leverage = basis.square().sum(1)
    parts = []
    for rows in (residuals, centred):
        rows = rows.double() * root[:, 0]
        parts.append((basis.mT @ rows).square().sum() - leverage @ rows.square())
    own, whole = (float(part) for part in parts)
    return own / whole if whole > 0 else float("nan")


def _controls(
    controls: Tensor | None, rows: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Basis of a constant and the controls, and the roots (n, 1) of the weights."""
    ones = rows.new_ones(len(rows), 1, dtype=torch.float64)
    root = ones if sample_weight is None else sample_weight.double().sqrt()[:, None]
    if controls is not None:
        controls = controls.double()
        # About their means, so that a large mean hides no variation.
        share = (root.square() / root.square().sum()).mT
        centred = (controls - share @ controls) * root
        own = orthonormal(centred, controls * root)
        return torch.cat([root / torch.linalg.vector_norm(root), own], 1), root
    return root / torch.linalg.vector_norm(root), root


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    """Take off what a basis spans; twice, since once leaves rounding of the whole."""
    for _ in range(2):
        rows = rows - basis @ (basis.mT @ rows)
    return rows


def _f_test(gain: float, error: float, dof: int, rest: int) -> TestResult:
    statistic = (gain / dof) / max(error / rest, _tiny())
    return TestResult(statistic, float(fdtrc(dof, rest, statistic)), dof, rest)


def _least_eigenvalue(fitted: Tensor, unexplained: Tensor) -> float:
    """Least eigenvalue of explained by unexplained products."""
    if len(fitted) < fitted.shape[1]:
        return 0.0
    values, vectors = torch.linalg.eigh(unexplained.mT @ unexplained)
    whitening = vectors / values.clamp_min(_tiny()).sqrt()
    return float(torch.linalg.svdvals(fitted @ whitening)[-1].square())


def _tiny() -> float:
    return torch.finfo(torch.float64).tiny
