"""Recipes for containers and Kubernetes: they agree with one another, with the project and Dask.

Where ``buildah`` is installed, and ``SKERCH_OOC_BASE_IMAGE`` names an image of its store that has
Python 3.11, the container file is built, and does the README's first job (``-m soak``). Handed on
are ``PIP_EXTRA_INDEX_URL``, ``PIP_FIND_LINKS`` and ``PIP_CERT``; folders that these name are
mounted where ``SKERCH_OOC_BUILD_MOUNTS`` lists them (``/folder:/folder:ro``, by spaces).
``SKERCH_OOC_BUILDAH`` is the command with options for the place of its store.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import skerch_ooc

ROOT = Path(__file__).resolve().parent.parent.parent
CONTAINER, KUBERNETES = ROOT / "cluster/container", ROOT / "cluster/kubernetes"
IMAGE = f"registry.example.org/skerch-ooc:{skerch_ooc.__version__}"
LOCKS = ("cpu.lock", "cuda.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("curvature", "matrices", "sklearn")
PYTHON = "3.11"


def pinned(lock: str) -> dict[str, Version]:
    """The version of each package in a lock."""
    found = {}
    for line in (CONTAINER / lock).read_text().splitlines():
        name, _, version = line.partition("==")
        assert name not in found
        found[name] = Version(version)
    return found


def steps() -> list[tuple[str, list[str]]]:
    """The instructions of the container file, with their words."""
    text = re.sub(r"\\\n", " ", (CONTAINER / "Containerfile").read_text())
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return [(word, rest) for word, *rest in lines]


def defaults() -> dict[str, str]:
    """The arguments of the container file that have a default."""
    stated = (rest[0].partition("=") for word, rest in steps() if word == "ARG")
    return {name: value for name, equals, value in stated if equals}


def sections() -> dict[str, list[str]]:
    """The sections of the Apptainer definition, with their lines."""
    found: dict[str, list[str]] = {"": []}
    here = ""
    for line in (CONTAINER / "skerch_ooc.def").read_text().splitlines():
        if line.startswith("%"):
            here = line[1:]
            found[here] = []
        elif line and not line.startswith("#"):
            found[here].append(line.strip())
    return found


def resolved(name: str, values: dict[str, str]) -> str:
    """A name in which arguments stand, as ``${NAME}`` or ``{{ NAME }}``."""
    return re.sub(r"\$\{(\w+)\}|\{\{ (\w+) \}\}", lambda m: values[m[1] or m[2]], name)


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_has_all_that_the_project_asks_for(lock):
    wanted = [*PROJECT["dependencies"]]
    for extra in EXTRAS:
        wanted += PROJECT["optional-dependencies"][extra]
    have = pinned(lock)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(have[requirement.name.lower()]), requirement


def test_locks_differ_in_what_brings_cuda_alone():
    cpu, cuda = map(pinned, LOCKS)
    assert cpu.pop("torch").base_version == str(cuda["torch"])
    assert cpu.items() <= cuda.items()
    more = cuda.keys() - cpu.keys()
    assert all(name.startswith(("nvidia-", "cuda-", "triton", "torch")) for name in more)


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_keep_to_the_versions_that_the_tests_pass_with(lock):
    if not (ROOT / ".ci/constraints.txt").exists():
        pytest.skip("an installation without the folder of CI")
    constraints = map(Requirement, (ROOT / ".ci/constraints.txt").read_text().splitlines())
    assert all(one.specifier.contains(pinned(lock)[one.name]) for one in constraints)


def test_container_file_copies_what_there_is():
    copied = [rest for word, rest in steps() if word == "COPY" and not rest[0].startswith("--")]
    sources = [resolved(name, defaults()) for *names, _ in copied for name in names]
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []


def test_container_file_ends_as_a_user_in_the_environment_that_was_made():
    words = dict(steps())
    assert words["USER"] == ["1000:1000"]
    assert words["ENV"][0].startswith("PATH=/opt/skerch_ooc/bin:")
    assert ["--from=build", "/opt/skerch_ooc", "/opt/skerch_ooc"] in [
        rest for word, rest in steps() if word == "COPY"
    ]


def test_apptainer_makes_what_the_container_file_makes():
    (run,) = [" ".join(rest) for word, rest in steps() if word == "RUN"]
    stated = dict(line.split("=", 1) for line in sections()["arguments"])
    assert {stated["BASE"], stated["LOCK"], stated["INDEX"]} == set(defaults().values())
    assert resolved(run, defaults()) in [resolved(line, stated) for line in sections()["post"]]


def test_apptainer_copies_what_there_is():
    stated = dict(line.split("=", 1) for line in sections()["arguments"])
    pairs = [resolved(line, stated).split() for line in sections()["files"]]
    assert [source for source, _ in pairs if not (ROOT / source).exists()] == []
    copied = [resolved(name, defaults()) for word, rest in steps() if word == "COPY"
              for name in rest[:-1] if not rest[0].startswith("--")]  # fmt: skip
    assert {source for source, _ in pairs} == set(copied)


@pytest.mark.parametrize("script", ["install.sh", "lock.sh"])
def test_scripts_are_plain_shell(script):
    subprocess.run(["sh", "-n", CONTAINER / script], check=True)


def test_locks_are_made_for_the_python_of_the_base():
    assert f"--python-version {PYTHON} " in (CONTAINER / "lock.sh").read_text()
    assert f"/python:{PYTHON}-" in defaults()["BASE"]


def images_in(value: object) -> set[str]:
    """All images that a manifest, or values of a chart, name."""
    if isinstance(value, dict):
        image = value.get("image")
        own = {f"{image['repository']}:{image['tag']}"} if isinstance(image, dict) else {image}
        return (own - {None}).union(*map(images_in, value.values()))
    return set().union(*map(images_in, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("file", ["dask-cluster.yaml", "values.yaml"])
def test_manifests_name_the_image_that_is_built(file):
    assert images_in(yaml.safe_load((KUBERNETES / file).read_text())) == {f"{IMAGE}-cpu"}


@pytest.mark.parametrize("path", [*CONTAINER.iterdir(), *KUBERNETES.iterdir()], ids=str)
def test_no_other_image_is_named(path):
    named = re.findall(r"registry\.example\.org/[\w./:-]*\w", path.read_text())
    assert set(named) <= {IMAGE.partition(":")[0], f"{IMAGE}-cpu", f"{IMAGE}-cuda"}


def pod(part: str):
    cluster = yaml.safe_load((KUBERNETES / "dask-cluster.yaml").read_text())
    return cluster["spec"][part]["spec"]


def chart(part: str):
    return yaml.safe_load((KUBERNETES / "values.yaml").read_text())[part]


@pytest.mark.parametrize("part", ["scheduler", "worker"])
def test_dask_knows_the_options_of_the_pods(part):
    command = importlib.import_module(f"distributed.cli.dask_{part}").main
    (container,) = pod(part)["containers"]
    assert container["args"][:2] == ["dask", part]
    known = {option for parameter in command.params for option in parameter.opts}
    given = {word for word in container["args"] if word.startswith("--")}
    given |= {word for word in chart(part).get("extraArgs", []) if word.startswith("--")}
    assert given <= known


def test_workers_take_one_task_at_a_time_and_mind_no_memory():
    (container,) = pod("worker")["containers"]
    words = container["args"]
    assert words[words.index("--nthreads") + 1] == "1" == str(chart("worker")["threads_per_worker"])
    for given in (words, chart("worker")["extraArgs"]):
        assert given[given.index("--memory-limit") + 1] == "0"


def test_workers_see_the_claim_of_the_runs_under_one_path():
    claim = yaml.safe_load((KUBERNETES / "runs.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (container,) = pod("worker")["containers"]
    for volumes, mounts in (
        (pod("worker")["volumes"], container["volumeMounts"]),
        (chart("worker")["mounts"]["volumes"], chart("worker")["mounts"]["volumeMounts"]),
    ):
        assert [one["persistentVolumeClaim"]["claimName"] for one in volumes] == ["runs"]
        assert mounts == [{"name": volumes[0]["name"], "mountPath": "/runs"}]
    assert dict(steps())["WORKDIR"] == ["/runs"]


def test_threads_and_memory_of_the_example_fit_its_pods():
    program = (KUBERNETES / "kube_cluster.py").read_text()
    (container,) = pod("worker")["containers"]
    threads = re.search(r"^THREADS = (\d+)$", program, re.M)[1]
    memory = re.search(r'^MEMORY = "(\d+)GiB"$', program, re.M)[1]
    limits = container["resources"]["limits"]
    assert [threads, {"name": "OMP_NUM_THREADS", "value": threads}] == [
        limits["cpu"], *container["env"]
    ]  # fmt: skip
    assert int(memory) < int(limits["memory"].removesuffix("Gi"))


@pytest.mark.soak
@pytest.mark.skipif(
    shutil.which("buildah") is None or "SKERCH_OOC_BASE_IMAGE" not in os.environ,
    reason="needs buildah, and the name of a base image in its store",
)
def test_image_is_built_and_does_the_first_job(tmp_path):
    handed_on = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT")
    given = {"BASE": os.environ["SKERCH_OOC_BASE_IMAGE"]}
    given |= {name: os.environ[name] for name in handed_on if name in os.environ}
    mounts = shlex.split(os.environ.get("SKERCH_OOC_BUILD_MOUNTS", ""))
    buildah = shlex.split(os.environ.get("SKERCH_OOC_BUILDAH", "buildah"))
    build = [*buildah, "build", "--isolation", "chroot", "-t", "skerch-ooc:test"]
    build += ["-f", "cluster/container/Containerfile"]
    build += [f"--build-arg={name}={value}" for name, value in given.items()]
    subprocess.run([*build, *(f"--volume={one}" for one in mounts), "."], cwd=ROOT, check=True)
    made = [*buildah, "from", "skerch-ooc:test"]
    name = subprocess.run(made, check=True, capture_output=True, text=True).stdout.strip()
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows")
    tmp_path.chmod(0o777)
    job = ["skerch-ooc", "run", "workflows/digits_hessian.toml", "--run", "digits"]
    inside = [*buildah, "run", "--isolation", "chroot", f"--volume={tmp_path}:/runs", name, "--"]
    try:
        done = subprocess.run([*inside, *job], check=False, capture_output=True, text=True)
    finally:
        subprocess.run([*buildah, "rm", name], check=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "156 eigenvalues" in done.stdout
