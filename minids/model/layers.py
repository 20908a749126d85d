"""The small parts that every transformer of the family is built from.

RMSNorm (Zhang & Sennrich 2019) divides a vector by its root mean square, which keeps its direction
and forgets its length, and then scales each entry by a learned weight. LayerNorm's mean and bias are
left out.

SwiGLU (Shazeer 2020) is the feed-forward layer. One projection goes through SiLU and gates
another: down(silu(gate x) * up x). Three matrices, no bias.

And the loss that all of it is trained by, cross-entropy. Shapes: N predictions, V vocabulary.

Training may run its matrix products in bfloat16, under torch's autocast; where precision decides, the
modules say float32 themselves.

    paper        code             released weight
    W            gate_proj        mlp.gate_proj.weight     (width, hidden)
    V            up_proj          mlp.up_proj.weight       (width, hidden)
    W_2          down_proj        mlp.down_proj.weight     (hidden, width)
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def to_compute_dtype(x: Tensor) -> Tensor:
    """Return x in the dtype in which autocast multiplies, or as it is where autocast is off.

    Converting once here saves every matrix product that follows from doing it again.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return -log softmax(logits)[target] of each row, (N,), in float32 nats."""
    return _CrossEntropy.apply(logits_NV, targets_N)


_NO_TARGET = -(2**62)  # torch would pass over -100 in silence


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy a few rows at a time; its gradient is softmax minus one at the target.

    The logits are the largest tensor of a training step. In blocks, their float32 copies stay in the
    processor's cache and never exist whole, and the gradient is rounded to the logits' dtype once, at the end.
    """

    ROWS = 256

    @staticmethod
    def forward(ctx, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        ctx.save_for_backward(logits_NV, targets_N)
        blocks = _CrossEntropy.blocks(logits_NV, targets_N)
        losses = [
            F.cross_entropy(logits.float(), target, reduction="none", ignore_index=_NO_TARGET)
            for logits, target in blocks
        ]
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N: Tensor) -> tuple[Tensor, None]:
        logits_NV, targets_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for logits, target, grad, out in _CrossEntropy.blocks(logits_NV, targets_N, grad_N, grad_NV):
            softmax = logits.softmax(dim=-1, dtype=torch.float32)
            softmax[torch.arange(len(target), device=target.device), target] -= 1
            torch.mul(softmax, grad[:, None], out=out)
        return grad_NV, None

    @staticmethod
    def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(tensor.split(_CrossEntropy.ROWS) for tensor in tensors), strict=True)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight, over the last dimension."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # In float32 whatever comes in: a mean of squares loses too much in bfloat16.
        rms_norm = _RMSNorm.apply if torch.is_grad_enabled() else _rms_norm
        normalised = rms_norm(x.float(), self.weight.float(), self.eps)
        return to_compute_dtype(normalised.to(x.dtype))


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """The same, with its gradient in one piece; on a CPU torch's own goes back operation by operation.

    With r = 1 / rms(x), n = x r and g = dy * weight: d weight = sum of dy * n, and dx = r (g - n mean(g * n)),
    because n depends on x through its length, too.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        n = x * r
        dy_n = dy * n
        mean = (dy_n @ weight)[..., None].div_(x.shape[-1])
        return (dy * weight).sub_(n.mul_(mean)).mul_(r), dy_n.reshape(-1, len(weight)).sum(dim=0), None


class SwiGLU(nn.Module):
    """The gated feed-forward layer: (..., hidden) -> (..., hidden)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
