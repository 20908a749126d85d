"""Causal attention with ordinary keys and values: multi-head, grouped-query, multi-query.

    o_t = sum over j <= t of softmax_j(q_t · k_j · scale) v_j

In multi-head attention (MHA) every head has its own keys and values. In grouped-query attention (GQA) the heads of a
group share one key and value, in multi-query attention (MQA) all heads do. Sharing shrinks the KV cache, which holds
2 · kv_heads · head_dim numbers per token and layer, but can cost quality. MLA (mla.py) caches a low-rank
latent instead. It uses the same `attend`: expanded as MHA, absorbed as MQA over the latent.

    code        released weight
    q_proj      self_attn.q_proj.weight     (heads · head_dim, hidden)
    k_proj      self_attn.k_proj.weight     (kv_heads · head_dim, hidden)
    v_proj      self_attn.v_proj.weight     (kv_heads · head_dim, hidden)
    o_proj      self_attn.o_proj.weight     (hidden, heads · head_dim)

Shape letters: see minids/model/__init__.py. Of the S key positions, the first S - T come from the cache.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from minids.model.cache import Cache
from minids.model.config import ModelConfig
from minids.model.linear import Linear
from minids.model.rope import apply_rope, softmax_scale

QUERY_BLOCK = 128  # queries computed at a time


def attend(q_BHTC: Tensor, k_BGSC: Tensor, v_BGSA: Tensor, scale: float, length: Tensor | None = None) -> Tensor:
    """Return the causal attention output (B, H, T, A). The T queries are the last T of the S positions.

    Where sequences differ in length, `length` (B,) says how many of the S positions each has: the queries are the last
    T of those.

    Written out, not torch's fused kernel: on a CPU, in bfloat16 and at this book's lengths, this is also faster. Long
    sequences are computed in blocks of queries: scores of keys after the block are never computed, and without
    gradients at most QUERY_BLOCK · S scores per head are in memory at a time instead of T · S.
    """
    B, H, T, C = q_BHTC.shape
    G, S, A = v_BGSA.shape[1:]
    # The heads of a group share their keys, so their queries are stacked as rows of one matrix product.
    q_JQTC = (q_BHTC * scale).reshape(B * G, H // G, T, C)
    k_JSC, v_JSA = k_BGSC.flatten(0, 1), v_BGSA.flatten(0, 1)
    length_J = None if length is None else length.repeat_interleave(G)
    outs = []
    for start in range(0, T, QUERY_BLOCK):
        q_JQtC = q_JQTC[:, :, start : start + QUERY_BLOCK]
        after = T - start - q_JQtC.shape[2]  # how many queries come after this block
        seen_J = None if length is None else length_J - after
        outs.append(_attend_block(q_JQtC, k_JSC[:, : S - after], v_JSA[:, : S - after], seen_J))
    return torch.cat(outs, dim=2).view(B, H, T, A)


def _attend_block(q_JQtC: Tensor, k_JSC: Tensor, v_JSA: Tensor, length_J: Tensor | None) -> Tensor:
    """Return the output (J, Q, t, A) of t queries at the last t of the S positions, or of the first `length_J` (J,)."""
    (Q, t), S = q_JQtC.shape[1:3], k_JSC.shape[1]
    scores = torch.bmm(q_JQtC.flatten(1, 2), k_JSC.mT)
    if length_J is not None:
        position_Jt = length_J[:, None] - t + torch.arange(t, device=scores.device)
        future_JtS = torch.arange(S, device=scores.device) > position_Jt[..., None]
        scores.masked_fill_(future_JtS.repeat(1, Q, 1), float("-inf"))
    elif t > 1:
        future_tS = torch.full((t, S), float("-inf"), dtype=scores.dtype, device=scores.device).triu(S - t + 1)
        scores += future_tS.repeat(Q, 1)
    # The explicit dtype keeps autocast from converting the layer's largest tensor to float32.
    out = torch.bmm(scores.softmax(dim=-1, dtype=scores.dtype), v_JSA)
    return out.unflatten(1, (Q, t))


class Attention(nn.Module):
    """MHA, GQA or MQA, depending on `num_key_value_heads`: (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = config
        self.heads, self.kv_heads, self.head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.scale = softmax_scale(c)
        self.q_proj = Linear(c.hidden_size, self.heads * self.head_dim)
        self.k_proj = Linear(c.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = Linear(c.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = Linear(self.heads * self.head_dim, c.hidden_size)

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        """Return an empty KV cache. A row holds the rotated keys, then the values."""
        return Cache(batch_size, max_length, 2 * self.kv_heads * self.head_dim, like=self.k_proj.weight)

    def forward(self, x_BTD: Tensor, rotation: Tensor, cache: Cache | None = None) -> Tensor:
        q = rearrange(self.q_proj(x_BTD), "b t (h c) -> b h t c", h=self.heads)
        k = rearrange(self.k_proj(x_BTD), "b t (g c) -> b g t c", g=self.kv_heads)
        q, k = (apply_rope(x, rotation, interleaved=False) for x in (q, k))
        v = self.v_proj(x_BTD)
        if cache is None:
            v = rearrange(v, "b t (g c) -> b g t c", g=self.kv_heads)
        else:
            rows = cache.append(torch.cat([rearrange(k, "b g t c -> b t (g c)"), v], dim=-1))
            k, v = rearrange(rows, "b s (two g c) -> two b g s c", two=2, g=self.kv_heads)
        out = attend(q, k, v, self.scale, None if cache is None else cache.differing_lengths)
        return self.o_proj(rearrange(out, "b h t c -> b t (h c)"))
