"""Training that explodes goes back, and Ctrl-C keeps the fit."""

from __future__ import annotations

import re
import signal
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pytorch_optimizer import ScheduleFreeAdamW
from refusals import features_not_finite
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from small_models import LogOfFirst, classifier, regressor, small_network, watched
from torch import nn

from sklearn_cfll import MLP, CFLLNet, ProximalUpdate
from sklearn_cfll.losses import SquaredLoss
from sklearn_cfll.recovery import CHECK_EVERY, MOST_RECOVERIES


class Spoil(Callback):
    """Multiplies the backbone's parameters once, after some training step."""

    def __init__(self, step, factor=np.nan):
        self.step, self.factor = step, factor

    def on_train_begin(self, net, **kwargs):
        self.n_steps = 0

    @torch.no_grad()
    def on_batch_end(self, net, training=None, **kwargs):
        self.n_steps += training
        if training and self.n_steps == self.step:
            for parameter in net.module_.backbone.parameters():
                parameter.mul_(self.factor)


class AtEpoch(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def reached(self, net):
        return len(net.history) == self.epoch


class Interrupt(AtEpoch):
    """Sends the signal of Ctrl-C at the first batch of an epoch."""

    def on_batch_begin(self, net, **kwargs):
        if self.reached(net):
            signal.raise_signal(signal.SIGINT)


class StopAfter(AtEpoch):
    def on_epoch_end(self, net, **kwargs):
        if self.reached(net):
            raise KeyboardInterrupt


def steady(**params):
    """Full batches at a constant rate and prox, without chance once it has begun."""
    settings = {"batch_size": "full", "lr_schedule": "constant", "prox": 1.0}
    return regressor(**{**settings, **params})


def went_back(what, lr=r"0\.02", times="once"):
    return pytest.warns(
        ConvergenceWarning,
        match=rf"\Atraining went back to an earlier state {times} and halved its rate "
        rf"each time \({what}\); decrease lr \(now {lr}\), increase prox, or scale X\.",
    )


NOT_FINITE = "the parameters are not finite"

# Going back ---------------------------------------------------------------------


OPTIMIZERS = [("adamw", 0.02), ("sgd", 0.1), ("lbfgs", 1.0), (ScheduleFreeAdamW, 0.02)]
if hasattr(torch.optim, "Muon"):  # since torch 2.9
    OPTIMIZERS.append(("muon", 0.02))


@pytest.mark.parametrize("prox", [1.0, "auto", (1.0, 1.0)])
@pytest.mark.parametrize(("optimizer", "lr"), OPTIMIZERS)
def test_a_spoilt_first_epoch_leaves_a_training_at_half_the_rate(
    table, optimizer, lr, prox
):
    model = steady(optimizer=optimizer, lr=lr, prox=prox, max_epochs=12)
    both = optimizer == "muon"  # it has a second rate
    model.set_params(callbacks=[Spoil(1)])
    if both:
        model.set_params(optimizer_params={"adamw_lr": lr})
    # An epoch of one step isn't looked at, but the next one's loss is not-a-number.
    with went_back("epoch 2: the loss is nan", lr=rf"{lr:g}"):
        model.fit(*table)
    half = steady(optimizer=optimizer, lr=lr / 2, prox=prox, max_epochs=11)
    if both:
        half.set_params(optimizer_params={"adamw_lr": lr / 2})
    half.fit(*table)
    assert_array_equal(model.predict(table[0]), half.predict(table[0]))
    assert model.n_recoveries_ == 1
    assert half.n_recoveries_ == 0


@pytest.mark.parametrize("optimizer", ["adamw", ScheduleFreeAdamW])
def test_training_goes_on_from_the_last_good_state(table, optimizer):
    callbacks = [Spoil(CHECK_EVERY + 10)]
    model = steady(optimizer=optimizer, max_epochs=80, callbacks=callbacks)
    with went_back(f"epoch 60: {NOT_FINITE}"):
        model.fit(*table)
    assert model.history_[:, "lr"] == [0.02] * 59 + [0.01] * 21
    losses = model.history_[:, "train_loss"]
    assert losses[59] == losses[CHECK_EVERY]
    assert np.isfinite(losses).all()
    assert model.n_iter_ == 80
    assert model.score(*table) > 0.99


def test_a_state_that_leads_to_trouble_twice_is_left_for_the_one_before(table):
    callbacks = [("first", Spoil(CHECK_EVERY + 10)), ("again", Spoil(CHECK_EVERY + 15))]
    model = steady(max_epochs=80, callbacks=callbacks)
    with pytest.warns(ConvergenceWarning, match="to an earlier state 2 times"):
        model.fit(*table)
    losses, rates = (model.history_[:, name] for name in ("train_loss", "lr"))
    first, again = rates.index(0.01), rates.index(0.005)
    assert losses[first] == losses[CHECK_EVERY]
    assert losses[again] == losses[0]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_stays_halved_under_a_schedule(table, schedule):
    rates = []
    for callbacks in ([Spoil(12)], []):
        model = regressor(lr_schedule=schedule, callbacks=callbacks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            rates.append(model.fit(*table).history_[:, "lr"])
    assert_allclose(rates[0][:1], rates[1][:1])
    assert_allclose(rates[0][1:], np.array(rates[1][1:]) / 2)


@pytest.mark.parametrize("policy", ["StepLR", "LambdaLR"])
def test_the_rate_stays_halved_under_a_scheduler_of_skorch(table, policy):
    options = {"StepLR": {"step_size": 1, "gamma": 0.5}}
    options["LambdaLR"] = {"lr_lambda": lambda epoch: 0.5**epoch}
    schedule = LRScheduler(policy, **options[policy])
    model = regressor(callbacks=[schedule, Spoil(12)], max_epochs=5, lr=0.02)
    with went_back(f"epoch 2: {NOT_FINITE}"):
        model.fit(*table)
    expected = 0.02 * 0.5 ** np.array([0, 2, 3, 4, 5])
    assert_allclose(model.history_[:, "lr"], expected)


def test_an_explosion_that_stays_finite_is_undone(table):
    model = regressor(MLP(width=32, normalize=False), callbacks=[Spoil(20, 1e3)])
    with went_back(r"epoch 4: the loss rose from 1 to \d\.\d+e\+\d\d.*", times=r".*"):
        model.fit(*table)
    assert 1 <= model.n_recoveries_ <= 2
    assert model.score(*table) > 0.9


@pytest.mark.parametrize(
    ("optimizer", "lr", "least"), [("sgd", 10.0, 2), ("adamw", 0.5, 1)]
)
def test_a_rate_that_explodes_finds_one_that_does_not(table, optimizer, lr, least):
    backbone = MLP(64, 3, activation="relu", normalize=False, embedding=None)
    model = regressor(backbone, optimizer=optimizer, lr=lr, batch_size=10)
    with pytest.warns(ConvergenceWarning, match=r"decrease lr \(now \d"):
        model.fit(*table)
    assert model.n_recoveries_ >= least
    assert model.score(*table) > 0.9


@pytest.mark.parametrize("alpha", [0.0, [0.0]], ids=["one alpha", "an alpha an output"])
def test_solves_that_fail_again_and_again_name_prox_and_alpha(table, alpha):
    model = regressor(prox=1e-18, alpha=alpha, batch_size=10)
    with pytest.raises(
        FloatingPointError,
        match=rf"^training diverged in epoch 1: \d+ solves were not positive definite, "
        rf"after {MOST_RECOVERIES} returns to an earlier state, each with half the "
        rf"rate; increase prox \(now 1e-18\) or alpha \(now {re.escape(str(alpha))}\)"
        r"\.$",
    ):
        model.fit(*table)
    assert not hasattr(model, "net_")


class Unsolvable(ProximalUpdate):
    """Is given up on by LAPACK in one of its calls."""

    calls = 0

    def update_(self, *args, **kwargs):
        Unsolvable.calls += 1
        if Unsolvable.calls == 12:
            raise torch.linalg.LinAlgError("no factor")
        super().update_(*args, **kwargs)


def test_a_solve_that_lapack_gives_up_on_is_undone(table, monkeypatch):
    monkeypatch.setattr(Unsolvable, "calls", 0)
    rule = {"head_update": Unsolvable(alpha=0.01, prox=(1.0, 1.0))}
    model = regressor(max_epochs=12, batch_size="full", net_params=rule)
    model.set_params(lr_schedule="constant")
    message = (
        r"went back to an earlier state once and halved its rate each time \(epoch 12: "
        r"a solve of the head failed\); increase prox \(now .*\) or alpha \(now .*\)\.$"
    )
    with pytest.warns(ConvergenceWarning, match=message):
        model.fit(*table)
    assert model.n_recoveries_ == 1
    assert len(model.history_) == 12
    assert model.score(*table) > 0.8


def test_the_undone_steps_leave_no_row_in_the_history(table, capfd):
    model = regressor(callbacks=[Spoil(8)], verbose=1, max_epochs=4)
    with went_back(f"epoch 2: {NOT_FINITE}|epoch 2: the loss is nan"):
        model.fit(*table)
    assert [len(row["batches"]) for row in model.history_] == [6] * 4
    assert model.history_[:, "epoch"] == [1, 2, 3, 4]
    last = capfd.readouterr().err.strip().split("\r")[-1]
    assert "epoch 4/4" in last
    assert "100%" in last


def test_the_net_recovers_with_a_loader_of_its_own(table):
    X, y = (part.astype(np.float32) for part in table)
    net = CFLLNet(
        small_network(),
        n_features=8,
        n_outputs=1,
        iterator_train=torch.utils.data.DataLoader,
        iterator_valid=torch.utils.data.DataLoader,
        batch_size=30,
        max_epochs=4,
        callbacks=[Spoil(8)],
    )
    with went_back("epoch 2: the loss is nan"):
        net.fit(X, y[:, None])
    assert net.n_recoveries_ == 1
    assert np.isfinite(net.predict(X)).all()


def test_heavy_tails_are_no_explosion(table):
    X, _ = table
    y = np.random.default_rng(0).standard_cauchy(len(X))
    for batch_size in (1, 10):
        model = regressor(batch_size=batch_size, max_epochs=4).fit(X, y)
        assert model.n_recoveries_ == 0
        assert np.isfinite(model.predict(X)).all()


def test_features_that_are_not_finite_in_use_are_told(table):
    class Training(nn.Module):
        def forward(self, X):
            return X if self.training else X * (1 + 1e200 * (X[:, :1] > 0.9).to(X))

    model = regressor(Training(), max_epochs=2, dtype="float64")
    X = np.vstack([np.zeros((2, 4)), table[0]])
    with pytest.raises(
        FloatingPointError,
        match=r"^the trained backbone's features of the training rows are not finite, "
        r"or their squares overflow; decrease lr, or scale X\.$",
    ):
        model.fit(X, np.arange(len(X)))
    assert not hasattr(model, "net_")


@pytest.mark.parametrize("early_stopping", [False, True])
def test_rows_without_finite_features_are_named_not_the_rate(table, early_stopping):
    X, y = np.abs(table[0]), table[1]
    model = regressor(LogOfFirst(), max_epochs=2, early_stopping=early_stopping)
    trained_on = watched(model, X, y)[1].rows.X[[20, 31], 0]
    rows = np.flatnonzero(np.isin(X[:, 0], trained_on))
    X[rows, 0] = 0
    n_rows = len(X) - 18 * early_stopping
    with pytest.raises(
        FloatingPointError, match=rf"^{features_not_finite(2, n_rows, rows[0])}$"
    ):
        regressor(LogOfFirst(), max_epochs=2, early_stopping=early_stopping).fit(X, y)


def test_a_stream_names_rows_without_finite_features_from_its_start(table):
    X, y = np.abs(table[0]), table[1]
    X[5, 0] = 0
    with pytest.raises(
        FloatingPointError, match=rf"^{features_not_finite(1, len(X), 5)}$"
    ):
        regressor(LogOfFirst(), max_epochs=2).partial_fit(X, y)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "refit_head"])
