"""A step on an accelerator never waits for it: it reads no value and sends none.

Tensors on torch's meta device have shapes and no values, so that whatever reads one
raises, on any machine. On a GPU torch itself tells what waits.
"""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from numpy.testing import assert_allclose
from small_models import classifier, regressor
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sklearn_cfll import CFLLNet
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.kalman import KalmanUpdate
from sklearn_cfll.losses import Tally, TrueClassWeight, accuracy
from sklearn_cfll.one_hot import OneHot
from sklearn_cfll.stepping import take_step
from sklearn_cfll.updates import BatchRidgeUpdate

STEPS = {
    "the default": {},
    "more rows than features": {"n_rows": 64},
    "weights": {"weighted": True},
    "weights of outputs": {"output_weight": TrueClassWeight(3.0)},
    "a prox that is learnt": {"prox": "auto"},
    "one ridge for each output": {"alpha": torch.tensor([0.1, 0.2], device="meta")},
    "the root of the loss": {"objective": "root"},
    "the backbone first": {"update_order": "backbone_first"},
    "each batch alone": {"head_update": BatchRidgeUpdate()},
    "a Kalman filter": {"head_update": KalmanUpdate()},
    "one with process noise": {"head_update": KalmanUpdate(process_noise=0.01)},
    "a constant rate": {"lr_schedule": "constant"},
}


class Transfers(TorchDispatchMode):
    """Notes what has tensors on several devices, as a copy between them has.

    Numbers that are made on a device are sent there, too.
    """

    def __init__(self):
        super().__init__()
        self.noted = []
        self.made = MadeOnMeta(self.noted)

    def __enter__(self):
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *args):
        super().__exit__(*args)
        self.made.__exit__(*args)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        if len({t.device for t in leaves if isinstance(t, torch.Tensor)}) > 1:
            self.noted.append(func)
        return out


class MadeOnMeta(TorchFunctionMode):
    """Notes tensors that are made of numbers, which torch doesn't dispatch here."""

    makers = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)

    def __init__(self, noted):
        super().__init__()
        self.noted = noted

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in self.makers and out.device.type == "meta":
            data = args[-1]
            if not isinstance(data, torch.Tensor) or data.device != out.device:
                self.noted.append(func)
        return out


def net_on_meta(**params):
    """Make a net without values that is about to train for three steps."""
    backbone = nn.Sequential(nn.Linear(4, 32), nn.SiLU())
    net = CFLLNet(backbone, n_features=32, n_outputs=2, device="meta", **params)
    net.initialize()
    net.step_, net.n_steps_ = 0, 3
    net.starting_ = net.searches_ = net.grad_listeners_ = False
    net.batch_listeners_, net.progress_ = False, []
    net.writes_, net.has_gradient_ = None, False
    net.rates_ = [group["lr"] for group in net.optimizer_.param_groups]
    net.lr_schedule_ = net.lr_schedule
    net.head_update_ = net._own_update()
    net.recovery_ = SimpleNamespace(step=take_step, watch=lambda loss: False)
    return net


def steps_on_meta(n_rows=16, weighted=False, **params):
    """Take three steps without values; give what was copied between devices."""
    net = net_on_meta(**params)
    X = torch.empty(n_rows, 4, device="meta")
    inputs = {"X": X, "sample_weight": X[:, 0]} if weighted else {"X": X}
    with Transfers() as transfers:
        for _ in range(net.n_steps_):
            step = net.train_step((inputs, torch.empty(n_rows, 2, device="meta")))
    assert step["loss"].device.type == "meta"
    return transfers.noted


@pytest.mark.parametrize("params", STEPS.values(), ids=STEPS)
def test_a_step_reads_no_value_and_sends_none(params):
    assert steps_on_meta(**params) == []


@pytest.mark.parametrize(
    ("weight", "transfers"), [(32, 1), (torch.empty((), device="meta"), 0)]
)
def test_a_tally_sends_its_weights_at_once(weight, transfers):
    tally = Tally()
    value = torch.empty((), device="meta")
    with Transfers() as seen:
        for _ in range(64):
            tally.add(value, weight)
    assert not tally._noted
    assert len(seen.noted) == transfers


@pytest.mark.parametrize("labels", [False, True])
def test_a_pass_sends_the_order_of_its_rows_alone(labels, monkeypatch):
    net = net_on_meta(train_score=accuracy)
    monkeypatch.setattr(net, "_must_check", lambda loss: False)
    targets = OneHot(torch.arange(96) % 2, 2) if labels else torch.empty(96, 2)
    batches = TensorBatches(
        torch.empty(96, 4),
        targets,
        batch_size=32,
        generator=torch.Generator().manual_seed(0),
        device="meta",
    )
    with Transfers() as transfers:
        net._run_pass(batches, True, net.train_step, {})
    assert net.step_ == 3
    assert len(transfers.noted) == 1


def test_what_reads_a_value_is_found():
    with pytest.raises((RuntimeError, NotImplementedError)):
        steps_on_meta(batch_transform=lambda X: X + X.sum().item())
    with pytest.raises((RuntimeError, NotImplementedError)):
        steps_on_meta(batch_transform=lambda X: X if X.any() else 2 * X)
    with pytest.raises(NotImplementedError):
        steps_on_meta(batch_transform=lambda X: X.cpu())


@pytest.mark.parametrize(
    "transform",
    [
        lambda X: X + torch.ones(4).to(X.device),
        lambda X: X + torch.tensor(1.0, device=X.device),
        lambda X: X + torch.as_tensor([1.0] * 4, device=X.device),
        lambda X: X + X.new_tensor([1.0] * 4),
    ],
    ids=["to", "tensor", "as_tensor", "new_tensor"],
)
def test_what_sends_a_value_is_found(transform):
    assert len(steps_on_meta(batch_transform=transform)) == 3


# On a GPU -------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@on_a_gpu
@pytest.mark.parametrize("kind", [regressor, classifier])
@pytest.mark.parametrize("prox", [(1, 100), "auto"])
def test_torch_sees_no_step_wait_for_the_gpu(table, kind, prox, monkeypatch):
    X, y = table
    steps = []
    take = CFLLNet.train_step

    def watched(net, batch, **params):
        steps.append(batch)
        if len(steps) == 1:  # which starts the head, once for a training
            return take(net, batch, **params)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return take(net, batch, **params)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(CFLLNet, "train_step", watched)
    kind(device="cuda", max_epochs=2, prox=prox).fit(
        X, y > 0 if kind is classifier else y
    )
    assert len(steps) > 4


@on_a_gpu
def test_a_fit_on_the_gpu_is_as_good_as_one_on_the_cpu(table, fresh_rows):
    models = [regressor(device=device).fit(*table) for device in ("cuda", "cpu")]
    there, here = (model.score(*fresh_rows) for model in models)
    # Rounding differs, and the training amplifies it.
    assert there == pytest.approx(here, abs=0.05)
    assert next(models[0].net_.module_.parameters()).is_cuda
    stored = pickle.loads(pickle.dumps(models[0]))
    assert next(stored.net_.module_.parameters()).device.type == "cpu"
    assert_allclose(
        stored.predict(fresh_rows[0]), models[0].predict(fresh_rows[0]), atol=1e-3
    )
