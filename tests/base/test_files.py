"""Files on file systems that do not do all that POSIX asks for, and folders in a power failure."""

from __future__ import annotations

import errno
import logging
import os
import stat

import pytest

from skerch_ooc.base import disk_errors, files, posix


@pytest.fixture
def synced(monkeypatch):
    """The paths that are synced, in order."""
    paths, fsync = [], os.fsync

    def noting(descriptor):
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    return paths


@pytest.fixture
def refusing(monkeypatch):
    """Has the system refuse to sync folders, with an error number."""
    fsync = os.fsync

    def refuse(error):
        def sync(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(error, os.strerror(error))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", sync)

    monkeypatch.setattr(posix, "_noted", set())
    return refuse


def test_entries_of_new_folders_are_synced_in_all_folders_above(tmp_path, synced):
    files.make_folder(tmp_path / "a/b/c")
    assert sorted(synced) == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]


def test_entry_of_a_folder_that_is_there_is_synced_too(tmp_path, synced):
    (tmp_path / "a").mkdir()
    files.make_folder(tmp_path / "a")
    assert synced == [str(tmp_path)]


def test_tree_is_synced_with_all_that_it_holds(tmp_path, synced):
    (tmp_path / "tree/inner").mkdir(parents=True)
    (tmp_path / "tree/inner/file").touch()
    files.sync_tree(tmp_path / "tree")
    assert synced == [str(tmp_path / name) for name in ("tree/inner/file", "tree/inner", "tree")]


@pytest.mark.parametrize("error", ["EINVAL", "ENOTSUP", "ENOSYS", "EBADF"])
def test_folders_that_cannot_be_synced_are_noted_once(tmp_path, refusing, caplog, error):
    refusing(getattr(errno, error))
    with caplog.at_level(logging.WARNING, "skerch_ooc"):
        assert files.publish_bytes(b"first", tmp_path / "first")
        files.replace_bytes(tmp_path / "first", b"second")
        files.make_folder(tmp_path / "folder")
    (record,) = caplog.records
    assert f"does not sync folders such as {tmp_path}" in record.getMessage()


def test_folder_that_the_disk_fails_to_sync_is_an_error(tmp_path, refusing):
    refusing(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        files.publish_bytes(b"content", tmp_path / "file")


@pytest.mark.parametrize("error", ["EPERM", "EACCES", "EXDEV", "ENOSYS", "EINVAL", "EMLINK"])
@pytest.mark.parametrize("taken", [False, True])
def test_where_links_are_refused_a_file_is_renamed_unless_its_name_is_taken(
    tmp_path, monkeypatch, error, taken
):
    def refuse(*_):
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

    monkeypatch.setattr(os, "link", refuse)
    if taken:
        (tmp_path / "file").write_bytes(b"first")
    assert files.publish_bytes(b"second", tmp_path / "file") is not taken
    assert (tmp_path / "file").read_bytes() == (b"first" if taken else b"second")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errno.ENOSPC, "make room or give permission"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOTDIR, "move away what is in the place of its folder"),
        (errno.ESTALE, "look whether its folder is there and the disk is mounted"),
    ],
)
def test_remedy_fits_what_refused_to_write(error, remedy):
    said = str(disk_errors.cannot_write("file", OSError(error, os.strerror(error))))
    assert f"cannot write file: {os.strerror(error)}; " in said
    assert remedy in said
