"""Hugging Face's config.json, in and out.

A configuration names a `model_type`, and the class of that family decides what the other keys mean:
which of them it reads at all, and what it assumes for one that is missing. transformers' V3 class, for
one, has no `scoring_func`, because it knows only the sigmoid.

So a model is written as the family whose class computes *exactly* what the model computes. A mixture that
no family has (MLA over dense layers, a softmax gate with a balancing bias, ...) is written as
"minids": transformers then refuses the folder, where under a borrowed name it would silently compute
something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

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
# What the family's own configuration class assumes when a key is absent.
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
FLOATS = (  # transformers refuses 1 for 1.0
    "rms_norm_eps", "initializer_range", "embedding_initializer_range", "routed_scaling_factor",
)  # fmt: skip
# Values that are fixed in a family's own code: with another one, ours and theirs would compute different functions.
FIXED = {
    "llama": {"n_routed_experts": [None], "kv_lora_rank": [None]},
    "deepseek": {
        "scoring_func": ["softmax"], "topk_method": ["greedy"], "routed_scaling_factor": [1], "kv_lora_rank": [None],
    },
    "deepseek_v2": {
        "scoring_func": ["softmax"], "topk_method": ["greedy", "group_limited_greedy"], "norm_topk_prob": [False],
    },
    "deepseek_v3": {"scoring_func": ["sigmoid"], "topk_method": ["noaux_tc"]},
    "minids": {},
}  # fmt: skip
REQUIRED = {"vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"}
OTHER_NAMES = {"num_mtp_layers": "num_nextn_predict_layers", "num_local_experts": "n_routed_experts"}
YARN_KEYS = (
    "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
)  # fmt: skip


def family_of(config) -> str:
    """Return the family whose class computes exactly what a ModelConfig describes, or "minids"."""
    families = {"deepseek_v3": _is_v3, "deepseek_v2": _is_v2, "llama": _is_llama, "deepseek": _is_deepseek_moe}
    return next((family for family, fits in families.items() if fits(config)), "minids")


def _is_v3(c) -> bool:
    gate = c.scoring_func == "sigmoid" and c.topk_method == "noaux_tc"
    # A group scores by its two best experts, even where there is but one group.
    return _is_mla_moe(c) and gate and c.n_routed_experts > 1


def _is_v2(c) -> bool:
    gate = c.scoring_func == "softmax" and c.topk_method != "noaux_tc" and not c.norm_topk_prob
    # transformers views V2's pairs as complex numbers, which torch allows only at even offsets.
    even = c.uses_mla and c.kv_lora_rank % 2 == c.qk_nope_head_dim % 2 == 0
    return _is_mla_moe(c) and gate and even and not c.num_nextn_predict_layers and _heads_divide(c)


def _is_llama(c) -> bool:
    plain = not c.uses_mla and not c.uses_moe and not c.num_nextn_predict_layers
    return plain and _usual_yarn(c) and _heads_divide(c) and c.initializer_range <= 1  # more is refused there


def _is_deepseek_moe(c) -> bool:
    """DeepSeekMoE's own code: no YaRN, no width for the heads, no scaling; one expert alone is not normalised."""
    if c.uses_mla or not c.uses_moe or c.num_nextn_predict_layers or c.rope_scaling is not None:
        return False
    gate = c.scoring_func == "softmax" and c.topk_method == "greedy" and c.routed_scaling_factor == 1
    alone = c.norm_topk_prob and c.num_experts_per_tok == 1
    return gate and not alone and c.head_dim * c.num_attention_heads == c.hidden_size


def _is_mla_moe(c) -> bool:
    # transformers can neither skip layers nor do without a shared expert.
    return c.uses_mla and c.uses_moe and c.moe_layer_freq == 1 and c.n_shared_experts is not None and _usual_yarn(c)


def _usual_yarn(c) -> bool:
    return c.rope_scaling is None or _usual_mscales(c.rope_scaling.mscale, c.rope_scaling.mscale_all_dim)


def _usual_mscales(mscale, mscale_all_dim) -> bool:
    """Whether two entries mean the same here and in transformers, which for a 0 or an absent one takes 1 and 0."""
    return bool(mscale and mscale_all_dim) or (mscale in (None, 1) and not mscale_all_dim)


def _heads_divide(c) -> bool:
    # Llama and V2 insist on it, even where a head has a width of its own.
    return c.hidden_size % c.num_attention_heads == 0


