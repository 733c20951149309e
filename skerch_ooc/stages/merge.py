"""Merge: one stream over the sketch that forms the Gram matrices which recovery needs.

With ``Z = [Y T]`` (the sketches of all roles side by side) and ``N = [Omega G]`` (their test
matrices), two accumulators hold all that one-pass recovery, the choice of the core and the error
figures need:

* ``gram = Z^H Z``, with the blocks ``Y^H Y``, ``Y^H T``, ``T^H T``;
* ``cross = N^H Z``, with ``Omega^H Y``, ``Omega^H T``, ``G^H Y``, ``G^H T``.

``N`` is drawn tile by tile and never stored. Tiles are accumulated in double precision (see
:mod:`skerch_ooc.stages.accumulate`) and summed in one fixed tree, so neither memory nor the number
of threads changes a bit of the result.

Tasks are aligned runs of tiles. Each publishes its partial sums and, where there are many column
shards, its rows of the sketch in one shard per role (a rechunk in bounded memory). All that is
merged from one set of shards lies in one folder, named by the hash of their identities: after a
shard was measured anew nothing stale can be taken for current.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerch_ooc.errors import CorruptError
from skerch_ooc.linalg import mirrored
from skerch_ooc.partition import Range, aligned_runs, levels, tree_sum
from skerch_ooc.progress import Advance, Progress
from skerch_ooc.provenance import provenance
from skerch_ooc.resources import Resources
from skerch_ooc.rundir import Run
from skerch_ooc.sealed import SealedFile, SealedWriter, sealed_writer
from skerch_ooc.shards import Rectangle, SketchReader, complete_shards, list_shards, shard_layout
from skerch_ooc.spec import FORMAT_VERSION, ROLES, Plan
from skerch_ooc.stages.accumulate import (
    Sums,
    Workspace,
    accumulate_tile,
    sums_bytes,
    tile_bytes,
)
from skerch_ooc.stages.drift import require_one_operator
from skerch_ooc.streams import Pool, ordered_map, tiles_in_flight

Array = npt.NDArray[Any]

TOTAL = "total.h5"

SMALLEST_RUN = 5
"""A merge task has at least 2**5 tiles."""

RECHUNK_ABOVE = 128
"""With more column shards than this, the merge writes row shards for the recovery to read."""


@dataclass(frozen=True)
class Merged:
    """What the merge stage hands to recovery.

    Attributes:
        digest: Hash of the sketch that was merged.
        gram: ``Z^H Z``, ``(c, c)``, Hermitian.
        cross: ``N^H Z``, ``(c, c)``.
        columns: Where the columns of each role stand.
        reader: Reads row tiles of the sketch.
    """

    digest: str
    gram: Array
    cross: Array
    columns: Mapping[str, Range]
    reader: SketchReader

    def block(self, matrix: str, rows: str, columns: str) -> Array:
        """A block of ``gram`` or ``cross``: the rows of one role, the columns of another."""
        whole: Array = getattr(self, matrix)
        return whole[self.columns[rows].slice, self.columns[columns].slice]


def run_exponent(plan: Plan) -> int:
    """Merge tasks are runs of ``2**j`` tiles, so long that sums stay below a tenth of the data."""
    tile = plan.identity.tile[0] * plan.products * np.dtype(plan.identity.dtype).itemsize
    return max(SMALLEST_RUN, (10 * sums_bytes(plan) // tile).bit_length())


def merge_bytes(plan: Plan) -> tuple[int, int]:
    """Memory of the merge: bytes that are needed once, and bytes for each tile in flight."""
    tiles, longest = len(plan.tiles()), 1 << run_exponent(plan)
    partials = levels(min(tiles, longest)) + (
        levels(-(-tiles // longest)) if tiles > longest else 0
    )
    # One more than the tree's partial sums: a finished tile that waits for its turn.
    return (partials + 1) * sums_bytes(plan), tile_bytes(plan)


class Merge:
    """The merge of the shards that a run has now.

    Args:
        run: The run; everything must be measured.
        rechunk: Whether row shards are written; by default where there are many column shards.

    Attributes:
        digest: Hash of the sketch.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged, foreign, swapped or a link.
    """

    def __init__(self, run: Run, rechunk: bool | None = None) -> None:
        self.run = run
        self.plan = run.plan
        self.reader = SketchReader(run, run.shards, complete_shards(run.plan, run.shards))
        self.digest = self.reader.digest
        self.folder = run.sketch / self.digest[:16]
        self._rechunk = self.reader.shards > RECHUNK_ABOVE if rechunk is None else rechunk
        self._tiles = run.plan.tiles()

    @property
    def done(self) -> bool:
        """Whether the sums over this sketch are published."""
        return (self.folder / TOTAL).exists()

    def result(self, resources: Resources, progress: Progress) -> Merged:
        """Merges, or finds that this is done.

        Args:
            resources: Memory and cores.
            progress: Shows how far it is.

        Returns:
            The accumulators, and a reader of the sketch.

        Raises:
            CorruptError: If a shard, or a file of the merge, is damaged.
            DriftError: If shards were made by different operators.
            UsageError: If the memory is too little.
        """
        whole = Range(0, len(self._tiles))
        sums = self._read_sums(self.folder / TOTAL, whole)
        if sums is None:
            sums = self._accumulate(resources, progress)
            sums.gram = mirrored(sums.gram)
            require_one_operator(
                sums.cross, sums.gram, self.reader.placed_shards(), self.plan.identity.dtype
            )
            self._publish_sums(self.folder / TOTAL, whole, sums)
        return Merged(self.digest, sums.gram, sums.cross, self.plan.columns, self._best_reader())

    def _accumulate(self, resources: Resources, progress: Progress) -> Sums:
        """Forms the sums over all tiles; partial sums that are published are not formed again."""
        in_flight = tiles_in_flight("merge", resources, *merge_bytes(self.plan))
        self.folder.mkdir(parents=True, exist_ok=True)
        with progress.stage("merge", len(self._tiles), "tiles") as advance:
            return tree_sum(self._partial_sums(in_flight, advance), Sums.add)

    def _partial_sums(self, in_flight: int, advance: Advance) -> Iterator[Sums]:
        tasks = list(aligned_runs(len(self._tiles), run_exponent(self.plan)))
        for task in tasks:
            path = self.folder / f"sums.t{task}.h5"
            sums = self._read_sums(path, task)
            if sums is None:
                sums = self._sum_of_run(task, in_flight, advance)
                if len(tasks) > 1:
                    self._publish_sums(path, task, sums)
            else:
                advance(len(task))
            yield sums

    def _sum_of_run(self, task: Range, in_flight: int, advance: Advance) -> Sums:
        sums = Pool(lambda: Sums.zeros(self.plan))
        spaces = Pool(lambda: Workspace.of(self.plan))

        with contextlib.ExitStack() as stack:
            writers = self._row_writers(stack, task) if self._rechunk else {}

            def sum_of_tile(number: int) -> Sums:
                space, tile = spaces.take(), sums.take()
                z = self.reader.read_tile(number, space.z)
                for role, writer in writers.items():
                    writer.write_rows(number - task.start, z[:, self.plan.columns[role].slice])
                accumulate_tile(self.plan, self._tiles[number], z, space, tile)
                spaces.give(space)
                return tile

            def add(total: Sums, other: Sums) -> Sums:
                total.add(other)
                sums.give(other)
                return total

            def counted(tile: Sums) -> Sums:
                advance(1)
                return tile

            numbers = range(task.start, task.stop)
            total = tree_sum(map(counted, ordered_map(sum_of_tile, numbers, in_flight)), add)
            for role, writer in writers.items():
                rectangle = self._row_rectangle(role, task)
                writer.publish(rectangle.identity(self.plan.run_id), provenance=provenance())
            return total

    def _row_rectangle(self, role: str, task: Range) -> Rectangle:
        rows = Range(self._tiles[task.start].start, self._tiles[task.stop - 1].stop)
        return Rectangle(role, 0, Range(0, self.plan.reach(role)), rows)

    def _row_writers(self, stack: contextlib.ExitStack, task: Range) -> dict[str, SealedWriter]:
        writers = {}
        for role in ROLES:
            if self.plan.reach(role):
                rectangle = self._row_rectangle(role, task)
                layout = shard_layout(self.plan, rectangle)
                writers[role] = stack.enter_context(
                    sealed_writer(self.folder / rectangle.name, layout)
                )
        return writers

    def _best_reader(self) -> SketchReader:
        """Reads from the row shards, if all of them are there; else from the column shards."""
        rows = list_shards(self.folder)
        tasks = aligned_runs(len(self._tiles), run_exponent(self.plan))
        wanted = {
            self._row_rectangle(role, task)
            for task in tasks
            for role in ROLES
            if self.plan.reach(role)
        }
        return SketchReader(self.run, self.folder, rows) if wanted == set(rows) else self.reader

    def _identity(self, tiles: Range) -> dict[str, Any]:
        return {
            "format": FORMAT_VERSION,
            "type": "sums",
            "run": self.plan.run_id,
            "sketch": self.digest,
            "tiles": [tiles.start, tiles.stop],
            "columns": {role: [r.start, r.stop] for role, r in self.plan.columns.items()},
        }

    def _publish_sums(self, path: Path, tiles: Range, sums: Sums) -> None:
        with sealed_writer(path) as writer:
            writer.publish(
                self._identity(tiles), {"gram": sums.gram, "cross": sums.cross}, provenance()
            )

    def _read_sums(self, path: Path, tiles: Range) -> Sums | None:
        try:
            file = SealedFile(path)
        except FileNotFoundError:
            return None
        except CorruptError as error:
            raise CorruptError(
                f"{error}. To make it anew: rm {path} && skerch-ooc merge {self.run.directory}"
            ) from error
        if file.identity != self._identity(tiles):
            raise CorruptError(
                f"{path} is not of this sketch; remove it: rm {path} && "
                f"skerch-ooc merge {self.run.directory}"
            )
        return Sums(file.arrays["gram"], file.arrays["cross"])
