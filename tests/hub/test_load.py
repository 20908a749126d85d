"""Loading: every bit comes back, and every fault is answered with one sentence that names it."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configurations import configurations, examples, random_model, random_tokens
from helpers_hub import (
    BIAS,
    COPIES,
    EXPERT,
    FLOATS,
    SMALL,
    assert_same,
    change_json,
    change_tensors,
    held_open,
    refusal,
    stored,
)
from hypothesis import given
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minids.hub.load import load_pretrained
from minids.hub.names import released_tensors
from minids.hub.save import save_pretrained
from minids.quantization.fp8 import dequantize_blocks, scale_shape

# ---------------------------------------------------------------------------------------------------
# There and back


@examples(25)
@given(configurations())
def test_what_was_saved_comes_back_bit_for_bit(tmp_path_factory, config):
    model, folder = random_model(config), tmp_path_factory.mktemp("hub") / "model"
    random_state = torch.get_rng_state()
    save_pretrained(model, folder)
    loaded = load_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded.config == config
    assert_same(loaded.state_dict(), model.state_dict())
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == config.tie_word_embeddings
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_model_is_loaded_in_the_dtype_asked_for_with_its_bias_in_float32(folder, model, dtype):
    expected = {n: t if n.endswith("expert_bias") else t.to(dtype) for n, t in model.state_dict().items()}
    assert_same(load_pretrained(folder, dtype=dtype).state_dict(), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_model_is_ready_to_evaluate_and_to_train(tmp_path, tied):
    model = random_model(replace(SMALL, tie_word_embeddings=tied))
    save_pretrained(model, tmp_path / "model")
    loaded, tokens = load_pretrained(tmp_path / "model"), random_tokens(SMALL, 2, 12)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(tokens), model(tokens))
    loaded.train()
    loaded.loss(tokens).total.backward()
    assert all(parameter.grad.any() for name, parameter in loaded.named_parameters() if "experts" not in name)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter -= 0.1 * parameter.grad
    loaded.update_expert_bias(0.1)
    assert torch.equal(loaded.lm_head.weight, loaded.embed_tokens.weight) == tied
    assert_same(load_pretrained(tmp_path / "model").state_dict(), model.state_dict())  # the file has not changed


def test_nothing_shows_of_what_was_in_the_memory_before(folder, model):
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN and the largest integer
    try:
        loaded = load_pretrained(folder)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(dict(loaded.named_buffers()), dict(model.named_buffers()))
    assert_same(loaded.state_dict(), model.state_dict())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to ask")
def test_a_loaded_model_holds_no_file_open(sharded):
    with safe_open(next(sharded.glob("*.safetensors")), framework="pt"):
        assert held_open(sharded), "held_open sees what is open"
    loaded = load_pretrained(sharded)
    assert not held_open(sharded)
    del loaded


# ---------------------------------------------------------------------------------------------------
# What is stored twice, and what may be left out


def test_a_copy_may_have_another_dtype_or_be_absent(model, tmp_path):
    folder = tmp_path / "model"
    save_pretrained(model, folder, dtype=torch.bfloat16)
    change_tensors(folder, lambda tensors: tensors.update({COPIES[0]: tensors[COPIES[0]].float()}))
    change_tensors(folder, lambda tensors: tensors.pop(COPIES[1]))
    load_pretrained(folder)
    change_tensors(folder, lambda tensors: tensors[COPIES[0]][7, 3].mul_(1.0001))
    assert f"{COPIES[0]} in {folder}/model.safetensors must equal model.embed" in refusal(load_pretrained, folder)


def test_a_tied_head_may_be_stored_if_it_equals_the_embedding(tmp_path):
    model, folder = random_model(replace(SMALL, tie_word_embeddings=True)), tmp_path / "model"
    save_pretrained(model, folder)
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[COPIES[1]].clone()}))
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())
    change_tensors(folder, lambda tensors: tensors["lm_head.weight"][0, 0].add_(1))
    for mtp in (True, False):
        assert re.match(r"lm_head\.weight in .* must equal model\.embed", refusal(load_pretrained, folder, mtp=mtp))


@pytest.mark.parametrize("modules", [0, 1, 2])
def test_without_mtp_the_main_model_is_left_whatever_is_in_the_modules(tmp_path, modules):
    model, folder = random_model(replace(SMALL, num_nextn_predict_layers=modules)), tmp_path / "model"
    save_pretrained(model, folder)
    change_tensors(folder, lambda tensors: [t.fill_(torch.nan) for n, t in tensors.items() if ".layers.2." in n])
    loaded = load_pretrained(folder, mtp=False)
    assert loaded.config == replace(SMALL, num_nextn_predict_layers=0)
    main = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("mtp.")}
    assert_same(loaded.state_dict(), main)


def test_modules_that_transformers_dropped_are_left_out_with_a_warning(folder, model):
    change_tensors(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("model.layers.2.")])
    with pytest.warns(UserWarning, match=rf"^{folder} holds nothing of the MTP modules: .* without\.$"):
        loaded = load_pretrained(folder)
    assert loaded.config == replace(model.config, num_nextn_predict_layers=0)
    assert_same(load_pretrained(folder, mtp=False).state_dict(), loaded.state_dict())  # asked for, and no warning


@pytest.mark.parametrize("rest", ["model.layers.2.enorm.weight", "model.layers.3."])
def test_of_modules_some_are_not_enough(tmp_path, rest):
    save_pretrained(random_model(replace(SMALL, num_nextn_predict_layers=2)), tmp_path / "model")
    extra = ("model.layers.2.", "model.layers.3.")
    change_tensors(
        tmp_path / "model",
        lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith(extra) and not n.startswith(rest)],
    )
    assert re.match(r"model\.layers\.2\..* is missing", refusal(load_pretrained, tmp_path / "model"))


def test_a_layer_too_many_is_not_taken_for_a_module(tmp_path):
    """A configuration of fewer layers than the weights have must not load the lower part of a model."""
    save_pretrained(random_model(replace(SMALL, num_hidden_layers=3, num_nextn_predict_layers=0)), tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", num_hidden_layers=2, num_nextn_predict_layers=1)
    assert "model.layers.2.enorm.weight is missing" in refusal(load_pretrained, tmp_path / "model")
    assert "model.layers.2." in refusal(load_pretrained, tmp_path / "model", mtp=False)


def test_frequencies_in_old_files_are_passed_over(folder, model):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())


# ---------------------------------------------------------------------------------------------------
# FP8

# Of these DeepSeek-V3 stores the matrices in FP8.
FP8_LAYERS = r"model\.layers\.\d+\.(self_attn|mlp)\..*_proj(_with_mqa)?\.weight"
NARROW = replace(SMALL, vocab_size=40, hidden_size=24, intermediate_size=40, moe_intermediate_size=12, q_lora_rank=10)
SCALE = EXPERT + "_scale_inv"


def quantize_folder(folder: Path, block: tuple[int, int], layers: str) -> dict:
    """Store matrices in FP8 with any scales; return by name what they then stand for."""
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if re.fullmatch(layers, name)]:
        values, scale = tensors[name].to(torch.float8_e4m3fn), torch.rand(scale_shape(tensors[name].shape, block))
        tensors |= {name: values, f"{name}_scale_inv": scale}
        meant[name] = dequantize_blocks(values, scale, block)
    save_file(tensors, folder / "model.safetensors")
    entry = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    change_json(folder / "config.json", quantization_config=entry)
    return meant


@pytest.mark.parametrize("block", [(128, 128), (16, 10), (10, 16), (10, 2**62)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_fp8_release_is_read_as_value_times_scale(tmp_path, block, dtype):
    folder = tmp_path / "model"
    save_pretrained(random_model(NARROW), folder)
    as_before = stored(folder)
    meant = quantize_folder(folder, block, FP8_LAYERS)
    assert len(meant) == 3 * 5 + 3 + 2 * 9 * 3, "attention, dense layer, routed and shared experts"
    pieces = released_tensors(load_pretrained(folder, dtype=dtype))
    expected = {name: (as_before | meant)[name].to(dtype) for name in pieces}
    expected |= {name: as_before[name] for name in pieces if "e_score_correction_bias" in name}
    assert_same(pieces, expected)


def test_a_copy_may_be_fp8_like_its_original(folder):
    quantize_folder(folder, (128, 128), r"lm_head\.weight")
    head = "lm_head.weight"
    change_tensors(
        folder, lambda t: t.update({f"{COPIES[1]}{end}": t[f"{head}{end}"].clone() for end in ("", "_scale_inv")})
    )
    load_pretrained(folder)
    change_tensors(folder, lambda tensors: tensors[f"{COPIES[1]}_scale_inv"].mul_(2))
    assert refusal(load_pretrained, folder).startswith(f"{COPIES[1]} in ")


# ---------------------------------------------------------------------------------------------------
# Faults, and part of the sentence that answers each

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SECOND = "model-00002-of-00006.safetensors"
FP8, NAN, INF = torch.float8_e4m3fn, torch.nan, torch.inf
TENSORS = [  # a tensor, and what becomes of it: None, it is gone; or its new shape, its new dtype, one new number
    *[(name, None, " is missing from the weights: the configuration asks for it.")
      for name in (EXPERT, BIAS, "lm_head.weight", "model.norm.weight", "model.layers.2.eh_proj.weight")],
    *[(name, [1], " in {file} is a tensor that the configuration does not ask for.")
      for name in ("x", "model.layers.3.enorm.weight", "model.layers.0.mlp.gate.weight", f"{EXPERT[:-6]}bias", "a\nb")],
    *[(EXPERT, shape, f" has shape {shape} in {{file}}: the configuration asks for [32, 64].")
      for shape in ([64, 32], [2048], [1, 32, 64], [33, 64], [])],
    (BIAS, [1, 8], " has shape [1, 8] in {file}: the configuration asks for [8]."),
    (COPIES[1], [299, 64], " has shape [299, 64] in {file}: the configuration asks for [300, 64]."),
    *[(EXPERT, dtype, " is stored as ") for dtype in (torch.int32, torch.uint8, torch.bool, torch.float8_e5m2)],
    (BIAS, torch.float64, " is stored as F64 in {file}: it must be F32, BF16, F16, or F8_E4M3 if it is a matrix."),
    (COPIES[0], torch.int8, " is stored as I8"),
    ("model.norm.weight", FP8, " is stored as F8_E4M3"),
    *[(name, value, " in {file} is NaN or infinite in places: it must be finite.")
      for name, value in ((EXPERT, NAN), (BIAS, -INF), ("model.norm.weight", INF))],
    (COPIES[0], 1.5, " in {file} must equal model.embed_tokens.weight, which it copies."),
    (COPIES[1], NAN, " in {file} must equal lm_head.weight, which it copies."),
]  # fmt: skip
SCALES = [
    (SCALE, None, f"{SCALE} is missing from the weights: its FP8 weight asks for it."),
    *[(SCALE, shape, f"{SCALE} has shape {shape} in ") for shape in ([3, 3], [3, 2], [6])],
    (SCALE, FP8, f"{SCALE} is stored as F8_E4M3"),
    (SCALE, INF, f"{EXPERT} in {{file}} is NaN or infinite"),
    (EXPERT, NAN, f"{EXPERT} in {{file}} is NaN or infinite"),
    (EXPERT, torch.float32, f"'{SCALE}' in {{file}} is a tensor that the configuration does not ask for."),
]


def change_one(folder: Path, name: str, to: object) -> None:
    def change(tensors):
        if to is None:
            del tensors[name]
        elif isinstance(to, list):
            tensors[name] = torch.zeros(to)
        elif isinstance(to, torch.dtype):
            tensors[name] = tensors[name].to(to)
        else:
            tensors[name].view(-1)[5] = to

    change_tensors(folder, change)


@pytest.mark.parametrize(("name", "to", "says"), TENSORS)
def test_a_wrong_tensor_is_named(folder, name, to, says):
    change_one(folder, name, to)
    named = repr(name) if "does not ask" in says else name
    assert refusal(load_pretrained, folder).startswith(named + says.format(file=folder / WEIGHTS))


@pytest.mark.parametrize(("name", "to", "says"), SCALES)
def test_a_scale_that_does_not_fit_its_weight_is_named(folder, name, to, says):
    quantize_folder(folder, (16, 24), re.escape(EXPERT))
    load_pretrained(folder)
    change_one(folder, name, to)
    assert refusal(load_pretrained, folder).startswith(says.format(file=folder / WEIGHTS))


@pytest.mark.parametrize(
    "content", [0, 7, 8, 500, 0.02, 0.5, -1, b"garbage" * 100, b"\xff" * 1000, b"\0" * 1000, b"{}"]
)
@pytest.mark.parametrize(("kind", "name"), [("folder", WEIGHTS), ("sharded", SECOND)])
def test_a_torn_file_is_named(request, kind, name, content):
    file = request.getfixturevalue(kind) / name
    whole = file.read_bytes()
    length = int(content * len(whole)) if isinstance(content, float) else content
    file.write_bytes(content if isinstance(content, bytes) else whole[:length])
    assert refusal(load_pretrained, file.parent).startswith(f"{file} is not a readable safetensors file: ")


def test_a_missing_file_is_named(sharded):
    (sharded / SECOND).unlink()
    assert refusal(load_pretrained, sharded) == f"{sharded / SECOND} does not exist: the index names it."
    (sharded / SECOND).mkdir()
    assert f"{SECOND} is not a regular file" in refusal(load_pretrained, sharded)
    (sharded / SECOND).rmdir()
    os.mkfifo(sharded / SECOND)
    assert f"{SECOND} is not a regular file" in refusal(load_pretrained, sharded)
    (sharded / INDEX).unlink()
    os.mkfifo(sharded / INDEX)
    assert f"{INDEX} is not a readable JSON file: it is not a regular" in refusal(load_pretrained, sharded)
    (sharded / INDEX).unlink()
    assert refusal(load_pretrained, sharded) == f"{sharded} has no weights: {WEIGHTS} or {INDEX} is needed."
    (sharded / "config.json").unlink()
    assert refusal(load_pretrained, sharded).startswith(f"{sharded / 'config.json'} does not exist")
    (sharded / "checkpoint.safetensors").touch()
    assert "holds a run: `minids export`" in refusal(load_pretrained, sharded)
    for path in (sharded / "absent", sharded / "checkpoint.safetensors"):
        assert refusal(load_pretrained, path).startswith(f"{path} is not a folder")


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"model_type": "deepse',
        "[]",
        "null",
        "\0",
        "{}",
        '{"weight_map": {"a": 1}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": ["b.safetensors"]}}',
        '{"weight_map": {"a": "b\\nc.safetensors"}}',
        '{"weight_map": {"a": "' + "b" * 300 + '.safetensors"}}',
        "[" * 2000,
    ],
)
def test_a_torn_configuration_or_index_is_named(sharded, name, content):
    (sharded / name).write_text(content)
    assert re.match(f"{sharded / name}|model_type=None is unknown", refusal(load_pretrained, sharded))


@pytest.mark.parametrize("name", ["lm_head.weight", "x"])
def test_a_tensor_that_is_not_where_the_index_has_it_is_named(sharded, name):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    change_json(sharded / INDEX, weight_map=places | {name: SECOND})
    assert refusal(load_pretrained, sharded) == f"{name!r} is not in {sharded / SECOND}, where the index has it."


def test_a_tensor_in_two_files_is_named_with_both(sharded):
    save_file(load_file(sharded / SECOND) | {"model.embed_tokens.weight": torch.zeros(300, 64)}, sharded / SECOND)
    expected = f"'model.embed_tokens.weight' is stored twice: in model-00001-of-00006.safetensors and in {SECOND}."
    assert refusal(load_pretrained, sharded) == expected


@pytest.mark.parametrize("place", ["../{}", "{folder}/{}", "inside/{}", "./{}", "..", ""])
def test_an_index_that_leads_out_of_its_folder_is_not_followed(sharded, tmp_path, place):
    (sharded / "inside").mkdir()
    for elsewhere in (tmp_path, sharded / "inside"):
        (elsewhere / SECOND).write_bytes((sharded / SECOND).read_bytes())
    places, led_away = json.loads((sharded / INDEX).read_text())["weight_map"], place.format(SECOND, folder=tmp_path)
    change_json(sharded / INDEX, weight_map={n: led_away if f == SECOND else f for n, f in places.items()})
    assert "has no weight_map: it must name a file of this folder for each" in refusal(load_pretrained, sharded)


ENTRIES = [
    (dict(hidden_size=32), ".weight has shape ["),
    (dict(num_hidden_layers=3), "'model.layers.2.e"),
    (dict(num_nextn_predict_layers=0), "model.layers.2."),
    (dict(n_routed_experts=16), "model.layers.1.mlp.experts.8.gate_proj.weight is missing"),
    (dict(first_k_dense_replace=0), "model.layers.0.mlp.gate.weight is missing"),
    (dict(q_lora_rank=None), "model.layers.0.self_attn.q_proj.weight is missing"),
    (dict(n_shared_experts=2), "model.layers.1.mlp.shared_experts."),
    (dict(vocab_size="300"), "vocab_size='300' is not possible"),
    *[
        (dict.fromkeys(names, number), " numbers.")
        for number in (2**40, 2**62)
        for names in (
            ["vocab_size", "hidden_size"],
            ["hidden_size", "moe_intermediate_size"],
            ["qk_rope_head_dim"],
            ["v_head_dim"],
        )
    ],
    (dict(num_hidden_layers=1000, num_nextn_predict_layers=0, n_routed_experts=65_536), " numbers."),
    *[
        (dict(quantization_config={"quant_method": "fp8", "weight_block_size": block}), "weight_block_size=")
        for block in (128, [128], [128, 0], [True, 128], [128, "128"], [2**63, 128], None)
    ],
    (dict(quantization_config=["fp8"] * 999), "it must be fp8 in e4m3, or absent"),
    (dict(quantization_config={"quant_method": "awq"}), "it must be fp8 in e4m3, or absent"),
]


@pytest.mark.parametrize(("changes", "says"), ENTRIES)
def test_a_configuration_of_another_model_is_refused(folder, changes, says):
    change_json(folder / "config.json", **changes)
    assert says in refusal(load_pretrained, folder)


def test_a_model_that_the_memory_does_not_hold_is_not_loaded(folder, monkeypatch):
    monkeypatch.setattr("minids.hub.load.total_memory", lambda device: 1000)
    assert refusal(load_pretrained, folder) == "loading this model takes 0 GiB: this machine has 0."


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, "float32", None])
def test_a_dtype_that_is_not_possible_is_answered_with_the_possible_ones(folder, dtype):
    message = refusal(load_pretrained, folder, dtype=dtype)
    assert message == f"dtype={dtype!r} is not possible: it must be torch.float32, torch.bfloat16, torch.float16."
