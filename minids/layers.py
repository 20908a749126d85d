"""The two small layers that every transformer of the family is built from.

RMSNorm (Zhang & Sennrich 2019) divides a vector by its root mean square and scales each entry:
it keeps the direction and forgets the length, without LayerNorm's mean or bias.

SwiGLU (Shazeer 2020) is the feed-forward layer. One projection goes through SiLU and gates
another: down(silu(gate x) * up x). Three matrices, no bias.

    paper        code             released weight
    W_1          gate_proj        mlp.gate_proj.weight     (width, hidden)
    W_3          up_proj          mlp.up_proj.weight       (width, hidden)
    W_2          down_proj        mlp.down_proj.weight     (hidden, width)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight, over the last dimension."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # In float32 whatever comes in: a mean of squares loses too much in bfloat16.
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class SwiGLU(nn.Module):
    """The gated feed-forward layer: (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
