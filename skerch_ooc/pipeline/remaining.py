"""What is left of each stage, as numbers of tasks: what job arrays are made of.

Names of files tell, and what shards and small files say they are; no data is read. Of stages whose
tasks are not known yet, all are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skerch_ooc.pipeline.status import is_stale
from skerch_ooc.planning.memory import merge_tasks, vector_tasks
from skerch_ooc.planning.plan import Plan
from skerch_ooc.planning.sides import first_round, later_round
from skerch_ooc.planning.stage_names import Left, RoundStage
from skerch_ooc.stages.measure.missing import missing_numbers
from skerch_ooc.stages.merge.task import Merge
from skerch_ooc.stages.recover.basis import basis_left
from skerch_ooc.stages.recover.task import vectors_left
from skerch_ooc.store.result_files import is_assessed
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sketch import Round, known_rounds


def work_left(run: Run) -> list[Left]:
    """The stages that are not done, in order, with the tasks that each still has.

    Raises:
        CorruptError: If a shard, a basis or a solution is damaged.
        IncompleteError: If the folder of the shards is gone.
    """
    return [Left(stage, tasks) for stage, tasks in _left(run) if tasks]


def _left(run: Run) -> Iterator[tuple[RoundStage, Sequence[int]]]:
    plan = run.plan
    *_, known = known_rounds(run)
    if _is_finished(known):
        return
    yield from _left_of_known(known)
    for number in range(known.number + 1, plan.rounds + 1):
        count = len(plan.parts) * sum(piece.count for piece in plan.cuts("right"))
        yield RoundStage("measure", number), range(count)
        yield from _after_measuring(plan, number)
    yield RoundStage("assess"), [0]


def _left_of_known(known: Round) -> Iterator[tuple[RoundStage, Sequence[int]]]:
    """What is left of the last round whose test matrix is known."""
    run, number = known.run, known.number
    numbers = missing_numbers(known)
    if numbers:
        yield RoundStage("measure", number), numbers
        yield from _after_measuring(run.plan, number)
        return
    yield RoundStage("merge", number), Merge(known).left()
    if number < run.plan.rounds:
        pieces = basis_left(known.sketch)
    else:
        pieces = vectors_left(run, known.sketch.digest, run.plan.recovery, "default")
    if pieces is None:
        _, *rest = _after_measuring(run.plan, number)
        yield from rest
    else:
        # What is all there is put together by who needs it.
        yield RoundStage("vectors", number), pieces


def _after_measuring(plan: Plan, number: int) -> Iterator[tuple[RoundStage, Sequence[int]]]:
    """The stages of a round after it is measured, if none of their tasks is known to be done."""
    if number == 1:
        sides = first_round(plan)
    else:
        sides = later_round(plan, number, f"round{number}", plan.reach("right"))
    yield RoundStage("merge", number), merge_tasks(plan, sides)
    wanted = plan.recovery.vectors == "stored" or number < plan.rounds
    pieces = vector_tasks(plan) if wanted else 0
    # Of a small result who publishes it solves it; a basis must be there before the next round.
    if pieces or number < plan.rounds:
        yield RoundStage("solve", number), [0]
    yield RoundStage("vectors", number), list(range(pieces))


def _is_finished(known: Round) -> bool:
    """Whether a round is the last, and there is a result of its sketch, with its assessment."""
    run = known.run
    if known.number < run.plan.rounds or any(known.missing().values()):
        return False
    return is_assessed(run, "default") and not is_stale(run, known.sketch.digest)
