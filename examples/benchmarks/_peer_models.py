"""The estimators that peers.py compares, each as it comes, on one thread.

Each function takes the training rows and returns an estimator that is not yet fitted.
What it needs is imported in it, so that the others run without.
"""

import contextlib
import importlib.metadata
import logging
import os
import warnings

import torch
from _common import build_network
from threadpoolctl import threadpool_limits
from torch import nn


def _cfll(split, seed):
    from sklearn_cfll import CFLLClassifier, CFLLRegressor

    kind = CFLLRegressor if split.task == "regression" else CFLLClassifier
    return kind(random_state=seed)


def _four_of_cfll(split, seed):
    """Average four fits that differ in their random numbers alone."""
    from sklearn.ensemble import BaggingClassifier, BaggingRegressor

    kind = BaggingRegressor if split.task == "regression" else BaggingClassifier
    return kind(_cfll(split, None), n_estimators=4, bootstrap=False, random_state=seed)


def _mlp(split, seed):
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    kind = MLPRegressor if split.task == "regression" else MLPClassifier
    return kind(early_stopping=True, random_state=seed)


def _hist_gradient_boosting(split, seed):
    from sklearn import ensemble

    if split.task == "regression":
        return ensemble.HistGradientBoostingRegressor(random_state=seed)
    return ensemble.HistGradientBoostingClassifier(random_state=seed)


def _skorch(split, seed):
    """Train the default backbone end to end, as a user of skorch would write it."""
    import skorch
    from skorch.callbacks import EarlyStopping
    from skorch.dataset import ValidSplit

    classes = split.task == "classification"
    kind = skorch.NeuralNetClassifier if classes else skorch.NeuralNetRegressor
    backbone, last = build_network(split, seed)
    if classes:
        last = nn.Linear(last.in_features, int(split.train[1].max()) + 1)
        extras = {"criterion": nn.CrossEntropyLoss}
    else:  # predictions of shape (n,), as the targets have
        last = nn.Sequential(last, nn.Flatten(0))
        extras = {}
    return kind(
        nn.Sequential(backbone, last),
        optimizer=torch.optim.AdamW,
        lr=3e-3,
        max_epochs=30,
        iterator_train__shuffle=True,
        train_split=ValidSplit(0.1, stratified=classes, random_state=seed),
        callbacks=[EarlyStopping(load_best=True)],
        verbose=0,
        **extras,
    )


def _pytabkit(name):
    """Return a function that makes one of pytabkit's estimators."""

    def make(split, seed):
        from pytabkit.models.sklearn import sklearn_interfaces

        ending = "Regressor" if split.task == "regression" else "Classifier"
        kind = getattr(sklearn_interfaces, f"{name}_{ending}")
        return kind(device="cpu", n_threads=1, random_state=seed, verbosity=0)

    return make


# For each name: the package that it comes from, and what makes the estimator.
METHODS = {
    "CFLL": ("sklearn-cfll", _cfll),
    "CFLL_4": ("sklearn-cfll", _four_of_cfll),
    "MLP": ("scikit-learn", _mlp),
    "HistGB": ("scikit-learn", _hist_gradient_boosting),
    "skorch": ("skorch", _skorch),
    "RealMLP_TD_S": ("pytabkit", _pytabkit("RealMLP_TD_S")),
    "RealMLP_TD": ("pytabkit", _pytabkit("RealMLP_TD")),
    "TabM_D": ("pytabkit", _pytabkit("TabM_D")),
}


def installed_version(method):
    """Return the version of the package of a method, or None without it."""
    try:
        return importlib.metadata.version(METHODS[method][0])
    except importlib.metadata.PackageNotFoundError:
        return None


def make_model(method, split, seed):
    """Return an estimator that is not yet fitted; the random state is `seed`."""
    torch.manual_seed(seed)
    return METHODS[method][1](split, seed)


@contextlib.contextmanager
def one_quiet_thread():
    """Confine to one thread whatever is loaded by now, and silence what it says."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with (
        threadpool_limits(1),
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield
