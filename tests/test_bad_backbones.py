"""Backbones that can't be used: what is said, and that the last fit stays whole."""

import warnings
from functools import partial

import pytest
import torch
from refusals import X, Y, assert_refused, case, features_not_finite, regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from sklearn_cfll import MLP, CFLLRegressor, SmallMLP, TorchBackbone


class Net(nn.Module):
    """Sends its features through a function that spoils them."""

    def __init__(self, spoil):
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.spoil = spoil

    def forward(self, X):
        return self.spoil(self.linear(X))


def fail(features):
    raise KeyError("inside")


def spoilt(name, error, message, spoil):
    return case(name, error, message, params={"backbone": Net(spoil)})


GIVEN = r"for X of shape \(2, 4\)"
FEATURES = (
    r"backbone Net returned features of shape {} "
    + GIVEN
    + r"; it must return \(2, n_features\) with n_features of at least 1\."
)
ONE_TENSOR = (
    r"backbone Net returned an? {} "
    + GIVEN
    + r"; it must return one tensor of features, \(n_samples, n_features\)\."
)
NOT_A_BACKBONE = (
    r"backbone must be None, a torch\.nn\.Module instance, MLP\(\.\.\.\) or "
    r"TorchBackbone\(\.\.\.\), got {}; {}\."
)
WRAP = r"wrap a class or a function as TorchBackbone\({}\)"


def network(in_features):
    raise AssertionError("not called as a bare function")


def needy(n_in, h, width=4, *, act):
    raise AssertionError("not called without its arguments")


def divide(in_features):
    return in_features / 0


