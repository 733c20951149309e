"""A run directory from a stranger: verbs that only look at it import, start and unpickle nothing.

Each command runs in a process of its own, forked from one with all libraries loaded, in which
Python's audit events are watched: files that are compiled or executed, processes, sockets, pickles.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from specs import write_spec

import skerch_ooc
from faults.hostile import command, designed, sealed, snapshot, spelt
from skerch_ooc.cli.main import cli

PACKAGE = Path(skerch_ooc.__file__).resolve().parent

LOOKING = [
    verb
    for verb in (
        ("status",),
        ("status", "--json"),
        ("merge",),
        ("recover",),
        ("assess",),
        ("estimates",),
        ("verify",),
        ("report",),
        ("clean",),
        ("submit", "--dry-run", "--max-array-size", "9"),
    )
    if verb[0] in cli.commands
]
"""Verbs that never import the operator. Others do by design: plan, probe, measure, run, extend,
update, task."""

# The hook is the last thing that is set up: what is legitimate is said by name.
_WATCHED = """
import json, os, sys

import skerch_ooc.cli.main, skerch_ooc.pipeline.steps, skerch_ooc.results.lowrank
import skerch_ooc.cli.tables

libraries = {libraries!r}
seen = []

def note(event, arguments):
    if event in ("pickle.find_class", "marshal.load", "os.exec", "os.system", "os.posix_spawn",
                 "os.spawn", "subprocess.Popen", "socket.connect", "socket.bind",
                 "socket.getaddrinfo", "socket.sendto", "ctypes.dlopen"):
        seen.append((event, str(arguments)[:200]))
    elif event == "import":
        # Where a module was found; events without a file name are mere questions.
        if arguments[1] and not str(arguments[1]).startswith(libraries):
            seen.append((event, str(arguments[:2])[:200]))
    elif event == "exec":
        name = getattr(arguments[0], "co_filename", "?")
        # Dataclasses and named tuples execute text that they have written themselves.
        if not name.startswith((*libraries, "<string>", "<frozen", "<__array_function__")):
            seen.append((event, name))

