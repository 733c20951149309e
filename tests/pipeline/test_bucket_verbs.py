"""Verbs of the command line on a run in a bucket: what they print, remove, rename and refuse."""

from __future__ import annotations

import http.server
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading

import pytest
from faulty_store import Rule
from object_servers import KEY, SECRET, free_port
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base import object_store
from skerch_ooc.base.errors import UsageError
from skerch_ooc.base.object_store import ObjectStore
from skerch_ooc.base.object_trial import require_first_wins
from skerch_ooc.base.places import place, removal
from skerch_ooc.base.private_names import private_name
from skerch_ooc.cli.main import run_command_line
from skerch_ooc.pipeline.status import status
from skerch_ooc.planning.spec import RecoverySpec
from skerch_ooc.store.inventory import remove_entries, take_inventory
from skerch_ooc.store.result_files import keep_default_result, result_path

ROUNDS = """
    run SPEC --run DIR --set recovery.method="krylov" --set recovery.rank=3
    density DIR
    extend DIR --rounds 4
    clean DIR
    clean DIR --sketch
    run --run DIR
"""
VERBS = """
    plan SPEC --run DIR
    status DIR
    measure DIR
    merge DIR
    recover DIR
    assess DIR
    status DIR --watch
    verify DIR
    estimates DIR
    clean DIR --sketch
    merge DIR
    recover DIR --method singlepass --name other
    assess DIR --name other
    report DIR
    extend DIR --measurements 40
    compare DIR DIR
    clean DIR --dry-run
    clean DIR
    update DIR --factory FACTORY --arg n=60 --scale 0.1
    clean DIR --shards
    status DIR
    verify DIR
    recover DIR --name anew
"""
LAST = "recover DIR --name anew"
"""What cannot be done without shards."""

VARYING = re.compile(
    r"\d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+|[\d.]+ (?:s|ms|us|min|h|KiB|MiB|GiB|B)\b|  +|\d{4,}$", re.M
)
"""Times, and sizes of files that hold them; and blanks of columns, as wide as the path is long."""


@pytest.fixture
def run(bucket):
    """A finished run of 20 measurements."""
    return ooc.open_run(made(bucket))


def made(url, **more):
    import torch

    ooc.eigh(torch.diag(0.8 ** torch.arange(60)), measurements=20, run_dir=url, **more)
    return url


def command(capsys, line, **words):
    parts = [words.get(part, part) for part in shlex.split(line, posix=False)]
    capsys.readouterr()
    code = run_command_line([str(part) for part in parts])
    out, err = capsys.readouterr()
    return code, out + err


def keys_of(url):
    path = place(url)
    return set(path.store.keys(path.key))


@pytest.mark.thorough
@pytest.mark.parametrize("verbs", [VERBS, ROUNDS], ids=["one pass", "rounds"])
def test_verbs_say_of_a_bucket_what_they_say_of_a_folder(bucket, tmp_path, capsys, verbs):
    words = {
        "SPEC": write_spec(
            tmp_path, "matrix", 20, sketch={"test_measurements": 5}, operator={"args": {"n": 60}}
        )
    }
    words["FACTORY"] = f"{os.path.dirname(__file__)}/../tools/factories.py:matrix"
    for line in filter(None, map(str.strip, verbs.splitlines())):
        told = []
        for directory in (str(tmp_path / "run"), bucket):
            code, text = command(capsys, line, DIR=directory, **words)
            text = re.sub(
                r"\s+", " ", text.replace(directory, "DIR").replace("skerch-ooc rm ", "rm ")
            )
            text = re.sub(r"requests measure .*? LIST (?=probe)", "", text)
            told.append((line, code, VARYING.sub(" ", text)))
        assert told[1] == told[0]
        assert told[0][1] in ({4} if line == LAST else {0, 3}), told[0]


class TestClean:
    def test_removes_private_objects_of_killed_uploads(self, run, bucket, capsys):
        left = place(bucket) / "shards" / ".tmp-elsewhere-123-00000000"
        left.store.replace(left.key, b"half")
        assert "nothing to remove" in command(capsys, "clean DIR", DIR=bucket)[1]
        assert "1 file" in command(capsys, "clean DIR --older-than 0", DIR=bucket)[1]
        assert not left.exists()

    def test_keeps_those_of_processes_at_work(self, run, bucket, capsys):
        mine = private_name(place(bucket) / "shards")
        mine.store.replace(mine.key, b"half")
        command(capsys, "clean DIR --older-than 0", DIR=bucket)
        assert mine.exists()

    def test_leaves_what_was_replaced_since_it_was_listed(self, run, bucket):
        listed = take_inventory(run.directory).inside(("shards",))
        shard = run.directory / listed[0].path
        shard.store.replace(shard.key, shard.read_bytes() + b"more")
        assert remove_entries(run.directory, listed) == listed[1:]
        assert shard.exists()

    def test_takes_one_listing(self, faulty, bucket):
        run = ooc.open_run(made(bucket))
        faulty.forget()
        take_inventory(run.directory)
        assert faulty.kinds() == {"list": 1}


