"""How a net gets its batches: from arrays in memory, or through loaders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.checks import count_batches
from sklearn_cfll.step import TrainingStep

# Settings of an iterator that batches in memory follow, too.
_IN_MEMORY = {"shuffle", "batch_size"}


class Loading(TrainingStep):
    """What makes data sets and iterators of skorch's frame."""

    iterator_train: Any
    iterator_valid: Any
    batch_size: Any

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Wrap arrays as batches in memory."""
        if isinstance(X, TensorBatches):
            return X
        settings = self.get_params_for("iterator_train")
        loaded = self.iterator_train is not None or settings.keys() - _IN_MEMORY
        if loaded or not hasattr(X, "__array__"):
            return super().get_dataset(X, y)
        if y is not None:
            y = y if isinstance(y, Tensor) else np.asarray(y)
            y = y[:, None] if y.ndim == 1 else y
            if len(y) != len(X):
                raise ValueError(
                    f"X has {len(X)} rows but y has {len(y)}; pass one target a row."
                )
        if len(X) == 0:
            raise ValueError("X has no rows; pass one at least.")
        # Like skorch's, -1 is all rows, and a device of None is where the module is.
        size = settings.get("batch_size", self.batch_size)
        size = len(X) if size == -1 else size
        device = self.device or next(self.module_.buffers()).device
        return TensorBatches(
            X,
            y,
            batch_size=size,
            generator=None if y is None else _generator(),
            dtype=_dtype_of(self.module_.backbone),
            device=device,
        )

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Iterate over batches in memory, shuffled in training alone."""
        if isinstance(dataset, Subset) and isinstance(dataset.dataset, TensorBatches):
            dataset = dataset.dataset.take(dataset.indices)
        name = "iterator_train" if training else "iterator_valid"
        settings = self.get_params_for(name)
        loaded = getattr(self, name) is not None or settings.keys() - _IN_MEMORY
        iterator = dataset
        if loaded or not isinstance(dataset, TensorBatches):
            iterator = self._loader(dataset, name)
        elif not settings.get("shuffle", training) or dataset.targets is None:
            iterator = dataset.in_order()
        # Predictions, too, may be asked for in training mode, as by dropout.
        if training and self.is_training_:
            self._count_steps(iterator, dataset)
        return iterator

    def _count_steps(self, iterator: Any, dataset: Any) -> None:
        """Note the length of the training, and the loss of predicting nothing."""
        in_memory = isinstance(iterator, TensorBatches)
        n_batches = iterator.n_batches if in_memory else count_batches(iterator)
        self.n_steps_ = max(1, self.epochs_ * n_batches)
        if not isinstance(dataset, TensorBatches):
            return
        targets, weight = dataset.encoded, dataset.sample_weight
        if not isinstance(targets, Tensor):
            # Of classes, of which each row has the same energy.
            targets, weight = targets[:1], None
        weight = self.row_weights(targets, weight)
        self.recovery_.set_energy(targets, weight, dataset.energy)

    def _loader(self, dataset: Any, name: str) -> Any:
        """Load a data set's batches as skorch does, by a DataLoader where none says."""
        settings = {"batch_size": self.batch_size, **self.get_params_for(name)}
        if settings["batch_size"] == -1:
            settings["batch_size"] = len(dataset)
        iterator = getattr(self, name)
        return (DataLoader if iterator is None else iterator)(dataset, **settings)


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Precision in which a module computes, by its first real parameter."""
    parameters = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(parameters, torch.float32)


def _generator() -> torch.Generator:
    """Seed a generator by torch's own, as a DataLoader does, anew in each training."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
