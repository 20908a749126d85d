"""RMSNorm and cross-entropy with hand-written gradients, which take less time and memory than their one-line formulas.

The other files of the model are written like the equations; optimisations are here. Autograd would differentiate these
two functions operation by operation and save large intermediate tensors. A `torch.autograd.Function` defines forward
and backward explicitly. The tests compare values and gradients with torch's.
"""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def to_compute_dtype(x: Tensor) -> Tensor:
    """Return x in autocast's dtype, or unchanged if autocast is off.

    Converted once here, it need not be converted in each of the matrix products that use it.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def local(x: Tensor) -> Tensor:
    """Return this rank's part of a tensor that is sharded among ranks (DTensor); any other one as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) · weight over the last dimension, in autocast's dtype if it is on.

    Computed in float32, because a mean of squares is too inaccurate in bfloat16.
    """
    function = _RMSNorm.apply if torch.is_grad_enabled() else _normalise
    return to_compute_dtype(function(x.float(), weight.float(), eps).to(x.dtype))


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (x * _inverse_rms(x, eps)).mul_(weight)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return r = 1 / sqrt(mean(x²) + eps) of each row, (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_constant(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt_()


@functools.cache
def _constant(value: float, device: torch.device) -> Tensor:
    """Return a number as a tensor, made once: operations on small tensors take much longer with a Python number."""
    return torch.tensor(value, device=device)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient in closed form.

    With r = 1 / rms(x), n = x r and g = dy · weight: dweight = sum of dy · n, and dx = r (g - n mean(g · n)). The
    second term is there because r depends on x, too.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _inverse_rms(x, eps)
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


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return -log softmax(logits)[target] of each row, (N,), in float32 nats."""
    return _CrossEntropy.apply(logits_NV, targets_N)


_NO_TARGET = -(2**62)  # torch's default, -100, would silently ignore such targets


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy in blocks of rows. Its gradient is softmax(logits), minus 1 at the target.

    The logits are the largest tensor of a training step. In blocks, their float32 copy never exists as a whole and
    stays in the processor's cache, and the gradient is rounded to the logits' dtype only once, at the end.
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