IN_FORWARD = [
    spoilt(
        "raises",
        ValueError,
        rf"backbone Net raised KeyError {GIVEN}: 'inside'",
        fail,
    ),
    spoilt(
        "NaN",
        ValueError,
        rf"backbone Net returned features that are not finite {GIVEN}; scale X or "
        r"check the backbone's initial weights\.",
        lambda features: features * torch.nan,
    ),
    spoilt(
        "a tuple", TypeError, ONE_TENSOR.format("tuple"), lambda features: (features,)
    ),
    spoilt("nothing", TypeError, ONE_TENSOR.format("NoneType"), lambda features: None),
    spoilt(
        "an array",
        TypeError,
        ONE_TENSOR.format("ndarray"),
        lambda features: features.detach().numpy(),
    ),
    spoilt(
        "fewer rows",
        ValueError,
        FEATURES.format(r"\(1, 8\)"),
        lambda features: features[:1],
    ),
    spoilt(
        "more rows",
        ValueError,
        FEATURES.format(r"\(4, 8\)"),
        lambda features: torch.cat([features, features]),
    ),
    spoilt(
        "no features",
        ValueError,
        FEATURES.format(r"\(2, 0\)"),
        lambda features: features[:, :0],
    ),
    spoilt(
        "one axis",
        ValueError,
        FEATURES.format(r"\(2,\)"),
        lambda features: features[:, 0],
    ),
    spoilt(
        "no axis", ValueError, FEATURES.format(r"\(\)"), lambda features: features.sum()
    ),
    spoilt(
        "three axes",
        ValueError,
        FEATURES.format(r"\(2, 1, 8\)"),
        lambda features: features[:, None],
    ),
    spoilt(
        "complex features",
        TypeError,
        r"backbone Net returned complex features; it must return real ones, for "
        r"example by torch\.view_as_real\.",
        lambda features: torch.complex(features, features),
    ),
    spoilt(
        "NaN for some rows",
        FloatingPointError,
        features_not_finite(54, 60, 6),
        lambda features: torch.where(
            torch.arange(len(features))[:, None] > 5, torch.nan, features
        ),
    ),
    case(
        "another number of columns",
        ValueError,
        rf"backbone Linear raised RuntimeError {GIVEN}: mat1 and mat2 shapes cannot be "
        r"multiplied \(2x4 and 3x8\)",
        params={"backbone": nn.Linear(3, 8)},
    ),
]
NOT_BUILT = [
    case(
        "a bare class",
        TypeError,
        NOT_A_BACKBONE.format(
            r"<class 'torch\.nn\.modules\.linear\.Linear'>", WRAP.format("Linear")
        ),
        params={"backbone": nn.Linear},
    ),
    case(
        "the class MLP",
        TypeError,
        NOT_A_BACKBONE.format(
            r"<class 'sklearn_cfll\.mlp\.MLP'>", r"pass an instance, MLP\(\.\.\.\)"
        ),
        params={"backbone": MLP},
    ),
    case(
        "a bare function",
        TypeError,
        NOT_A_BACKBONE.format(r"<function network at 0x\w+>", WRAP.format("network")),
        params={"backbone": network},
    ),
    case(
        "another estimator",
        TypeError,
        NOT_A_BACKBONE.format(r"CFLLRegressor\(\)", "pass one of these"),
        params={"backbone": CFLLRegressor()},
    ),
    case(
        "a name",
        TypeError,
        NOT_A_BACKBONE.format("'mlp'", "pass one of these"),
        params={"backbone": "mlp"},
    ),
    case(
        "a factory that raises",
        ValueError,
        r"backbone divide could not be built: division by zero",
        params={"backbone": TorchBackbone(divide)},
    ),
    case(
        "a misspelt argument",
        ValueError,
        r"backbone Linear could not be built: Linear\.__init__\(\) got an unexpected "
        r"keyword argument 'out_featurez'",
        params={"backbone": TorchBackbone(nn.Linear, out_featurez=3)},
    ),
    case(
        "a missing argument",
        ValueError,
        r"backbone Linear could not be built: Linear\.__init__\(\) missing 1 required "
        r"positional argument: 'out_features'; pass what it needs: "
        r"TorchBackbone\(Linear, out_features=\.\.\.\)\.",
        params={"backbone": TorchBackbone(nn.Linear)},
    ),
    case(
        "several missing arguments, one of them by keyword alone",
        ValueError,
        r"backbone needy could not be built: needy\(\) missing .*; pass what it needs: "
        r"TorchBackbone\(needy, h=\.\.\., act=\.\.\.\)\.",
        params={"backbone": TorchBackbone(needy, width=3)},
    ),
    case(
        "missing arguments of a partial function",
        ValueError,
        r"backbone partial\(needy, \.\.\.\) could not be built: needy\(\) missing .*; "
        r"pass what it needs: TorchBackbone\(partial\(needy, \.\.\.\), h=\.\.\.\)\.",
        params={"backbone": TorchBackbone(partial(needy, width=3, act=nn.Tanh))},
    ),
    case(
        "a partial function by itself",
        TypeError,
        NOT_A_BACKBONE.format(
            r"functools\.partial\(.*\)", WRAP.format(r"partial\(network, \.\.\.\)")
        ),
        params={"backbone": partial(network, width=3)},
    ),
    case(
        "a module in place of its class",
        TypeError,
        r"TorchBackbone takes a class or a function that makes a module, got the "
        r"module Linear; pass the module itself as backbone, or its class\.",
        params={"backbone": TorchBackbone(nn.Linear(4, 3))},
    ),
    *[
        case(
            f"{type(backbone).__name__} with the activation {name}",
            TypeError,
            r"activation must be a name, or what makes a module when it is called "
            rf"without arguments, got {got}; pass {cure}, such as torch\.nn\.ReLU\.",
            params={"backbone": backbone},
        )
        for name, got, cure, backbone in [
            ("ReLU()", r"ReLU\(\)", "its class", MLP(activation=nn.ReLU())),
            ("relu", r"<built-in .*relu.*>", "a class", MLP(activation=torch.relu)),
            ("Tanh()", r"Tanh\(\)", "its class", SmallMLP(activation=nn.Tanh())),
        ]
    ],
    case(
        "a factory that makes no module",
        TypeError,
        r"backbone <lambda> returned a tuple; it must return a torch\.nn\.Module\.",
        params={"backbone": TorchBackbone(lambda in_features: (in_features,))},
    ),
    case(
        "more memory than there is",
        ValueError,
        r"backbone Linear could not be built: .*(can't allocate|not enough) memory.*",
        params={"backbone": TorchBackbone(nn.Linear, out_features=2**45)},
    ),
    case(
        "a size that overflows",
        ValueError,
        r"backbone Linear could not be built: .*[Oo]verflow.*",
        params={"backbone": TorchBackbone(nn.Linear, out_features=2**63)},
    ),
    *[
        case(
            f"MLP with {name}={value}",
            InvalidParameterError,
            rf"The '{name}' parameter of MLP must be {wanted}\. Got {value!r} "
            r"instead\.",
            params={"backbone": MLP(**{name: value})},
        )
        for name, value, wanted in [
            ("width", 0, r"an int in the range \[1, 2147483648\)"),
            ("width", 2**63, r"an int in the range \[1, 2147483648\)"),
            ("depth", 0, r"an int in the range \[1, 2147483648\)"),
            ("dropout", 1.0, r"a float in the range \[0\.0, 1\.0\)"),
            ("activation", "silo", r"a str among \{.*'silu'.*\} or a callable"),
        ]
    ],
]


