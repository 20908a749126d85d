"""A checkpoint gives back every bit, or refuses with one sentence and touches nothing."""

import json
import pickle
import re
from dataclasses import replace

import pytest
import torch
from helpers_training import assert_bitwise_equal, file_size_limit, moments, small_trainer, state
from safetensors.torch import save_file

from minids.training.checkpoint import _digest, load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, saved."""
    trainer = small_trainer(tmp_path_factory.mktemp("trained"))
    trainer.train_step()
    trainer.train_step()
    trainer.save()
    return trainer


@pytest.mark.parametrize(
    ("changes", "biases"),
    [
        ({}, 2),
        ({"n_routed_experts": None}, 0),
        ({"tie_word_embeddings": True}, 2),
        ({"topk_method": "greedy", "scoring_func": "softmax"}, 0),
        ({"num_nextn_predict_layers": 0}, 1),
    ],
)
def test_weights_biases_moments_step_and_settings_come_back_as_they_were(tmp_path, changes, biases):
    saved = small_trainer(model_changes=changes)
    saved.train_step()
    settings = {"a": {"b": [1, 2.5, None, True]}, "name": "深 γ"}
    save_checkpoint(tmp_path / "c", saved.model, saved.optimizer, step=17, settings=settings)
    other, loaded = small_trainer(model_changes=changes, seed=1), load_checkpoint(tmp_path / "c")
    loaded.restore(other.model, other.optimizer)
    assert (loaded.step, loaded.settings) == (17, settings)
    assert_bitwise_equal(state(other.model), state(saved.model))
    assert_bitwise_equal(moments(other), moments(saved))
    moved = [gate.expert_bias.any() for gate in saved.model.gates if gate.expert_bias is not None]
    assert moved == [True] * biases, "of zeros, the round trip would prove nothing"


def test_a_run_saved_before_its_first_step_begins_like_a_fresh_one(tmp_path):
    fresh, other = small_trainer(tmp_path), small_trainer(seed=1)
    fresh.save()
    load_checkpoint(fresh.checkpoint_path).restore(other.model, other.optimizer)
    other.batches = fresh.batches
    for trainer in (fresh, other):
        trainer.train_step()
    assert_bitwise_equal(state(other.model), state(fresh.model))
    assert_bitwise_equal(moments(other), moments(fresh))


def test_a_checkpoint_gives_the_same_to_all_that_ask_and_without_an_optimizer_only_the_weights(trained):
    loaded = load_checkpoint(trained.checkpoint_path)
    first, second, third = small_trainer(), small_trainer(), small_trainer()
    loaded.restore(first.model, first.optimizer)
    first.train_step()  # must not write into what was loaded
    loaded.restore(second.model, second.optimizer)
    assert_bitwise_equal(moments(second), moments(trained))
    loaded.restore(third.model)
    for trainer in (second, third):
        assert_bitwise_equal(state(trainer.model), state(trained.model))
    assert not third.optimizer.state


# ---------------------------------------------------------------------------------------------------
# What is refused


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def pieces(write, *arguments) -> dict:
    """One way of writing something else, with each of these arguments."""
    return {str(a): lambda path, whole, a=a: write(path, whole, a) for a in arguments}


UNREADABLE = {
    **pieces(lambda path, whole, end: path.write_bytes(whole[:end]), 0, 1, 7, 8, 9, 500, 100_000, -1),
    **pieces(lambda path, _, piece: path.write_bytes(piece * 1000), b"\xff", b"\0", b"{}", b"garbage"),
    **pieces(
        lambda path, _, metadata: save_file({"a": torch.zeros(2)}, path, metadata),
        None, {}, {"step": "1"}, {"step": "x", "settings": "{}", "sha256": "0"},
    ),
    "a folder": lambda path, _: path.mkdir(),
    "pickled": lambda path, _: path.write_bytes(pickle.dumps(Bomb(path.with_name("boom")))),
    "saved by torch": lambda path, _: torch.save(Bomb(path.with_name("boom")), path),
}  # fmt: skip


@pytest.mark.parametrize("write", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_checkpoint_is_told_in_one_sentence_and_runs_no_code(trained, tmp_path, write):
    write(tmp_path / "c", trained.checkpoint_path.read_bytes())
    with pytest.raises(
        ValueError, match=r"/c is (not the checkpoint|damaged|not a (readable safetensors|regular) file)[^\n]*$"
    ):
        load_checkpoint(tmp_path / "c")
    assert not (tmp_path / "boom").exists()
    with pytest.raises(ValueError, match="absent does not exist"):
        load_checkpoint(tmp_path / "absent")


def flip(place: float):
    """Flip one bit of the values, at this share of their length."""

    def change(header: dict, values: bytearray) -> None:
        values[int(place * (len(values) - 1))] ^= 1

    return change


def another_step(header: dict, values: bytearray) -> None:
    header["__metadata__"]["step"] = "1"


def another_log(header: dict, values: bytearray) -> None:
    header["__metadata__"]["log_sha256"] = "0" * 64


def another_dtype(header: dict, values: bytearray) -> None:
    header["model.norm.weight"]["dtype"] = "I32"


def two_names_changed(header: dict, values: bytearray) -> None:
    a, b = "optimizer.norm.weight.exp_avg", "optimizer.norm.weight.exp_avg_sq"
    header[a], header[b] = header[b], header[a]


CHANGES = {
    **{f"a bit at {place}": flip(place) for place in (0, 0.5, 1)},
    **{change.__name__: change for change in (another_step, another_log, another_dtype, two_names_changed)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_in_which_anything_was_changed_is_damaged(trained, tmp_path, change):
    whole = trained.checkpoint_path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, values = json.loads(whole[8 : 8 + length]), bytearray(whole[8 + length :])
    change(header, values)
    changed = json.dumps(header).encode()
    (tmp_path / "c").write_bytes(len(changed).to_bytes(8, "little") + changed + values)
    with pytest.raises(ValueError, match="/c is damaged: its content does not match its digest"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    "changes",
    [{"step": None}, {"step": "x"}, {"step": "-5"}, {"step": "9" * 5000}, {"settings": "[]"}, {"settings": "["},
     {"settings": "[" * 10**5}, {"log_sha256": None}],
)  # fmt: skip
def test_metadata_that_minids_would_not_write_are_refused_even_with_their_digest(trained, tmp_path, changes):
    metadata = {"step": "2", "settings": "{}", "log_sha256": ""} | changes
    metadata = {name: value for name, value in metadata.items() if value is not None}
    tensors = {"a": torch.zeros(2)}
    save_file(tensors, tmp_path / "c", metadata | {"sha256": _digest(tensors, metadata)})
    with pytest.raises(ValueError, match="/c is not the checkpoint of a run"):
        load_checkpoint(tmp_path / "c")


WEIGHT, BIAS = "layers.0.mlp.down_proj.weight", "layers.1.mlp.gate.expert_bias"
MOMENT = f"optimizer.{WEIGHT}"


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        *((name, None, f"lacks tensor {name}") for name in (f"model.{WEIGHT}", f"model.{BIAS}", f"{MOMENT}.exp_avg")),
        *(
            (f"{part}.extra", torch.zeros(1), f"has an unknown tensor {part}.extra")
            for part in ("model", "optimizer", "x")
        ),
        (f"model.{BIAS}", torch.zeros(9), f"{BIAS} has shape (9,) in the checkpoint"),
        ("model.norm.weight", torch.zeros(64, 1), "norm.weight has shape (64, 1)"),
        (f"{MOMENT}.exp_avg_sq", torch.zeros(1), "has shape (1,) in the checkpoint"),
    ],
)
def test_a_missing_extra_or_misshaped_tensor_is_named_and_nothing_is_changed(trained, name, tensor, says):
    loaded = load_checkpoint(trained.checkpoint_path)
    tensors = {n: t for n, t in (loaded.tensors | {name: tensor}).items() if t is not None}
    other = small_trainer(seed=1)
    other.train_step()
    weights, state_of_optimizer = state(other.model), moments(other)
    with pytest.raises(ValueError, match="checkpoint") as error:
        replace(loaded, tensors=tensors).restore(other.model, other.optimizer)
    assert says in str(error.value)
    assert_bitwise_equal(state(other.model), weights)
    assert_bitwise_equal(moments(other), state_of_optimizer)


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_old_one(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.save()
    before = trainer.checkpoint_path.read_bytes()
    with file_size_limit(len(before) // 2), pytest.raises(OSError, match=re.escape(str(tmp_path))):
        trainer.save()
    assert trainer.checkpoint_path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
