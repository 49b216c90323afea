"""Text that the estimators' docstrings share, written once."""

from __future__ import annotations

import inspect
from typing import TypeVar

_Class = TypeVar("_Class", bound=type)

_PARAMETERS = """
Parameters
----------
backbone : None, MLP, TorchBackbone or torch.nn.Module, default=None
    The network without its last linear layer. None is ``MLP()``. A module instance
    is copied in fit, with its weights, and never touched; ``TorchBackbone`` makes
    one from a class or a function and knows the number of columns. The user's
    backbone gets X as it is, unscaled.
alpha : float, array of shape (n_outputs,) or "auto", default="auto"
    Ridge of the head relative to the mean feature energy, so that one value serves
    every width and scale. "auto" takes 0.01 in the training and in the end the best
    of a path by the held-out rows, or by leave-one-out where there are none.
prox : float, (start, end), "auto" or None, default=None
    Pull of each minibatch's head to the last one, relative to the mean feature
    energy (the paper's lambda). A pair is annealed geometrically over the training:
    fast learning first, averaging over many batches in the end. None is (1, 100)
    times a share of 0.3 to 1: that of the steps in those of ``max_epochs="auto"``, or
    in 1,000 where these are fewer, since a short training can't afford to follow
    slowly. In a stream it is 100. "auto" starts at 1 and follows the slope of an
    honest loss, that of each head on the batch after it; it does as well as (1, 100),
    at a quarter more of a step's time. 0 is for ``batch_size="full"`` alone: the
    deterministic method, each head exact.
update_order : {"head_first", "backbone_first"}, default="head_first"
    Solve the head before the backbone's gradient step, with one forward pass, or
    after it, with two (the paper's algorithm 1).
optimizer : str, class or callable, default="adamw"
    "adamw", "adam", "nadam", "radam", "rmsprop", "adagrad", "sgd" (momentum 0.9),
    "muon" (AdamW on all but real matrices; needs torch 2.9) or "lbfgs" (strong
    Wolfe line search, each trial with its own head: with ``prox=0`` variable
    projection; needs ``batch_size="full"``); or what makes an optimizer when called
    as ``optimizer(params, lr=...)``, with a list of groups of parameters, as torch
    has them: dicts with ``"params"``.
lr : float or "auto", default="auto"
    Rate of the backbone's steps. "auto" is 0.02 for the Adam family, 0.1 for "sgd",
    0.02 for "muon", 1 for "lbfgs", 0.003 for "rmsprop", 0.03 for "adagrad" and 0.02
    for an optimizer without a name here. High rates suit a head that is always
    solved.
weight_decay : float, default=None
    Of the optimizer; None leaves it to the optimizer.
optimizer_params : dict, default=None
    Further arguments of the optimizer.
lr_schedule : {"cooldown", "cosine", "linear", "constant"} or callable, \
default="cooldown"
    Factor of the rate at each step. "cooldown" is one for the first half and then
    falls to zero in a straight line: the best for trainings of few epochs, and in
    long ones mostly within two per cent of the others, where "linear" has the lower
    log loss on most tables. The others do as their names say, and a callable gets
    the progress in [0, 1). A skorch ``LRScheduler`` among the callbacks rules alone.
batch_size : int, "auto" or "full", default="auto"
    Rows in a batch, evened out so that none is a small rest. "auto" makes about
    thirty batches an epoch of 32 to 256 rows, and takes all of up to 64 rows. "full"
    takes all rows at each step.
max_epochs : int or "auto", default="auto"
    Passes over the rows. "auto" makes about 1,000 steps, in 8 to 100 epochs, and
    30 epochs of up to 64 rows of a table, which overfit sooner.
early_stopping : bool or "auto", default="auto"
    Restore the epoch that is best on held-out rows, and stop after
    ``n_iter_no_change`` epochs without a better one. "auto" does so where ``X_val``
    is given or the table has 200 rows or more.
validation_fraction : float, default=0.1
    Share of the rows that ``early_stopping`` holds out, where ``X_val`` isn't given.
n_iter_no_change : int, default=10
    Epochs without improvement after which training ends.
tol : float, default=1e-4
    Least change of the held-out loss (or of ``scoring``) that is an improvement.
scoring : str or callable, default=None
    Scorer of scikit-learn that early stopping watches, in place of the loss. It must
    be able to score the held-out rows: not-a-number in the first epoch is an error.
dtype : {"auto", "float32", "float64"}, default="auto"
    Precision of the backbone. "auto" is float64 for tables of up to 300 rows, where
    it costs little. The head is kept in float64, and its last solve is in float64; in
    the training float32 does for the solves of large batches.
device : str or torch.device, default="auto"
    "auto" takes CUDA, then MPS, then the CPU.
callbacks : list of skorch callbacks, default=None
    Copied; the trained ones stand in ``net_.callbacks_``.
net_params : dict, default=None
    Further arguments of :class:`CFLLNet`, such as ``{"compile": True}``,
    ``{"head_update": KalmanUpdate()}``, ``{"objective": "log"}`` for targets without
    noise, or ``{"batch_transform": augment}``, a function of each training batch's
    inputs. What has a parameter here, or follows from the data, is refused: ``alpha``,
    ``prox``, ``update_order``, ``optimizer`` and ``optimizer__...``, ``lr``,
    ``lr_schedule``, ``max_epochs``, ``batch_size``, ``callbacks``, ``device``,
    ``train_split``, ``train_score``, ``valid_score``, ``decode``, ``module``,
    ``n_features``, ``n_outputs`` and ``use_caching``.
warm_start : bool, default=False
    Go on from the last fit's backbone and head, and its scaling of y.
stream_epochs : int or "auto", default="auto"
    Passes over the rows of each ``partial_fit`` that train the backbone; 0 leaves it
    as it is, so that the head is the exact one of all rows so far. "auto" is 0 after
    ``fit``; in a stream that ``partial_fit`` began it is ``max_epochs`` for the first
    call and 3 for each later one. Steps on later chunks of fewer than 100 rows are as
    much smaller, so that a few rows don't unlearn the others.
forgetting : float, default=1.0
    Factor by which each further row of ``partial_fit`` lowers the weight of those
    before it in the head, whose memory is thus of 1 / (1 - forgetting) rows.
random_state : int, RandomState or None, default=None
    Seeds the weights, the order of the rows, dropout and the held-out rows. torch's
    global generators are left as they were.
verbose : int, default=0
    1 shows a progress bar.
"""

