"""The configuration of a model: one frozen dataclass for all of DeepSeek's models and for the miniatures.

Field names are the keys of Hugging Face's `config.json`, so released files can be read unchanged and miniatures are
saved in the same form. Two fields select the architecture:

    kv_lora_rank        None: multi-head, grouped-query or multi-query attention by num_key_value_heads
                        else: multi-head latent attention (MLA) with a cached latent of that width
    n_routed_experts    None: every feed-forward layer is dense
                        else: a mixture of experts from layer `first_k_dense_replace` on

The two can be combined freely. Invalid configurations (groups that do not divide the experts, an odd number of rotary
dimensions, ...) raise a ValueError of one sentence here, before any tensor is allocated.

Symbols of the V3 report (§2.1, §2.2; l from the V2 report, table 1) and their names here:

    d        hidden_size                 d_c      kv_lora_rank        N_r   n_routed_experts
    l        num_hidden_layers           d_c'     q_lora_rank         N_s   n_shared_experts
    n_h      num_attention_heads         d_h^R    qk_rope_head_dim    K_r   num_experts_per_tok
    D        num_nextn_predict_layers    d_h      qk_nope_head_dim,   M     topk_group
                                                  v_head_dim
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from minids.model import config_json
from minids.model.presets import ALIASES, PRESETS
from minids.validation import is_number, quoted, require, require_fields, require_whole, require_whole_fields

MOST_LAYERS, MOST_MTP_MODULES, MOST_EXPERTS = 1000, 100, 65_536  # far above any real model
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
        require_whole_fields(self, "original_max_position_embeddings")
        _require_numbers(self, "factor", at_least=1)
        _require_numbers(self, "beta_fast", "beta_slow")
        _require_numbers(self, "mscale", "mscale_all_dim", at_least=0)
        require_fields(self, f"at least beta_slow={self.beta_slow}", lambda value: value >= self.beta_slow, "beta_fast")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of one model. Raises ValueError, one sentence, if the fields are not valid together."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int  # width of the dense feed-forward layers
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.006  # V3 report §4.2; its config.json says 0.02
    embedding_initializer_range: float | None = None  # None: initializer_range, as in DeepSeek's models
    tie_word_embeddings: bool = False
    bos_token_id: int = 0
    eos_token_id: int | tuple[int, ...] = 1  # one or several tokens, each of which ends a text

    # Attention. MHA, GQA and MQA use num_key_value_heads and head_dim; MLA ignores them.
    num_attention_heads: int
    num_key_value_heads: int | None = None  # None: one per head
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None  # None: queries are not compressed
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None

    # Position
    max_position_embeddings: int = 4096  # stored, not enforced
    rope_theta: float = 10000.0
    rope_scaling: YarnScaling | None = None

    # Mixture of experts
    n_routed_experts: int | None = None
    n_shared_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None  # width of one expert
    first_k_dense_replace: int = 0  # num_hidden_layers or more: no layer has experts
    moe_layer_freq: int = 1
    n_group: int = 1  # number of groups of experts
    topk_group: int = 1  # number of groups that a token can be routed to
    routed_scaling_factor: float = 1.0  # multiplies the sum of the routed experts
    scoring_func: str = "sigmoid"  # V3; DeepSeekMoE and V2: softmax
    # noaux_tc (V3): score plus bias, within groups; group_limited_greedy (V2): score, within groups; greedy: score
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True  # normalise the weights of the chosen experts to sum 1

    # Multi-token prediction
    num_nextn_predict_layers: int = 0

    def __post_init__(self):
        if self.num_key_value_heads is None or self.uses_mla:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        _check_body(self)
        if self.uses_mla:
            _check_mla(self)
            object.__setattr__(self, "head_dim", None)  # Hugging Face sets it to the rotary width
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
        """Whether the gate has the bias for auxiliary-loss-free balancing (V3 report §2.1.2)."""
        return self.uses_moe and self.topk_method == "noaux_tc"

    @property
    def end_of_text_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: `eos_token_id`, always as a tuple."""
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head in MLA: d_nope + d_rope (d_h + d_h^R in the report)."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rope_dim(self) -> int:
        """Number of dimensions that RoPE rotates: in MLA those of the decoupled part, otherwise the whole head."""
        return self.qk_rope_head_dim if self.uses_mla else self.head_dim

    def is_moe_layer(self, layer_index: int) -> bool:
        """Whether this layer has a mixture of experts. The first MTP module has index num_hidden_layers, and so on."""
        return self.uses_moe and layer_index >= self.first_k_dense_replace and layer_index % self.moe_layer_freq == 0

    def moe_layer_names(self) -> list[str]:
        """Return a name for each gate of the model, in order: "layer 2", …, and "MTP" for an MTP module."""
        body = self.num_hidden_layers
        names = [f"layer {i + 1}" if i < body else "MTP" for i in range(body + self.num_nextn_predict_layers)]
        return [name for i, name in enumerate(names) if self.is_moe_layer(i)]

    @property
    def model_type(self) -> str:
        """The Hugging Face family whose class computes exactly the same function, or "minids" if none does."""
        return config_json.family_of(self)

    @staticmethod
    def preset_names() -> list[str]:
        """Return the names that `preset` accepts."""
        return [*PRESETS, *ALIASES]

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """Return a published model or a miniature by name. Raises ValueError, with all names, for another name."""
        name = ALIASES.get(name, name)
        if name not in PRESETS:
            raise ValueError(f"preset {quoted(name)} is unknown: choose one of {', '.join(cls.preset_names())}.")
        return cls._from_fields(PRESETS[name])

    @classmethod
    def from_hf(cls, source: dict | str | Path) -> ModelConfig:
        """Read a Hugging Face configuration: a dict, a config.json, or the folder that holds one.

        A missing key takes the default of its `model_type`; a null stays null. Keys that do not affect the
        architecture are ignored. Raises ValueError for a model that this library cannot represent.
        """
        return cls._from_fields(config_json.read_fields(source, cls.field_names()))

    def to_hf(self) -> dict:
        """Return the Hugging Face configuration as a dict. `from_hf` restores this configuration from it."""
        return config_json.write_entries(self.model_type, dataclasses.asdict(self))

    @classmethod
    def field_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def _from_fields(cls, fields: dict) -> ModelConfig:
        """Build a configuration from plain values, with `rope_scaling` as a dict or None."""
        scaling = fields.get("rope_scaling")
        return cls(**fields | {"rope_scaling": YarnScaling(**scaling) if scaling is not None else None})


