"""Tall matrices in pieces: several sealed files, each with some row tiles of vectors or a basis.

A piece holds an aligned run of row tiles. The file that the matrix belongs to states the hash of
the identity of each piece, which has all checksums of the piece. So a piece that is missing,
altered or of another matrix is never read as if it were the right one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError
from skerch_ooc.base.files import versions_in
from skerch_ooc.base.partition import Range
from skerch_ooc.base.places import is_object
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_sealed
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.tiles import Tiles


def piece_path(folder: Path, name: str, tiles: Range) -> Path:
    """Returns the path of the piece with some row tiles of the matrix ``name``."""
    return folder / names.PIECE.name(matrix=name, tiles=tiles)


def describe_pieces(layout: Layout, pieces: Sequence[tuple[Range, SealedFile]]) -> dict[str, Any]:
    """Describes the pieces of a matrix, for the identity of the file that the matrix belongs to.

    Args:
        layout: The layout of the whole matrix.
        pieces: The row tiles and the file of each piece, in order.
    """
    return {
        **layout.sizes(),
        "tiles": [[tiles.start, tiles.stop] for tiles, _ in pieces],
        "identities": [file.digest for _, file in pieces],
    }


@dataclass(frozen=True)
class _Described:
    """A description that :func:`describe_pieces` made, as it is read again."""

    layout: Layout
    tiles: list[Range]
    identities: list[str]

    @classmethod
    def of(cls, name: str, value: Any, path: Path) -> _Described:
        try:
            layout = Layout.of(name, value)
            tiles = [Range(int(start), int(stop)) for start, stop in value["tiles"]]
            identities = [str(identity) for identity in value["identities"]]
            starts, ends = [run.start for run in tiles], [run.stop for run in tiles]
            good = len(identities) == len(tiles) and [*starts, layout.grid[0]] == [0, *ends]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptError(f"{path}: it does not describe the pieces of its {name}") from error
        if not good:
            raise CorruptError(f"{path}: it does not describe the pieces of its {name}")
        return cls(layout, tiles, identities)


class PiecedMatrix(Tiles):
    """A matrix in pieces, each of which is opened when it is first read; see :class:`Tiles`.

    Raises:
        CorruptError: If the file does not describe the pieces of this matrix.
    """

    def __init__(self, file: SealedFile, name: str) -> None:
        described = _Described.of(name, file.identity["pieces"][name], file.path)
        self.layout = described.layout
        self._described = described
        self._file, self._name = file, name
        self._lock = threading.Lock()
        self._far = is_object(file.path)
        self._opened: dict[int, SealedFile] = {}

    @property
    def paths(self) -> list[Path]:
        """The files of the pieces, in order."""
        return [
            piece_path(self._file.path.parent, self._name, tiles) for tiles in self._described.tiles
        ]

    def read_tile(self, row: int, column: int = 0) -> Array:
        """See :class:`Tiles`.

        Raises:
            IncompleteError: If the piece is gone.
            CorruptError: If it was altered, or is of another matrix.
        """
        number, tiles = self._place(row)
        return self._piece(number).bulk().read_tile(row - tiles.start, column)

    def _place(self, row: int) -> tuple[int, Range]:
        """Returns the number of the piece with a row tile, and all its row tiles."""
        # All runs but the last are equally long.
        number = row // len(self._described.tiles[0])
        return number, self._described.tiles[number]

    @property
    def far_bytes(self) -> int:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        return self.layout.row_bytes if self._far else 0

    def expect(self, rows: Range, columns: Range) -> None:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        if self._far:
            number, tiles = self._place(rows.start)
            here = rows.common(tiles).shifted(-tiles.start)
            self._piece(number).bulk().expect(here, columns)

    def check(self) -> None:
        """Opens every piece.

        Raises:
            IncompleteError: If one is gone.
            CorruptError: If one was altered, or is of another matrix.
        """
        for number in range(len(self._described.tiles)):
            self._piece(number)

    def _piece(self, number: int) -> SealedFile:
        with self._lock:
            if number not in self._opened:
                self._opened[number] = self._open(number)
            return self._opened[number]

    def _open(self, number: int) -> SealedFile:
        path = self.paths[number]
        try:
            file = open_sealed(path)
        except FileNotFoundError as error:
            raise IncompleteError(
                f"{path} is gone, a piece of {self._file.path}; recover, or merge, again makes it"
            ) from error
        if file.digest != self._described.identities[number]:
            raise CorruptError(
                f"{path} is not the piece that {self._file.path} was published with{file.advice}"
            )
        return file


def pieced_names(identity: Mapping[str, Any]) -> list[str]:
    """Lists the matrices of a file that are in pieces, according to its identity."""
    return list(identity.get("pieces", {}))


def open_matrix(file: SealedFile, name: str) -> Tiles | None:
    """Opens the matrix ``name`` of a file, whole or in pieces; ``None`` if there is none.

    Raises:
        CorruptError: If the file does not describe its pieces.
    """
    if name in file.layouts:
        return file.bulk(name)
    return PiecedMatrix(file, name) if name in pieced_names(file.identity) else None


def _pieced(file: SealedFile) -> Iterator[PiecedMatrix]:
    return (PiecedMatrix(file, name) for name in pieced_names(file.identity))


def piece_paths(file: SealedFile) -> list[Path]:
    """Lists the paths of the pieces of all matrices of a file.

    Raises:
        CorruptError: If the file does not describe them.
    """
    return [path for matrix in _pieced(file) for path in matrix.paths]


def lost_pieces(file: SealedFile) -> list[Path]:
    """Lists the missing pieces of a file's matrices; raises as :func:`piece_paths` does."""
    paths = piece_paths(file)
    there = versions_in(file.path.parent, [path.name for path in paths]) if paths else {}
    return [path for path in paths if path.name not in there]


def check_pieces(file: SealedFile) -> None:
    """Opens every piece of a file's matrices.

    Raises:
        IncompleteError: If one is gone.
        CorruptError: If one was altered, is of another matrix, or is not described.
    """
    for matrix in _pieced(file):
        matrix.check()
