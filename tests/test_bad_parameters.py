"""Parameters that can't be used: what is said, and that the last fit stays whole."""

import numpy as np
import pytest
import torch
from refusals import LABELS, N_ROWS, X, Y, assert_refused, case, classifier, regressor
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from sklearn_cfll import MLP, CFLLClassifier, CFLLIVRegressor, CFLLRegressor
from sklearn_cfll.losses import TrueClassWeight


def invalid(name, value, wanted, *, make=regressor, shown=None):
    """State the refusal of a value by scikit-learn's table of constraints."""
    kind = type(make()).__name__
    return case(
        f"{name}={value!r}",
        InvalidParameterError,
        rf"The '{name}' parameter of {kind} must be {wanted}\. Got "
        rf"{shown or value!r} instead\.",
        make=make,
        params={name: value},
    )


POSITIVE_PROX = (
    r"None, a str among \{'auto'\}, a float in the range \[0\.0, inf\), an instance of "
    r"'tuple', an instance of "
    r"'list' or an instance of 'numpy\.ndarray'"
)
ALPHA = r"a str among \{'auto'\}, a float in the range \[0\.0, inf\) or an array-like"
OUT_OF_TABLE = [
    invalid("optimizer", "adamww", r"a str among \{.*'adamw'.*\} or a callable"),
    invalid("lr_schedule", "cosin", r"a str among \{.*'cosine'.*\} or a callable"),
    invalid("update_order", "head", r"a str among \{.*'head_first'.*\}"),
    invalid("prox", -1.0, POSITIVE_PROX),
    invalid("prox", "strong", POSITIVE_PROX),
    invalid("alpha", -1.0, ALPHA),
    invalid("alpha", float("nan"), ALPHA),
    invalid("alpha", "best", ALPHA),
    invalid(
        "batch_size", 0, r"a str among \{.*'full'.*\} or an int in the range \[1, inf\)"
    ),
    invalid(
        "batch_size",
        2.5,
        r"a str among \{.*'full'.*\} or an int in the range \[1, inf\)",
    ),
    invalid(
        "max_epochs", 0, r"a str among \{'auto'\} or an int in the range \[1, inf\)"
    ),
    invalid("lr", 0, r"a str among \{'auto'\} or a float in the range \(0\.0, inf\)"),
    invalid("weight_decay", -0.1, r"None or a float in the range \[0\.0, inf\)"),
    invalid("optimizer_params", 3, r"None or an instance of 'dict'"),
    invalid(
        "early_stopping",
        "yes",
        r"a str among \{'auto'\} or an instance of 'bool' or an instance of "
        r"'numpy\.bool_?'",
    ),
    invalid("validation_fraction", 1.0, r"a float in the range \(0\.0, 1\.0\)"),
    invalid("n_iter_no_change", 0, r"an int in the range \[1, inf\)"),
    invalid("tol", -1, r"a float in the range \[0\.0, inf\)"),
    invalid("scoring", "r3", r"None, a str among \{.*'r2'.*\} or a callable"),
    invalid("dtype", "float16", r"a str among \{.*'float32'.*\}"),
    invalid("callbacks", 3, r"None, an instance of 'list' or an instance of 'tuple'"),
    invalid("net_params", 3, r"None or an instance of 'dict'"),
    invalid(
        "warm_start", 3, r"an instance of 'bool' or an instance of 'numpy\.bool_?'"
    ),
    invalid(
        "random_state",
        2**40,
        r"an int in the range \[0, 4294967295\], an instance of "
        r"'numpy\.random\.mtrand\.RandomState' or None",
    ),
    invalid(
        "class_weight",
        "fair",
        r"None, an instance of 'dict' or a str among \{'balanced'\}",
        make=classifier,
    ),
]
NOT_POSITIVE = (
    r"prox must be positive and finite, at its start and its end; got \({}\)\."
)
NO_PAIR = r"prox must be None, 'auto', a number or a pair \(start, end\), got {}\."
NO_ALPHAS = (
    r"alpha must be a number, 'auto' or one number for each output \(1 here\), got {}\."
)
NO_WEIGHTS = r"class_weight must be finite and not negative, got .*{}.*"


def make_a_number(params, lr):
    return 3


