"""One frozen dataclass describes every model of the DeepSeek family, and the miniatures beside them.

Field names are the keys of Hugging Face's `config.json`, so that a released configuration reads
straight in and a miniature writes straight out. Two fields decide which model it is:

    kv_lora_rank        None: multi-head, grouped-query or multi-query attention by num_key_value_heads
                        else: multi-head latent attention (MLA) with a cached latent of that width
    n_routed_experts    None: every feed-forward layer is dense
                        else: a mixture of experts from layer `first_k_dense_replace` on

Every mixture of the two is legal. What cannot work (groups that do not divide the experts, an odd
number of rotary dimensions, ...) is refused here, with one sentence, before any tensor exists.

Symbols of the V3 report (§2.1, §2.2; l from the V2 report, table 1) and their names here:

    d        hidden_size                 d_c      kv_lora_rank        N_r   n_routed_experts
    l        num_hidden_layers           d_c'     q_lora_rank         N_s   n_shared_experts
    n_h      num_attention_heads         d_h^R    qk_rope_head_dim    K_r   num_experts_per_tok
    D        num_nextn_predict_layers    d_h      qk_nope_head_dim,   M     topk_group
                                                  v_head_dim
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from minids.model import config_json
from minids.model.presets import ALIASES, PRESETS

SCORING_FUNCTIONS = ("sigmoid", "softmax")
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN context extension, the `rope_scaling` entry of config.json (V3 report §4.3)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32
    beta_slow: float = 1
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self):
        _require_positive_int(self, "original_max_position_embeddings")
        _require(self, "factor", _is_number(self.factor) and self.factor >= 1, "a number of at least 1")
        for name in ("beta_fast", "beta_slow"):
            value = getattr(self, name)
            _require(self, name, _is_number(value) and value > 0, "a positive number")
        for name in ("mscale", "mscale_all_dim"):
            value = getattr(self, name)
            _require(self, name, _is_number(value) and value >= 0, "a number of at least 0")
        _require(self, "beta_fast", self.beta_fast >= self.beta_slow, f"at least beta_slow={self.beta_slow}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of one model. Raises ValueError, one sentence, for a combination that cannot work."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int  # width of the dense feed-forward layers
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.006  # V3 report §4.2; its config.json says 0.02
    embedding_initializer_range: float | None = None  # None: the same, as in DeepSeek's models
    tie_word_embeddings: bool = False
    bos_token_id: int = 0
    eos_token_id: int = 1

    # Attention. num_key_value_heads and head_dim speak of MHA, GQA and MQA only: MLA ignores them.
    num_attention_heads: int
    num_key_value_heads: int | None = None  # None: one per head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None  # None: queries are not compressed
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None

    # Position
    max_position_embeddings: int = 4096  # recorded, not enforced
    rope_theta: float = 10000.0
    rope_scaling: YarnScaling | None = None

    # Mixture of experts
    n_routed_experts: int | None = None
    n_shared_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None  # width of one expert
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    n_group: int = 1  # experts stand in so many groups,
    topk_group: int = 1  # and a token may use so many of them
    routed_scaling_factor: float = 1.0  # on the sum of the routed experts
    scoring_func: str = "sigmoid"  # V3; DeepSeekMoE and V2: softmax
    # noaux_tc (V3): by score plus bias; greedy: by score; group_limited_greedy (V2): by score, within groups
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True  # the weights of the chosen experts are made to sum to 1

    # Multi-token prediction
    num_nextn_predict_layers: int = 0

    def __post_init__(self):
        if self.num_key_value_heads is None or self.uses_mla:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        _check_body(self)
        if self.uses_mla:
            _check_mla(self)
            object.__setattr__(self, "head_dim", None)  # Hugging Face writes the rotary width there
        else:
            _check_attention(self)
            object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)
        if self.uses_moe:
            _check_moe(self)

    @property
    def uses_mla(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def uses_moe(self) -> bool:
        return self.n_routed_experts is not None

    @property
    def uses_expert_bias(self) -> bool:
        """Whether the router has the bias that balances without a loss (V3 report §2.1.2)."""
        return self.uses_moe and self.topk_method == "noaux_tc"

    @property
    def qk_head_dim(self) -> int:
        """Width of one query and one key head in MLA: content part plus rotary part, d_h + d_h^R."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rope_dim(self) -> int:
        """How many dimensions of a query and a key RoPE turns: the decoupled part in MLA, else the whole head."""
        return self.qk_rope_head_dim if self.uses_mla else self.head_dim

    def is_moe_layer(self, layer_index: int) -> bool:
        """Whether this layer's feed-forward part is a mixture of experts. MTP modules count on from the last layer."""
        return self.uses_moe and layer_index >= self.first_k_dense_replace and layer_index % self.moe_layer_freq == 0

    @property
    def model_type(self) -> str:
        """The Hugging Face family whose class computes exactly this, or "minids" where none does."""
        return config_json.family_of(self)

    @staticmethod
    def preset_names() -> list[str]:
        """Return the names that `preset` knows."""
        return [*PRESETS, *ALIASES]

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """Return a published model or one of our miniatures by name; ValueError lists the names."""
        name = ALIASES.get(name, name)
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is unknown: choose one of {', '.join(cls.preset_names())}.")
        return cls._from_fields(PRESETS[name])

    @classmethod
    def from_hf(cls, source: dict | str | Path) -> ModelConfig:
        """Read a Hugging Face configuration: a dict, a config.json, or the folder that holds one.

        A key that is missing takes the default of its `model_type`; a null stays a null. Keys that do not touch the
        architecture are passed over. Raises ValueError for what this library cannot represent.
        """
        return cls._from_fields(config_json.read_fields(source, cls.field_names()))

    def to_hf(self) -> dict:
        """Return the Hugging Face configuration as a dict; `from_hf` gives this one back."""
        return config_json.write_entries(self.model_type, dataclasses.asdict(self))

    @classmethod
    def field_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def _from_fields(cls, fields: dict) -> ModelConfig:
        """From plain values, `rope_scaling` being a dict of its own."""
        scaling = fields.get("rope_scaling")
        return cls(**fields | {"rope_scaling": YarnScaling(**scaling) if scaling is not None else None})