# ---------------------------------------------------------------------------------------------------
# Checks


def _require_numbers(config: ModelConfig | YarnScaling, *names: str, at_least: float = 1e-18) -> None:
    allowed = f"a number from {at_least:g} to 1e18"  # far from float32's limits
    require_fields(config, allowed, lambda value: is_number(value) and at_least <= value <= 1e18, *names)


def _check_body(c: ModelConfig) -> None:
    require_whole_fields(c, "vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")
    require_whole_fields(c, "num_attention_heads", "num_key_value_heads")
    require_whole_fields(c, "num_hidden_layers", at_most=MOST_LAYERS)
    require_whole_fields(c, "num_nextn_predict_layers", at_least=0, at_most=MOST_MTP_MODULES)
    require_whole_fields(c, "bos_token_id", at_least=0, at_most=c.vocab_size - 1)
    several = isinstance(c.eos_token_id, tuple) and len(c.eos_token_id) > 0
    for token in c.eos_token_id if several else (c.eos_token_id,):
        require_whole("eos_token_id", token, at_least=0, at_most=c.vocab_size - 1)
    require_fields(c, "true or false", lambda value: isinstance(value, bool), "tie_word_embeddings")
    _require_numbers(c, "rms_norm_eps", "initializer_range")
    _require_numbers(c, "rope_theta", at_least=1)
    require_fields(c, "above 1", lambda value: value > 1, "rope_theta")
    if c.embedding_initializer_range is not None:
        _require_numbers(c, "embedding_initializer_range")
        allowed = "None, because the head shares the embedding"
        require_fields(c, allowed, lambda value: not c.tie_word_embeddings, "embedding_initializer_range")
    yarn = c.rope_scaling
    require("rope_scaling", yarn, yarn is None or isinstance(yarn, YarnScaling), "None or a YarnScaling")


def _check_mla(c: ModelConfig) -> None:
    require_whole_fields(c, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    if c.q_lora_rank is not None:
        require_whole_fields(c, "q_lora_rank")
    require_fields(c, "even, because RoPE rotates pairs", lambda value: value % 2 == 0, "qk_rope_head_dim")


def _check_attention(c: ModelConfig) -> None:
    if c.head_dim is None:
        heads = c.num_attention_heads
        allowed = f"a multiple of num_attention_heads={heads}, unless head_dim is given"
        require_fields(c, allowed, lambda value: value % heads == 0, "hidden_size")
    else:
        require_whole_fields(c, "head_dim")
    head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    require("head_dim", head_dim, head_dim % 2 == 0, "even, because RoPE rotates pairs")
    divides = c.num_attention_heads % c.num_key_value_heads == 0
    allowed = f"a divisor of num_attention_heads={c.num_attention_heads}"
    require("num_key_value_heads", c.num_key_value_heads, divides, allowed)


def _check_moe(c: ModelConfig) -> None:
    require_whole_fields(c, "n_routed_experts", at_most=MOST_EXPERTS)
    require_whole_fields(c, "num_experts_per_tok", "moe_intermediate_size")
    require_whole_fields(c, "moe_layer_freq", "n_group", "topk_group")
    require_whole_fields(c, "first_k_dense_replace", at_least=0)
    if c.n_shared_experts is not None:
        require_whole_fields(c, "n_shared_experts")
    require_fields(c, "true or false", lambda value: isinstance(value, bool), "norm_topk_prob")
    require_fields(c, " or ".join(SCORING_FUNCTIONS), lambda value: value in SCORING_FUNCTIONS, "scoring_func")
    require_fields(c, ", ".join(TOPK_METHODS[:-1]) + " or noaux_tc", lambda value: value in TOPK_METHODS, "topk_method")
    _require_numbers(c, "routed_scaling_factor")
    experts, groups = c.n_routed_experts, c.n_group
    require_fields(c, f"a multiple of n_group={groups}", lambda value: value % groups == 0, "n_routed_experts")
    require_fields(c, f"at most n_group={groups}", lambda value: value <= groups, "topk_group")
    per_group = experts // groups
    if c.topk_method == "noaux_tc" and groups > 1:
        # The score of a group is the sum of its two best experts, so a group needs two of them.
        allowed = f"at most half of n_routed_experts={experts}, because noaux_tc scores a group by two experts"
        require("n_group", groups, per_group >= 2, allowed)
    # Plain greedy selection ignores groups.
    reachable = experts if c.topk_method == "greedy" else per_group * c.topk_group
    allowed = f"at most {reachable}, the number of experts that a token can be routed to"
    require_fields(c, allowed, lambda value: value <= reachable, "num_experts_per_tok")
