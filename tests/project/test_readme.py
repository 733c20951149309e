"""The README: its code runs, its tables say what the program says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from skerch_ooc.base import errors

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
SPECS = re.findall(r"```toml\n(.*?)```", README, re.S)


SMALLER = {"measurements = 400": "measurements = 60", "hidden = 96": "hidden = 12"}


@pytest.fixture(params=["small", pytest.param("as it stands", marks=pytest.mark.thorough)])
def workflows(tmp_path, request):
    """The workflows beside the code, with a smaller network to decompose by default."""
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows")
    spec = tmp_path / "workflows/digits_hessian.toml"
    text = spec.read_text()
    if request.param == "small":
        for old, new in SMALLER.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
    spec.write_text(text)


@pytest.mark.usefixtures("workflows")
@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_code_runs(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["err"].relative_error < 1e-3


@pytest.mark.parametrize("text", SPECS, ids=range(len(SPECS)))
def test_spec_is_allowed(tmp_path, text):
    from skerch_ooc.planning.spec import Spec

    (tmp_path / "spec.toml").write_text(text)
    assert Spec.from_toml(tmp_path / "spec.toml").measurements > 0


@pytest.mark.parametrize(
    "error",
    [errors.UsageError, errors.QualityError, errors.IncompleteError, errors.CorruptError],
    ids=lambda error: error.__name__,
)
def test_exit_code_is_in_the_table(error):
    assert re.search(rf"^\| {error.exit_code} \|", README, re.M)


def test_every_verb_is_in_the_table():
    from skerch_ooc.cli.main import cli

    missing = [verb for verb in cli.commands if f"`{verb} " not in README]
    assert missing == []
