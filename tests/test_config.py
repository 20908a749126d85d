"""Configurations: transformers' own classes, released config.json entries, and a table of what cannot work."""

import dataclasses
import json
import re
from dataclasses import replace

import pytest
from configurations import configurations, examples
from hf_oracle import CONFIGS
from hypothesis import given

from minids.config import ALIASES, PRESETS, ModelConfig, YarnScaling

DENSE = dict(vocab_size=100, hidden_size=64, num_hidden_layers=4, intermediate_size=128, num_attention_heads=4)
MLA = dict(DENSE, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
MOE = dict(DENSE, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32)
GROUPS = dict(MOE, n_group=4, topk_group=2)
YARN = dict(factor=40, original_max_position_embeddings=4096)

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


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_the_way_to_hugging_face_and_back(name):
    config = ModelConfig.preset(name)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@examples(200)
@given(configurations())
def test_every_configuration_survives_the_way_to_hugging_face_and_back(config):
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


# transformers has no class for MHA with experts, and reads MLA without experts as 256 of them.
@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"deepseek-moe-16b", "mini-dense"}))
def test_every_preset_survives_transformers_own_configuration_class(name):
    config = ModelConfig.preset(name)
    entries = config.to_hf()
    theirs = CONFIGS[entries.pop("model_type")](**entries).to_dict()
    assert ModelConfig.from_hf(json.loads(json.dumps(theirs))) == config


def test_r1_is_the_same_architecture_as_v3():
    assert ModelConfig.preset("deepseek-r1") == ModelConfig.preset("deepseek-v3")


def test_an_unknown_preset_is_answered_with_the_names():
    with pytest.raises(ValueError, match="gpt-5") as error:
        ModelConfig.preset("gpt-5")
    assert all(name in str(error.value) for name in [*PRESETS, *ALIASES])
    assert ModelConfig.preset_names() == [*PRESETS, *ALIASES]


def test_the_released_configuration_of_v3_is_the_preset():
    expected = replace(ModelConfig.preset("deepseek-v3"), initializer_range=0.02)
    assert ModelConfig.from_hf(RELEASED_V3) == expected


IMPOSSIBLE = [
    (DENSE, "vocab_size", 0, "at least 1"),
    (DENSE, "vocab_size", True, "whole number"),
    (DENSE, "hidden_size", 64.0, "whole number"),
    (DENSE, "hidden_size", 66, "multiple of num_attention_heads=4"),
    (DENSE, "num_hidden_layers", -1, "at least 1"),
    (DENSE, "intermediate_size", None, "at least 1"),
    (DENSE, "num_attention_heads", 0, "at least 1"),
    (DENSE, "num_key_value_heads", 3, "divisor of num_attention_heads=4"),
    (DENSE, "num_key_value_heads", 8, "divisor of num_attention_heads=4"),
    (DENSE, "head_dim", 7, "even"),
    (DENSE, "head_dim", 0, "at least 1"),
    (DENSE, "max_position_embeddings", 0, "at least 1"),
    (DENSE, "num_nextn_predict_layers", -1, "at least 0"),
    (DENSE, "rms_norm_eps", 0, "positive"),
    (DENSE, "rms_norm_eps", float("nan"), "positive"),
    (DENSE, "rope_theta", "10000", "above 1"),
    (DENSE, "initializer_range", -0.02, "positive"),
    (DENSE, "tie_word_embeddings", 1, "true or false"),
    (DENSE, "bos_token_id", -1, "at least 0"),
    (DENSE, "eos_token_id", 100, "below vocab_size=100"),
    (DENSE, "rope_scaling", YARN, "YarnScaling"),
    (MLA, "kv_lora_rank", 0, "at least 1"),
    (MLA, "q_lora_rank", 0, "at least 1"),
    (MLA, "qk_nope_head_dim", None, "at least 1"),
    (MLA, "qk_rope_head_dim", 7, "even"),
    (MLA, "v_head_dim", 0, "at least 1"),
    (MOE, "n_routed_experts", 0, "at least 1"),
    (MOE, "num_experts_per_tok", None, "at least 1"),
    (MOE, "num_experts_per_tok", 9, "at most 8"),
    (MOE, "moe_intermediate_size", None, "at least 1"),
    (MOE, "moe_layer_freq", 0, "at least 1"),
    (MOE, "n_shared_experts", 0, "at least 1"),
    (MOE, "first_k_dense_replace", 5, "at most num_hidden_layers=4"),
    (MOE, "first_k_dense_replace", -1, "at least 0"),
    (MOE, "norm_topk_prob", None, "true or false"),
    (MOE, "scoring_func", "tanh", "sigmoid or softmax"),
    (MOE, "topk_method", "random", "greedy, group_limited_greedy or noaux_tc"),
    (MOE, "routed_scaling_factor", 0, "positive"),
    (GROUPS, "n_routed_experts", 10, "multiple of n_group=4"),
    (GROUPS, "topk_group", 5, "at most n_group=4"),
    (GROUPS, "num_experts_per_tok", 5, "at most 4"),
    (GROUPS, "n_group", 8, "at most half of n_routed_experts=8"),
]


