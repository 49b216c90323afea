"""The fitted model in words and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr

_WIDTH = 83


def summarise(estimator: Any) -> str:
    """Describe an instrumental variable regressor that was fitted.

    Parameters
    ----------
    estimator : CFLLIVRegressor

    Returns
    -------
    text : str
    """
    found = estimator.diagnostics_
    lines = ["Instrumental variable regression (CFLLIVRegressor)", "=" * _WIDTH]
    lines += _facts(estimator)
    if estimator._is_linear:
        lines += ["", *_coefficients(estimator)]
    lines += ["", *_first_stage(found, estimator._cov_type), "", *_tests(found)]
    lines += ["", *_training(found)]
    return "\n".join(lines)


def _facts(estimator: Any) -> list[str]:
    members = estimator.network_.networks
    network = members[0]
    q, p = network.first.weight.shape
    d = len(network.second.weight)
    names = estimator._names
    exogenous = ", ".join(names["exogenous"]) or "none"
    return [
        f"endogenous:  {', '.join(names['endogenous'])}",
        f"exogenous:   {exogenous}",
        f"instruments: {', '.join(names['instruments'])}",
        f"features:    {q} of instruments, {p} of the treatment, {d} in stage 2 "
        f"({network.combiner.combine}); members: {len(members)}",
        f"ridges:      stage 1 {estimator.instrument_alpha_:.3g}, its columns "
        f"{', '.join(f'{alpha:.3g}' for alpha in estimator.column_alphas_)}, stage 2 "
        f"{estimator.alpha_:.3g}",
    ]


def _coefficients(estimator: Any) -> list[str]:
    names = [*estimator._names["columns"], "intercept"]
    values = np.append(estimator.coef_, estimator.intercept_)
    errors = np.append(estimator.coef_std_, estimator.intercept_std_)
    rows = [["", "coefficient", "std. error", "z", "p", "95 % interval"]]
    for name, value, error in zip(names, values, errors, strict=True):
        z = value / error if error > 0 else float("nan")
        p = 2 * ndtr(-abs(z))
        low, high = value - 1.96 * error, value + 1.96 * error
        size = f"{z:.2f}" if abs(z) < 1e5 else f"{z:.4g}"
        interval = f"{low:.4g} to {high:.4g}"
        rows.append([name, f"{value:.4g}", f"{error:.4g}", size, f"{p:.3f}", interval])
    title = f"Coefficients, with {estimator._cov_type} standard errors"
    return [title, *_table(rows, (16, 13, 12, 9, 8, 25))]


def _table(rows: list[list[str]], widths: tuple[int, ...]) -> list[str]:
    """Lines of a table, its columns at least so wide and two spaces apart."""
    longest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    name_width = max(widths[0], longest[0])
    own = [max(w, n + 2) for w, n in zip(widths[1:], longest[1:], strict=True)]
    return [
        f"{name:<{name_width}}"
        + "".join(f"{cell:>{width}}" for cell, width in zip(cells, own, strict=True))
        for name, *cells in rows
    ]


def _first_stage(found: dict[str, Any], cov_type: str) -> list[str]:
    rows = _rows(found)
    if found["rows"] == "training":
        rows = f"{found['n_rows']} rows, linear in the instruments as they are"
    lines = [f"First stage, on {rows}"]
    tests = found["first_stage"]
    if tests is None:
        return [*lines, "not available: too few rows."]
    name_of_f = "robust F" if cov_type == "robust" else "F"
    table = [["", "partial R2", name_of_f, "p", "dof"]]
    for name, test in tests.items():
        numbers = (
            f"{test['partial_r2']:.4f}",
            f"{test['statistic']:.4g}",
            f"{test['p_value']:.3f}",
            f"{test['dof']}, {test['dof_residual']}",
        )
        table.append([name, *numbers])
    lines += _table(table, (16, 13, 12, 9, 14))
    if len(tests) > 1:
        lines.append(f"Cragg-Donald statistic {found['cragg_donald']:.4g}")
    lines.append("An F below 10 tells of weak instruments.")
    return lines


def _rows(where: dict[str, Any]) -> str:
    """Say which rows a test was made on."""
    kind = {
        "held-out": "rows, each by networks that haven't seen it",
        "training": "training rows, which the networks have seen",
        "all": "rows (no network was trained)",
    }
    return f"{where['n_rows']} {kind[where['rows']]}"


def _tests(found: dict[str, Any]) -> list[str]:
    return [
        f"Tests, on {_rows(found)}",
        "Durbin-Wu-Hausman test; hypothesis: the endogenous columns are exogenous",
        "  " + _told(found["durbin_wu_hausman"], "too few rows"),
        "  instruments change the predictions by "
        f"{found['non_iv_difference']:.4g} (root mean square)",
        "Over-identification test; hypothesis: the instruments agree, and f fits",
        "  " + _told(found["overidentification"], "just identified, or too few rows"),
    ]


def _told(test: dict[str, Any] | None, reason: str) -> str:
    if test is None:
        return f"not available: {reason}."
    rest = test["dof_residual"]
    kind = f"chi2({test['dof']})" if rest is None else f"F({test['dof']}, {rest})"
    return f"{kind} = {test['statistic']:.4g}, p = {test['p_value']:.3f}"


def _training(found: dict[str, Any]) -> list[str]:
    lines = ["Share of the variance left unexplained"]
    for key, stage in (
        ("stage1", "stage 1 (instruments to treatment)"),
        ("stage2", "stage 2 (predicted treatment to y)"),
    ):
        train, unseen = (found["unexplained"][where] for where in ("train", "unseen"))
        text = f"  {stage}: training rows {train[key]:.4g}"
        if unseen is not None:
            text += f", held-out rows {unseen[key]:.4g}"
        lines.append(text)
    return lines
