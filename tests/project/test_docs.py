"""The documentation: its code runs, its commands and links are there, no page is forgotten."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from snippets import ROOT, RUN, SHOWN, Block, Page, blocks_of, environment_of

import skerch_ooc as ooc
from skerch_ooc.base import errors
from skerch_ooc.cli.main import cli

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
README = ROOT / "README.md"
CLUSTERS = sorted((ROOT / "cluster").glob("*/README.md"))
MARKDOWN = [README, *PAGES, *CLUSTERS, *sorted((ROOT / "workflows").rglob("*.md"))]
PROGRAMS = sorted(
    path
    for folder in ("workflows", "cluster")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".toml", ".sh", ".sbatch")
)

TAKES_LONG = {
    "choosing.md": "many runs, to compare their errors",
    "dask.md": "workers are started again and again",
    "growing.md": "runs that grow, and the same without growing",
    "how-it-works.md": "the same run in several ways",
    "matrices.md": "many runs of matrices on disk",
    "noise.md": "kinds of noise are compared, and timed",
    "operators.md": "a network and its updates",
    "tutorial.md": "a run that is killed on its way, and grows",
    "workflows.md": "all workflows, one after the other",
}
"""Pages that are run as soak tests, and why; all other checks of them are always made."""

NOT_RUN_IN_README = {
    "python3 -m venv": "CI runs installation and tests themselves, in a fresh clone",
    "skerch-ooc plan hessian.toml": "the reader's own model",
}
"""How blocks begin that are not run, where a comment would be in the way of readers."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks_in(path: Path) -> list[Block]:
    return list(blocks_of(path.read_text()))


def marked(path: Path):
    reason = TAKES_LONG.get(path.name)
    return pytest.param(path, id=path.name, marks=[pytest.mark.soak] if reason else [])


# That it runs.


def is_run(block: Block) -> bool:
    return not (block.not_run or block.directive) and (
        block.language in RUN or block.caption is not None
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "path", [marked(path) for path in PAGES if any(map(is_run, blocks_in(path)))]
)
def test_code_of_a_page_runs(tmp_path, monkeypatch, served_commands, path):
    (tmp_path / "workflows").symlink_to(ROOT / "workflows")
    monkeypatch.chdir(tmp_path)
    page = Page(path, tmp_path, environment_of(served_commands))
    for block in blocks_in(path):
        page.run(block)


@pytest.mark.thorough
def test_commands_of_the_readme_run(tmp_path, monkeypatch, served_commands):
    (tmp_path / "workflows").symlink_to(ROOT / "workflows")
    page = Page(README, tmp_path, environment_of(served_commands))
    for block in blocks_in(README):
        # tests/project/test_readme.py runs what is in Python, block by block.
        left_out = block.language != "bash" or block.text.startswith(tuple(NOT_RUN_IN_README))
        if not left_out:
            page.run(block)


@pytest.mark.parametrize("beginning", NOT_RUN_IN_README)
def test_what_is_left_out_of_the_readme_is_there(beginning):
    assert any(block.text.startswith(beginning) for block in blocks_in(README))


