"""Causal attention with ordinary keys and values: multi-head, grouped-query, multi-query.

    out_t = sum over j <= t of softmax_j(q_t · k_j · scale) v_j

In MHA every head has its own keys and values. GQA lets groups of heads share them, MQA lets all
heads share one. Sharing shrinks what must be cached while decoding, 2 · kv_heads · head_dim numbers
per token and layer, and costs quality. MLA (next file) escapes that trade, and it, too, ends in the
`attend` below: its naive form as MHA, its absorbed form as MQA over the latent.

    code        released weight
    q_proj      self_attn.q_proj.weight     (heads · head_dim, hidden)
    k_proj      self_attn.k_proj.weight     (kv_heads · head_dim, hidden)
    v_proj      self_attn.v_proj.weight     (kv_heads · head_dim, hidden)
    o_proj      self_attn.o_proj.weight     (hidden, heads · head_dim)

Shapes: B batch, T query positions, S key positions (S - T of them cached before), D hidden, H query heads,
G key-value heads, R = H / G heads that share one, C and V width of a key and of a value, W of all
that is cached per position.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from minids.model.config import ModelConfig
from minids.model.rope import apply_rope, softmax_scale

QUERY_BLOCK = 128  # this many queries attend at a time


def attend(q_BHTC: Tensor, k_BGSC: Tensor, v_BGSV: Tensor, scale: float) -> Tensor:
    """Return the causal attention output (B, H, T, V). The T queries are the last T of the S positions.

    Written out instead of calling torch's fused kernel: on a CPU, in bfloat16 and at the lengths of
    this book, that is also the faster way. Long sequences go block by block: scores of keys after the
    block are never computed, and without gradients only QUERY_BLOCK · S are in memory at a time, not T · S.
    """
    B, H, T, C = q_BHTC.shape
    G, S, V = v_BGSV.shape[1:]
    # The R heads of a group meet the same keys, so they stand as more rows of one matrix product.
    q_MRTC = (q_BHTC * scale).reshape(B * G, H // G, T, C)  # M: batch and groups
    k_MSC, v_MSV = k_BGSC.flatten(0, 1), v_BGSV.flatten(0, 1)
    outs = []
    for start in range(0, T, QUERY_BLOCK):
        q_MRtC = q_MRTC[:, :, start : start + QUERY_BLOCK]
        seen = S - T + start + q_MRtC.shape[2]
        outs.append(_attend_block(q_MRtC, k_MSC[:, :seen], v_MSV[:, :seen]))
    return torch.cat(outs, dim=2).view(B, H, T, V)


def _attend_block(q_MRtC: Tensor, k_MSC: Tensor, v_MSV: Tensor) -> Tensor:
    """Return the output (M, R, t, V) of t queries, the last of the S positions."""
    (R, t), S = q_MRtC.shape[1:3], k_MSC.shape[1]
    scores = torch.bmm(q_MRtC.flatten(1, 2), k_MSC.mT)
    if t > 1:
        future_tS = torch.full((t, S), float("-inf"), dtype=scores.dtype, device=scores.device).triu(S - t + 1)
        scores += future_tS.repeat(R, 1)
    # The dtype is named so that autocast does not widen the largest tensor of the layer to float32.
    out = torch.bmm(scores.softmax(dim=-1, dtype=scores.dtype), v_MSV)
    return out.unflatten(1, (R, t))


class Cache:
    """What one attention layer remembers while decoding: a buffer (batch, max_length, width) that fills up.

    Setting `length` back forgets the positions after it.
    """

    def __init__(self, batch_size: int, max_length: int, width: int, like: Tensor):
        self.buffer = like.new_zeros(batch_size, max_length, width)
        self.length = 0

    def append(self, rows_BTW: Tensor) -> Tensor:
        """Store the rows of new positions and return those of all positions, (B, length, width).

        Raises ValueError when they do not fit; the cache is then as it was.
        """
        if rows_BTW.shape[0] != self.buffer.shape[0]:
            raise ValueError(f"{rows_BTW.shape[0]} rows do not fit: the cache was made for {self.buffer.shape[0]}.")
        end = self.length + rows_BTW.shape[1]
        if end > self.buffer.shape[1]:
            raise ValueError(f"{end} positions do not fit: the cache was made for {self.buffer.shape[1]}.")
        self.buffer[:, self.length : end] = rows_BTW
        self.length = end
        rows = self.buffer[:, :end]
        # Autograd may keep what is returned, and the next rows are written into the same buffer.
        return rows.clone() if rows.requires_grad else rows


class Attention(nn.Module):
    """MHA, GQA or MQA, by `num_key_value_heads`: (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = config
        self.heads, self.kv_heads, self.head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.scale = softmax_scale(c)
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, c.hidden_size, bias=False)

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        """Return an empty cache for keys (already rotated) and values, side by side."""
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
        out = attend(q, k, v, self.scale)
        return self.o_proj(rearrange(out, "b h t c -> b t (h c)"))
