"""Credentials of a bucket are in no object, log, message or task of a run."""

from __future__ import annotations

import logging

import pytest
from object_servers import KEY, SECRET
from specs import write_spec

import skerch_ooc as ooc
from skerch_ooc.base.places import place
from skerch_ooc.cli.main import run_command_line

SECRETS = {"the key": KEY.encode(), "the secret": SECRET.encode()}


@pytest.fixture
def sent(monkeypatch):
    """What this process sends to schedulers and workers of Dask, byte for byte."""
    tcp = pytest.importorskip("distributed.comm.tcp")
    frames, whole = [], tcp.to_frames

    async def kept(*arguments, **more):
        made = await whole(*arguments, **more)
        frames.extend(map(bytes, made))
        return made

    monkeypatch.setattr(tcp, "to_frames", kept)
    return frames


def secrets_in(*contents):
    return {name for name, value in SECRETS.items() if any(value in one for one in contents)}


def contents_of(url):
    run = place(url)
    return [(run / key).read_bytes() for key in run.store.keys(run.key)]


@pytest.mark.parametrize(
    "where", [(), pytest.param(("--executor", "dask", "--workers", 1), marks=pytest.mark.thorough)]
)
def test_are_in_nothing_that_a_run_writes_says_or_sends(
    bucket, tmp_path, capfd, caplog, sent, where
):
    caplog.set_level(logging.DEBUG)
    spec = write_spec(
        tmp_path, "matrix", 20, sketch={"test_measurements": 5}, operator={"args": {"n": 60}}
    )
    assert run_command_line([*map(str, ("run", spec, "--run", bucket, *where))]) == 0
    assert run_command_line(["report", bucket]) == 0
    place(bucket).store.flush()
    told = [text.encode() for text in (*capfd.readouterr(), caplog.text)]
    objects = contents_of(bucket)
    assert secrets_in(*told, *objects, *sent) == set()
    assert len(objects) > 8
    assert bool(sent) == bool(where)
    if where:
        # It is read as it is sent: what tasks do name is found.
        assert any(place(bucket).parts[1].encode() in one for one in sent)


def test_are_in_nothing_that_a_store_refuses(bucket, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    run = ooc.plan({"measurements": 5}, bucket, operator=_diagonal())
    store = place(bucket).store
    monkeypatch.setattr(type(store), "read", _refusing)
    assert run_command_line(["verify", str(run.directory)]) == 2
    assert secrets_in(*(text.encode() for text in (*capfd.readouterr(), caplog.text))) == set()


def _diagonal():
    import torch

    return torch.diag(0.8 ** torch.arange(30))


def _refusing(store, key):
    from obstore.exceptions import PermissionDeniedError

    from skerch_ooc.base.object_client import explained

    with explained(store.name(key), reading=True):
        raise PermissionDeniedError(
            f"403 Forbidden: Credential={KEY}/20261129, Signature=0123 {SECRET} "
            f"<Error><Code>AccessDenied</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
        )
