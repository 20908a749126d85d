"""Layers small enough to print: each kind of attention, with one decoding step of it, and a mixture of experts.

Attention has four heads of two, the mixture four routed experts of width two and a shared one. All read six words.

Pictures and chapters draw on the same layers, so a number in a picture is one that the reader can compute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from minids.cost.attention import mla_multiplications
from minids.model.attention import Attention
from minids.model.config import ModelConfig
from minids.model.mla import MLA
from minids.model.moe import MoE
from minids.model.rope import apply_rope, rope_rotation
from minids.validation import require

WORDS = ("the", "cat", "sat", "on", "the", "mat")
_MHA = ModelConfig(
    vocab_size=8, hidden_size=6, num_hidden_layers=1, intermediate_size=8, num_attention_heads=4,
    num_key_value_heads=4, head_dim=2,
)  # fmt: skip
TOYS = {
    "MHA": _MHA,
    "GQA": replace(_MHA, num_key_value_heads=2),
    "MQA": replace(_MHA, num_key_value_heads=1),
    "MLA": replace(
        _MHA, num_key_value_heads=None, head_dim=None, q_lora_rank=4, kv_lora_rank=3, qk_nope_head_dim=2,
        qk_rope_head_dim=2, v_head_dim=2,
    ),
}  # fmt: skip
TOY_MOE = replace(
    _MHA, moe_intermediate_size=2, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
)  # fmt: skip
KINDS = ("MHA", "GQA", "MQA", "MLA, expanded", "MLA, absorbed")  # ways to compute a decoding step


@cache
def toy_input() -> Tensor:
    """Return the normalised hidden states of WORDS, (6, 6): random, and equal where the word is equal."""
    generator = torch.Generator().manual_seed(0)
    words = {word: torch.randn(6, generator=generator) for word in dict.fromkeys(WORDS)}
    return torch.stack([words[word] for word in WORDS])


def toy_layer(kind: str) -> Attention | MLA:
    """Return a layer of a kind (MHA, GQA, MQA or MLA) with random weights, the same ones each time.

    The norms' weights are random, too, so that a norm that is left out changes the result.
    """
    require("kind", kind, kind in TOYS, " or ".join(TOYS))
    config = TOYS[kind]
    layer = (MLA(config) if config.uses_mla else Attention(config)).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for weight in layer.parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(0.6 * noise if weight.ndim == 2 else 1 + noise)  # the norms around 1
    return layer


def toy_moe(**changes) -> MoE:
    """Return a MoE layer with random weights, the same ones each time; `changes` are fields of its configuration."""
    layer = MoE(replace(TOY_MOE, **changes)).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in layer.parameters():
        weight.copy_(0.6 * torch.randn(weight.shape, generator=generator))
    return layer


def toy_rotation(positions: int = len(WORDS)) -> Tensor:
    """Return the rotation of the first positions, for the MLA layer and for the others alike: one pair each."""
    return rope_rotation(TOYS["MLA"], torch.arange(positions))


@dataclass(frozen=True)
class Step:
    """One decoding step, its numbers by name: (heads, width) of the query, (tokens, groups, width) of what it reads.

    A group is a key-value head, or in MLA the latent with its rotated key, of which there is one. `expanded` is what
    the step computes from the cache and does not keep.
    """

    kind: str
    query: dict[str, Tensor]
    cached: dict[str, Tensor]
    expanded: dict[str, Tensor]
    multiplications: int

    @property
    def per_token(self) -> int:
        """Numbers cached of each token."""
        return sum(part.shape[1] * part.shape[2] for part in self.cached.values())

    @property
    def made(self) -> int:
        """Numbers made from each cached token and not kept."""
        return sum(part.shape[1] * part.shape[2] for part in self.expanded.values())


def step_of(kind: str, token: int) -> Step:
    """Return the step that appends a token of WORDS, counted from 1, and attends to all so far.

    Raises ValueError for another kind or token.
    """
    require("kind", kind, kind in KINDS, " or ".join(KINDS))
    require("token", token, isinstance(token, int) and 1 <= token <= len(WORDS), f"1 to {len(WORDS)}")
    name = kind.partition(",")[0]
    layer, config, h, rotation = toy_layer(name), TOYS[name], toy_input()[None, :token], toy_rotation(token)
    cache = layer.new_cache(1, token)
    layer(h, rotation, cache)
    rows = cache.buffer[0]
    heads, last = config.num_attention_heads, rotation[-1:]
    if not config.uses_mla:
        keys, values = rows.unflatten(1, (2, -1, config.head_dim)).unbind(1)
        query = apply_rope(layer.q_proj(h[:, -1:]).unflatten(-1, (heads, -1)).transpose(1, 2), last, interleaved=False)
        pairs = heads * token * 2 * config.head_dim
        return Step(kind, {"q": query[0, :, 0]}, {"k": keys, "v": values}, {}, pairs)
    q_nope, q_rope = (part[0, :, 0] for part in layer.queries(h[:, -1:], last))
    cached = {"c_kv": rows[:, None, : config.kv_lora_rank], "k_rope": rows[:, None, config.kv_lora_rank :]}
    up = layer.kv_b_proj.weight.unflatten(0, (heads, -1))
    if kind == "MLA, absorbed":
        absorbed = torch.einsum("hn,hnl->hl", q_nope, up[:, : config.qk_nope_head_dim])
        query, expanded = {"absorbed": absorbed, "q_rope": q_rope}, {}
    else:
        made = torch.einsum("tl,hnl->thn", cached["c_kv"][:, 0], up)
        k_nope, v = made.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        query, expanded = {"q_nope": q_nope, "q_rope": q_rope}, {"k_nope": k_nope, "v_made": v}
    count = mla_multiplications(config, token)[kind.partition(", ")[2]]
    return Step(kind, query, cached, expanded, count)
