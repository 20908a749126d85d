"""config.json, in and out: released entries, transformers' own classes, and a family's name only where it is true."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from configurations import configurations, examples, random_model, random_tokens
from families import DEEPSEEK, FAMILY, LLAMA, V2, V3, on_disk
from hf_oracle import CONFIGS, hf_twin
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from minids.model import config_json
from minids.model.config import PRESETS, ModelConfig, YarnScaling

RELEASED_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
    "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip


@examples(200)
@given(st.sampled_from([ModelConfig.preset(name) for name in PRESETS]) | configurations())
def test_every_configuration_survives_the_way_to_hugging_face_and_back(config):
    assert ModelConfig.from_hf(on_disk(config.to_hf())) == config


# transformers has no class for experts under ordinary attention, and none for MLA without experts.
@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"deepseek-moe-16b", "mini-dense"}))
def test_every_preset_survives_transformers_own_configuration_class(name):
    config = ModelConfig.preset(name)
    entries = config.to_hf()
    theirs = CONFIGS[entries.pop("model_type")](**entries).to_dict()
    assert ModelConfig.from_hf(on_disk(theirs)) == config


def test_the_released_configuration_of_v3_is_the_preset():
    entries = on_disk(RELEASED_V3)
    assert ModelConfig.from_hf(entries) == replace(ModelConfig.preset("deepseek-v3"), initializer_range=0.02)
    assert entries == RELEASED_V3, "the caller's dict stays as it was"


# What DeepSeek's files have beside the model's own keys, and what transformers 4 added when it saved one.
BESIDE = {
    "attention_dropout": 0.0, "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"}, "ep_size": 1,
    "aux_loss_alpha": 0.001, "seq_aux": True, "pretraining_tp": 1, "use_cache": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1", "mlp_bias": False, "_name_or_path": "x", "pad_token_id": None, "pruned_heads": {},
    "id2label": {"0": "LABEL_0"}, "tie_encoder_decoder": False, "use_bfloat16": False, "torchscript": False,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("deepseek")])
def test_what_released_files_have_beside_the_model_is_passed_over(name):
    config = ModelConfig.preset(name)
    assert ModelConfig.from_hf(on_disk(config.to_hf() | BESIDE)) == config


# ---------------------------------------------------------------------------------------------------
# The name of the family


def yarn(**mscales: float) -> dict:
    return dict(rope_scaling=YarnScaling(factor=40, original_max_position_embeddings=16, **mscales))


def one_by_one(base: ModelConfig, **fields) -> list[tuple[ModelConfig, dict]]:
    return [(base, {name: value}) for name, value in fields.items()]


INSIDE = [
    (LLAMA, {}),
    (LLAMA, dict(num_key_value_heads=2, head_dim=24, tie_word_embeddings=True, eos_token_id=(2, 3))),
    (LLAMA, yarn()),
    (LLAMA, yarn(mscale=0.5, mscale_all_dim=0.8)),
    (DEEPSEEK, {}),
    (DEEPSEEK, dict(norm_topk_prob=True, num_key_value_heads=2, tie_word_embeddings=True)),
    (DEEPSEEK, dict(num_experts_per_tok=1)),
    (DEEPSEEK, dict(moe_layer_freq=2, n_shared_experts=2, first_k_dense_replace=1)),
    (V2, {}),
    (V2, dict(topk_method="group_limited_greedy", n_group=8, topk_group=4, routed_scaling_factor=16.0)),
    (V2, dict(first_k_dense_replace=9)),
    (V2, dict(q_lora_rank=7, qk_rope_head_dim=2, v_head_dim=5, first_k_dense_replace=1, tie_word_embeddings=True)),
    (V2, yarn()),
    (V2, yarn(mscale=0.5, mscale_all_dim=0.8)),
    (V3, {}),
    (V3, dict(n_group=4, topk_group=2, norm_topk_prob=False, routed_scaling_factor=2.5, num_nextn_predict_layers=2)),
    (V3, dict(first_k_dense_replace=9)),
    (V3, dict(hidden_size=27, kv_lora_rank=7, qk_nope_head_dim=5, q_lora_rank=3, num_experts_per_tok=1)),
    (V3, yarn()),
    (V3, yarn(mscale=0.5, mscale_all_dim=0.8)),
]
OUTSIDE = [
    *one_by_one(LLAMA, hidden_size=66, initializer_range=1.5, num_nextn_predict_layers=1),
    (LLAMA, yarn(mscale=0.5)),
    (LLAMA, yarn(mscale=0.0)),
    (LLAMA, yarn(mscale=0.0, mscale_all_dim=0.8)),
    *one_by_one(DEEPSEEK, scoring_func="sigmoid", topk_method="noaux_tc", routed_scaling_factor=2.5, head_dim=24),
    *one_by_one(DEEPSEEK, topk_method="group_limited_greedy", num_nextn_predict_layers=1),
    (DEEPSEEK, dict(norm_topk_prob=True, num_experts_per_tok=1)),
    (DEEPSEEK, yarn()),
    *one_by_one(V2, scoring_func="sigmoid", topk_method="noaux_tc", norm_topk_prob=True, moe_layer_freq=2),
    *one_by_one(V2, n_shared_experts=None, n_routed_experts=None, num_nextn_predict_layers=1),
    *one_by_one(V2, hidden_size=66, kv_lora_rank=17, qk_nope_head_dim=17),
    (V2, yarn(mscale=0.5)),
    *one_by_one(V3, scoring_func="softmax", topk_method="greedy", moe_layer_freq=2),
    *one_by_one(V3, topk_method="group_limited_greedy", n_shared_experts=None, n_routed_experts=None),
    (V3, dict(n_routed_experts=1, num_experts_per_tok=1)),
    (V3, yarn(mscale=0.5)),
    (V3, yarn(mscale=0.0, mscale_all_dim=0.8)),
]


def cases(table: list[tuple[ModelConfig, dict]]) -> pytest.MarkDecorator:
    ids = ["-".join([FAMILY[base], *changes]) for base, changes in table]
    return pytest.mark.parametrize(("base", "changes"), table, ids=ids)


def transformers_agrees(config: ModelConfig) -> bool:
    """Whether the class of `config.model_type` takes the configuration and the weights, and gives the same logits."""
    model, tokens = random_model(config), random_tokens(config, 2, 12)
    try:
        with torch.no_grad():
            return torch.allclose(hf_twin(model)(tokens).logits, model(tokens), rtol=1e-3, atol=1e-3)
    except Exception:  # each class refuses in its own way
        return False


@cases(INSIDE)
def test_a_family_that_computes_it_is_named_and_its_class_agrees(base, changes):
    config = replace(base, **changes)
    assert config.model_type == FAMILY[base]
    if base is not DEEPSEEK:  # whose class came with its weights
        assert hasattr(transformers, config.to_hf()["architectures"][0])
        assert transformers_agrees(config)


@cases(OUTSIDE)
def test_one_change_that_no_family_has_makes_it_ours_and_is_needed(base, changes, monkeypatch):
    config = replace(base, **changes)
    entries = on_disk(config.to_hf())
    assert (entries["model_type"], entries["architectures"]) == ("minids", ["DeepSeek"])
    assert ModelConfig.from_hf(entries) == config
    if base is not DEEPSEEK and "num_nextn_predict_layers" not in changes:
        monkeypatch.setattr(config_json, "family_of", lambda config: FAMILY[base])
        assert not transformers_agrees(config), "the name of the family is withheld without need"


def test_transformers_refuses_what_is_ours(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(replace(V3, moe_layer_freq=2).to_hf()))
    with pytest.raises(ValueError, match="minids"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("base", [LLAMA, V2, V3], ids=lambda base: FAMILY[base])
def test_a_whole_number_is_written_as_the_float_that_transformers_insists_on(base):
    config = replace(base, rms_norm_eps=1, initializer_range=1, routed_scaling_factor=2)
    entries = on_disk(config.to_hf())
    assert ModelConfig.from_hf(entries) == config
    theirs = CONFIGS[entries.pop("model_type")](**entries).to_dict()
    assert (theirs["rms_norm_eps"], theirs["initializer_range"], theirs["routed_scaling_factor"]) == (1, 1, 2)
