"""What people see on a terminal: plain text that fits 80 columns and needs no colour."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from skerch_ooc.base.errors import counted, quoted
from skerch_ooc.base.figures import short
from skerch_ooc.base.resources import available_cores, format_bytes
from skerch_ooc.planning.parts import UNNAMED
from skerch_ooc.planning.plan import Plan
from skerch_ooc.results.advice import Found, Step, advise
from skerch_ooc.results.assess import CONFIDENCE, count_within
from skerch_ooc.results.words import (
    NOUNS,
    bound_text,
    compared_figures,
    core_text,
    error_test_line,
    format_seconds,
    leave_one_out_remark,
    measurements_text,
    plain,
    products_text,
)
from skerch_ooc.store.result_files import VALUES, command_on, result_path
from skerch_ooc.store.sealed import SealedFile

if TYPE_CHECKING:
    from skerch_ooc.executors.slurm.outcomes import QueueStatus
    from skerch_ooc.executors.slurm.scripts import Job
    from skerch_ooc.operators.probe import Probe, Timing
    from skerch_ooc.pipeline.clean import Cleaning
    from skerch_ooc.pipeline.cost import Estimate
    from skerch_ooc.pipeline.start import Planned, Probed
    from skerch_ooc.pipeline.status import PairsSoFar, Status, TimeLeft
    from skerch_ooc.pipeline.submission import Submitted
    from skerch_ooc.results.assess import Assessment
    from skerch_ooc.results.compare import ComparedResult, Comparison
    from skerch_ooc.results.density import Density, TraceEstimate
    from skerch_ooc.results.estimates import Estimates, Figure
    from skerch_ooc.store.rundir import Run

_SHARES = (0.01, 0.1, 0.5, 0.9, 0.99)
_SHOWN_VALUES = 15
_VALUES_IN_A_ROW = 5
_WIDTH = 80
_VALUE_WIDTH = 64
_COPIED = ("/", "skerch-ooc ", "scancel ")
"""Signs of what people copy, a path or a command, which is not broken."""
_KEPT = "\u00a0"
"""A space at which no line is broken."""

Row = tuple[str, str | None]
"""A name and its value; without a value the row is not shown."""


def _listing(head: str, rows: Iterable[Row]) -> str:
    """A heading, and names and values below each other."""
    shown = [(name, value) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join([head, *(_row(f"  {name:<{width}}  ", value) for name, value in shown)])


def _row(start: str, value: str) -> str:
    """A value after its name; a long one goes on in further lines."""
    text = start + value
    if len(text) > _WIDTH and not any(sign in value for sign in _COPIED):
        text = textwrap.fill(
            value, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return text.replace(_KEPT, " ")


def plan_line(planned: Planned) -> str:
    """The plan in one line."""
    costs = planned.costs.likely or planned.costs
    time = f", about {format_seconds(costs.seconds)}" if costs.seconds is not None else ""
    about, most = "", ""
    if planned.costs.likely:
        about, most = "about ", f" (at most {planned.costs.products})"
    return (
        f"planned {about}{costs.products} products{most} in {costs.tasks} tasks{time}; "
        f"{format_bytes(costs.shard_bytes + costs.result_bytes)} on disk"
    )


def plan_table(planned: Planned) -> str:
    """What was planned, what the probe found, and what the run will cost."""
    plan, costs, findings = planned.run.plan, planned.costs, planned.findings
    tolerance, most = plan.amendments[-1].tolerance, plan.amendments[-1].most
    head, likely = "planned" if planned.fresh else "already planned", costs.likely or costs
    return _listing(f"{head}: {planned.run.directory} ({plan.run_id[:16]})", [
        ("operator", plan.identity.factory or UNNAMED),
        ("shape", _shape(plan.identity.shape, plan.identity.dtype)),
        *_remarks(planned.remarks),
        ("measurements", measurements_text(plan)),
        ("products", f"{_products(plan, costs)}{_in_parts(plan)}"),
        ("on disk", f"{_on_disk(likely)}, {likely.files} files"),
        ("memory", _memory(likely)),
        ("requests", _requests(likely)),
        ("at most", _at_most(costs)),
        ("columns at once", _at_once(plan.parts[0].columns_at_once)),
        ("", _at_once_took(findings.widths) if findings else None),
        *(_found_by(findings, findings.products, likely) if findings else ()),
        ("error test", error_test_line(plan)),
        ("tolerance", None if tolerance is None else
         f"{short(tolerance)}, with at most {most} measurements"),
        ("pairs", _pairs_wanted(plan)),
    ])  # fmt: skip


def _products(plan: Plan, costs: Estimate) -> str:
    """How many products a plan takes, and in how many tasks."""
    if costs.likely is not None:
        return f"about {costs.likely.products}, in {costs.likely.tasks} tasks"
    return f"{'at most ' * (plan.krylov is not None)}{costs.products}, in {costs.tasks} tasks"


def _requests(costs: Estimate) -> str | None:
    """How many requests each stage makes of an object store."""
    if costs.requests is None:
        return None
    return "; ".join(
        f"{stage} {each.get} GET, {each.put} PUT, {each.list} LIST"
        for stage, each in costs.requests.items()
    )


def _at_most(costs: Estimate) -> str | None:
    """What a plan takes if all of its rounds are needed."""
    if costs.likely is None:
        return None
    return f"{costs.products} products in {costs.tasks} tasks; {_on_disk(costs)}; {_memory(costs)}"


def _pairs_wanted(plan: Plan) -> str | None:
    """What the rounds of krylov look for."""
    if plan.krylov is None:
        return None
    until = plan.krylov.tolerance
    how = "as good as all rounds make them"
    if until:
        how = f"to {short(until)}, perhaps in fewer rounds"
    return f"{plan.recovery.rank}, {how}"


def _in_parts(plan: Plan) -> str:
    count = len(plan.parts)
    together = ", each of which reads its rows once" if plan.parts[0].together else ""
    return (f" with {count} parts of the operator" if count > 1 else "") + together


def probe_table(probed: Probed) -> str:
    """What an operator is like, and what a run would cost."""
    findings, costs = probed.findings, probed.costs
    products = findings.products + sum(timing.columns for timing in probed.timings)
    likely, about = costs.likely or costs, "about " if costs.likely else ""
    probe, *times = _found_by(findings, products, likely)
    listing = _listing(probed.factory or UNNAMED, [
        ("shape", _shape(probed.shape, probed.dtype)),
        *_remarks(probed.remarks),
        probe,
        ("products", f"{about}{likely.products}, in {likely.tasks} tasks"),
        *times,
        ("on disk", _on_disk(likely)),
        ("memory", _memory(likely)),
        ("at most", _at_most(costs)),
        ("columns at once", _at_once(findings.columns_at_once)),
        ("recommended", f"sketch.block = {probed.block}, --workers {_local_workers(costs)} at "
                        f"most{_storage(probed)}"),
    ])  # fmt: skip
    return "\n".join(
        [
            listing,
            *_timing_lines("at once", findings.widths),
            *_timing_lines("columns", probed.timings),
        ]
    )


def _local_workers(costs: Estimate) -> int:
    """How many workers ``--workers`` should start here: none without a core of its own."""
    return min(costs.useful_workers or 1, available_cores())


def _storage(probed: Probed) -> str:
    """What to give instead of the sizes; nothing to methods that choose how much they measure."""
    if probed.by_rounds:
        return ""
    return f', storage = "{format_bytes(1.01 * probed.costs.shard_bytes)}" for as many measurements'


def _timing_lines(name: str, timings: Sequence[Timing]) -> list[str]:
    """A table of what calls of several widths took; nothing if there were none."""
    head = f"{name:>10} {'s':>10} {'s/column':>10} {'memory':>10}"
    lines = [
        f"{one.columns:>10} {one.seconds:>10.3g} {one.seconds / one.columns:>10.3g} "
        f"{format_bytes(one.bytes):>10}"
        for one in timings
    ]
    return [head, *lines] if lines else []


def _remarks(remarks: Sequence[str]) -> list[Row]:
    """What an operator says of itself."""
    return [("" if number else "remarks", remark) for number, remark in enumerate(remarks)]


def _at_once(columns: int | None) -> str | None:
    """How many columns of a block an operator applies in one inner call, if it was told."""
    return None if columns is None else f"{columns} of a block, the best width by time and memory"


def _at_once_took(timings: Sequence[Timing]) -> str | None:
    """What a column took by the width of inner calls; nothing if none were tried."""
    took = [f"{one.columns}:{_KEPT}{short(one.seconds / one.columns)}" for one in timings]
    return f"seconds per column of {', '.join(took)}" if took else None


def _shape(shape: tuple[int, int], dtype: str) -> str:
    return f"{shape[0]} x {shape[1]}, {dtype}"


def _on_disk(costs: Estimate) -> str:
    shards, results = format_bytes(costs.shard_bytes), format_bytes(costs.result_bytes)
    return f"{shards} of shards, {results} of results"


def _memory(costs: Estimate) -> str:
    return ", ".join(f"{stage} {format_bytes(size)}" for stage, size in costs.peak_bytes.items())


def _found_by(findings: Probe, products: int, costs: Estimate) -> list[Row]:
    """What a probe found, and the times that follow from it."""
    times = [
        f"{n}: {format_seconds(s)}".replace(" ", _KEPT)
        for n, s in (costs.seconds_with or {}).items()
        if n > 1
    ]
    more = f"more than {costs.useful_workers} do not help"
    on_workers = textwrap.wrap("; ".join(filter(None, [", ".join(times), more])), _VALUE_WIDTH)
    return [
        ("probe", f"{products} products: asymmetry {short(findings.asymmetry)}, "
                  f"repetition {short(findings.repetition)}, norm {findings.norm:.3g}"),
        ("time", f"{format_seconds(costs.seconds or 0.0)} of products in one process"),
        *(("" if number else "on workers", line) for number, line in enumerate(on_workers)),
    ]  # fmt: skip


def status_table(state: Status, queue: QueueStatus | None = None) -> str:
    """What is done, what is submitted, and what comes next."""
    operator = state.summands or state.operator or UNNAMED
    done = state.next is None
    return _listing(f"{state.directory} ({state.run_id[:16]})", [
        ("operator", f"{operator}, {_shape(state.shape, state.dtype)}"),
        *((role, f"{count['done']} of {count['planned']} columns measured")
          for role, count in state.columns.items()),
        *_shard_rows(state),
        ("pairs", _so_far(state.pairs) if state.pairs else None),
        ("time left", _time_left(state.left) if state.left else None),
        *((f"result {name}",
           "not assessed" if error is None else f"relative error {short(error, 4)}")
          for name, error in state.results.items()),
        ("unfinished", f"{state.leftovers} private files of tasks still at work, or killed "
                       "(harmless; clean takes those)" if state.leftovers else None),
        ("not shards", ", ".join(map(plain, state.strangers[:4])) or None),
        *(_queue_rows(queue, done=done) if queue else ()),
        ("next", _next_line(state, queue)),
        ("", f"or all that is left: {state.all_of_it}" if state.all_of_it and not queue else None),
        ("", f"for a page of it: skerch-ooc report {quoted(state.directory)}" if done else None),
    ])  # fmt: skip


def _time_left(left: TimeLeft) -> str:
    """How long the stage that comes next will take, as far as anybody knows."""
    if left.pieces:
        return _pieces_left(left)
    if left.seconds is None:
        return "unknown"
    about = f"about {format_seconds(left.seconds)} of measuring"
    if not left.workers:
        return f"{about} in one process; none is seen at work"
    workers, tasks = counted(left.workers, "worker"), counted(left.tasks, "task")
    return f"{about}, by {workers}, as the last {tasks} took"


def _pieces_left(left: TimeLeft) -> str:
    """How long what is made in pieces will take, where enough of them tell it."""
    done = f"{left.done} of {left.pieces} pieces of {left.stage} are done"
    if left.seconds is None:
        return f"unknown; {done}"
    about = f"about {format_seconds(left.seconds)}, as the last {left.tasks} took; {done}"
    return about if left.workers else f"{about}, none of them lately"


def _so_far(pairs: PairsSoFar) -> str:
    """Which round it is, and how many pairs are known by then."""
    worst = "" if pairs.worst is None else f", the worst within {short(pairs.worst)}"
    if pairs.tolerance is None:
        return f"round {pairs.round} of {pairs.rounds}; {pairs.found} of {pairs.wanted}{worst}"
    return (
        f"round {pairs.round} of at most {pairs.rounds}; {pairs.met} of {pairs.wanted} within "
        f"{short(pairs.tolerance)}{worst}"
    )


def _shard_rows(state: Status) -> list[Row]:
    """What there is of shards and sums, or when they were removed."""
    if state.cleaned is None:
        return [
            ("shards", f"{state.shards}, {format_bytes(state.shard_bytes)}"),
            ("merged", "yes" if state.merged else "no"),
        ]
    count, size = state.cleaned["shards"], format_bytes(state.cleaned["shard_bytes"])
    return [
        ("cleaned", f"{state.cleaned['when']}: of {count} shards, {size}, {state.shards} left"),
        ("", "what is not among the results can be had of a new run only"),
    ]


def _next_line(state: Status, queue: QueueStatus | None) -> str:
    if state.next is None:
        return "nothing: all stages are done"
    if queue and queue.waiting is None:
        return f"unknown, as {queue.queue}; if nothing is in the queue: {state.next}"
    waiting = (queue.waiting or 0) + sum(queue.others.values()) if queue else 0
    return f"wait: {counted(waiting, 'element')} in the queue" if waiting else state.next


def _queue_rows(queue: QueueStatus, *, done: bool) -> list[Row]:
    """The last submission to Slurm; of one that has done all of it, where its logs are."""
    rows: list[Row] = [("submission", f"{queue.submission}, {queue.queue}"), ("logs", queue.folder)]
    if done:
        return rows
    for job in queue.jobs:
        counts = ", ".join(f"{count}{_KEPT}{state.lower()}" for state, count in job.counts.items())
        why = f"{_KEPT}({', '.join(job.reasons)})" if job.reasons else ""
        rows.append((job.stage, f"job {job.job}: {counts}{why}"))
    for number, count in queue.others.items():
        rows.append(("also", f"submission {number}: {counted(count, 'element')} in the queue"))
    if queue.last_failing:
        rows += [("last failing", queue.last_failing), ("", queue.reason or "")]
    if queue.blind:
        lines = textwrap.wrap(queue.blind, _VALUE_WIDTH, break_on_hyphens=False)
        rows += [("" if number else "no log", line) for number, line in enumerate(lines)]
    return rows


_KINDS = {
    "leftovers": "unfinished files of processes that have ended",
    "superseded": "derived files that nothing uses any more",
    "duplicates": "shards whose columns others hold",
    "sketch": "what the merge stage made",
    "shards": "shards and all that is derived, but the results",
}
_LARGER = {
    "--sketch": "merge makes it again from the shards",
    "--shards": "the results stay, and nothing else can be had of this run",
}


def cleaning_table(cleaning: Cleaning) -> str:
    """What was removed or would be, what was kept, and what further options would free."""
    total = format_bytes(sum(one.bytes for one in cleaning.freed))
    done = f"{'would free' if cleaning.dry_run else 'freed'} {total}"
    head = f"{cleaning.directory}: {done if cleaning.freed else 'nothing to remove'}"
    listed = [f"  {one.path}  {one.bytes}" for one in cleaning.freed if cleaning.dry_run]
    return _listing("\n".join([head, *listed]), [
        *((kind, f"{counted(files, 'file')}, {format_bytes(size)}: {_KINDS[kind]}")
          for kind, (files, size) in cleaning.counts().items()),
        *(("kept", reason) for reason in cleaning.kept),
        ("not ours", ", ".join(cleaning.strangers[:4]) or None),
        *((option, f"would free {format_bytes(size)} more; {_LARGER[option]}")
          for option, size in cleaning.larger.items()),
    ])  # fmt: skip


def dry_run_text(submitted: Submitted) -> str:
    """All scripts and commands of a submission that was not made."""
    folder = submitted.submission.folder
    return "\n\n".join(
        f"==> {folder / job.file} <==\n{job.script}\n$ {command}"
        for job, command in zip(submitted.jobs, submitted.commands(), strict=True)
    )


def submitted_table(submitted: Submitted, directory: Path) -> str:
    """What was submitted, and how to look after it."""
    numbers, before = submitted.numbers, submitted.options_of
    return _listing(f"submitted as {submitted.submission.number}", [
        *((job.stage, f"job {number}{_elements_of(job)}")
          for job, number in zip(submitted.jobs, numbers, strict=True)),
        ("options", before and f"those of submission {before}"),
        ("scripts, logs", str(submitted.submission.folder)),
        ("how far it is", f"skerch-ooc status {quoted(directory)}"),
        ("to stop it all", f"scancel {' '.join(reversed(numbers))}"),
    ])  # fmt: skip


def _elements_of(job: Job) -> str:
    count = f", {counted(len(job.indices), 'element')}" if job.indices else ""
    return count + (f" of at most {job.longest} tasks" if job.longest > 1 else "")


def result_text(run: Run, name: str, assessment: Assessment) -> str:
    """The figures of a result, and what they advise."""
    advice = advice_text(Found.of(run, name, assessment))
    return f"{result_table(result_path(run, name), assessment)}\n{advice}"


def result_table(path: Path, assessment: Assessment) -> str:
    """What was found, and how sure that is."""
    arrays = SealedFile(path).arrays
    (kind,) = (kind for kind, name in VALUES.items() if name in arrays)
    found = arrays[VALUES[kind]]
    values = [f"{value:14.6e}" for value in found[:_SHOWN_VALUES]]
    lines = [f"{assessment.rank} {NOUNS[kind]}, the leading {len(values)}:"]
    lines += [
        "  " + " ".join(values[start : start + _VALUES_IN_A_ROW])
        for start in range(0, len(values), _VALUES_IN_A_ROW)
    ]
    left_out = assessment.leave_one_out
    return _listing("\n".join(lines), [
        ("fewer", _fewer(path, assessment)),
        ("pairs", assessment.pairs.text() if assessment.pairs else None),
        *_error_rows(assessment),
        ("each value", None if assessment.pairs else
         _each_value(found, kind, assessment.bounds_of(arrays.get("residuals")))),
        ("leave-one-out", None if left_out is None else
         f"{short(left_out, 5)} ({leave_one_out_remark(assessment)})"),
        ("orthogonality", f"{short(assessment.orthogonality)} (||U^H U - I||_F)"),
        ("method", assessment.method and f"{assessment.method}, taken by auto"),
        ("core", None if assessment.pairs else core_text(assessment, kind)),
        ("products", products_text(assessment)),
        ("result", str(path)),
    ])  # fmt: skip


def _fewer(path: Path, assessment: Assessment) -> str | None:
    """Why there are fewer values than were asked for."""
    wanted = SealedFile(path).identity["settings"]["rank"]
    if not isinstance(wanted, int) or assessment.rank >= wanted:
        return None
    return f"rank = {wanted} was asked for; all else is below the rounding errors of the products"


def _error_rows(assessment: Assessment) -> list[Row]:
    """What the test vectors say of the error."""
    if assessment.error is None:
        return [("error", "unknown: there are no test vectors for it")]
    if assessment.relative_error is None:
        return [("error", "the test vectors found nothing but zero")]
    return [
        ("relative error", short(assessment.relative_error, 4)),
        ("error, norm", f"{short(assessment.error, 5)}, {short(assessment.norm or 0.0, 5)} "
                        f"(Frobenius), from {assessment.test_measurements} test vectors"),
        ("that is", f"the true error is {bound_text(assessment, 1.5, 2)},"),
        ("", bound_text(assessment, 2.0)),
    ]  # fmt: skip


def _each_value(values: npt.NDArray[Any], kind: str, bounds: npt.NDArray[Any] | None) -> str | None:
    """How many values are how good, one by one."""
    if bounds is None:
        return None
    one = "an eigenvalue" if kind == "eigh" else "a singular value"
    close, near, apart = (count_within(values, bounds, share) for share in (0.01, 0.1, 1))
    return (
        f"at least {close} of {len(values)} within 1 % of {one}, {near} within 10 %, "
        f"{apart} apart from 0; each with probability {CONFIDENCE}"
    )


def advice_text(found: Found) -> str:
    """What to do next with a result: each command on a line of its own, to be copied."""
    advice = advise(found)
    page = Step("A page with all figures", command_on("report", found.run.directory, found.name))
    lines = ["what to do next", *_paragraph(advice.verdict)]
    for step in (*advice.steps, page):
        lines += [*_paragraph(f"{step.text}:"), f"    {step.command}"]
    return "\n".join(lines)


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")


def estimates_table(estimates: Estimates) -> str:
    """Trace and norms, and how sure they are."""
    n, spectral = estimates.test_measurements, estimates.spectral_norm
    if not n:
        return "no estimates: there are no test vectors to make them from"
    return _listing(f"estimated with {n} test vectors:", [
        ("trace", _with_error(estimates.trace)),
        ("Frobenius norm", _with_error(estimates.frobenius_norm)),
        ("spectral norm", None if spectral is None else
         f"{short(spectral.value, 7)}, off by at most about {short(spectral.error)}"),
    ])  # fmt: skip


def density_table(found: Density, ends: tuple[float, float] | None) -> str:
    """The density of all eigenvalues: where they lie, how many have which sign, and traces."""
    shares = [(share, _where(found, share)) for share in _SHARES]
    counts = found.counts()
    between = None if ends is None else found.count(*ends)
    guessed = "what one round of random columns tells; two and more make a density of it"
    return _listing(f"{found.n} eigenvalues, by {len(found.nodes)} nodes:", [
        ("guessed", guessed if found.is_guessed else None),
        *((f"{share:.1%} are below", short(value, 5)) for share, value in shares),
        *((name, _estimated(count)) for name, count in counts.items()),
        ("", f"near zero: within {short(found.near_zero)}, a thousandth of the largest"),
        ("from, to", None if ends is None else f"{ends[0]:.6g}, {ends[1]:.6g}"),
        ("lie there", None if between is None else _estimated(between)),
        ("trace", _estimated(found.trace(lambda x: x))),
        ("sum of squares", _estimated(found.trace(lambda x: x**2))),
    ])  # fmt: skip


def comparison_table(found: Comparison) -> str:
    """What two results have in common, and what each of them cost."""
    count, spaces = found.values.shape[1], [("spaces", found.left_overlaps)]
    if "svd" in (found.a.kind, found.b.kind):
        spaces = [("left spaces", found.left_overlaps), ("right spaces", found.right_overlaps)]
    agreeing = found.agreeing
    return "\n".join([
        *(f"{name}  {side.path}: {side.operator or UNNAMED}"
          for name, side in (("a", found.a), ("b", found.b))),
        *_side_lines(found.a, found.b),
        _three("value", "a", "b", "apart, relative"),
        *(_three(str(number + 1), f"{one:.6e}", f"{other:.6e}", short(apart))
          for number, (one, other, apart) in enumerate(
              zip(*found.values.tolist(), found.differences.tolist(), strict=True))
          if number < _SHOWN_VALUES),
        _listing(f"of {count} values", [
            ("furthest apart", f"{short(found.differences.max())}, relative to the larger of both"),
            ("agreeing", None if agreeing is None else
             f"{agreeing} of {count} are no further apart than both uncertainties allow"),
            *((f"{name}, leading {one.dimensions[0]}",
               f"overlap {one.value:.6f}; {short(one.at_random)} at random")
              for name, overlaps in spaces for one in overlaps),
        ]),
    ])  # fmt: skip


def _side_lines(a: ComparedResult, b: ComparedResult) -> list[str]:
    """What two results are, and what they cost, side by side."""
    others = compared_figures(b)
    return [_three(name, text, others[name]) for name, text in compared_figures(a).items()]


def _three(name: str, *columns: str) -> str:
    return f"  {name:<16}" + "".join(f"{text:>20}" for text in columns)


def _where(found: Density, share: float) -> float:
    """The node below which a share of the eigenvalues lies."""
    return float(found.nodes[int((found.cdf(found.nodes) >= share).argmax())])


def _estimated(figure: TraceEstimate) -> str:
    errors = {"standard error": figure.standard_error, "quadrature": figure.bias}
    known = [f"{name} {'unknown' if error is None else short(error)}"
             for name, error in errors.items()]  # fmt: skip
    return ", ".join([f"{figure.value:.6g}", *known])


def _with_error(figure: Figure | None) -> str | None:
    if figure is None:
        return None
    error = figure.standard_error
    spread = "unknown" if error is None else short(error)
    return f"{short(figure.value, 7)}, standard error {spread}"