@pytest.mark.parametrize(("base", "field", "value", "allowed"), IMPOSSIBLE)
def test_what_cannot_work_is_refused_in_one_sentence(base, field, value, allowed):
    ModelConfig(**base)
    with pytest.raises(ValueError, match="not possible") as error:
        ModelConfig(**(base | {field: value}))
    assert str(error.value).startswith(f"{field}={value!r} is not possible: it must be ")
    assert allowed in str(error.value)
    assert re.fullmatch(r"[^\n]+\.", str(error.value))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("factor", 0.5, "at least 1"),
        ("factor", "40", "number"),
        ("original_max_position_embeddings", 0, "at least 1"),
        ("beta_fast", 0, "positive"),
        ("beta_fast", 0.5, "at least beta_slow=1"),
        ("beta_slow", -1, "positive"),
        ("mscale", -0.1, "at least 0"),
        ("mscale_all_dim", None, "at least 0"),
    ],
)
def test_yarn_that_cannot_work_is_refused_in_one_sentence(field, value, allowed):
    with pytest.raises(ValueError, match=f"^{field}={re.escape(repr(value))} is not possible: it must be .*{allowed}"):
        YarnScaling(**(YARN | {field: value}))


def test_yarn_needs_a_base_above_1():
    with pytest.raises(ValueError, match=r"rope_theta=1\.0"):
        ModelConfig(**DENSE, rope_theta=1.0, rope_scaling=YarnScaling(**YARN))


def test_greedy_gates_do_not_look_at_groups():
    assert ModelConfig(**(GROUPS | {"topk_method": "greedy", "num_experts_per_tok": 8})).num_experts_per_tok == 8


def test_groups_of_one_expert_are_possible_where_only_the_best_counts():
    assert ModelConfig(**(GROUPS | {"topk_method": "group_limited_greedy", "n_group": 8})).n_group == 8


@pytest.mark.parametrize("missing", sorted(DENSE))
def test_a_missing_size_is_named(missing):
    entries = {name: value for name, value in DENSE.items() if name != missing}
    with pytest.raises(ValueError, match=f"^{missing} is missing"):
        ModelConfig.from_hf(entries | {"model_type": "llama"})


@pytest.mark.parametrize("family", CONFIGS)
def test_a_missing_key_takes_the_default_of_its_family(family):
    elsewhere = {
        "rope_scaling",  # rope_parameters there
        "head_dim", "num_key_value_heads",  # mean nothing in MLA
        "n_group", "topk_group",  # null there, 1 here
        "initializer_range",  # the report's 0.006 on purpose
    }  # fmt: skip
    experts = dict(n_routed_experts=16, num_experts_per_tok=2, moe_intermediate_size=8)
    theirs = CONFIGS[family](**DENSE, **experts).to_dict()
    ours = dataclasses.asdict(ModelConfig.from_hf(DENSE | experts | {"model_type": family}))
    compared = (ours.keys() & theirs.keys()) - elsewhere
    assert {name: ours[name] for name in compared} == {name: theirs[name] for name in compared}


@pytest.mark.parametrize(
    ("family", "gate"),
    [
        ("deepseek", ("softmax", "greedy", False)),
        ("deepseek_v2", ("softmax", "greedy", False)),
        ("deepseek_v3", ("sigmoid", "noaux_tc", True)),
    ],
)
def test_each_family_has_its_own_gate_where_the_keys_are_missing(family, gate):
    config = ModelConfig.from_hf(MOE | {"n_routed_experts": 16, "model_type": family})
    assert (config.scoring_func, config.topk_method, config.norm_topk_prob) == gate


def test_null_groups_of_v2_lite_mean_none():
    entries = ModelConfig.preset("deepseek-v2-lite").to_hf() | {"n_group": None, "topk_group": None}
    assert ModelConfig.from_hf(entries) == ModelConfig.preset("deepseek-v2-lite")


def test_zero_means_none_for_query_compression_and_shared_experts():
    entries = MLA | MOE | {"model_type": "deepseek_v3", "q_lora_rank": 0, "n_shared_experts": 0}
    config = ModelConfig.from_hf(entries | {"n_group": 1, "topk_group": 1})
    assert config.q_lora_rank is None
    assert config.n_shared_experts is None


