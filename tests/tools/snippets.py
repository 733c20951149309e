"""Blocks of code in Markdown: found, and run as a reader would run them.

The blocks of a page run in order in one folder, which has a link ``workflows``. A fence of

* ``bash`` is run by bash, which stops at the first command that fails,
* ``python`` is run in the page's one namespace,
* ``toml`` must be TOML, and a spec if it says how many measurements,
* any language with a ``:caption:`` is written to the folder under that name,
* ``text``, ``json`` or ``yaml`` is output, a layout, or of other programs, and is not run.

A comment ``<!-- not run: REASON -->`` before a fence keeps it from being run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 600.0

RUN = ("bash", "python", "toml")
SHOWN = ("text", "json", "yaml")
BLOCKS = ("code-block", "code")
"""Directives that hold code; what others hold is text of the page, or none."""

_FENCE = re.compile(r"^( *)(`{3,}) *(\{([\w-]+)\})? *(.*)$")
_NOT_RUN = re.compile(r"<!-- not run: .+ -->")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: Its language; empty if none is given.
        text: The code.
        line: Where it begins in its page.
        caption: The file that it is.
        not_run: Whether the page says that it is not run.
        directive: What holds it, if that is neither a plain fence nor a block of code.
    """

    language: str
    text: str
    line: int
    caption: str | None = None
    not_run: bool = False
    directive: str | None = None


def blocks_of(text: str, first: int = 1) -> Iterator[Block]:
    """All blocks of a page, those within admonitions too."""
    lines = text.splitlines()
    number, before = 0, ""
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening is None:
            before = lines[number].strip() or before
            number += 1
            continue
        indent, ticks, _, directive, rest = opening.groups()
        end = number + 1
        while end < len(lines) and lines[end].strip() != ticks:
            end += 1
        inner = [line.removeprefix(indent) for line in lines[number + 1 : end]]
        yield from _made(directive, rest.strip(), inner, first + number, before)
        number, before = end + 1, ""


def _made(
    directive: str | None, rest: str, inner: list[str], line: int, before: str
) -> Iterator[Block]:
    if directive is not None and directive not in BLOCKS:
        yield Block("", "\n".join(inner), line, directive=directive)
        yield from blocks_of("\n".join(inner), line + 1)
        return
    options = {}
    while directive and inner and (option := re.match(r":([\w-]+): *(.*)", inner[0])):
        options[option[1]] = option[2]
        inner = inner[1:]
    caption, not_run = options.get("caption"), bool(_NOT_RUN.fullmatch(before))
    yield Block(rest, "\n".join(inner) + "\n", line, caption, not_run)


@dataclass
class Page:
    """A page whose blocks are run.

    Attributes:
        path: The page.
        folder: Where they run.
        environment: Of its commands.
    """

    path: Path
    folder: Path
    environment: dict[str, str]
    _names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, block: Block) -> None:
        """Runs a block, or writes it."""
        if block.caption:
            path = self.folder / block.caption
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        if block.not_run or block.directive:
            return
        if block.language == "toml":
            _require_spec(block.text, self.folder)
        elif block.language == "bash" and not block.caption:
            self._bash(block)
        elif block.language == "python" and not block.caption:
            # So that a traceback names the line of the page.
            code = "\n" * block.line + block.text
            exec(compile(code, str(self.path), "exec"), self._names)

    def _bash(self, block: Block) -> None:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=self.folder, env=self.environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=PATIENCE)
        finally:
            # Whatever the block has left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said = f"{self.path.name}, line {block.line}, ended with {process.returncode}:\n{out}"
        assert process.returncode == 0, said
        assert "Traceback" not in out, said


def _require_spec(text: str, folder: Path) -> None:
    from skerch_ooc.planning.spec import Spec

    table = tomllib.loads(text)
    if "measurements" in table or "storage" in table:
        Spec.from_table(table, folder)


def environment_of(commands: Path) -> dict[str, str]:
    """The environment of commands, with a folder of commands before all others."""
    places = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return os.environ | threads | {"PATH": os.pathsep.join(places)}
