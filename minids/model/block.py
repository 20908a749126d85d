"""One transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).

Only the input of each part is normalised (pre-norm). The residual stream x itself changes by additions alone, from the
embedding to the final norm, so gradients reach every layer directly. Shape letters: see minids/model/__init__.py.

code                          released weight (model.layers.N.…)
input_layernorm               input_layernorm.weight
self_attn   MLA or Attention  self_attn.…
post_attention_layernorm      post_attention_layernorm.weight
mlp         MoE or SwiGLU     mlp.…
"""

from torch import Tensor, nn

from minids.model.attention import Attention
from minids.model.cache import Cache
from minids.model.config import ModelConfig
from minids.model.layers import RMSNorm, SwiGLU
from minids.model.mla import MLA
from minids.model.moe import MoE


class Block(nn.Module):
    """Layer `layer_index` of the model: (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        c = config
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = MLA(c) if c.uses_mla else Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MoE(c) if c.is_moe_layer(layer_index) else SwiGLU(c.hidden_size, c.intermediate_size)

    def forward(self, x_BTD: Tensor, rotation: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the new residual stream and the layer's balance loss, which is None if the layer is dense."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotation, cache)
        normalised = self.post_attention_layernorm(x_BTD)
        if isinstance(self.mlp, MoE):
            out, balance = self.mlp(normalised)
        else:
            out, balance = self.mlp(normalised), None
        return x_BTD + out, balance