def test_rope_parameters_and_rope_scaling_say_the_same():
    base = ModelConfig(**DENSE).to_hf()
    new = base | {"rope_parameters": YARN | {"rope_type": "yarn", "rope_theta": 500.0}}
    del new["rope_theta"]
    old = base | {"rope_scaling": YARN | {"type": "yarn"}, "rope_theta": 500.0}
    expected = ModelConfig(**DENSE, rope_theta=500.0, rope_scaling=YarnScaling(**YARN))
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(old) == expected


@pytest.mark.parametrize("entry", [None, {}, {"rope_type": "default", "rope_theta": 10000.0}])
def test_no_scaling_may_be_written_in_three_ways(entry):
    for key in ("rope_scaling", "rope_parameters"):
        assert ModelConfig.from_hf(DENSE | {"model_type": "llama", key: entry}).rope_scaling is None


def test_head_dim_means_nothing_in_latent_attention():
    entries = ModelConfig.preset("deepseek-v3").to_hf()
    assert "head_dim" not in entries
    assert ModelConfig.from_hf(entries | {"head_dim": 64}) == ModelConfig.preset("deepseek-v3")


def test_head_dim_and_kv_heads_follow_from_the_heads():
    config = ModelConfig(**DENSE)
    assert (config.head_dim, config.num_key_value_heads, config.rope_dim) == (16, 4, 16)
    assert ModelConfig(**DENSE, head_dim=24).rope_dim == 24


def test_expert_layers_begin_after_the_dense_ones_and_recur():
    config = ModelConfig(**(MOE | {"num_hidden_layers": 7}), first_k_dense_replace=2, moe_layer_freq=3)
    assert [i for i in range(7) if config.is_moe_layer(i)] == [3, 6]
    assert not any(ModelConfig(**DENSE).is_moe_layer(i) for i in range(4))


def test_a_configuration_is_read_from_a_file_and_from_its_folder(tmp_path):
    config = ModelConfig.preset("tiny")
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    assert ModelConfig.from_hf(tmp_path) == config
    assert ModelConfig.from_hf(tmp_path / "config.json") == config
    assert ModelConfig.from_hf(str(tmp_path)) == config


@pytest.mark.parametrize("content", [b'{"model_type": ', b"[1, 2]", b"\xff\xfe", b""])
def test_a_file_that_is_no_configuration_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        ModelConfig.from_hf(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))):
        ModelConfig.from_hf(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        ModelConfig.from_hf(tmp_path / "nowhere")


@pytest.mark.parametrize("model_type", ["gpt2", "deepseek_v32", None])
def test_an_unknown_family_is_answered_with_the_known_ones(model_type):
    with pytest.raises(ValueError, match="llama, deepseek, deepseek_v2, deepseek_v3"):
        ModelConfig.from_hf(DENSE | {"model_type": model_type})


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("rope_interleave", False),
        ("rope_scaling", {"type": "linear", "factor": 2}),
        ("rope_scaling", {"type": "yarn", "original_max_position_embeddings": 4096}),
        ("rope_parameters", {"rope_type": "yarn", "factor": 4}),
    ],
)
def test_a_switch_that_would_be_ignored_is_refused(switch, value):
    with pytest.raises(ValueError, match=r"not supported|YaRN needs it"):
        ModelConfig.from_hf(DENSE | {"model_type": "llama", switch: value})


@pytest.mark.parametrize("part", [{"attention_factor": 3.0}, {"truncate": False}, {"partial_rotary_factor": 0.5}])
def test_a_part_of_rope_that_would_be_ignored_is_refused(part):
    with pytest.raises(ValueError, match=next(iter(part))):
        ModelConfig.from_hf(DENSE | {"model_type": "llama", "rope_parameters": YARN | {"rope_type": "yarn"} | part})


@pytest.mark.parametrize("scaling", [40, "yarn", [40]])
def test_rope_scaling_that_is_no_object_is_refused(scaling):
    with pytest.raises(ValueError, match="rope_scaling"):
        ModelConfig.from_hf(DENSE | {"model_type": "llama", "rope_scaling": scaling})


def test_keys_that_do_not_touch_the_architecture_are_passed_over():
    entries = DENSE | {"model_type": "llama"}
    assert ModelConfig.from_hf(entries | {"torch_dtype": "bfloat16", "use_cache": True}) == ModelConfig.from_hf(entries)


def test_reading_leaves_the_callers_dict_as_it_was():
    entries = json.loads(json.dumps(RELEASED_V3))
    ModelConfig.from_hf(entries)
    assert entries == RELEASED_V3


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig.preset("tiny").hidden_size = 128
    with pytest.raises(dataclasses.FrozenInstanceError):
        YarnScaling(**YARN).factor = 2
