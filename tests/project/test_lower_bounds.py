"""The oldest versions that pyproject.toml allows do what the newest do, but for torch's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOUND = re.compile(r"([A-Za-z0-9._-]+(?:\[[a-z0-9,]+\])?)>=([0-9.]+)")

WITH_EXTRAS = (
    "pipeline/test_pipeline.py", "operators/test_matrix_gallery.py",
    "operators/test_matrix_zarr.py", "operators/test_curvature.py",
    "executors/test_dask.py", "results/test_scores.py",
)  # fmt: skip
"""Tests that use much of what other packages offer."""


def wanted_by(*extras: str) -> list[str]:
    """What the project and some of its extras ask for, with what these ask of other extras."""
    found, open_ones = [*PROJECT["dependencies"]], [*extras]
    for extra in open_ones:
        for one in PROJECT["optional-dependencies"][extra]:
            if others := re.fullmatch(r"skerch_ooc\[(.*)\]", one):
                open_ones += others[1].split(",")
            found.append(one)
    return found


def lower_bounds(*extras: str) -> dict[str, str]:
    """The oldest version of each package that is asked for."""
    # torch is large, its oldest version needs old drivers: the installed one serves.
    matches = filter(None, map(BOUND.match, wanted_by(*extras)))
    found = {match[1].partition("[")[0]: match[2] for match in matches}
    return found | {"torch": version("torch").partition("+")[0]}


EXTRAS = ("bench", "matrices", "object-store", "report")
TESTERS = ("xarray", "pandas", "polars", "pytest", "pytest-xdist", "hypothesis")
"""What these tests need besides; without the server of S3, which needs newer packages itself."""


class Environment:
    """A virtual environment with the wheel, and the oldest versions of what it needs."""

    def __init__(self, folder: Path, *extras: str) -> None:
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder, "-t", "wheel"],
                       cwd=ROOT, check=True)  # fmt: skip
        (wheel,) = folder.glob("*.whl")
        bounds = lower_bounds("test") if extras else lower_bounds()
        lines = [f"{name}=={number}" for name, number in bounds.items()]
        (folder / "constraints.txt").write_text("\n".join(lines))
        venv.create(folder / "env", with_pip=True)
        self.bin, self.folder = folder / "env" / "bin", folder
        wanted = [f"{wheel}[{','.join(extras)}]", *TESTERS] if extras else [str(wheel)]
        self("pip", "install", "--quiet", "-c", "constraints.txt", *wanted)

    def __call__(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        """Runs a program of the environment, which sees nothing of the repository's package."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [self.bin / program, *arguments], cwd=cwd or self.folder, env=kept,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout


def test_every_dependency_has_a_lower_bound():
    groups = PROJECT["optional-dependencies"].values()
    named = {one for group in [PROJECT["dependencies"], *groups] for one in group}
    assert [one for one in named if ">=" not in one and not one.startswith("skerch_ooc[")] == []


def test_bounds_that_are_described_are_those_that_are_declared():
    described = dict(BOUND.findall((ROOT / "docs" / "installing.md").read_text()))
    declared = {match[1]: match[2] for match in map(BOUND.match, PROJECT["dependencies"]) if match}
    assert described == declared


@pytest.mark.soak
def test_a_run_without_extras_does_all_stages_with_the_oldest_versions(tmp_path):
    environment = Environment(tmp_path)
    spec = str(ROOT / ".ci" / "wheel" / "decaying.toml")
    for executor in (("serial",), ("dask", "--workers", "2")):
        chosen = ("--run", executor[0], "--executor", *executor, "--max-relative-error", "1e-5")
        environment("skerch-ooc", "run", spec, *chosen)
        environment("skerch-ooc", "verify", executor[0])
        environment("skerch-ooc", "report", executor[0])
        assert "all stages are done" in environment("skerch-ooc", "status", executor[0])


@pytest.mark.soak
def test_tests_pass_with_the_oldest_versions(tmp_path):
    environment = Environment(tmp_path, *EXTRAS)
    # pytest itself would add the folder of the repository to the path as a module.
    environment("pytest", "-q", "-n", "2", *(f"tests/{file}" for file in WITH_EXTRAS), cwd=ROOT)
