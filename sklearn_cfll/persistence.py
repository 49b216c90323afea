"""Saves estimators and loads them again, without pickle."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._codec import Reader
from sklearn_cfll._device import resolve_device
from sklearn_cfll._modules import ModuleReader, ModuleWriter, net_of
from sklearn_cfll._names import name_of
from sklearn_cfll.backbones import Backbone, TorchBackbone
from sklearn_cfll.iv import CFLLIVRegressor

_FORMAT = "sklearn_cfll"
_ESTIMATORS = (BaseCFLL, CFLLIVRegressor)
_VERSION = 1


def save(estimator: BaseCFLL | CFLLIVRegressor, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to a file.

    The file is one of safetensors: all arrays, and in its metadata the parameters and
    the rest of the state as JSON, with a checksum of everything. A backbone class of
    the user's own, or any other class or function, is named in it, not contained. There
    is no training data in it, but for sums over the rows, quantiles of the errors of
    the held-out ones, and with ``store_loo`` the predictions of the rows.

    Parameters
    ----------
    estimator : CFLLRegressor, CFLLClassifier or CFLLIVRegressor
        Fitted.
    path : str or path-like
        An existing file is replaced once the new one is complete.

    Raises
    ------
    TypeError
        Where a parameter or a part of the backbone's state can't be described.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_cfll import CFLLClassifier, load, save
    >>> X, y = load_iris(return_X_y=True)
    >>> model = CFLLClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> save(model, path)
    >>> bool((load(path).predict_proba(X) == model.predict_proba(X)).all())
    True
    """
    if not isinstance(estimator, _ESTIMATORS):
        raise TypeError(
            "save takes a CFLLRegressor, a CFLLClassifier or a CFLLIVRegressor, got "
            f"{type(estimator).__name__}; a pipeline's other steps are saved apart."
        )
    check_is_fitted(estimator)
    writer = ModuleWriter()
    described = {
        "estimator": name_of(type(estimator)),
        "state": writer.write(dict(vars(estimator)), type(estimator).__name__),
    }
    text = json.dumps(described, allow_nan=False)
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "state": text,
        "sha256": _digest(text, writer.tensors),
    }
    # So that a file that was there is whole until the new one is.
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first.")
    # Of a name of its own, since others may save to the same path at the same time.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.touch()
        mode = (path if path.exists() else partial).stat().st_mode
        save_file(writer.tensors, partial, metadata)
        partial.chmod(mode)  # which safetensors gives to the owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    backbone: Any = None,
    trusted: Sequence[str] = (),
    custom_objects: Mapping[str, Any] | None = None,
) -> Any:
    """Read an estimator that :func:`save` wrote.

    No code of the file's own is run, and nothing is imported but from this package,
    the classes of ``torch.nn`` and ``torch.optim``, the functions of
    ``torch.nn.functional``, and what the user names.

    Parameters
    ----------
    path : str or path-like
    device : str or torch.device, default="cpu"
        Where the estimator predicts; "auto" is as in the estimators. Its ``device``
        parameter, for further fits, is the saved one.
    backbone : class, callable, torch.nn.Module or backbone object, default=None
        The user's own: the class or the function of a ``TorchBackbone``, which keeps
        its saved parameters; or a module instance like the one that was fitted, whose
        weights don't matter. It takes the place of the factory, or of the class, that
        has its name in the file, and of nothing else. Not needed where the backbone is
        an ``MLP``, or where its class may be imported.
    trusted : sequence of str, default=()
        Modules, or the starts of their names, such as ``"mypackage"``, from which
        the file may import by name.
    custom_objects : mapping of str to object, default=None
        Other classes and functions by their name in the file, for what can't be
        imported, such as those of a notebook.

    Returns
    -------
    estimator : CFLLRegressor, CFLLClassifier or CFLLIVRegressor
        Its predictions on the same kind of device are the same to the bit. Its
        ``net_`` has the usual settings of a training, but for those of ``net_params``.

    Raises
    ------
    ValueError
        Where the file is not whole, not one of this package, of a newer format, or
        needs a class that was not passed and is not trusted; or where ``backbone`` has
        no name, or the device is not there.
    """
    own, place = _class_or_function(backbone), resolve_device(device)
    described, tensors = _read(Path(path))
    reader = ModuleReader(tensors, trusted, custom_objects, backbone=own)
    try:
        return _rebuilt(described, reader, place)
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} describes no estimator: {type(error).__name__}: {error}."
        ) from error


def _class_or_function(backbone: Any) -> Any:
    """Give what a file names, of the backbone that a user passes."""
    if isinstance(backbone, TorchBackbone):
        backbone = backbone.factory
    if isinstance(backbone, nn.Module | Backbone):
        return type(backbone)
    if backbone is None or hasattr(backbone, "__name__"):
        return backbone
    raise ValueError(
        f"backbone is a {type(backbone).__name__}, which has no name to be found by in "
        "the file; pass the class or the function that it calls, since the file holds "
        "the arguments of a functools.partial, or an object's class in custom_objects."
    )


def _rebuilt(described: Any, reader: Reader, device: torch.device) -> Any:
    cls = reader.find(described["estimator"])
    if not (isinstance(cls, type) and issubclass(cls, _ESTIMATORS)):
        raise ValueError(f"the file names {described['estimator']}, no estimator.")
    estimator: Any = cls.__new__(cls)
    state = reader.read(described["state"])
    network = state.pop("net_", None)  # one that skorch trained
    estimator.__dict__.update(state)
    if network is not None:
        estimator.net_ = net_of(estimator, network)
    estimator._move_to(device)
    return estimator


def _read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read the file, and see that it is whole and what it says it is."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            # Copies: the file is mapped into memory, and may be replaced.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no safetensors file, or is cut short ({error}); it must be one "
            "that sklearn_cfll.save wrote."
        ) from error
    if _digest(metadata.get("state", ""), tensors) != metadata.get("sha256"):
        raise ValueError(
            f"{path} was changed since it was saved: its checksum differs."
        )
    return json.loads(metadata["state"]), tensors


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is a safetensors file, but not one that sklearn_cfll.save wrote."
        )
    version = metadata.get("version", "")
    if version != str(_VERSION):
        raise ValueError(
            f"{path} has version {version!r} of the format, where {_VERSION} is known; "
            "load it with the version of sklearn_cfll that saved it, or a newer one."
        )


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Checksum of the description and of all arrays."""
    digest = hashlib.sha256(f"{_VERSION}\n{text}\n".encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
