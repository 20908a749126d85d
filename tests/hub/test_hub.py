"""The released layout, in and out: every bit, every released name, and one sentence for every fault."""

import errno
import json
import os
import re
import sys
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from configurations import configurations, examples, random_model, random_tokens
from helpers_training import small_config
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from minids.hub import hub
from minids.hub import reference as trained
from minids.hub.hub import dequantize_blocks, load_pretrained, save_pretrained
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.tokenizer import END_OF_TEXT, Tokenizer

# Layer 0 is dense, layer 1 has 8 experts, layer 2 is the MTP module.
SMALL = small_config(vocab_size=300)
ORDINARY = ModelConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, intermediate_size=24,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
EXPERT = "model.layers.1.mlp.experts.5.gate_proj.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
COPIES = ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def model() -> DeepSeek:
    return random_model(SMALL)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A saved model in one file."""
    save_pretrained(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(model, tmp_path) -> Path:
    """The same in several."""
    save_pretrained(model, tmp_path / "model", max_shard_bytes=200_000)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Die Größe der Größen: 127 + 12 = 139.\n" * 5], 290)


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor in the folder; each is in one file only."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        inside = load_file(file)
        assert not inside.keys() & tensors.keys()
        tensors |= inside
    return tensors


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = [n for n in ours if ours[n].dtype != theirs[n].dtype or not torch.equal(ours[n], theirs[n])]
    assert not different


def contents(folder: Path) -> dict[str, bytes | None]:
    """Whatever is below the folder, hidden or not."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def held_open(folder: Path) -> list[str]:
    """What this process has open or mapped below the folder."""
    if not Path("/proc/self/maps").exists():
        return []
    opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in opened + mapped if str(folder.resolve()) in line]


def refusal(load, folder: Path, **options) -> str:
    """The one sentence that a fault is answered with. It draws no random number and leaves nothing behind."""
    random_state, before = torch.get_rng_state(), contents(folder.parent)
    with pytest.raises(ValueError, match=r"^[^\n]+[^.\n]\.$") as error:
        load(folder, **options)
    message = str(error.value)
    del error  # its traceback still knows the open files
    assert ". " not in message
    assert torch.equal(torch.get_rng_state(), random_state)
    assert contents(folder.parent) == before
    assert not held_open(folder)
    return message


# ---------------------------------------------------------------------------------------------------
# There and back


@examples(25)
@given(configurations())
def test_what_was_saved_comes_back_bit_for_bit(tmp_path_factory, config):
    model, folder = random_model(config), tmp_path_factory.mktemp("hub") / "model"
    save_pretrained(model, folder)
    loaded = load_pretrained(folder)
    assert loaded.config == config
    assert_same(loaded.state_dict(), model.state_dict())
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == config.tie_word_embeddings
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in model.parameters()]


@examples(15)
@given(configurations(), st.integers(500, 20_000))
def test_shards_hold_every_tensor_once_and_the_index_says_where(tmp_path_factory, config, max_shard_bytes):
    model, folder = random_model(config), tmp_path_factory.mktemp("hub") / "model"
    save_pretrained(model, folder, max_shard_bytes=max_shard_bytes)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    sizes = {name: tensor.nbytes for name, tensor in stored(folder).items()}
    if sum(sizes.values()) <= max_shard_bytes:
        assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    else:
        assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        inside = {file: load_file(folder / file).keys() for file in files}
        assert index["weight_map"] == {name: file for file in files for name in inside[file]}
        assert index["metadata"] == {"total_size": sum(sizes.values())}
        filled = {file: sum(sizes[name] for name in inside[file]) for file in files}
        assert all(len(inside[file]) == 1 or 0 < filled[file] <= max_shard_bytes for file in files)
        assert all(one + other > max_shard_bytes for one, other in pairwise(filled.values())), "no file without need"
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())


def test_what_just_fits_is_one_file(model, tmp_path):
    size = sum(tensor.nbytes for tensor in hub.released_tensors(model).values())
    size += model.embed_tokens.weight.nbytes + model.lm_head.weight.nbytes  # again in the MTP module
    save_pretrained(model, tmp_path / "model", max_shard_bytes=size)
    assert (tmp_path / "model" / "model.safetensors").exists()
    save_pretrained(model, tmp_path / "model", max_shard_bytes=size - 1)
    assert (tmp_path / "model" / "model-00002-of-00002.safetensors").exists()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_weights_are_stored_in_the_dtype_asked_for_and_the_bias_in_float32(model, tmp_path, dtype):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_pretrained(model, tmp_path / "model", dtype=dtype)
    assert_same(model.state_dict(), before)
    tensors = stored(tmp_path / "model")
    assert {name: t.dtype for name, t in tensors.items()} == {
        name: torch.float32 if name.endswith("e_score_correction_bias") else dtype for name in tensors
    }
    assert json.loads((tmp_path / "model/config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    rounded = {n: t if n.endswith("expert_bias") else t.to(dtype).float() for n, t in model.state_dict().items()}
    assert_same(load_pretrained(tmp_path / "model").state_dict(), rounded)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_model_is_loaded_in_the_dtype_asked_for_with_its_bias_in_float32(folder, model, dtype):
    expected = {n: t if n.endswith("expert_bias") else t.to(dtype) for n, t in model.state_dict().items()}
    assert_same(load_pretrained(folder, dtype=dtype).state_dict(), expected)


def test_a_bfloat16_model_is_stored_as_it_is(model, folder, tmp_path):
    loaded = load_pretrained(folder, dtype=torch.bfloat16)
    save_pretrained(loaded, tmp_path / "again")
    assert stored(tmp_path / "again")[EXPERT].dtype == torch.bfloat16
    assert stored(tmp_path / "again")[BIAS].dtype == torch.float32
    assert_same(load_pretrained(tmp_path / "again", dtype=torch.bfloat16).state_dict(), loaded.state_dict())


@torch.no_grad()
def descend(model: DeepSeek) -> None:
    """One step of gradient descent. (The first step of a torch optimizer imports torch's compiler, for seconds.)"""
    for parameter in model.parameters():
        parameter -= 0.1 * parameter.grad


def test_a_loaded_model_is_ready_to_evaluate_and_to_train(folder, model):
    loaded, tokens = load_pretrained(folder), random_tokens(SMALL, 2, 12)
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))
    loaded.train()
    loaded.loss(tokens).total.backward()
    assert all(parameter.grad.any() for name, parameter in loaded.named_parameters() if "experts" not in name)
    descend(loaded)
    loaded.update_expert_bias(0.1)
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())


