"""Backbones: what each parameter does, and what is offered to a user's factory."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sklearn_cfll import MLP, CFLLRegressor, TorchBackbone
from sklearn_cfll._device import place
from sklearn_cfll._validation import as_backbone
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.layers import PeriodicEmbedding, ScaledLinear, Standardize
from sklearn_cfll.mlp import ACTIVATIONS


@pytest.fixture(name="X")
def columns():
    return np.random.default_rng(0).normal(size=(40, 3)) * [1, 10, 0.1] + [0, 5, -3]


@pytest.fixture
def batches(X):
    return TensorBatches(X, X[:, :1])


def layers_of(module, kind):
    return [layer for layer in module if isinstance(layer, kind)]


# MLP ------------------------------------------------------------------------------


def test_width_and_depth_set_the_hidden_layers(batches):
    module = MLP(width=5, depth=3, embedding=None).build(batches)
    sizes = [(a.in_features, a.out_features) for a in layers_of(module, nn.Linear)]
    assert sizes == [(3, 5), (5, 5), (5, 5)]
    assert module(torch.randn(7, 3)).shape == (7, 5)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_stands_behind_each_hidden_layer(batches, name):
    module = MLP(width=5, depth=2, activation=name).build(batches)
    assert [type(module[3]), type(module[5])] == [ACTIVATIONS[name]] * 2


def test_an_activation_may_be_anything_that_makes_a_module(batches):
    module = MLP(activation=lambda: nn.LeakyReLU(0.3)).build(batches)
    assert module[3].negative_slope == 0.3
    assert module[3] is not module[5]


def test_dropout_stands_behind_each_hidden_layer_but_the_last(batches):
    module = MLP(width=5, depth=3, dropout=0.4).build(batches)
    assert [layer.p for layer in layers_of(module, nn.Dropout)] == [0.4, 0.4]
    kinds = [type(layer) for layer in module]
    assert kinds[4] == kinds[7] == nn.Dropout
    assert layers_of(MLP(depth=3).build(batches), nn.Dropout) == []
    X = torch.randn(7, 3)
    assert not torch.equal(module(X), module(X))
    module.eval()
    assert torch.equal(module(X), module(X))


def test_normalize_gives_every_row_mean_zero_and_variance_one(batches):
    X = torch.randn(7, 3)
    normal = MLP(width=50).build(batches)(X)
    torch.testing.assert_close(normal.mean(1), torch.zeros(7), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        normal.var(1, unbiased=False), torch.ones(7), rtol=0.01, atol=0
    )
    plain = MLP(width=50, normalize=False).build(batches)
    assert plain(X).mean(1).abs().max() > 1e-3
    assert layers_of(plain, nn.LayerNorm) == []


def test_the_scale_and_shift_of_the_columns_make_no_difference(X):
    outputs = []
    for table in [X, X * [100, 1e-3, 7] + [5, -2, 1e3]]:
        torch.manual_seed(0)
        batches = TensorBatches(table, dtype=torch.float64)
        module = MLP(width=5).build(batches).double()
        outputs.append(module(torch.from_numpy(table)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)


# Periodic embedding ---------------------------------------------------------------


def embedding_of(backbone, X):
    module = backbone.build(TensorBatches(X, X[:, :1]))
    return next(iter(layers_of(module, PeriodicEmbedding)), None)


def test_columns_of_more_than_two_values_are_embedded(X):
    X[:, 0] = X[:, 0] > 0
    X[:, 2] = np.where(X[:, 1] > 5, 2.5, np.where(X[:, 1] > 0, 7, -1))
    assert embedding_of(MLP(), X).columns.tolist() == [1, 2]
    assert embedding_of(MLP(), X[:, :1]) is None


def test_values_of_rows_far_down_make_a_column_numeric():
    X = np.zeros((2**22 // 3, 3), dtype=np.float32)  # more than a chunk
    X[0, 0], X[-1, 1], X[-1, 2], X[-2, 2] = 1, 1, 1, 2
    assert TensorBatches(X).numeric_columns().tolist() == [2]


def test_the_embedding_appends_combinations_of_cosines(X):
    X[:, 0] = X[:, 0] > 0
    layer = embedding_of(MLP(n_frequencies=5, embedding_size=2), X)
    rows = torch.from_numpy(X[:4]).float()
    expected = [rows]
    for i, column in enumerate([1, 2]):
        waves = [
            torch.cos(rows[:, column] * layer.frequency[i, 0, j] + layer.phase[i, 0, j])
            for j in range(5)
        ]
        expected.append(torch.stack(waves, 1) @ layer.weight[i] + layer.bias[i])
    torch.testing.assert_close(layer(rows), torch.cat(expected, 1))


def test_the_numbers_of_the_embedding_set_its_sizes(X):
    layer = embedding_of(MLP(n_frequencies=7, embedding_size=4), X)
    assert layer.weight.shape == (3, 7, 4)
    assert layer(torch.randn(6, 3)).shape == (6, 3 + 3 * 4)
    torch.manual_seed(0)
    layer = embedding_of(MLP(n_frequencies=5_000, frequency_scale=0.3), X)
    periods = layer.frequency / (2 * np.pi)
    assert periods.std().item() == pytest.approx(0.3, rel=0.05)


def test_many_columns_are_embedded_on_demand_alone():
    X = np.random.default_rng(0).normal(size=(9, 257))
    assert embedding_of(MLP(), X) is None
    assert len(embedding_of(MLP(), X[:, 1:]).columns) == 256
    assert len(embedding_of(MLP(embedding="periodic"), X).columns) == 257
    assert embedding_of(MLP(embedding=None), X[:, :5]) is None


def test_the_embedding_learns_a_wave_that_the_plain_network_does_not():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(600, 2))
    y = np.sin(25 * X[:, 0])
    settings = {"max_epochs": 30, "random_state": 0, "early_stopping": False}
    scores = [
        CFLLRegressor(MLP(embedding=kind, frequency_scale=1.0), **settings)
        .fit(X[:500], y[:500])
        .score(X[500:], y[500:])
        for kind in ("periodic", None)
    ]
    assert scores[0] > 0.95
    assert scores[1] < 0.7


# Factors of the inputs --------------------------------------------------------------


def first_layer(backbone, batches):
    return layers_of(backbone.build(batches), nn.Linear)[0]


def test_the_first_layer_alone_has_factors_of_its_inputs(batches):
    first, second = layers_of(MLP(width=5).build(batches), nn.Linear)
    assert isinstance(first, ScaledLinear)
    assert type(second) is nn.Linear
    assert first.excess.shape == (3 + 3 * 3,)
    assert type(first_layer(MLP(gain_rate=0), batches)) is nn.Linear
    assert first_layer(MLP(gain_rate=0.5), batches).rate == 0.5


def test_factors_are_one_at_first_and_multiply_the_inputs():
    layer = ScaledLinear(3, 4, rate=2.0)
    X = torch.randn(5, 3)
    torch.testing.assert_close(
        layer(X), nn.functional.linear(X, layer.weight, layer.bias), rtol=0, atol=0
    )
    with torch.no_grad():
        layer.excess.copy_(torch.tensor([0.5, -0.5, 0.0]))
    scaled = X * torch.tensor([2.0, 0.0, 1.0])
    expected = nn.functional.linear(scaled, layer.weight, layer.bias)
    torch.testing.assert_close(layer(X), expected)


def test_a_step_moves_the_factors_gain_rate_times_as_far(X):
    y = X[:, 0]
    for rate in (0.5, 3.0):
        model = CFLLRegressor(
            MLP(gain_rate=rate),
            max_epochs=1,
            batch_size="full",
            lr=0.01,
            lr_schedule="constant",
            early_stopping=False,
            random_state=0,
        ).fit(X, y)
        layer = layers_of(model.backbone_, nn.Linear)[0]
        moved = (layer.rate * layer.excess).detach().abs().median().item()
        assert moved == pytest.approx(0.01 * rate, rel=0.01)  # Adam's first step


def test_columns_that_matter_get_larger_factors_and_fits_less_error():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2_000, 30))
    y = X[:, 0] * X[:, 1]
    ratios = []
    for seed in range(3):
        models = [
            CFLLRegressor(MLP(gain_rate=rate), max_epochs=5, random_state=seed)
            for rate in (3.0, 0)
        ]
        scaled, plain = (
            1 - model.fit(X[:1_500], y[:1_500]).score(X[1_500:], y[1_500:])
            for model in models
        )
        ratios.append(scaled / plain)
        excess = layers_of(models[0].backbone_, nn.Linear)[0].excess[:30]
        assert excess[:2].min() > max(0.1, excess[2:].max())
    assert np.exp(np.mean(np.log(ratios))) < 0.5  # 0.24, 0.52 and 0.45


# Standardize ----------------------------------------------------------------------


def test_standardised_columns_have_mean_zero_and_variance_one(X):
    batches = TensorBatches(X, dtype=torch.float64)
    scaled = Standardize.fitted(batches)(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-12)


def test_standardising_takes_integer_weights_as_repeated_rows(X):
    counts = np.arange(40) % 4
    weighted = TensorBatches(X, sample_weight=counts, dtype=torch.float64)
    repeated = TensorBatches(np.repeat(X, counts, axis=0), dtype=torch.float64)
    one, other = Standardize.fitted(weighted), Standardize.fitted(repeated)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.scale, other.scale, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6, 1e12, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_column_becomes_zero_and_keeps_its_unit(X, constant, dtype):
    X[:, 1] = constant
    module = Standardize.fitted(TensorBatches(X, dtype=dtype))
    assert module.scale[1] == 1
    scaled = module(torch.from_numpy(X).to(dtype))
    torch.testing.assert_close(
        scaled[:, 1].abs().amax() / max(abs(constant), 1),
        torch.zeros((), dtype=dtype),
        rtol=0,
        atol=1e-6,
    )
    assert module.scale[0] != 1


def test_standardising_is_saved_with_the_weights_but_not_trained(batches):
    module = Standardize.fitted(batches)
    assert list(module.parameters()) == []
    assert sorted(module.state_dict()) == ["mean", "scale"]


# TorchBackbone --------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, in_features, width=4, *, bias=True):
        super().__init__()
        self.linear = nn.Linear(in_features, width, bias=bias)

    def forward(self, X):
        return torch.tanh(self.linear(X))


class SizeInTheMiddle(nn.Module):
    def __init__(self, width, in_features):
        super().__init__()
        self.sizes = in_features, width


def first_is_size(n_columns, width=4):
    return nn.Linear(n_columns, width)


def no_size(width=4):
    return nn.Linear(3, width)


def only_keywords(*, width=4):
    return nn.Linear(3, width)


def test_the_input_size_is_offered_as_in_features(batches):
    assert TorchBackbone(Net, width=6).build(batches).linear.in_features == 3
    module = TorchBackbone(SizeInTheMiddle, width=6).build(batches)
    assert module.sizes == (3, 6)


def test_a_size_that_the_user_gives_is_kept(batches):
    module = TorchBackbone(Net, in_features=9).build(batches)
    assert module.linear.in_features == 9
    assert TorchBackbone(first_is_size, n_columns=9).build(batches).in_features == 9


def test_else_the_input_size_is_the_first_argument(batches):
    module = TorchBackbone(first_is_size, width=6).build(batches)
    assert (module.in_features, module.out_features) == (3, 6)


@pytest.mark.parametrize("factory", [no_size, only_keywords])
def test_a_factory_without_a_place_for_the_size_is_not_offered_it(batches, factory):
    assert TorchBackbone(factory).build(batches).out_features == 4
    assert TorchBackbone(factory, width=6).build(batches).out_features == 6


def test_each_build_makes_a_module_of_its_own(batches):
    backbone = TorchBackbone(Net)
    first, second = backbone.build(batches), backbone.build(batches)
    assert first is not second
    assert not torch.equal(first.linear.weight, second.linear.weight)


def test_parameters_are_got_set_cloned_and_shown():
    backbone = TorchBackbone(Net, width=6)
    assert backbone.get_params() == {"factory": Net, "width": 6}
    assert repr(backbone) == f"TorchBackbone(factory={Net!r}, width=6)"
    twin = clone(backbone)
    assert twin.get_params() == backbone.get_params()
    twin.set_params(width=7, bias=False)
    assert twin.get_params() == {"factory": Net, "width": 7, "bias": False}
    assert backbone.get_params() == {"factory": Net, "width": 6}


def test_an_estimator_reaches_the_factorys_parameters(X):
    model = CFLLRegressor(TorchBackbone(Net, width=6), max_epochs=1, random_state=0)
    model.set_params(backbone__width=5, backbone__bias=False)
    assert clone(model).get_params()["backbone__width"] == 5
    model.fit(X, X[:, 0])
    assert model.backbone_.linear.weight.shape == (5, 3)
    assert model.backbone_.linear.bias is None


@pytest.mark.parametrize("prefix", ["", "backbone__"], ids=["itself", "nested"])
def test_a_misspelt_parameter_is_told(prefix):
    backbone = TorchBackbone(Net, width=6)
    target = CFLLRegressor(backbone) if prefix else backbone
    message = (
        r"^Invalid parameter 'widht' for backbone Net; valid parameters are "
        r"\['bias', 'in_features', 'width'\]\.$"
    )
    with pytest.raises(ValueError, match=message):
        target.set_params(**{f"{prefix}widht": 5})
    assert backbone.get_params() == {"factory": Net, "width": 6}


def test_a_factory_must_make_a_module(batches):
    def numbers(in_features):
        return [in_features]

    with pytest.raises(
        TypeError,
        match=r"^backbone numbers returned a list; it must return a "
        r"torch\.nn\.Module\.$",
    ):
        TorchBackbone(numbers).build(batches)


# Instances and precision ----------------------------------------------------------


def test_an_instance_is_copied_with_its_weights_and_left_as_it_is(X):
    module = Net(3).eval()
    module.linear.bias.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    model = CFLLRegressor(module, max_epochs=2, random_state=0).fit(X, X[:, 0])
    assert model.backbone_ is not module
    assert model.backbone is module
    assert not module.training
    assert module.linear.weight.grad is None
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == torch.float32
    trained = model.backbone_.linear
    assert not torch.equal(trained.weight.float(), module.linear.weight)
    assert torch.equal(trained.bias.float(), module.linear.bias)  # frozen


def test_nothing_and_instances_are_turned_into_backbones(batches):
    assert as_backbone(None).get_params() == MLP().get_params()
    mlp = MLP(width=3)
    assert as_backbone(mlp) is mlp
    module = Net(3)
    built = as_backbone(module).build(batches)
    assert built is not module
    assert torch.equal(built.linear.weight, module.linear.weight)


@pytest.mark.parametrize(
    ("dtype", "complex_dtype"),
    [(torch.float64, torch.complex128), (torch.float32, torch.complex64)],
)
def test_casting_keeps_complex_parameters_complex_and_integers_integer(
    dtype, complex_dtype
):
    module = nn.Module()
    module.spectrum = nn.Parameter(torch.tensor([1 + 2j]))
    module.real = nn.Parameter(torch.tensor([0.5]))
    module.register_buffer("count", torch.tensor(7))
    place(module, torch.device("cpu"), dtype)
    assert module.spectrum.dtype == complex_dtype
    assert module.spectrum.item() == 1 + 2j
    assert module.spectrum.requires_grad
    assert module.real.dtype == dtype
    assert module.count.dtype == torch.int64


def test_a_backbone_with_complex_weights_is_trained(X):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.spectrum = nn.Parameter(torch.ones(2, 5, dtype=torch.complex64))

        def forward(self, X):
            spectrum = torch.fft.rfft(X)[:, :, None] * self.spectrum
            return torch.tanh(torch.view_as_real(spectrum).flatten(1))

    module = Spectral()
    model = CFLLRegressor(module, max_epochs=2, random_state=0).fit(X, X[:, 0])
    trained = model.backbone_.spectrum
    assert trained.dtype == torch.complex128
    assert not torch.equal(trained, torch.ones_like(trained))
    assert np.isfinite(model.predict(X)).all()
