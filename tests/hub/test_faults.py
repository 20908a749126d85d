"""What is wrong with a folder is told in one sentence: each fault, and a part of the sentence that answers it."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from helpers_hub import (
    BIAS,
    COPIES,
    EXPERT,
    SCALE,
    change_json,
    change_tensors,
    quantize_folder,
    refusal,
)
from safetensors.torch import load_file, save_file

from minids.hub.load import load_pretrained

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SECOND = "model-00002-of-00006.safetensors"
FP8, NAN, INF = torch.float8_e4m3fn, torch.nan, torch.inf
TENSORS = [  # a tensor, and what becomes of it: None, it is gone; or its new shape, its new dtype, one new number
    *[(name, None, " is missing from the weights: the configuration requires it.")
      for name in (EXPERT, BIAS, "lm_head.weight", "model.norm.weight", "model.layers.2.eh_proj.weight")],
    *[(name, [1], " in {file} is not a tensor of the configured model.")
      for name in ("x", "model.layers.3.enorm.weight", "model.layers.0.mlp.gate.weight", f"{EXPERT[:-6]}bias", "a\nb")],
    *[(EXPERT, shape, f" has shape {shape} in {{file}}: the configuration requires [32, 64].")
      for shape in ([64, 32], [2048], [1, 32, 64], [33, 64], [])],
    (BIAS, [1, 8], " has shape [1, 8] in {file}: the configuration requires [8]."),
    (COPIES[1], [299, 64], " has shape [299, 64] in {file}: the configuration requires [300, 64]."),
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
    (SCALE, None, f"{SCALE} is missing from the weights: its FP8 weight requires it."),
    *[(SCALE, shape, f"{SCALE} has shape {shape} in ") for shape in ([3, 3], [3, 2], [6])],
    (SCALE, FP8, f"{SCALE} is stored as F8_E4M3"),
    (SCALE, INF, f"{EXPERT} in {{file}} is NaN or infinite"),
    (EXPERT, NAN, f"{EXPERT} in {{file}} is NaN or infinite"),
    (EXPERT, torch.float32, f"'{SCALE}' in {{file}} is not a tensor of the configured model."),
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
    named = repr(name) if "is not a tensor" in says else name
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
    assert refusal(load_pretrained, sharded) == f"{name!r} is not in {sharded / SECOND}, although the index says so."


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
    assert refusal(load_pretrained, folder) == "loading this model takes 0 GiB of memory: this machine has 0."


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, "float32", None])
def test_a_dtype_that_is_not_possible_is_answered_with_the_possible_ones(folder, dtype):
    message = refusal(load_pretrained, folder, dtype=dtype)
    assert message == f"dtype={dtype!r} is not possible: it must be torch.float32, torch.bfloat16, torch.float16."
