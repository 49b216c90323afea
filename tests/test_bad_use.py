"""Models that are used too early, or with other columns than they were fitted on."""

import numpy as np
import pandas as pd
import pytest
from refusals import (
    LABELS,
    X,
    Y,
    classifier,
    learnt_by,
    not_finite,
    regressor,
    target,
    with_value,
)
from sklearn.exceptions import NotFittedError
from small_models import LogOfFirst
from torch import nn

from sklearn_cfll import MLP, CFLLRegressor

METHODS = [
    *[(regressor, name) for name in ["predict", "transform"]],
    *[(classifier, name) for name in ["predict", "decision_function", "transform"]],
    *[(classifier, name) for name in ["predict_proba", "predict_log_proba"]],
]


@pytest.mark.parametrize(("make", "method"), METHODS)
def test_a_model_must_be_fitted_first(make, method):
    model = make()
    message = (
        rf"^This {type(model).__name__} instance is not fitted yet\. Call 'fit' with "
        r"appropriate arguments before using this estimator\.$"
    )
    with pytest.raises(NotFittedError, match=message):
        getattr(model, method)(X)
    with pytest.raises(NotFittedError, match=message):
        _ = model.backbone_


@pytest.mark.parametrize(("make", "method"), METHODS)
def test_the_columns_must_be_those_of_fit(make, method):
    model = make()
    model.fit(X, target(model))
    with pytest.raises(
        ValueError,
        match=rf"^X has 3 features, but {type(model).__name__} is expecting 4 features "
        r"as input\.$",
    ):
        getattr(model, method)(X[:, :3])
    with pytest.raises(ValueError, match=r"^Input X contains NaN\."):
        getattr(model, method)(with_value(X, np.nan))


TEXT = np.array([["a", "b", "c", "d"]] * 3)
X_NUMBERS = r"; X must hold numbers: encode text, by OneHotEncoder in a pipeline for "
Y_NUMBERS = r"; y must hold numbers: take CFLLClassifier for labels\.$"


@pytest.mark.parametrize(("make", "method"), METHODS)
@pytest.mark.parametrize("form", [np.array, pd.DataFrame, np.ndarray.tolist])
def test_text_in_place_of_columns_is_told(make, method, form):
    model = make()
    model.fit(X, target(model))
    with pytest.raises(ValueError, match=f"^could not convert string .*{X_NUMBERS}"):
        getattr(model, method)(form(TEXT))


def test_text_in_place_of_targets_is_told():
    model = regressor().fit(X, Y)
    for method in [model.score, model.partial_fit, model.conformalize]:
        with pytest.raises(ValueError, match=f"^could not convert .*{Y_NUMBERS}"):
            method(X, LABELS)


def test_the_names_of_the_columns_must_be_those_of_fit():
    model = regressor().fit(pd.DataFrame(X, columns=list("abcd")), Y)
    expected = model.predict(pd.DataFrame(X, columns=list("abcd")))
    with pytest.raises(
        ValueError,
        match=r"^The feature names should match those that were passed during fit\.\n"
        r"Feature names unseen at fit time:\n- e\n"
        r"Feature names seen at fit time, yet now missing:\n- d\n$",
    ):
        model.predict(pd.DataFrame(X, columns=list("abce")))
    np.testing.assert_array_equal(
        model.predict(pd.DataFrame(X, columns=list("abcd"))), expected
    )


def test_numbers_beyond_the_precision_of_the_model_are_refused_in_predict():
    model = regressor(dtype="float32").fit(X, Y)
    with pytest.raises(
        ValueError,
        match=rf"^{not_finite('predictions', len(X) // 2)}$",
    ):
        model.predict(with_value(X, 1e300))


def test_the_row_that_the_backbone_gives_no_finite_features_for_is_named():
    model = regressor(backbone=LogOfFirst()).fit(np.abs(X), Y)
    spoilt = np.abs(X)
    spoilt[[17, 40], 0] = 0
    with pytest.raises(ValueError, match=rf"^{not_finite('predictions', 17)}$"):
        model.predict(spoilt)


def test_a_warm_start_takes_the_shapes_and_labels_of_the_first_fit_alone():
    for make, arguments, message in [
        (
            regressor,
            {"X": X[:, :3]},
            r"X has 3 features, but CFLLRegressor is expecting 4 features as input\.",
        ),
        (
            regressor,
            {"y": np.column_stack([Y, -Y])},
            r"y has shape \(60, 2\) but the y of the training has shape "
            r"\(n_samples,\); pass the same outputs\.",
        ),
        (
            classifier,
            {"y": np.where(Y > 1, "perhaps", LABELS)},
            r"y holds the label 'perhaps', none of the classes \['no', 'yes'\] of the "
            r"training; leave its rows out\.",
        ),
    ]:
        model = make(warm_start=True)
        model.fit(X, target(model))
        predictions, learnt = model.predict(X), learnt_by(model)
        with pytest.raises(ValueError, match=rf"^{message}$"):
            model.fit(**{"X": X, "y": target(model), **arguments})
        assert all(learnt_by(model)[name] is learnt[name] for name in learnt)
        np.testing.assert_array_equal(model.predict(X), predictions)


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("sample_norm", None, "relative", "sample_norm .* from None to 'relative'"),
        ("sample_norm", "relative", None, "sample_norm .* from 'relative' to None"),
        ("backbone", MLP(width=8), MLP(width=9), "backbone__width .* from 8 to 9"),
        ("backbone", MLP(width=8), nn.Tanh(), "backbone .* from MLP to Tanh.*"),
    ],
    ids=["relative", "absolute", "width", "kind"],
)
def test_a_warm_start_refuses_what_the_network_was_not_made_by(
    name, before, after, told
):
    model = CFLLRegressor(warm_start=True, max_epochs=1, random_state=0)
    model.set_params(**{name: before}).fit(X, Y)
    predictions = model.predict(X)
    told = told.replace(" .* ", " has changed since the last fit, ")
    message = (
        rf"^{told}, but warm_start=True goes on from its network and its scaling of y; "
        r"set it back, or set warm_start=False to begin anew\.$"
    )
    with pytest.raises(ValueError, match=message):
        model.set_params(**{name: after}).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X), predictions)
    model.set_params(warm_start=False).fit(X, Y)
    model.set_params(**{name: before}, warm_start=False).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X), predictions)
