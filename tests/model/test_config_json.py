"""config.json, in and out: released entries, transformers' own classes, and a family's name only where it is true."""

import dataclasses
import json
import re
from dataclasses import replace

import pytest
import torch
import transformers
from configurations import configurations, examples, random_model, random_tokens
from hf_oracle import CONFIGS, hf_twin
from hypothesis import given
from test_config import DENSE, MLA, MOE, YARN
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minids.model import config_json
from minids.model.config import PRESETS, ModelConfig, YarnScaling
from minids.model.rope import rope_rotation

CLASSES = ("llama", "deepseek_v2", "deepseek_v3")  # the families that transformers has

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


# transformers has no class for experts under ordinary attention, and none for MLA without experts.
@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"deepseek-moe-16b", "mini-dense"}))
def test_every_preset_survives_transformers_own_configuration_class(name):
    config = ModelConfig.preset(name)
    entries = config.to_hf()
    theirs = CONFIGS[entries.pop("model_type")](**entries).to_dict()
    assert ModelConfig.from_hf(json.loads(json.dumps(theirs))) == config


def test_the_released_configuration_of_v3_is_the_preset():
    expected = replace(ModelConfig.preset("deepseek-v3"), initializer_range=0.02)
    assert ModelConfig.from_hf(RELEASED_V3) == expected


# ---------------------------------------------------------------------------------------------------
# The name of the family

SOFTMAX = dict(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False)
LLAMA = ModelConfig(**DENSE, head_dim=16)
DEEPSEEK = ModelConfig(**MOE, **SOFTMAX)
V2 = ModelConfig(**(MLA | MOE), **SOFTMAX, n_shared_experts=2)
V3 = ModelConfig(**(MLA | MOE), n_shared_experts=1)


def yarn(**mscales: float) -> dict:
    return dict(rope_scaling=YarnScaling(factor=40, original_max_position_embeddings=16, **mscales))


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
    (LLAMA, dict(hidden_size=66)),
    (LLAMA, dict(initializer_range=1.5)),
    (LLAMA, yarn(mscale=0.5)),
    (LLAMA, yarn(mscale=0.0)),
    (LLAMA, yarn(mscale=0.0, mscale_all_dim=0.8)),
    (DEEPSEEK, dict(scoring_func="sigmoid")),
    (DEEPSEEK, dict(topk_method="noaux_tc")),
    (DEEPSEEK, dict(topk_method="group_limited_greedy")),
    (DEEPSEEK, dict(routed_scaling_factor=2.5)),
    (DEEPSEEK, dict(norm_topk_prob=True, num_experts_per_tok=1)),
    (DEEPSEEK, dict(head_dim=24)),
    (DEEPSEEK, yarn()),
    (V2, dict(scoring_func="sigmoid")),
    (V2, dict(topk_method="noaux_tc")),
    (V2, dict(norm_topk_prob=True)),
    (V2, dict(moe_layer_freq=2)),
    (V2, dict(n_shared_experts=None)),
    (V2, dict(n_routed_experts=None)),
    (V2, dict(hidden_size=66)),
    (V2, dict(kv_lora_rank=17)),
    (V2, dict(qk_nope_head_dim=17)),
    (V2, yarn(mscale=0.5)),
    (V3, dict(scoring_func="softmax")),
    (V3, dict(topk_method="greedy")),
    (V3, dict(topk_method="group_limited_greedy")),
    (V3, dict(moe_layer_freq=2)),
    (V3, dict(n_shared_experts=None)),
    (V3, dict(n_routed_experts=None)),
    (V3, dict(n_routed_experts=1, num_experts_per_tok=1)),
    (V3, yarn(mscale=0.5)),
    (V3, yarn(mscale=0.0, mscale_all_dim=0.8)),
]
WITH_MTP = [(base, dict(num_nextn_predict_layers=1)) for base in (LLAMA, DEEPSEEK, V2)]
FAMILY = {LLAMA: "llama", DEEPSEEK: "deepseek", V2: "deepseek_v2", V3: "deepseek_v3"}


def cases(table: list[tuple[ModelConfig, dict]]) -> pytest.MarkDecorator:
    ids = ["-".join([FAMILY[base], *changes]) for base, changes in table]
    return pytest.mark.parametrize(("base", "changes"), table, ids=ids)


def in_transformers(*tables: list) -> list:
    """The cases whose family has a class in transformers. That of DeepSeekMoE came with its weights."""
    return [(base, changes) for table in tables for base, changes in table if base is not DEEPSEEK]


@cases(INSIDE)
def test_a_family_that_can_compute_it_is_named(base, changes):
    entries = replace(base, **changes).to_hf()
    assert entries["model_type"] == FAMILY[base]
    assert entries["architectures"] == [config_json.ARCHITECTURES[FAMILY[base]]]


@cases(OUTSIDE + WITH_MTP)
def test_one_change_that_no_family_has_makes_it_ours(base, changes):
    config = replace(base, **changes)
    entries = json.loads(json.dumps(config.to_hf()))
    assert entries["model_type"] == config.model_type == "minids"
    assert entries["architectures"] == ["DeepSeek"]
    assert ModelConfig.from_hf(entries) == config


