"""The tables of the page: what stages took, what was planned, and where it all comes from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from skerch_ooc.base.resources import format_bytes
from skerch_ooc.planning.plan import described
from skerch_ooc.results.assess import FACTORS
from skerch_ooc.results.report import numbers
from skerch_ooc.results.report.facts import Facts
from skerch_ooc.results.report.markup import Markup, element, joined, plain
from skerch_ooc.results.words import (
    core_text,
    error_test_line,
    format_seconds,
    measurements_text,
    products_text,
)

_UNKNOWN = "not known"
_LONGEST_FACT = 2000


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table whose first column names its rows; one that is too wide moves within itself."""
    heads = [element("th", text, scope="col") for text in head]
    body = [
        element("tr", element("th", name, scope="row"), *(element("td", text) for text in cells))
        for name, *cells in rows
    ]
    inner = element("table", element("caption", caption), element("thead", element("tr", *heads)),
                    element("tbody", *body))  # fmt: skip
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def bounds(facts: Facts) -> Markup:
    """How probable it is that the error is below multiples of the estimate."""
    assessment = facts.assessment
    rows = [
        [f"{factor:g} ×", numbers.share(factor * (assessment.relative_error or 0.0)),
         numbers.value(factor * (assessment.error or 0.0)),
         numbers.probability(assessment.bounds(factor))]
        for factor in FACTORS
    ]  # fmt: skip
    head = ("estimate", "relative error", "error", "probability")
    return table("Upper bounds of the true error", head, rows)


def stages(facts: Facts) -> Markup | None:
    """What each stage took; ``None`` if nothing is known of it."""
    if not facts.logged.costs:
        return None
    rows = []
    for stage, cost in facts.logged.costs.items():
        peak = _UNKNOWN if cost.peak_bytes is None else format_bytes(cost.peak_bytes)
        clock = _UNKNOWN
        if not facts.logged.more:
            clock = format_seconds(min(facts.logged.by_the_clock(stage), cost.seconds))
        rows.append([stage, numbers.count(cost.tasks), format_seconds(cost.seconds), clock, peak])
    head = ("stage", "tasks", "time of all", "by the clock", "peak memory")
    return table("What each stage took", head, rows)


def planned(facts: Facts) -> Markup:
    """What was planned, against what it cost."""
    products, estimate = facts.assessment.products, facts.logged.estimate
    costs = facts.logged.costs
    measured = [cost for stage, cost in costs.items() if stage.startswith("measure")]
    rows = [
        ["products", numbers.count(products["planned"]), products_text(facts.assessment)],
        ["shards", _bytes(estimate.get("shard_bytes")),
         f"{format_bytes(facts.shard_bytes)} in {numbers.count(facts.shards)}"],
        ["sums and result", _bytes(estimate.get("result_bytes")),
         format_bytes(facts.result_bytes)],
        ["time of measuring", _seconds(estimate.get("seconds")),
         _seconds(sum(cost.seconds for cost in measured) if measured else None)],
    ]  # fmt: skip
    foretold = [size for key, size in estimate.items() if key.startswith("peak_bytes.")]
    peaks = [cost.peak_bytes for cost in costs.values() if cost.peak_bytes is not None]
    rows.append(["memory of a process", _bytes(max(foretold, default=None)),
                 _bytes(max(peaks, default=None))])  # fmt: skip
    return table("Planned, and what it cost", ("", "planned", "cost"), rows)


def provenance(facts: Facts) -> Markup:
    """Where it all comes from."""
    pairs = [*_operator(facts), *_settings(facts), *_circumstances(facts)]
    return element("dl", *(joined([element("dt", name), element("dd", said)])
                           for name, said in pairs), class_="facts")  # fmt: skip


def _operator(facts: Facts) -> Iterator[tuple[str, object]]:
    plan = facts.run.plan
    identity = plan.identity
    height, width = identity.shape
    if plan.summands > 1:
        yield "operator", plain(described(facts.run.plan), _LONGEST_FACT)
    else:
        yield "operator", plain(identity.factory or "a Python object", _LONGEST_FACT)
        if identity.args:
            yield "arguments", plain(json.dumps(dict(identity.args), sort_keys=True), _LONGEST_FACT)
    if identity.factory_sha256:
        yield "SHA-256 of its file", _mono(plain(identity.factory_sha256, _LONGEST_FACT))
    kind = "Hermitian" if identity.kind == "eigh" else "general"
    yield "shape", f"{numbers.count(height)} × {numbers.count(width)}, {identity.dtype}, {kind}"
    if len(plan.parts) > 1:
        yield "parts", numbers.count(len(plan.parts))
    fingerprint = facts.fingerprint
    yield "fingerprint", "none" if fingerprint is None else _mono(fingerprint)


def _settings(facts: Facts) -> Iterator[tuple[str, object]]:
    plan, settings = facts.run.plan, facts.settings
    yield "measurements", measurements_text(plan)
    amendment = plan.amendments[-1]
    if amendment.tolerance is not None:
        yield (
            "tolerance",
            (
                f"{numbers.share(amendment.tolerance)}, with at most "
                f"{numbers.count(amendment.most or 0)} measurements"
            ),
        )
    if len(plan.amendments) > 1:
        yield "grown", f"{len(plan.amendments) - 1} times"
    yield "error test", error_test_line(plan)
    yield (
        "noise",
        ", ".join(f"{role}: {noise}" for role, noise in sorted(plan.identity.noise.items())),
    )
    yield "seed", str(plan.identity.seed)
    yield "block", f"{numbers.count(plan.block_width)} columns"
    powers = f", {settings.power_iterations} power iterations" if settings.power_iterations else ""
    yield (
        "recovery",
        (
            f"{settings.method}{powers}, core {settings.core}, rank {settings.rank}, "
            f"vectors {settings.vectors}"
        ),
    )
    yield "core", core_text(facts.assessment, plan.identity.kind)
    yield (
        "orthogonality",
        f"{numbers.value(facts.assessment.orthogonality, 2)} (‖UᴴU − I‖ in the Frobenius norm)",
    )


def _circumstances(facts: Facts) -> Iterator[tuple[str, object]]:
    logged, made = facts.logged, facts.made
    yield "recovered", plain(f"{made.get('time', _UNKNOWN)}, on {made.get('host', _UNKNOWN)}", 300)
    yield "measured on", plain(", ".join(sorted(logged.hosts)) or _UNKNOWN, _LONGEST_FACT)
    yield "devices", plain(", ".join(sorted(logged.devices)) or _UNKNOWN, _LONGEST_FACT)
    versions = [
        f"{name} {', '.join(sorted(known))}" for name, known in sorted(logged.versions.items())
    ]
    yield "versions", plain("; ".join(versions) or _UNKNOWN, _LONGEST_FACT)
    yield "result", _mono(f"results/{facts.name}")
    yield "sketch", _mono(facts.sketch)
    yield "run id", _mono(facts.run.plan.run_id)


def _mono(text: str) -> Markup:
    return element("span", text, class_="mono")


def _bytes(count: float | None) -> str:
    return _UNKNOWN if count is None else format_bytes(count)


def _seconds(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else format_seconds(seconds)
