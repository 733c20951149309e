"""State: how far a run is: its rounds, what is left of each stage, what is stale, what comes next.

All of it follows from the files alone: nothing that the run names is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from skerch_ooc.base.errors import CorruptError, quoted
from skerch_ooc.base.files import is_there
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import planned_sides
from skerch_ooc.planning.stage_names import Left, RoundStage
from skerch_ooc.planning.tasks import later_measure_tasks, merge_tasks, vector_tasks
from skerch_ooc.results.assess import read_assessment
from skerch_ooc.stages.measure.missing import missing_numbers
from skerch_ooc.stages.merge.task import merge_left
from skerch_ooc.stages.recover.basis import basis_left
from skerch_ooc.stages.recover.krylov import has_ended
from skerch_ooc.stages.recover.task import vectors_left
from skerch_ooc.store import names
from skerch_ooc.store.pieces import lost_pieces
from skerch_ooc.store.result_files import has_derived, has_sums, is_assessed, result_path
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sealed import SealedFile
from skerch_ooc.store.shards import Rectangle, list_shards, shards_among
from skerch_ooc.store.sketch import Round, known_rounds, sketch_folder

_ROUNDS_AHEAD = 4
"""So many rounds of ``krylov`` are submitted at once."""


@dataclass(frozen=True)
class State:
    """The state of a run: how far it is, found out when first asked for, and handed on.

    Attributes:
        run: The run; its shards were not removed on purpose.
        by_notes: Whether merged shards are recognised by their noted names, sizes and times,
            without opening them. Then a damaged shard is not seen; other commands report it.
        names: The names in the folder of the shards, where it was listed before.
    """

    run: Run
    by_notes: bool = False
    names: Collection[str] | None = None

    @cached_property
    def shards(self) -> list[Rectangle]:
        """The column shards that are there."""
        return list_shards(self.run.shards) if self.names is None else shards_among(self.names)

    @cached_property
    def rounds(self) -> list[Round]:
        """The rounds whose test matrices are known, in order; the last may be incomplete.

        Raises:
            IncompleteError: If the shards were removed on purpose.
            CorruptError: If a basis, or a shard of an earlier round, is damaged.
        """
        return list(known_rounds(self.run, self.shards, self._digest_of))

    def _digest_of(self, round_: Round) -> str | None:
        """Returns the digest of the sketch of a measured round; ``None`` if it is not needed."""
        if not self.by_notes:
            return round_.digest(self.shards)
        if not has_derived(self.run):
            # There is nothing to compare the digest with, so no shard need be opened.
            return None
        try:
            return round_.digest_by_notes(self.shards)
        except CorruptError:
            if round_.number < self.run.plan.rounds and self.run.plan.krylov is None:
                raise
            # The verbs that read it tell more.
            return None

    @property
    def last(self) -> Round:
        """The last round whose test matrix is known: the one that work goes on with."""
        return self.rounds[-1]

    @cached_property
    def incomplete(self) -> bool:
        """Whether columns of the last known round are not measured."""
        return not self.last.is_measured(self.shards)

    @property
    def measured(self) -> bool:
        """Whether all rounds are measured: the planned ones, or as many as the pairs took."""
        return not self.incomplete and self.is_last_round

    @cached_property
    def is_last_round(self) -> bool:
        """Whether no round follows the last whose test matrix is known."""
        plan = self.run.plan
        if plan.krylov is None or self.last.number == plan.rounds:
            return self.last.number == plan.rounds
        return self.digest is not None and has_ended(self.last, self.digest)

    @cached_property
    def digest(self) -> str | None:
        """The digest of the last known round's sketch.

        ``None`` if the round is incomplete; by notes also if nothing was made of the sketch, or it
        is damaged.
        """
        return None if self.incomplete else self._digest_of(self.last)

    @cached_property
    def merged(self) -> bool:
        """Whether the sums of the last round's sketch are there."""
        if self.incomplete:
            return False
        if self.digest is None:
            return has_sums(self.run)
        if self.run.plan.krylov is not None and not self.measured:
            return False
        folder = sketch_folder(self.run, self.digest)
        sums = (folder / names.TOTAL_SUMS.name(side=side.name) for side in self.last.sides)
        return self.measured and all(map(is_there, sums))

    @cached_property
    def stale(self) -> bool:
        """Whether there is no default result, or only one of another sketch than there is now.

        Sums are not asked for: they may be removed once the result is made.
        """
        if not self.measured:
            return True
        try:
            file = SealedFile(result_path(self.run, "default"))
        except FileNotFoundError:
            return True
        except CorruptError:
            # The verbs that read it tell more.
            return False
        return file.identity.get("sketch") != self.digest or bool(lost_pieces(file))

    @property
    def assessed(self) -> bool:
        """Whether the default result has an assessment."""
        return is_assessed(self.run, "default")

    @property
    def _well_assessed(self) -> bool:
        """Whether the assessment can also be read, and is of the result beside it."""
        try:
            read_assessment(result_path(self.run, "default"))
        except (OSError, CorruptError):
            return False
        return True

    @property
    def finished(self) -> bool:
        """Whether there is a default result of all that is planned, with its assessment."""
        return self.measured and self.assessed and not self.stale

    @property
    def next(self) -> str | None:
        """The command that comes next; ``None`` when all is done."""
        directory = quoted(self.run.directory)
        if self.incomplete:
            return self.run.how_to_measure()
        if self.stale:
            return f"skerch-ooc {'recover' if self.merged else 'merge'} {directory}"
        return None if self._well_assessed else f"skerch-ooc assess {directory}"

    @cached_property
    def left(self) -> list[Left]:
        """The stages that are not done, in order, with the numbers of the tasks that each has left.

        Job arrays are made of these. Where the tasks of a stage are not known yet, all are left.

        Raises:
            CorruptError: If a shard, a basis or a solution is damaged.
            IncompleteError: If the shards were removed on purpose.
        """
        return [Left(stage, tasks) for stage, tasks in self._left() if tasks]

    def _left(self) -> Iterator[tuple[RoundStage, Sequence[int]]]:
        plan = self.run.plan
        if self.finished and self._well_assessed:
            return
        yield from self._left_of_last()
        for number in range(self.last.number + 1, self._foreseen + 1):
            yield RoundStage("measure", number), range(later_measure_tasks(plan))
            yield from _after_measuring(plan, number, ends=number == plan.rounds)
        yield RoundStage("assess"), [0]

    @property
    def _foreseen(self) -> int:
        """The last round whose tasks are listed: of ``krylov`` nobody knows yet which is the last.

        What is missing after them is listed when they are done.
        """
        plan = self.run.plan
        if plan.krylov is None:
            return plan.rounds
        if self.measured:
            return self.last.number
        return min(plan.rounds, self.last.number + _ROUNDS_AHEAD)

    def _left_of_last(self) -> Iterator[tuple[RoundStage, Sequence[int]]]:
        """Yields what is left of the last round whose test matrix is known."""
        run, last = self.run, self.last
        if self.incomplete:
            yield RoundStage("measure", last.number), missing_numbers(last)
            yield from _after_measuring(run.plan, last.number, ends=self.is_last_round)
            return
        following = list(_after_measuring(run.plan, last.number, ends=self.is_last_round))
        if self.digest is None:
            # Nothing was made of the sketch yet.
            yield from following
            return
        yield RoundStage("merge", last.number), merge_left(last, self.digest)
        if not self.is_last_round:
            pieces = basis_left(last, self.digest)
        else:
            pieces = vectors_left(run, self.digest, run.plan.recovery, "default")
        if pieces is None:
            yield from following[1:]
        else:
            # The process that needs the pieces puts them together once all are there.
            yield RoundStage("vectors", last.number), pieces


def _after_measuring(
    plan: Plan, number: int, *, ends: bool
) -> Iterator[tuple[RoundStage, Sequence[int]]]:
    """Yields the stages that follow the measuring of a round, with all of their tasks.

    Args:
        plan: The plan in force.
        number: The number of the round.
        ends: Whether it is known to be the last.
    """
    yield RoundStage("merge", number), merge_tasks(plan, planned_sides(plan, number))
    wanted = plan.recovery.vectors == "stored" or not ends
    pieces = vector_tasks(plan) if wanted else 0
    # The process that publishes a small result also solves it; a basis must be there before the
    # next round.
    if pieces or not ends:
        yield RoundStage("solve", number), [0]
    yield RoundStage("vectors", number), list(range(pieces))
