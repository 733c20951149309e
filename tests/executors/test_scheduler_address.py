"""How a running scheduler may be named."""

from __future__ import annotations

import socket

import pytest

import skerch_ooc as ooc


@pytest.fixture
def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_host_and_port_are_an_address_and_no_file(tmp_path, monkeypatch, free_port, host):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("skerch_ooc.executors.dask._CONNECT_SECONDS", 0.2)
    with pytest.raises(ooc.UsageError, match="no scheduler answers at tcp://"):
        _ = ooc.Dask(f"{host}:{free_port}").threads


def test_file_whose_name_looks_like_an_address_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "node:8786").write_text("{}")
    with pytest.raises(ooc.UsageError, match="is no scheduler file"):
        _ = ooc.Dask("node:8786").threads


def test_tls_without_certificates_says_what_is_missing(monkeypatch, free_port):
    monkeypatch.setattr("skerch_ooc.executors.dask._CONNECT_SECONDS", 0.2)
    with pytest.raises(ooc.UsageError, match="needs the certificates in Dask's own configuration"):
        _ = ooc.Dask(f"tls://127.0.0.1:{free_port}").threads
