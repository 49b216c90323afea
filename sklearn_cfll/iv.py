"""The instrumental variable regressor."""

from __future__ import annotations

from typing import Any

from sklearn.base import RegressorMixin, _fit_context
from sklearn.utils.validation import check_consistent_length

from sklearn_cfll._device import lapack_on_one_thread, own_settings, seeded
from sklearn_cfll._iv_fitting import read_problem, start, train
from sklearn_cfll._iv_results import IVResults
from sklearn_cfll._targets import r2
from sklearn_cfll._undo import all_or_nothing
from sklearn_cfll._validation import naming_weights, read_column, read_weights


class CFLLIVRegressor(RegressorMixin, IVResults):
    """Instrumental variable regression with learnt features and closed-form heads.

    The model is ``y = f(X) + e``, where e is correlated with the endogenous columns of
    X. Instruments Z move those columns, and have no other effect on y: ``E[e | Z] =
    0``. :meth:`predict` gives the structural f, what y would be if X were set, and not
    ``E[y | X]``.

    Three networks are trained: one gives features psi of the endogenous columns, one
    phi of the instruments and the exogenous columns, one chi of the exogenous columns.
    Stage 1 predicts psi from phi by ridge regression, stage 2 predicts y from the
    predicted psi, combined with chi. Both are solved in closed form. There are several
    members of such networks, each trained without a fold of the rows; their mean
    predicts.

    Parameters
    ----------
    backbone : None, SmallMLP, MLP, TorchBackbone or torch.nn.Module, default=None
        The treatment network psi, of the endogenous columns, standardised as all are.
        None is a ``SmallMLP`` that suits their number. A module instance is copied.
        ``TorchBackbone(torch.nn.Identity)`` gives the columns themselves: with it in
        all places, ``combine="concatenate"`` and alphas 0 it is linear 2SLS.
    instrument_backbone : as backbone, default=None
        The instrument network phi, of the exogenous columns of X and the instruments,
        in this order.
    covariate_backbone : as backbone, default=None
        The covariate network chi, of the exogenous columns; not used where there are
        none.
    endogenous : None, str, int, sequence of these, or mask, default=None
        The columns of X that are correlated with the error: names, indices, or a
        boolean for each column. None is all. The others are exogenous, and serve as
        their own instruments.
    combine : {"product", "concatenate"}, default="product"
        Stage 2's features: the outer product of ``[psi, 1]`` and ``[chi, 1]``, with
        which the effect of the treatment varies with the covariates; or both side by
        side, with which they add up.
    alpha : float or "auto", default="auto"
        Ridge of stage 2: in the training relative to the mean feature energy, in the
        final solve relative to each feature's variance at the actual treatment. There
        the columns that a ``SmallMLP`` appends to its features, and those of an
        ``Identity`` beside networks that are trained, are all but spared (a share of
        1e-8). "auto" is 0.001 in the training; in the end the largest of a path, from
        1e-7 to 1e3, whose squared error on rows that the members haven't seen is within
        a standard error of the least, or with fewer than 30 such rows the best by
        generalised cross-validation.
    instrument_alpha : float or "auto", default="auto"
        Ridge of stage 1, likewise, from 1e-5 to 1e3: "auto" chooses one for the
        treatment features, and one for each endogenous column.
    shrink_to : {"regression", "zero"}, default="regression"
        What the final ridge of stage 2 pulls to: the fit without instruments, which is
        confounded but has a shape (where treatment features hold the columns, and an
        automatic alpha has rows that members haven't seen); or zero.
    prox : float or (start, end), default=(1.0, 10.0)
        Pull of each minibatch's stage-2 head to the last one, relative to the mean
        feature energy. A pair is annealed geometrically over the training.
    instrument_prox : float or (start, end), default=(1.0, 10.0)
        That of stage 1's head.
    n_estimators : int or "auto", default="auto"
        Members, trained together, at less than the price of as many fits. "auto" is 5,
        and one where nothing is trained.
    sample_splitting : bool, default=False
        Whether each stage trains on a random half of the rows of its own.
    cov_type : {"robust", "unadjusted"}, default="robust"
        Whether standard errors and tests allow for heteroscedastic errors.
    optimizer : str, class or callable, default="adamw"
        As in :class:`CFLLRegressor`.
    lr : float or "auto", default="auto"
        As in :class:`CFLLRegressor`; it rises over the first twenty steps.
    weight_decay : float, None or "auto", default="auto"
        Of the optimizer; None leaves it to the optimizer. "auto" is 0.03 with "adamw",
        and None with others.
    optimizer_params : dict, default=None
        Further arguments of the optimizer.
    lr_schedule : {"cosine", "cooldown", "linear", "constant"} or callable, \
default="cosine"
        As in :class:`CFLLRegressor`.
    batch_size : int, "auto" or "full", default="auto"
        Rows in a batch. "auto" takes a quarter of the rows, from 64 to 400. "full",
        with ``shrink_to="zero"``, takes turns as the published method does: rounds of
        steps on all rows, 20 on the instrument network by the loss of stage 1, then one
        on the others by that of stage 2, with exact heads; the proxes are not used.
        For one network on halves of the rows, as there, set ``n_estimators=1`` and
        ``sample_splitting=True``, too.
    max_epochs : int or "auto", default="auto"
        Passes over the rows, or rounds. "auto" makes 400 steps for up to 1,000 rows,
        and 900 for 5,000 rows or more; with "full", 100 rounds.
    validation_fraction : float or "auto", default="auto"
        Share of the rows that a member's networks don't see, each member others. The
        diagnostics and the ridges come from predictions of these; the final heads are
        solved on all rows. "auto" is ``1 / n_estimators``, 0.2 at most, so that five
        members or more leave no row out; below 100 rows it is 0. Where nothing is
        trained no rows are held out.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of the networks. "auto" is float64 for fewer than 300 rows, and where
        nothing is trained. The heads are solved in float64 anyhow.
    device : str or torch.device, default="auto"
        "auto" takes CUDA, then MPS, then the CPU.
    random_state : int, RandomState or None, default=None
        Seeds weights, the order of the rows, folds and halves.
    verbose : int, default=0
        1 prints a line for each epoch.

    Attributes
    ----------
    coef_ : array of shape (n_features,) or (d,)
        Where f is linear in the columns (``Identity`` backbones of the treatment and of
        the covariates, side by side) a coefficient for each column of X, in the units
        of y and X. Else the weights of the members' stage-2 heads, in the units of y:
        predictions are ``transform(X) @ coef_ + intercept_``.
    intercept_ : float
        In the units of y.
    coef_std_ : array of the same shape
        Standard errors, those of two-stage least squares, given the networks.
    intercept_std_ : float
        Standard error of the intercept.
    diagnostics_ : dict
        What :meth:`diagnose` gives for the rows that were held out, each by the members
        that haven't seen it, or for the training rows where there are none ("rows" says
        which, "n_rows" how many); and "unexplained", the share of the variance that
        each stage leaves on "train" and on "unseen" rows.
    alpha_, instrument_alpha_, plain_alpha_ : float
        Ridges of the final heads, and of the fit without instruments.
    column_alphas_ : array of shape (n_endogenous,)
        Those of stage 1's predictions of the endogenous columns.
    network_ : torch.nn.Module
        The members: the three networks and the heads of both stages of each.
    history_ : list of dict
        A row for each epoch: the mean ``stage1_loss`` and ``stage2_loss`` of its
        batches, over a variance, ``lr``, the proxes, and ``dur`` (seconds).
    n_iter_ : int
        Epochs that were run.
    n_recoveries_ : int
        Times that the training diverged and went back to an earlier state.
    endogenous_ : int array
        Indices of the endogenous columns.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : array of shape (n_features,)
        Names of X's columns, where they are all strings.

    Notes
    -----
    On a minibatch stage 1's head V minimises ``||psi - Phi V||^2`` with a ridge and a
    pull to the last V; with the instrument features held fixed it is linear in psi, and
    the gradient of stage 2's loss reaches the treatment network through it. The
    instrument network follows the loss of stage 1, at a V held fixed. Stage 2's head
    minimises its own loss, and is held fixed too (envelope theorem). In the end both
    heads are solved over all rows.

    References
    ----------
    Xu, Chen, Srinivasan, de Freitas, Doucet, Gretton, "Learning Deep Features in
    Instrumental Variable Regression", ICLR 2021, arXiv 2010.07154.

    Galashov, Da Costa, Xu, Hennig, Gretton, "Closed-Form Last Layer Optimization",
    arXiv 2510.04606, 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_cfll import CFLLIVRegressor
    >>> random = np.random.default_rng(0)
    >>> Z, hidden = random.normal(size=(2, 1000))
    >>> x = Z + hidden
    >>> y = np.abs(x) - hidden + 0.1 * random.normal(size=1000)
    >>> model = CFLLIVRegressor(random_state=0).fit(x[:, None], y, instruments=Z)
    >>> bool(model.score(x[:, None], np.abs(x)) > 0.8)
    True
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any, *, instruments: Any = None, sample_weight: Any = None
    ) -> CFLLIVRegressor:
        """Train the networks and solve both stages.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Endogenous and exogenous columns.
        y : array-like of shape (n_samples,)
            Targets.
        instruments : array-like of shape (n_samples, n_instruments)
            At least as many columns as are endogenous, besides those that exogenous
            columns of X, or other instruments, give by a sum: these are needless.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, in the solves and in the losses.

        Returns
        -------
        self : CFLLIVRegressor
            The fitted estimator.

        Raises
        ------
        ValueError
            Where a parameter, the data, the instruments or a backbone can't be used.
            What was fitted before is kept.
        FloatingPointError
            Where the training diverges, again and again.

        Warns
        -----
        UserWarning
            Where the instruments are weak (a first-stage F, or Cragg and Donald's
            statistic, below 10), or the rows too few to tell; where a stage has
            memorised its rows; and where X and instruments are frames whose indices
            differ: rows go by their position.
        ConvergenceWarning
            Where the training diverged and went on from an earlier state, and where it
            was interrupted (Ctrl-C), which leaves a fitted estimator.
        """
        with all_or_nothing(self), naming_weights(sample_weight), own_settings():
            problem = read_problem(self, X, y, instruments, sample_weight)
            with lapack_on_one_thread(), seeded(problem.seed, problem.device):
                ensemble = start(self, problem)
                training = train(self, ensemble, problem) if ensemble.learns else None
                self._finish(ensemble, problem, training)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predict the structural f: what y would be in the mean if X were set.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        return_std : bool, default=False
            Whether to return the standard deviation of f, too.

        Returns
        -------
        f : array of shape (n_samples,)
            In the units of y, in float64.
        f_std : array of shape (n_samples,)
            With ``return_std``: the standard error of f, without the noise of y.

        Notes
        -----
        The standard error is that of two-stage least squares *given the networks*: it
        knows nothing of their own uncertainty, of which rows they saw, of the ridges'
        bias, or of what weak instruments do. Where features were learnt it is too
        small; a bootstrap of the whole fit, in a loop over resampled rows of X, y and
        the instruments, counts the training in.
        """
        treatment, exogenous = self._read_columns(X)
        f, deviation = self._structural(treatment, exogenous, return_std)
        return (f, deviation) if return_std else f

    def score(
        self, X: Any, y: Any, *, instruments: Any = None, sample_weight: Any = None
    ) -> float:
        """Compute how much of what the instruments predict of y is explained.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        instruments : array-like of shape (n_samples, n_instruments), default=None
            None computes R2 against y, which is honest where y is a structural truth,
            or where the rows come from an experiment that set X. Else R2 favours the
            confounded fit.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        score : float
            With instruments ``1 - r'(P - diag P) r / d'(P - diag P) d``, where r is ``y
            - f(X)``, d is ``y - mean(y)``, and P projects on the trained instrument
            features of these rows and a constant. A right f leaves nothing that
            instruments predict, and scores one; the mean of y scores zero. The diagonal
            of P is left out, so that noise doesn't count in the mean; by chance the
            score may exceed one, and on the training rows it does. Both sums are the
            mean over the members.

        Notes
        -----
        It compares fits on the same rows. The more features an instrument network has,
        the more of r it can tell, so that scores of different instrument networks
        compare only roughly.
        """
        f = self.predict(X)
        y = read_column(y)
        check_consistent_length(X, y)
        weight = read_weights(sample_weight, f)
        if instruments is None:
            return r2(y, f, weight)
        return self._projected_score(X, y, f, instruments, weight)