BY_THE_PACKAGE = [
    case(
        "prox from zero",
        ValueError,
        NOT_POSITIVE.format("0, 1"),
        params={"prox": (0, 1)},
    ),
    case(
        "prox to a negative",
        ValueError,
        NOT_POSITIVE.format("1, -2"),
        params={"prox": (1, -2)},
    ),
    case(
        "prox from NaN",
        ValueError,
        NOT_POSITIVE.format("nan, 1"),
        params={"prox": (float("nan"), 1)},
    ),
    case(
        "prox in three",
        ValueError,
        NO_PAIR.format(r"\(1, 2, 3\)"),
        params={"prox": (1, 2, 3)},
    ),
    case(
        "prox in words",
        ValueError,
        NO_PAIR.format(r"\('a', 1\)"),
        params={"prox": ("a", 1)},
    ),
    case(
        "one alpha too many",
        ValueError,
        NO_ALPHAS.format(r"\[1, 2\]"),
        params={"alpha": [1, 2]},
    ),
    case(
        "alpha in words",
        ValueError,
        NO_ALPHAS.format(r"\['a'\]"),
        params={"alpha": ["a"]},
    ),
    case(
        "a negative alpha among several",
        ValueError,
        r"alpha must be finite and not negative, got \[1, -1\]\.",
        params={"alpha": [1, -1]},
        y=np.column_stack([Y, -Y]),
    ),
    case(
        "weight decay where there is none",
        ValueError,
        r"weight_decay=0\.1 was given but optimizer 'lbfgs' takes none; set "
        r"weight_decay=None\.",
        params={"optimizer": "lbfgs", "weight_decay": 0.1},
    ),
    case(
        "an unknown argument of the optimizer",
        TypeError,
        r"AdamW\.__init__\(\) got an unexpected keyword argument 'beta'",
        params={"optimizer_params": {"beta": 1}},
    ),
    case(
        "a rate given twice",
        ValueError,
        r"optimizer_params holds 'lr' beside lr='auto'; set lr alone\.",
        params={"optimizer_params": {"lr": 0.1}},
    ),
    case(
        "a weight decay given twice",
        ValueError,
        r"optimizer_params holds 'weight_decay' beside weight_decay=0\.1; set "
        r"weight_decay alone\.",
        params={"weight_decay": 0.1, "optimizer_params": {"weight_decay": 0.2}},
    ),
    case(
        "what makes no optimizer",
        TypeError,
        r"optimizer <function make_a_number at 0x\w+> made an? int; it must make a "
        r"torch\.optim\.Optimizer\.",
        params={"optimizer": make_a_number},
    ),
    case(
        "no callback",
        TypeError,
        r"callbacks must hold skorch callbacks, got 3\.",
        params={"callbacks": [3]},
    ),
    case(
        "an unknown argument of the net",
        (TypeError, ValueError),
        r"__init__\(\) got unexpected argument\(s\) iterator_trian\. .*",
        params={"net_params": {"iterator_trian": None}},
    ),
    case(
        "criterion that is none",
        TypeError,
        r"criterion must be a torch\.nn\.Module or what makes one, .*; got 1\.",
        params={"net_params": {"criterion": 1}},
    ),
    *[
        case(
            f"{name} among the net's arguments",
            ValueError,
            rf"net_params holds '{name}', which CFLLRegressor sets itself; {cure}",
            params={"net_params": {"compile": False, name: value}},
        )
        for name, value, cure in [
            *[
                (own, value, rf"use the estimator's own {own} instead\.")
                for own, value in [
                    ("alpha", 0.1),
                    ("prox", 1.0),
                    ("update_order", "head_first"),
                    ("optimizer", torch.optim.SGD),
                    ("lr", 0.1),
                    ("lr_schedule", "constant"),
                    ("max_epochs", 3),
                    ("batch_size", 7),
                    ("callbacks", []),
                    ("device", "cpu"),
                ]
            ],
            ("module", MLP(), r"use the estimator's own backbone instead\."),
            (
                "optimizer__weight_decay",
                0.1,
                r"use the estimator's own optimizer_params instead\.",
            ),
            (
                "train_split",
                None,
                r"use the estimator's own early_stopping and validation_fraction, or "
                r"X_val, instead\.",
            ),
            ("valid_score", None, r"use the estimator's own scoring instead\."),
            (
                "iterator_train__batch_size",
                7,
                r"use the estimator's own batch_size instead\.",
            ),
            ("use_caching", True, r"leave it out\."),
            ("train_score", None, r"leave it out\."),
            ("decode", None, r"leave it out\."),
            ("n_features", 8, r"leave it out\."),
            ("n_outputs", 1, r"leave it out\."),
        ]
    ],
    case(
        "weights of outputs beside those of the estimator",
        ValueError,
        r"net_params holds 'output_weight', which CFLLClassifier sets itself; use the "
        r"estimator's own true_class_weight instead\.",
        make=classifier,
        params={
            "true_class_weight": 3.0,
            "net_params": {"output_weight": TrueClassWeight(2.0)},
        },
        y=np.arange(N_ROWS) % 3,
    ),
    case(
        "a schedule that gives NaN",
        ValueError,
        r"lr_schedule gave nan at the progress 0; it must give a finite factor of the "
        r"rate for each progress in \[0, 1\)\.",
        params={"lr_schedule": lambda progress: float("nan")},
    ),
    case(
        "too few rows to hold some out",
        ValueError,
        r"validation_fraction=0\.1 of 2 rows leaves fewer than 2 rows to train on; "
        r"pass more rows or set early_stopping=False\.",
        params={"early_stopping": True},
        X=X[:2],
        y=Y[:2],
    ),
    case(
        "a negative class weight",
        ValueError,
        NO_WEIGHTS.format("-1"),
        make=classifier,
        params={"class_weight": {"no": -1.0, "yes": 1.0}},
    ),
    case(
        "class weights that leave no row any weight",
        ValueError,
        r"sample_weight times class_weight is zero for every row; give some one\.",
        make=classifier,
        params={"class_weight": {"no": 0.0, "yes": 1.0}},
        sample_weight=(LABELS == "no").astype(float),
    ),
    case(
        "a class weight that is no number",
        ValueError,
        NO_WEIGHTS.format("nan"),
        make=classifier,
        params={"class_weight": {"no": float("nan"), "yes": 1.0}},
    ),
    case(
        "weights of other classes",
        ValueError,
        r"The classes, \['no', 'yes'\], are not in class_weight",
        make=classifier,
        params={"class_weight": {"maybe": 1.0}},
    ),
    case(
        "a device that is not there",
        ValueError,
        r"device='cuda:99' is not available here \(.*\); use device='auto' or 'cpu'\.",
        params={"device": "cuda:99"},
    ),
    case(
        "an unknown device",
        ValueError,
        r"device='gpu' is not available here \(.*\); use device='auto' or 'cpu'\.",
        params={"device": "gpu"},
    ),
    case(
        "a device whose module of torch is not there",
        ValueError,
        r"device='hpu' is not available here \(.*\); use device='auto' or 'cpu'\.",
        params={"device": "hpu"},
    ),
    case(
        "a device without numbers",
        ValueError,
        r"device='meta' is not available here \(it holds no numbers\); use "
        r"device='auto' or 'cpu'\.",
        params={"device": "meta"},
    ),
]


