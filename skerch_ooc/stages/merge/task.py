"""Merge: one stream over each side of a sketch, which forms the small matrices for recovery.

With ``Z`` the sketches of a side next to each other (``[Y T]``, say) and ``N`` its test matrices
(``[Omega G]``), two accumulators hold all that recovery, the choice of the core and the error
figures need:

* ``Z^H Z``, or in double precision the triangular factor of ``Z``;
* ``N^H Z``.

``N`` is drawn tile by tile and not stored (except for ``ssrft``, which can only be drawn by whole
columns). Tiles are accumulated in double precision (see :mod:`skerch_ooc.stages.merge.accumulate`)
and summed in one fixed tree, so neither memory nor the number of threads changes a bit of the
result.

Tasks are aligned runs of tiles. Each publishes its partial sums and, where there are many column
shards, its rows of the sketch in one shard per role (a rechunk in bounded memory). All that is
merged from one set of shards lies in one folder, named by the hash of their identities: after a
shard was measured anew nothing stale can be taken for current.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from skerch_ooc.algebra.linalg import gram_root, mirrored
from skerch_ooc.base.arrays import Array
from skerch_ooc.base.errors import CorruptError, IncompleteError
from skerch_ooc.base.files import as_given, is_there, list_names, make_folder
from skerch_ooc.base.partition import Range, tree_sum_of_runs
from skerch_ooc.base.progress import Advance, Progress, ignore_progress
from skerch_ooc.base.provenance import provenance, warn_of_versions
from skerch_ooc.base.resources import (
    SPARE_BYTES,
    Resources,
    operator_threads,
    peak_memory,
    resident_memory,
)
from skerch_ooc.base.streams import Pool, sum_of_tiles
from skerch_ooc.executors.work import Work
from skerch_ooc.planning.memory import RECHUNK_ABOVE, merge_bytes, stored_bytes
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import RANGE, START, Side
from skerch_ooc.planning.tasks import merge_runs, sums_groups
from skerch_ooc.stages.merge.accumulate import Accumulator, Sums, Workspace, load_integer_units
from skerch_ooc.stages.merge.agreement import require_no_drift
from skerch_ooc.stages.merge.arithmetic import Arithmetic, arithmetic_on
from skerch_ooc.stages.merge.testmatrices import NoiseReader, StartReader, prepare_noise
from skerch_ooc.store import names
from skerch_ooc.store.anew import open_if_there, open_kept
from skerch_ooc.store.arrival import FILES, Arrivals, once_seen, open_grown
from skerch_ooc.store.index import OpenedShards
from skerch_ooc.store.object_bytes import tiles_beside_windows
from skerch_ooc.store.readers import SketchReader
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile, SealedWriter, sealed_writer
from skerch_ooc.store.shards import Rectangle, list_shards, shard_layout
from skerch_ooc.store.sketch import Round, Sketch, publish_index, sketch_folder


@dataclass(frozen=True)
class MergedSide:
    """One side of a merged sketch: its accumulators, and what reads its columns.

    Attributes:
        side: Where the columns stand.
        sums: The accumulators; a Gram matrix is mirrored, so that it is whole.
        reader: Reads row tiles of the sketches.
    """

    side: Side
    sums: Sums
    reader: SketchReader | StartReader

    @cached_property
    def root(self) -> Array:
        """``R`` with ``R^H R = Z^H Z``, ``(a, c)``: a small copy of ``Z``, of equal geometry."""
        return self.sums.squares if self.sums.triangular else gram_root(self.sums.squares)

    def copy(self, role: str) -> Array:
        """Returns the columns of the small copy for a role; none if there is no such role."""
        return self.root[:, self._place(role).slice]

    def scaled_copies(self, groups: Sequence[Sequence[str]]) -> list[Array]:
        """Returns small copies of groups of roles, whose columns may be of any length.

        A root of a Gram matrix is as exact as its longest columns allow, so these are made equal.
        """
        columns = np.concatenate([np.arange(self.side.columns)[self._place(role).slice]
                                  for group in groups for role in group])  # fmt: skip
        root = self.sums.squares[:, columns]
        if not self.sums.triangular:
            gram = root[columns]
            lengths = np.sqrt(np.diagonal(gram).real)
            lengths = np.where(lengths > 0, lengths, 1.0)
            root = gram_root(gram / lengths[:, None] / lengths) * lengths
        widths = [sum(len(self._place(role)) for role in group) for group in groups]
        return np.split(root, np.cumsum(widths)[:-1], axis=1)

    def _place(self, role: str) -> Range:
        return self.side.sketches.get(role, Range(0, 0))

    def crosses(self, noises: Sequence[str], roles: Sequence[str]) -> Array:
        """Returns the adjoint of test matrices side by side times the sketches of roles."""
        return np.block([[self.cross(noise, role) for role in roles] for noise in noises])

    def cross(self, noise: str, role: str) -> Array:
        """Returns the adjoint of a test matrix times the sketch of a role: ``Omega^H Y``."""
        rows = self.side.noise.get(noise, Range(0, 0))
        return self.sums.cross[rows.slice, self._place(role).slice]


@dataclass(frozen=True)
class Merged:
    """A merged sketch: what the merge stage hands to recovery.

    Attributes:
        sketch: The sketch that was merged.
        sides: Each side, by its name.
    """

    sketch: Sketch
    sides: Mapping[str, MergedSide]


@dataclass(frozen=True)
class MergeTask:
    """A run of row tiles that one task sums, as plain data for any process.

    Attributes:
        run: The run directory.
        round: Number of the round.
        basis: The file of its test matrix, if that is a basis.
        side: Name of the side.
        tiles: The row tiles.
        rechunk: Whether row shards are written.
        resources: What the process may use.
        number: The number of the task among all of the round.
        sketch: The digest of the sketch.
        amendments: How many amendments the plan has.
    """

    run: str
    round: int
    basis: str | None
    side: str
    tiles: Range
    rechunk: bool
    resources: Resources
    number: int
    sketch: str
    amendments: int = 0

    def __str__(self) -> str:
        return f"row tiles {self.tiles} of the sums, {self.side} side"


class Merge:
    """Merges the shards that a round has now.

    Args:
        round_: The round; everything must be measured.
        rechunk: Whether row shards are written; by default where there are many column shards.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged, foreign, swapped or a link.
    """

    def __init__(self, round_: Round, rechunk: bool | None = None) -> None:
        self.round = round_
        self.plan = round_.run.plan
        self.sketch = round_.sketch
        self.rechunk = len(self.sketch.shards) > RECHUNK_ABOVE if rechunk is None else rechunk
        # Tasks are numbered through all sides, so that shares and job arrays can name them.
        self._sides: dict[str, _SideMerge] = {}
        for side in round_.sides:
            before = sum(len(merge.tasks) for merge in self._sides.values())
            self._sides[side.name] = _SideMerge(self, side, before)

    def readers(self) -> dict[str, SketchReader | StartReader]:
        """Returns a reader of the sketches of each side, whether they are merged yet or not."""
        return {name: merge.best_reader() for name, merge in self._sides.items()}

    def reader(self, side: Side) -> SketchReader | StartReader:
        """Returns what reads the columns of a side from the column shards, or draws them."""
        if side.name == START:
            return StartReader(self.round.run, side)
        return self.sketch.readers[side.name]

    def side(self, name: str) -> _SideMerge:
        """Returns the merge of one side."""
        return self._sides[name]

    def spread(self, work: Work) -> None:
        """Lets an executor form and publish the sums of runs of tiles, where there are several.

        Raises:
            CorruptError: If a shard, or a file of the merge, is damaged.
            UsageError: If the memory is too little.
        """
        for merge in self._sides.values():
            if merge.published() is None:
                merge.spread(work)

    def run(self, work: Work) -> Merged:
        """Merges the sketch, or reads what was merged before.

        Args:
            work: What forms the sums of runs of tiles, and with which resources.

        Returns:
            The accumulators, and readers of the sketch.

        Raises:
            CorruptError: If a shard, or a file of the merge, is damaged.
            DriftError: If shards were made by different operators.
            UsageError: If the memory is too little.
        """
        found = {name: merge.published() for name, merge in self._sides.items()}
        fresh = [name for name, published in found.items() if published is None]
        noting = self.round.run.receipt_of("merge", round=self.round.number)
        with noting if fresh else contextlib.nullcontext():
            sums = {
                name: found[name] or merge.accumulate(work) for name, merge in self._sides.items()
            }
        if fresh:
            # Before the sums are published: those that are there are not compared again.
            warn_of_versions(self.sketch.versions)
            require_no_drift(self.round, sums, self._first_sums())
            for name in fresh:
                self._sides[name].publish(sums[name])
        sides = {
            name: MergedSide(merge.side, sums[name], merge.best_reader())
            for name, merge in self._sides.items()
        }
        return Merged(self.sketch, sides)

    def _first_sums(self) -> Sums | None:
        """Reads the sums of the first round of ``krylov`` on the range, for a later round."""
        basis = self.round.basis
        if basis is None or self.plan.krylov is None or self.plan.identity.kind != "eigh":
            return None
        first = self.round.at_number(1)
        (side,) = (side for side in first.sides if side.name == RANGE)
        return read_total(first.run, basis.digests[0], side)


def begin_merge(round_: Round, rechunk: bool | None = None) -> Merge:
    """Opens a merge to work on it: by the index of its sketch, which is published before.

    Args:
        round_: The round; everything must be measured.
        rechunk: Whether row shards are written; by default where there are many column shards.

    Raises:
        IncompleteError: If measurements are missing, or the index cannot be written.
        CorruptError: If a shard is damaged, foreign, swapped or a link.
    """
    publish_index(round_)
    return Merge(round_, rechunk)


def perform_merge(task: MergeTask) -> Callable[[], dict[str, Any]]:
    """Does a task in any process, unless its sums are published already.

    Returns:
        A function that publishes the sums, and the rows of the sketch, and returns the receipt.

    Raises:
        CorruptError: If a shard is damaged.
        UsageError: If the memory is too little.
    """
    side = once_seen(
        task.run,
        lambda: _merge_of_process(
            task.run, task.round, task.basis, task.rechunk, task.sketch, task.amendments
        ),
    ).side(task.side)
    if task.tiles in side.tasks:
        return side.perform(task)
    # Sums that other workers have published a moment ago.
    return once_seen(task.run, lambda: side.perform(task))


@lru_cache(maxsize=1)
def _merge_of_process(
    directory: str, number: int, basis: str | None, rechunk: bool, digest: str, amendments: int
) -> Merge:
    """Opens the shards that tasks read; once in each process."""
    merge = Merge(Round.at(open_grown(directory, amendments), number, basis), rechunk)
    if merge.sketch.digest != digest:
        raise CorruptError(
            f"{merge.sketch.round.run.shards} holds other shards here than where the merge was "
            "begun: either they were measured anew meanwhile, then run the same command again; or "
            "this is another run directory"
        )
    return merge


def _nothing() -> None:
    """Publishes nothing."""


def _when_published(tiles: int, sums: Sums, published: Future[None]) -> tuple[int, Sums]:
    # The tree adds to sums in place: none may change while it is being written.
    published.result()
    return tiles, sums


def _inside(group: Range, runs: Sequence[Range]) -> Sequence[Range]:
    """Returns the runs in a group, all of which but the last are equally long."""
    size = len(runs[0])
    return runs[group.start // size : -(-group.stop // size)]


class _SideMerge:
    """The merge of one side."""

    def __init__(self, merge: Merge, side: Side, before: int) -> None:
        self._before = before
        self.side = side
        self.plan = merge.plan
        self._sketch = merge.sketch
        # What is drawn is not measured: it has no shards to be read from, or to be written again.
        self._rechunk = merge.rechunk and bool(side.measured)
        self._round = merge.round
        self._folder = merge.sketch.folder
        self._reader = merge.reader(side)
        self._tiles = merge.plan.tiles(side.rows)
        self.tasks = merge_runs(merge.plan, side)
        self._groups = sums_groups(merge.plan, side)

    @property
    def _tile_bytes(self) -> int:
        """Bytes of a row tile of the sketches of this side."""
        return stored_bytes(self.plan, len(self._tiles[0]), self.side.columns)

    @property
    def _total(self) -> Path:
        return self._folder / names.TOTAL_SUMS.name(side=self.side.name)

    def published(self) -> Sums | None:
        """Reads the sums over all tiles, if they are published."""
        return self._read_sums(self._total, Range(0, len(self._tiles)))

    def publish(self, sums: Sums) -> None:
        """Publishes the sums over all tiles."""
        self._publish_sums(self._total, Range(0, len(self._tiles)), sums)

    def accumulate(self, work: Work) -> Sums:
        """Forms the sums over all tiles; reads partial sums that are published."""
        self._prepare_folder()
        if work.executor.remote:
            self.spread(work)
        total = sum(len(task) for _, task in self._missing())
        progress = work.progress if total else Progress()
        with (
            progress.stage(self._stage, total, "tiles", self._tile_bytes) as advance,
            self._adding(),
        ):
            sums = tree_sum_of_runs(self._form_partial_sums(work.resources, advance), Sums.add)
        if not sums.triangular:
            sums.squares = mirrored(sums.squares)
        return sums

    def _adding(self) -> contextlib.AbstractContextManager[None]:
        """Limits linear algebra to one thread while triangular factors are added.

        The bits of a QR depend on the number of threads; those of a plain sum do not.
        """
        return operator_threads(1) if self.plan.identity.is_double else contextlib.nullcontext()

    def _prepare_folder(self) -> None:
        self._sketch.note()
        make_folder(self._folder)

    @property
    def _stage(self) -> str:
        return "merge" if self.side.name == RANGE else f"merge {self.side.name}"

    def _missing(self) -> Iterator[tuple[int, Range]]:
        """Yields number and tiles of each task that is not done."""
        numbered = enumerate(self.tasks, self._before)
        return ((number, task) for number, task in numbered if not self.has_formed(task))

    def spread(self, work: Work) -> None:
        """Lets an executor form and publish the partial sums that are missing, if there are any."""
        if len(self.tasks) == 1:
            return
        self._prepare_folder()
        own = work.executor.chosen(self._numbered(enumerate(self.tasks, self._before), work))
        self._do([task for task in own if not self.has_formed(task.tiles)], work, self._stage)
        self._add_up(own, work)

    def _do(self, tasks: Sequence[MergeTask], work: Work, stage: str) -> None:
        """Has tasks done, and waits until what they have published is seen here."""
        perform = perform_merge if work.executor.remote else self.perform
        arrivals = Arrivals(self._round.run.directory)
        work.run_tiles(perform, tasks, stage, self._tile_bytes, arrivals.note)
        arrivals.wait()
        if work.is_shared:
            arrivals.record_peaks(self._round.run, "merge", round=self._round.number)

    def _numbered(self, runs: Iterable[tuple[int, Range]], work: Work) -> Iterator[MergeTask]:
        run, number = as_given(self._round.run.directory), self._round.number
        for place, tiles in runs:
            yield MergeTask(
                str(run), number, self._round.basis_path, self.side.name, tiles, self._rechunk,
                work.resources.of_task, place, self._sketch.digest,
                len(self.plan.amendments),
            )  # fmt: skip

    def _add_up(self, own: Sequence[MergeTask], work: Work) -> None:
        """Has the partial sums added that are complete, and that tasks of this share are among.

        Processes that know nothing of each other share a level: the one that is done last finds
        all there. If none does, for it was killed, the process that needs the total adds them.
        """
        own_tiles, below = [task.tiles for task in own], self.tasks
        work = work if work.executor.remote else work.here
        for groups in self._groups:
            there = list_names(self._folder)
            complete = [
                group
                for group in groups
                if self._partial(group).name not in there
                if any(len(group.common(tiles)) for tiles in own_tiles)
                if all(self._partial(run).name in there for run in _inside(group, below))
            ]
            tasks = list(self._numbered(enumerate(complete), work))
            self._do(tasks, work, f"{self._stage} sums")
            below = groups

    def perform(self, task: MergeTask) -> Callable[[], dict[str, Any]]:
        """Does a task, unless its sums are published; see :func:`perform_merge`."""
        publish = _nothing
        if not self.has_formed(task.tiles):
            publish = self.form(task.tiles, task.resources)

        def finish() -> dict[str, Any]:
            publish()
            found = {"tiles": len(task.tiles), "peak_bytes": peak_memory()}
            return found | {FILES: self._files_of(task.tiles)}

        return finish

    def _files_of(self, task: Range) -> list[str]:
        """Lists the files that a task publishes, relative to the run directory."""
        rechunked = self._rechunk and task in self.tasks
        rows = [self._folder / shard.name for shard in self._row_shards(task)] if rechunked else []
        run = self._round.run.directory
        return [str(path.relative_to(run)) for path in (*rows, self._partial(task))]

    def has_formed(self, task: Range) -> bool:
        """Whether the sums of a task are published."""
        return is_there(self._partial(task))

    def form(self, task: Range, resources: Resources) -> Callable[[], None]:
        """Forms the sums of a run of tiles, or adds those of the runs in it.

        Returns:
            A function that publishes them.

        Raises:
            IncompleteError: If sums to be added are gone.
        """
        levels = [self.tasks, *self._groups]
        for below, groups in itertools.pairwise(levels):
            if task in groups and task not in below:
                sums = self._added(_inside(task, below))
                return partial(self._publish_sums, self._partial(task), task, sums)
        with self._adding():
            sums, publish_rows = self._sum_run(
                task, self._in_flight(resources), ignore_progress, arithmetic_on(resources.device)
            )
        return partial(self._publish_run, publish_rows, task, sums)

    def _added(self, runs: Sequence[Range]) -> Sums:
        """Adds published sums, which are read one after the other, in the tree."""

        def read(tiles: Range) -> Sums:
            path = self._partial(tiles)
            found = self._read_sums(path, tiles)
            if found is None:
                raise IncompleteError(f"{path} is gone again; run the same command again")
            return found

        with self._adding():
            return tree_sum_of_runs(((len(run), read(run)) for run in runs), Sums.add)

    def _in_flight(self, resources: Resources) -> int:
        needed = merge_bytes(self.plan, self.side)
        in_flight = tiles_beside_windows("merge", resources, needed, self._reader.far_bytes)
        held = resident_memory() + SPARE_BYTES + needed.fixed + resources.cores * needed.per_tile
        if resources.device == "cpu":
            load_integer_units(self.plan, self.side, in_flight, resources.memory - held)
        return in_flight

    def _longest_published(self) -> Iterator[Range]:
        """Yields the longest runs whose sums are published, and tasks where there are none."""
        there, levels = list_names(self._folder), [self.tasks, *self._groups]
        position = 0
        while position < len(self._tiles):
            starting = [
                runs[position // len(runs[0])] for runs in levels if position % len(runs[0]) == 0
            ]
            published = [run for run in starting if self._partial(run).name in there]
            run = published[-1] if published else starting[0]
            yield run
            position = run.stop

    def _form_partial_sums(
        self, resources: Resources, advance: Advance
    ) -> Iterator[tuple[int, Sums]]:
        in_flight, arithmetic = self._in_flight(resources), arithmetic_on(resources.device)
        # While the sums of a task go to the disk, those of the next are formed.
        with ThreadPoolExecutor(1, thread_name_prefix="publish") as publisher:
            before: tuple[int, Sums, Future[None]] | None = None
            for task in self._longest_published():
                sums = self._read_sums(self._partial(task), task)
                if sums is None:
                    sums, publish = self._sum_run(task, in_flight, advance, arithmetic)
                else:
                    publish = _nothing
                if before:
                    yield _when_published(*before)
                if len(self.tasks) > 1 and publish is not _nothing:
                    publish = partial(self._publish_run, publish, task, sums)
                before = len(task), sums, publisher.submit(publish)
            if before:
                yield _when_published(*before)

    def _partial(self, task: Range) -> Path:
        return self._folder / names.PARTIAL_SUMS.name(side=self.side.name, tiles=task)

    def _publish_run(self, publish_rows: Callable[[], None], task: Range, sums: Sums) -> None:
        # The rows first: a task counts as done once its sums are there.
        publish_rows()
        self._publish_sums(self._partial(task), task, sums)

    def _sum_run(
        self, task: Range, in_flight: int, advance: Advance, arithmetic: Arithmetic
    ) -> tuple[Sums, Callable[[], None]]:
        """Forms the sums of a task.

        Returns:
            The sums, and a function that publishes the task's rows of the sketch.
        """
        sums = Pool(lambda: Sums.zeros(self.plan, self.side))
        spaces = Pool(lambda: Workspace.of(self.plan, self.side))
        accumulator = Accumulator(self.plan, self.side, self._noise, arithmetic)

        with contextlib.ExitStack() as stack:
            writers = self._row_writers(stack, task) if self._rechunk else {}

            def sum_of_tile(number: int) -> Sums:
                space, tile = spaces.take(), sums.take()
                z = self._reader.read_row(number, space.z)
                for shard, writer in writers.items():
                    columns = self.side.sketches[shard.role]
                    writer.write_rows(number - task.start, z[:, columns.slice])
                accumulator.form(self._tiles[number], z, space, tile)
                spaces.give(space)
                return tile

            def add(total: Sums, other: Sums) -> Sums:
                total.add(other)
                sums.give(other)
                return total

            total = sum_of_tiles(sum_of_tile, task, in_flight, advance, add)
            # The files stay open: they are published later, perhaps while the next run is summed.
            opened = stack.pop_all()

        def publish_rows() -> None:
            with opened:
                for shard, writer in writers.items():
                    writer.publish(shard.identity(self.plan.run_id), provenance=provenance())

        return total, publish_rows

    @cached_property
    def _noise(self) -> NoiseReader:
        return prepare_noise(self._sketch, self.side)

    def _row_shards(self, task: Range) -> list[Rectangle]:
        """Returns the shards that hold the rows of a task: one of each role."""
        rows = Range(self._tiles[task.start].start, self._tiles[task.stop - 1].stop)
        roles = self.side.measured.items()
        return [Rectangle(role, 0, Range(0, len(columns)), rows) for role, columns in roles]

    def _row_writers(
        self, stack: contextlib.ExitStack, task: Range
    ) -> dict[Rectangle, SealedWriter]:
        dtype = self.plan.identity.dtype
        return {
            shard: stack.enter_context(
                sealed_writer(self._folder / shard.name, shard_layout(self.plan, shard, dtype))
            )
            for shard in self._row_shards(task)
        }

    def best_reader(self) -> SketchReader | StartReader:
        """Returns a reader of the row shards, if all are there; else of the column shards."""
        if isinstance(self._reader, StartReader):
            return self._reader
        rows = [shard for shard in list_shards(self._folder) if shard.role in self.side.measured]
        wanted = [shard for task in self.tasks for shard in self._row_shards(task)]
        # A merge that was killed may have left some.
        if set(wanted) != set(rows):
            return self._reader
        kept = self._reader.kept
        shards = OpenedShards(self._round.run, self._folder)
        return SketchReader(shards, rows, self.side, wanted, kept)

    def _identity(self, tiles: Range) -> dict[str, Any]:
        return _sums_identity(self.plan, self.side, self._sketch.digest, tiles)

    def _publish_sums(self, path: Path, tiles: Range, sums: Sums) -> None:
        squares = "triangle" if sums.triangular else "gram"
        with sealed_writer(path) as writer:
            writer.publish(
                self._identity(tiles), {squares: sums.squares, "cross": sums.cross}, provenance()
            )

    def _read_sums(self, path: Path, tiles: Range) -> Sums | None:
        return _read_sums(path, self.plan, self._identity(tiles))


def merge_left(round_: Round, digest: str) -> list[int]:
    """Lists the numbers of the tasks that can be spread and are not done; opens no file.

    Args:
        round_: The round that is merged.
        digest: The digest of its sketch.
    """
    return [number for number, path in merge_pieces(round_, digest) if not is_there(path)]


def merge_pieces(round_: Round, digest: str) -> Iterator[tuple[int, Path]]:
    """Yields number and file of each task that can be spread, of sides that are not merged yet.

    Args:
        round_: The round that is merged.
        digest: The digest of its sketch.
    """
    before, folder = 0, sketch_folder(round_.run, digest)
    for side in round_.sides:
        runs = merge_runs(round_.run.plan, side)
        if len(runs) > 1 and not is_there(folder / names.TOTAL_SUMS.name(side=side.name)):
            for number, run in enumerate(runs, before):
                yield number, folder / names.PARTIAL_SUMS.name(side=side.name, tiles=run)
        before += len(runs)


def _sums_identity(plan: Plan, side: Side, digest: str, tiles: Range) -> dict[str, Any]:
    """Makes the identity of the sums of some tiles of a side."""
    columns = {role: [r.start, r.stop] for role, r in side.sketches.items()}
    identity = names.TOTAL_SUMS.identity(plan.run_id, sketch=digest, tiles=tiles, columns=columns)
    # Where the test matrices stand as the sketches do, nothing more is said.
    if side.noise != side.sketches or side.name != RANGE:
        identity["noise"] = {name: [r.start, r.stop] for name, r in side.noise.items()}
        identity["side"] = side.name
    return identity


def _read_sums(
    path: Path,
    plan: Plan,
    identity: Mapping[str, Any],
    opening: Callable[[Path], SealedFile | None] = open_if_there,
) -> Sums | None:
    file = opening(path)
    if file is None:
        return None
    squares = "triangle" if plan.identity.is_double else "gram"
    if file.identity != identity or squares not in file.arrays:
        raise CorruptError(f"{path} is not of this sketch{file.advice}")
    return Sums(file.arrays[squares], file.arrays["cross"], plan.identity.is_double)


def read_total(run: Run, digest: str, side: Side) -> Sums | None:
    """Reads the sums over all tiles of a side; ``None`` if they are not there.

    No shard is opened.

    Args:
        run: The run.
        digest: The digest of the sketch.
        side: The side.

    Raises:
        CorruptError: If the file is damaged, or of another sketch.
    """
    tiles = Range(0, len(run.plan.tiles(side.rows)))
    path = sketch_folder(run, digest) / names.TOTAL_SUMS.name(side=side.name)
    identity = _sums_identity(run.plan, side, digest, tiles)
    return _read_sums(path, run.plan, identity, open_kept)