def test_rows_without_finite_features_are_named_in_use(table, method):
    X, y = np.abs(table[0]), table[1]

    class InUse(LogOfFirst):
        def forward(self, X):
            return super().forward(X + self.training)

    model = regressor(InUse(), max_epochs=2)
    if method != "fit":
        model.fit(X, y)
    X[7, 0] = 0
    expected = features_not_finite(1, len(X), 7)
    with pytest.raises(FloatingPointError, match=rf"^{expected}$"):
        getattr(model, method)(X, y)


# Ending early -------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """Python's own handling of Ctrl-C, which a process in the background is denied."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


def interrupted(epoch, of):
    return pytest.warns(
        ConvergenceWarning,
        match=rf"^training was interrupted in epoch {epoch} of {of}; the best state so "
        r"far is kept\.$",
    )


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("early_stopping", [False, True])
def test_ctrl_c_keeps_what_was_learnt(table, early_stopping):
    fixed = {"lr_schedule": "constant", "prox": 1.0, "early_stopping": early_stopping}
    model = regressor(callbacks=[Interrupt(4)], **fixed)
    with interrupted(4, 30):
        model.fit(*table)
    stopped = regressor(callbacks=[StopAfter(3)], **fixed).fit(*table)
    assert_array_equal(model.predict(table[0]), stopped.predict(table[0]))
    assert model.n_iter_ == stopped.n_iter_ == 3
    assert len(model.history_[:, "train_loss"]) == 3


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("make", [regressor, classifier])
def test_ctrl_c_at_once_leaves_a_usable_estimator(table, make):
    X, y = table
    model = make(callbacks=[Interrupt(1)], max_epochs=30)
    with interrupted(1, 30):
        model.fit(X, y > 0)
    assert model.n_iter_ == 0
    assert model.score(X, y > 0) > 0.3


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_midst_of_an_explosion_goes_back(table):
    model = steady(max_epochs=30, callbacks=[Spoil(4), Interrupt(5)])
    with interrupted(5, 30):
        model.fit(*table)
    assert np.isfinite(model.predict(table[0])).all()


