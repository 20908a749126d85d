"""Reading and writing Hugging Face's config.json.

A configuration names a `model_type`. The class of that family decides which other keys are read, and what the default
of a missing one is. For example, transformers' V3 class has no `scoring_func`, because it always uses the sigmoid.

So a model is written as the family whose class computes *exactly* the same function. A combination that no family has
(MLA with dense layers, a softmax gate with a balancing bias, ...) is written as "minids", which transformers rejects;
under another family's name it would silently compute a different function.

Reading is equally strict. An unknown key may stand for a component that this library lacks, such as V3.2's indexer, so
it raises an error. Known are the keys of the model, and those that only concern bookkeeping, training or serving.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minids.files import read_json
from minids.model.config_keys import NEUTRAL, ROPE_SWITCHES, SWITCHES
from minids.validation import quoted, require

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "minids": "DeepSeek",
}
_DENSE = {"n_routed_experts": None, "kv_lora_rank": None}
_LLAMA = {"initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 2048}
_SOFTMAX_GATE = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
_MLA_HEADS = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
# Defaults of each family's own configuration class.
DEFAULTS = {
    "llama": {**_LLAMA, **_DENSE},
    "deepseek": {**_LLAMA, **_DENSE, **_SOFTMAX_GATE},
    "deepseek_v2": {
        **_LLAMA, **_MLA_HEADS, **_SOFTMAX_GATE, "q_lora_rank": 1536,
        "n_shared_experts": 2, "n_routed_experts": 64, "moe_intermediate_size": 1407,
    },
    "deepseek_v3": {
        **_MLA_HEADS, "q_lora_rank": 1536, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5, "n_shared_experts": 1, "num_nextn_predict_layers": 1, "initializer_range": 0.02,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
    },
    "minids": {},
}  # fmt: skip
FLOATS = (  # transformers does not accept 1 for 1.0
    "rms_norm_eps", "initializer_range", "embedding_initializer_range", "routed_scaling_factor",
)  # fmt: skip
# Values that a family's own code fixes. With other values, it would compute another function than this library.
FIXED = {
    "llama": {"n_routed_experts": [None], "kv_lora_rank": [None], "num_nextn_predict_layers": [0]},
    "deepseek": {
        "scoring_func": ["softmax"], "topk_method": ["greedy"], "routed_scaling_factor": [1], "kv_lora_rank": [None],
        "rope_scaling": [None], "num_nextn_predict_layers": [0],
    },
    "deepseek_v2": {
        "scoring_func": ["softmax"], "topk_method": ["greedy", "group_limited_greedy"], "norm_topk_prob": [False],
        "moe_layer_freq": [1], "num_nextn_predict_layers": [0],
    },
    "deepseek_v3": {"scoring_func": ["sigmoid"], "topk_method": ["noaux_tc"], "moe_layer_freq": [1]},
    "minids": {},
}  # fmt: skip
REQUIRED = {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"}
OTHER_NAMES = {
    "deepseek_v2": {"num_experts": "n_routed_experts"},
    "deepseek_v3": {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
}
YARN_KEYS = (
    "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
)  # fmt: skip


def family_of(config) -> str:
    """Return the family whose class computes exactly what a ModelConfig describes, or "minids"."""
    families = {"deepseek_v3": _is_v3, "deepseek_v2": _is_v2, "llama": _is_llama, "deepseek": _is_deepseek_moe}
    return next((family for family, fits in families.items() if fits(config)), "minids")


def _is_v3(c) -> bool:
    gate = c.scoring_func == "sigmoid" and c.topk_method == "noaux_tc"
    # A group is scored by its two best experts, even if there is only one group.
    return _is_mla_moe(c) and gate and c.n_routed_experts > 1


def _is_v2(c) -> bool:
    gate = c.scoring_func == "softmax" and c.topk_method != "noaux_tc" and not c.norm_topk_prob
    # For V2, transformers views pairs as complex numbers, which torch allows only at even offsets.
    even = c.uses_mla and c.kv_lora_rank % 2 == c.qk_nope_head_dim % 2 == 0
    return _is_mla_moe(c) and gate and even and not c.num_nextn_predict_layers and _heads_divide(c)


def _is_llama(c) -> bool:
    plain = not c.uses_mla and not c.uses_moe and not c.num_nextn_predict_layers
    return plain and _usual_yarn(c) and _heads_divide(c) and c.initializer_range <= 1  # its class allows no more


def _is_deepseek_moe(c) -> bool:
    """DeepSeekMoE's own code has no YaRN, head_dim or routed_scaling_factor, and does not normalise a single expert."""
    if c.uses_mla or not c.uses_moe or c.num_nextn_predict_layers or c.rope_scaling is not None:
        return False
    gate = c.scoring_func == "softmax" and c.topk_method == "greedy" and c.routed_scaling_factor == 1
    alone = c.norm_topk_prob and c.num_experts_per_tok == 1
    return gate and not alone and c.head_dim * c.num_attention_heads == c.hidden_size