@pytest.mark.parametrize("name", TAKES_LONG)
def test_page_that_takes_long_is_there(name):
    assert DOCS / name in PAGES


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_says_what_it_is(path):
    known = (*RUN, *SHOWN)
    wrong = [
        f"line {block.line}: {block.language or 'no language'}"
        for block in blocks_in(path)
        if block.language not in known and not (block.caption or block.not_run or block.directive)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_code_can_be_read(path):
    for block in blocks_in(path):
        if block.language == "python":
            compile("\n" * block.line + block.text, str(path), "exec")
        elif block.language == "toml":
            tomllib.loads(block.text)


# What it speaks of.

BEGUN = ("re",)
"""Verbs that are but begun, where it is about their completion by the shell."""

_COMMAND = re.compile(r"(?:^|[`$(|&;>\"']|\s)skerch-ooc +([a-z-]\S*.*)")
_CONTINUED = re.compile(r" *\\\n\s*")


def commands_in(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Verbs and options of the commands that a file speaks of."""
    text = path.read_text()
    if path.suffix == ".md":
        code = [block.text for block in blocks_of(text) if block.directive is None]
        spans = re.findall(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", _without_blocks(text))
        text = "\n".join([*code, *(" ".join(span.split()) for span in spans)])
    for line in _CONTINUED.sub(" ", text).splitlines():
        for rest in _COMMAND.findall(line):
            words = _words(rest)
            verb = words[0] if words else ""
            yield verb, [word.partition("=")[0] for word in words if word.startswith("--")]


def _words(rest: str) -> list[str]:
    """The words of a command, without what another program is told."""
    rest = re.split(r"\s--(?:\s|$)|[|;&>`]|\s#|\.\s", rest)[0]
    try:
        return shlex.split(rest)
    except ValueError:
        return rest.split()


def _without_blocks(text: str) -> str:
    return re.sub(r"^( *)(`{3,}).*?^ *\2 *$", "", text, flags=re.M | re.S)


@pytest.mark.parametrize("path", [*MARKDOWN, *PROGRAMS], ids=name_of)
def test_verbs_and_options_are_those_of_the_command_line(path):
    wrong = []
    for verb, options in commands_in(path):
        if verb in ("--version", "--help", "-h", *BEGUN):
            continue
        # Of which verb an option alone is remains open.
        verbs = list(cli.commands) if verb.startswith("--") else [verb.strip(".,:)\"'")]
        wrong += [name for name in verbs if name not in cli.commands]
        known = set().union(*(options_of(name) for name in verbs if name in cli.commands))
        wrong += [f"{verb} {option}" for option in options if option not in known]
    assert wrong == []


def options_of(verb: str) -> set[str]:
    named = [(*option.opts, *option.secondary_opts) for option in cli.commands[verb].params]
    return {"--help"}.union(*named)


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nskerch-ooc run spec.toml --runs r\n```",
        "Say `skerch-ooc run spec.toml --runs r`.",
        "```bash\nskerch-ooc run spec.toml \\\n  --runs r | tail\n```",
    ],
    ids=["block", "span", "continued"],
)
def test_misspelt_option_would_be_found(tmp_path, text):
    (tmp_path / "page.md").write_text(text)
    assert list(commands_in(tmp_path / "page.md")) == [("run", ["--runs"])]


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "python.md").read_text()
    entry = r"^\.\. auto\w+:: {}\b(?!\.)"
    assert [name for name in ooc.__all__ if not re.search(entry.format(name), text, re.M)] == []


ERRORS = [name for name in ooc.__all__ if name.endswith("Error") and name != "OocError"]


@pytest.mark.parametrize("name", ERRORS)
def test_error_is_at_its_exit_code(name):
    text = (DOCS / "command-line.md").read_text()
    assert re.search(rf"^\| {getattr(errors, name).exit_code} \|.*`{name}`", text, re.M)


# Where it leads.

_LINK = re.compile(r"\[(?:[^][]|\[[^][]*\])*\]\(<?([^()\s<>]+)>?(?: +\"[^\"]*\")?\)")
_SCHEME = re.compile(r"[a-z]+:")


def links_in(path: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", _without_blocks(path.read_text()))
    return [target for target in _LINK.findall(text) if not _SCHEME.match(target)]


def anchors_of(path: Path) -> set[str]:
    """The anchors that code hosts make of headings."""
    found: dict[str, int] = {}
    anchors = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", path.read_text()))
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", _without_blocks(path.read_text()), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        anchors.add(f"{slug}-{count}" if count else slug)
    return anchors


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_links_lead_to_what_is_there(path):
    lost = []
    for target in links_in(path):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        there = file.exists() and file.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors_of(file)):
            lost.append(target)
    assert lost == []


def test_every_page_is_in_a_table_of_contents_once():
    listed = [
        line.strip()
        for path in PAGES
        for block in blocks_in(path)
        if block.directive == "toctree"
        for line in block.text.splitlines()
        if line.strip() and not line.startswith(":")
    ]
    assert sorted(listed) == sorted(path.stem for path in PAGES if path.stem != "index")
