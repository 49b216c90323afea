"""In-memory batches: tensors sliced on the device, without a DataLoader."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from skorch.dataset import Dataset
from torch import Tensor

from sklearn_cfll.chunks import chunk_slices, numbers_in, share_memory
from sklearn_cfll.functional.ridge import wide_dtype
from sklearn_cfll.one_hot import OneHot

Batch = tuple[dict[str, Tensor], Tensor]

# Numbers that are gathered at once, of several small batches: 1 MB in float32.
_GATHERED_NUMBERS = 2**18


class TensorBatches(Dataset):
    """Rows of X with their targets and weights, cut into batches on the device.

    On the CPU the arrays are shared, not copied: each batch is gathered and cast as
    it is used, so a memory-mapped X stays on the disk. On an accelerator, and where
    one batch takes all rows, X is cast and moved once.

    Parameters
    ----------
    X : array or Tensor of shape (n_samples, ...)
    targets : array, Tensor or OneHot of shape (n_samples, ...), default=None
        Encoded targets, those that the head is solved for.
    sample_weight : array of shape (n_samples,) or (n_samples, k), default=None
        One for each row, or one for each row and output.
    rows : int array, default=None
        The rows of X to use, in this order; targets and weights are given for these
        rows alone. None uses all.
    labels : array, default=None
        Targets as the user gave them, for callbacks that score predictions.
    batch_size : int, default=128
        Most rows in a batch. Batches are evened out, so that none is a tiny rest.
    generator : torch.Generator, default=None
        Shuffles the rows anew in each pass; None keeps their order.
    dtype : torch.dtype, default=torch.float32
    input_dtype : torch.dtype, default=None
        Of X, where the backbone takes another; None is ``dtype``.
    device : str or torch.device, default="cpu"

    Attributes
    ----------
    features : Tensor of shape (n_samples, ..., d) or None
        What a trained backbone gives for the rows, where it is kept for several passes.
    energy : float
        The targets' mean square in what the rows are part of, where that is known: few
        rows don't say how large a loss is usual.

    Yields
    ------
    batch : (dict, Tensor)
        ``{"X": X, "sample_weight": weight}``, the weight left out where there is
        none, and the targets; skorch passes the dict to the module by keyword. Small
        batches are views of some that were gathered at once: copy one to keep it.
    """

    def __init__(
        self,
        X: ArrayLike | Tensor,
        targets: ArrayLike | Tensor | OneHot | None = None,
        sample_weight: ArrayLike | Tensor | None = None,
        *,
        rows: NDArray[np.intp] | None = None,
        labels: ArrayLike | None = None,
        batch_size: int = 128,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        input_dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        # skorch's own initialisation is left out: it takes lists and frames, too.
        self.dtype, self.device = dtype, torch.device(device)
        self.input_dtype = dtype if input_dtype is None else input_dtype
        self.generator = generator
        self._source = share_memory(X)
        self._rows = None if rows is None else share_memory(rows)
        self._labels = labels
        self.features: Tensor | None = None
        self.energy = 0.0
        self.n_samples = len(self._source) if self._rows is None else len(self._rows)
        self.batch_size = min(batch_size, self.n_samples)
        self.targets: Tensor | OneHot | None
        self.set_targets(targets, sample_weight)
        if self.device.type != "cpu" or self.batch_size == self.n_samples:
            source = self._source if self._rows is None else self._source[self._rows]
            self._source, self._rows = source.to(self.device, self.input_dtype), None

    def _placed(self, values: ArrayLike | Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return share_memory(values).to(self.device, self.dtype)

    def set_targets(
        self,
        targets: ArrayLike | Tensor | OneHot | None,
        sample_weight: ArrayLike | Tensor | None,
    ) -> None:
        """Take other targets and weights for the same rows.

        Parameters
        ----------
        targets : array, Tensor or OneHot of shape (n_samples, ...), or None
        sample_weight : array or Tensor of shape (n_samples, ...), or None
        """
        self.sample_weight = self._placed(sample_weight)
        if isinstance(targets, OneHot):
            self.targets = targets.to(self.device, self.dtype)
        else:
            self.targets = self._placed(targets)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample of X."""
        return tuple(self._source.shape[1:])

    @property
    def encoded(self) -> Tensor | OneHot:
        """The targets, where there are any to learn from."""
        if self.targets is None:
            raise ValueError("these batches hold no targets; pass targets to train.")
        return self.targets

    @property
    def n_batches(self) -> int:
        """Batches in one pass."""
        return -(-self.n_samples // self.batch_size)

    @property
    def X(self) -> NDArray[Any]:  # noqa: N802 (the name that skorch looks for)
        """The rows as one array, for callbacks that score predictions."""
        source = self._source if self._rows is None else self._source[self._rows]
        return source.cpu().numpy()

    @property
    def y(self) -> Any:
        """The targets as the user gave them, or the encoded ones."""
        if self._labels is not None or self.targets is None:
            return self._labels
        return self.targets[:].cpu().numpy()

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        batch = self._gather(torch.as_tensor(index, device=self.device))
        return batch[0], batch[1]

    def _order(self) -> Tensor:
        """Draw an order of the rows, or give their own."""
        if self.generator is None:
            return torch.arange(self.n_samples, device=self.device)
        device = self.generator.device  # whatever torch's default is
        return torch.randperm(self.n_samples, generator=self.generator, device=device)

    def __iter__(self) -> Iterator[Batch]:
        if self.batch_size == self.n_samples:
            yield self._whole()
            return
        index = self._order().to(self.device)
        n_batches = self.n_batches
        ends = [self.n_samples * i // n_batches for i in range(n_batches + 1)]
        numbers = math.prod(self.sample_shape)
        if self.targets is not None:
            numbers += math.prod(self.targets.shape[1:])
        step = max(1, _GATHERED_NUMBERS // max(1, numbers * self.batch_size))
        for i in range(0, n_batches, step):
            own = ends[i : i + step + 1]
            yield from _cut(self._gather(index[own[0] : own[-1]]), own)

    def _whole(self) -> Batch:
        inputs = {"X": self._source}
        if self.sample_weight is not None:
            inputs["sample_weight"] = self.sample_weight
        return inputs, self._no_targets if self.targets is None else self.targets[:]

    def _gather(self, index: Tensor) -> Batch:
        rows = index if self._rows is None else self._rows[index]
        inputs = {"X": _rows_of(self._source, rows).to(self.input_dtype)}
        if self.sample_weight is not None:
            inputs["sample_weight"] = self.sample_weight[index]
        if self.targets is None:
            return inputs, self._no_targets
        return inputs, self.targets[index]

    @property
    def _no_targets(self) -> Tensor:
        return torch.empty(0, device=self.device)

    def chunks(self, numbers_per_row: int) -> Iterator[tuple[Tensor, slice]]:
        """Cut X in order, in bounded memory, for passes without gradients.

        Each chunk has memory of its own, to which a network may write.

        Parameters
        ----------
        numbers_per_row : int
            Numbers that the pass holds for each row.

        Yields
        ------
        X : Tensor of shape (n_chunk, ...)
        rows : slice
        """
        numbers = max(1, numbers_per_row, numbers_in(self.sample_shape))
        for rows in chunk_slices(self.n_samples, numbers, self.device):
            source = self._source[rows if self._rows is None else self._rows[rows]]
            copy = self._rows is None  # else the rows were gathered
            yield source.to(self.device, self.input_dtype, copy=copy), rows

    def column_moments(self) -> tuple[Tensor, Tensor]:
        """Weighted mean and standard deviation of each column, in float64."""
        wide = wide_dtype(self.device)
        unit = self._column_units(wide)
        total = torch.zeros((), dtype=wide, device=self.device)
        mean = torch.zeros(self.sample_shape, dtype=wide, device=self.device)
        square = mean.clone()
        for chunk, rows in self.chunks(1):
            chunk, weight = chunk.to(wide) / unit, unit.new_ones(())
            if self.sample_weight is not None:
                weight = self.sample_weight[rows].to(wide)
                # Of weights for each output a row's own is the largest.
                weight = weight.flatten(1).amax(1) if weight.ndim > 1 else weight
            weight = weight.to(chunk.device).expand(len(chunk))
            weight_sum = weight.sum().clamp_min(torch.finfo(wide).tiny)
            chunk_mean = torch.tensordot(weight, chunk, 1) / weight_sum
            total = total + weight_sum
            gap = chunk_mean - mean
            mean = mean + gap * (weight_sum / total)
            # The pairwise update of Chan et al.: exact, and stable far from zero.
            between = weight_sum * (total - weight_sum) / total
            within = torch.tensordot(weight, (chunk - chunk_mean).square(), 1)
            square = square + within + between * gap.square()
        return unit * mean, unit * (square / total).sqrt()

    def numeric_columns(self) -> Tensor:
        """Find the columns of more than two values: their indices, on the device."""
        low, high = self._column_ranges
        numeric = torch.zeros(self.sample_shape, dtype=torch.bool, device=self.device)
        for chunk, _ in self.chunks(1):
            numeric |= ((chunk != low) & (chunk != high)).any(0)
        return numeric.nonzero()[:, 0]

    @functools.cached_property
    def _column_ranges(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest number of each column, by one pass for all uses."""
        first = next(self.chunks(1))[0]
        low, high = first.amin(0), first.amax(0)
        for chunk, _ in self.chunks(1):
            low = torch.minimum(low, chunk.amin(0))
            high = torch.maximum(high, chunk.amax(0))
        return low, high

    def _column_units(self, dtype: torch.dtype) -> Tensor:
        """Power of two near each column's largest number, whose square may overflow."""
        low, high = self._column_ranges
        largest = torch.maximum(high, -low).to(dtype)
        mantissa = 2 * torch.frexp(largest).mantissa
        return torch.where(largest > 0, largest / mantissa, 1.0)

    def in_order(self) -> TensorBatches:
        """Give the same rows without shuffling; the memory is shared."""
        ordered = object.__new__(type(self))
        ordered.__dict__.update(self.__dict__, generator=None)
        return ordered

    def take(self, index: Any) -> TensorBatches:
        """Give some of the rows, for skorch's splits of a data set."""
        index = np.asarray(index, dtype=np.intp)
        rows = index if self._rows is None else self._rows[index].numpy()
        labels = None if self._labels is None else np.asarray(self._labels)[index]
        targets = self.targets
        if targets is not None:
            lazy = isinstance(targets, OneHot)
            targets = targets.take(index) if lazy else targets[index]
        taken = TensorBatches(
            self._source,
            targets,
            None if self.sample_weight is None else self.sample_weight[index],
            rows=rows,
            labels=labels,
            batch_size=self.batch_size,
            generator=self.generator,
            dtype=self.dtype,
            input_dtype=self.input_dtype,
            device=self.device,
        )
        if self.features is not None:
            taken.features = self.features[index]
        return taken


def _cut(gathered: Batch, ends: list[int]) -> Iterator[Batch]:
    """Cut rows into batches, as views, by where the batches end in the pass."""
    inputs, targets = gathered
    for start, stop in itertools.pairwise(ends):
        rows = slice(start - ends[0], stop - ends[0])
        yield {name: values[rows] for name, values in inputs.items()}, targets[rows]


def _rows_of(source: Tensor, index: Tensor) -> Tensor:
    """Gather rows; index_select takes a third of the time where they lie together."""
    if source.is_contiguous() and index.ndim:  # of one row it would keep the axis
        return source.index_select(0, index)
    return source[index]
