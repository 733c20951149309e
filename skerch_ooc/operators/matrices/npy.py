"""Matrices in ``.npy`` files, in C or Fortran order, read without mapping them into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import OperatorError
from skerch_ooc.base.partition import Range
from skerch_ooc.operators.matrices.decoding import Decoding
from skerch_ooc.operators.matrices.places import Places
from skerch_ooc.operators.matrices.sources import BROKEN, Meant, Source, unreadable


class NpySource(Source):
    """A matrix in a ``.npy`` file.

    Raises:
        OperatorError: If the file is not there, or holds no matrix of numbers.
    """

    def __init__(self, path: Path, wanted: Meant = Meant()) -> None:  # noqa: B008 (frozen)
        try:
            self._file = Places(path)
            version = np.lib.format.read_magic(self._file.file)
            reader = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                reader = np.lib.format.read_array_header_2_0
            shape, self._by_columns, dtype = reader(self._file.file)
        except BROKEN as error:
            raise OperatorError(
                f"cannot open {path} as a .npy file: {error}; write it with numpy.save"
            ) from error
        if dtype.hasobject:
            raise OperatorError(
                f"cannot open {path} as a .npy file of numbers: it holds Python objects; write a "
                "matrix of numbers with numpy.save"
            )
        self._start = self._file.file.tell()
        self._describe(str(path), shape, dtype, Decoding.of({}, dtype, wanted.codes))
        needed = self._start + self.shape[0] * self.shape[1] * dtype.itemsize
        if self._file.size < needed:
            raise OperatorError(
                f"{path} is torn: {self.shape[0]} x {self.shape[1]} entries take {needed} bytes, "
                "and it has fewer; copy or write it again"
            )

    def _read_to(self, out: Array, rows: Range) -> None:
        size, (height, width) = self.stored_dtype.itemsize, self.shape
        if not self._by_columns:
            self._fill(out, self._start + rows.start * width * size)
            return
        # A piece of each column; of the whole height, all of them lie side by side.
        piece = np.empty((width, len(rows)), out.dtype)
        if len(rows) == height:
            self._fill(piece, self._start)
        else:
            for column in range(width):
                place = self._start + (column * height + rows.start) * size
                self._fill(piece[column], place)
        out[:] = piece.T

    def _fill(self, out: Array, place: int) -> None:
        """Fills an array with the bytes at a place of the file."""
        whole = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
        try:
            self._file.fill(whole, place)
        except (OSError, EOFError) as error:
            raise unreadable(self.name, error) from error
        if whole is not out:
            out[:] = whole
