"""Layers of a model: how much of each leading vector lies in which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.parameter_layout import ParameterLayout
from skerch_ooc.base.partition import Range
from skerch_ooc.results.lowrank import LazyMatrix

SHOWN = 6
"""So many leading vectors are shown."""

MOST_LAYERS = 40
_TILE_ROWS = 4096
_MOST_TILES = 512


@dataclass(frozen=True)
class Layer:
    """Parameters that follow each other and are shown as one.

    Attributes:
        name: What their names have in common.
        rows: Their entries in the vectors.
    """

    name: str
    rows: Range


@dataclass(frozen=True)
class Shares:
    """The shares of the squared norm of each leading vector that lie in each layer.

    Attributes:
        layers: The layers, in their order.
        shares: For each layer and vector, ``(layers, k)``.
        is_exact: Whether all entries were read.
    """

    layers: tuple[Layer, ...]
    shares: Array
    is_exact: bool


def layers_of(layout: ParameterLayout) -> tuple[Layer, ...]:
    """Groups parameters into layers: those of one module, and of outer ones if there are many."""
    depth = max(name.count(".") for name in layout.names)
    layers = _grouped(layout, depth)
    while len(layers) > MOST_LAYERS and depth > 0:
        depth -= 1
        layers = _grouped(layout, depth)
    return _together(layers)


def _grouped(layout: ParameterLayout, depth: int) -> list[Layer]:
    """Joins neighbours whose names, without the last part, agree in so many parts."""
    layers: list[Layer] = []
    for one in layout:
        rows, parts = Range(one.offset, one.offset + one.size), one.name.split(".")
        name = ".".join(parts[: max(1, min(depth, len(parts) - 1))])
        if layers and layers[-1].name == name:
            layers[-1] = Layer(name, Range(layers[-1].rows.start, rows.stop))
        else:
            layers.append(Layer(name, rows))
    return [layer for layer in layers if len(layer.rows)]


def _together(layers: list[Layer]) -> tuple[Layer, ...]:
    """Joins neighbours of any name where there are still too many."""
    many = -(-len(layers) // MOST_LAYERS)
    joined = [layers[i : i + many] for i in range(0, len(layers), many)]
    return tuple(
        group[0] if len(group) == 1 else
        Layer(f"{group[0].name} … {group[-1].name}",
              Range(group[0].rows.start, group[-1].rows.stop))
        for group in joined
    )  # fmt: skip


def read_shares(matrix: LazyMatrix, layers: tuple[Layer, ...], most: int = SHOWN) -> Shares:
    """Reads the shares of the leading vectors; of very tall ones from evenly spread tiles.

    Args:
        matrix: The vectors, stored or implicit.
        layers: The layers.
        most: Number of vectors, at most.

    Raises:
        CorruptError: If a tile was altered.
        IncompleteError: If vectors are to be computed from shards that are gone.
    """
    columns = min(most, matrix.shape[1])
    every = max(1, -(-matrix.shape[0] // (_TILE_ROWS * _MOST_TILES)))
    squares = np.zeros((len(layers), columns))
    for number, layer in enumerate(layers):
        read = 0
        for rows in _read(layer.rows, every):
            entries = matrix[rows.slice, :columns].numpy()
            squares[number] += np.sum(np.abs(entries) ** 2, axis=0, dtype=np.float64)
            read += len(rows)
        squares[number] *= len(layer.rows) / read
    whole = squares.sum(axis=0)
    return Shares(layers, squares / np.where(whole > 0, whole, 1.0), every == 1)


def _read(rows: Range, every: int) -> Iterator[Range]:
    """Cuts rows at the borders of tiles, and picks one in so many pieces, the first always."""
    start, number = rows.start, 0
    while start < rows.stop:
        stop = min(rows.stop, (start // _TILE_ROWS + 1) * _TILE_ROWS)
        if number % every == 0:
            yield Range(start, stop)
        start, number = stop, number + 1
