"""Shares of stages, done by processes that know nothing of each other: elements of job arrays.

Each element does the tasks whose number leaves its remainder, and finds on disk what it needs of
earlier stages. So elements may run in any order, die, and be run again.
"""

from __future__ import annotations

from skerch_ooc.base.errors import IncompleteError, quoted
from skerch_ooc.executors.work import Work
from skerch_ooc.pipeline.run import finish
from skerch_ooc.pipeline.state import State
from skerch_ooc.planning.stage_names import RoundStage
from skerch_ooc.results.assess import Assessment
from skerch_ooc.stages.measure import task as measure_stage
from skerch_ooc.stages.merge.task import begin_merge
from skerch_ooc.stages.recover import task as recover_stage
from skerch_ooc.stages.recover.basis import basis_left, make_basis, spread_basis
from skerch_ooc.stages.recover.krylov import is_last
from skerch_ooc.store.rundir import Run
from skerch_ooc.store.sketch import Round, sketches_held


def perform_share(run: Run, stage: RoundStage, work: Work) -> Assessment | None:
    """Does a share of a stage, except what is published already.

    Args:
        run: The run.
        stage: The stage.
        work: The share of its tasks, and with which resources.

    Returns:
        The assessment, if the stage is ``assess`` and the share is the first; else ``None``.

    Raises:
        IncompleteError: If a stage before this one is not complete; says which.
        CorruptError: If a file is damaged.
        DriftError: If the operator does not agree with the fingerprint, or shards disagree.
        OperatorError: If the operator is unusable.
        UsageError: If memory is too little.
    """
    with sketches_held():
        return _perform(run, stage, work)


def _perform(run: Run, stage: RoundStage, work: Work) -> Assessment | None:
    first = work.executor.share[0] == 0
    if stage.name == "assess":
        return finish(run, work.here) if first else None
    if stage.name == "measure" and stage.round > 1:
        _make_earlier_basis(run, stage, work)
    rounds = State(run).rounds
    if stage.round > len(rounds) and State(run).measured:
        # The pairs took fewer rounds than were foreseen.
        return None
    if stage.round > len(rounds):
        raise _too_early(run, stage, rounds[-1])
    if stage.round < len(rounds):
        # It is complete, as the next round has its basis.
        return None
    round_ = rounds[-1]
    pieces = stage.name == "vectors"
    if stage.name == "solve" and not first:
        return None
    if stage.name == "measure":
        measure_stage.measure(run, work)
    elif stage.name == "merge":
        begin_merge(round_).spread(work)
    elif not is_last(merged := begin_merge(round_).run(work.here)):
        spread_basis(merged, work, pieces=pieces)
        left = basis_left(round_, merged.sketch.digest)
        # The process that makes the last piece puts them together; without pieces there is nothing
        # to share.
        if left == [] or (left is None and not pieces):
            make_basis(merged, work.here)
    else:
        recover_stage.spread_vectors(run, run.plan.recovery, "default", work, pieces=pieces)
    return None


def _make_earlier_basis(run: Run, stage: RoundStage, work: Work) -> None:
    """Publishes the basis of the round before, once all of it is there."""
    state = State(run)
    if state.last.number == stage.round - 1 and not state.incomplete:
        # Nothing is made if the rounds have ended.
        make_basis(begin_merge(state.last).run(work.here), work.here)


def _too_early(run: Run, stage: RoundStage, last: Round) -> IncompleteError:
    before = RoundStage("measure", last.number)
    return IncompleteError(
        f"{stage} is too early: round {last.number} is not complete; go on with: skerch-ooc task "
        f"{quoted(run.directory)} {before} --index 0 --of 1, or skerch-ooc measure "
        f"{quoted(run.directory)}"
    )
