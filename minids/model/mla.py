"""Multi-head latent attention (V2 report §2.1, V3 report §2.1.1): the KV cache holds one small latent per token.

The values of all heads, and their keys without position, are linear functions of one small vector, the latent c_kv: a
joint low-rank compression. The KV cache stores c_kv and one rotated key k_rope, in V3 512 + 64 numbers per token and
layer. c_kv expands to k_nope and v of 128 heads, 128 · (128 + 128) = 32,768 numbers; with a copy of k_rope in each
head's key they are 40,960. Equations of the V3 report, in the order of the code:

    (6-8)    c_q = norm(W^DQ h)          q_nope = W^UQ c_q        q_rope = RoPE(W^QR c_q)
    (1, 3)   c_kv = norm(W^DKV h)        k_rope = RoPE(W^KR h)                      <- cached
    (2, 5)   k_nope = W^UK c_kv          v = W^UV c_kv
    (4, 9)   k = [k_nope ; k_rope]       q = [q_nope ; q_rope]
    (10)     o = attend(q, k, v)         with scale 1 / sqrt(d_nope + d_rope), times m² under YaRN (rope.py)
    (11)     out = W^O o

**Absorption** (V2 report, appendix C). q_nope · (W^UK c_kv) = (W^UK^T q_nope) · c_kv: with W^UK applied to the query,
the cached latents need not be expanded. Attention becomes multi-query attention with the key [c_kv ; k_rope] and the
value c_kv, and W^UV is applied to its output. The result is the same. In V3 each pair of query and key then takes
128 · (576 + 512) multiplications, for scores and values, instead of 128 · (192 + 128). But expanding a cached token
takes 16.8 million, at every decoding step. So decoding uses the absorbed form. Training and prefill expand each token
once for all queries, and use the expanded form.

**Why RoPE is decoupled.** RoPE on k_nope would put a rotation between W^UQ and W^UK that depends on the distance of
query and key, so W^UK could not be absorbed. Therefore d_rope separate dimensions carry the position; the others are
nope, no positional encoding. k_rope is one vector per token, shared by all heads: one per head would make the cache
large again.

    report              code                                released weight (self_attn.…)
    W^DQ                q_a_proj                            q_a_proj.weight
    –                   q_a_layernorm                       q_a_layernorm.weight
    [W^UQ ; W^QR]       q_b_proj  rows: head, nope|rope     q_b_proj.weight
    W^Q, no W^DQ        q_proj    rows: head, nope|rope     q_proj.weight  (if q_lora_rank is null)
    [W^DKV ; W^KR]      kv_a_proj_with_mqa                  kv_a_proj_with_mqa.weight
    –                   kv_a_layernorm                      kv_a_layernorm.weight
    [W^UK ; W^UV]       kv_b_proj  rows: head, nope|v       kv_b_proj.weight
    W^O                 o_proj                              o_proj.weight

    h                   h: x_BTD, normalised by the block
    c^Q                 c_q
    q^C, q^R            q_nope, q_rope
    c^KV, k^R           c_kv, k_rope: latent_BTW, side by side
    k^C, v^C            k_nope, v
    o                   o: returned by attend_expanded and attend_absorbed
    u                   out: returned by forward

                                                            key of config.json
    d_c                 d_latent: latent_dim                kv_lora_rank
    d_c'                q_lora_rank                         q_lora_rank
    d_h                 d_nope, d_v: nope_dim, v_dim        qk_nope_head_dim, v_head_dim
    d_h^R               d_rope: rope_dim                    qk_rope_head_dim
    n_h                 H: heads                            num_attention_heads

The report mentions the norms of the two latents in §4.2, not in the equations; the released code has them.
Shape letters: see minids/model/__init__.py.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from minids.model.attention import attend
from minids.model.cache import Cache
from minids.model.config import ModelConfig
from minids.model.layers import RMSNorm
from minids.model.linear import Linear
from minids.model.rope import apply_rope, softmax_scale


class MLA(nn.Module):
    """Multi-head latent attention: (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = config
        self.heads = c.num_attention_heads
        self.latent_dim, self.nope_dim, self.rope_dim = c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim
        self.v_dim = c.v_head_dim
        self.q_lora_rank = c.q_lora_rank
        self.scale = softmax_scale(c)
        # The latents' norms have eps 1e-6 whatever rms_norm_eps is, as in the released code.
        if self.q_lora_rank is None:
            self.q_proj = Linear(c.hidden_size, self.heads * c.qk_head_dim)
        else:
            self.q_a_proj = Linear(c.hidden_size, c.q_lora_rank)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank)
            self.q_b_proj = Linear(c.q_lora_rank, self.heads * c.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(c.hidden_size, self.latent_dim + self.rope_dim)
        self.kv_a_layernorm = RMSNorm(self.latent_dim)
        self.kv_b_proj = Linear(self.latent_dim, self.heads * (self.nope_dim + self.v_dim))
        self.o_proj = Linear(self.heads * self.v_dim, c.hidden_size)

    def new_cache(self, batch_size: int, max_length: int) -> Cache:
        """Return an empty cache. A row holds [c_kv ; k_rope]: the normalised latent and the rotated key."""
        return Cache(batch_size, max_length, self.latent_dim + self.rope_dim, like=self.kv_b_proj.weight)

    def forward(self, x_BTD: Tensor, rotation: Tensor, cache: Cache | None = None) -> Tensor:
        """Return causal attention over x and, with a cache, over the cached positions before it.

        Training and prefill (nothing cached before x) use the expanded form, decoding the absorbed one. They agree
        up to rounding.
        """
        q_nope, q_rope = self.queries(x_BTD, rotation)
        latent_BTW = self.latent(x_BTD, rotation)
        if cache is None or cache.empty:
            if cache is not None:
                cache.append(latent_BTW)
            o = self.attend_expanded(q_nope, q_rope, latent_BTW)
        else:
            rows_BSW = cache.append(latent_BTW)
            o = self.attend_absorbed(q_nope, q_rope, rows_BSW, cache.differing_lengths)
        return self.o_proj(o.transpose(1, 2).flatten(2))

    def queries(self, x_BTD: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Return q_nope (B, H, T, M) and the rotated q_rope (B, H, T, P). Equations 6-8."""
        c_q = x_BTD if self.q_lora_rank is None else self.q_a_layernorm(self.q_a_proj(x_BTD))
        q = self.q_up(c_q)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q_nope, q_rope = q.split_with_sizes([self.nope_dim, self.rope_dim], dim=-1)
        return q_nope, apply_rope(q_rope, rotation, interleaved=True)

    @property
    def q_up(self) -> Linear:
        """The projection to all heads' queries: [W^UQ ; W^QR], or W^Q if queries are not compressed."""
        return self.q_proj if self.q_lora_rank is None else self.q_b_proj

    def latent(self, x_BTD: Tensor, rotation: Tensor) -> Tensor:
        """Return [c_kv ; k_rope], (B, T, W), which is all that the KV cache stores. Equations 1 and 3."""
        c_kv, k_rope = self.kv_a_proj_with_mqa(x_BTD).split_with_sizes([self.latent_dim, self.rope_dim], dim=-1)
        c_kv = self.kv_a_layernorm(c_kv)  # k_rope is not normalised
        k_rope = apply_rope(k_rope[:, None], rotation, interleaved=True).squeeze(1)  # of one head
        return torch.cat([c_kv, k_rope], dim=-1)

    def attend_expanded(self, q_nope: Tensor, q_rope: Tensor, latent_BSW: Tensor) -> Tensor:
        """Expand each latent to a key and a value per head, and return o (B, H, T, A). Equations 2, 4, 5, 9, 10."""
        c_kv, k_rope = latent_BSW.split_with_sizes([self.latent_dim, self.rope_dim], dim=-1)
        kv = rearrange(self.kv_b_proj(c_kv), "b s (h c) -> b h s c", h=self.heads)
        k_nope, v = kv.split_with_sizes([self.nope_dim, self.v_dim], dim=-1)
        k_rope = k_rope[:, None].expand(-1, self.heads, -1, -1)  # one rotated key, shared by all heads
        q = torch.cat([q_nope, q_rope], dim=-1)
        k = torch.cat([k_nope, k_rope], dim=-1)
        return attend(q, k, v, self.scale)

    def attend_absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent_BSW: Tensor, length: Tensor | None = None
    ) -> Tensor:
        """Return the same o without expanding the latents: multi-query attention over the cached rows.

        W^UK is applied to the queries, and W^UV to the weighted sums of latents. The scale is that of the expanded
        form: it does not depend on the width of the latent.
        """
        w = self.kv_b_proj.weight.unflatten(0, (self.heads, -1))
        w_uk, w_uv = w.split_with_sizes([self.nope_dim, self.v_dim], dim=1)
        q = torch.cat([_per_head(q_nope, w_uk), q_rope], dim=-1)  # (B, H, T, W)
        c_kv = latent_BSW[..., : self.latent_dim]
        out_BHTL = attend(q, latent_BSW[:, None], c_kv[:, None], self.scale, length)
        return _per_head(out_BHTL, w_uv.mT)


def _per_head(x_BHTX: Tensor, matrices_HXY: Tensor) -> Tensor:
    """Multiply the rows of each head by that head's matrix: (B, H, T, Y)."""
    B, _, T, _ = x_BHTX.shape
    out = torch.bmm(x_BHTX.transpose(0, 1).flatten(1, 2), matrices_HXY)
    return out.unflatten(1, (B, T)).transpose(0, 1)
