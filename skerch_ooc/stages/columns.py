"""The columns on disk that tall vectors are made of: which shards or bases, and of which round."""

from __future__ import annotations

from dataclasses import dataclass

from skerch_ooc.errors import IncompleteError, quoted
from skerch_ooc.readers import SketchReader
from skerch_ooc.rounds import Round, known_rounds
from skerch_ooc.rundir import Run
from skerch_ooc.sides import CORANGE, RANGE
from skerch_ooc.spec import RecoverySpec
from skerch_ooc.stages.merge import Merge
from skerch_ooc.stages.problems import Source, serves


@dataclass(frozen=True)
class Columns:
    """What vectors are made of.

    Attributes:
        digest: Of the sketch.
        left: The columns of the left vectors, of the eigenvectors, or of a basis.
        right: Those of the right vectors; ``None`` if there are none.
        test: Reads the test sketch of the rows of the left vectors; ``None`` if there is none.
    """

    digest: str
    left: Source
    right: Source | None
    test: SketchReader | None


def rounds_for(run: Run, settings: RecoverySpec) -> tuple[Round, Round | None]:
    """The round whose sketch a method uses, and for ``hmt`` the one before it.

    Raises:
        UsageError: If the run's sketch does not serve the method.
        IncompleteError: If something is not measured yet, or a basis is not made yet.
    """
    serves(run.plan, settings)
    if settings.method != "hmt":
        return Round(run), None
    rounds = list(known_rounds(run))
    if len(rounds) < run.plan.rounds:
        rounds[-1].sketch  # noqa: B018 (says what is missing, if measurements are)
        raise IncompleteError(
            f"round {len(rounds) + 1} of {run.plan.rounds} has no basis yet; make it with: "
            f"skerch-ooc merge {quoted(run.directory)}"
        )
    return rounds[-1], rounds[-2]


def columns_of_result(run: Run, settings: RecoverySpec) -> Columns:
    """What the vectors of a result are made of.

    Args:
        run: The run.
        settings: Those of the result.

    Raises:
        UsageError: If the run's sketch does not serve the method.
        IncompleteError: If something is not measured yet, or is gone.
        CorruptError: If a shard is damaged.
    """
    last, before = rounds_for(run, settings)
    readers = Merge(last).readers()
    left = Source(last.basis, "basis") if last.basis else Source(readers[RANGE], "right")
    right = None
    if CORANGE in readers:
        right = Source(readers[CORANGE], last.role if last.basis else "left")
    test = Merge(before).readers()[RANGE] if before else readers[RANGE]
    return Columns(last.sketch.digest, left, right, test)


def columns_of_basis(round_: Round) -> Columns:
    """What the basis that follows a round is made of.

    Raises:
        IncompleteError: If measurements are missing.
        CorruptError: If a shard is damaged.
    """
    merge = Merge(round_)
    reader = merge.readers()[CORANGE if round_.adjoint else RANGE]
    test = reader if "test" in reader.side.sketches else None
    return Columns(merge.sketch.digest, Source(reader, round_.role), None, test)
