"""Files that are made before they are sent to a store: what killed processes leave is removed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from skerch_ooc.base import scratch
from skerch_ooc.base.private_names import PRIVATE_PREFIX


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder for temporary files of this process."""
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    scratch._tidy.cache_clear()
    return tmp_path


def file_of(folder, pid, host=None, age=3600.0):
    path = folder / f"{PRIVATE_PREFIX}{host or socket.gethostname()}-{pid}-0123abcd"
    path.write_bytes(b"half a shard")
    written = path.stat().st_mtime - age
    os.utime(path, (written, written))
    return path


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_files_of_ended_processes_are_removed(folder, ended):
    path = file_of(folder, ended)
    assert scratch.scratch_folder() == folder
    assert not path.exists()


def test_files_of_an_earlier_process_of_the_same_number_are_removed(folder):
    path = file_of(folder, os.getpid(), age=10 * 86400.0 * 365)
    scratch.scratch_folder()
    assert not path.exists()


@pytest.mark.parametrize("other", ["of another host", "of a process at work", "of a moment ago"])
def test_others_are_left(folder, ended, other):
    path = {
        "of another host": lambda: file_of(folder, ended, host="elsewhere"),
        "of a process at work": lambda: file_of(folder, os.getpid(), age=0.0),
        "of a moment ago": lambda: file_of(folder, ended, age=1.0),
    }[other]()
    scratch.scratch_folder()
    assert path.exists()


def test_what_is_no_file_of_ours_is_left(folder):
    (folder / ".tmp-mine").touch()
    (folder / f"{PRIVATE_PREFIX}{socket.gethostname()}-1-0123abcd").mkdir()
    scratch.scratch_folder()
    assert len(list(folder.iterdir())) == 2