def test_tied_weights_are_trained_as_one(tmp_path):
    save_pretrained(random_model(replace(SMALL, tie_word_embeddings=True)), tmp_path / "model")
    loaded = load_pretrained(tmp_path / "model")
    loaded.loss(random_tokens(SMALL, 2, 12)).total.backward()
    descend(loaded)
    assert torch.equal(loaded.lm_head.weight, loaded.embed_tokens.weight)


def test_nothing_shows_of_what_was_in_the_memory_before(folder, model, monkeypatch):
    real = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: real(*args, **options).fill_(7))
    loaded = load_pretrained(folder)
    assert_same(dict(loaded.named_buffers()), dict(model.named_buffers()))
    assert not any(gate.load.any() for gate in loaded.gates)
    assert_same(loaded.state_dict(), model.state_dict())


def test_loading_and_saving_draw_no_random_number(model, tmp_path):
    before = torch.get_rng_state()
    save_pretrained(model, tmp_path / "model")
    load_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_holds_no_file_open(sharded):
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc to ask")
    with safe_open(next(sharded.glob("*.safetensors")), framework="pt"):
        assert held_open(sharded), "held_open sees what is open"
    loaded = load_pretrained(sharded)
    assert not held_open(sharded)
    del loaded


def test_a_load_that_failed_holds_no_file_open_even_while_its_error_is_kept(folder):
    change_tensors(folder, lambda tensors: tensors.pop(EXPERT))
    with pytest.raises(ValueError, match="missing") as error:
        load_pretrained(folder)
    assert not held_open(folder)
    del error


def test_files_may_be_links_into_a_cache(sharded, model, tmp_path):
    """As huggingface_hub lays them out."""
    (tmp_path / "links").mkdir()
    for i, file in enumerate(sharded.iterdir()):
        file.rename(tmp_path / f"blob{i}")
        (tmp_path / "links" / file.name).symlink_to(tmp_path / f"blob{i}")
    assert_same(load_pretrained(tmp_path / "links").state_dict(), model.state_dict())


# ---------------------------------------------------------------------------------------------------
# The released names

MLA_PARTS = "q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def layer_names(i: int, attention: str, mlp: list[str]) -> set[str]:
    parts = ["input_layernorm", "post_attention_layernorm"]
    parts += [f"self_attn.{part}" for part in attention.split()] + [f"mlp.{part}" for part in mlp]
    return {f"model.layers.{i}.{part}.weight" for part in parts}


def moe_names(i: int, experts: int) -> set[str]:
    mlp = ["gate"] + [f"shared_experts.{p}" for p in PROJECTIONS]
    mlp += [f"experts.{e}.{p}" for e in range(experts) for p in PROJECTIONS]
    return layer_names(i, MLA_PARTS, mlp) | {f"model.layers.{i}.mlp.gate.e_score_correction_bias"}


def mtp_names(i: int) -> set[str]:
    parts = ["embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head"]
    return {f"model.layers.{i}.{part}.weight" for part in parts}


ENDS = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_the_names_are_those_of_the_deepseek_v3_release(tmp_path):
    save_pretrained(random_model(replace(SMALL, num_nextn_predict_layers=2)), tmp_path / "model")
    assert stored(tmp_path / "model").keys() == (
        ENDS
        | layer_names(0, MLA_PARTS, PROJECTIONS)
        | moe_names(1, 8)
        | moe_names(2, 8)
        | mtp_names(2)
        | moe_names(3, 8)
        | mtp_names(3)
    )


@pytest.mark.parametrize("tied", [False, True])
def test_the_names_of_a_dense_model_are_llama_s(tmp_path, tied):
    save_pretrained(random_model(replace(ORDINARY, tie_word_embeddings=tied)), tmp_path / "model")
    layers = [layer_names(i, "q_proj k_proj v_proj o_proj", PROJECTIONS) for i in range(2)]
    assert stored(tmp_path / "model").keys() == set().union(*layers, ENDS - ({"lm_head.weight"} if tied else set()))