class TestStatus:
    def test_lists_shards_once(self, faulty, bucket):
        made(bucket)
        faulty.forget()
        status(ooc.open_run(bucket))
        listed = [one.key for one in faulty.requests if one.kind == "list"]
        assert sum("shards" in key for key in listed) == 1


class TestRenaming:
    SETTINGS = RecoverySpec(method="singlepass")

    def names_of(self, run):
        return sorted(path.name for path in run.results.iterdir())

    def test_gives_all_objects_the_new_name(self, run):
        before = (run.results / "default" / "eigh.h5").read_bytes()
        keep_default_result(run, self.SETTINGS)
        (name,) = self.names_of(run)
        assert name.startswith("nystrom-")
        assert (run.results / name / "eigh.h5").read_bytes() == before

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize("broken", ["copy", "delete"])
    def test_goes_on_where_it_was_killed(self, run, monkeypatch, broken):
        whole, calls = getattr(ObjectStore, broken), []

        def breaks(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return whole(*arguments)

        before = {path.name: path.read_bytes() for path in (run.results / "default").iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, broken, breaks)
            with pytest.raises(KeyboardInterrupt):
                keep_default_result(run, self.SETTINGS)
        keep_default_result(run, self.SETTINGS)
        (name,) = self.names_of(run)
        assert {path.name: path.read_bytes() for path in (run.results / name).iterdir()} == before

    def test_refuses_a_name_that_is_taken(self, run):
        taken = result_path(run, "nystrom-core-auto-rank-all")
        taken.store.replace(taken.key, b"another result")
        with pytest.raises(UsageError, match="skerch-ooc rm -r s3:"):
            keep_default_result(run, self.SETTINGS)
        assert self.names_of(run) == ["default", "nystrom-core-auto-rank-all"]


class TestRemoval:
    def test_removes_one_object(self, run, bucket, capsys):
        before = keys_of(bucket)
        code, _ = command(capsys, "rm URL", URL=f"{bucket}/results/default/eigh.h5")
        assert (code, before - keys_of(bucket)) == (0, {"results/default/eigh.h5"})

    def test_removes_all_below_a_name_of_a_run(self, run, bucket, capsys):
        code, _ = command(capsys, "rm -r URL", URL=f"{bucket}/results")
        assert code == 0
        assert keys_of(bucket)
        assert not any(key.startswith("results/") for key in keys_of(bucket))

    @pytest.mark.sampled(1)
    @pytest.mark.parametrize(
        "given", ["{bucket}/results", "-r {above}", "-r {folder}", "{bucket}/a"]
    )
    def test_refuses_what_is_no_object_of_a_run(self, run, bucket, tmp_path, capsys, given):
        before = keys_of(bucket)
        above = f"{bucket.rpartition('/')[0]}/other"
        place(above).store.replace(f"{place(above).key}/precious", b"of nobody's run")
        given = given.format(bucket=bucket, above=above, folder=tmp_path)
        code, text = command(capsys, f"rm {given}")
        assert code == 2
        assert "removed" in text or "look at" in text or "remove it with: rm -r" in text
        assert keys_of(bucket) == before
        assert keys_of(above) == {"precious"}

    def test_leaves_the_plan_without_which_the_rest_is_of_no_use(self, run, bucket, capsys):
        code, text = command(capsys, f"rm {bucket}/plan.json")
        assert code == 2
        assert f"skerch-ooc rm -r {bucket}" in text
        assert "plan.json" in keys_of(bucket)

    def test_is_what_messages_tell(self, run, bucket, capsys):
        path = run.shards / sorted(path.name for path in run.shards.iterdir())[0]
        path.store.replace(path.key, b"damaged")
        code, text = command(capsys, "verify DIR", DIR=bucket)
        assert code == 5
        assert removal(path) in text
        assert removal(path).startswith("skerch-ooc rm ")
        assert command(capsys, removal(path).removeprefix("skerch-ooc "))[0] == 0
        assert not path.exists()


class TestTrial:
    def trial(self, url):
        require_first_wins(place(url).store, place(url).key)

    def test_store_that_heeds_the_condition_passes_and_keeps_nothing(self, bucket):
        self.trial(bucket)
        assert keys_of(bucket) == set()

    @pytest.mark.parametrize(
        ("kind", "said"), [("create", "a second upload"), ("finish", "a copy")]
    )
    def test_store_that_does_not_is_refused(self, faulty, bucket, tmp_path, capsys, kind, said):
        spec = write_spec(tmp_path, "matrix", 20, operator={"args": {"n": 60}})
        faulty.rules = [Rule("unconditional", lambda request: request.kind == kind)]
        code, text = command(capsys, "plan SPEC --run DIR", SPEC=spec, DIR=bucket)
        assert code == 2
        assert f"{said} to a taken name was answered that it succeeded" in text
        assert "AWS S3" in text
        assert keys_of(bucket) == set()

    @pytest.mark.thorough
    def test_other_store_that_heeds_it_passes(self, other_bucket):
        self.trial(other_bucket)
        assert keys_of(other_bucket) == set()

    @pytest.mark.thorough
    def test_rclone_is_refused(self, rclone, tmp_path, capsys):
        spec = write_spec(tmp_path, "matrix", 20, operator={"args": {"n": 60}})
        code, text = command(capsys, "plan SPEC --run s3://runs/a", SPEC=spec)
        assert (code, "does not heed the condition" in text) == (2, True)
        assert list((rclone / "runs").iterdir()) == []

    def test_run_that_is_planned_is_not_tried_again(self, faulty, bucket):
        made(bucket)
        faulty.forget()
        made(bucket)
        assert faulty.kinds()["create"] == 0


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does to a wrong key, which it repeats."""

    def do_GET(self):
        body = (
            f'<?xml version="1.0"?><Error><Code>InvalidAccessKeyId</Code><Message>No such key.'
            f"</Message><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
        ).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_PUT = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    """The address of a store that refuses all."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def alone(monkeypatch):
    """An environment of a store that nobody answers for, and a client that is not known yet."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ALLOW_HTTP": "true",
        "SKERCH_OOC_FILE_WAIT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    object_store._store.cache_clear()
    yield monkeypatch
    object_store._store.cache_clear()


@pytest.fixture
def rclone(alone, tmp_path):
    """The folder of a server that gives no heed to conditions, whose address is set."""
    program = shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed")
    folder, port = tmp_path / "objects", free_port()
    (folder / "runs").mkdir(parents=True)
    arguments = "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"
    with subprocess.Popen([program, *arguments, folder], stderr=subprocess.DEVNULL) as process:
        alone.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        # Until it listens it is a store that does not answer, which is asked again.
        alone.setenv("SKERCH_OOC_FILE_WAIT", "20")
        yield folder
        process.kill()


class TestRefusals:
    def refused(self, capsys, url, code, *said):
        for verb in ("status", "verify", "clean"):
            self.one(capsys, f"{verb} {url}", code, said)

    def planning(self, capsys, tmp_path, url, code, *said):
        spec = write_spec(tmp_path, "matrix", 20, operator={"args": {"n": 60}})
        self.one(capsys, f"plan {spec} --run {url}", code, said)

    def one(self, capsys, line, code, said):
        found, text = command(capsys, line)
        assert found == code, text
        assert "Traceback" not in text
        assert "the disk" not in text
        assert [word for word in said if word not in text] == [], text
        assert KEY not in text
        assert SECRET not in text

    @pytest.mark.thorough
    def test_store_that_does_not_answer(self, alone, capsys, tmp_path):
        said = (
            "s3://runs/x/plan.json",
            "look whether the store can be reached",
            "run the same command",
        )
        self.refused(capsys, "s3://runs/x", 4, *said)
        self.planning(capsys, tmp_path, "s3://runs/x", 4, *said)

    def test_wrong_key(self, alone, refusing, capsys, tmp_path):
        alone.setenv("AWS_ENDPOINT_URL", refusing)
        self.refused(capsys, "s3://runs/x", 2, "InvalidAccessKeyId: No such key.", "credentials")
        self.planning(capsys, tmp_path, "s3://runs/x", 2, "refuses", "credentials")

    def test_bucket_that_is_not_there(self, bucket, capsys, tmp_path):
        self.refused(capsys, "s3://no-such-bucket/x", 2, "no such bucket")
        self.planning(capsys, tmp_path, "s3://no-such-bucket/x", 2, "no such bucket")

    def test_plain_http_that_is_not_allowed(self, alone, capsys):
        alone.delenv("AWS_ALLOW_HTTP")
        self.refused(capsys, "s3://runs/x", 2, "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP=true")

    @pytest.mark.parametrize("address", ["127.0.0.1:5957", "http://127.0.0.1:port", "https://", ""])
    def test_address_that_is_none(self, alone, capsys, address):
        alone.setenv("AWS_ENDPOINT_URL", address)
        self.refused(capsys, "s3://runs/x", 2, "AWS_ENDPOINT_URL is no address", "https://HOST")

    def test_package_that_is_not_installed(self, alone, capsys):
        alone.setitem(sys.modules, "obstore.exceptions", None)
        self.refused(capsys, "s3://runs/x", 2, "pip install 'skerch_ooc[object-store]'")

    def test_account_that_is_not_named(self, alone, capsys):
        self.refused(capsys, "az://runs/x", 2, "az://runs cannot be used", "environment")

    @pytest.mark.parametrize(
        "url",
        [f"s3://{KEY}:{SECRET}@runs/x", f"s3://runs/x?key={SECRET}", "ftp://runs/x", "s3://runs"],
    )
    def test_url_that_is_none_of_a_run(self, alone, capsys, url):
        self.refused(capsys, url, 2, "give ")

    def test_url_of_a_folder_is_the_folder(self, capsys, tmp_path):
        self.refused(capsys, f"file://{tmp_path}", 2, f"{tmp_path} is not a run directory")


@pytest.mark.thorough
def test_run_in_the_place_of_a_matrix_is_called_what_it_is(bucket):
    made(bucket)
    with pytest.raises(ooc.OperatorError, match=r"is a run of skerch-ooc, and no matrix; give"):
        ooc.PCA(2).fit(bucket)