def transformers_agrees(config: ModelConfig) -> bool:
    """Whether the class of `config.model_type` takes the configuration and the weights, and gives the same logits."""
    model, tokens = random_model(config), random_tokens(config, 2, 12)
    try:
        with torch.no_grad():
            return torch.allclose(hf_twin(model)(tokens).logits, model(tokens), rtol=1e-3, atol=1e-3)
    except Exception:  # each class refuses in its own way
        return False


@cases(in_transformers(INSIDE))
def test_the_class_of_the_family_agrees(base, changes):
    assert transformers_agrees(replace(base, **changes))


@cases(in_transformers(OUTSIDE))
def test_under_the_borrowed_name_the_class_would_not_agree(base, changes, monkeypatch):
    """Otherwise a name would be withheld without need."""
    monkeypatch.setattr(config_json, "family_of", lambda config: FAMILY[base])
    assert not transformers_agrees(replace(base, **changes))


def test_transformers_refuses_what_is_ours(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(replace(V3, moe_layer_freq=2).to_hf()))
    with pytest.raises(ValueError, match="minids"):
        AutoConfig.from_pretrained(tmp_path)


def test_the_architectures_are_classes_of_transformers():
    for family in CLASSES:
        assert hasattr(transformers, config_json.ARCHITECTURES[family])


@pytest.mark.parametrize("base", [LLAMA, V2, V3], ids=lambda base: FAMILY[base])
def test_a_whole_number_is_written_as_the_float_that_transformers_insists_on(base):
    config = replace(base, rms_norm_eps=1, initializer_range=1, routed_scaling_factor=2)
    entries = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_hf(entries) == config
    theirs = CONFIGS[entries.pop("model_type")](**entries).to_dict()
    assert (theirs["rms_norm_eps"], theirs["initializer_range"], theirs["routed_scaling_factor"]) == (1, 1, 2)


# ---------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("missing", sorted(DENSE))
def test_a_missing_size_is_named(missing):
    entries = {name: value for name, value in DENSE.items() if name != missing}
    with pytest.raises(ValueError, match=f"^{missing} is missing"):
        ModelConfig.from_hf(entries | {"model_type": "llama"})


@pytest.mark.parametrize("family", CLASSES)
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


def test_a_missing_key_of_ours_takes_our_default():
    assert ModelConfig.from_hf(DENSE | {"model_type": "minids"}) == ModelConfig(**DENSE)


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


@pytest.mark.parametrize(
    ("other_name", "name", "value"),
    [("num_mtp_layers", "num_nextn_predict_layers", 2), ("num_local_experts", "n_routed_experts", 16)],
)
def test_a_key_may_go_by_the_other_name_that_some_files_give_it(other_name, name, value):
    entries = V3.to_hf() | {name: value}
    renamed = {key: value for key, value in entries.items() if key != name} | {other_name: value}
    assert ModelConfig.from_hf(renamed) == ModelConfig.from_hf(entries) == replace(V3, **{name: value})
    assert other_name in renamed, "the caller's dict stays as it was"


def test_every_other_name_is_of_a_field():
    assert set(config_json.OTHER_NAMES.values()) <= set(ModelConfig.field_names())
    assert not set(config_json.OTHER_NAMES) & set(ModelConfig.field_names())


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


def test_a_configuration_is_read_from_a_file_and_from_its_folder(tmp_path):
    config = ModelConfig.preset("tiny")
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    assert ModelConfig.from_hf(tmp_path) == config
    assert ModelConfig.from_hf(tmp_path / "config.json") == config
    assert ModelConfig.from_hf(str(tmp_path)) == config


GARBAGE = [b'{"model_type": ', b"[1, 2]", b"\xff\xfe", b"", b"[" * 100_000, b'{"vocab_size": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_a_file_that_is_no_configuration_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} [^\n]+\.$"):
        ModelConfig.from_hf(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json"))):
        ModelConfig.from_hf(tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        ModelConfig.from_hf(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("family", "entry"),
    [
        ("deepseek_v3", {"scoring_func": "softmax"}),
        ("deepseek_v3", {"topk_method": "greedy"}),
        ("deepseek_v2", {"scoring_func": "sigmoid"}),
        ("deepseek_v2", {"topk_method": "noaux_tc"}),
        ("deepseek", {"scoring_func": "sigmoid"}),
        ("deepseek", {"kv_lora_rank": 8}),
        ("deepseek", {"routed_scaling_factor": 2.5}),
        ("deepseek_v2", {"norm_topk_prob": True}),
        ("llama", {"kv_lora_rank": 8}),
        ("llama", {"n_routed_experts": 8}),
    ],
)
def test_what_a_family_s_own_code_would_not_compute_is_refused(family, entry):
    (name,) = entry
    with pytest.raises(ValueError, match=f"^{name}=.* is not possible in {family}: it must be "):
        ModelConfig.from_hf(DENSE | {"model_type": family} | entry)


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