_ATTRIBUTES = """
backbone_ : torch.nn.Module
    The trained backbone.
net_ : CFLLNet
    The skorch net that trained it.
alpha_ : float or array of shape (n_outputs,)
    Ridge of the exact head. Where held-out rows are better with the head of the
    training, that is kept, and this is the ridge with which later rows are solved.
alpha_path_ : dict or None
    With ``alpha="auto"``: the "alphas" that were tried, and the mean squared errors of
    their heads, of shape (n_alphas, n_outputs), on the "held_out" rows, or by
    "leave_one_out" where there are none or ``store_loo`` is set; of targets on a grid
    by "cross_validation" in place of it. A regression's are in
    the units of y, squared; a classifier's are of its scores, the mean over outputs.
    Gone once ``partial_fit`` or ``forget`` has moved the head.
history_ : skorch.history.History
    A row an epoch: ``train_loss``, ``train_score``, ``valid_loss``, ``valid_score``,
    ``dur`` (seconds), ``lr``, ``prox``. Losses are of the encoded targets; those of
    the training rows are taken in passing, each batch under the head just solved.
n_iter_ : int
    Epochs that were run.
n_recoveries_ : int
    Times that the training exploded and went back to an earlier state; each time its
    rate was halved.
n_outputs_ : int
    Columns of y.
n_features_in_ : int
    Columns of X.
feature_names_in_ : array of shape (n_features,)
    Names of X's columns, where they are all strings.
"""

_NOTES = """
Notes
-----
Each step solves the head on the batch at hand, pulled to the last head by ``prox``,
and takes one gradient step on the backbone at that head, which needs no gradient
through the solve (envelope theorem). In the end one exact ridge solve over all
training rows replaces the head, unless held-out rows get worse by it.

References
----------
Galashov, Da Costa, Xu, Hennig, Gretton, "Closed-Form Last Layer Optimization",
arXiv 2510.04606, 2025.
"""


def document(cls: _Class) -> _Class:
    """Fill the shared sections into a class's docstring."""
    text = inspect.cleandoc(cls.__doc__ or "")
    sections = {"parameters": _PARAMETERS, "attributes": _ATTRIBUTES, "notes": _NOTES}
    for name, section in sections.items():
        text = text.replace(f"{{{name}}}", section.strip())
    cls.__doc__ = text
    return cls
