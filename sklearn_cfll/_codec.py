"""Values as JSON and tensors, and back: no code is run but what is trusted by name."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from skorch.history import History
from torch import Tensor

from sklearn_cfll._names import find_named, name_of
from sklearn_cfll._whole import check_unbound, check_whole, not_saved

_OWN = ("sklearn_cfll.", "torch.nn.")
_ARRAYS = (np.ndarray, np.memmap)
_SCALARS = (bool, int, float, str)


class Writer:
    """Turns values into what JSON holds, and sets arrays aside.

    Attributes
    ----------
    tensors : dict
        The arrays and tensors by name.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._open: list[int] = []
        # With the tensors themselves, whose memory is thus not given to others.
        self._written: dict[Any, tuple[dict[str, Any], Tensor]] = {}

    def write(self, value: Any, where: str) -> Any:
        """Give a value's description.

        Parameters
        ----------
        value : object
        where : str
            What the value is, for the message of an error.

        Returns
        -------
        described : None, bool, int, float, str, list or dict
        """
        if value is None or type(value) in _SCALARS:
            finite = not isinstance(value, float) or math.isfinite(value)
            return value if finite else {"float": str(value)}
        if id(value) in self._open:
            raise not_saved(value, where, "it holds itself")
        self._open.append(id(value))
        try:
            return self._write_compound(value, where)
        finally:
            self._open.pop()

    def _write_compound(self, value: Any, where: str) -> Any:
        if isinstance(value, Enum):
            return self._write_member(value, where)
        if type(value) is functools.partial:
            return {
                "partial": self.write(value.func, f"{where}.func"),
                "args": self.write(value.args, f"{where}.args"),
                "keywords": self.write(value.keywords, f"{where}.keywords"),
                "state": self._attributes(value, where),
            }
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            parts = [self.write(v, f"{where}[{i}]") for i, v in enumerate(value)]
            return parts if isinstance(value, list) else {"tuple": parts}
        if type(value) in (dict, OrderedDict):
            pairs = [
                [self.write(k, where), self.write(v, f"{where}[{k!r}]")]
                for k, v in value.items()
            ]
            return {"dict" if type(value) is dict else "ordered": pairs}
        if type(value) is set:
            return {"set": [self.write(v, where) for v in sorted(value, key=repr)]}
        if isinstance(value, History):
            return {"history": [self.write(dict(row), where) for row in value]}
        if isinstance(value, np.generic | np.ndarray):
            return self._write_array(value, where)
        if isinstance(value, Tensor):
            return self.write_tensor(value, where)
        if isinstance(value, torch.dtype | torch.device):
            kind = type(value).__name__
            return {kind: str(value).removeprefix("torch.")}
        if isinstance(value, np.random.RandomState):
            return {"random_state": self.write(value.get_state(), where)}
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            check_unbound(value, where)
            return {"name": name_of(value)}
        return self.write_object(value, where)

    def write_tensor(self, value: Tensor, where: str) -> Any:
        """Set a tensor aside; its order in memory, on which rounding hangs, is kept."""
        if value.layout != torch.strided:
            raise not_saved(value, where, f"its layout is {value.layout}")
        memory: tuple[Any, ...] = value.data_ptr(), value.dtype, value.shape
        # Its conjugate and its negative may lie in the same memory.
        memory += value.stride(), value.is_conj(), value.is_neg()
        if value.numel() and memory in self._written:
            return self._written[memory][0]
        key = str(len(self.tensors))
        described: dict[str, Any] = {"tensor": key}
        self._written[memory] = described, value
        value = value.detach().cpu().resolve_conj().resolve_neg()
        if value.ndim > 1 and not value.is_contiguous():
            strides = np.array(value.stride())
            described["order"] = np.argsort(-strides, kind="stable").tolist()
            value = value.permute(described["order"])
        if value.is_complex():
            described["complex"] = True
            value = torch.view_as_real(value)
        self.tensors[key] = value.clone(memory_format=torch.contiguous_format)
        return described

    def _write_array(self, value: Any, where: str) -> Any:
        if isinstance(value, np.ndarray) and type(value) not in _ARRAYS:
            raise not_saved(value, where, "it is an array of a class of its own")
        if value.dtype.kind in "biufc":
            native = np.array(value, dtype=value.dtype.newbyteorder("="), order="K")
            if native.dtype.kind == "u":  # of which older versions know 8 bits alone
                native = native.view(native.dtype.str.replace("u", "i"))
            try:
                tensor = torch.from_numpy(native)
            except TypeError as error:
                raise not_saved(value, where, f"its dtype is {value.dtype}") from error
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            described = self.write_tensor(tensor, where)
            return {kind: described, "dtype": value.dtype.newbyteorder("=").str}
        if value.dtype.kind not in "UO" or not isinstance(value, np.ndarray):
            if isinstance(value, np.str_):
                return str(value)
            raise not_saved(value, where, f"its dtype is {value.dtype}")
        items = [self.write(item, where) for item in value.ravel().tolist()]
        return {"words": items, "dtype": value.dtype.str, "shape": list(value.shape)}

    def write_object(self, value: Any, where: str) -> Any:
        check_unbound(value, where)
        if not hasattr(value, "__dict__"):
            raise not_saved(value, where, "it has no attributes")
        check_whole(value, where)
        return {
            "object": self.class_of(value, where),
            "state": self._attributes(value, where),
        }

    def _attributes(self, value: Any, where: str) -> list[Any]:
        return [
            [name, self.write(own, f"{where}.{name}")]
            for name, own in vars(value).items()
        ]

    def _write_member(self, value: Enum, where: str) -> Any:
        """Name a member, which is to be the same object again."""
        if type(value).__members__.get(value.name) is not value:
            raise not_saved(value, where, f"{value!r} is no member of its class")
        return {"enum": self.class_of(value, where), "member": value.name}

    def class_of(self, value: Any, where: str) -> str:
        """Name a value's class, which must be found again where it isn't a user's."""
        name = name_of(type(value))
        if name.startswith(_OWN):
            try:
                Reader({}).find(name)
            except ValueError as error:
                reason = f"its class {name} can't be found by its name"
                raise not_saved(value, where, reason) from error
        return name


