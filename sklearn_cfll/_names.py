"""Classes and functions by name, and which of them a file may name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch.nn import functional

# Classes of these packages may be named in a file; of functions and of all else the
# user must say so.
_TRUSTED = ("sklearn_cfll", "torch.nn.modules", "torch.optim")
_FUNCTIONS = functional.__name__  # of tensors all


def name_of(value: Any) -> str:
    """Name a class or a function, ``module:qualified.name``."""
    if isinstance(value, BuiltinFunctionType):
        # Torch's own say where in its C they are, not where Python finds them.
        name = value.__name__
        for module in (functional, torch):
            if not name.startswith("_") and getattr(module, name, None) is value:
                return f"{module.__name__}:{name}"
    name = getattr(value, "__qualname__", getattr(value, "__name__", "?"))
    return f"{getattr(value, '__module__', '?')}:{name}"


def last_part(name: str) -> str:
    """Give what the class or the function itself is called."""
    return name.partition(":")[2].split(".")[-1]


def find_named(name: str, trusted: Sequence[str], custom: Mapping[str, Any]) -> Any:
    """Give the class or the function of a name, if it is trusted or was passed.

    Parameters
    ----------
    name : str
        As :func:`name_of` gives it.
    trusted : sequence of str
        Modules, or the starts of their names.
    custom : mapping
        Classes and functions by the name, or by its last part.

    Returns
    -------
    value : class or function
    """
    module, _, qualified = name.partition(":")
    for key in (name, name.replace(":", "."), qualified, last_part(name)):
        if key in custom:
            return custom[key]
    by_user = any(_starts(module, prefix) for prefix in trusted)
    by_default = any(_starts(module, prefix) for prefix in _TRUSTED)
    if not (by_user or by_default or module == _FUNCTIONS):
        raise _not_trusted(name)
    try:
        value: Any = importlib.import_module(module)
        for part in qualified.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the file needs {name}, which can't be imported ({error}); pass it in "
            f"custom_objects={{{qualified!r}: ...}}."
        ) from error
    # What a trusted module has imported from elsewhere is not its own.
    kinds = FunctionType | BuiltinFunctionType if module == _FUNCTIONS else type
    if name_of(value) != name or not (by_user or isinstance(value, kinds)):
        raise _not_trusted(name)
    return value


def _starts(module: str, prefix: str) -> bool:
    """Whether a module is the one named, or lies in it; a final dot changes nothing."""
    prefix = prefix.removesuffix(".")
    return bool(prefix) and (module == prefix or module.startswith(prefix + "."))


def _not_trusted(name: str) -> ValueError:
    module, _, qualified = name.partition(":")
    return ValueError(
        f"the file needs {name}, which is not among what may be imported; pass it in "
        f"custom_objects={{{qualified!r}: ...}}, or trust its module by "
        f"trusted=[{module!r}] if you know the file's author."
    )
