"""The released names: which there are, which tensor each means, and that the docstrings list them."""

import re
import sys
from dataclasses import replace

import pytest
import torch
from configurations import random_model
from helpers_hub import SMALL, assert_same, stored

from minids.hub.names import released_name, released_tensors
from minids.hub.save import save_pretrained
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek

ORDINARY = ModelConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, intermediate_size=24,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
MLA_PARTS = "q_a_proj q_a_layernorm q_b_proj kv_a_proj_with_mqa kv_a_layernorm kv_b_proj o_proj"
PROJECTIONS = ["gate_proj", "up_proj", "down_proj"]


def layer_names(i: int, mlp: list[str]) -> set[str]:
    parts = ["input_layernorm", "post_attention_layernorm", *(f"self_attn.{p}" for p in MLA_PARTS.split())]
    return {f"model.layers.{i}.{part}.weight" for part in [*parts, *(f"mlp.{p}" for p in mlp)]}


def moe_names(i: int, experts: int) -> set[str]:
    mlp = ["gate"] + [f"shared_experts.{p}" for p in PROJECTIONS]
    mlp += [f"experts.{e}.{p}" for e in range(experts) for p in PROJECTIONS]
    return layer_names(i, mlp) | {f"model.layers.{i}.mlp.gate.e_score_correction_bias"}


def mtp_names(i: int, experts: int) -> set[str]:
    parts = ["embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head"]
    return moe_names(i, experts) | {f"model.layers.{i}.{part}.weight" for part in parts}


def test_the_names_are_those_of_the_deepseek_v3_release(tmp_path):
    """Of the other families, tests/model/test_parity.py: transformers finds every name that it looks for."""
    model = random_model(replace(SMALL, num_nextn_predict_layers=2))
    save_pretrained(model, tmp_path / "model")
    tensors, ends = stored(tmp_path / "model"), {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert tensors.keys() == ends | layer_names(0, PROJECTIONS) | moe_names(1, 8) | mtp_names(2, 8) | mtp_names(3, 8)
    for i in (2, 3):
        assert torch.equal(tensors[f"model.layers.{i}.embed_tokens.weight"], model.embed_tokens.weight)
        assert torch.equal(tensors[f"model.layers.{i}.shared_head.head.weight"], model.lm_head.weight)


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
        end = ".".join(released_name(name, config).split(".")[-2:])
        for released in stacks.get(end, [end]):
            assert re.search(rf"\b{released}\b", table_of(name, model)), (name, released)
            seen.add(released)
    assert seen == {".".join(name.split(".")[-2:]) for name in released_tensors(model)}


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # importing the compiler
def test_a_compiled_model_or_part_has_the_released_names(model):
    part = random_model(SMALL)
    part.layers[1] = torch.compile(part.layers[1])
    for compiled in (torch.compile(model), part):
        assert any("_orig_mod" in key for key in compiled.state_dict())
        assert_same(released_tensors(compiled), released_tensors(model))
