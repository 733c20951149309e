"""The house rules: what can be counted about the package stays within its bounds."""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import skerch_ooc

PACKAGE = Path(skerch_ooc.__file__).resolve().parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

MOST_CODE_LINES = 30_700
"""Without docstrings, comments, blanks and imports; a feature may raise it, a repetition not."""
MEDIAN_FUNCTION = 8
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 6
MOST_WITH_MORE = 18
"""Functions that have more: public ones, whose signatures are promised, and those that stand in for
functions of torch and take what these take."""

ALONE = {"__init__.py", "__main__.py", "py.typed"}
"""What lies at the top of the package beside the wings."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree_of(file):
    return ast.parse(FILES[file].read_text())


def nodes(*kinds):
    """All nodes of some kinds, with the file that they are in."""
    for file in FILES:
        yield from ((file, node) for node in ast.walk(tree_of(file)) if isinstance(node, kinds))


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


SILENT = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
)  # fmt: skip


def code_lines(file):
    """Numbers of the lines that hold code: no docstring, comment, blank or import."""
    silent = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, (ast.Import, ast.ImportFrom)) or is_docstring(node):
            silent |= set(range(node.lineno, node.end_lineno + 1))
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(FILES[file].read_text()).readline):
        if token.type not in SILENT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - silent


def parameters(function):
    """Names of a function's parameters, but for the object or class that it is of."""
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def length(function):
    return function.end_lineno - function.lineno + 1


class TestSize:
    def test_package_has_not_more_lines_of_code_than_it_may(self):
        assert sum(len(code_lines(file)) for file in FILES) <= MOST_CODE_LINES

    def test_half_of_the_functions_are_short(self):
        lengths = [length(node) for _, node in nodes(*FUNCTIONS)]
        assert statistics.median(lengths) <= MEDIAN_FUNCTION

    def test_no_function_is_longer_than_a_screen(self):
        long = [
            f"{file}:{node.name} has {length(node)} lines"
            for file, node in nodes(*FUNCTIONS)
            if length(node) > LONGEST_FUNCTION
        ]
        assert long == []

    def test_few_functions_have_many_parameters(self):
        many = [
            f"{file}:{node.name}"
            for file, node in nodes(*FUNCTIONS)
            if len(parameters(node)) > MOST_PARAMETERS
        ]
        assert len(many) <= MOST_WITH_MORE, many


class TestPlan:
    def test_nothing_lies_beside_the_wings(self):
        files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
        assert files == ALONE

    def test_each_class_has_a_name_of_its_own(self):
        counts = Counter(node.name for _, node in nodes(ast.ClassDef))
        assert {name: count for name, count in counts.items() if count > 1} == {}

    def test_no_module_bears_a_public_name_at_the_top(self):
        tops = {path.stem for path in PACKAGE.iterdir() if path.is_dir()}
        assert tops & set(skerch_ooc.__all__) == set()

    @pytest.mark.parametrize(
        "wing", [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    )
    def test_init_of_a_wing_says_what_it_is_for_and_nothing_else(self, wing):
        inits = [file for file in FILES if re.fullmatch(rf"{wing}/(.*/)?__init__\.py", file)]
        assert {file: tree_of(file).body[1:] for file in inits} == {file: [] for file in inits}

    def test_every_module_says_what_is_in_it(self):
        assert [file for file in FILES if not ast.get_docstring(tree_of(file))] == []


RUN_FILE = re.compile(r"\.h5|\.p\d|\.c\d|round|\\\.tmp")
"""What a regex or glob of a file of a run has in it."""

LOOKING = {"glob", "rglob", "compile", "fullmatch", "match", "search", "fnmatch"}


class TestNames:
    def test_files_of_runs_are_known_by_the_store_alone(self):
        found = [
            f"{file}:{node.lineno} {ast.unparse(node)[:80]}"
            for file, node in nodes(ast.Call)
            if not file.startswith("store/")
            and getattr(node.func, "attr", "") in LOOKING
            and any(RUN_FILE.search(each.value) for each in ast.walk(node)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str))
        ]  # fmt: skip
        assert found == []
