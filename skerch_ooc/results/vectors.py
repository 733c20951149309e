"""The vectors of a result, stored or implicit: tall matrices that are read, or computed, by tiles.

Stored vectors are read from their file. Implicit ones are computed from the sketch that they were
recovered from: ``(X T) C``, with columns ``X`` on disk, a transform ``T``, and a correction ``C``
where one was needed (see :mod:`skerch_ooc.stages.recover.vectors`). Each entry is computed in one
way only, as part of an aligned block of 256 rows and 64 columns, so that its bits do not depend on
what else is read with it. Its value is that of the stored vectors but for the last rounding.

In double precision a correction ``C`` corrects the rounding errors of ``X T``. So this product is
formed by whole tiles, as it was when the correction was computed; where a linear algebra library
rounds in another way, vectors of small eigenvalues are less orthogonal.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from skerch_ooc.base.arrays import Array, empty_aligned
from skerch_ooc.base.errors import CorruptError, IncompleteError, UsageError
from skerch_ooc.base.partition import Range, cut, tile, tiles_of
from skerch_ooc.base.resources import available_cores
from skerch_ooc.base.streams import ordered_map
from skerch_ooc.planning.disk import VECTOR_TILE_COLUMNS
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.results.indexing import Places, Selection, crossed
from skerch_ooc.stages.merge.arithmetic import Host
from skerch_ooc.stages.recover.recipes import columns_of_result
from skerch_ooc.stages.recover.vectors import VectorMaker, Vectors
from skerch_ooc.store.anew import recovered_anew
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.pieces import open_matrix
from skerch_ooc.store.rundir import Run, open_run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.tiles import Tiles

BLOCK_ROWS = 256
"""Rows of implicit vectors that are computed together; the height of a tile is a multiple."""

Item = TypeVar("Item")
Value = TypeVar("Value")

_BYTES_IN_FLIGHT = 512 * 1024**2


class Tall(Tiles):
    """The vectors of a result: a tall matrix that is read by tiles.

    Attributes:
        path: The file of the result.
        layout: Shape, dtype and tiles of the vectors.
    """

    path: Path

    @property
    def wide_dtype(self) -> np.dtype[Any]:
        """The dtype of double precision: float64, or complex128."""
        return np.result_type(self.dtype, np.float64)

    @property
    def row_tiles(self) -> range:
        """The numbers of the row tiles."""
        return range(self.layout.grid[0])

    def read_tile(self, row: int, column: int = 0) -> Array:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        return self.open_row(row, slice(None))(column)

    @property
    def bytes_per_tile(self) -> int:
        """Bytes that a row tile takes while it is worked on, in double precision."""
        columns = 2 * self.shape[1] + self.factor_columns
        return min(self.layout.tile[0], self.shape[0]) * columns * self.wide_dtype.itemsize

    @property
    @abstractmethod
    def factor_columns(self) -> int:
        """The number of columns that :meth:`factor` holds in memory."""

    @abstractmethod
    def open_row(self, number: int, inside: Places) -> Callable[[int], Array]:
        """Opens a row tile.

        Args:
            number: The number of the row tile.
            inside: The rows of the tile that are wanted; others may hold anything.

        Returns:
            A function from the number of a column tile to its entries, ``(rows, columns)``, in
            ``dtype``.

        Raises:
            CorruptError: If a tile was altered.
            IncompleteError: If a shard is gone.
        """

    def expect(self, rows: Range, columns: Range) -> None:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        del rows, columns

    @abstractmethod
    def factor(self, number: int) -> Array:
        """Returns a row tile of ``F``, in double precision, where the vectors are ``F transform``.

        Raises:
            CorruptError: If a tile was altered.
            IncompleteError: If a shard is gone.
        """

    @property
    @abstractmethod
    def transform(self) -> Array | None:
        """The matrix that :meth:`factor` is multiplied with, ``(c, r)``; ``None`` for identity."""

    def read_wide(self, number: int) -> Array:
        """Reads a row tile of all vectors, in double precision."""
        x = self.factor(number)
        return x if self.transform is None else x @ self.transform


class StoredVectors(Tall):
    """Vectors that are written out.

    Args:
        file: The file of the result.
        name: The name of the matrix.

    Raises:
        IncompleteError: If the file holds no such matrix.
    """

    def __init__(self, file: SealedFile, name: str) -> None:
        matrix = open_matrix(file, name)
        if matrix is None:
            raise IncompleteError(
                f'{file.path} holds no {name}; recover it with vectors = "stored"'
            )
        self._matrix = matrix
        self.path, self.layout = file.path, matrix.layout

    @property
    def factor_columns(self) -> int:
        """See :class:`Tall`."""
        return self.shape[1]

    def open_row(self, number: int, inside: Places) -> Callable[[int], Array]:
        """See :class:`Tall`."""
        del inside
        return lambda column: self._matrix.read_tile(number, column)

    def expect(self, rows: Range, columns: Range) -> None:
        """See :class:`Tall`."""
        self._matrix.expect(rows, columns)

    def factor(self, number: int) -> Array:
        """See :class:`Tall`."""
        rows = len(self.layout.rows(number))
        return self._matrix.read_row(number, empty_aligned((rows, self.shape[1]), self.wide_dtype))

    @property
    def transform(self) -> Array | None:
        """See :class:`Tall`."""
        return None


class ImplicitSources:
    """The columns that the implicit vectors of a result are made of, opened when first needed.

    Args:
        file: The file of the result, in its place inside the run directory.
    """

    def __init__(self, file: SealedFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._opened: tuple[Plan, Tiles, Tiles | None] | None = None

    def opened(self) -> tuple[Plan, Tiles, Tiles | None]:
        """Returns the plan of the result, and the columns of the left and of the right side.

        Raises:
            IncompleteError: If the result was taken out of its run, or shards are gone.
            CorruptError: If shards are damaged, or are not those of the result.
        """
        # Several threads read tiles at once, and both sides share these columns.
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> tuple[Plan, Tiles, Tiles | None]:
        path, identity = self._file.path, self._file.identity
        # From results/NAME/eigh.h5, so that a run that was moved still works.
        directory = path.absolute().parents[2]
        try:
            run = open_run(directory)
        except UsageError as error:
            raise IncompleteError(
                f"{path} makes its vectors from the shards of its run, and {directory} is no run "
                'any more; leave the result in its place, or recover it with vectors = "stored"'
            ) from error
        if identity.get("run") != run.plan.run_id:
            raise CorruptError(
                f"{path} is a result of another run than {directory}; put each in its place"
            )
        # The plan as it was when the result was made: columns that were added since are no part of
        # it.
        plan = Plan(run.plan.identity, run.plan.amendments[: int(identity["amendments"])])
        try:
            columns = columns_of_result(
                Run(directory, plan), RecoverySpec(**identity["settings"]), identity.get("rounds")
            )
        except IncompleteError as error:
            raise IncompleteError(f"{path} makes its vectors from the shards: {error}") from error
        if columns.digest != identity["sketch"]:
            raise CorruptError(
                f"{path} makes its vectors from the shards, and those were measured anew since"
                f"{recovered_anew(path)}"
            )
        return plan, columns.left, columns.right


class ImplicitVectors(Tall):
    """Vectors that are computed from the sketch as they are read.

    Args:
        file: The file of the result.
        name: The name of the vectors.
        side: ``"left"`` or ``"right"``.
        source: Opens the sketch; both sides share it.

    Raises:
        IncompleteError: If the file holds no such vectors.
    """

    def __init__(self, file: SealedFile, name: str, side: str, source: ImplicitSources) -> None:
        if f"{side}_transform" not in file.arrays:
            raise IncompleteError(
                f'{file.path} holds no {name}; recover it with vectors = "stored"'
            )
        first = file.arrays[f"{side}_transform"]
        last = file.arrays.get(f"{side}_correction")
        self._source, self._side = source, side
        self._first: Array | None = None if last is None else first
        self._last: Array = first if last is None else last
        self._source_columns = len(first)
        self.path = file.path
        self.layout = Layout(
            name=name,
            shape=(int(file.identity["shape"][side == "right"]), self._last.shape[1]),
            dtype=str(file.identity["dtype"]),
            tile=(int(file.identity["tile"]), VECTOR_TILE_COLUMNS),
        )

    @property
    def factor_columns(self) -> int:
        """See :class:`Tall`."""
        return self._source_columns + (0 if self._first is None else self._first.shape[1])

    @property
    def transform(self) -> Array | None:
        """See :class:`Tall`."""
        return self._last

    @cached_property
    def _pieces(self) -> list[Array]:
        """The last factor, cut by columns into aligned arrays."""
        # Aligned and contiguous, as the bits of a product may depend on how its operands lie.
        pieces = []
        for piece in cut(Range(0, self.shape[1]), VECTOR_TILE_COLUMNS):
            pieces.append(empty_aligned((len(self._last), len(piece)), self.wide_dtype))
            pieces[-1][:] = self._last[:, piece.slice]
        return pieces

    def open_row(self, number: int, inside: Places) -> Callable[[int], Array]:
        """See :class:`Tall`."""
        rows = len(self.layout.rows(number))
        needed = np.unique(np.arange(rows)[inside] // BLOCK_ROWS)
        blocks = [tile(Range(0, rows), BLOCK_ROWS, int(block)) for block in needed]
        x = self.factor(number)

        def column_tile(column: int) -> Array:
            piece = self._pieces[column]
            made = np.empty((rows, piece.shape[1]), self.dtype)
            space = empty_aligned((min(rows, BLOCK_ROWS), piece.shape[1]), self.wide_dtype)
            for block in blocks:
                made[block.slice] = np.matmul(x[block.slice], piece, out=space[: len(block)])
            return made

        return column_tile

    def factor(self, number: int) -> Array:
        """See :class:`Tall`."""
        plan, left, right = self._source.opened()
        source = right if self._side == "right" and right else left
        if self._first is not None:
            maker = VectorMaker(plan, Vectors(source, self._first), self.shape[0], Host())
            return maker.tile(number, maker.take())
        rows = len(self.layout.rows(number))
        return source.read_row(number, empty_aligned((rows, source.shape[1]), self.wide_dtype))


def open_vectors(file: SealedFile, left: str, right: str | None) -> tuple[Tall, Tall]:
    """Opens the vectors of a result, stored or implicit.

    Args:
        file: The file of the result.
        left: The name of the left vectors, or of the eigenvectors.
        right: The name of the right vectors; ``None`` if the left ones serve.

    Raises:
        IncompleteError: If the file holds no such vectors.
    """
    opened: list[Tall] = []
    source = ImplicitSources(file)
    for name, side in ((left, "left"), (right, "right")):
        if name is not None and "left_transform" in file.arrays:
            opened.append(ImplicitVectors(file, name, side, source))
        elif name is not None:
            opened.append(StoredVectors(file, name))
    return opened[0], opened[-1]


def gather(tall: Tall, rows: Selection, columns: Selection) -> Array:
    """Reads the given columns of the given rows, from those tiles only that hold any of them.

    Returns:
        ``(len(rows), len(columns))``.

    Raises:
        CorruptError: If a tile was altered.
        IncompleteError: If a shard is gone.
    """
    out = np.empty((len(rows), len(columns)), tall.dtype)
    down, across = list(rows.tiles(tall.layout.tile[0])), list(columns.tiles(tall.layout.tile[1]))

    def read(number: int) -> None:
        to_rows, from_rows = rows.within(tall.layout.rows(number))
        if _is_run(across):
            last = down[-1] if _is_run(down) else number
            tall.expect(Range(number, last + 1), Range(across[0], across[-1] + 1))
        column_tile = tall.open_row(number, from_rows)
        for column in across:
            to, start = columns.within(tall.layout.columns(column))
            out[crossed(to_rows, to)] = column_tile(column)[crossed(from_rows, start)]

    if len(columns):
        for _ in in_parallel(read, down, tall.bytes_per_tile):
            pass
    return out


def _is_run(numbers: Sequence[int]) -> bool:
    """Whether numbers follow one another."""
    return list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))


def adjoint_times(tall: Tall, x: Callable[[Range], Array]) -> Array:
    """Forms ``V^H X``, in double precision, by one stream over the vectors ``V``.

    Args:
        tall: The vectors.
        x: Gives rows of ``X``, in double precision.
    """

    def product(number: int) -> Array:
        return np.asarray(tall.factor(number).conj().T @ x(tall.layout.rows(number)))

    total: Array | None = None
    for part in in_parallel(product, tall.row_tiles, tall.bytes_per_tile):
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total if tall.transform is None else tall.transform.conj().T @ total


def times(tall: Tall, x: Array, write: Callable[[Range, Array], None]) -> None:
    """Forms ``V X``, in double precision, by one stream over the vectors ``V``.

    Args:
        tall: The vectors.
        x: ``(r, k)``, in double precision.
        write: Is given rows of the result, in order.
    """
    x = x if tall.transform is None else tall.transform @ x

    def product(number: int) -> Array:
        return np.asarray(tall.factor(number) @ x)

    products = in_parallel(product, tall.row_tiles, tall.bytes_per_tile)
    for number, part in zip(tall.row_tiles, products, strict=True):
        write(tall.layout.rows(number), part)


def read_rows(tall: Tall, rows: Range) -> Array:
    """Reads some rows of all vectors, in double precision, from the tiles that hold them."""
    pieces = [np.empty((0, tall.shape[1]), tall.wide_dtype)]
    for number in tiles_of(rows, tall.layout.tile[0]):
        there = tall.layout.rows(number)
        pieces.append(tall.read_wide(number)[there.common(rows).shifted(-there.start).slice])
    return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)


def in_parallel(
    function: Callable[[Item], Value], items: Sequence[Item], bytes_each: int
) -> Iterator[Value]:
    """Applies a function to items in as many threads as there are cores, and memory for.

    Args:
        function: The function.
        items: The items.
        bytes_each: Bytes that each of them takes while it is worked on.
    """
    fit = max(1, _BYTES_IN_FLIGHT // bytes_each)
    return ordered_map(function, items, max(1, min(available_cores(), fit, len(items))))
