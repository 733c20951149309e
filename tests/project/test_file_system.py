"""Who touches the file system: the store, ``base/files``, and what is listed here with its reason.

So that every file of a run is named, written, found and removed in one place.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import skerch_ooc

PACKAGE = Path(skerch_ooc.__file__).resolve().parent

OWNERS = (
    "store/",
    *(
        f"base/{name}.py"
        for name in (
            "disk_errors",
            "files",
            "object_cache",
            "object_client",
            "object_store",
            "places",
            "posix",
            "scratch",
            "stores",
        )
    ),
)
"""Where files are dealt with."""

METHODS = {
    "chmod", "exists", "glob", "hardlink_to", "is_dir", "is_file", "is_symlink", "iterdir",
    "lchmod", "lstat", "mkdir", "open", "read_bytes", "read_text", "readlink", "rename", "rglob",
    "rmdir", "samefile", "stat", "symlink_to", "touch", "unlink", "walk", "write_bytes",
    "write_text",
}  # fmt: skip
"""Methods of ``pathlib.Path`` that look at the disk, or change it."""

MODULES = {"fcntl", "glob", "os", "shutil", "tempfile"}
"""Modules whose functions do."""

NO_FILES = {
    "os._exit", "os.cpu_count", "os.environ.get", "os.environ.setdefault", "os.getpid", "os.getuid",
    "os.fspath", "os.path.relpath", "os.sched_getaffinity", "os.sysconf", "shutil.which",
}  # fmt: skip
"""Functions of these modules that deal with processes and machines, or with paths alone."""

OF_SYSTEM = "what the system says of this machine"
OF_SLURM = "scripts, logs and records of submissions, in a folder of their own"
OF_USER = "a file that the user names"
OF_FACTORY = "the user's factory, and the matrices that it reads"

OF_TEMPLATES = "templates that are installed with the package"
OF_NEW_SPEC = "a spec and a factory that are written for the user, where none are"
OF_TEMPORARY = "the folder of a run that was given none, which goes with its result"

ALLOWED = {
    "base/provenance.py": {".read_text": OF_SYSTEM},
    "base/resources.py": {".read_text": OF_SYSTEM},
    "cli/cluster_verbs.py": {".read_text": OF_USER},
    "executors/dask.py": {
        ".exists": OF_USER,
        ".is_file": OF_USER,
        ".read_bytes": OF_USER,
    },
    "executors/dask_local.py": {
        ".glob": OF_SYSTEM,
        "tempfile.TemporaryDirectory": "scratch of a local cluster, away from the run",
    },
    "executors/slurm/logs.py": {"open": OF_SLURM},
    "executors/slurm/queue.py": {".glob": OF_SLURM},
    "executors/slurm/records.py": {
        ".glob": OF_SLURM,
        ".mkdir": OF_SLURM,
        ".unlink": OF_SLURM,
        ".write_text": OF_SLURM,
    },
    "executors/slurm/scripts.py": {".read_text": OF_TEMPLATES},
    "operators/loading.py": {".read_bytes": OF_FACTORY},
    "operators/matrices/formats.py": {
        ".exists": OF_FACTORY,
        ".is_dir": OF_FACTORY,
        ".is_file": OF_FACTORY,
        ".iterdir": OF_FACTORY,
        ".open": OF_FACTORY,
    },
    "operators/matrices/hdf5.py": {"h5py.File": OF_FACTORY},
    "operators/matrices/places.py": {
        ".open": OF_FACTORY,
        "os.fstat": OF_FACTORY,
        "os.pread": OF_FACTORY,
        "os.preadv": OF_FACTORY,
    },
    "operators/matrices/safetensors_files.py": {".read_text": OF_FACTORY, ".stat": OF_FACTORY},
    "operators/matrices/zarr_chunks.py": {".read_bytes": OF_FACTORY},
    "operators/matrices/zarr_store.py": {
        ".is_dir": OF_FACTORY,
        ".is_file": OF_FACTORY,
        ".open": OF_FACTORY,
    },
    "pipeline/begin.py": {
        ".mkdir": OF_NEW_SPEC,
        ".read_bytes": OF_TEMPLATES,
        ".read_text": OF_TEMPLATES,
        "os.path.lexists": OF_NEW_SPEC,
    },
    "pipeline/principal/inputs.py": {".stat": OF_USER, "os.walk": OF_USER},
    "pipeline/principal/rounds.py": {
        "tempfile.TemporaryDirectory": "rounds of a fit of which nothing is kept",
    },
    "pipeline/temporary.py": {
        "shutil.rmtree": OF_TEMPORARY,
        "tempfile.mkdtemp": OF_TEMPORARY,
    },
    "planning/spec.py": {".read_bytes": OF_USER},
    "stages/measure/shipping.py": {".read_bytes": OF_FACTORY},
    "stages/measure/operands.py": {".iterdir": OF_FACTORY, ".stat": OF_FACTORY},
    "results/h5ad.py": {"h5py.File": OF_USER},
    "results/netcdf.py": {"h5py.File": OF_USER},
    "results/scores.py": {"open": OF_USER, "os.rename": OF_USER},
}
"""Who else touches the file system, and why."""

SUFFIXES = (".h5", ".json", ".jsonl", ".svg", ".html", ".tmp-")

NAMED = {
    "cli/group.py": {".html"},
    "base/private_names.py": {".tmp-"},
    "executors/slurm/records.py": {"jobs.jsonl", "submission.json"},
    "results/scores.py": {".h5"},
    "operators/matrices/formats.py": {".h5", ".safetensors.index.json"},
    "operators/matrices/safetensors_files.py": {".safetensors.index.json"},
    "operators/matrices/zarr_store.py": {"zarr.json"},
}
"""Names of files that are none of the store's."""


