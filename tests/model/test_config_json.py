"""config.json, in and out: released entries, transformers' own classes, and a family's name only where it is true."""

import dataclasses
import json
import re
from dataclasses import replace

import pytest
import torch
import transformers
from configurations import DENSE, MLA, MOE, YARN, configurations, examples, random_model, random_tokens
from hf_oracle import CONFIGS, hf_twin
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minids.model import config_json
from minids.model.config import PRESETS, ModelConfig, YarnScaling
from minids.model.rope import rope_rotation

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


def on_disk(entries: dict) -> dict:
    return json.loads(json.dumps(entries))


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


# ---------------------------------------------------------------------------------------------------
# The name of the family

SOFTMAX = dict(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False)
LLAMA = ModelConfig(**DENSE, head_dim=16)
DEEPSEEK = ModelConfig(**MOE, **SOFTMAX)
V2 = ModelConfig(**(MLA | MOE), **SOFTMAX, n_shared_experts=2)
V3 = ModelConfig(**(MLA | MOE), n_shared_experts=1)


def yarn(**mscales: float) -> dict:
    return dict(rope_scaling=YarnScaling(factor=40, original_max_position_embeddings=16, **mscales))


def one_by_one(base: ModelConfig, **fields) -> list[tuple[ModelConfig, dict]]:
    return [(base, {name: value}) for name, value in fields.items()]


INSIDE = [
    (LLAMA, {}),
    (LLAMA, dict(num_key_value_heads=2, head_dim=24, tie_word_embeddings=True)),
    (LLAMA, yarn()),
    (LLAMA, yarn(mscale=0.5, mscale_all_dim=0.8)),
    (DEEPSEEK, {}),
    (DEEPSEEK, dict(norm_topk_prob=True, num_key_value_heads=2, tie_word_embeddings=True)),
    (DEEPSEEK, dict(num_experts_per_tok=1)),
    (DEEPSEEK, dict(moe_layer_freq=2, n_shared_experts=2, first_k_dense_replace=1)),
    (V2, {}),
    (V2, dict(topk_method="group_limited_greedy", n_group=8, topk_group=4, routed_scaling_factor=16.0)),
    (V2, dict(q_lora_rank=7, qk_rope_head_dim=2, v_head_dim=5, first_k_dense_replace=1, tie_word_embeddings=True)),
    (V2, yarn()),
    (V2, yarn(mscale=0.5, mscale_all_dim=0.8)),
    (V3, {}),
    (V3, dict(n_group=4, topk_group=2, norm_topk_prob=False, routed_scaling_factor=2.5, num_nextn_predict_layers=2)),
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
FAMILY = {LLAMA: "llama", DEEPSEEK: "deepseek", V2: "deepseek_v2", V3: "deepseek_v3"}


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


# ---------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("family", CONFIGS)
def test_a_missing_key_takes_the_default_of_its_family(family):
    elsewhere = {
        "rope_scaling",  # rope_parameters there
        "head_dim", "num_key_value_heads",  # mean nothing in MLA
    }  # fmt: skip
    experts = dict(n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=8) if family != "llama" else {}
    theirs = CONFIGS[family](**DENSE, **experts).to_dict()
    for name in ("n_group", "topk_group"):  # null there, 1 here
        theirs[name] = 1 if theirs.get(name) is None else theirs[name]
    ours = dataclasses.asdict(ModelConfig.from_hf(DENSE | experts | {"model_type": family}))
    compared = (ours.keys() & theirs.keys()) - elsewhere
    assert "initializer_range" in compared
    assert {name: ours[name] for name in compared} == {name: theirs[name] for name in compared}


SOFTMAX_GATE, V3_GATE = ("softmax", "greedy", False), ("sigmoid", "noaux_tc", True)


@pytest.mark.parametrize(
    ("family", "gate"),
    [("deepseek", SOFTMAX_GATE), ("deepseek_v2", SOFTMAX_GATE), ("deepseek_v3", V3_GATE), ("minids", V3_GATE)],
)
def test_each_family_has_its_own_gate_where_the_keys_are_missing(family, gate):
    config = ModelConfig.from_hf(MOE | {"n_routed_experts": 16, "model_type": family})
    assert (config.scoring_func, config.topk_method, config.norm_topk_prob) == gate


YARN_ENTRY = YARN | {"rope_type": "yarn", "rope_theta": 5.0}
NO_SCALING = (None, {}, {"rope_type": "default", "rope_theta": 10000.0})


@pytest.mark.parametrize(
    ("base", "entries", "fields"),
    [
        (V3, {"num_mtp_layers": 2}, dict(num_nextn_predict_layers=2)),
        (V3, {"num_local_experts": 16}, dict(n_routed_experts=16)),
        (V2, {"n_group": None, "topk_group": None}, {}),
        (V3, {"q_lora_rank": 0}, {}),
        (DEEPSEEK, {"n_shared_experts": 0}, {}),
        (V3, {"head_dim": 64}, {}),
        (LLAMA, {"torch_dtype": "bfloat16", "use_cache": True}, {}),
        (LLAMA, {"rope_scaling": YARN | {"type": "yarn"}}, dict(rope_scaling=YarnScaling(**YARN))),
        (LLAMA, {"rope_parameters": YARN_ENTRY}, dict(rope_scaling=YarnScaling(**YARN), rope_theta=5.0)),
        *[(LLAMA, {key: none}, {}) for key in ("rope_scaling", "rope_parameters") for none in NO_SCALING],
    ],
)
def test_what_some_files_write_in_another_way_is_read(base, entries, fields):
    assert ModelConfig.from_hf(base.to_hf() | entries) == replace(base, **fields)


def test_a_configuration_is_read_from_a_file_and_from_its_folder(tmp_path):
    config = ModelConfig.preset("tiny")
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    for source in (tmp_path, str(tmp_path), tmp_path / "config.json"):
        assert ModelConfig.from_hf(source) == config


GARBAGE = [b"{", b"[1, 2]", b"\xff\xfe", b"", b"[" * 100_000, b'{"vocab_size": ' + b"9" * 5000 + b"}", None]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_a_file_that_is_no_configuration_or_not_there_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} [^\n]+\.$"):
            ModelConfig.from_hf(source)


