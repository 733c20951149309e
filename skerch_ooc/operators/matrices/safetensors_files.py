"""Tensors of checkpoints: ``.safetensors`` files, and the index of those that belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError, shown_list
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.decoding import Decoding
from skerch_ooc.operators.matrices.grids import Grid, Slices
from skerch_ooc.operators.matrices.sources import Meant, Source, unreadable

INDEX = ".safetensors.index.json"

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32",
    "U32": "uint32", "I64": "int64", "U64": "uint64", "F16": "float16", "F32": "float32",
    "F64": "float64", "C64": "complex64", "BF16": "float32", "F8_E4M3": "float32",
    "F8_E5M2": "float32",
}  # fmt: skip
"""How entries are held; where numpy has no such type, as a wider one that holds them exactly."""
_QUANTISED = ("F8_E4M3", "F8_E5M2", "I8", "U8")


class SafetensorsSource(Source):
    """A tensor of a ``.safetensors`` file.

    Args:
        path: The file.
        wanted: What of it is meant.

    Raises:
        OperatorError: If there is no such file or tensor, or it is no matrix of numbers.
    """

    def __init__(self, path: Path, wanted: Meant) -> None:
        self._path = path
        with _opened(path) as file:
            names = list(file.keys())
            tensors = {name: file.get_slice(name) for name in names}
            self._tensor = wanted.dataset or _the_matrix(path, tensors)
            if self._tensor not in tensors:
                raise _no_tensor(path, self._tensor, names)
            found = tensors[self._tensor]
            shape, kind = tuple(found.get_shape()), str(found.get_dtype())
        name = f"{path}: {self._tensor}"
        if kind not in _DTYPES:
            raise OperatorError(
                f"{name} holds {kind}, which is not read; write it as float32 or bfloat16"
            )
        _require_no_scales(name, self._tensor, kind, names)
        dtype = np.dtype(_DTYPES[kind])
        if len(shape) < 2:
            self._describe(name, shape, dtype)
        self._grid = Grid.of(name, shape, ("",) * len(shape), wanted.rows)
        self._describe(name, self._grid.shape, dtype, Decoding.of({}, dtype, wanted.codes))

    def _read_to(self, out: Array, rows: Range) -> None:
        # Opened for each slab: the library maps the file, and what is mapped counts as memory.
        with _opened(self._path) as file:
            tensor = file.get_slice(self._tensor)

            def get(index: Slices) -> Array:
                entries: torch.Tensor = tensor[index]
                kind = getattr(torch, self.stored_dtype.name)
                return entries.to(kind).numpy()

            try:
                self._grid.read(get, rows, out)
            except (ValueError, RuntimeError) as error:
                raise unreadable(self.name, error) from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a file by the library.

    Raises:
        OperatorError: If the library is missing, or the file is none.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise OperatorError(
            f"{path} needs the library safetensors; pip install 'skerch_ooc[matrices]'"
        ) from error
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise OperatorError(
            f"cannot open {path} as safetensors: {error}; copy or write the file again"
        ) from error
    with file:
        yield file


def _the_matrix(path: Path, tensors: dict[str, Any]) -> str:
    """The only matrix of a file.

    Raises:
        OperatorError: If there are several, with their names, or none.
    """
    found = [name for name, one in tensors.items() if len(one.get_shape()) == 2]
    if not found and len(tensors) == 1:
        # So that it is said what is wrong with it.
        return next(iter(tensors))
    if len(found) != 1:
        raise _several(path, found)
    return found[0]


def _several(path: Path, names: Sequence[str]) -> OperatorError:
    return OperatorError(
        f"{path} holds {len(names)} matrices ({shown_list(sorted(names))}); say which: "
        "give dataset = NAME in [operator.args]"
    )


def _no_tensor(path: Path, name: str, names: Sequence[str]) -> OperatorError:
    return OperatorError(f"{path} has no tensor {name!r}; give one of: {shown_list(sorted(names))}")


def _require_no_scales(name: str, tensor: str, kind: str, names: Sequence[str]) -> None:
    """Refuses numbers of 8 bits that mean something else by scales beside them.

    Raises:
        OperatorError: Naming the scales.
    """
    if kind not in _QUANTISED:
        return
    stem = tensor.rpartition(".")[0]
    scales = [one for one in names if "scale" in one.rpartition(".")[2]
              and one.rpartition(".")[0] == stem]  # fmt: skip
    if scales:
        raise OperatorError(
            f"{name} holds {kind}, with scales in {shown_list(scales)}: its numbers are not the "
            "weights; write the weights that they stand for, as bfloat16 or float32"
        )


def open_index(path: Path, wanted: Meant) -> SafetensorsSource:
    """Opens the file of a checkpoint that holds a tensor, by the index of the files.

    Raises:
        OperatorError: If the index cannot be read, or there is no such tensor.
    """
    wanted.require_room(8 * path.stat().st_size, f"the index {path}")
    try:
        files: dict[str, str] = json.loads(path.read_text())["weight_map"]
        places = {name: path.parent / Path(str(file)).name for name, file in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperatorError(
            f"cannot read {path} as the index of a checkpoint: {error!r}; give the .safetensors "
            "file itself"
        ) from error
    if wanted.dataset is None:
        raise _several(path, list(places))
    if wanted.dataset not in places:
        raise _no_tensor(path, wanted.dataset, list(places))
    return SafetensorsSource(places[wanted.dataset], wanted)
