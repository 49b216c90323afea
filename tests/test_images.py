"""Image networks as backbones, and the example on images in its quick mode."""

import importlib
import re

import numpy as np
import pytest
from test_examples import run_quickly
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor, TorchBackbone


class Residual(nn.Module):
    """A small residual network with BatchNorm, for images of any size."""

    def __init__(self, in_features=3, width=16):
        super().__init__()
        self.first = nn.Conv2d(in_features, width, 3, padding=1)
        self.block = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, X):
        planes = self.first(X)
        return (planes + self.block(planes)).relu().mean((2, 3))


def of_torchvision():
    models = importlib.import_module("torchvision.models")
    network = models.resnet18(weights=None)
    network.fc = nn.Identity()
    return network


def of_timm():
    timm = importlib.import_module("timm")
    return timm.create_model("resnet10t", pretrained=False, num_classes=0)


def is_there(make):
    try:
        make()
    except (ImportError, RuntimeError):  # torchvision's own, with another torch
        return False
    return True


# None of them reads weights from the network.
NETWORKS = {"own": Residual}
NETWORKS |= {
    name: make
    for name, make in {"torchvision": of_torchvision, "timm": of_timm}.items()
    if is_there(make)
}


@pytest.fixture(scope="module")
def images():
    """Noise, and in the second class a bright square within."""
    y = np.arange(90) % 2
    X = np.random.default_rng(0).normal(size=(90, 3, 32, 32)).astype(np.float32)
    X[y == 1, :, 8:24, 8:24] += 1
    return X, y


@pytest.mark.parametrize("make", NETWORKS.values(), ids=list(NETWORKS))
def test_a_network_without_its_classifier_is_a_backbone(images, make):
    X, y = images
    backbone = TorchBackbone(make)
    settings = {"lr": 3e-3, "max_epochs": 4, "batch_size": 15, "random_state": 0}
    model = CFLLClassifier(backbone, **settings).fit(X[:60], y[:60])
    assert model.score(X[60:], y[60:]) > 0.9
    # What BatchNorm has learnt predicts one image as it does many.
    one_by_one = [model.predict_proba(X[i : i + 1])[0] for i in range(60, 70)]
    np.testing.assert_allclose(one_by_one, model.predict_proba(X[60:70]), atol=1e-5)


def test_images_of_another_size_are_predicted(images):
    X, y = images
    model = CFLLRegressor(
        TorchBackbone(Residual), lr=3e-3, max_epochs=4, batch_size=15, random_state=0
    ).fit(X, y)
    wide = np.tile(X, 2)
    assert wide.shape == (90, 3, 32, 64)
    expected = model.transform(wide) @ model.coef_ + model.intercept_
    np.testing.assert_allclose(model.predict(wide), expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "kind"), [("auto", "float32"), ("float64",) * 2])
def test_images_are_computed_in_float32_unless_asked_otherwise(images, dtype, kind):
    X, y = images
    model = CFLLRegressor(
        TorchBackbone(Residual), dtype=dtype, max_epochs=1, batch_size=30
    ).fit(X, y)
    assert {str(p.dtype) for p in model.backbone_.parameters()} == {f"torch.{kind}"}


def test_the_example_trains_in_three_ways(tmp_path):
    computed, printed = run_quickly("plot_images.py", tmp_path)
    table = computed["table"]
    rows = re.findall(r"^([a-z -]+?) +0\.\d+ +(\d) +[\d.]+ +(0\.\d{4}) ", printed, re.M)
    assert len(rows) == len(table) == 6
    for name, epochs, accuracy in rows:
        shown = table[name, int(epochs)][1]
        assert float(accuracy) == pytest.approx(shown, abs=5.1e-5)
    assert table["closed form", 2][1] > 0.8


def test_images_are_moved_whole(tmp_path):
    computed, _ = run_quickly("plot_images.py", tmp_path)
    torch = computed["torch"]
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    moved = computed["shifted"](image.expand(50, 1, 8, 8))
    assert moved.shape == (50, 1, 8, 8)
    inner = moved[:, 0, 2:6, 2:6] - image[0, 0, 2:6, 2:6]
    steps = inner[:, 0, 0]
    assert (inner == steps[:, None, None]).all()
    assert set(steps.tolist()) == {8.0 * i + j for i in (-1, 0, 1) for j in (-1, 0, 1)}
