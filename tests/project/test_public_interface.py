"""What users may import keeps its names and signatures, whatever moves inside."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import skerch_ooc as ooc

PINNED = Path(__file__).parent.parent / "golden" / "interface.json"

OPERATOR_MODULES = ("curvature", "synthetic", "matrix", "terms")
"""Modules of operators that factories import by name."""


def described(thing):
    """Signatures of a function, or of a class and what it offers."""
    if not inspect.isclass(thing):
        return str(inspect.signature(thing)) if callable(thing) else repr(thing)
    members = {"": signature_of(thing)}
    for name, member in inspect.getmembers(thing):
        if name.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        if is_of_sklearn(member):
            continue
        members[name] = "property" if isinstance(member, property) else signature_of(member)
    return members


def is_of_sklearn(member):
    """Whether a base class of scikit-learn brings it, whose version decides what it takes."""
    module = getattr(member, "__module__", None) or ""
    made_by_it = getattr(member, "__name__", "").endswith("_request")
    return module.startswith("sklearn.") or made_by_it


def signature_of(thing):
    try:
        return str(inspect.signature(thing))
    except ValueError:
        return "(...)"


def interface():
    """All public names and what they take."""
    found = {f"skerch_ooc.{name}": described(getattr(ooc, name)) for name in ooc.__all__}
    for short in OPERATOR_MODULES:
        module = importlib.import_module(f"skerch_ooc.operators.{short}")
        for name, thing in vars(module).items():
            if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__:
                found[f"{module.__name__}.{name}"] = described(thing)
    for group in ("skerch_ooc.operators", "console_scripts"):
        for entry in entry_points(group=group):
            if entry.value.startswith("skerch_ooc."):
                found[f"{group}: {entry.name}"] = entry.value
    return json.loads(json.dumps(found))


EXPECTED = json.loads(PINNED.read_text()) if PINNED.exists() else {}


@pytest.fixture(scope="module")
def found():
    return interface()


def test_no_public_name_is_new_or_gone(found):
    assert found.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_public_name_takes_what_it_took(name, found):
    assert found[name] == EXPECTED[name]


def modules():
    """All modules of the package, but for the one that is run as a command."""
    names = [found.name for found in pkgutil.walk_packages(ooc.__path__, "skerch_ooc.")]
    return [name for name in names if not name.endswith("__main__")]


IMPORT_ALL = f"""
import importlib, json, sys
import skerch_ooc as ooc
for name in {modules()!r}:
    importlib.import_module(name)
kinds = {{name: type(getattr(ooc, name)).__name__ for name in ooc.__all__}}
print(json.dumps(kinds))
"""


@pytest.fixture(scope="module")
def kinds_after_all_imports():
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:`torch.jit:DeprecationWarning", "-c",
         IMPORT_ALL], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(finished.stdout)


@pytest.mark.parametrize("name", ooc.__all__)
def test_public_name_is_no_module_once_all_modules_are_imported(name, kinds_after_all_imports):
    assert kinds_after_all_imports[name] != "module"


def test_completion_offers_the_public_names():
    assert set(ooc.__all__) <= set(dir(ooc))


if __name__ == "__main__":
    PINNED.write_text(json.dumps(interface(), indent=1, sort_keys=True) + "\n")
