"""Workers that share a bucket with the client, and nothing else: no folder, no factory's file.

Each worker is a process with a mount namespace of its own, in which an empty file system lies over
the folder of the test.
"""

from __future__ import annotations

import json
import tempfile
import textwrap
from pathlib import Path

import pytest
from clusters import DASK, cluster_in, in_own_view, needs_own_views
from contents import run_contents
from distributed import Client

import skerch_ooc as ooc
from skerch_ooc.base.places import place

pytestmark = pytest.mark.thorough

FACTORY = """
    import torch

    def make(n, shift=0.0):
        values = 0.9 ** torch.arange(n, dtype=torch.float64) + shift
        return torch.diag(values)
"""


class Apart:
    """A folder with a spec, and a cluster of workers that see nothing of it."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        self.executor = ooc.Dask(cluster.file)

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def spec(self, factory="factory.py:make", **args):
        return {
            "kind": "eigh", "measurements": 12, "seed": 1,
            "operator": {"factory": str(factory), "args": {"n": 60} | args},
            "sketch": {"test_measurements": 4, "block": 4},
        }  # fmt: skip

    def planned(self, bucket, factory="factory.py:make", **args):
        path = self.folder / "spec.toml"
        path.write_text(toml_of(self.spec(factory, **args)))
        return ooc.plan(path, bucket)


def toml_of(table, name=""):
    lines = [f"{key} = {json.dumps(v)}" for key, v in table.items() if not isinstance(v, dict)]
    for key, inner in table.items():
        if isinstance(inner, dict):
            whole = f"{name}{key}"
            lines += [f"[{whole}]", toml_of(inner, f"{whole}.")]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, object_server):
    """Two workers, to which the folders of the tests are empty; each has its own temporary one."""
    needs_own_views()
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder, cluster_in(Path(folder)) as made:
        made.start_scheduler()
        own = made.folder / "own"
        own.mkdir()
        mounts = [f"mount -t tmpfs none {path}" for path in (tmp_path_factory.getbasetemp(), own)]
        for _ in range(2):
            made.start_worker(
                (*in_own_view(" && ".join(mounts)), *DASK), TMPDIR=str(own),
                SKERCH_OOC_FILE_WAIT="20", **object_server.environment,
            )  # fmt: skip
        with Client(scheduler_file=str(made.file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield made


@pytest.fixture
def apart(tmp_path, cluster):
    found = Apart(tmp_path, cluster)
    found.write("factory.py", FACTORY)
    return found


def finished(run, **with_):
    ooc.measure(run, **with_)
    ooc.merge(run, **with_)
    return ooc.recover(run, **with_)


def test_workers_that_share_only_a_bucket_have_the_file_of_the_factory_from_their_tasks(
    apart, bucket, tmp_path
):
    run = apart.planned(bucket)
    finished(run, executor=apart.executor)
    here = ooc.plan(tmp_path / "spec.toml", tmp_path / "run")
    finished(here)
    assert run_contents(place(bucket)) == run_contents(tmp_path / "run")
