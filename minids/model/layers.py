"""RMSNorm and SwiGLU, which all models of the family use.

RMSNorm (Zhang & Sennrich 2019) divides a vector by its root mean square. Its direction stays the same, and its length
becomes the square root of its width. Then each entry is multiplied by a learned weight:

    RMSNorm(x) = x / sqrt(mean(x²) + eps) · w

Unlike LayerNorm, it subtracts no mean and has no bias.

SwiGLU (Shazeer 2020) is the feed-forward layer. One projection, after SiLU(z) = z · sigmoid(z), multiplies another:

    SwiGLU(x) = W_2 (SiLU(W x) · V x)        three matrices, no bias

    paper        code             released weight
    w            weight           ….weight                 (hidden,)
    W            gate_proj        mlp.gate_proj.weight     (width, hidden)
    V            up_proj          mlp.up_proj.weight       (width, hidden)
    W_2          down_proj        mlp.down_proj.weight     (hidden, width)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids.model.kernels import rms_norm
from minids.model.linear import Linear


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last dimension."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """The gated feed-forward layer: (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