def test_a_callback_that_stops_the_training_is_no_interruption(table):
    stop = EarlyStopping("train_loss", patience=1, threshold=1e3, sink=str)
    for callback in (stop, StopAfter(2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = regressor(callbacks=[callback]).fit(*table)
        assert model.n_iter_ == 2


def test_a_callback_that_raises_leaves_the_estimator_as_it_was(table):
    class Failing(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise OSError("no space left")

    model = regressor(max_epochs=2).fit(*table)
    before, predictions = dict(vars(model)), model.predict(table[0])
    model.callbacks = [Failing()]
    with pytest.raises(OSError, match="no space left"):
        model.fit(*table)
    assert {**vars(model), "callbacks": None} == before
    assert_array_equal(model.predict(table[0]), predictions)


# Weights ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 5, 3)])
def test_the_loss_of_predicting_nothing_has_the_weights_of_the_loss(shape):
    random = torch.Generator().manual_seed(0)
    targets = torch.randn(7, *shape[1:-1], 3, generator=random)
    weight = 5 * torch.rand(shape, generator=random)
    net = CFLLNet(nn.Identity, n_features=3, n_outputs=3, max_epochs=0)
    recovery = net.fit(targets.flatten(0, -2), targets.flatten(0, -2)).recovery_
    recovery.set_energy(targets, weight)
    expected = SquaredLoss()(torch.zeros_like(targets), targets, weight)
    assert_allclose(recovery.energy, expected, rtol=1e-6)
    recovery.set_energy(targets)
    assert_allclose(recovery.energy, targets.square().mean(), rtol=1e-6)
    recovery.set_energy(targets, weight, least=100.0)
    assert recovery.energy == 100


@pytest.mark.parametrize("kind", ["weights", "missing targets"])
def test_a_loss_on_few_heavy_rows_or_few_targets_is_no_explosion(kind):
    random = np.random.default_rng(0)
    X, weight = random.normal(size=(3000, 5)), None
    settings = {"batch_size": "full", "max_epochs": 100, "prox": 0}
    if kind == "weights":
        # Most of the loss is of a fiftieth of the rows.
        heavy = random.random(3000) < 0.02
        y = np.where(heavy, X[:, 0] + random.normal(size=3000), 0.0)
        weight = np.where(heavy, 200.0, 1.0)
    else:
        y = 3 * random.normal(size=(3000, 20)) + X @ random.normal(size=(5, 20)) / 2
        y[random.random(y.shape) > 0.05] = np.nan
        settings |= {"missing_targets": "ignore", "update_order": "backbone_first"}
        settings |= {"batch_size": 128, "max_epochs": 3, "prox": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = regressor(**settings).fit(X, y, sample_weight=weight)
    assert model.n_recoveries_ == 0


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_weights_that_leave_few_rows_are_told_where_the_training_diverges(method):
    random = np.random.default_rng(0)
    X, weight = random.normal(size=(120, 3)), np.logspace(-300, 300, 120)
    message = (
        r"\Asample_weight ranges from 1e-300 to 1e\+300, so that 120 rows count for 1; "
        r"narrow its range, by numpy\.clip for example\. On these rows training "
        r"diverged in epoch 1: the loss is nan, after 5 returns to an earlier state"
    )
    model = regressor(dtype="float32", batch_size=8)
    with pytest.raises(FloatingPointError, match=message):
        getattr(model, method)(X, X[:, 0], sample_weight=weight)


def test_weights_of_one_size_have_no_part_in_a_divergence():
    X = np.random.default_rng(0).normal(size=(120, 3))
    spoilt = regressor(lr_schedule=lambda progress: 1e300)
    with pytest.raises(FloatingPointError, match=r"\Atraining diverged in epoch "):
        spoilt.fit(X, X[:, 0], sample_weight=np.logspace(-3, 3, 120))
