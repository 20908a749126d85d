"""A file or a folder is there whole or not at all. The oracle is the file system: what is where, at every moment."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from minids.files import atomic_folder, atomic_path, remove_folder, remove_leftovers, write_atomically


def write_folder(path: Path, text: str, overwrite: bool = False) -> None:
    with atomic_folder(path, overwrite) as temporary:
        (temporary / "x").write_text(text)


def contents(path: Path) -> dict[str, str]:
    """The text of every file below `path`, hidden ones included."""
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_text_arrives_in_utf8(tmp_path):
    write_atomically(tmp_path / "a.txt", "γ = 0.001 ▸ 深\n")
    assert (tmp_path / "a.txt").read_bytes() == "γ = 0.001 ▸ 深\n".encode()


def test_the_name_shows_the_old_content_until_the_block_ends_and_nothing_stays_beside_it(tmp_path):
    write_atomically(tmp_path / "a", "a long old content")
    write_folder(tmp_path / "b", "old")
    (tmp_path / "b" / "y").write_text("of the old folder")
    with atomic_path(tmp_path / "a") as file, atomic_folder(tmp_path / "b", overwrite=True) as folder:
        file.write_text("new")
        (folder / "x").write_text("new")
        assert tmp_path in file.parents, "only within one file system is a rename atomic"
        assert tmp_path in folder.parents
        assert ((tmp_path / "a").read_text(), (tmp_path / "b" / "x").read_text()) == ("a long old content", "old")
    assert contents(tmp_path) == {"a": "new", "b/x": "new"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_failing_block_leaves_what_was_there_and_no_rest(tmp_path, error, earlier):
    if earlier:
        write_atomically(tmp_path / "a", "old")
        write_folder(tmp_path / "b", "old")
    before, names = contents(tmp_path), os.listdir(tmp_path)

    def break_off(file):
        file.write_text("half of the n")
        raise error

    with pytest.raises(error), atomic_path(tmp_path / "a") as temporary:
        break_off(temporary)
    with pytest.raises(error), atomic_folder(tmp_path / "b", overwrite=True) as temporary:
        break_off(temporary / "x")
    assert (contents(tmp_path), os.listdir(tmp_path)) == (before, names)


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    seen, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(os.fstat(handle).st_ino), real(handle)))
    for write, written in ((write_atomically, tmp_path / "a"), (write_folder, tmp_path / "b" / "x")):
        name = tmp_path / written.relative_to(tmp_path).parts[0]
        monkeypatch.setattr(Path, "rename", lambda self, to: (seen.append("renamed"), os.rename(self, to)))
        monkeypatch.setattr(Path, "replace", Path.rename)
        write(name, "new")
        assert seen == [written.stat().st_ino, "renamed"]
        seen.clear()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_what_is_written_has_the_permissions_of_any_new_file_and_folder(tmp_path, mask):
    previous = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", "x")
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "x").touch(mode=0o600)  # as safetensors writes
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "x").write_text("")
        assert os.umask(mask) == mask, "and the process keeps its mask"
    finally:
        os.umask(previous)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder", "folder/x")}
    plain = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain/x", "plain")}
    assert modes == {"file": plain["plain/x"], "folder": plain["plain"], "folder/x": plain["plain/x"]}


def test_a_folder_is_replaced_only_on_request_unless_it_is_empty(tmp_path):
    (tmp_path / "a").mkdir()
    write_folder(tmp_path / "a", "old")
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a/x": "old"}
    assert os.listdir(tmp_path) == ["a"]
    write_folder(tmp_path / "a", "new", overwrite=True)
    assert contents(tmp_path) == {"a/x": "new"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [1, 2])
def test_if_a_rename_fails_the_old_folder_gets_its_name_back(tmp_path, monkeypatch, error, failing):
    write_folder(tmp_path / "a", "old")
    calls, real = [], Path.rename

    def rename(self, target):
        calls.append(target)
        if len(calls) == failing:
            assert sorted(contents(tmp_path).values()) == ["new", "old"], "what a crash would leave here"
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(error):
        write_folder(tmp_path / "a", "new", overwrite=True)
    assert len(calls) >= failing
    assert contents(tmp_path) == {"a/x": "old"}
    assert os.listdir(tmp_path) == ["a"]


def test_the_folder_of_another_writer_is_not_lost(tmp_path):
    with suppress(OSError), atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("slow")
        write_folder(tmp_path / "a", "fast")
    assert contents(tmp_path) == {"a/x": "fast"}


def test_missing_parents_of_a_folder_are_made_and_those_of_a_file_are_an_error(tmp_path):
    write_folder(tmp_path / "b" / "c" / "a", "new")
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "a.txt", "x")
    assert contents(tmp_path) == {"b/c/a/x": "new"}
    assert os.listdir(tmp_path) == ["b"]


def test_a_link_stays_and_the_folder_behind_it_is_replaced(tmp_path):
    write_folder(tmp_path / "b" / "real", "old")
    (tmp_path / "a").symlink_to(tmp_path / "b" / "real")
    write_folder(tmp_path / "a", "new", overwrite=True)
    assert (tmp_path / "a").is_symlink()
    assert contents(tmp_path / "b") == {"real/x": "new"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


# ---------------------------------------------------------------------------------------------------
# What a process that was killed leaves behind

WRITES_FOR_EVER = """
import sys, time
from pathlib import Path
from minids.files import atomic_folder, atomic_path
with atomic_path(Path("a")) as file, atomic_folder(Path("b"), overwrite=True) as folder:
    file.write_text("half")
    (folder / "x").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_goes_with_the_next_write_and_what_a_live_one_writes_stays(tmp_path):
    write_folder(tmp_path / "b", "old")
    writer = subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"writing\n"
        write_atomically(tmp_path / "a", "new")
        assert sorted(contents(tmp_path).values()) == ["half", "half", "new", "old"]
    finally:
        writer.kill()
        writer.communicate()
    assert len(os.listdir(tmp_path)) == 4, "a killed process cannot tidy up"
    write_atomically(tmp_path / "a", "newer")
    remove_leftovers(tmp_path / "b")
    assert contents(tmp_path) == {"a": "newer", "b/x": "old"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_folder_whose_successor_never_got_the_name_is_given_it_back(tmp_path):
    for name in ("new", "earlier"):
        (tmp_path / ".a.l_0mbpck.tmp" / name).mkdir(parents=True)
        (tmp_path / ".a.l_0mbpck.tmp" / name / "x").write_text(name)
    remove_leftovers(tmp_path / "a")
    assert contents(tmp_path) == {"a/x": "earlier"}
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_but_a_workplace_of_that_very_name_is_taken_for_a_leftover(tmp_path):
    for name in (".b.abcdefgh.tmp", ".a.abcdefgh", ".a.abcdefg.tmp", ".a.ABCDEFGH.tmp", "a.abcdefgh.tmp", ".a.tmp",
                 ".aa.abcdefgh.tmp", ".a.b.abcdefgh.tmp", ".a.abcdefgh.tmp.tmp", "elsewhere"):  # fmt: skip
        (tmp_path / name / "earlier").mkdir(parents=True)
        (tmp_path / name / "earlier" / "x").write_text("somebody's")
    (tmp_path / ".a.afileofa.tmp").write_text("somebody's")
    (tmp_path / ".a.alinkofa.tmp").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / ".a.apipeofa.tmp")
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path / "a")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_workplace_that_another_process_took_for_a_leftover_is_made_anew(tmp_path, monkeypatch):
    real, made = fcntl.flock, []

    def flock(handle, operation):
        made.append(next(tmp_path.glob(".a.*.tmp")))
        if len(made) == 1:
            made[0].rmdir()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_atomically(tmp_path / "a", "new")
    assert len(set(made)) == 2
    assert contents(tmp_path) == {"a": "new"}


def test_where_there_are_no_locks_what_is_written_is_whole_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda handle, operation: os.open(tmp_path / "absent", os.O_RDONLY))
    write_atomically(tmp_path / "a", "new")
    write_folder(tmp_path / "b", "new")
    assert contents(tmp_path) == {"a": "new", "b/x": "new"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_the_system_does_not_allow_is_its_own_error(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / ("a" * 256), tmp_path / "file" / "a"):
        for write in (write_atomically, write_folder):
            with pytest.raises(OSError, match=r"too long|Not a directory|File exists"):
                write(path, "x")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_removed_is_gone_before_its_files_are(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    with monkeypatch.context() as dying:
        dying.setattr(shutil, "rmtree", lambda *args, **options: None)  # as if the process died here
        remove_folder(tmp_path / "old")
    assert not (tmp_path / "old").exists()
    remove_leftovers(tmp_path / "old")
    assert list(tmp_path.iterdir()) == []
    remove_folder(tmp_path / "old")  # there is none
