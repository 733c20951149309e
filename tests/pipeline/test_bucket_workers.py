"""Workers that share a bucket with the client, and nothing else: no folder, no factory's file.

Each worker is a process with a mount namespace of its own, in which an empty file system lies over
the folder of the test.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from clusters import DASK, cluster_in, in_own_view, needs_own_views, without_package
from contents import run_contents
from distributed import Client
from object_servers import KEY, SECRET, free_port

import skerch_ooc as ooc
from skerch_ooc.base.places import place
from skerch_ooc.base.private_names import is_private
from skerch_ooc.executors.sight import Sights
from skerch_ooc.stages.measure.missing import missing_tasks
from skerch_ooc.stages.measure.task import perform
from skerch_ooc.store.sketch import Round

pytestmark = pytest.mark.thorough

FACTORY = """
    import torch

    def make(n, shift=0.0):
        values = 0.9 ** torch.arange(n, dtype=torch.float64) + shift
        return torch.diag(values)
"""

SPARSE = """
    import numpy as np, scipy.sparse

    def make(n):
        return scipy.sparse.diags(0.9 ** (np.arange(n) % 400) * (1 + np.arange(n) / n))
"""
SAMPLES = """
    import numpy as np

    def make():
        return np.random.default_rng(4).normal(size=(200, 9)) * 0.7 ** np.arange(9)
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


@contextlib.contextmanager
def workers_apart(hidden, *environments, command=DASK):
    """Workers with these environments, to which a folder is empty; each has a temporary one."""
    needs_own_views()
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder, cluster_in(Path(folder)) as made:
        made.start_scheduler()
        own = made.folder / "own"
        own.mkdir()
        mounts = " && ".join(f"mount -t tmpfs none {path}" for path in (hidden, own))
        for one in environments:
            made.start_worker((*in_own_view(mounts), *command), **({"TMPDIR": str(own)} | one))
        with Client(scheduler_file=str(made.file), set_as_default=False) as client:
            client.wait_for_workers(len(environments), timeout=60)
        yield made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, object_server):
    """Two workers that find the bucket."""
    known = object_server.environment | {"SKERCH_OOC_FILE_WAIT": "20"}
    with workers_apart(tmp_path_factory.getbasetemp(), known, known) as made:
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
    by = {receipt.get("by", "") for receipt in run.receipts() if receipt["stage"] == "measure"}
    assert all(one.startswith("worker tcp://") for one in by)


def run_to_the_end(table, where, **with_):
    run = ooc.run(ooc.Spec.from_table(table), where, **with_)
    ooc.assess(ooc.open_run(where))
    return run


@pytest.mark.parametrize(("kind", "vectors"), [("eigh", "implicit"), ("svd", "stored")])
@pytest.mark.parametrize("method", ["nystrom", "singlepass", "oversampled", "hmt", "krylov"])
def test_run_of_workers_that_share_only_a_bucket_has_the_files_of_a_serial_one(
    apart, bucket, kind, method, vectors
):
    wanted, recovery = {"measurements": 16}, {"method": method, "vectors": vectors}
    if method == "krylov":
        wanted, recovery = {"rounds": 3, "round_width": 6}, {"method": method, "rank": 4}
    table = {
        "kind": kind, "seed": 2, **wanted,
        "operator": {"factory": str(apart.folder / "factory.py:make"), "args": {"n": 9000}},
        "sketch": {"test_measurements": 4, "block": 4},
        "recovery": recovery,
    }  # fmt: skip
    apart.write("factory.py", SPARSE)
    run_to_the_end(table, bucket, executor=apart.executor)
    run_to_the_end(table, apart.folder / "run")
    assert run_contents(place(bucket)) == run_contents(apart.folder / "run")


def test_nothing_private_is_left_in_the_bucket(apart, bucket):
    run = apart.planned(bucket)
    finished(run, executor=apart.executor)
    names = place(bucket).store.keys(place(bucket).key)
    assert not [name for name in names if is_private(name.rpartition("/")[2])]


def test_worker_that_lacks_what_lies_beside_the_file_names_it(apart, bucket):
    apart.write("beside.py", "rate = 0.9")
    apart.write("factory.py", "from beside import rate" + FACTORY.replace("\n    ", "\n"))
    run = apart.planned(bucket)
    with pytest.raises(ooc.OperatorError, match=r"No module named 'beside'.*only its own file"):
        ooc.measure(run, executor=apart.executor)


@pytest.mark.parametrize("method", ["gram", "krylov"])
def test_components_are_shared_by_workers(apart, bucket, tmp_path_factory, method):
    data = np.random.default_rng(2).normal(size=(300, 12)) * 0.7 ** np.arange(12)
    with tempfile.TemporaryDirectory(prefix="data-") as folder:  # Seen by all.
        np.save(Path(folder) / "samples.npy", data)
        path = str(Path(folder) / "samples.npy")
        there = ooc.PCA(3, method=method, run_dir=bucket, executor=apart.executor).fit(path)
        here = ooc.PCA(3, method=method, run_dir=apart.folder / "pca").fit(path)
    np.testing.assert_allclose(there.components_, here.components_, atol=1e-12)


def test_samples_of_a_function_in_a_file_are_shared_by_workers(apart, bucket):
    apart.write("samples.py", SAMPLES)
    spec = apart.folder / "samples.toml"
    spec.write_text('kind = "svd"\nmeasurements = 4\n[operator]\nfactory = "samples.py:make"\n')
    there = ooc.PCA(3, method="gram", run_dir=bucket, executor=apart.executor).fit(spec)
    here = ooc.PCA(3, method="gram", run_dir=apart.folder / "pca").fit(spec)
    np.testing.assert_array_equal(there.components_, here.components_)


@pytest.mark.parametrize(
    ("command", "port", "why"),
    [
        (DASK, free_port, "error sending request"),
        (without_package("obstore"), None, "takes obstore"),
    ],
)
def test_worker_that_does_not_find_the_bucket_is_left_out_and_named(
    object_server, bucket, tmp_path_factory, tmp_path, monkeypatch, command, port, why
):
    known = object_server.environment | {"SKERCH_OOC_FILE_WAIT": "2"}
    if port is not None:
        known["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port()}"
    with workers_apart(tmp_path_factory.getbasetemp(), known, command=command) as made:
        alone = Apart(tmp_path, made)
        alone.write("factory.py", FACTORY)
        run = alone.planned(bucket)
        monkeypatch.setenv("SKERCH_OOC_FILE_WAIT", "2")
        with pytest.raises(ooc.IncompleteError, match=f"no worker sees s3:.*{why}.*endp") as told:
            ooc.measure(run, executor=alone.executor)
    assert "\n" not in str(told.value)
    assert SECRET not in str(told.value)
    assert KEY not in str(told.value)


def test_credentials_are_not_sent_to_workers(apart, bucket):
    """They see what this process has not, and the other way round."""
    run = apart.planned(bucket)
    sent = missing_tasks(Round(run), "cpu", 1).with_factories()
    with Sights() as sights:
        sight = sights.of(next(iter(sent)))
        payload = pickle.dumps((perform, list(sent), sight.proof()))
    assert KEY.encode() not in payload
    assert SECRET.encode() not in payload