LLAMA_ENTRIES = DENSE | {"model_type": "llama"}
REFUSED = [
    *[({name: value for name, value in LLAMA_ENTRIES.items() if name != missing}, f"{missing} is missing")
      for missing in sorted(DENSE)],
    *[(LLAMA_ENTRIES | {"model_type": unknown}, "llama, deepseek, deepseek_v2, deepseek_v3")
      for unknown in ("gpt2", "deepseek_v32", None)],
    # What the code of the family would not compute
    *[(DENSE | {"model_type": family, name: value}, f"{name}={value!r} is not possible in {family}")
      for family, name, value in [
          ("deepseek_v3", "scoring_func", "softmax"), ("deepseek_v3", "topk_method", "greedy"),
          ("deepseek_v2", "scoring_func", "sigmoid"), ("deepseek_v2", "topk_method", "noaux_tc"),
          ("deepseek_v2", "norm_topk_prob", True), ("deepseek", "scoring_func", "sigmoid"),
          ("deepseek", "kv_lora_rank", 8), ("deepseek", "routed_scaling_factor", 2.5),
          ("llama", "kv_lora_rank", 8), ("llama", "n_routed_experts", 8),
      ]],
    # Switches that would be ignored
    *[(LLAMA_ENTRIES | {name: value}, "not supported") for name, value in [
        ("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("rope_interleave", False),
        ("rope_scaling", {"type": "linear", "factor": 2}),
    ]],
    (LLAMA_ENTRIES | {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4096}}, "no factor"),
    (LLAMA_ENTRIES | {"rope_parameters": {"rope_type": "yarn", "factor": 4}}, "no original_max_position_embeddings"),
    *[(LLAMA_ENTRIES | {"rope_parameters": YARN | {"rope_type": "yarn", name: value}}, name)
      for name, value in [("attention_factor", 3.0), ("truncate", False), ("partial_rotary_factor", 0.5)]],
    *[(LLAMA_ENTRIES | {"rope_scaling": scaling}, "rope_scaling=") for scaling in (40, "yarn", [40])],
]  # fmt: skip


@pytest.mark.parametrize(("entries", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_missing_unknown_or_would_be_ignored_is_refused(entries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ModelConfig.from_hf(entries)


MSCALES = [None, 0, 0.5, 0.8, 1]


@pytest.mark.parametrize("base", [LLAMA, V2, V3], ids=lambda base: FAMILY[base])
@pytest.mark.parametrize("mscale", MSCALES)
@pytest.mark.parametrize("mscale_all_dim", MSCALES)
def test_a_pair_of_mscales_means_what_transformers_makes_of_it_or_is_refused(base, mscale, mscale_all_dim):
    given = {"mscale": mscale, "mscale_all_dim": mscale_all_dim}
    scaling = YARN | {"type": "yarn"} | {name: value for name, value in given.items() if value is not None}
    entries = base.to_hf() | {"rope_scaling": scaling}
    twin = CONFIGS[FAMILY[base]](**{key: value for key, value in entries.items() if key != "model_type"})
    _, theirs = ROPE_INIT_FUNCTIONS["yarn"](twin, "cpu")
    config = ModelConfig.from_hf(entries | {"model_type": "minids"})  # as we would read it
    ours = rope_rotation(config, torch.zeros(1))[0, 0].real.item()  # at position 0 nothing is turned
    if ours == pytest.approx(theirs):
        assert ModelConfig.from_hf(entries) == config
    else:
        sentence = f"^rope_scaling mscale={mscale!r} and mscale_all_dim={mscale_all_dim!r} are not possible in "
        with pytest.raises(ValueError, match=sentence + FAMILY[base]):
            ModelConfig.from_hf(entries)
