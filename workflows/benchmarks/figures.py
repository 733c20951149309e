"""Figures that were measured: where they are kept, with what they were, and how pages show them.

What a row of ``all.py`` measured is a JSON file in ``docs/tables/``. A page has *sections* that
are made of such files, and of nothing else::

    <!-- figures: NAME -->
    ...
    <!-- end of figures -->

so that the page is whole where it is read as plain Markdown.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tables"
BENCHMARKS = "workflows/benchmarks"
CODE = ("skerch_ooc", "workflows", "pyproject.toml")
"""What a figure may depend on."""

WIDTH = 116
DIGITS = 6
FEW_CORES = 0.15
"""Of so many cores of other programs a caption says nothing."""

PACKAGES = (
    "torch", "numpy", "h5py", "scipy", "scikit-learn", "dask", "distributed", "skerch", "zarr",
    "curvlinops-for-pytorch", "primme", "hessian-eigenthings",
)  # fmt: skip

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Circumstances:
    """Where and with what figures were measured.

    Attributes:
        commit: Of the code, in short; with a plus if files of it were changed.
        date: The day.
        cpu: The processor's name.
        cores: How many of it there are.
        versions: Of Python and of packages.
    """

    commit: str
    date: str
    cpu: str
    cores: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """What a row measured.

    Attributes:
        command: The command line.
        circumstances: Where and with what.
        seconds: What the whole took.
        others: Cores that other programs used meanwhile, on average; ``None`` if nobody knows.
        figures: What the benchmark wrote.
    """

    command: str
    circumstances: Circumstances
    seconds: float
    others: float | None
    figures: Figures


@dataclass(frozen=True)
class Section:
    """A part of a page that is made of figures.

    Attributes:
        page: The page, from the root.
        name: The section's name in the page.
        rows: The rows of which it is made.
        render: Makes it of the figures of these rows, in their order.
        against: Packages whose versions are to be told.
        caption: Whether it says where the figures are from: not where one above it does.
    """

    page: str
    name: str
    rows: tuple[str, ...]
    render: Callable[..., str]
    against: tuple[str, ...] = ()
    caption: bool = True

    def text(self, measured: Mapping[str, Measured]) -> str:
        """What is between the marks."""
        found = [measured[row] for row in self.rows]
        body = self.render(*(one.figures for one in found))
        caption = f"\n\n{_caption(found, self.against)}" * self.caption
        return f"\n{body}{caption}\n\n"


# Where and with what.


def circumstances() -> Circumstances:
    """Those of this moment."""
    commit = git("rev-parse", "--short=8", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--", *CODE)
    versions = {"Python": platform.python_version()} | {
        name: found for name in PACKAGES if (found := _version(name))
    }
    today = date.today().isoformat()
    return Circumstances(
        commit + "+" * bool(changed), today, _processor(), os.cpu_count() or 1, versions
    )


def git(*arguments: str) -> str | None:
    """What git says of this repository; ``None`` where there is none, or it refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def same_code(commit: str) -> bool:
    """Whether figures of a commit would be those of the files as they are."""
    return git("diff", "--quiet", commit, "--", *CODE) is not None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return re.sub(r"\((R|TM)\)", "", names[0]) if names else platform.machine()


# Files of figures.


def load(name: str) -> Measured:
    """What was measured last."""
    found = json.loads((FOLDER / f"{name}.json").read_text())
    return Measured(**found | {"circumstances": Circumstances(**found["circumstances"])})


def keep(name: str, measured: Measured) -> None:
    """Writes what was measured over what was measured before."""
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(_rounded(asdict(measured)), indent=1)
    # A short list of numbers is one line.
    text = re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    (FOLDER / f"{name}.json").write_text(text + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


# Sections of pages.

_SECTION = re.compile(
    r"(?<=<!-- figures: )(?P<name>[\w-]+)(?P<mark> -->\n)(?P<body>.*?)(?=<!-- end of figures -->)",
    re.S,
)


def sections_in(page: str) -> dict[str, str]:
    """The sections of a page, by their names."""
    return {found["name"]: found["body"] for found in _SECTION.finditer(page)}


def filled(page: str, bodies: Mapping[str, str]) -> str:
    """A page with these sections anew."""
    return _SECTION.sub(
        lambda found: found["name"] + found["mark"] + bodies.get(found["name"], found["body"]), page
    )


def render(sections: Sequence[Section], measured: Mapping[str, Measured]) -> list[str]:
    """Writes the sections of pages anew; returns the pages that have changed."""
    changed = []
    for name in dict.fromkeys(section.page for section in sections):
        page = (ROOT / name).read_text()
        chosen = [one for one in sections if one.page == name and {*one.rows} <= {*measured}]
        made = filled(page, {section.name: section.text(measured) for section in chosen})
        if made != page:
            (ROOT / name).write_text(made)
            changed.append(name)
    return changed


def _caption(found: Sequence[Measured], against: Sequence[str]) -> str:
    """Where, when and by which commands; what is the same is said once."""
    commands: dict[str, list[str]] = {}
    for one in found:
        commands.setdefault(_where(one, against), []).append(f"`{one.command}`")
    return "\n\n".join(
        wrapped(f"*{_listed(each)} in `{BENCHMARKS}/`, {where}.*")
        for where, each in commands.items()
    )


def _where(one: Measured, against: Sequence[str]) -> str:
    what = one.circumstances
    names = ("Python", "torch", *against)
    versions = ", ".join(f"{name} {what.versions[name]}" for name in names if name in what.versions)
    place = "; ".join(filter(None, [f"{what.cores} cores of {what.cpu}", versions]))
    busy = one.others is not None and one.others > FEW_CORES
    meanwhile = f"; other programs used {one.others:.1f} cores meanwhile" if busy else ""
    return f"{what.date}, commit {what.commit}, {place}{meanwhile}"


# Words.


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph, in lines of the pages' width."""
    return textwrap.fill(
        " ".join(text.split()), WIDTH, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def bullets(*texts: str) -> str:
    """A list of paragraphs."""
    return "\n".join(wrapped(f"- {text}", "  ") for text in texts)


def paragraphs(*texts: str) -> str:
    """Paragraphs and tables, one after the other; tables stay as they are."""
    return "\n\n".join(text if text.startswith(("|", "-")) else wrapped(text) for text in texts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], flush_left: int = 1) -> str:
    """A table: the first columns are flush left, the others flush right."""
    rule = ["---" if place < flush_left else "---:" for place in range(len(head))]
    return "\n".join(
        "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
        for cells in (head, rule, *rows)
    )


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def seconds(value: float) -> str:
    """Seconds, to two or three digits."""
    return f"{value:.2g} s" if value < 0.95 else f"{value:.{1 if value < 20 else 0}f} s"


def gigabytes(value: float) -> str:
    """Bytes as gigabytes."""
    return f"{value / 1e9:.2f} GB"


def times(ratio: float) -> str:
    """How many times something is something else."""
    return f"{ratio:.2f}" if ratio < 3 else f"{ratio:.{1 if ratio < 10 else 0}f}"


def power(value: float) -> str:
    """A small number, such as an error."""
    return re.sub(r"e([+-])0?", r"e\1", f"{value:.1e}")


def between(values: Sequence[float], form: Callable[[float], str]) -> str:
    """The least and the largest, or one if they are written alike."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"
