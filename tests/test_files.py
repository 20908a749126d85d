"""A file is there whole or not at all. The oracle is the file system: what lies under the name, and what beside it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from minids.files import atomic_folder, atomic_path, write_atomically


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


# ---------------------------------------------------------------------------------------------------
# Folders


def write_folder(path: Path, **files: str) -> None:
    with atomic_folder(path) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text)


def contents(path: Path) -> dict[str, str]:
    """The text of every file below `path`, hidden ones included."""
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_a_new_folder_replaces_the_old_and_leaves_nothing_of_it(tmp_path):
    write_folder(tmp_path / "a", x="old", y="old")
    write_folder(tmp_path / "a", x="new")
    assert contents(tmp_path) == {"a/x": "new"}
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [["a"], []])
def test_a_failing_block_leaves_the_old_folder_if_there_is_one_and_no_rest(tmp_path, error, old):
    for name in old:
        write_folder(tmp_path / name, x="old")

    def write_half():
        with atomic_folder(tmp_path / "a") as temporary:
            (temporary / "x").write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert contents(tmp_path) == {f"{name}/x": "old" for name in old}
    assert os.listdir(tmp_path) == old


def test_the_name_shows_the_old_folder_until_the_block_ends(tmp_path):
    write_folder(tmp_path / "a", x="old")
    with atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("new")
        assert temporary.parent == tmp_path, "only within one folder is a rename atomic"
        assert (tmp_path / "a" / "x").read_text() == "old"
    assert (tmp_path / "a" / "x").read_text() == "new"


def test_every_file_is_on_the_disk_before_the_folder_takes_the_name(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def record(handle):
        assert not (tmp_path / "a").exists()
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to ask for the name of an open file")
    monkeypatch.setattr(os, "fsync", record)
    write_folder(tmp_path / "a", x="1", y="2")
    assert sorted(synced) == ["x", "y"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_written_folder_and_its_files_have_the_permissions_of_any_new_ones(tmp_path, mask):
    previous = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "atomic") as temporary:
            (temporary / "x").touch(mode=0o600)  # as safetensors writes
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "x").write_text("")
        assert os.umask(mask) == mask, "and the process keeps its mask"
    finally:
        os.umask(previous)

    def modes(name: str) -> list[int]:
        return [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / name, tmp_path / name / "x")]

    assert modes("atomic") == modes("plain")


CRASH = """
import os, sys
from pathlib import Path
from minids.files import atomic_folder

def crash(*args):
    os._exit(1)

real = Path.rename
Path.rename = lambda self, target: crash() if self.name.startswith(".") else real(self, target)
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "x").write_text("torn")
    if sys.argv[2] == "in the block":
        crash()
"""


@pytest.mark.parametrize("where", ["in the block", "between the renames"])
def test_what_a_crashed_writer_left_beside_is_gone_after_the_next_one(tmp_path, where):
    write_folder(tmp_path / "a", x="old")
    assert subprocess.run([sys.executable, "-c", CRASH, tmp_path / "a", where]).returncode == 1
    assert sorted(contents(tmp_path).values()) == ["old", "torn"]
    assert (tmp_path / "a").exists() == (where == "in the block")
    assert len(os.listdir(tmp_path)) == 2
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a"):
        raise RuntimeError
    assert sorted(contents(tmp_path).values()) == ["old", "torn"], "not before another folder has the name"
    write_folder(tmp_path / "a", x="new")
    assert contents(tmp_path) == {"a/x": "new"}
    assert os.listdir(tmp_path) == ["a"]


def test_what_has_a_similar_name_is_not_touched(tmp_path):
    names = [".a.settings", ".a.settings.old", ".a.old", ".a.", "a.saving-1-abcdefgh", ".b.saving-999999999-abcdefgh"]
    for name in names:
        write_folder(tmp_path / name, x="mine")
    write_folder(tmp_path / "a", x="old")
    write_folder(tmp_path / "a", x="new")
    assert contents(tmp_path) == {f"{name}/x": "mine" for name in names} | {"a/x": "new"}


def test_what_must_not_be_replaced_is_asked_for_before_and_after_the_block(tmp_path):
    write_folder(tmp_path / "a", x="old")
    asked = []

    def require_free():
        asked.append(os.listdir(tmp_path / "a"))
        if "y" in asked[-1]:
            raise ValueError

    with pytest.raises(ValueError), atomic_folder(tmp_path / "a", require_free):  # noqa: PT011
        (tmp_path / "a" / "y").write_text("put there meanwhile")
    assert [sorted(names) for names in asked] == [["x"], ["x", "y"]]
    with pytest.raises(ValueError), atomic_folder(tmp_path / "a", require_free):  # noqa: PT011
        pytest.fail("the block is not begun")
    assert contents(tmp_path) == {"a/x": "old", "a/y": "put there meanwhile"}


def test_of_two_writers_of_one_name_the_later_stays_and_neither_disturbs_the_other(tmp_path):
    with atomic_folder(tmp_path / "a") as slow, atomic_folder(tmp_path / "a") as fast:
        (slow / "x").write_text("slow")
        (fast / "x").write_text("fast")
    assert contents(tmp_path) == {"a/x": "slow"}
    assert os.listdir(tmp_path) == ["a"]


def test_a_writer_whose_name_another_takes_between_the_renames_leaves_nothing_beside(tmp_path, monkeypatch):
    write_folder(tmp_path / "a", x="old")
    real = Path.rename

    def rename(self, target):
        real(self, target)
        monkeypatch.setattr(Path, "rename", real)
        write_folder(tmp_path / "a", x="of the other")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "a", x="new")
    assert contents(tmp_path) == {"a/x": "of the other"}
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [1, 2])
def test_if_a_rename_fails_the_old_folder_has_its_name_again(tmp_path, monkeypatch, error, failing):
    write_folder(tmp_path / "a", x="old")
    calls, real = [], Path.rename

    def rename(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(error):
        write_folder(tmp_path / "a", x="new")
    assert len(calls) >= failing
    assert contents(tmp_path) == {"a/x": "old"}
    assert os.listdir(tmp_path) == ["a"]


def test_a_missing_parent_is_made(tmp_path):
    write_folder(tmp_path / "b" / "c" / "a", x="new")
    assert contents(tmp_path) == {"b/c/a/x": "new"}


def test_a_link_stays_and_the_folder_behind_it_is_replaced(tmp_path):
    write_folder(tmp_path / "b" / "real", x="old")
    (tmp_path / "a").symlink_to(tmp_path / "b" / "real")
    write_folder(tmp_path / "a", x="new")
    assert (tmp_path / "a").is_symlink()
    assert contents(tmp_path / "b") == {"real/x": "new"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_relative_name_is_that_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("a"), x="new")
    assert contents(tmp_path) == {"a/x": "new"}