def called(node):
    """What a call calls, if that may touch the file system; else ``None``."""
    name = ast.unparse(node.func)
    if name in ("open", "h5py.File"):
        return name
    if name.partition(".")[0] in MODULES:
        return None if name in NO_FILES else name
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        return f".{node.func.attr}"
    return None


def calls_of(tree):
    nodes = list(ast.walk(tree))
    calls = (called(node) for node in nodes if isinstance(node, ast.Call))
    # Under another name a call of theirs would not be seen.
    taken = (f"from {node.module}" for node in nodes if isinstance(node, ast.ImportFrom)
             if node.module in MODULES)  # fmt: skip
    return {*filter(None, calls), *taken}


def docstrings_of(tree):
    nodes = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {node for node in nodes if isinstance(node, ast.Constant)}


def names_in(tree):
    """Texts in code that end like the name of a file."""
    texts = {node for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    values = {node.value for node in texts - docstrings_of(tree)}
    return {
        value
        for value in values
        if isinstance(value, str) and value.endswith(SUFFIXES) and " " not in value
    }


TREES = {
    place: ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if not (place := path.relative_to(PACKAGE).as_posix()).startswith(OWNERS)
}


def test_the_file_system_is_touched_by_the_store_and_by_what_is_listed():
    touched = {place: found for place, tree in TREES.items() if (found := calls_of(tree))}
    assert touched == {place: set(found) for place, found in ALLOWED.items() if found}


def test_files_are_named_by_the_store():
    assert {place: found for place, tree in TREES.items() if (found := names_in(tree))} == NAMED


def test_what_is_listed_is_there():
    assert ALLOWED.keys() | NAMED.keys() <= TREES.keys()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open(path)", {"open"}),
        ("with path.open() as file: file.read()", {".open"}),
        ("(folder / name).unlink(missing_ok=True)", {".unlink"}),
        ("os.path.lexists(path)", {"os.path.lexists"}),
        ("[path for path in folder.glob('*')]", {".glob"}),
        ("h5py.File(path, 'w')", {"h5py.File"}),
        ("def late():\n    import shutil\n    shutil.rmtree(path)", {"shutil.rmtree"}),
        ("from os import listdir", {"from os"}),
        ("os.getpid(); text.replace('a', 'b'); path.parent", set()),
    ],
)
def test_calls_are_seen(code, found):
    # Guards the reading above: were it blind, all these tests would pass.
    assert calls_of(ast.parse(code)) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('folder / f"draft.{name}.h5"', {".h5"}),
        ('folder.glob("sketch/*/total.h5")', {"sketch/*/total.h5"}),
        ('"""Reads eigh.h5"""\nraise Error("not in eigh.h5")', set()),
    ],
)
def test_names_are_seen(code, found):
    assert names_in(ast.parse(code)) == found
