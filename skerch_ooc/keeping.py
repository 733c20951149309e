"""What must be there, and whole, before the shards that it was made of may be removed."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from skerch_ooc.cleaned import CLEANED, Cleaned
from skerch_ooc.errors import CorruptError, IncompleteError, UsageError, quoted
from skerch_ooc.files import digest
from skerch_ooc.needs import implicit_results, piece_paths
from skerch_ooc.pieces import check_pieces
from skerch_ooc.progress import Progress
from skerch_ooc.rounds import count_products, known_rounds
from skerch_ooc.rundir import Run, open_run
from skerch_ooc.sealed import SealedFile, verify
from skerch_ooc.stages.assess import Assessment, assess_result, read_assessment
from skerch_ooc.stages.recover import ASSESSMENT, RESULT_FILES, result_identity, result_path
from skerch_ooc.status import status
from skerch_ooc.tolerance import tolerance_factor


def require_finished(run: Run) -> None:
    """Refuses a run of which something is left to be done.

    Raises:
        IncompleteError: With the command that comes next.
        CorruptError: If a file is damaged.
    """
    following = status(run).next
    if following is not None:
        raise IncompleteError(
            f"{run.directory} is not finished, so that its files may still be needed; go on with: "
            f"{following}"
        )


def mark_of(run: Run, shards: int, shard_bytes: int) -> Cleaned:
    """What is to be noted of a finished run before its shards are removed.

    Args:
        run: The run.
        shards: How many column shards there are.
        shard_bytes: Their bytes.

    Raises:
        IncompleteError: If something needs them; says what, and what to do about it.
        UsageError: If the default result is one of other settings than the plan's.
        CorruptError: If a file is damaged.
    """
    quoted = shlex.quote(str(run.directory))
    for name in implicit_results(run):
        raise IncompleteError(
            f"results/{name} is implicit: its vectors are made of the shards as they are read. "
            f'Recover it with vectors = "stored", or remove it: rm -r {quoted}/results/{name}'
        )
    *_, last = known_rounds(run)
    sketch = last.sketch.digest
    _require_default(run, sketch)
    _require_all_made(run)
    assessment = _assessed(run)
    _require_tolerance(run, assessment)
    state = status(run)
    return Cleaned(
        when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        amendments=len(run.plan.amendments),
        sketch=sketch,
        products=state.products,
        columns={role: count["planned"] for role, count in state.columns.items()},
        results={path.parent.name: digest(SealedFile(path).identity) for path in _results(run)},
        shards=shards,
        shard_bytes=shard_bytes,
    )


def _results(run: Run) -> list[Path]:
    return sorted(run.results.glob(f"*/{RESULT_FILES[run.plan.identity.kind]}"))


def _require_default(run: Run, sketch: str) -> None:
    """Refuses a default result that the run would not take for its own."""
    path = result_path(run, "default")
    wanted = result_identity(run.plan, sketch, run.plan.recovery)
    stated = SealedFile(path).identity
    different = [key for key in wanted if stated.get(key) != wanted[key]]
    if different:
        shown = ", ".join(f"{key} {stated.get(key)}, not {wanted[key]}" for key in different)
        raise UsageError(
            f"{path} is not the result that the run was planned for ({shown}); remove it and make "
            f"that: rm -r {quoted(path.parent)} && skerch-ooc recover {quoted(run.directory)}"
        )


def _require_all_made(run: Run) -> None:
    """Refuses if a result is in the making: it is made of the shards."""
    made = {path.parent for path in _results(run)}
    for folder in sorted(path for path in run.results.iterdir() if path.is_dir()):
        begun = folder not in made and any(folder.glob("*.h5"))
        if begun:
            raise IncompleteError(
                f"{folder} is a result that is not finished: recover it with the settings that it "
                f"was begun with, or remove it: rm -r {quoted(folder)}"
            )


def _assessed(run: Run) -> Assessment:
    """The assessment of the default result, if what is stored is still true.

    Raises:
        IncompleteError: If it is not.
    """
    path = result_path(run, "default")
    is_complex = run.plan.identity.dtype.startswith("complex")
    looks = sum(amendment.tolerance is not None for amendment in run.plan.amendments) or 1
    assessment = assess_result(path, count_products(run), is_complex=is_complex, looks=looks)
    stored, found = read_assessment(path), assessment.as_json()
    # A later look at the operator is no reason to assess the result again.
    if stored | {"products": None} != found | {"products": None}:
        raise IncompleteError(
            f"{path.parent / ASSESSMENT} is not that of the result beside it; make it with: "
            f"skerch-ooc assess {quoted(run.directory)}"
        )
    return assessment


def _require_tolerance(run: Run, assessment: Assessment) -> None:
    """Refuses if the run would go on measuring to meet its tolerance."""
    tolerance, most = run.plan.amendments[-1].tolerance, run.plan.amendments[-1].most
    if tolerance is None or most is None or run.plan.reach("right") >= most:
        return
    error = assessment.relative_error
    margin = tolerance_factor(run.plan, assessment.test_measurements)
    if error is None or error * margin > tolerance:
        raise IncompleteError(
            f"the tolerance of {run.directory} is not met yet; go on with: skerch-ooc run --run "
            f"{quoted(run.directory)}"
        )


def verify_kept(run: Run, mark: Cleaned, progress: Progress) -> None:
    """Reads every byte of the results that are all that is going to be left.

    Raises:
        CorruptError: If one is damaged, or another than is noted.
        IncompleteError: If one is gone.
    """
    files = {name: result_path(run, name) for name in mark.results}
    advice = (
        "; no further shard is removed. If all shards are still there, this makes the run an "
        f"ordinary one again: rm {shlex.quote(str(run.directory / CLEANED))}"
    )
    with progress.stage("verify", len(files), "results") as advance:
        for name, path in files.items():
            try:
                file = verify(path)
                check_pieces(file)
                for piece in piece_paths(file):
                    verify(piece)
            except FileNotFoundError as error:
                raise IncompleteError(f"{path} is gone{advice}") from error
            except CorruptError as error:
                raise CorruptError(f"{error}{advice}") from error
            if digest(file.identity) != mark.results[name]:
                raise CorruptError(f"{path} is not the result that was there before{advice}")
            advance(1)


def publish_mark(run: Run, mark: Cleaned) -> None:
    """Publishes that the shards are being removed, unless the plan has grown meanwhile.

    Args:
        run: The run.
        mark: What is noted; if it was published before, it is left as it is.

    Raises:
        UsageError: If the plan has grown, or another process does the same; nothing is changed.
        CorruptError: If the mark that is there is damaged.
    """
    if run.cleaned() == mark:
        return
    if not mark.publish(run.directory, run.plan.run_id):
        raise UsageError(f"another process cleans {run.directory} at this moment; try again later")
    # Who amends the plan looks for the mark after it is amended: one of the two sees the other.
    if len(open_run(run.directory).plan.amendments) != mark.amendments:
        (run.directory / CLEANED).unlink()
        raise UsageError(
            f"{run.directory} was extended or updated at this moment; nothing was removed. Finish "
            f"it first: skerch-ooc run --run {quoted(run.directory)}"
        )
