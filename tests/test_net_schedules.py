"""Rates of a CFLLNet: where they begin, whoever schedules them, and what they leave."""

import contextlib

import numpy as np
import pytest
import torch
from skorch.callbacks import Checkpoint, LoadInitState, LRScheduler
from torch import nn

from sklearn_cfll import CFLLNet

_random = np.random.default_rng(0)
X = _random.normal(size=(60, 3)).astype(np.float32)
TARGETS = np.sin(X[:, :1]).astype(np.float32)
HALVES = {"lr_schedule": lambda progress: 1.0 if progress < 0.5 else 0.5}


def net_of(**params):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
    settings = {"lr": 0.01, "max_epochs": 2, "batch_size": 20, **params}
    return CFLLNet(backbone, n_features=8, n_outputs=1, **settings)


def rates_of(net):
    return net.history[:, "lr"]


class Ending:
    """An objective that raises at its fifth call."""

    def __init__(self, error):
        self.error, self.n_calls = error, 0

    def __call__(self, loss):
        self.n_calls += 1
        if self.n_calls == 5:
            raise self.error
        return loss


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_further_training_begins_at_the_rate_of_the_first(optimizer):
    net = net_of(optimizer=optimizer, **HALVES).fit(X, TARGETS)
    assert rates_of(net.partial_fit(X, TARGETS)) == [0.01, 0.005] * 2
    net = net_of(optimizer=optimizer, warm_start=True, **HALVES).fit(X, TARGETS)
    assert rates_of(net.fit(X, TARGETS).fit(X, TARGETS)) == [0.01, 0.005] * 3


def test_each_group_of_parameters_gets_its_own_rate_back():
    groups = [("0.bias", {"lr": 0.1})]
    net = net_of(optimizer__param_groups=groups, **HALVES).fit(X, TARGETS)
    assert [group["lr"] for group in net.optimizer_.param_groups] == [0.1, 0.01]
    assert rates_of(net.partial_fit(X, TARGETS)) == [0.1, 0.05] * 2


def test_a_rate_that_is_set_between_trainings_counts():
    net = net_of(**HALVES).fit(X, TARGETS).set_params(lr=0.002)
    assert rates_of(net.partial_fit(X, TARGETS))[2:] == [0.002, 0.001]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.filterwarnings("ignore:training was interrupted")
def test_a_training_that_ends_early_leaves_the_rate_as_it_was(error):
    net = net_of(lr_schedule="linear", objective=Ending(error))
    with contextlib.suppress(ValueError):  # which an error in an objective becomes
        net.fit(X, TARGETS)
    assert net.objective.n_calls == 5
    assert net.optimizer_.param_groups[0]["lr"] == 0.01


def test_a_state_saved_in_the_midst_goes_on_at_the_rate_without_schedule(tmp_path):
    last = Checkpoint(dirname=tmp_path, monitor=lambda net: len(net.history) == 2)
    net_of(callbacks=[last], **HALVES).fit(X, TARGETS)
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["lr"] == 0.005
    again = net_of(callbacks=[LoadInitState(last)], **HALVES).fit(X, TARGETS)
    assert rates_of(again)[2:] == [0.01, 0.005]


def test_a_scheduler_among_the_callbacks_rules_alone():
    scheduler = LRScheduler("StepLR", step_size=1, gamma=0.1)
    net = net_of(callbacks=[scheduler], max_epochs=3).fit(X, TARGETS)
    np.testing.assert_allclose(rates_of(net), [0.01, 0.001, 0.0001])


def test_a_schedule_that_is_not_there_is_refused():
    wanted = "'cooldown', 'cosine', 'linear', 'constant', None or a function"
    with pytest.raises(ValueError, match=f"lr_schedule must be {wanted}.*'cosin'"):
        net_of(lr_schedule="cosin").fit(X, TARGETS)
