"""Networks of one shape, run and trained together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_cfll.layers import HOOKS
from sklearn_cfll.mlp import ACTIVATIONS
from sklearn_cfll.small_mlp import WithColumns

# Modules without parameters that act on the last axis alone, or on each number.
_POINTWISE = (*ACTIVATIONS.values(), nn.Identity, nn.Dropout)


class Stack(nn.Module):
    """Networks of several members, each on rows of its own.

    Parameters
    ----------
    members : sequence of torch.nn.Module
    together : bool
        Whether to train the members as one where that can be done: their linear layers
        are one product, which costs little more than one member's. An optimizer must
        then treat each number by itself.
    """

    def __init__(self, members: Sequence[nn.Module], together: bool) -> None:
        super().__init__()
        joint = _stacked(members) if together else None
        self.joint = joint
        self.members = None if joint is not None else nn.ModuleList(members)
        # What is trained as one is torch's own, and says so where it may write.
        self._writes = any(getattr(part, "inplace", False) for part in self.modules())

    def forward(self, X: Tensor) -> Tensor:
        """Compute features (n_members, m, d) of columns (n_members, m, n_columns)."""
        # Networks get copies of the rows, since they may write to their input.
        if self.joint is not None:
            features: Tensor = self.joint(X.clone() if self._writes else X)
            return features
        assert self.members is not None
        pairs = zip(self.members, X, strict=True)
        return torch.stack([member(rows.clone()) for member, rows in pairs])

    def write_back(self) -> None:
        """Give the members the numbers that were trained for them."""
        for module in self.modules():
            if isinstance(module, StackedLinear):
                module.write_back()


class StackedLinear(nn.Module):
    """Linear layers of several members as one batched product.

    ``torch.vmap`` over the members' stacked states does the same for any module; for
    layers as small as these a step took 1.5 times as long with it.

    Parameters
    ----------
    members : sequence of torch.nn.Linear
    """

    def __init__(self, members: Sequence[nn.Linear]) -> None:
        super().__init__()
        self._owners = tuple(members)  # a tuple, so that they aren't submodules
        weight = torch.stack([member.weight.detach() for member in members])
        bias = torch.stack([member.bias.detach() for member in members])
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias[:, None])

    def forward(self, X: Tensor) -> Tensor:
        """Map (n_members, m, d) to (n_members, m, k)."""
        return torch.baddbmm(self.bias, X, self.weight.mT)

    @torch.no_grad()
    def write_back(self) -> None:
        """Give each member its own part."""
        for i, member in enumerate(self._owners):
            member.weight.copy_(self.weight[i])
            member.bias.copy_(self.bias[i, 0])


def _stacked(members: Sequence[Any]) -> nn.Module | None:
    """One module for all members, or None where there is something else in them."""
    first = members[0]
    if _is_special(first):
        return None
    if type(first) is nn.Linear:
        frozen = any(not p.requires_grad for m in members for p in m.parameters())
        if first.bias is None or frozen:
            return None
        return StackedLinear(members)
    if type(first) is nn.Sequential:
        parts = [_stacked([m[i] for m in members]) for i in range(len(first))]
        known = [part for part in parts if part is not None]
        return nn.Sequential(*known) if len(known) == len(parts) else None
    if type(first) is WithColumns:
        inner = _stacked([m.module for m in members])
        return None if inner is None else WithColumns(inner)
    plain_norm = type(first) is nn.LayerNorm and not first.elementwise_affine
    return first if plain_norm or type(first) in _POINTWISE else None


def _is_special(module: nn.Module) -> bool:
    """Whether a layer occurs twice, or has hooks, which a stack would lose."""
    parts = [part for _, part in module.named_modules(remove_duplicate=False)]
    hooked = any(getattr(part, name) for part in parts for name in HOOKS)
    layers = [
        id(part) for part in parts if next(part.parameters(False), None) is not None
    ]
    return hooked or len(set(layers)) < len(layers)
