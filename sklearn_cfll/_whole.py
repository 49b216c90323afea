"""Whether a class and attributes give a value back; what they don't isn't saved."""

from __future__ import annotations

import copyreg
from types import BuiltinFunctionType, MethodType, ModuleType
from typing import Any

_WAYS = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
# Their own ways of copying keep the attributes as they are.
_HARMLESS = ("sklearn.base", "skorch.callbacks", "sklearn_cfll")


def not_saved(value: Any, where: str, reason: str) -> TypeError:
    return TypeError(f"{where} is a {type(value).__name__}, not saved: {reason}.")


def check_unbound(value: Any, where: str) -> None:
    """Refuse a method of an object, which a name alone doesn't give back.

    Parameters
    ----------
    value : object
    where : str
        What the value is, for the message of an error.
    """
    if not isinstance(value, MethodType | BuiltinFunctionType):
        return
    owner = value.__self__
    unbound = owner is None or isinstance(owner, type | ModuleType)
    if isinstance(value, MethodType) or not unbound:
        reason = (
            f"it is bound to a {type(owner).__name__}; keep a function, or call the "
            "method by its name where it is needed"
        )
        raise not_saved(value, where, reason)


def check_whole(value: Any, where: str, names: tuple[str, ...] = _WAYS) -> None:
    """Refuse an object that has more to it than its class and its attributes.

    Parameters
    ----------
    value : object
    where : str
        What the value is, for the message of an error.
    names : tuple of str, default=_WAYS
        Methods that must not be of the class's own: ways to make or to copy an object.
    """
    reason = _more_than_attributes(type(value), names)
    if reason is not None:
        reason += "; keep what it holds in plain attributes, lists or dicts"
        raise not_saved(value, where, reason)


def _more_than_attributes(cls: type, names: tuple[str, ...]) -> str | None:
    for base in cls.__mro__:
        own = vars(base).get("__slots__", ())
        slots = {own} if isinstance(own, str) else set(own)
        if slots - {"__dict__", "__weakref__"}:
            return f"{base.__name__} has __slots__"
    for name in names:
        definer = next((c for c in cls.__mro__ if name in vars(c)), object)
        if definer.__module__ == "builtins" and definer is not object:
            return f"it is a {definer.__name__} of a class of its own"
        if definer is not object and not definer.__module__.startswith(_HARMLESS):
            return f"{definer.__name__} has a {name} of its own"
    if cls in copyreg.dispatch_table:
        return "copyreg has a way of its own to copy it"
    return None
