"""Callbacks of skorch work and stay untouched; the estimators print a bar alone."""

from __future__ import annotations

import copy
import re
import time

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from skorch.callbacks import (
    BatchScoring,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
    ProgressBar,
)
from small_models import classifier, regressor, small_network, watched
from torch import nn

CALLBACKS = {
    "EarlyStopping": lambda folder: EarlyStopping("train_loss", sink=str),
    "Checkpoint": lambda folder: Checkpoint(dirname=folder, sink=str),
    "LRScheduler": lambda folder: LRScheduler("StepLR", step_size=1, gamma=0.5),
    "EpochScoring": lambda folder: EpochScoring("r2", name="r2"),
    "ProgressBar": lambda folder: ProgressBar(),
    "GradientNormClipping": lambda folder: GradientNormClipping(1e-3),
}


def state(value):
    """Give what a callback holds, in terms that compare."""
    attributes = getattr(value, "__dict__", None)
    if attributes is None or isinstance(value, type) or callable(value):
        return value
    return {name: state(attribute) for name, attribute in attributes.items()}


# skorch's own -------------------------------------------------------------------


@pytest.mark.parametrize("form", ["object", "named"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_is_copied_and_stays_as_it_was(
    table, fresh_rows, tmp_path, name, form
):
    callback = CALLBACKS[name](tmp_path)
    before = copy.deepcopy(state(callback))
    given = [callback if form == "object" else ("mine", callback)]
    model = regressor(callbacks=given, max_epochs=2)
    model.fit(*table, X_val=fresh_rows[0], y_val=fresh_rows[1])
    assert state(callback) == before
    assert model.callbacks is given
    assert len(given) == 1
    trained = dict(model.net_.callbacks_)[name if form == "object" else "mine"]
    assert type(trained) is type(callback)
    assert trained is not callback


def test_early_stopping_of_skorch_ends_the_training(table):
    stop = EarlyStopping("train_loss", patience=3, threshold=1e3, sink=str)
    model = regressor(callbacks=[stop], max_epochs=20).fit(*table)
    # No epoch gains a thousandfold on the first.
    assert model.n_iter_ == 4
    assert dict(model.net_.callbacks_)["EarlyStopping"].misses_ == 3


def test_checkpoint_writes_the_best_epoch(table, fresh_rows, tmp_path):
    callback = Checkpoint(monitor="valid_loss_best", dirname=tmp_path, sink=str)
    model = regressor(callbacks=[callback], early_stopping=True, prox=0.1)
    X_val, y_val = fresh_rows[0][:20], fresh_rows[1][:20]
    model.fit(*table, X_val=X_val, y_val=y_val)
    saved = torch.load(tmp_path / "params.pt")
    trained = model.net_.module_.state_dict()
    assert saved.keys() == trained.keys()
    for name in saved:
        if name.startswith("backbone."):
            assert_array_equal(saved[name], trained[name])
    flags = model.history_[:, "valid_loss_best"]
    losses = model.history_[:, "valid_loss"]
    assert np.flatnonzero(flags)[-1] == np.argmin(losses)
    assert not all(flags)


def test_a_scheduler_of_skorch_rules_alone(table):
    schedule = LRScheduler("StepLR", step_size=1, gamma=0.5)
    model = regressor(callbacks=[schedule], lr=0.02, max_epochs=4)
    model, seen = watched(model, *table)
    assert_allclose(seen.lr, 0.02 * 0.5 ** np.repeat(range(4), 6), rtol=1e-12)
    assert model.lr_schedule == "cooldown"


def test_a_scheduler_may_step_with_each_batch(table):
    schedule = LRScheduler("StepLR", step_size=1, gamma=0.5, step_every="batch")
    model = regressor(callbacks=[schedule], lr=0.02, max_epochs=2)
    _, seen = watched(model, *table)
    # The scheduler steps at the end of a batch, before the watcher reads the rate.
    assert_allclose(seen.lr, 0.02 * 0.5 ** np.arange(1, 13), rtol=1e-12)


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("backbone", [None, small_network()], ids=["MLP", "module"])
def test_epoch_scoring_scores_in_the_users_units(
    table, fresh_rows, backbone, use_caching
):
    X_val, y_val = fresh_rows
    name = "neg_mean_absolute_error"
    callback = EpochScoring(
        name, lower_is_better=False, name="mae", use_caching=use_caching
    )
    model = regressor(backbone, callbacks=[callback], scoring=name, max_epochs=3)
    model.fit(*table, X_val=X_val, y_val=y_val)
    scores = model.history_[:, "mae"]
    assert_allclose(scores, model.history_[:, "valid_score"], rtol=1e-9)
    assert max(scores) < 0
    assert len(set(scores)) == 3


def test_epoch_scoring_of_the_training_rows(table):
    callback = EpochScoring("r2", on_train=True, name="r2", use_caching=False)
    model = regressor(callbacks=[callback]).fit(*table)
    assert model.history_[-1, "r2"] == pytest.approx(model.score(*table), abs=0.05)


def test_epoch_scoring_of_labels(fresh_rows):
    X, y = fresh_rows
    labels = np.where(y > np.median(y), "high", "low")
    callback = EpochScoring("accuracy", lower_is_better=False, name="accuracy")
    model = classifier(callbacks=[callback]).fit(X, labels, X_val=X, y_val=labels)
    ours, theirs = (model.history_[:, n] for n in ("valid_score", "accuracy"))
    assert_allclose(ours, theirs, rtol=1e-9)
    assert ours[-1] > 0.9


@pytest.mark.parametrize("use_caching", [True, False])
def test_batch_scoring_compares_predictions_with_targets_as_both_are_encoded(
    table, fresh_rows, use_caching
):
    callback = BatchScoring("r2", name="r2", use_caching=use_caching)
    X, y = table
    model = regressor(callbacks=[callback], batch_size=200, max_epochs=3)
    model.fit(X, 50 + 9 * y, X_val=fresh_rows[0], y_val=50 + 9 * fresh_rows[1])
    scores = model.history_[:, "r2"]
    assert_allclose(scores, model.history_[:, "valid_score"], rtol=1e-9)


def test_clipped_gradients_hold_the_backbone(table):
    moves = []
    for callbacks in ([GradientNormClipping(1e-12)], []):
        module = small_network()
        model = regressor(module, optimizer="sgd", callbacks=callbacks).fit(*table)
        pairs = zip(module.parameters(), model.backbone_.parameters(), strict=True)
        moves.append(max(float((a - b).abs().max().detach()) for a, b in pairs))
    assert moves[0] < 1e-8 < 1e-2 < moves[1]


class Slow(nn.Module):
    """Takes its time, since skorch's bar draws ten times a second at most."""

    def forward(self, X):
        time.sleep(0.12)
        return X


def test_progress_bar_of_skorch_shows_the_loss(table, capfd):
    bar = ProgressBar(detect_notebook=False)
    regressor(Slow(), callbacks=[bar], max_epochs=1, batch_size=90).fit(*table)
    shown = capfd.readouterr().err
    assert re.search(r"2/2 \[.*, train_loss=0\.\d+\]", shown)


def test_a_callback_may_be_a_class(table):
    model = regressor(callbacks=[GradientNormClipping], max_epochs=1).fit(*table)
    clipping = dict(model.net_.callbacks_)["GradientNormClipping"]
    assert isinstance(clipping, GradientNormClipping)


# What is printed ----------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("make", [regressor, classifier])
def test_verbose_0_prints_nothing(fresh_rows, capfd, make, early_stopping):
    X, y = fresh_rows
    model = make(early_stopping=early_stopping, n_iter_no_change=1, tol=1.0)
    model.fit(X, y > 0)
    model.predict(X)
    assert capfd.readouterr() == ("", "")


def test_verbose_1_shows_one_bar_with_loss_score_and_time_left(table, capfd):
    model = regressor(verbose=1, max_epochs=4, early_stopping=True).fit(*table)
    shown = capfd.readouterr()
    assert shown.out == ""
    last = re.split(r"[\r\n]+", shown.err.strip())[-1]
    row = model.history_[-1]
    pattern = (
        r"epoch 4/4:? +\|█{10}\| 100% \[\d\d:\d\d < 00:00, "
        r"loss=(\d\.\d{4}), score=(\d\.\d{4})\]"
    )
    found = re.fullmatch(pattern, last)
    assert found, last
    assert len(last) < 80  # the width of a plain terminal
    names = ("train_loss", "valid_score")
    assert found.groups() == tuple(f"{row[name]:.4f}" for name in names)


def test_the_bar_shows_the_training_score_without_held_out_rows(table, capfd):
    model = regressor(verbose=1, max_epochs=2).fit(*table)
    last = capfd.readouterr().err.strip().split("\r")[-1]
    assert last.endswith(
        f"loss={model.history_[-1, 'train_loss']:.4f}, "
        f"score={model.history_[-1, 'train_score']:.4f}]"
    )


def test_the_bar_leaves_the_fit_as_it_is(table, capfd):
    silent, shown = (regressor(verbose=v, max_epochs=3).fit(*table) for v in (0, 1))
    assert_array_equal(silent.predict(table[0]), shown.predict(table[0]))
    assert capfd.readouterr().err