def _is_mla_moe(c) -> bool:
    # transformers supports neither moe_layer_freq nor models without shared experts.
    return c.uses_mla and c.uses_moe and c.moe_layer_freq == 1 and c.n_shared_experts is not None and _usual_yarn(c)


def _usual_yarn(c) -> bool:
    return c.rope_scaling is None or _usual_mscales(c.rope_scaling.mscale, c.rope_scaling.mscale_all_dim)


def _usual_mscales(mscale, mscale_all_dim) -> bool:
    """Whether both mean the same in transformers, which replaces the pair by 1 and 0 if one is 0 or absent."""
    return bool(mscale and mscale_all_dim) or (mscale in (None, 1) and not mscale_all_dim)


def _heads_divide(c) -> bool:
    # Llama and V2 require this even if head_dim is given.
    return c.hidden_size % c.num_attention_heads == 0


def read_fields(source: dict | str | Path, names: Iterable[str]) -> dict:
    """Return the values of the fields `names` in a configuration, with its family's defaults for missing keys.

    `source` is a dict, a config.json, or the folder that holds one. Raises ValueError, one sentence, for an unknown
    family, a missing key without a default, or a key that cannot be honoured.
    """
    entries = dict(source) if isinstance(source, dict) else read_config(Path(source))
    family = entries.get("model_type")
    if not isinstance(family, str) or family not in DEFAULTS:
        raise ValueError(f"model_type={quoted(family)} is unknown: use one of {', '.join(DEFAULTS)}.")
    for other, name in OTHER_NAMES.get(family, {}).items():
        if other in entries:
            require(other, entries[other], entries.get(name, entries[other]) == entries[other], f"the same as {name}")
            entries[name] = entries.pop(other)
    _require_understood(entries, names)
    rope = _read_rope(entries)
    entries["rope_scaling"] = _read_rope_scaling(rope, family)
    entries["rope_theta"] = rope["rope_theta"]
    if isinstance(entries.get("eos_token_id"), list):
        entries["eos_token_id"] = tuple(entries["eos_token_id"])
    fields = DEFAULTS[family] | {name: entries[name] for name in names if name in entries}
    for name, possible in FIXED[family].items():
        if name in fields and fields[name] not in possible:
            allowed = " or ".join(map(repr, possible))
            raise ValueError(f"{name}={quoted(fields[name])} is not possible in {family}: it must be {allowed}.")
    if not fields.keys() >= REQUIRED:
        raise ValueError(f"{min(REQUIRED - fields.keys())} is missing from the configuration: give it a value.")
    mla = fields.get("kv_lora_rank") is not None
    if entries.get("use_mla", mla) not in (None, mla):
        rank = quoted(fields.get("kv_lora_rank"))
        raise ValueError(f"use_mla={quoted(entries['use_mla'])} contradicts kv_lora_rank={rank}: make them agree.")
    for name in ("n_group", "topk_group"):  # null in config.json: no groups
        fields[name] = 1 if fields.get(name) is None else fields[name]
    for name in ("n_shared_experts", "q_lora_rank"):  # 0 in some files: none
        fields[name] = None if fields.get(name) == 0 and fields[name] is not False else fields.get(name)
    return fields


