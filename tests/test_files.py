"""A file is there whole or not at all. The oracle is the file system: what lies under the name, and what beside it."""

import os
import stat

import pytest

from minids.files import atomic_path, write_atomically


def test_text_arrives_in_utf8(tmp_path):
    write_atomically(tmp_path / "a.txt", "γ = 0.001 ▸ 深\n")
    assert (tmp_path / "a.txt").read_bytes() == "γ = 0.001 ▸ 深\n".encode()


def test_new_content_replaces_the_old_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "a long old content")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
def test_a_failing_write_leaves_the_old_file_and_no_rest(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_name_shows_the_old_content_until_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent, "only within one folder is a rename atomic"
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.txt", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(path.exists()), real(handle)))
    write_atomically(path, "new")
    assert seen
    assert not seen[0]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path, mask):
    previous = os.umask(mask)
    try:
        write_atomically(tmp_path / "atomic", "x")
        (tmp_path / "plain").write_text("x")
        assert os.umask(mask) == mask, "and the process keeps its mask"
    finally:
        os.umask(previous)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "plain")]
    assert modes[0] == modes[1]


def test_a_missing_folder_is_an_error_and_creates_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "a.txt", "x")
    assert os.listdir(tmp_path) == []