def table_of(name: str, model: DeepSeek) -> str:
    """The docstring of the file whose class has this weight, or has the norm or linear layer that it belongs to."""
    path, _, leaf = name.rpartition(".")
    if leaf == "weight" and not path.endswith(".gate"):
        path = path.rpartition(".")[0]
    return sys.modules[type(model.get_submodule(path)).__module__].__doc__


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, q_lora_rank=None), ORDINARY])
def test_every_released_name_stands_in_the_table_of_the_file_that_has_the_weight(config):
    model, seen = DeepSeek(config), set()
    stacks = {"experts.gate_up_proj": ["gate_proj.weight", "up_proj.weight"], "experts.down_proj": ["down_proj.weight"]}
    for name in model.state_dict():
        end = ".".join(hub._released_name(name, config).split(".")[-2:])
        for released in stacks.get(end, [end]):
            assert re.search(rf"\b{released}\b", table_of(name, model)), (name, released)
            seen.add(released)
    assert seen == {".".join(name.split(".")[-2:]) for name in hub.released_tensors(model)}


def test_queries_without_compression_have_v2_lite_s_name(tmp_path):
    save_pretrained(random_model(replace(SMALL, q_lora_rank=None)), tmp_path / "model")
    names = {name for name in stored(tmp_path / "model") if name.startswith("model.layers.0.self_attn.q")}
    assert names == {"model.layers.0.self_attn.q_proj.weight"}


def test_under_each_name_is_the_tensor_that_it_means(folder, model):
    tensors, layer, module = stored(folder), model.layers[1], model.mtp[0]
    experts, in_module = layer.mlp.experts, module.block.mlp.experts
    width = SMALL.moe_intermediate_size
    meant = {
        "model.embed_tokens.weight": model.embed_tokens.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.lm_head.weight,
        "model.layers.0.mlp.up_proj.weight": model.layers[0].mlp.up_proj.weight,
        "model.layers.1.input_layernorm.weight": layer.input_layernorm.weight,
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight": layer.self_attn.kv_a_proj_with_mqa.weight,
        "model.layers.1.mlp.gate.weight": layer.mlp.gate.weight,
        BIAS: layer.mlp.gate.expert_bias,
        EXPERT: experts.gate_up_proj[5, :width],
        "model.layers.1.mlp.experts.5.up_proj.weight": experts.gate_up_proj[5, width:],
        "model.layers.1.mlp.experts.5.down_proj.weight": experts.down_proj[5],
        "model.layers.1.mlp.shared_experts.gate_proj.weight": layer.mlp.shared_experts.gate_proj.weight,
        "model.layers.2.enorm.weight": module.enorm.weight,
        "model.layers.2.hnorm.weight": module.hnorm.weight,
        "model.layers.2.eh_proj.weight": module.eh_proj.weight,
        "model.layers.2.shared_head.norm.weight": module.norm.weight,
        "model.layers.2.post_attention_layernorm.weight": module.block.post_attention_layernorm.weight,
        "model.layers.2.self_attn.q_b_proj.weight": module.block.self_attn.q_b_proj.weight,
        "model.layers.2.mlp.experts.7.up_proj.weight": in_module.gate_up_proj[7, width:],
        COPIES[0]: model.embed_tokens.weight,
        COPIES[1]: model.lm_head.weight,
    }
    assert_same({name: tensors[name] for name in meant}, {name: tensor.detach() for name, tensor in meant.items()})


# ---------------------------------------------------------------------------------------------------
# What is stored twice, and what may be left out


@pytest.mark.parametrize("absent", [COPIES[:1], COPIES[1:], COPIES])
def test_the_copies_of_an_mtp_module_may_be_absent(folder, model, absent):
    change_tensors(folder, lambda tensors: [tensors.pop(name) for name in absent])
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())


def test_the_copies_can_be_left_out_in_saving(model, tmp_path):
    save_pretrained(model, tmp_path / "model", mtp_copies=False)
    assert not stored(tmp_path / "model").keys() & set(COPIES)
    assert_same(load_pretrained(tmp_path / "model").state_dict(), model.state_dict())


def test_a_copy_may_have_another_dtype(model, tmp_path):
    save_pretrained(model, tmp_path / "model", dtype=torch.bfloat16)
    change_tensors(tmp_path / "model", lambda tensors: tensors.update({COPIES[0]: tensors[COPIES[0]].float()}))
    load_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("copy", "original"), [(COPIES[0], "model.embed_tokens.weight"), (COPIES[1], "lm_head.weight")]
)
def test_a_copy_that_differs_in_one_number_is_named(folder, copy, original):
    change_tensors(folder, lambda tensors: tensors[copy][7, 3].add_(1))
    expected = f"{copy} in {folder / 'model.safetensors'} must equal {original}, which it copies."
    assert refusal(load_pretrained, folder) == expected
    load_pretrained(folder, mtp=False)


def test_a_copy_may_hold_the_same_nan(folder):
    def spoil(tensors):
        for name in ("model.embed_tokens.weight", COPIES[0]):
            tensors[name][7, 3] = torch.nan

    change_tensors(folder, spoil)
    assert load_pretrained(folder).embed_tokens.weight.isnan().sum() == 1
    change_tensors(folder, lambda tensors: tensors[COPIES[0]][7, 4].fill_(torch.nan))
    assert refusal(load_pretrained, folder).startswith(f"{COPIES[0]} in ")


def test_a_tied_head_may_be_stored_if_it_equals_the_embedding(tmp_path):
    model = random_model(replace(SMALL, tie_word_embeddings=True))
    folder = tmp_path / "model"
    save_pretrained(model, folder)
    assert torch.equal(stored(folder)[COPIES[1]], model.embed_tokens.weight)
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[COPIES[1]].clone()}))
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())
    change_tensors(folder, lambda tensors: tensors["lm_head.weight"][0, 0].add_(1))
    assert "lm_head.weight in" in refusal(load_pretrained, folder)
    assert "must equal model.embed_tokens.weight" in refusal(load_pretrained, folder, mtp=False)


