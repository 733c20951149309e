"""What is published holds what it should, says what it is, and completes what is typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

import skerch_ooc

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MADE = {
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    "build",
    "runs",
}


def files_below(folder: str) -> set[str]:
    """All files that somebody wrote, relative to the root."""
    paths = (ROOT / folder).rglob("*")
    relative = (path.relative_to(ROOT) for path in paths if path.is_file())
    return {path.as_posix() for path in relative if not MADE.intersection(path.parts)}


def build(source: Path, target: Path, *options: str) -> None:
    """Builds without a network: the backend is one of the test's own packages."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *options]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    target = tmp_path_factory.mktemp("wheel")
    build(ROOT, target, "-t", "wheel")
    (path,) = target.iterdir()
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The folder that an sdist unpacks to."""
    target = tmp_path_factory.mktemp("sdist")
    build(ROOT, target, "-t", "sdist")
    (path,) = target.iterdir()
    with tarfile.open(path) as archive:
        # Pythons before 3.11.4 know no filter.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(target, **safely)
    return target / path.name.removesuffix(".tar.gz")


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files_below("skerch_ooc")
    assert {"skerch_ooc/py.typed", "skerch_ooc/executors/slurm/templates/dask.sbatch"} <= held


def test_every_folder_of_modules_is_a_package():
    folders = {Path(name).parent for name in files_below("skerch_ooc") if name.endswith(".py")}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_wheel_says_what_it_is(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = wheel.read(name).decode()
    assert f"\nVersion: {skerch_ooc.__version__}\n" in metadata
    assert f"\nRequires-Python: {PROJECT['requires-python']}\n" in metadata
    assert "\nClassifier: Typing :: Typed\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n" in metadata


@pytest.mark.parametrize("folder", ["skerch_ooc", "tests", "workflows", "docs", "cluster", ".ci"])
def test_sdist_holds_what_tests_and_docs_need(unpacked, folder):
    missing = [name for name in files_below(folder) if not (unpacked / name).exists()]
    assert missing == []


def test_sdist_holds_no_more_than_the_repository(unpacked):
    names = {path.name for path in unpacked.iterdir()}
    assert names == {
        ".ci", ".gitignore", "PKG-INFO", "README.md", "cluster", "docs", "pyproject.toml",
        "skerch_ooc", "tests", "workflows",
    }  # fmt: skip


def test_wheel_of_an_sdist_is_that_of_the_repository(wheel, unpacked, tmp_path):
    build(unpacked, tmp_path, "-t", "wheel")
    (path,) = tmp_path.iterdir()
    with zipfile.ZipFile(path) as again:
        assert [(each.filename, each.CRC) for each in again.infolist()] == [
            (each.filename, each.CRC) for each in wheel.infolist()
        ]


@pytest.mark.parametrize("extra", [*PROJECT["optional-dependencies"]])
def test_extra_is_described(extra):
    assert f"`{extra}`" in (ROOT / "docs" / "installing.md").read_text()


@pytest.mark.parametrize("name", [*PROJECT["entry-points"]["skerch_ooc.operators"]])
def test_registered_operator_is_found_where_it_is_said_to_be(name):
    (point,) = entry_points(group="skerch_ooc.operators", name=name)
    assert point.value == PROJECT["entry-points"]["skerch_ooc.operators"][name]
    assert callable(point.load())


def test_version_is_printed(ooc_command):
    done = ooc_command("--version")
    assert (done.returncode, done.stdout) == (0, f"skerch-ooc, version {skerch_ooc.__version__}\n")


def test_changelog_begins_with_this_version_or_what_is_unreleased():
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "changelog.md").read_text(), re.M)
    assert headings[0].startswith(("Unreleased", skerch_ooc.__version__))
    assert any(heading.startswith(skerch_ooc.__version__) for heading in headings)


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "docs" / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert citation["version"] == skerch_ooc.__version__
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]


def completions(typed: str, *options: str) -> subprocess.CompletedProcess:
    """What the shell's completion of a line asks the command for."""
    environment = os.environ | {
        "_SKERCH_OOC_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    return subprocess.run(
        [sys.executable, *options, "-c", "import skerch_ooc.__main__ as m; m.main()"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("skerch-ooc re", "plain,recover\nplain,report\n"),
        ("skerch-ooc run --mem", "plain,--memory\n"),
        ("skerch-ooc run he", "file,he\n"),
    ],
)
def test_shells_complete(typed, expected):
    done = completions(typed)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_completion_loads_neither_torch_nor_dask():
    done = completions("skerch-ooc run --mem", "-X", "importtime")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in loaded
    assert loaded.isdisjoint({"torch", "dask", "distributed", "numpy"})


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_each_shell_is_described(ooc_command, monkeypatch, shell):
    monkeypatch.setenv("_SKERCH_OOC_COMPLETE", f"{shell}_source")
    assert "_skerch_ooc_completion" in ooc_command().stdout
    assert f"_SKERCH_OOC_COMPLETE={shell}_source" in (ROOT / "docs" / "installing.md").read_text()