@pytest.mark.parametrize(
    ("make", "params", "arguments", "error", "message"), OUT_OF_TABLE
)
def test_a_value_that_no_constraint_allows(make, params, arguments, error, message):
    assert_refused(make, params, arguments, error, message)


@pytest.mark.parametrize(
    ("make", "params", "arguments", "error", "message"), BY_THE_PACKAGE
)
def test_a_value_that_does_not_fit_the_rest(make, params, arguments, error, message):
    assert_refused(make, params, arguments, error, message)


def test_huge_sizes_that_mean_something_are_taken():
    small = regressor(batch_size=len(X)).fit(X, Y).predict(X)
    huge = regressor(batch_size=2**70).fit(X, Y).predict(X)
    np.testing.assert_array_equal(huge, small)


def test_a_misspelt_parameter_is_told_by_its_name():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'max_epoch'$"):
        CFLLRegressor(max_epoch=3)
    with pytest.raises(TypeError, match=r"takes from 1 to 2 positional arguments"):
        CFLLRegressor(None, 0.1)
    with pytest.raises(
        ValueError, match=r"^Invalid parameter 'max_epoch' for estimator CFLLRegressor"
    ):
        CFLLRegressor().set_params(max_epoch=3)


@pytest.mark.parametrize("kind", [CFLLRegressor, CFLLClassifier, CFLLIVRegressor])
def test_a_parameter_of_a_backbone_that_has_none_is_told(kind):
    why = (
        r"'backbone__width' can't be set, since backbone is {} and has no parameters; "
    )
    with pytest.raises(ValueError, match=why.format("None") + r".*=MLP"):
        kind().set_params(backbone__width=8)
    model = kind(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=why.format("a Linear")):
        model.set_params(backbone__width=8, lr=0.5)
    assert model.lr != 0.5  # nothing was set
    with pytest.raises(ValueError, match=why.format("the class Linear") + r".*=MLP\("):
        kind(nn.Linear).set_params(backbone__width=8)
    instance = r"pass an instance, backbone=MLP\(\.\.\.\)\.$"
    with pytest.raises(ValueError, match=why.format("the class MLP") + instance):
        kind(MLP).set_params(backbone__width=8)
    model.set_params(backbone=MLP(), backbone__width=8)
    assert model.backbone.width == 8
    with pytest.raises(ValueError, match=r"^Invalid parameter 'widht' for .* MLP"):
        model.set_params(backbone__widht=8)


def test_a_backbone_that_the_estimator_does_not_take_is_told():
    with pytest.raises(ValueError, match=r"^Invalid parameter 'instrument_backbone'"):
        CFLLRegressor().set_params(instrument_backbone__width=3)


def test_a_class_without_weight_counts_as_absent():
    assert_refused(
        classifier,
        {"class_weight": {"no": 0.0, "yes": 1.0}},
        {"y": LABELS},
        ValueError,
        r"y holds one class, 'yes', where its rows have weight; CFLLClassifier needs "
        r"two classes or more\.",
    )
