"""What people see on a terminal: plain text that fits 80 columns and needs no colour."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from skerch_ooc.base.resources import format_bytes
from skerch_ooc.planning.plan import Plan
from skerch_ooc.results.advice import Step, advise
from skerch_ooc.results.assess import CONFIDENCE, count_within
from skerch_ooc.results.words import (
    NOUNS,
    bound_text,
    core_text,
    error_test_line,
    format_seconds,
    leave_one_out_remark,
    measurements_text,
    plain,
    products_text,
)
from skerch_ooc.store.result_files import VALUES
from skerch_ooc.store.sealed import SealedFile

if TYPE_CHECKING:
    from skerch_ooc.executors.slurm.state import QueueStatus
    from skerch_ooc.pipeline.clean import Cleaning
    from skerch_ooc.pipeline.cost import Estimate
    from skerch_ooc.pipeline.start import Planned, Probed
    from skerch_ooc.pipeline.status import Status
    from skerch_ooc.pipeline.submission import Submitted
    from skerch_ooc.results.advice import Found
    from skerch_ooc.results.assess import Assessment
    from skerch_ooc.results.estimates import Estimates

_SHOWN_VALUES = 15
_VALUES_IN_A_ROW = 5
_VALUE_WIDTH = 64
_WIDTH = 78
_KEPT = "\u00a0"
"""A space at which no line is broken."""


def _rows(pairs: list[tuple[str, str]]) -> str:
    """Names and values below each other; long values go on in further lines."""
    width = max(len(name) for name, _ in pairs)
    lines = []
    for name, value in pairs:
        for number, line in enumerate(_wrapped(value, _WIDTH - width - 2)):
            lines.append(f"  {'' if number else name:<{width}}  {line}")
    return "\n".join(lines)


def _wrapped(value: str, width: int) -> list[str]:
    """The lines of a value; what people copy, a path or a command, is not broken."""
    if len(value) <= width or any(sign in value for sign in ("/", "skerch-ooc ", "scancel ")):
        return [value.replace(_KEPT, " ")]
    lines = textwrap.wrap(value, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace(_KEPT, " ") for line in lines]


def plan_line(planned: Planned) -> str:
    """The plan in one line."""
    costs = planned.costs
    time = f", about {format_seconds(costs.seconds)}" if costs.seconds is not None else ""
    return (
        f"planned {costs.products} products in {costs.tasks} tasks{time}; "
        f"{format_bytes(costs.shard_bytes + costs.result_bytes)} on disk"
    )


def plan_table(planned: Planned) -> str:
    """What was planned, what the probe found, and what the run will cost."""
    plan, costs, findings = planned.run.plan, planned.costs, planned.findings
    height, width = plan.identity.shape
    pairs = [
        ("operator", plan.identity.factory or "a Python object"),
        ("shape", f"{height} x {width}, {plan.identity.dtype}"),
        ("measurements", measurements_text(plan)),
        ("products", f"{costs.products}, in {costs.tasks} tasks{_in_parts(plan)}"),
        ("on disk", f"{format_bytes(costs.shard_bytes)} of shards, "
                    f"{format_bytes(costs.result_bytes)} of results, {costs.files} files"),
        ("memory", ", ".join(f"{k} {format_bytes(v)}" for k, v in costs.peak_bytes.items())),
    ]  # fmt: skip
    if findings:
        pairs += [
            ("probe", f"{findings.products} products: asymmetry {findings.asymmetry:.1e}, "
                      f"repetition {findings.repetition:.1e}, norm {findings.norm:.3g}"),
            ("time", f"{format_seconds(costs.seconds or 0.0)} of products in one process"),
            *_on_workers(costs),
        ]  # fmt: skip
    pairs.append(("error test", error_test_line(plan)))
    if plan.amendments[-1].tolerance is not None:
        pairs.append(
            ("tolerance", f"{plan.amendments[-1].tolerance:.1e}, with at most "
                          f"{plan.amendments[-1].most} measurements")
        )  # fmt: skip
    head = "planned" if planned.fresh else "already planned"
    return f"{head}: {planned.run.directory} ({plan.run_id[:16]})\n{_rows(pairs)}"


def _in_parts(plan: Plan) -> str:
    count = len(plan.parts)
    together = ", each of which reads its rows once" if plan.parts[0].together else ""
    return (f" with {count} parts of the operator" if count > 1 else "") + together


def probe_table(probed: Probed) -> str:
    """What an operator is like, and what a run would cost."""
    findings, costs = probed.findings, probed.costs
    height, width = probed.shape
    products = findings.products + sum(timing.columns for timing in probed.timings)
    pairs = [
        ("shape", f"{height} x {width}, {probed.dtype}"),
        ("probe", f"{products} products: asymmetry {findings.asymmetry:.1e}, "
                  f"repetition {findings.repetition:.1e}, norm {findings.norm:.3g}"),
        ("products", f"{costs.products}, in {costs.tasks} tasks"),
        ("time", f"{format_seconds(costs.seconds or 0.0)} of products in one process"),
        *_on_workers(costs),
        ("on disk", f"{format_bytes(costs.shard_bytes)} of shards, "
                    f"{format_bytes(costs.result_bytes)} of results"),
        ("memory", ", ".join(f"{k} {format_bytes(v)}" for k, v in costs.peak_bytes.items())),
        ("recommended", f"sketch.block = {probed.block}, --workers {costs.useful_workers or 1} at "
                        f'most, storage = "{format_bytes(1.01 * costs.shard_bytes)}" for as many '
                        "measurements"),
    ]  # fmt: skip
    head = f"{'columns':>10} {'s':>10} {'s/column':>10} {'memory':>10}"
    lines = [
        f"{one.columns:>10} {one.seconds:>10.3g} {one.seconds / one.columns:>10.3g} "
        f"{format_bytes(one.bytes):>10}"
        for one in probed.timings
    ]
    return "\n".join([probed.factory or "a Python object", _rows(pairs), head, *lines])


def _on_workers(costs: Estimate) -> list[tuple[str, str]]:
    """How long measuring takes with more workers, in as many rows as it takes."""
    times = [f"{n}: {format_seconds(s)}" for n, s in (costs.seconds_with or {}).items() if n > 1]
    more = f"more than {costs.useful_workers} do not help"
    text = "; ".join(filter(None, [", ".join(time.replace(" ", _KEPT) for time in times), more]))
    lines = textwrap.wrap(text, _VALUE_WIDTH)
    return [("" if i else "on workers", line.replace(_KEPT, " ")) for i, line in enumerate(lines)]


def status_table(state: Status, queue: QueueStatus | None = None) -> str:
    """What is done, what is submitted, and what comes next."""
    height, width = state.shape
    pairs = [
        (
            "operator",
            f"{state.summands or state.operator or 'a Python object'}, "
            f"{height} x {width}, {state.dtype}",
        ),
        *(
            (role, f"{count['done']} of {count['planned']} columns measured")
            for role, count in state.columns.items()
        ),
        ("shards", f"{state.shards}, {format_bytes(state.shard_bytes)}"),
        ("merged", "yes" if state.merged else "no"),
    ]
    if state.cleaned is not None:
        count, size = state.cleaned["shards"], format_bytes(state.cleaned["shard_bytes"])
        pairs[-2:] = [
            ("cleaned", f"{state.cleaned['when']}: of {count} shards, {size}, {state.shards} left"),
            ("", "what is not among the results can be had of a new run only"),
        ]
    for name, error in state.results.items():
        shown = "not assessed" if error is None else f"relative error {error:.3e}"
        pairs.append((f"result {name}", shown))
    if state.leftovers:
        pairs.append(("unfinished", f"{state.leftovers} private files of tasks still at work, or "
                                    "killed (harmless; clean takes those)"))  # fmt: skip
    if state.strangers:
        pairs.append(("not shards", ", ".join(map(plain, state.strangers[:4]))))
    if queue is not None:
        pairs += _queue_rows(queue, done=state.next is None)
    pairs.append(("next", _next_line(state, queue)))
    if state.all_of_it and queue is None:
        pairs.append(("", f"or all that is left: {state.all_of_it}"))
    if state.next is None:
        pairs.append(("", f"for a page of it: skerch-ooc report {shlex.quote(state.directory)}"))
    return f"{state.directory} ({state.run_id[:16]})\n{_rows(pairs)}"


def _next_line(state: Status, queue: QueueStatus | None) -> str:
    if state.next is None:
        return "nothing: all stages are done"
    if queue and queue.waiting is None:
        return f"unknown, as {queue.queue}; if nothing is in the queue: {state.next}"
    waiting = (queue.waiting or 0) + sum(queue.others.values()) if queue else 0
    if waiting:
        return f"wait: {_elements(waiting)} in the queue"
    return state.next


def _elements(count: int) -> str:
    return f"{count} element{'' if count == 1 else 's'}"


def _queue_rows(queue: QueueStatus, *, done: bool) -> list[tuple[str, str]]:
    """The last submission to Slurm; of one that has done all of it, where its logs are."""
    rows = [("submission", f"{queue.submission}, {queue.queue}"), ("logs", queue.folder)]
    if done:
        return rows
    for job in queue.jobs:
        counts = ", ".join(f"{count}{_KEPT}{state.lower()}" for state, count in job.counts.items())
        why = f"{_KEPT}({', '.join(job.reasons)})" if job.reasons else ""
        rows.append((job.stage, f"job {job.job}: {counts}{why}"))
    for number, count in queue.others.items():
        rows.append(("also", f"submission {number}: {_elements(count)} in the queue"))
    if queue.last_failing:
        rows += [("last failing", queue.last_failing), ("", queue.reason or "")]
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
    counts = cleaning.counts()
    pairs = [
        (kind, f"{files} file{'' if files == 1 else 's'}, {format_bytes(size)}: {_KINDS[kind]}")
        for kind, (files, size) in counts.items()
    ]
    pairs += [("kept", reason) for reason in cleaning.kept]
    if cleaning.strangers:
        pairs.append(("not ours", ", ".join(cleaning.strangers[:4])))
    for option, size in cleaning.larger.items():
        pairs.append((option, f"would free {format_bytes(size)} more; {_LARGER[option]}"))
    total = format_bytes(sum(one.bytes for one in cleaning.freed))
    verb = "would free" if cleaning.dry_run else "freed"
    head = (
        f"{cleaning.directory}: {verb} {total}"
        if counts
        else (f"{cleaning.directory}: nothing to remove")
    )
    listed = [f"  {one.path}  {one.bytes}" for one in cleaning.freed if cleaning.dry_run]
    return "\n".join([head, *listed, *([_rows(pairs)] if pairs else [])])


def dry_run_text(submitted: Submitted) -> str:
    """All scripts and commands of a submission that was not made."""
    parts = []
    for job, command in zip(submitted.jobs, submitted.commands(), strict=True):
        parts.append(f"==> {submitted.submission.folder / job.file} <==\n{job.script}")
        parts.append(f"$ {command}\n")
    return "\n".join(parts).rstrip("\n")


def submitted_table(submitted: Submitted, directory: Path) -> str:
    """What was submitted, and how to look after it."""
    pairs = []
    for job, number in zip(submitted.jobs, submitted.numbers, strict=True):
        count = len(job.indices)
        shape = f", {_elements(count)}" if count else ""
        if job.longest > 1:
            shape += f" of at most {job.longest} tasks"
        pairs.append((job.stage, f"job {number}{shape}"))
    quoted = shlex.quote(str(directory))
    if submitted.options_of:
        pairs.append(("options", f"those of submission {submitted.options_of}"))
    pairs += [
        ("scripts, logs", str(submitted.submission.folder)),
        ("how far it is", f"skerch-ooc status {quoted}"),
        ("to stop it all", f"scancel {' '.join(reversed(submitted.numbers))}"),
    ]
    return f"submitted as {submitted.submission.number}\n{_rows(pairs)}"


def result_table(path: Path, assessment: Assessment) -> str:
    """What was found, and how sure that is."""
    arrays = SealedFile(path).arrays
    (kind,) = (kind for kind, name in VALUES.items() if name in arrays)
    found = arrays[VALUES[kind]]
    values = found[:_SHOWN_VALUES]
    lines = [f"{assessment.rank} {NOUNS[kind]}, the leading {len(values)}:"]
    for start in range(0, len(values), _VALUES_IN_A_ROW):
        row = values[start : start + _VALUES_IN_A_ROW]
        lines.append("  " + " ".join(f"{value:14.6e}" for value in row))
    pairs = []
    if assessment.relative_error is not None and assessment.error is not None:
        pairs += [
            ("relative error", f"{assessment.relative_error:.3e}"),
            ("error, norm", f"{assessment.error:.4e}, {assessment.norm or 0.0:.4e} (Frobenius), "
                            f"from {assessment.test_measurements} test vectors"),
            ("that is", f"the true error is {bound_text(assessment, 1.5, 2)},"),
            ("", bound_text(assessment, 2.0)),
        ]  # fmt: skip
    elif assessment.error is None:
        pairs.append(("error", "unknown: there are no test vectors"))
    else:
        pairs.append(("error", "the test vectors found nothing but zero"))
    bounds = assessment.bounds_of(arrays.get("residuals"))
    if bounds is not None:
        pairs += _each_value(found, bounds)
    if assessment.leave_one_out is not None:
        remark = leave_one_out_remark(assessment)
        pairs.append(("leave-one-out", f"{assessment.leave_one_out:.4e} ({remark})"))
    pairs += [
        ("orthogonality", f"{assessment.orthogonality:.1e} (||U^H U - I||_F)"),
        ("core", core_text(assessment, kind)),
        ("products", products_text(assessment)),
        ("result", str(path)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n" + _rows(pairs)


def _each_value(values: npt.NDArray[Any], bounds: npt.NDArray[Any]) -> list[tuple[str, str]]:
    """How many values are how good, one by one."""
    known = [count_within(values, bounds, share) for share in (0.01, 0.1, 1)]
    return [
        ("each value", f"at least {known[0]} of {len(values)} within 1 % of an eigenvalue, "
                       f"{known[1]} within 10 %, {known[2]} apart from 0; each with probability "
                       f"{CONFIDENCE}"),
    ]  # fmt: skip


def advice_text(found: Found) -> str:
    """What to do next with a result: each command on a line of its own, to be copied."""
    advice = advise(found)
    page = f"skerch-ooc report {found.directory}"
    page += "" if found.name == "default" else f" --name {found.name}"
    steps = [*advice.steps, Step("A page with all figures", page)]
    lines = ["what to do next", *(f"  {line}" for line in textwrap.wrap(advice.verdict, _WIDTH))]
    for step in steps:
        lines += [f"  {line}" for line in textwrap.wrap(f"{step.text}:", _WIDTH)]
        lines.append(f"    {step.command}")
    return "\n".join(lines)


def estimates_table(estimates: Estimates) -> str:
    """Trace and norms, and how sure they are."""
    n = estimates.test_measurements
    if not n:
        return "no estimates: there are no test vectors to make them from"
    pairs = []
    for name, figure in (
        ("trace", estimates.trace), ("Frobenius norm", estimates.frobenius_norm),
    ):  # fmt: skip
        if figure is not None:
            error = figure.standard_error
            shown = "unknown" if error is None else f"{error:.1e}"
            pairs.append((name, f"{figure.value:.6e}, standard error {shown}"))
    if estimates.spectral_norm is not None:
        spectral = estimates.spectral_norm
        pairs.append(
            ("spectral norm", f"{spectral.value:.6e}, off by at most about {spectral.error:.1e}")
        )
    return f"estimated with {n} test vectors:\n{_rows(pairs)}"