def read_fields(source: dict | str | Path, names: Iterable[str]) -> dict:
    """Return the values that a configuration gives to the fields `names`, its family's defaults included.

    `source` is a dict, a config.json, or the folder that holds one. Raises ValueError, one sentence,
    for an unknown family, a missing key, or a switch that would silently be ignored.
    """
    entries = dict(source) if isinstance(source, dict) else read_json(Path(source))
    model_type = entries.get("model_type")
    if not isinstance(model_type, str) or model_type not in DEFAULTS:
        raise ValueError(f"model_type={model_type!r} is unknown: use one of {', '.join(DEFAULTS)}.")
    _require_supported(entries)
    for alias, name in OTHER_NAMES.items():
        if alias in entries:
            entries[name] = entries.pop(alias)
    rope = entries.get("rope_parameters") or entries.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling={rope!r} is not possible: it must be an object or null.")
    if "rope_theta" in rope:
        entries["rope_theta"] = rope["rope_theta"]
    entries["rope_scaling"] = _read_rope_scaling(rope, model_type)
    fields = DEFAULTS[model_type] | {name: entries[name] for name in names if name in entries}
    for name, possible in FIXED[model_type].items():
        if name in fields and fields[name] not in possible:
            allowed = " or ".join(map(repr, possible))
            raise ValueError(f"{name}={fields[name]!r} is not possible in {model_type}: it must be {allowed}.")
    if not fields.keys() >= REQUIRED:
        raise ValueError(f"{min(REQUIRED - fields.keys())} is missing from the configuration: give it a value.")
    for name in ("n_group", "topk_group"):  # null in config.json: the gate knows no groups
        fields[name] = 1 if fields.get(name) is None else fields[name]
    for name in ("n_shared_experts", "q_lora_rank"):  # 0 in some files: there is none
        fields[name] = None if fields.get(name) == 0 else fields.get(name)
    return fields


def write_entries(model_type: str, fields: dict) -> dict:
    """Return the entries of a config.json of that family; `read_fields` gives `fields` back."""
    entries = {"model_type": model_type, "architectures": [ARCHITECTURES[model_type]]}
    for name, value in fields.items():
        if value is None and DEFAULTS[model_type].get(name) is None and name != "rope_scaling":
            continue  # absent means the same
        entries[name] = float(value) if name in FLOATS else value
    if fields["rope_scaling"] is not None:
        entries["rope_scaling"] = {"type": "yarn"} | fields["rope_scaling"]
    return entries | {"hidden_act": "silu", "attention_bias": False}


def read_json(path: Path) -> dict:
    """Return the object in a JSON file, or in the config.json of a folder; ValueError if there is none."""
    path = path / "config.json" if path.is_dir() else path
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give a config.json or the folder that holds one.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable JSON file: {error}.") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} holds a {type(entries).__name__}: it must be one JSON object.")
    return entries


def _require_supported(entries: dict) -> None:
    supported = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_interleave": True}
    for name, only in supported.items():
        value = entries.get(name, only)
        if value is not None and value != only:
            raise ValueError(f"{name}={value!r} is not supported: it must be {only!r}.")


def _read_rope_scaling(entry: dict, model_type: str) -> dict | None:
    kind = entry.get("rope_type") or entry.get("type") or "default"
    if kind == "default":
        return None
    if kind != "yarn":
        raise ValueError(f"rope_scaling type {kind!r} is not supported: it must be 'yarn' or absent.")
    for name, only in {"attention_factor": None, "truncate": True, "partial_rotary_factor": 1.0}.items():
        if entry.get(name, only) not in (None, only):
            raise ValueError(f"rope_scaling {name}={entry[name]!r} is not supported: it must be absent.")
    for name in ("factor", "original_max_position_embeddings"):
        if name not in entry:
            raise ValueError(f"rope_scaling has no {name}: YaRN needs it.")
    mscales = entry.get("mscale"), entry.get("mscale_all_dim")
    if model_type != "minids" and not _usual_mscales(*mscales):
        both = "rope_scaling mscale={!r} and mscale_all_dim={!r}".format(*mscales)
        raise ValueError(f"{both} are not possible in {model_type}: they must be two positive numbers, or 1 and 0.")
    return {name: entry[name] for name in YARN_KEYS if name in entry}
