"""What people see on a terminal: plain text that fits 80 columns and needs no colour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from skerch_ooc.resources import format_bytes
from skerch_ooc.sealed import SealedFile

if TYPE_CHECKING:
    from skerch_ooc.pipeline import Planned
    from skerch_ooc.stages.assess import Assessment
    from skerch_ooc.status import Status

_SHOWN_VALUES = 15
_VALUES_IN_A_ROW = 5


def _rows(pairs: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in pairs)


def format_seconds(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


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
        ("measurements", f"{plan.reach('right')} + {plan.reach('test')} for the error test"),
        ("products", f"{costs.products}, in {costs.tasks} tasks"),
        ("on disk", f"{format_bytes(costs.shard_bytes)} of shards, "
                    f"{format_bytes(costs.result_bytes)} of results, {costs.files} files"),
        ("memory", ", ".join(f"{k} {format_bytes(v)}" for k, v in costs.peak_bytes.items())),
    ]  # fmt: skip
    if findings:
        asymmetry = "" if findings.asymmetry is None else f"asymmetry {findings.asymmetry:.1e}, "
        pairs += [
            ("probe", f"{findings.products} products: {asymmetry}"
                      f"repetition {findings.repetition:.1e}, norm {findings.norm:.3g}"),
            ("time", f"{format_seconds(costs.seconds or 0.0)} of products in one process"),
        ]  # fmt: skip
    head = "planned" if planned.fresh else "already planned"
    return f"{head}: {planned.run.directory} ({plan.run_id[:16]})\n{_rows(pairs)}"


def status_table(state: Status) -> str:
    """What is done and what comes next."""
    height, width = state.shape
    pairs = [
        ("operator", f"{state.operator or 'a Python object'}, {height} x {width}, {state.dtype}"),
        *(
            (role, f"{count['done']} of {count['planned']} columns measured")
            for role, count in state.columns.items()
        ),
        ("shards", f"{state.shards}, {format_bytes(state.shard_bytes)}"),
        ("merged", "yes" if state.merged else "no"),
    ]
    for name, error in state.results.items():
        shown = "not assessed" if error is None else f"relative error {error:.3e}"
        pairs.append((f"result {name}", shown))
    if state.leftovers:
        pairs.append(("unfinished", f"{state.leftovers} private files of tasks still at work, or "
                                    "killed (harmless)"))  # fmt: skip
    if state.strangers:
        pairs.append(("not shards", ", ".join(state.strangers[:4])))
    pairs.append(("next", state.next or "nothing: all stages are done"))
    return f"{state.directory} ({state.run_id[:16]})\n{_rows(pairs)}"


def result_table(path: Path, assessment: Assessment) -> str:
    """What was found, and how sure that is."""
    values = SealedFile(path).arrays["eigenvalues"][:_SHOWN_VALUES]
    lines = [f"{assessment.rank} eigenvalues, the leading {len(values)}:"]
    for start in range(0, len(values), _VALUES_IN_A_ROW):
        row = values[start : start + _VALUES_IN_A_ROW]
        lines.append("  " + " ".join(f"{value:14.6e}" for value in row))
    pairs = []
    if assessment.relative_error is not None and assessment.error is not None:
        pairs += [
            ("relative error", f"{assessment.relative_error:.3e}"),
            ("error, norm", f"{assessment.error:.4e}, {assessment.norm or 0.0:.4e} (Frobenius), "
                            f"from {assessment.test_measurements} test vectors"),
            ("that is", f"the true error is below 1.5 times this with probability "
                        f"{assessment.bounds(1.5):.2f},"),
            ("", f"below 2 times this with probability {assessment.bounds(2.0):.4f}"),
        ]  # fmt: skip
    pairs += [
        ("leave-one-out", f"{assessment.leave_one_out:.4e} (error estimated without the test)"),
        ("orthogonality", f"{assessment.orthogonality:.1e} (||U^H U - I||_F)"),
        ("core", f"{assessment.core} eigenpairs inverted"),
        ("products", f"{assessment.products['done']} and {assessment.products['probe']} of probes"),
        ("result", str(path)),
    ]
    return "\n".join(lines) + "\n" + _rows(pairs)
