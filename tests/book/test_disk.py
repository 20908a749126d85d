"""The disk of exercise 10.4, beside the real one."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minids.book.probes.disk import Died, Disk

NAMES = st.sampled_from(["run/a", "run/b", "run/c"])
OPERATIONS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.binary(max_size=4)),
    st.tuples(st.sampled_from(["fsync", "remove"]), NAMES),
    st.tuples(st.just("replace"), NAMES, NAMES),
)


def on_the_real_one(folder: Path, kind: str, name: str, *more) -> None:
    path = folder / name
    if kind == "write":
        path.write_bytes(*more)
    elif kind == "fsync":
        with path.open("rb") as file:
            os.fsync(file.fileno())
    elif kind == "remove":
        os.remove(path)
    else:
        os.replace(path, folder / more[0])


@settings(max_examples=50, deadline=None)
@given(operations=st.lists(OPERATIONS, max_size=12))
def test_operations_leave_the_files_that_they_leave_on_a_real_disk(operations, tmp_path_factory):
    disk, folder = Disk(), tmp_path_factory.mktemp("disk")
    (folder / "run").mkdir()
    for kind, *rest in operations:
        errors = []
        for operate in (getattr(disk, kind), lambda *rest, kind=kind: on_the_real_one(folder, kind, *rest)):
            try:
                errors.append(operate(*rest))
            except OSError as error:
                errors.append(error.errno)
        assert errors[0] == errors[1]
    assert disk.files == {f"run/{path.name}": path.read_bytes() for path in (folder / "run").iterdir()}
    assert disk.files.keys() == disk.flushed.keys()
    for name in disk.names():
        disk.fsync(name)
    assert disk.flushed == disk.files


def test_who_dies_in_a_write_leaves_nothing_or_a_part_and_the_old_content_is_lost():
    for moment, left in ((0, b"old"), (1, b""), (2, b"ne")):
        disk = Disk({"run/a": b"old", "run/b": b"older"}, dies_at=moment)
        with pytest.raises(Died):
            disk.write("run/a", b"new!")
        assert disk.files == {"run/a": left, "run/b": b"older"}
        assert disk.flushed == {"run/a": b"" if moment else b"old", "run/b": b"older"}
    assert not issubclass(Died, Exception)  # nothing in the process catches its death


def test_what_was_not_flushed_is_lost_with_the_power_and_stays_after_a_kill():
    disk = Disk({"run/a": b"old"}, dies_at=8)
    disk.write("run/c", b"kept")
    disk.fsync("run/c")
    disk.write("run/b", b"new!")
    disk.replace("run/b", "run/a")
    with pytest.raises(Died, match="operation 5, fsync run/a"):
        disk.fsync("run/a")
    assert disk.files == {"run/a": b"new!", "run/c": b"kept"}
    assert disk.flushed == {"run/a": b"", "run/c": b"kept"}
    with pytest.raises(Died):  # a dead process does nothing more, not even in `finally`
        disk.remove("run/a")
    assert "run/a" in disk.files


def test_a_file_cannot_be_renamed_to_another_file_system():
    with pytest.raises(OSError, match="cross-device"):
        Disk({"tmp/a": b""}).replace("tmp/a", "run/a")