def write_entries(model_type: str, fields: dict) -> dict:
    """Return the entries of a config.json of that family, from which `read_fields` restores `fields`."""
    entries = {"model_type": model_type, "architectures": [ARCHITECTURES[model_type]]}
    for name, value in fields.items():
        if value is None and DEFAULTS[model_type].get(name) is None and name != "rope_scaling":
            continue  # the default is the same
        entries[name] = float(value) if name in FLOATS else list(value) if isinstance(value, tuple) else value
    if fields["rope_scaling"] is not None:
        entries["rope_scaling"] = {"type": "yarn"} | fields["rope_scaling"]
    return entries | {"hidden_act": "silu", "attention_bias": False}


def read_config(path: Path) -> dict:
    """Return the entries of a config.json, given its path or its folder. Raises ValueError if there is none."""
    return read_json(path / "config.json" if path.is_dir() else path)


def _require_understood(entries: dict, names: Iterable[str]) -> None:
    known = {*names, *SWITCHES, *NEUTRAL, "use_mla", "rope_parameters"}
    for name, value in entries.items():
        if name in SWITCHES and value not in (None, SWITCHES[name]):
            raise ValueError(f"{name}={quoted(value)} is not supported: it must be {SWITCHES[name]!r}.")
        if value is not None and name not in known and not name.startswith("_"):
            raise ValueError(
                f"{quoted(name)} (here {quoted(value)}) is a key that is not understood: remove it if it does not "
                "change what the model computes."
            )


def _read_rope(entries: dict) -> dict:
    """Return the RoPE entry with its rope_theta. `rope_scaling` precedes `rope_parameters`, as in transformers."""
    for name in ("rope_scaling", "rope_parameters"):
        value = entries.get(name)
        require(name, value, value is None or isinstance(value, dict), "an object or null")
    parameters = entries.get("rope_parameters") or {}
    rope = {"rope_theta": entries.get("rope_theta", 10000.0)} | (entries.get("rope_scaling") or parameters)
    rope = {name: value for name, value in rope.items() if value is not None or name not in YARN_KEYS}  # null: absent
    agree = parameters.get("rope_theta", rope["rope_theta"]) == rope["rope_theta"]
    require("rope_theta", rope["rope_theta"], agree, "the same in rope_parameters")
    return rope


def _read_rope_scaling(rope: dict, family: str) -> dict | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "yarn"):
        raise ValueError(f"rope_scaling type {quoted(kind)} is not supported: it must be 'yarn' or absent.")
    for name, value in rope.items():
        if name in ROPE_SWITCHES and value != ROPE_SWITCHES[name]:
            raise ValueError(f"rope_scaling {name}={quoted(value)} is not supported: it must be absent.")
        if value is not None and name not in {"rope_type", "type", "rope_theta", *YARN_KEYS, *ROPE_SWITCHES}:
            raise ValueError(f"rope_scaling has a key {quoted(name)}, which is not understood: it must be absent.")
    if kind == "default":
        if ignored := [name for name in YARN_KEYS if name in rope]:
            raise ValueError(f"rope_scaling has {ignored[0]} without the type 'yarn': add the type or remove it.")
        return None
    for name in ("factor", "original_max_position_embeddings"):
        if name not in rope:
            raise ValueError(f"rope_scaling has no {name}: YaRN needs it.")
    mscales = rope.get("mscale"), rope.get("mscale_all_dim")
    if family != "minids" and not _usual_mscales(*mscales):
        both = "rope_scaling mscale={} and mscale_all_dim={}".format(*map(quoted, mscales))
        raise ValueError(f"{both} are not possible in {family}: they must be two positive numbers, or 1 and 0.")
    return {name: rope[name] for name in YARN_KEYS if name in rope}
