"""A checkpoint gives back every bit, or refuses with one sentence and touches nothing."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from helpers_training import assert_bitwise_equal, moments, small_trainer, state
from safetensors import safe_open
from safetensors.torch import save_file

from minids.training import checkpoint
from minids.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def trained(tmp_path):
    """A run of two steps, saved."""
    trainer = small_trainer(tmp_path, settings={"name": "深"})
    trainer.train_step()
    trainer.train_step()
    trainer.save()
    return trainer


KINDS = {
    "full": {},
    "dense": {"n_routed_experts": None},
    "tied": {"tie_word_embeddings": True},
    "no bias": {"topk_method": "greedy", "scoring_func": "softmax"},
    "no MTP": {"num_nextn_predict_layers": 0},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_weights_biases_and_moments_come_back_bit_for_bit(tmp_path, changes):
    saved = small_trainer(tmp_path, model_changes=changes)
    saved.train_step()
    saved.save()
    other = small_trainer(tmp_path, model_changes=changes, seed=1)
    loaded = load_checkpoint(saved.checkpoint_path)
    loaded.restore(other.model, other.optimizer)
    assert loaded.step == 1
    assert_bitwise_equal(state(other.model), state(saved.model))
    assert_bitwise_equal(moments(other), moments(saved))


def test_the_biases_are_not_zero_in_this_file(trained):
    """Otherwise the round trip would prove nothing about them."""
    biases = [tensor for name, tensor in state(trained.model).items() if name.endswith("expert_bias")]
    assert len(biases) == 2
    assert all(bias.any() for bias in biases)


def test_a_run_saved_before_its_first_step_begins_like_a_fresh_one(tmp_path):
    fresh, other = small_trainer(tmp_path), small_trainer(tmp_path, seed=1)
    fresh.save()
    load_checkpoint(fresh.checkpoint_path).restore(other.model, other.optimizer)
    other.batches = fresh.batches
    for trainer in (fresh, other):
        trainer.train_step()
    assert_bitwise_equal(state(other.model), state(fresh.model))
    assert_bitwise_equal(moments(other), moments(fresh))


def test_without_an_optimizer_only_the_weights_are_restored(trained, tmp_path):
    other = small_trainer(tmp_path, seed=1)
    load_checkpoint(trained.checkpoint_path).restore(other.model)
    assert_bitwise_equal(state(other.model), state(trained.model))
    assert not other.optimizer.state


def test_one_checkpoint_can_be_restored_twice(trained, tmp_path):
    """Training from it must not write into it."""
    loaded = load_checkpoint(trained.checkpoint_path)
    first, second = small_trainer(tmp_path), small_trainer(tmp_path)
    loaded.restore(first.model, first.optimizer)
    first.train_step()
    loaded.restore(second.model, second.optimizer)
    assert_bitwise_equal(moments(second), moments(trained))


def test_settings_and_step_come_back_as_they_were(tmp_path):
    trainer = small_trainer(tmp_path)
    settings = {"a": {"b": [1, 2.5, None, True]}, "name": "深 γ"}
    save_checkpoint(tmp_path / "c", trainer.model, trainer.optimizer, step=17, settings=settings)
    loaded = load_checkpoint(tmp_path / "c")
    assert (loaded.step, loaded.settings) == (17, settings)


# ---------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 500, 0.3, 0.9, -1])
def test_a_torn_file_is_told_in_one_sentence(trained, length):
    content = trained.checkpoint_path.read_bytes()
    trained.checkpoint_path.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is not a readable checkpoint") as error:
        load_checkpoint(trained.checkpoint_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\xff" * 1000, b"\0" * 1000, b"{}"])
def test_garbage_is_told_in_one_sentence(tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ValueError, match="c is not a readable checkpoint") as error:
        load_checkpoint(tmp_path / "c")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"step": "1"}, {"step": "x", "settings": "{}"}, {"step": "1", "settings": "{"}]
)
def test_somebody_elses_safetensors_file_is_told_in_one_sentence(tmp_path, metadata):
    save_file({"a": torch.zeros(2)}, tmp_path / "c", metadata)
    with pytest.raises(ValueError, match="c is not a readable checkpoint") as error:
        load_checkpoint(tmp_path / "c")
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_told_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="absent does not exist"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_checkpoint(tmp_path)


WEIGHT, BIAS = "layers.0.mlp.down_proj.weight", "layers.1.mlp.gate.expert_bias"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(f"model.{WEIGHT}"), f"lacks tensor model.{WEIGHT}"),
        (lambda t: t.pop(f"model.{BIAS}"), f"lacks tensor model.{BIAS}"),
        (lambda t: t.pop(f"optimizer.{WEIGHT}.exp_avg"), f"lacks tensor optimizer.{WEIGHT}.exp_avg"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "has an unknown tensor model.extra"),
        (lambda t: t.update({"optimizer.extra": torch.zeros(1)}), "has an unknown tensor optimizer.extra"),
        (lambda t: t.update({"other.extra": torch.zeros(1)}), "has an unknown tensor other.extra"),
        (lambda t: t.update({f"model.{BIAS}": torch.zeros(9)}), f"{BIAS} has shape (9,) in the checkpoint"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(64, 1)}), "norm.weight has shape (64, 1)"),
        (lambda t: t.update({f"optimizer.{WEIGHT}.exp_avg_sq": torch.zeros(1)}), "has shape (1,) in the checkpoint"),
    ],
)  # fmt: skip
def test_a_missing_extra_or_misshaped_tensor_is_named_and_nothing_is_changed(trained, tmp_path, change, says):
    loaded = load_checkpoint(trained.checkpoint_path)
    tensors = dict(loaded.tensors)
    change(tensors)
    other = small_trainer(tmp_path, seed=1)
    other.train_step()
    weights, state_of_optimizer = state(other.model), moments(other)
    with pytest.raises(ValueError, match="checkpoint") as error:
        replace(loaded, tensors=tensors).restore(other.model, other.optimizer)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert_bitwise_equal(state(other.model), weights)
    assert_bitwise_equal(moments(other), state_of_optimizer)


def test_another_model_is_refused(trained, tmp_path):
    other = small_trainer(tmp_path, model_changes={"q_lora_rank": 16})
    with pytest.raises(ValueError, match=r"q_a_.* has shape .* in the checkpoint"):
        load_checkpoint(trained.checkpoint_path).restore(other.model)


# ---------------------------------------------------------------------------------------------------
# Writing


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_checkpoint(trained, tmp_path, monkeypatch, error):
    before = trained.checkpoint_path.read_bytes()

    def break_off(tensors, path, metadata):
        path.write_bytes(b"half a checkpoint")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", break_off)
    trained.train_step()
    with pytest.raises(type(error)):
        trained.save()
    assert trained.checkpoint_path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_the_file_is_safetensors_with_a_json_header_and_nothing_else(trained):
    content = trained.checkpoint_path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert json.loads(metadata["settings"])["name"] == "深"
    assert len(content) == 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    with safe_open(trained.checkpoint_path, framework="pt") as file:
        assert set(file.keys()) == set(header)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("write", [lambda o, p: p.write_bytes(pickle.dumps(o)), torch.save], ids=["pickle", "torch"])
def test_opening_a_checkpoint_runs_no_pickled_code(tmp_path, write):
    write(Bomb(str(tmp_path / "boom")), tmp_path / "c")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_checkpoint(tmp_path / "c")
    assert not (tmp_path / "boom").exists()
