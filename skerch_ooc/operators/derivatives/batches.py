"""Batches of data, whatever they are made of: moved, cut into rows, joined, counted and hashed.

A batch is a tensor, or a tuple, list, mapping or dataclass of batches and other values. Its rows
are the first dimension of its tensors, if that is the same for all.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from skerch_ooc.base.partition import Range

HALF = (torch.float16, torch.bfloat16)
"""Types with too few digits for products."""


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Applies a function to all tensors of a value, and leaves everything else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        return value._replace(
            data=function(value.data),
            sorted_indices=mapped(value.sorted_indices, function),
            unsorted_indices=mapped(value.unsorted_indices, function),
        )
    if isinstance(value, Mapping):
        # A copy keeps what its class adds, such as access by attribute.
        made: Any = copy.copy(value)
        for key, one in value.items():
            made[key] = mapped(one, function)
        return made
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(one, function) for one in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(one, function) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{k: mapped(v, function) for k, v in fields.items()})
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Lists the tensors of a value."""
    found: list[Tensor] = []
    mapped(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def moved(value: Any, device: torch.device) -> Any:
    """Returns a value with its tensors on a device, such as can be differentiated by."""

    def on_device(tensor: Tensor) -> Tensor:
        return (tensor.clone() if tensor.is_inference() else tensor).to(device)

    return mapped(value, on_device)


def widened(value: Any, dtype: torch.dtype) -> Any:
    """Returns a value whose floating-point tensors have a dtype."""
    return mapped(value, lambda one: one.to(dtype) if one.is_floating_point() else one)


def rows_of(batch: Any) -> int | None:
    """Returns the rows of a batch; ``None`` if its parts do not agree on them."""
    found = tensors_of(batch)
    if not _has_rows(batch) or any(one.ndim == 0 for one in found):
        return None
    lengths = {len(one) for one in found}
    return lengths.pop() if len(lengths) == 1 else None


def _has_rows(value: Any) -> bool:
    """Whether all that may have rows are tensors: a list of lengths cannot be cut with them."""
    if isinstance(value, PackedSequence):
        return False
    if isinstance(value, Mapping):
        return all(_has_rows(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        parts = (list, tuple, Tensor, Mapping)
        return all(isinstance(one, parts) and _has_rows(one) for one in value)
    return True


def rows(batch: Any, chosen: Range) -> Any:
    """Returns some rows of a batch that has rows."""
    return mapped(batch, lambda one: one[chosen.slice])


def joined(first: Any, second: Any) -> Any:
    """Returns the rows of two batches, one below the other; ``None`` if they do not fit."""
    others: Iterator[Tensor] = iter(tensors_of(second))
    try:
        return mapped(first, lambda one: torch.cat([one, next(others)]))
    except (RuntimeError, StopIteration):
        return None


def sha256_of(values: Iterable[Any]) -> str:
    """Returns a hash of the entries of all tensors among some values."""
    found = hashlib.sha256()
    for tensor in (one for value in values for one in tensors_of(value)):
        found.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
