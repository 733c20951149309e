"""The page: one HTML file that holds its style and its figures, and asks for nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from skerch_ooc.results.report import numbers, tables, words
from skerch_ooc.results.report.facts import Facts
from skerch_ooc.results.report.figure import Chart
from skerch_ooc.results.report.leading import figure_of
from skerch_ooc.results.report.markup import NOTHING, Markup, element, joined, plain
from skerch_ooc.results.report.quality import error, scree
from skerch_ooc.results.report.spectrum import density, linear_spectrum, logarithmic_spectrum
from skerch_ooc.results.report.style import page_style
from skerch_ooc.results.report.timeline import timeline

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_SECTIONS = {
    "Spectrum": ("spectrum", "spectrum-log", "density", "scree"),
    "Error": ("error",),
    "Vectors": ("vectors", "right-vectors"),
    "Work": ("timeline",),
}


def figures(facts: Facts) -> list[Chart]:
    """All figures of a report; those of what is not known are left out."""
    made: list[Chart | None] = [
        linear_spectrum(facts.values), logarithmic_spectrum(facts.values), density(facts.values),
        error(facts.assessment), scree(facts.assessment),
        *(figure_of(leading, facts.values.values, name, noun)
          for name, noun, leading in facts.vectors),
        timeline(facts.logged),
    ]  # fmt: skip
    return [figure for figure in made if figure is not None]


def page(facts: Facts, drawn: Iterable[Chart]) -> bytes:
    """The page of a report.

    Args:
        facts: What it says.
        drawn: Its figures.
    """
    title = f"{facts.title} · skerch_ooc"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=Markup(POLICY)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(page_style())),
    )
    body = element("body", _header(facts), element("main", *_sections(facts, list(drawn))),
                   _footer())  # fmt: skip
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n".encode()


def _header(facts: Facts) -> Markup:
    identity, total = facts.run.plan.identity, len(facts.values.values)
    height, width = map(numbers.count, identity.shape)
    said = (
        f"{numbers.count(total)} {facts.values.noun if total > 1 else facts.values.noun[:-1]} of "
        f"{plain(identity.factory or 'a Python object', 300)}, {height} × {width}, {identity.dtype}"
    )
    result = "" if facts.name == "default" else f"; result {facts.name}"
    return element("header", element("h1", facts.title), element("p", said + result, class_="sub"))


def _sections(facts: Facts, drawn: list[Chart]) -> Iterator[Markup]:
    yield _summary(facts)
    for title, names in _SECTIONS.items():
        shown = [_shown(figure) for figure in drawn if figure.name in names]
        if title == "Error" and shown:
            shown.append(element("div", tables.bounds(facts)))
        kind = "figures single" if len(shown) == 1 else "figures"
        inner = [element("div", *shown, class_=kind)] if shown else []
        yield element(
            "section", element("h2", title), *_introduced(title, bool(shown)), *inner,
            *(_work_tables(facts) if title == "Work" else ()),
        )  # fmt: skip
    yield element("section", element("h2", "Provenance"), tables.provenance(facts))


def _introduced(title: str, shown: bool) -> Iterator[Markup]:
    """What is said where a section lacks what it should show."""
    if shown:
        return
    said = {
        "Error": "The error is not known: there are no test vectors, or nothing but zero.",
        "Vectors": "Vectors of one entry: there is nothing to be drawn.",
        "Work": "Who worked when is not known: the logs of the run are not there, or say nothing.",
    }
    yield element("p", said.get(title, ""), class_="quiet")


def _work_tables(facts: Facts) -> Iterator[Markup]:
    stages = tables.stages(facts)
    yield element("div", tables.planned(facts), stages or NOTHING, class_="tables")
    if stages is not None:
        yield element(
            "p",
            "Time of all: of all tasks, one after the other; by the clock: while any process was "
            "at work on the stage. Peak memory is the largest of any process up to the end of the "
            "stage, earlier stages of the same process included.",
            class_="quiet",
        )


def _shown(figure: Chart) -> Markup:
    return element(
        "figure", element("h3", figure.title), figure.svg(),
        element("figcaption", figure.caption), id=f"figure-{figure.name}",
    )  # fmt: skip


def _summary(facts: Facts) -> Markup:
    parts = [
        ("What was found", [joined([" ".join(filter(None, words.found(facts)))])]),
        ("How sure that is", [joined([text]) for text in words.sure(facts)]),
        ("What to do next", words.following(facts)),
    ]
    said = [
        element("div", element("h2", title), *(element("p", text) for text in texts))
        for title, texts in parts
    ]
    return element("section", _key_figures(facts), element("div", *said, class_="said"),
                   aria_label="Summary")  # fmt: skip


def _key_figures(facts: Facts) -> Markup:
    assessment, values = facts.assessment, facts.values
    relative = assessment.relative_error
    known = relative is not None
    sure = f"below {numbers.share(1.5 * (relative or 0.0))} with probability " \
           f"{numbers.probability(assessment.bounds(1.5))}"  # fmt: skip
    largest = max(values.values, key=abs)
    certain = values.certain
    limit = "the error" if values.bounds is None else "what they may be off by"
    entries = [
        ("relative error", numbers.share(relative) if relative is not None else "unknown",
         sure if known else "no test vectors"),
        (f"largest {values.noun[:-1]}", numbers.value(float(largest)),
         "in magnitude" if values.kind == "eigh" else "also the spectral norm, about"),
        (f"{values.noun} found", numbers.count(assessment.rank),
         "error unknown" if certain is None else f"{numbers.count(certain)} larger than {limit}"),
        ("products", numbers.count(assessment.products["done"]),
         f"and {numbers.count(assessment.products['probe'])} of probes"),
    ]  # fmt: skip
    shown = [
        element("div", element("dt", name), element("dd", value),
                element("dd", note, class_="note"))
        for name, value, note in entries
    ]  # fmt: skip
    return element("dl", *shown, class_="key")


def _footer() -> Markup:
    return element(
        "footer",
        "DIR is the run directory. The figures are also files, in the folder figures beside this "
        "page. How to read them is described in docs/report.md of skerch_ooc.",
    )
