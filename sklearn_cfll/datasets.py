"""Simulated data whose structural function is known."""

from __future__ import annotations

import importlib
import itertools
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch, check_random_state
from sklearn.utils._param_validation import Interval, validate_params

_COLUMNS = ["price", "time", "sentiment"]
_INSTRUMENTS = ["cost"]


def _season(time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Demand over the year, which moves the price as well."""
    bump = np.exp(-4 * (time - 5) ** 2)
    return 2 * ((time - 5) ** 4 / 600 + bump + time / 10 - 2)


def structural_demand(X: ArrayLike) -> NDArray[np.float64]:
    r"""Return the mean of the sales at a price that is set from outside.

    Parameters
    ----------
    X : array-like of shape (n_samples, 3)
        Columns price, time and sentiment, as :func:`make_demand` has them; in any
        order in a data frame that has these names.

    Returns
    -------
    structural : ndarray of shape (n_samples,)
        :math:`f(p, t, s) = 100 + (10 + p) s \psi(t) - 2 p`, with
        :math:`\psi(t) = 2 [(t - 5)^4 / 600 + \exp(-4 (t - 5)^2) + t / 10 - 2]`.

    Raises
    ------
    ValueError
        If `X` doesn't have three columns.

    References
    ----------
    Hartford, Lewis, Leyton-Brown and Taddy (2017). Deep IV: a flexible approach for
    counterfactual prediction. ICML.

    Examples
    --------
    >>> from sklearn_cfll.datasets import structural_demand
    >>> structural_demand([[20.0, 5.0, 1.0]])
    array([30.])
    """
    table: Any = X
    if set(getattr(table, "columns", [])) == set(_COLUMNS):
        table = table[_COLUMNS]
    columns = np.asarray(table, dtype=np.float64)
    if columns.ndim != 2 or columns.shape[1] != len(_COLUMNS):
        raise ValueError(
            f"X has shape {columns.shape} but needs the three columns "
            f"{', '.join(_COLUMNS)}; pass an array of shape (n_samples, 3)."
        )
    price, time, sentiment = columns.T
    return 100 + (10 + price) * sentiment * _season(time) - 2 * price


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "rho": [Interval(Real, -1, 1, closed="both")],
        "noise_scale": [Interval(Real, 0, None, closed="left")],
        "as_frame": ["boolean"],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_demand(
    n_samples: int = 1000,
    *,
    rho: float = 0.5,
    noise_scale: float = 1.0,
    as_frame: bool = False,
    random_state: Any = None,
) -> Bunch:
    r"""Draw sales of tickets whose price follows demand that is not observed.

    A fuel cost :math:`c` moves the price and nothing else, so that it serves as the
    instrument; time :math:`t` and sentiment :math:`s` are exogenous. The error of the
    sales is correlated with the price:

    - :math:`c, v \sim N(0, 1)`, :math:`t` uniform on (0, 10), :math:`s` uniform on the
      whole numbers 1 to 7;
    - :math:`e = \rho v + \sqrt{1 - \rho^2} N(0, 1)`;
    - :math:`p = 25 + (c + 3) \psi(t) + v`;
    - :math:`y = f(p, t, s) + k e` with :math:`k` the `noise_scale`.

    See :func:`structural_demand` for :math:`f` and :math:`\psi`.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    rho : float, default=0.5
        Correlation of the error with the part of the price that the instrument doesn't
        explain, from -1 to 1. At 0 the price is exogenous.
    noise_scale : float, default=1.0
        Factor of the error. The published design has 1. There the error is 4e-5 of the
        variance of `y`, so that confounding hardly matters; with 50 and `rho=0.9` it
        does.
    as_frame : bool, default=False
        Whether `X`, `instruments` and `y` are pandas objects with names. Needs pandas.
    random_state : int, RandomState instance or None, default=None
        Seed of the draw.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the attributes

        X : (n_samples, 3)
            Columns price, time and sentiment.
        instruments : (n_samples, 1)
            The cost. Time and sentiment serve as their own instruments.
        y : (n_samples,)
            Sales.
        structural : ndarray of shape (n_samples,)
            The sales' structural part, without the error.
        feature_names, instrument_names : list of str
            Names of the columns of both.
        endogenous : list of str or int
            The column that the error is correlated with, price: its name with
            ``as_frame``, else its number.

    References
    ----------
    Hartford, Lewis, Leyton-Brown and Taddy (2017). Deep IV: a flexible approach for
    counterfactual prediction. ICML. The error is here correlated by :math:`\rho` as
    in Singh, Sahani and Gretton (2019). Kernel instrumental variable regression.
    NeurIPS.

    Examples
    --------
    >>> from sklearn_cfll.datasets import make_demand
    >>> data = make_demand(100, random_state=0)
    >>> data.X.shape, data.instruments.shape, data.y.shape
    ((100, 3), (100, 1), (100,))
    """
    random = check_random_state(random_state)
    cost, shock = random.normal(size=(2, n_samples))
    time = random.uniform(0, 10, size=n_samples)
    sentiment = random.randint(1, 8, size=n_samples).astype(np.float64)
    own = random.normal(size=n_samples)
    error = rho * shock + np.sqrt(1 - rho**2) * own
    price = 25 + (cost + 3) * _season(time) + shock
    X = np.column_stack([price, time, sentiment])
    structural = structural_demand(X)
    instruments, y = cost[:, None], structural + noise_scale * error
    if as_frame:
        X, instruments, y = _framed(X, instruments, y)
    return Bunch(
        X=X,
        instruments=instruments,
        y=y,
        structural=structural,
        feature_names=list(_COLUMNS),
        instrument_names=list(_INSTRUMENTS),
        endogenous=_COLUMNS[:1] if as_frame else [0],
    )


def _framed(X: Any, instruments: Any, y: Any) -> tuple[Any, Any, Any]:
    try:
        pd = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError(
            "as_frame=True needs pandas; install it or pass as_frame=False."
        ) from error
    return (
        pd.DataFrame(X, columns=_COLUMNS),
        pd.DataFrame(instruments, columns=_INSTRUMENTS),
        pd.Series(y, name="sales"),
    )


def demand_grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the grid on which estimates of the demand are judged, with the truth.

    Returns
    -------
    X : ndarray of shape (2800, 3)
        Each of 20 prices from 10 to 25 with each of 20 times from 0 to 10 and each
        sentiment from 1 to 7, the last column changing fastest.
    structural : ndarray of shape (2800,)
        :func:`structural_demand` there.

    Examples
    --------
    >>> from sklearn_cfll.datasets import demand_grid
    >>> X, structural = demand_grid()
    >>> X.shape
    (2800, 3)
    """
    prices, times = np.linspace(10, 25, 20), np.linspace(0, 10, 20)
    X = np.array(list(itertools.product(prices, times, range(1, 8))))
    return X, structural_demand(X)
