"""The shape of the package: imports go down only, and light commands load light modules."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import skerch_ooc

PACKAGE = Path(skerch_ooc.__file__).resolve().parent

LEVELS = (
    (
        "errors",
        "arrays",
        "partition",
        "parts",
        "files",
        "rawfile",
        "budget",
        "progress",
        "linalg",
        "ssrft",
        "interleave",
        "scaling",
    ),
    ("spec", "resources", "noise", "provenance", "executors", "indexing", "sparse"),
    ("cleaned", "leftovers"),
    ("sealed", "rundir", "removal", "streams", "sides", "operators", "recovery"),
    ("shards", "sizing", "pieces"),
    ("readers",),
    ("rounds",),
    ("stages.testmatrices", "stages.arithmetic", "stages.drift", "stages.missing"),
    ("stages.operands", "stages.requests"),
    ("stages.accumulate", "stages.measure"),
    ("stages.merge",),
    ("stages.problems",),
    ("stages.vectors", "stages.columns"),
    ("stages.orthogonality", "stages.recipes"),
    ("stages.spread",),
    ("stages.solutions",),
    ("stages.recover", "stages.bases", "stages.assess", "status", "verification"),
    ("estimate", "tolerance", "tall", "results", "workload"),
    ("stages.estimates", "slurm", "planning"),
    ("updating",),
    ("needs",),
    ("keeping",),
    ("pipeline", "shares", "submission"),
    ("cleaning", "advice"),
    ("tables",),
    ("reporting",),
    ("cli",),
    ("__main__",),
)
"""From low to high; a name stands for the modules below it too."""

FOUNDATION = ("skerch_ooc", "skerch_ooc.stages")
"""Packages that import nothing of ours: they are below all levels."""


def name_of(path):
    parts = ("skerch_ooc", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def level_of(module):
    if module in FOUNDATION:
        return -1
    inner = module.removeprefix("skerch_ooc.")
    for level, names in enumerate(LEVELS):
        if any(inner == name or inner.startswith(f"{name}.") for name in names):
            return level
    return len(LEVELS)


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def statements(node):
    """All nodes that run: also those inside functions, not those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if is_for_type_checkers(child):
            for other in child.orelse:
                yield from statements(other)
        else:
            yield child
            yield from statements(child)


def absolute_base(module, node):
    """The absolute name of what an ``import from`` imports from."""
    if not node.level:
        return node.module
    package = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, node.module] if node.module else kept)


def imported_names(module, tree):
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(module, node)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in FILES else base


@cache
def imports_of(module):
    """The modules of this package that a module imports, when it is loaded or later."""
    found = set(imported_names(module, ast.parse(FILES[module].read_text())))
    return frozenset(found & FILES.keys() - {module})


class TestLevels:
    @pytest.mark.parametrize("module", FILES)
    def test_every_module_has_a_level(self, module):
        assert level_of(module) < len(LEVELS)

    @pytest.mark.parametrize("name", [name for names in LEVELS for name in names])
    def test_every_level_is_of_modules_that_exist(self, name):
        assert f"skerch_ooc.{name}" in FILES

    @pytest.mark.parametrize("module", FILES)
    def test_a_module_imports_nothing_from_above(self, module):
        above = [name for name in imports_of(module) if level_of(name) > level_of(module)]
        assert above == []

    def test_no_imports_go_in_a_circle(self):
        order = graphlib.TopologicalSorter({module: imports_of(module) for module in FILES})
        order.prepare()  # Raises an error that shows the circle.
        assert order.is_active()

    def test_the_command_line_reaches_down_to_the_errors(self):
        # Guards the reading of imports above: were it blind, all these tests would pass.
        reached, new = set(), {"skerch_ooc.__main__"}
        while new:
            reached |= new
            new = {name for module in new for name in imports_of(module)} - reached
        assert {"skerch_ooc.cli", "skerch_ooc.pipeline", "skerch_ooc.errors"} <= reached


SPEC = """
measurements = 20
[operator]
factory = "file.py:make"
shape = [200, 200]
[sketch]
block = 10
"""

COMMAND = "from skerch_ooc.cli import run_command_line as run; "
PLAN = COMMAND + "assert run(['plan', 'spec.toml', '--run', 'run']) == 0; "
LIGHT = {
    "importing the package": "import skerch_ooc; ",
    "importing rundir": "import skerch_ooc.rundir; ",
    "importing status": "import skerch_ooc.status; ",
    "--help": COMMAND + "assert run(['--help']) == 0; ",
    "plan with a shape": PLAN,
    "status": PLAN + "assert run(['status', 'run']) == 0; ",
    "submit": PLAN + "assert run(['submit', 'run', '--dry-run', '--max-array-size', '9']) == 0; ",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The top-level modules that a process has loaded after some statements."""

    @cache
    def loaded_after(code):
        folder = tmp_path_factory.mktemp("light")
        (folder / "spec.toml").write_text(SPEC)
        (folder / "file.py").write_text("")
        code += "import sys; print('\\n'.join(sys.modules))"
        finished = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
        return {line.partition(".")[0] for line in finished.stdout.splitlines()}

    return loaded_after


class TestLightness:
    @pytest.mark.parametrize("heavy", ["torch", "dask", "distributed"])
    @pytest.mark.parametrize("what", LIGHT)
    def test_does_not_load(self, what, heavy, loaded):
        assert heavy not in loaded(LIGHT[what])

    @pytest.mark.parametrize("heavy", ["torch", "dask", "distributed"])
    def test_what_is_heavy_would_be_seen(self, heavy, loaded):
        assert heavy in loaded("import torch, dask, distributed; ")
