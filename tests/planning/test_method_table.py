"""The table of methods: its rows are those that are solved, and say what the methods do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import skerch_ooc
from skerch_ooc.algebra.methods.auto import COMPARED
from skerch_ooc.algebra.methods.registry import SOLVERS
from skerch_ooc.planning.methods import METHODS, names_of
from skerch_ooc.planning.spec import KINDS, Spec

PACKAGE = Path(skerch_ooc.__file__).parent
AT_HOME = (PACKAGE / "planning" / "methods.py", PACKAGE / "algebra" / "methods")


def test_all_methods_that_are_planned_are_solved():
    # Those in orthogonal rounds are solved from the sums of all rounds, not from one problem.
    assert [name for name in METHODS if not METHODS[name].orthogonal] == list(SOLVERS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_is_one_of_them(kind):
    assert Spec(measurements=1, kind=kind).recovery.method in METHODS


def test_those_that_are_compared_are_what_the_table_says():
    assert tuple(COMPARED) == METHODS["auto"].compares


def method_names(tree):
    """Lines where the name of a method stands alone, but as a default or an example of a key."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.Dict | ast.Subscript | ast.Match):
            for inner in ast.walk(node):
                if not isinstance(inner, ast.Constant) or inner.value not in METHODS:
                    continue
                # "auto" is a word of other keys, too.
                if inner.value != "auto" or "method" in ast.unparse(node):
                    yield inner.lineno


OTHERS = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != AT_HOME[0] and AT_HOME[1] not in path.parents
]


def test_nothing_else_asks_for_a_method_by_its_name():
    asking = {
        str(path.relative_to(PACKAGE)): lines
        for path in OTHERS
        if (lines := list(method_names(ast.parse(path.read_text()))))
    }
    assert asking == {}


def test_a_question_by_name_would_be_seen():
    asked = (
        'if method == "hmt" or method in ("nystrom",): pass\nleft = {"hmt": 1}\n'
        'if core == "auto" and method == "auto": pass\n'
    )
    assert sorted(method_names(ast.parse(asked))) == [1, 1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
class TestRounds:
    @pytest.mark.parametrize("method", names_of(lambda method: method.is_one_pass))
    def test_one_pass_is_one_round(self, kind, method):
        assert METHODS[method].rounds(kind, 0) == 1

    @pytest.mark.parametrize("power_iterations", [0, 1, 2])
    def test_each_power_takes_a_round_or_one_there_and_back(self, kind, power_iterations):
        rounds = 2 + power_iterations * {"eigh": 1, "svd": 2}[kind]
        assert METHODS["hmt"].rounds(kind, power_iterations) == rounds
