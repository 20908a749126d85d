"""config.json as it occurs in the wild: read as transformers reads it, or refused with the reason."""

import dataclasses
import json
import os
import re
from dataclasses import replace

import pytest
import torch
from configurations import DENSE, MOE, YARN
from families import DEEPSEEK, FAMILY, LLAMA, V2, V3, on_disk
from hf_oracle import CONFIGS
from transformers import GenerationConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minids.files import LARGEST_JSON
from minids.model.config import ModelConfig, YarnScaling
from minids.model.config_keys import GENERATION
from minids.model.rope import rope_rotation


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
        (V3, {"num_mtp_layers": 0, "num_local_experts": 8}, {}),
        (V2, {"num_experts": 8}, {}),
        (V3, {"eos_token_id": [7, 1, 2]}, dict(eos_token_id=(7, 1, 2))),
        (V3, {"eos_token_id": [7]}, dict(eos_token_id=(7,))),
        (V3, {"first_k_dense_replace": 9}, dict(first_k_dense_replace=9)),
        (V3, {"use_mla": True, "index_topk": None, "qk_layernorm": False, "_name_or_path": "x"}, {}),
        (LLAMA, {"use_mla": False, "qk_latent_layernorm": None, "pruned_heads": {}, "sliding_window": None}, {}),
        (V2, {"n_group": None, "topk_group": None}, {}),
        (V3, {"q_lora_rank": 0}, {}),
        (DEEPSEEK, {"n_shared_experts": 0}, {}),
        (V3, {"head_dim": 64}, {}),
        (LLAMA, {"torch_dtype": "bfloat16", "use_cache": True}, {}),
        (LLAMA, {"rope_scaling": YARN | {"type": "yarn"}}, dict(rope_scaling=YarnScaling(**YARN))),
        (LLAMA, {"rope_parameters": YARN_ENTRY}, dict(rope_scaling=YarnScaling(**YARN), rope_theta=5.0)),
        (
            LLAMA,
            {"rope_scaling": YARN | {"type": "yarn"}, "rope_parameters": NO_SCALING[-1]},
            dict(rope_scaling=YarnScaling(**YARN)),
        ),
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


GARBAGE = [
    b"{", b"[1, 2]", b"null", b"1", b"\xff\xfe", b"", b"[" * 100_000, b'{"vocab_size": ' + b"9" * 5000 + b"}",
    b"{}" + b" " * LARGEST_JSON, None,
]  # fmt: skip