class Reader:
    """Turns descriptions back into values.

    Parameters
    ----------
    tensors : dict
    trusted : sequence of str
        Modules, or the starts of their names, from which a file may name what it needs.
    custom_objects : mapping
        Classes and functions by the name in the file, or by its last part.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        trusted: Sequence[str] = (),
        custom_objects: Mapping[str, Any] | None = None,
    ) -> None:
        self.tensors = tensors
        self.trusted = tuple(trusted)
        self.custom = dict(custom_objects or {})

    def read(self, described: Any) -> Any:
        """Give the value that was described."""
        if isinstance(described, list):
            return [self.read(part) for part in described]
        if not isinstance(described, dict):
            return described
        kind = next(iter(described))
        reader = getattr(self, f"_read_{kind}", None)
        if reader is None:
            raise ValueError(f"the file describes a value of an unknown kind, {kind!r}")
        return reader(described)

    def _read_float(self, described: Any) -> float:
        return float(described["float"])

    def _read_tuple(self, described: Any) -> tuple[Any, ...]:
        return tuple(self.read(part) for part in described["tuple"])

    def _read_dict(self, described: Any) -> dict[Any, Any]:
        return {self.read(key): self.read(value) for key, value in described["dict"]}

    def _read_ordered(self, described: Any) -> OrderedDict[Any, Any]:
        pairs = described["ordered"]
        return OrderedDict((self.read(key), self.read(value)) for key, value in pairs)

    def _read_set(self, described: Any) -> set[Any]:
        return {self.read(value) for value in described["set"]}

    def _read_history(self, described: Any) -> History:
        return History([self.read(row) for row in described["history"]])

    def _read_tensor(self, described: Any) -> Tensor:
        value = self.tensors[described["tensor"]]
        if described.get("complex"):
            value = torch.view_as_complex(value)
        order = described.get("order")
        return value if order is None else value.permute(np.argsort(order).tolist())

    def _read_array(self, described: Any) -> Any:
        return self.read(described["array"]).numpy().view(described["dtype"])

    def _read_scalar(self, described: Any) -> Any:
        return self.read(described["scalar"]).numpy().view(described["dtype"])[()]

    def _read_words(self, described: Any) -> Any:
        values = np.empty(len(described["words"]), dtype=np.dtype(described["dtype"]))
        values[:] = self.read(described["words"])
        return values.reshape(described["shape"])

    def _read_dtype(self, described: Any) -> torch.dtype:
        dtype = getattr(torch, described["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"the file names a dtype {described['dtype']!r}")
        return dtype

    def _read_device(self, described: Any) -> torch.device:
        return torch.device(described["device"])

    def _read_random_state(self, described: Any) -> np.random.RandomState:
        state = np.random.RandomState()
        state.set_state(self.read(described["random_state"]))
        return state

    def _read_name(self, described: Any) -> Any:
        return self.find(described["name"])

    def _read_enum(self, described: Any) -> Enum:
        cls = self.find(described["enum"])
        member = described["member"]
        if not (isinstance(cls, type) and issubclass(cls, Enum)):
            raise ValueError(f"the file takes {described['enum']} for an Enum")
        if member not in cls.__members__:
            raise ValueError(
                f"the file needs the member {member!r} of {described['enum']}, which "
                f"has {list(cls.__members__)}; load it with the class that was saved."
            )
        return cls[member]

    def _read_partial(self, described: Any) -> functools.partial[Any]:
        args, keywords = self.read(described["args"]), self.read(described["keywords"])
        value = functools.partial(self.read(described["partial"]), *args, **keywords)
        vars(value).update({name: self.read(own) for name, own in described["state"]})
        return value

    def _read_object(self, described: Any) -> Any:
        cls = self.find_class(described["object"])
        if not isinstance(cls, type):
            raise ValueError(f"the file describes an object of {described['object']}")
        value: Any = object.__new__(cls)
        for name, own in described["state"]:
            vars(value)[name] = self.read_attribute(cls, name, own)
        return value

    def read_attribute(self, cls: type, name: str, described: Any) -> Any:
        """Give an attribute of an object."""
        return self.read(described)

    def find_class(self, name: str) -> Any:
        """Give the class of an object."""
        return self.find(name)

    def find(self, name: str) -> Any:
        """Give the class or the function of a name, if it is trusted or was passed."""
        return find_named(name, self.trusted, self.custom)
