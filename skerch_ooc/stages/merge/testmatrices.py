"""Rows of test matrices for the merge: drawn anew, read from a basis, or from a file of noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from skerch_ooc.algebra.noise import Entries, draw, draw_entries
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError
from skerch_ooc.base.files import make_folder
from skerch_ooc.base.noise_kinds import WHOLE_COLUMNS
from skerch_ooc.base.partition import Range, cut
from skerch_ooc.base.provenance import provenance
from skerch_ooc.planning.disk import NOISE_TILE_COLUMNS
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import BASIS, GIVEN, OPEN, START, Side, height_of_noise
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there, open_sealed
from skerch_ooc.store.layout import Layout
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile, sealed_writer
from skerch_ooc.store.sketch import Round, Sketch, given_vectors
from skerch_ooc.store.tiles import Beside, RowTiles, SomeColumns, Tiles


class NoiseReader:
    """Reads row tiles of the test matrices of a sketch.

    Args:
        plan: The plan in force.
        kept: The test matrices that are on disk, by name: the basis of a later round, and those
            that can only be drawn by whole columns.
    """

    def __init__(self, plan: Plan, kept: Mapping[str, Tiles]) -> None:
        self._identity = plan.identity
        self._kept = kept

    def noise(self, name: str) -> str:
        """Returns the distribution of a test matrix; ``"basis"`` for what has none."""
        return self._identity.noise.get(name, BASIS)

    def entries(self, name: str, rows: Range, columns: Range) -> Entries:
        """Draws the nonzero entries of some rows and columns of a sparse test matrix."""
        return draw_entries(self._identity.noise[name], self._identity.seed, name, rows, columns)

    def tile(
        self, name: str, rows: Range, columns: Range, dtype: npt.DTypeLike, out: Array | None
    ) -> Array:
        """Returns some rows and columns of a test matrix.

        Args:
            name: Its name.
            rows: The rows.
            columns: The columns, counted from its first.
            dtype: Of the result.
            out: A buffer of this dtype, at least as large, or ``None``.

        Raises:
            CorruptError: If the basis was altered.
        """
        if name not in self._kept:
            noise, seed = self._identity.noise[name], self._identity.seed
            return draw(noise, seed, name, rows, columns, dtype, out=out)
        part = self._kept[name].read(rows, columns)
        if out is None:
            return part.astype(dtype)
        out = out[: len(rows), : len(columns)]
        out[:] = part
        return out


def prepare_noise(sketch: Sketch, side: Side) -> NoiseReader:
    """Makes the test matrices of a side readable by rows.

    Those that can only be drawn by whole columns (``ssrft``) are first written to the folder of the
    sketch, unless they are there.

    Raises:
        IncompleteError: If such a file cannot be written.
        CorruptError: If the file that is there is damaged, or of something else.
    """
    plan = sketch.round.run.plan
    kept: dict[str, Tiles] = {
        name: _write_noise(sketch, plan, name, len(place)).bulk()
        for name, place in side.noise.items()
        if plan.identity.noise.get(name) in WHOLE_COLUMNS
    }
    round_ = sketch.round
    if round_.basis is not None:
        kept[BASIS] = round_.basis.matrix
    for name in side.noise.keys() - kept.keys() - plan.identity.noise.keys():
        kept[name] = _kept(round_, side.name, name)
    return NoiseReader(plan, kept)


def _kept(round_: Round, side: str, name: str) -> Tiles:
    """Returns a basis, or the products of an open round of ``krylov``, as a test matrix."""
    if name.startswith(BASIS):
        return round_.bases[int(name.removeprefix(BASIS))].matrix
    return products_of(round_.at_number(int(name.removeprefix(OPEN))), side)


def products_of(round_: Round, side: str) -> Tiles:
    """Returns the products of a round of ``krylov``: of a wider first sketch its first columns."""
    columns = round_.blocks[-1].columns
    return SomeColumns.of(round_.sketch.readers[side].roles[round_.role], Range(0, columns))


class Drawn(RowTiles):
    """Columns of a test matrix as a tall matrix: drawn anew whenever a tile of it is read.

    Args:
        plan: The plan in force.
        name: The name of the test matrix.
        columns: How many of its columns, from the first.
    """

    def __init__(self, plan: Plan, name: str, columns: int) -> None:
        identity = plan.identity
        self._noise, self._seed, self._name = identity.noise[name], identity.seed, name
        rows = height_of_noise(plan, name)
        self.layout = Layout(name, (rows, columns), identity.dtype, (identity.tile[0], columns))

    def read_row(self, row: int, out: Array) -> Array:
        """See :class:`~skerch_ooc.store.tiles.Tiles`."""
        rows, columns = self.layout.rows(row), Range(0, self.shape[1])
        drawn = draw(self._noise, self._seed, self._name, rows, columns, self.dtype)
        out = out[: len(rows)]
        out[:] = drawn
        return out


class StartReader(Beside):
    """The columns of the side of noise: the first block, and vectors that are given.

    Args:
        run: The run.
        side: The side.

    Attributes:
        roles: The columns by the names that they have on the side.

    Raises:
        IncompleteError: If vectors that are given are gone.
        CorruptError: If their file is damaged.
    """

    def __init__(self, run: Run, side: Side) -> None:
        self.roles: dict[str, Tiles] = {START: Drawn(run.plan, "right", len(side.sketches[START]))}
        if GIVEN in side.sketches:
            self.roles[GIVEN] = given_vectors(run)
        super().__init__(side.name, list(self.roles.values()))


def _write_noise(sketch: Sketch, plan: Plan, name: str, columns: int) -> SealedFile:
    path: Path = sketch.folder / names.NOISE.name(noise=name)
    identity = names.NOISE.identity(plan.run_id, noise=name)
    if (kept := open_if_there(path)) is not None:
        return _of_noise(kept, identity)
    rows = Range(0, height_of_noise(plan, name))
    layout = Layout(
        name="noise",
        shape=(len(rows), columns),
        dtype=plan.identity.dtype,
        tile=(min(plan.identity.tile[0], len(rows)), min(NOISE_TILE_COLUMNS, columns)),
    )
    make_folder(path.parent)
    with sealed_writer(path, layout) as writer:
        (bulk,) = writer.bulks
        for number, piece in enumerate(cut(Range(0, columns), NOISE_TILE_COLUMNS)):
            drawn = draw(
                plan.identity.noise[name], plan.identity.seed, name, rows, piece, layout.dtype
            )
            for row in range(layout.grid[0]):
                bulk.write_tile(row, number, drawn[layout.rows(row).slice])
        writer.publish(identity, provenance=provenance())
    return _of_noise(open_sealed(path), identity)


def _of_noise(file: SealedFile, identity: Mapping[str, Any]) -> SealedFile:
    if not file.states_just(identity):
        raise CorruptError(f"{file.path} is not what its name says{file.advice}")
    return file


def gaussian_probes(plan: Plan, rows: int, columns: int) -> Array:
    """Draws the Gaussian vectors ``(rows, columns)`` that probe how orthonormal columns are."""
    dtype = plan.identity.wide_dtype
    seed = plan.identity.seed
    return draw("gaussian", seed, "probe", Range(0, rows), Range(0, columns), dtype)
