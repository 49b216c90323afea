"""Modules as names, attributes and tensors, and back."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from sklearn_cfll._codec import Reader, Writer
from sklearn_cfll._names import last_part
from sklearn_cfll._whole import check_whole, not_saved
from sklearn_cfll.backbones import Backbone, TorchBackbone
from sklearn_cfll.layers import HOOKS
from sklearn_cfll.net import CFLLNet
from sklearn_cfll.network import Network

_LAZY_HOOKS = ("_load_hook", "_initialize_hook")

# What net_params may hold of the net's own.
_OF_THE_NET = (
    "head_update",
    "output_weight",
    "objective",
    "batch_transform",
    "iterator_train",
    "iterator_valid",
)


class ModuleWriter(Writer):
    """Writes modules, too: the classes by name, their attributes and tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[int, int] = {}

    def write_object(self, value: Any, where: str) -> Any:
        """Give the description of an object, a module's or a parameter's among them."""
        if isinstance(value, CFLLNet):
            return {"net": self.write(value.module_, f"{where}.module_")}
        if not isinstance(value, nn.Module):
            return super().write_object(value, where)
        if id(value) in self._modules:
            return {"same_module": self._modules[id(value)]}
        if hasattr(value, "_orig_mod"):
            reason = "it is compiled; fit with the module, and compile it by net_params"
            raise not_saved(value, where, reason)
        # Their state they give and take themselves.
        check_whole(value, where, names=("__new__",))
        number = self._modules[id(value)] = len(self._modules)
        return {
            "module": self.class_of(value, where),
            "number": number,
            "state": self._state_of(value, where),
        }

    def _state_of(self, module: nn.Module, where: str) -> Any:
        given = module.__getstate__()
        if not isinstance(given, dict):
            raise not_saved(module, where, "its __getstate__ gives no dict")
        state = dict(given)
        lazy = _is_lazy(module)
        for name in HOOKS:
            if state.pop(name, None) and not lazy:
                raise not_saved(module, where, f"it has hooks ({name})")
        for name in _LAZY_HOOKS if lazy else ():
            del state[name]
        return [[name, self.write(v, f"{where}.{name}")] for name, v in state.items()]

    def write_tensor(self, value: Tensor, where: str) -> Any:
        """Set a tensor aside; of a parameter that has no shape yet there is nothing."""
        if nn.parameter.is_lazy(value):
            is_parameter = isinstance(value, nn.Parameter)
            return {
                "lazy": [is_parameter, value.requires_grad],
                "dtype": self.write(value.dtype, where),
            }
        described = super().write_tensor(value, where)
        if isinstance(value, nn.Parameter):
            return {"parameter": described, "requires_grad": value.requires_grad}
        return described


class ModuleReader(Reader):
    """Reads modules, too; what was shared is shared again.

    Parameters
    ----------
    *args
        As of the Reader.
    backbone : class or function, default=None
        The user's own, for the first factory or class of its name, and for that alone.
    """

    def __init__(self, *args: Any, backbone: Any = None) -> None:
        super().__init__(*args)
        self._backbone = backbone
        self._backbone_name: str | None = None  # in the file
        self._modules: dict[int, nn.Module] = {}
        self._parameters: dict[str, nn.Parameter] = {}

    def _read_net(self, described: Any) -> nn.Module:
        network: nn.Module = self.read(described["net"])
        return network

    def _read_parameter(self, described: Any) -> nn.Parameter:
        key = described["parameter"]["tensor"]
        if key not in self._parameters:
            value = self.read(described["parameter"])
            self._parameters[key] = nn.Parameter(value, described["requires_grad"])
        return self._parameters[key]

    def _read_lazy(self, described: Any) -> Tensor:
        is_parameter, requires_grad = described["lazy"]
        kind: Any = nn.UninitializedBuffer
        if is_parameter:
            kind = nn.UninitializedParameter
        lazy: Tensor = kind(requires_grad, dtype=self.read(described["dtype"]))
        return lazy

    def _read_same_module(self, described: Any) -> nn.Module:
        return self._modules[described["same_module"]]

    def read_attribute(self, cls: type, name: str, described: Any) -> Any:
        """Give an attribute; the factory of a backbone may be the user's own."""
        if issubclass(cls, TorchBackbone) and name == "factory":
            described = _as_factory(described)
        return super().read_attribute(cls, name, described)

    def _read_factory(self, described: Any) -> Any:
        name = described["factory"]
        if self._backbone_name == name and name.endswith("<lambda>"):
            raise ValueError(
                f"the file has two factories of the name {name}, which backbone can't "
                "tell apart; if they are one function, pass it in "
                "custom_objects={'<lambda>': ...} alone."
            )
        return self._find_backbone(name)

    def find_class(self, name: str) -> Any:
        """Give the class of an object or a module, the user's own where it is that."""
        own = self._backbone
        if isinstance(own, type) and issubclass(own, nn.Module | Backbone):
            return self._find_backbone(name)
        return self.find(name)

    def _find_backbone(self, name: str) -> Any:
        own = self._backbone
        known = own is not None and last_part(name) == own.__name__
        if not known or self._backbone_name not in (None, name):
            return self.find(name)
        self._backbone_name = name
        return own

    def _read_module(self, described: Any) -> nn.Module:
        cls = self.find_class(described["module"])
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ValueError(f"the file takes {described['module']} for a module")
        module: Any = cls.__new__(cls)
        nn.Module.__init__(module)
        self._modules[described["number"]] = module
        state = {name: self.read(value) for name, value in described["state"]}
        module.__setstate__({**vars(module), **state})
        if _is_lazy(module):
            # As LazyModuleMixin does it; not more than its own hooks.
            module._load_hook = module._register_load_state_dict_pre_hook(
                module._lazy_load_hook
            )
            module._initialize_hook = module.register_forward_pre_hook(
                module._infer_parameters, with_kwargs=True
            )
        return module


def _as_factory(described: Any) -> Any:
    """Say of a name that it is a factory's, in a partial function, too."""
    if isinstance(described, dict) and "partial" in described:
        return {**described, "partial": _as_factory(described["partial"])}
    if isinstance(described, dict) and "name" in described:
        return {"factory": described["name"]}
    return described


def _is_lazy(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


def net_of(estimator: Any, network: Network) -> CFLLNet:
    """Make the net of an estimator whose network is trained.

    Parameters
    ----------
    estimator : BaseCFLL
        With all of its state but ``net_``.
    network : Network

    Returns
    -------
    net : CFLLNet
        With what predictions and further solves need, and what ``net_params`` has of
        the net's own. Other settings of the training are the usual ones: the
        estimator's may be others than in the fit by now, and not suit it.
    """
    n_features, n_outputs = network.head.weight.shape
    given = estimator.net_params or {}
    own = {name: given[name] for name in _OF_THE_NET if name in given}
    if estimator._output_weight is not None:
        own["output_weight"] = estimator._output_weight
    net = CFLLNet(
        network.eval(),
        n_features=n_features,
        n_outputs=n_outputs,
        decode=estimator._targets.decode,
        **own,
    ).initialize()
    net.history = copy.copy(estimator.history_)
    net.release()
    return net
