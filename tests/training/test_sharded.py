"""Checkpoints of several processes: whatever was damaged is noticed, and is told in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from helpers_distributed import load_more, save_on_full_disk, save_some

from minids.parallel.launch import RankFailed, launch
from minids.training.checkpoint import Checkpoint, find_checkpoint
from minids.training.sharded import load_sharded, load_state


@pytest.fixture
def path(tmp_path) -> Path:
    launch(save_some, 2, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def first_shard(path: Path) -> Path:
    return min(path.glob("*.safetensors"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(first_shard(path).read_bytes())
    content[-1] ^= 1
    first_shard(path).write_bytes(content)


def change_state(**changes):
    def change(path: Path) -> None:
        state = json.loads((path / "state.json").read_text()) | changes
        (path / "state.json").write_text(json.dumps(state))

    return change


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "a file cut short": lambda path: first_shard(path).write_bytes(first_shard(path).read_bytes()[:-1]),
    "a missing file": lambda path: first_shard(path).unlink(),
    "a file of another checkpoint": lambda path: (path / "shard-00009.safetensors").write_bytes(b""),
    "no state": lambda path: (path / "state.json").unlink(),
    "half a state": lambda path: (path / "state.json").write_text('{"step": 3, '),
    "a state of another kind": lambda path: (path / "state.json").write_text("[]"),
    "a step that is no number": change_state(step="many"),
    "settings that are none": change_state(settings=3),
    "files that are none": change_state(files=3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_sentence_by_one_process_and_by_several(damage, path):
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=f"^{path} is damaged: .* is not what was written; restore it, or") as error:
        load_state(path)
    with pytest.raises(RankFailed, match="ValueError") as there:
        launch(load_state_of_rank, 2, path)
    assert str(error.value) in str(there.value)


def load_state_of_rank(rank: int, path: Path) -> Checkpoint:
    return load_state(path)


def test_a_whole_one_is_what_was_saved(path):
    found = load_state(path)
    assert (found.step, found.settings, found.log_sha256) == (3, {"a": 1}, "0")  # rank 0's
    assert found.tensors["rows"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]  # of which rank 1 had the last
    assert {name: value.item() for name, value in found.tensors.items() if name != "rows"} == {
        "both": 7.0, "own 0": 0.0, "own 1": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "message"),
    [(dict(absent=torch.zeros(2)), "the checkpoint lacks tensor absent."),
     (dict(rows=torch.zeros(3, 3)), r"rows has shape \(3, 2\) in the checkpoint: the model has \(3, 3\).")],
)  # fmt: skip
def test_a_checkpoint_of_another_model_is_refused(tensors, message, path):
    with pytest.raises(ValueError, match=message):
        load_sharded(path, tensors)


def test_what_one_process_misses_in_a_checkpoint_is_told_by_all(tmp_path):
    assert launch(load_more, 2, tmp_path / "checkpoint", 1) == ["the checkpoint lacks tensor absent."] * 2


@pytest.mark.parametrize("who", [0, 1])
def test_a_full_disk_of_one_process_is_told_by_all_and_the_earlier_checkpoint_stays(who, tmp_path):
    said = launch(save_on_full_disk, 2, tmp_path / "checkpoint", who)
    assert said[0] == said[1]
    assert f"(process {who}): '{tmp_path / 'checkpoint'}'" in said[0]
    assert load_state(tmp_path / "checkpoint").step == 3
    assert [name.name for name in tmp_path.iterdir()] == ["checkpoint"]


def test_of_two_kinds_the_later_one_counts(path):
    """A process can be killed after it has written the new one, and before it has removed the old."""
    from safetensors.torch import save_file

    for step, name in ((2, "checkpoint"), (4, "checkpoint.safetensors")):
        save_file({}, path.parent / "checkpoint.safetensors", {"step": str(step), "settings": "{}"})
        assert find_checkpoint(path.parent).name == name
    (path / "state.json").unlink()  # as if a process had died while it removed the folder
    assert find_checkpoint(path.parent).name == "checkpoint.safetensors"