@pytest.mark.parametrize("modules", [1, 2])
def test_without_mtp_the_main_model_is_left(tmp_path, modules):
    model = random_model(replace(SMALL, num_nextn_predict_layers=modules))
    save_pretrained(model, tmp_path / "model")
    loaded = load_pretrained(tmp_path / "model", mtp=False)
    assert loaded.config == replace(SMALL, num_nextn_predict_layers=0)
    main = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("mtp.")}
    assert_same(loaded.state_dict(), main)


def test_a_model_without_modules_is_the_same_with_and_without_them(tmp_path):
    save_pretrained(random_model(ORDINARY), tmp_path / "model")
    with_them, without = load_pretrained(tmp_path / "model"), load_pretrained(tmp_path / "model", mtp=False)
    assert with_them.config == without.config == ORDINARY
    assert_same(with_them.state_dict(), without.state_dict())


def test_modules_that_transformers_dropped_are_missed_with_a_hint(folder):
    def drop(tensors):
        for name in [name for name in tensors if name.startswith("model.layers.2.")]:
            del tensors[name]

    change_tensors(folder, drop)
    assert "mtp=False" in refusal(load_pretrained, folder)
    assert load_pretrained(folder, mtp=False).config.num_nextn_predict_layers == 0


def test_a_layer_too_many_is_not_taken_for_a_module(tmp_path):
    """A configuration of fewer layers than the weights have must not load the lower part of a model."""
    save_pretrained(random_model(replace(SMALL, num_hidden_layers=3, num_nextn_predict_layers=0)), tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", num_hidden_layers=2, num_nextn_predict_layers=1)
    assert "mtp=False" not in refusal(load_pretrained, tmp_path / "model")
    assert "model.layers.2." in refusal(load_pretrained, tmp_path / "model", mtp=False)


def test_a_run_is_no_released_folder_and_says_what_to_do(tmp_path):
    (tmp_path / "checkpoint.safetensors").touch()
    with pytest.raises(ValueError, match="holds a run: `minids export`"):
        load_pretrained(tmp_path)


def test_the_hint_is_given_for_modules_only(folder):
    change_tensors(folder, lambda tensors: tensors.pop(EXPERT))
    assert "mtp" not in refusal(load_pretrained, folder)


def test_frequencies_in_old_files_are_passed_over(folder, model):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())


# ---------------------------------------------------------------------------------------------------
# FP8

# Of these DeepSeek-V3 stores the matrices in FP8.
FP8_LAYERS = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\..*_proj(_with_mqa)?\.weight")
NARROW = replace(SMALL, vocab_size=40, hidden_size=24, intermediate_size=40, moe_intermediate_size=12, q_lora_rank=10)
SCALE = EXPERT + "_scale_inv"