@pytest.mark.parametrize("content", GARBAGE, ids=range(len(GARBAGE)))
def test_a_file_that_is_no_configuration_or_not_there_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} [^\n]+\.$"):
            ModelConfig.from_hf(source)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_place_of_a_configuration_is_named_and_not_waited_for(tmp_path, make):
    make(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is not a readable JSON file: it is not a regular file\.$"):
        ModelConfig.from_hf(tmp_path)


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
          ("llama", "kv_lora_rank", 8), ("llama", "n_routed_experts", 8), ("llama", "num_nextn_predict_layers", 1),
          ("deepseek_v2", "moe_layer_freq", 2), ("deepseek_v3", "moe_layer_freq", 2),
      ]],
    (DENSE | {"model_type": "deepseek", "rope_scaling": YARN | {"type": "yarn"}}, "is not possible in deepseek"),
    # Switches that would be ignored
    *[(LLAMA_ENTRIES | {name: value}, "not supported") for name, value in [
        ("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("rope_interleave", False),
        ("rope_scaling", {"type": "linear", "factor": 2}), ("qk_layernorm", True), ("qk_latent_layernorm", True),
        ("partial_rotary_factor", 0.5), ("use_sliding_window", True), ("pruned_heads", {"0": [1]}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    ]],
    *[(LLAMA_ENTRIES | {name: value}, f"'{name}' (here {value}) is a key that is not understood") for name, value in [
        ("index_topk", 2048), ("sliding_window", 4096), ("num_experts", 8), ("original_max_position_embeddings", 4096),
    ]],
    (LLAMA_ENTRIES | {"a\n" * 99: "b" * 999}, "…"),
    (LLAMA_ENTRIES | {"use_mla": True}, "use_mla=True contradicts kv_lora_rank=None"),
    (V3.to_hf() | {"use_mla": False}, "use_mla=False contradicts kv_lora_rank=16"),
    (V3.to_hf() | {"num_mtp_layers": 1}, "num_mtp_layers=1 is not possible: it must be the same as num_nextn"),
    (LLAMA_ENTRIES | {"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": YARN | {"type": "yarn"}},
     "rope_theta=10000.0 is not possible: it must be the same in rope_parameters"),
    (LLAMA_ENTRIES | {"rope_scaling": {"full_attention": {}}}, "rope_scaling has a key 'full_attention'"),
    (LLAMA_ENTRIES | {"rope_scaling": {"type": ["yarn"]}}, "rope_scaling type ['yarn']"),
    *[(LLAMA_ENTRIES | {"eos_token_id": value}, "eos_token_id=") for value in ([], [1, [2]], [1, 100], None, "1")],
    # Numbers that are none, or no such number
    *[(LLAMA_ENTRIES | {name: value}, f"{name}=") for name in ("hidden_size", "num_hidden_layers", "rms_norm_eps")
      for value in (10**400, 2**63, float("nan"), float("inf"), -1, True, "64", [64], {"a": 1}, None)
      if (name, value) != ("rms_norm_eps", 2**63)],
    (LLAMA_ENTRIES | {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4096}}, "no factor"),
    (LLAMA_ENTRIES | {"rope_parameters": {"rope_type": "yarn", "factor": 4}}, "no original_max_position_embeddings"),
    *[(LLAMA_ENTRIES | {"rope_parameters": YARN | {"rope_type": "yarn", name: value}}, name) for name, value in [
        ("attention_factor", 3.0), ("truncate", False), ("truncate", None), ("partial_rotary_factor", 0.5),
    ]],
    (LLAMA_ENTRIES | {"rope_scaling": {"factor": 4}}, "rope_scaling has factor without the type 'yarn'"),
    *[(V3.to_hf() | {name: False}, f"{name}=False is not possible") for name in ("n_shared_experts", "q_lora_rank")],
    (LLAMA_ENTRIES | {"x": [10**5000]}, "'x' (here (a number of thousands of digits, in the list))"),
    *[(LLAMA_ENTRIES | {"rope_scaling": scaling}, "rope_scaling=") for scaling in (40, "yarn", [40])],
]  # fmt: skip


@pytest.mark.parametrize(("entries", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_missing_unknown_or_would_be_ignored_is_refused_in_one_sentence(entries, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        ModelConfig.from_hf(entries)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("theta", [{}, {"rope_theta": 500.0}])
@pytest.mark.parametrize("parameters", [*NO_SCALING, {"rope_theta": 500.0}, YARN_ENTRY])
@pytest.mark.parametrize("scaling", [*NO_SCALING, YARN_ENTRY, YARN | {"type": "yarn", "factor": 2.0}])
def test_of_two_entries_about_positions_the_one_counts_that_counts_in_transformers(scaling, parameters, theta):
    entries = on_disk(LLAMA_ENTRIES | theta | {"rope_scaling": scaling, "rope_parameters": parameters})
    theirs = CONFIGS["llama"](**on_disk(entries)).rope_parameters
    try:
        config = ModelConfig.from_hf(entries)
    except ValueError:  # two values of rope_theta
        assert (parameters or {}).get("rope_theta", theirs["rope_theta"]) != theirs["rope_theta"]
        return
    assert config.rope_theta == theirs["rope_theta"]
    assert (theirs["rope_type"] == "yarn") == (config.rope_scaling is not None)
    assert config.rope_scaling is None or config.rope_scaling.factor == theirs["factor"]


def test_what_transformers_says_of_generating_text_is_passed_over():
    assert set(GenerationConfig._get_default_generation_params()) <= set(GENERATION)
    entries = V3.to_hf() | dict.fromkeys(GENERATION, 1) | {"eos_token_id": [1, 2]}
    config = ModelConfig.from_hf(entries)
    assert config == replace(V3, eos_token_id=(1, 2))
    assert on_disk(config.to_hf())["eos_token_id"] == [1, 2]


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
