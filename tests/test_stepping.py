"""A step goes past torch's wrapper and zero_grad, unless somebody would miss them."""

from __future__ import annotations

import functools

import pytest
import torch
from numpy.testing import assert_array_equal
from skorch.callbacks import Callback, LRScheduler
from small_models import regressor
from torch import nn
from torch.optim import AdamW
from torch.optim.optimizer import register_optimizer_step_post_hook

N_STEPS = 12
CPU = torch.profiler.ProfilerActivity.CPU


def fit(table, **params):
    return regressor(max_epochs=2, **params).fit(*table)


class Listener(Callback):
    """Registers a hook on the optimizer."""

    def __init__(self, method, hear):
        self.method = method
        self.hear = hear

    def on_train_begin(self, net, **kwargs):
        getattr(net.optimizer_, self.method)(self.hear)


@pytest.fixture
def records(monkeypatch):
    """Names of what was recorded for the profiler."""
    names = []

    class Record(torch.autograd.profiler.record_function):
        def __init__(self, name, *args):
            names.append(name)
            super().__init__(name, *args)

    monkeypatch.setattr(torch.autograd.profiler, "record_function", Record)
    return names


def steps_among(names):
    return sum(name.startswith("Optimizer.step#AdamW") for name in names)


def test_a_step_is_not_recorded_where_nobody_listens(table, records):
    fit(table)
    assert steps_among(records) == 0


def test_the_profiler_sees_each_step(table):
    with torch.profiler.profile(activities=[CPU], acc_events=True) as profile:
        fit(table)
    names = [event.name for event in profile.events()]
    assert steps_among(names) == N_STEPS
    assert (
        sum(name.startswith("Optimizer.zero_grad#AdamW") for name in names) == N_STEPS
    )


@pytest.mark.parametrize(
    "method", ["register_step_pre_hook", "register_step_post_hook"]
)
def test_a_hook_on_the_optimizer_hears_each_step(table, records, method):
    heard = []

    def hear(*args):
        heard.append(args)

    model = fit(table, callbacks=[Listener(method, hear)])
    assert len(heard) == N_STEPS
    assert steps_among(records) == N_STEPS
    assert_array_equal(model.predict(table[0]), fit(table).predict(table[0]))


def test_a_hook_on_all_optimizers_hears_each_step(table):
    steps = []
    handle = register_optimizer_step_post_hook(lambda *args: steps.append(args))
    try:
        fit(table)
    finally:
        handle.remove()
    assert len(steps) == N_STEPS


def test_a_scheduler_sees_that_the_optimizer_stepped(table):
    # Torch warns where it saw none, and here each warning is an error.
    fit(table, callbacks=[LRScheduler("StepLR", step_size=1, step_every="batch")])


def test_a_step_that_others_wrapped_is_taken(table, monkeypatch):
    calls = []
    AdamW([nn.Parameter(torch.zeros(1))])  # torch wraps the step of the first one

    def counted(function):
        @functools.wraps(function)
        def step(self, closure=None):
            calls.append(function)
            return function(self, closure)

        return step

    class Own(AdamW):
        step = counted(AdamW.step)

    fit(table, optimizer=Own)
    assert len(calls) == N_STEPS
    monkeypatch.setattr(AdamW, "step", counted(AdamW.step))
    fit(table)
    assert len(calls) == 2 * N_STEPS


def test_an_optimizer_that_leaves_the_closure_alone_is_an_error(table):
    class Forgetful(torch.optim.SGD):
        def step(self, closure=None):
            return super().step()

    message = (
        r"^optimizer Forgetful did not call the closure that its step was given, so "
        r"that it had no gradient; begin step\(closure\) by calling closure\(\) under "
        r"torch\.enable_grad\(\), as torch's optimizers do\.$"
    )
    with pytest.raises(TypeError, match=message):
        fit(table, optimizer=Forgetful)


class Delegate:
    """Has all that an optimizer has, and is none."""

    def __init__(self, params, **options):
        self.inner = AdamW(params, **options)

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_what_only_passes_for_an_optimizer_is_used_as_one(table):
    plain = fit(table, optimizer=AdamW, optimizer_params={"fused": False})
    other = fit(table, optimizer=Delegate)
    assert_array_equal(other.predict(table[0]), plain.predict(table[0]))


def test_a_way_to_clear_gradients_that_was_put_in_its_place_is_taken(
    table, monkeypatch
):
    calls = []

    def counted(self, set_to_none=True):
        calls.append(set_to_none)
        original(self, set_to_none)

    original = torch.optim.Optimizer.zero_grad
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", counted)
    fit(table)
    assert len(calls) == N_STEPS


def test_an_optimizers_own_way_to_clear_gradients_is_taken(table):
    calls = []

    class Own(AdamW):
        def zero_grad(self, set_to_none=True):
            calls.append(set_to_none)
            super().zero_grad(set_to_none)

    fit(table, optimizer=Own)
    assert len(calls) == N_STEPS


def test_gradients_do_not_add_up_over_steps(table):
    class Adding(AdamW):
        def zero_grad(self, set_to_none=True):
            pass

    predictions = [
        fit(table, optimizer=optimizer).predict(table[0])
        for optimizer in (AdamW, Adding)
    ]
    assert abs(predictions[0] - predictions[1]).max() > 1e-3