def quantize(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Divide each block by what takes its largest number to 448, the largest of FP8, and round.

    Return the FP8 values, the scale of each block, and what they stand for.
    """
    rows, columns = (range(0, n, b) for n, b in zip(weight.shape, block, strict=True))
    values, scale = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(len(rows), len(columns))
    meant = torch.empty(weight.shape)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            here = (slice(row, row + block[0]), slice(column, column + block[1]))
            scale[i, j] = weight[here].abs().max() / 448
            values[here] = (weight[here] / scale[i, j]).to(torch.float8_e4m3fn)
            meant[here] = values[here].float() * scale[i, j]
    return values, scale, meant


def quantize_folder(folder: Path, block: tuple[int, int], layers: str = FP8_LAYERS.pattern, **entry) -> dict:
    """Store matrices as DeepSeek-V3 stores them; return by name what they then stand for."""
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if re.fullmatch(layers, name)]:
        tensors[name], tensors[f"{name}_scale_inv"], meant[name] = quantize(tensors[name], block)
    save_file(tensors, folder / "model.safetensors")
    change_json(folder / "config.json", quantization_config={"quant_method": "fp8", "fmt": "e4m3"} | entry)
    return meant


@examples(50)
@given(*[st.integers(1, 40)] * 2, *[st.integers(1, 16)] * 2)
def test_each_number_is_multiplied_by_the_scale_of_its_block(rows, columns, block_rows, block_columns):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    values, scale, meant = quantize(weight, (block_rows, block_columns))
    ours = dequantize_blocks(values, scale, (block_rows, block_columns))
    assert ours.dtype == torch.float32
    assert torch.equal(ours, meant)
    row, column = rows * 2 // 3, columns * 2 // 3
    assert ours[row, column] == values[row, column].float() * scale[row // block_rows, column // block_columns]
    assert ((ours - weight).abs() <= weight.abs() / 16 + scale.max() / 1024).all(), "3 bits behind the first"
    if rows % block_rows == columns % block_columns == 0:
        assert torch.equal(ours, Fp8Dequantize(None)._dequantize_one(values, scale))


@pytest.mark.parametrize("block", [(128, 128), (16, 10), (10, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_fp8_release_is_read_as_value_times_scale(tmp_path, block, dtype):
    folder = tmp_path / "model"
    save_pretrained(random_model(NARROW), folder)
    as_before = stored(folder)
    meant = quantize_folder(folder, block, weight_block_size=list(block))
    assert len(meant) == 3 * 5 + 3 + 2 * 9 * 3, "attention, dense layer, routed and shared experts"
    pieces = hub.released_tensors(load_pretrained(folder, dtype=dtype))
    expected = {name: (as_before | meant)[name].to(dtype) for name in pieces}
    expected |= {name: as_before[name] for name in pieces if "e_score_correction_bias" in name}
    assert_same(pieces, expected)


def test_a_block_is_128_by_128_where_the_configuration_does_not_say(tmp_path):
    save_pretrained(random_model(replace(ORDINARY, hidden_size=160, num_hidden_layers=1)), tmp_path / "model")
    meant = quantize_folder(tmp_path / "model", (128, 128))
    pieces = hub.released_tensors(load_pretrained(tmp_path / "model"))
    assert_same({name: pieces[name] for name in meant}, meant)


def test_a_copy_may_be_fp8_like_its_original(folder):
    quantize_folder(folder, (128, 128), r"lm_head\.weight|.*\.shared_head\.head\.weight")
    load_pretrained(folder)
    change_tensors(folder, lambda tensors: tensors[f"{COPIES[1]}_scale_inv"].mul_(2))
    assert refusal(load_pretrained, folder).startswith(f"{COPIES[1]} in ")


def to_fp8(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


SCALE_FAULTS = {
    "a missing scale": (lambda t: t.pop(SCALE), f"{SCALE} is missing from the weights: its FP8 weight asks for it."),
    "a scale too many": (lambda t: t.update({SCALE: torch.ones(3, 3)}), f"{SCALE} has shape [3, 3]"),
    "a transposed scale": (lambda t: t.update({SCALE: torch.ones(3, 2)}), f"{SCALE} has shape [3, 2]"),
    "a flat scale": (lambda t: t.update({SCALE: torch.ones(6)}), f"{SCALE} has shape [6]"),
    "a scale of no FP8 weight": (lambda t: t.update({EXPERT: t[EXPERT].float()}), f"{SCALE} in "),
    "a scale in FP8": (lambda t: to_fp8(t, SCALE), f"{SCALE} is stored as F8_E4M3"),
    "a norm in FP8": (lambda t: to_fp8(t, "model.norm.weight"), "model.norm.weight is stored as F8_E4M3"),
    "another FP8": (lambda t: t.update({EXPERT: t[EXPERT].float().to(torch.float8_e5m2)}), f"{EXPERT} is stored as"),
}


@pytest.mark.parametrize(("change", "says"), SCALE_FAULTS.values(), ids=SCALE_FAULTS)
def test_a_scale_that_does_not_fit_its_weight_is_named(folder, change, says):
    quantize_folder(folder, (16, 24), re.escape(EXPERT), weight_block_size=[16, 24])
    load_pretrained(folder)
    change_tensors(folder, change)
    assert refusal(load_pretrained, folder).startswith(says)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"quant_method": "awq", "bits": 4}, "it must be fp8 in e4m3, or absent"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "it must be fp8 in e4m3, or absent"),
        ({"bits": 4}, "it must be fp8 in e4m3, or absent"),
        ("fp8", "it must be fp8 in e4m3, or absent"),
        ([1], "it must be fp8 in e4m3, or absent"),
        *[
            ({"quant_method": "fp8", "weight_block_size": size}, "weight_block_size=")
            for size in (None, 128, [128], [128, 128, 1], [0, 128], [128, -1], [128.0, 128.0], ["128", "128"])
        ],
    ],
)
def test_another_quantization_is_refused(folder, entry, says):
    change_json(folder / "config.json", quantization_config=entry)
    assert says in refusal(load_pretrained, folder)


@pytest.mark.parametrize("entry", [None, {}])
def test_no_quantization_may_be_written_out(folder, model, entry):
    change_json(folder / "config.json", quantization_config=entry)
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())


# ---------------------------------------------------------------------------------------------------
# Faults


@pytest.mark.parametrize(
    "name",
    [EXPERT, BIAS, "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.2.eh_proj.weight"],
)
def test_a_missing_tensor_is_named(folder, name):
    change_tensors(folder, lambda tensors: tensors.pop(name))
    assert refusal(load_pretrained, folder).startswith(f"{name} is missing from the weights: the configuration asks")


@pytest.mark.parametrize(
    "name", ["x", "model.layers.3.enorm.weight", "model.layers.0.mlp.gate.weight", EXPERT.replace("weight", "bias")]
)
def test_an_extra_tensor_is_named_with_its_file(folder, name):
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(1)}))
    expected = f"{name} in {folder / 'model.safetensors'} is a tensor that the configuration does not ask for."
    assert refusal(load_pretrained, folder) == expected


@pytest.mark.parametrize(
    ("name", "asked", "shape"),
    [(EXPERT, [32, 64], shape) for shape in ([64, 32], [2048], [1, 32, 64], [33, 64], [])]
    + [(BIAS, [8], [1, 8]), (COPIES[1], [300, 64], [299, 64])],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder, name, asked, shape):
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    file = folder / "model.safetensors"
    expected = f"{name} has shape {shape} in {file}: the configuration asks for {asked}."
    assert refusal(load_pretrained, folder) == expected


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *[(EXPERT, dtype) for dtype in (torch.int32, torch.uint8, torch.bool, torch.float8_e5m2)],
        (BIAS, torch.float64),
        (COPIES[0], torch.int8),
    ],
)
def test_a_tensor_of_another_dtype_is_named_with_the_possible_ones(folder, name, dtype):
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    message = refusal(load_pretrained, folder)
    assert message.startswith(f"{name} is stored as ")
    assert message.endswith(" it must be F32, BF16, F16, or F8_E4M3 if it is a matrix.")


@pytest.mark.parametrize("kind", ["folder", "sharded"])
@pytest.mark.parametrize("length", [0, 7, 8, 500, 0.02, 0.5, -1])
def test_a_torn_file_is_named(kind, length, request):
    folder = request.getfixturevalue(kind)
    file = sorted(folder.glob("*.safetensors"))[-1]
    content = file.read_bytes()
    file.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    assert refusal(load_pretrained, folder).startswith(f"{file} is not a whole safetensors file: ")


@pytest.mark.parametrize("content", [b"garbage" * 100, b"\xff" * 1000, b"\0" * 1000, b"{}"])
def test_a_file_of_something_else_is_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    expected = f"{folder / 'model.safetensors'} is not a whole safetensors file: "
    assert refusal(load_pretrained, folder).startswith(expected)


def test_a_folder_in_the_place_of_a_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert refusal(load_pretrained, folder) == f"{folder / 'model.safetensors'} cannot be read: Is a directory."


def test_a_file_that_may_not_be_read_is_not_told_as_absent(sharded, monkeypatch):
    file, real = sorted(sharded.glob("*.safetensors"))[1], Path.open

    def open_(path, *args, **options):
        if path == file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))} cannot be read: Permission denied\\.$"):
        load_pretrained(sharded)


def test_a_file_that_the_index_names_and_is_not_there_is_named(sharded):
    file = sorted(sharded.glob("*.safetensors"))[1]
    file.unlink()
    assert refusal(load_pretrained, sharded) == f"{file} does not exist: the index names it."


def change_places(folder: Path, change) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    change(places)
    change_json(index, weight_map=places)


def test_a_tensor_that_is_not_where_the_index_has_it_is_named(sharded):
    first = sorted(sharded.glob("*.safetensors"))[0]
    change_places(sharded, lambda places: places.update({EXPERT: first.name}))
    assert refusal(load_pretrained, sharded) == f"{EXPERT} is not in {first}, where the index has it."


def test_a_tensor_that_only_the_index_has_is_named(sharded):
    first = sorted(sharded.glob("*.safetensors"))[0]
    change_places(sharded, lambda places: places.update({"x": first.name}))
    assert refusal(load_pretrained, sharded) == f"x is not in {first}, where the index has it."


def test_a_tensor_in_two_files_is_named_with_both(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    save_file(load_file(second) | {"model.embed_tokens.weight": torch.zeros(300, 64)}, second)
    expected = f"model.embed_tokens.weight is stored twice: in {first.name} and in {second.name}."
    assert refusal(load_pretrained, sharded) == expected


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"metadata": {}}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\0"]
)
def test_an_index_that_is_none_is_named(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    assert refusal(load_pretrained, sharded).startswith(str(sharded / "model.safetensors.index.json"))


@pytest.mark.parametrize("place", ["../{}", "{folder}/{}", "inside/{}", "./{}", "..", ""])
def test_an_index_that_leads_out_of_its_folder_is_not_followed(sharded, tmp_path, place):
    file = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"][EXPERT]
    (sharded / "inside").mkdir()
    for elsewhere in (tmp_path, sharded / "inside"):
        (elsewhere / file).write_bytes((sharded / file).read_bytes())
    led_away = place.format(file, folder=tmp_path)

    def lead(places):
        places.update({name: led_away for name in places if places[name] == file})

    change_places(sharded, lead)
    expected = "has no weight_map: it must name a file of this folder for each tensor."
    assert refusal(load_pretrained, sharded) == f"{sharded / 'model.safetensors.index.json'} {expected}"


def test_a_folder_without_weights_is_named_with_what_it_needs(folder):
    (folder / "model.safetensors").unlink()
    expected = f"{folder} has no weights: model.safetensors or model.safetensors.index.json is needed."
    assert refusal(load_pretrained, folder) == expected


def test_a_missing_configuration_is_named(folder):
    (folder / "config.json").unlink()
    assert refusal(load_pretrained, folder).startswith(f"{folder / 'config.json'} does not exist")


@pytest.mark.parametrize("content", ["", '{"model_type": "deepse', "[]", "null", "\0"])
def test_a_torn_configuration_is_named(folder, content):
    (folder / "config.json").write_text(content)
    assert refusal(load_pretrained, folder).startswith(str(folder / "config.json"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(hidden_size=32), ".weight has shape ["),
        (dict(num_hidden_layers=3), "model.layers.3."),
        (dict(num_hidden_layers=1), "model.layers.1."),
        (dict(num_nextn_predict_layers=2), "model.layers.3."),
        (dict(num_nextn_predict_layers=0), "model.layers.2."),
        (dict(n_routed_experts=16), "model.layers.1.mlp.experts.8.gate_proj.weight is missing"),
        (dict(n_routed_experts=4, n_group=2), "model.layers.1.mlp.experts."),
        (dict(first_k_dense_replace=0), "model.layers.0.mlp.gate.weight is missing"),
        (dict(q_lora_rank=None), "model.layers.0.self_attn.q_proj.weight is missing"),
        (dict(n_shared_experts=2), "model.layers.1.mlp.shared_experts."),
        (dict(model_type="gpt2"), "model_type='gpt2' is unknown"),
        (dict(hidden_act="gelu"), "hidden_act='gelu' is not supported"),
        (dict(vocab_size="300"), "vocab_size='300' is not possible"),
    ],
)
def test_a_configuration_of_another_model_is_refused(folder, changes, says):
    change_json(folder / "config.json", **changes)
    assert says in refusal(load_pretrained, folder)


def test_what_is_no_folder_is_named(folder, tmp_path):
    for path in (folder / "config.json", folder / "absent", folder / "config.json" / "absent"):
        expected = f"{path} is not a folder: give the one that holds config.json and the weights."
        assert refusal(load_pretrained, path) == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, "float32", None])
def test_a_dtype_that_is_not_possible_is_answered_with_the_possible_ones(folder, dtype):
    message = refusal(load_pretrained, folder, dtype=dtype)
    assert message == f"dtype={dtype} is not possible: it must be torch.float32, torch.bfloat16, torch.float16."


# ---------------------------------------------------------------------------------------------------
# Writing


def save(model: DeepSeek, **fixed):
    return lambda folder: save_pretrained(model, folder, **fixed)


@pytest.fixture
def other() -> DeepSeek:
    return random_model(SMALL, seed=1)


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_save_that_breaks_off_leaves_what_was_there(model, other, tmp_path, monkeypatch, error, earlier):
    if earlier:
        save_pretrained(model, tmp_path / "model")
    before, written, real = contents(tmp_path), [], hub.save_file

    def break_off(tensors, path, metadata):
        if written:
            Path(path).write_bytes(b"half a shard")
            raise error
        written.append(path)
        real(tensors, path, metadata)

    monkeypatch.setattr(hub, "save_file", break_off)
    with pytest.raises(type(error)):
        save_pretrained(other, tmp_path / "model", max_shard_bytes=200_000)
    assert written
    assert contents(tmp_path) == before
    if earlier:
        assert_same(load_pretrained(tmp_path / "model").state_dict(), model.state_dict())


def test_a_report_that_is_no_json_leaves_what_was_there(folder, other):
    before = contents(folder.parent)
    with pytest.raises(TypeError):
        save_pretrained(other, folder, report={"path": Path("x")})
    assert contents(folder.parent) == before


STRANGERS = [
    "notes.txt", "model.pt", ".hidden", "config.json.bak", "tokenizer.model", "my-model.safetensors", "sub/x",
    "model_before_finetuning.safetensors", "model-00001-of-2.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_folder_with_anything_else_in_it_is_refused(folder, other, stranger):
    (folder / stranger).parent.mkdir(exist_ok=True)
    (folder / stranger).write_text("somebody's")
    message = refusal(save(other), folder)
    assert message.startswith(f"{folder} holds {stranger.split('/')[0]}, which is no part of a saved model: ")


def test_a_file_that_is_put_there_while_saving_is_not_lost(folder, other, monkeypatch):
    before, real = load_file(folder / "model.safetensors"), hub.save_file

    def save_file(*args):
        real(*args)
        (folder / "notes.txt").write_text("somebody's")

    monkeypatch.setattr(hub, "save_file", save_file)
    with pytest.raises(ValueError, match=r"holds notes\.txt, which is no part of a saved model"):
        save_pretrained(other, folder)
    assert (folder / "notes.txt").read_text() == "somebody's"
    assert_same(load_file(folder / "model.safetensors"), before)
    assert os.listdir(folder.parent) == ["model"]


def test_what_finder_leaves_in_every_folder_is_in_nobody_s_way(folder, other):
    (folder / ".DS_Store").touch()
    save_pretrained(other, folder)
    assert_same(load_pretrained(folder).state_dict(), other.state_dict())


def test_a_mount_point_is_refused(other, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "model")
    for path in (tmp_path / "model", tmp_path / "link"):
        assert refusal(save(other), path) == f"{path} is a mount point: give the name of a folder in it."


def test_a_name_that_is_a_file_is_refused(other, tmp_path):
    (tmp_path / "model").write_text("somebody's")
    assert refusal(save(other), tmp_path / "model") == f"{tmp_path / 'model'} is a file: give the name of a folder."


def test_the_working_directory_is_not_replaced(other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the working directory"):
        save_pretrained(other, ".")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, "float32"])
def test_a_dtype_that_cannot_be_stored_is_answered_with_the_possible_ones(folder, other, dtype):
    message = refusal(save(other, dtype=dtype), folder)
    assert message == f"dtype={dtype} is not possible: it must be torch.float32, torch.bfloat16, torch.float16."


def test_a_float64_model_is_stored_only_in_a_dtype_asked_for(other, folder):
    other = other.double()
    message = refusal(save(other), folder)
    assert message == "dtype=torch.float64 is not possible: it must be torch.float32, torch.bfloat16, torch.float16."
    save_pretrained(other, folder, dtype=torch.float32)
    assert_same(load_pretrained(folder).state_dict(), other.float().state_dict())


def test_saving_again_replaces_all_weights_that_were_there(model, other, tmp_path):
    folder = tmp_path / "model"
    save_pretrained(model, folder, max_shard_bytes=200_000)
    assert len(list(folder.iterdir())) > 4
    save_pretrained(other, folder)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert_same(load_pretrained(folder).state_dict(), other.state_dict())
    save_pretrained(model, folder, max_shard_bytes=200_000)
    assert not (folder / "model.safetensors").exists()
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())
    assert os.listdir(tmp_path) == ["model"]


def test_saving_again_keeps_the_tokenizer_unless_given_anew_and_never_the_report(model, other, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_pretrained(model, folder, tokenizer=tokenizer, report={"loss": 1.0})
    before = contents(folder)
    save_pretrained(other, folder, max_shard_bytes=200_000)
    after = contents(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert after[name] == before[name], name
    assert not {"model.safetensors", "report.json"} & after.keys()
    assert_same(load_pretrained(folder).state_dict(), other.state_dict())
    another = Tokenizer.train(["Another text."], 260)
    save_pretrained(other, folder, tokenizer=another)
    assert (folder / "tokenizer.json").read_text() == another.to_json()


def test_of_one_file_at_a_time_are_copies_in_memory(model, tmp_path, monkeypatch):
    real_to, real_save, written = Tensor.to, hub.save_file, []

    def to(self, *args, **options):
        assert not any(copy() is not None for copy in written)
        return real_to(self, *args, **options)

    def save_file(tensors, *args):
        real_save(tensors, *args)
        written[:] = [weakref.ref(tensor) for tensor in tensors.values()]

    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(hub, "save_file", save_file)
    save_pretrained(model, tmp_path / "model", max_shard_bytes=200_000)
    assert written


def test_weights_that_lie_transposed_in_memory_are_saved(tmp_path):
    model = random_model(SMALL)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.T.contiguous().T)
    save_pretrained(model, tmp_path / "model")
    assert_same(load_pretrained(tmp_path / "model").state_dict(), model.state_dict())


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # importing the compiler
def test_a_compiled_model_or_part_is_saved_under_the_released_names(model, folder, tmp_path):
    part = random_model(SMALL)
    part.layers[1] = torch.compile(part.layers[1])
    for name, compiled in {"whole": torch.compile(model), "part": part}.items():
        assert any("_orig_mod" in key for key in compiled.state_dict())
        save_pretrained(compiled, tmp_path / name)
        assert_same(stored(tmp_path / name), stored(folder))


def test_a_path_may_be_relative_text_or_lack_its_parents(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("model", "a/b/model", Path("a/../c/model"), f"{tmp_path}/d/model/"):
        save_pretrained(model, path)
        assert_same(load_pretrained(path).state_dict(), model.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["a", "c", "d", "model"]


def test_an_empty_folder_is_free(model, tmp_path):
    (tmp_path / "model").mkdir()
    save_pretrained(model, tmp_path / "model")
    load_pretrained(tmp_path / "model")


def test_behind_a_link_the_folder_is_replaced_and_the_link_stays(folder, other, tmp_path):
    (tmp_path / "link").symlink_to("model")
    save_pretrained(other, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    for path in (folder, tmp_path / "link"):
        assert_same(load_pretrained(path).state_dict(), other.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["link", "model"]


def test_others_may_read_every_file_as_if_the_user_had_made_it(sharded, tmp_path):
    (tmp_path / "plain").write_text("")
    assert {file.stat().st_mode for file in sharded.iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_the_files_say_that_torch_wrote_them(folder):
    """transformers refuses weights without this mark."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


# ---------------------------------------------------------------------------------------------------
# What lies beside the weights


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, moe_layer_freq=2)], ids=["deepseek_v3", "minids"])
@pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning")
def test_the_tokenizer_gives_the_same_ids_here_and_in_transformers(tokenizer, tmp_path, config):
    save_pretrained(random_model(config), tmp_path / "model", tokenizer=tokenizer)
    loaded, theirs = Tokenizer.load(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.to_json() == tokenizer.to_json()
    for text in ["", "Die Größe: 127", "  def f ( x ) :\n\treturn x , 深度求索 . 👩‍👩‍👧 do n't\r\n"]:
        ids = theirs(text)["input_ids"]
        assert ids == [tokenizer.end_of_text, *tokenizer.encode(text)]
        assert theirs.decode(ids[1:]) == text
    assert (theirs.bos_token, theirs.eos_token) == (END_OF_TEXT, END_OF_TEXT)
    assert theirs.model_max_length == config.max_position_embeddings


def test_the_configuration_names_the_tokenizer_s_end_of_text(tokenizer, tmp_path):
    model = random_model(replace(SMALL, bos_token_id=5, eos_token_id=7))
    save_pretrained(model, tmp_path / "model")
    config = load_pretrained(tmp_path / "model").config
    assert (config.bos_token_id, config.eos_token_id) == (5, 7)
    save_pretrained(model, tmp_path / "model", tokenizer=tokenizer)
    for _ in range(2):
        config = load_pretrained(tmp_path / "model").config
        assert (config.bos_token_id, config.eos_token_id) == (tokenizer.end_of_text, tokenizer.end_of_text)
        assert config == replace(SMALL, bos_token_id=0, eos_token_id=0)
        save_pretrained(model, tmp_path / "model")  # the tokenizer stays, and what is said of it


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tokenizer, folder):
    small = random_model(replace(SMALL, vocab_size=tokenizer.vocab_size - 1))
    message = refusal(save(small, tokenizer=tokenizer), folder)
    size = tokenizer.vocab_size
    assert message == f"the tokenizer has {size} tokens: the model knows {size - 1}."
    save_pretrained(random_model(replace(SMALL, vocab_size=size)), folder, tokenizer=tokenizer)


def test_the_reference_is_model_tokenizer_and_report(model, tokenizer, tmp_path, monkeypatch):
    report = {"loss": 1.5, "name": "深"}
    save_pretrained(model, tmp_path / "mini", tokenizer=tokenizer, report=report)
    monkeypatch.setattr(trained, "REFERENCE", tmp_path / "mini")
    reference = trained.reference()
    assert_same(reference.model.state_dict(), model.state_dict())
    assert not reference.model.training
    assert reference.tokenizer.to_json() == tokenizer.to_json()
    assert reference.report == report