# ---------------------------------------------------------------------------------------------------
# What is refused


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(config, name: str, condition: bool, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name}={getattr(config, name)!r} is not possible: it must be {allowed}.")


def _require_positive_int(config, *names: str, at_least: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        _require(config, name, is_int and value >= at_least, f"a whole number of at least {at_least}")


def _require_bool(config, *names: str) -> None:
    for name in names:
        _require(config, name, isinstance(getattr(config, name), bool), "true or false")


def _check_body(c: ModelConfig) -> None:
    _require_positive_int(c, "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    _require_positive_int(c, "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    _require_positive_int(c, "num_nextn_predict_layers", "bos_token_id", "eos_token_id", at_least=0)
    _require_bool(c, "tie_word_embeddings")
    for name in ("rms_norm_eps", "initializer_range"):
        _require(c, name, _is_number(getattr(c, name)) and getattr(c, name) > 0, "a positive number")
    _require(c, "rope_theta", _is_number(c.rope_theta) and c.rope_theta > 1, "a number above 1")
    for name in ("bos_token_id", "eos_token_id"):
        _require(c, name, getattr(c, name) < c.vocab_size, f"below vocab_size={c.vocab_size}")
    own = c.embedding_initializer_range
    untied = own is None or (_is_number(own) and own > 0 and not c.tie_word_embeddings)
    _require(c, "embedding_initializer_range", untied, "None or, where the head does not share it, a positive number")
    yarn = c.rope_scaling
    _require(c, "rope_scaling", yarn is None or isinstance(yarn, YarnScaling), "None or a YarnScaling")


def _check_mla(c: ModelConfig) -> None:
    _require_positive_int(c, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    if c.q_lora_rank is not None:
        _require_positive_int(c, "q_lora_rank")
    _require(c, "qk_rope_head_dim", c.qk_rope_head_dim % 2 == 0, "even, because RoPE turns pairs")


def _check_attention(c: ModelConfig) -> None:
    if c.head_dim is None:
        divides = c.hidden_size % c.num_attention_heads == 0
        heads = c.num_attention_heads
        _require(c, "hidden_size", divides, f"a multiple of num_attention_heads={heads}, unless head_dim is given")
    else:
        _require_positive_int(c, "head_dim")
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim} is not possible: it must be even, because RoPE turns pairs.")
    divides = c.num_attention_heads % c.num_key_value_heads == 0
    _require(c, "num_key_value_heads", divides, f"a divisor of num_attention_heads={c.num_attention_heads}")


def _check_moe(c: ModelConfig) -> None:
    _require_positive_int(c, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
    _require_positive_int(c, "moe_layer_freq", "n_group", "topk_group")
    _require_positive_int(c, "first_k_dense_replace", at_least=0)
    if c.n_shared_experts is not None:
        _require_positive_int(c, "n_shared_experts")
    _require_bool(c, "norm_topk_prob")
    _require(c, "scoring_func", c.scoring_func in SCORING_FUNCTIONS, " or ".join(SCORING_FUNCTIONS))
    _require(c, "topk_method", c.topk_method in TOPK_METHODS, ", ".join(TOPK_METHODS[:-1]) + " or noaux_tc")
    scaling = c.routed_scaling_factor
    _require(c, "routed_scaling_factor", _is_number(scaling) and scaling > 0, "a positive number")
    layers = c.num_hidden_layers
    _require(c, "first_k_dense_replace", c.first_k_dense_replace <= layers, f"at most num_hidden_layers={layers}")
    experts, groups = c.n_routed_experts, c.n_group
    _require(c, "n_routed_experts", experts % groups == 0, f"a multiple of n_group={groups}")
    _require(c, "topk_group", c.topk_group <= groups, f"at most n_group={groups}")
    per_group = experts // groups
    if c.topk_method == "noaux_tc" and groups > 1:
        # The group's score is the sum of its two best experts, so a group needs two.
        _require(c, "n_group", per_group >= 2, f"at most half of n_routed_experts={experts} with noaux_tc")
    # Plain greedy selection does not look at groups.
    reachable = experts if c.topk_method == "greedy" else per_group * c.topk_group
    held = f"at most {reachable}, the experts that a token can reach"
    _require(c, "num_experts_per_tok", c.num_experts_per_tok <= reachable, held)