def run(folder, *words):
    said = os.open(folder + ".said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    sys.path[:] = [folder, *sys.path]
    sys.addaudithook(note)
    code = skerch_ooc.cli.main.run_command_line(words)
    found = [one for one in seen if "dlopen" not in one[0] or "evil" in one[1]]
    print("SEEN", found, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

# All at once: some of them wait for files that might be seen late.
pids = []
for command in json.loads(sys.argv[1]):
    pid = os.fork()
    if pid == 0:
        run(*command)
    pids.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
print(json.dumps(codes))
"""

EVIL = """
import pathlib
pathlib.Path({mark!r}).write_text("executed")

def make(**_):
    pathlib.Path({mark!r}).write_text("called")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    spec = write_spec(
        folder,
        "matrix",
        20,
        operator={"args": {"n": 40}},
        sketch={"test_measurements": 12, "block": 8},
    )
    assert command(folder, "run", spec, "--run", "run").code == 0
    return folder / "run"


@pytest.fixture
def stranger(tmp_path, finished):
    """Makes a run whose plan names a factory that leaves a mark wherever it is found."""

    def make(factory, folder=".", name="one"):
        home, mark = tmp_path / name / "home", tmp_path / name / "mark"
        home.mkdir(parents=True)
        run = home / "run"
        shutil.copytree(finished, run)
        evil = textwrap.dedent(EVIL).format(mark=str(mark))
        for place in (home, run, run / "logs", home.parent):
            for name in ("evil.py", "sitecustomize.py", "numpy.py", "torch.py", "h5py.py"):
                (place / name).write_text(evil)
        (home / "decaying.py").write_text(evil)
        slurm = run / "logs/slurm/0001"
        slurm.mkdir(parents=True)
        (slurm / "measure.sh").write_text(f"#!/bin/sh\ntouch {mark}\n")
        (slurm / "measure.sh").chmod(0o755)
        (slurm / "jobs.jsonl").write_text('{"job":"1;touch x","stage":"../x","indices":[0]}\n')
        (run / "logs/places.json").write_text(json.dumps({"folder": str(home)}))
        _name_factory(run, factory, folder)
        return home, mark

    return make


def _name_factory(run, factory, folder):
    """Has the amendment add a summand with the factory; the plan's own stays what it was."""
    path = run / "plan.d/0001.json"
    amendment = json.loads(path.read_bytes())
    source = {"factory": factory, "args": {}, "sha256": None, "folder": folder}
    amendment["parts"].append({"number": 1, "scale": 1.0, "summand": 1, "operator": source})
    amendment |= {"folder": folder}
    path.write_bytes(spelt(sealed(amendment)) + b"\n")


FACTORIES = {
    "file beside the run": ("evil.py:make", ".."),
    "file in the run": ("evil.py:make", "."),
    "module": ("evil:make", ".."),
    "registered name": ("decaying", ".."),
}


@pytest.mark.parametrize(
    "factory",
    [
        name if number == 0 else pytest.param(name, marks=pytest.mark.soak)
        for number, name in enumerate(FACTORIES)
    ],
)
def test_looking_at_a_run_executes_nothing_of_it(stranger, tally, factory):
    strange = [stranger(*FACTORIES[factory], " ".join(verb)) for verb in LOOKING]
    wrong = {}
    ended = _watched(*((home, verb) for (home, _), verb in zip(strange, LOOKING, strict=True)))
    for (_, mark), verb, (code, said) in zip(strange, LOOKING, ended, strict=True):
        with tally.fault("stranger's run", verb[0]) as attempt:
            if code in (0, 2, 3, 4, 5) and "SEEN []" in said and not mark.exists():
                attempt.ended("refused" if code else "harmless")
            else:
                wrong[verb] = code, said
    assert wrong == {}


@pytest.mark.thorough
def test_looking_at_an_untouched_run_executes_nothing_of_it(tmp_path, finished, tally):
    wrong = {}
    homes = [tmp_path / " ".join(verb) for verb in LOOKING]
    for home in homes:
        shutil.copytree(finished, home / "run")
    for verb, (code, said) in zip(
        LOOKING, _watched(*zip(homes, LOOKING, strict=True)), strict=True
    ):
        with tally.fault("stranger's run", verb[0]) as attempt:
            if code == 0 and "SEEN []" in said:
                attempt.ended("harmless")
            else:
                wrong[verb] = code, said
    assert wrong == {}


def test_what_would_be_executed_is_seen(stranger):
    # Guards the watching: were it blind, the tests above would pass.
    home, mark = stranger("evil.py:make", "..")
    ((_, said),) = _watched((home, ("measure",)))
    assert "evil.py" in said
    assert mark.exists()


def _watched(*verbs):
    """How a verb ends in each home, and what it says with what was seen."""
    libraries = (
        str(PACKAGE),
        sys.prefix,
        sys.base_prefix,
        str(Path(os.__file__).parent),
        str(Path(np.__file__).parent.parent),
    )
    calls = [[str(home), verb, "run", *options] for home, (verb, *options) in verbs]
    script = _WATCHED.replace("{libraries!r}", repr(libraries))
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, json.dumps(calls)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    said = [Path(f"{home}.said").read_text() for home, _ in verbs]
    return list(zip(json.loads(done.stdout), said, strict=True))


# What the package itself never uses.

FORBIDDEN = {"pickle", "cPickle", "shelve", "marshal", "cloudpickle", "dill", "joblib"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _uses(tree):
    """What a source imports of the forbidden, and calls that unpickle or use a shell."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name for name in names if name.partition(".")[0] in FORBIDDEN)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("torch.load", "os.system", "os.popen", "eval", "exec"):
                yield called
            for word in node.keywords:
                value = ast.unparse(word.value)
                if word.arg in ("allow_pickle", "shell") and value != "False":
                    yield f"{word.arg}={value}"


def test_no_source_unpickles_anything_or_starts_a_shell():
    wrong = {
        str(path.relative_to(PACKAGE)): uses
        for path in SOURCES
        if (uses := list(_uses(ast.parse(path.read_text()))))
    }
    assert len(SOURCES) > 100
    assert wrong == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "run(x, shell=True)",
        "eval(x)",
    ],
)
def test_forbidden_use_would_be_seen(text):
    assert list(_uses(ast.parse(text)))


def test_array_of_objects_is_refused_by_name(tmp_path, tally):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "mark",)

    np.save(tmp_path / "objects.npy", np.array([[Evil()]], dtype=object), allow_pickle=True)
    (tmp_path / "spec.toml").write_text(
        'measurements = 1\n[operator]\nfactory = "stored"\n[operator.args]\npath = "objects.npy"\n'
    )
    with tally.fault("stranger's data", ".npy of objects") as attempt:
        done = designed(tmp_path, "plan", "spec.toml", "--run", "run")
        assert (done.code, "objects.npy" in done.err) == (2, True)
        assert not (tmp_path / "mark").exists()
        attempt.ended("named")


# Slurm.

NAMES = [
    "$(touch mark)",
    "`touch mark`",
    "a'b",
    'a"b',
    "a\ntouch mark\n",
    "; touch mark",
    "-x",
    "é ü",
]


@pytest.mark.parametrize("name", NAMES)
def test_scripts_quote_the_names_of_runs(tmp_path, finished, tally, name):
    run = tmp_path / name
    shutil.copytree(finished, run)
    for path in [*run.glob("results/*"), *run.glob("sketch/*")]:
        shutil.rmtree(path)
    with tally.fault("stranger's run", "names in job scripts") as attempt:
        done = designed(tmp_path, "submit", f"./{name}", "--dry-run", "--max-array-size", "9")
        assert done.code == 0
        scripts = done.out.split("#!/usr/bin/env bash")[1:]
        assert scripts
        for script in scripts:
            # Up to where the work begins: the shell must take the name for one word.
            head = script.partition("set -euo pipefail")[0]
            ran = subprocess.run(
                ["bash", "-c", f'{head}\nprintf %s "$run"'],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
            )
            assert str(run) in ran.stdout
        assert not (tmp_path / "mark").exists()
        attempt.ended("harmless")


@pytest.mark.parametrize("job", ["1;touch mark", "1,2", "--help", "$(touch mark)", 17, ["1"]])
def test_queue_is_asked_for_numbers_of_jobs_only(tmp_path, finished, monkeypatch, tally, job):
    shutil.copytree(finished, tmp_path / "run")
    slurm = tmp_path / "run/logs/slurm/0001"
    slurm.mkdir(parents=True)
    from skerch_ooc.executors.slurm.options import JobOptions

    record = {"token": "x", "left": "", "unchanged": 0, "options": JobOptions().as_json()}
    (slurm / "submission.json").write_text(json.dumps(record))
    lines = [{"job": one, "stage": "measure", "indices": [0]} for one in ("17", job)]
    (slurm / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tools = tmp_path / "tools"
    tools.mkdir()
    asked = shlex.quote(str(tmp_path / "asked"))
    (tools / "squeue").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {asked}\n')
    (tools / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    with tally.fault("stranger's run", "numbers of jobs") as attempt:
        assert designed(tmp_path, "status", "run").code == 0
        asked = (tmp_path / "asked").read_text().splitlines()
        assert asked[-1] == "--jobs=17,17"
        assert not (tmp_path / "mark").exists()
        attempt.ended("harmless")


def test_what_dask_carries_are_names_and_numbers(finished):
    from distributed.protocol import pickle as of_distributed

    from skerch_ooc.stages.measure.task import MeasureTask

    task = MeasureTask(str(finished), 1, None, 0, (("right", 0, 8),), "cpu", 1, 0)
    carried = of_distributed.dumps(task)
    loaded = of_distributed.loads(carried)
    assert (loaded, type(loaded)) == (task, MeasureTask)
    values = vars(task).values()
    assert all(isinstance(value, str | int | tuple | None) for value in values)


def test_looking_at_a_run_changes_nothing_outside_of_it(tmp_path, finished):
    (tmp_path / "other").write_text("mine")
    shutil.copytree(finished, tmp_path / "run")
    before = snapshot(tmp_path, but=tmp_path / "run")
    for verb in LOOKING:
        designed(tmp_path, verb[0], "run", *verb[1:])
    assert snapshot(tmp_path, but=tmp_path / "run") == before