@pytest.mark.parametrize(
    ("make", "params", "arguments", "error", "message"), IN_FORWARD
)
def test_what_a_backbone_may_not_return(make, params, arguments, error, message):
    assert_refused(make, params, arguments, error, message)


@pytest.mark.parametrize("layer", [nn.Linear(4, 8), nn.Conv1d(4, 8, 1)])
def test_a_backbone_that_casts_is_told_of_the_precision_of_small_tables(layer):
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, X):
            X = X.float()
            return self.layer(X if layer.weight.ndim == 2 else X[..., None]).flatten(1)

    message = (
        rf"backbone Casts raised RuntimeError {GIVEN}: .*(?<!\.)"
        r"; tables of up to 300 rows are trained in float64: set dtype='float32', or "
        r"let the backbone take the dtype of X\."
    )
    assert_refused(regressor, {"backbone": Casts()}, {}, ValueError, message)
    regressor(backbone=Casts(), dtype="float32").fit(X, Y)
    with pytest.raises(ValueError, match="raised RuntimeError") as caught:
        regressor(backbone=Casts(), dtype="float64").fit(X, Y)
    assert "tables of up to" not in str(caught.value)


@pytest.mark.parametrize(("make", "params", "arguments", "error", "message"), NOT_BUILT)
def test_what_makes_no_backbone(make, params, arguments, error, message):
    assert_refused(make, params, arguments, error, message)


def test_a_failing_fit_leaves_the_users_module_as_it_was():
    module = Net(lambda features: (features,))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert_refused(
        regressor, {"backbone": module}, {}, TypeError, ONE_TENSOR.format("tuple")
    )
    assert module.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("order", ["head_first", "backbone_first"])
def test_rows_that_get_lost_in_large_batches_alone_are_noticed(order):
    module = Net(lambda features: features if len(features) < 3 else features[:-1])
    assert_refused(
        regressor,
        {"backbone": module, "update_order": order},
        {},
        ValueError,
        r"the backbone returned features of shape \(59, \d+\) for targets of shape "
        r"\(60, 1\); it must keep all axes but the last\.",
    )


class Detached(nn.Module):
    """Gives features that carry no gradient."""

    def __init__(self, in_features):
        super().__init__()
        self.layer = nn.Linear(in_features, 8)

    def forward(self, X):
        return self.layer(X).tanh().detach()


def test_features_without_gradient_are_told():
    message = "^no step had a gradient in the parameters of the backbone, .* freeze"
    with pytest.warns(ConvergenceWarning, match=message):
        model = regressor(backbone=TorchBackbone(Detached)).fit(X, Y)
    assert model.score(X, Y) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen = Detached(4).requires_grad_(False)
        assert regressor(backbone=frozen).fit(X, Y).score(X, Y) > 0


class Sometimes(Detached):
    """Lets gradients through in some steps."""

    def forward(self, X):
        features = self.layer(X).tanh()
        return features.detach() if torch.rand(()) < 0.5 else features


def test_some_steps_may_have_no_gradient():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(backbone=TorchBackbone(Sometimes), max_epochs=10).fit(X, Y)


@pytest.mark.parametrize("fitted", [False, True])
def test_there_is_no_training_in_inference_mode(fitted):
    model = regressor()
    if fitted:
        model.fit(X, Y)
    before = dict(vars(model))
    message = r"^training needs gradients, which torch\.inference_mode keeps none of; "
    with torch.inference_mode(), pytest.raises(ValueError, match=message):
        model.fit(X, Y)
    assert vars(model) == before
