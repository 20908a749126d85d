"""A safetensors file that cannot be read or written is told as any other file would be."""

import os
import re
from pathlib import Path

import pytest
import torch
from helpers_training import file_size_limit
from safetensors import SafetensorError

from minids.tensors import open_tensors, write_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "größe": torch.tensor([1], dtype=torch.bfloat16)}


def test_tensors_and_metadata_come_back(tmp_path):
    write_tensors(tmp_path / "x", TENSORS, {"step": "7"})
    with open_tensors(tmp_path / "x", "") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        assert file.metadata() == {"step": "7"}
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist: the index names it."),
        (os.mkfifo, "is not a regular file"),
        (os.mkdir, "is not a regular file"),
        (lambda path: path.write_bytes(b"garbage"), "is not a readable safetensors file"),
    ],
)
def test_what_is_no_such_file_is_named_and_not_waited_for(tmp_path, make, says):
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/x {says}"):
        open_tensors(tmp_path / "x", missing="the index names it")


def test_a_file_that_may_not_be_read_is_not_said_to_be_absent(tmp_path, monkeypatch):
    def refuse(path, mode):  # root may read everything
        raise PermissionError(13, "Permission denied", str(path))

    write_tensors(tmp_path / "x", TENSORS, {})
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match="/x cannot be read: Permission denied"):
        open_tensors(tmp_path / "x", missing="")


def test_a_file_for_which_there_is_no_room_is_an_error_of_the_system(tmp_path):
    with file_size_limit(100), pytest.raises(OSError, match="File too large") as error:
        write_tensors(tmp_path / "x", TENSORS, {})
    assert error.value.filename == str(tmp_path / "x")


def test_an_error_that_is_none_of_the_system_stays_what_it_is(tmp_path, monkeypatch):
    def broken(*_):
        raise SafetensorError("invalid header")

    monkeypatch.setattr("minids.tensors.save_file", broken)
    with pytest.raises(SafetensorError, match="invalid header"):
        write_tensors(tmp_path / "x", TENSORS, {})
