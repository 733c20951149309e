"""What --help says: a screen for each verb, with an example that parses."""

from __future__ import annotations

import re
import shlex
from email.message import Message
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from skerch_ooc.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent.parent
VERBS = sorted(cli.commands)
SCREEN = 24
"""Lines of the usual terminal."""

LONGER = {"": 46, "submit": 33, "update": 29, "extend": 27, "recover": 25}
"""What lists all verbs, hands on the options of another program, and has the most of its own."""


def help_of(*arguments, width=80):
    shown = CliRunner().invoke(
        cli, [*arguments, "--help"], prog_name="skerch-ooc", terminal_width=width
    )
    assert shown.exit_code == 0
    return shown.output


def example_of(verb):
    (example,) = re.findall(r"^ *Example:  skerch-ooc (.*)$", help_of(verb), re.M)
    return shlex.split(example)


def parse(arguments):
    """What click makes of a command line, which is not run."""
    name, command, rest = cli.resolve_command(click.Context(cli), arguments)
    return command.make_context(name, list(rest))


@pytest.mark.parametrize("verb", ["", *VERBS])
class TestHelp:
    def test_fits_a_screen(self, verb):
        lines = help_of(*filter(None, [verb])).splitlines()
        assert len(lines) <= LONGER.get(verb, SCREEN)
        assert max(map(len, lines)) <= 80

    def test_has_one_example(self, verb):
        assert len(re.findall("Example:  skerch-ooc ", help_of(*filter(None, [verb])))) == 1

    def test_ends_with_a_page_of_the_documentation(self, verb):
        (page,) = re.findall(
            r"^  Docs:     docs/([a-z-]+\.md)$", help_of(*filter(None, [verb])), re.M
        )
        assert (ROOT / "docs" / page).exists()
        assert not verb or f"skerch-ooc {verb}" in (ROOT / "docs" / page).read_text()

    def test_is_plain_text(self, verb):
        assert help_of(*filter(None, [verb])).isascii()


@pytest.mark.parametrize("verb", VERBS)
class TestVerb:
    def test_example_is_of_this_verb_and_parses(self, verb):
        example = example_of(verb)
        assert example[0] == verb
        assert parse(example).params

    def test_example_leaves_out_nothing_that_is_required(self, verb):
        asked = {param.name for param in cli.commands[verb].params if param.required}
        given = {name for name, value in parse(example_of(verb)).params.items() if value}
        assert asked - {"index"} <= given

    def test_each_option_is_explained_in_one_line(self, verb):
        lines = help_of(verb).partition("Options:\n")[2].partition("\n\n")[0].splitlines()
        shown = [param for param in cli.commands[verb].params
                 if isinstance(param, click.Option) and not param.hidden]  # fmt: skip
        assert all(param.help for param in shown)
        assert len(lines) == len(shown) + 1

    def test_is_listed_once_in_one_line(self, verb):
        (line,) = re.findall(rf"^  {verb} +(.*)$", help_of(), re.M)
        assert line.endswith(".")
        assert "..." not in line


def test_example_of_all_verbs_parses():
    assert parse(example_of_group()).params


def example_of_group():
    (example,) = re.findall(r"^ *Example:  skerch-ooc (.*)$", help_of(), re.M)
    return shlex.split(example)


@pytest.mark.parametrize("mistake", [["nothing"], ["run", "--no-such-option"], ["run"]])
def test_what_does_not_parse_would_be_seen(mistake):
    with pytest.raises(click.UsageError):
        parse(mistake)


def test_an_address_that_the_project_states_takes_the_place_of_the_repository(monkeypatch):
    stated = Message()
    stated["Project-URL"] = "Documentation, https://example.org/ooc/"
    monkeypatch.setattr("importlib.metadata.metadata", lambda _: stated)
    assert "Docs:     https://example.org/ooc/error.html\n" in help_of("assess")


def test_verbs_are_listed_by_what_they_are_for():
    titles = re.findall(r"^(\w[\w, ]*):$", help_of(), re.M)
    assert titles == [
        "Options", "Start", "Stages, one by one", "Look", "Grow", "On a cluster", "Tidy",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 200])
@pytest.mark.parametrize("verb", VERBS)
def test_other_terminals_get_their_help_too(verb, width):
    assert "Example:" in help_of(verb, width=width)


def test_option_of_two_names_is_shown_by_the_first_and_known_by_both():
    assert "--scheduler-file" not in help_of("run")
    found = parse(["run", "--run", "r", "--executor", "dask", "--scheduler-file", "s.json"])
    assert found.params["scheduler"] == "s.json"
