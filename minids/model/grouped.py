"""Grouped matrix products: one linear layer per group of rows, as the experts of a mixture compute it.

The rows are sorted by expert, and each is multiplied by the matrix of its expert:

    y = x W_e^T        for the rows x of expert e

The backward pass needs two products of the same kind. They are separate functions, because they can run at different
times:

    dx = dy W_e        `input_grad`:  the backward pass of the layers below needs it
    dW_e = dy^T x      `weight_grad`: only the optimizer step needs it

Pipeline schedules that split the backward pass (zero bubble, DualPipe) fill bubbles with the second.

On a CPU, each expert's product is written directly into its part of the result. On a GPU, in bfloat16, torch's grouped
matmul computes all groups in one call.

Shape letters: see minids/model/__init__.py; X is the width of the input, Y that of the output.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minids.model.kernels import to_compute_dtype


def grouped_linear(x_RX: Tensor, weight_EYX: Tensor, counts: list[int]) -> Tensor:
    """Return each row times its expert's matrix, (R, Y); the first `counts[0]` rows are expert 0's, and so on."""
    x_RX, weight_EYX = to_compute_dtype(x_RX), to_compute_dtype(weight_EYX)
    if not torch.is_grad_enabled():  # avoids autograd's overhead, which is noticeable in decoding steps
        return rows_times_matrices(x_RX, weight_EYX.mT, counts)
    return _GroupedLinear.apply(x_RX, weight_EYX, counts)


@torch.no_grad()
def input_grad(dy_RY: Tensor, weight_EYX: Tensor, counts: list[int]) -> Tensor:
    """Return the gradient with respect to the rows, (R, X)."""
    return rows_times_matrices(dy_RY, weight_EYX, counts)


@torch.no_grad()
def weight_grad(dy_RY: Tensor, x_RX: Tensor, counts: list[int]) -> Tensor:
    """Return the gradient with respect to the matrices, (E, Y, X): zero for an expert without rows."""
    if _in_one_kernel(x_RX, dy_RY.shape[1], x_RX.shape[1]):
        return F.grouped_mm(dy_RY.contiguous().mT, x_RX.contiguous(), offs=_ends(counts, x_RX.device))
    grad_EYX = x_RX.new_zeros(len(counts), dy_RY.shape[1], x_RX.shape[1])
    for expert, dy, x in nonempty(counts, dy_RY, x_RX):
        torch.mm(dy.mT, x, out=grad_EYX[expert])
    return grad_EYX


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RX: Tensor, weight_EYX: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_RX, weight_EYX)
        ctx.counts = counts
        return rows_times_matrices(x_RX, weight_EYX.mT, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_RY: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_RX, weight_EYX = ctx.saved_tensors
        dx = input_grad(dy_RY, weight_EYX, ctx.counts) if ctx.needs_input_grad[0] else None
        dw = weight_grad(dy_RY, x_RX, ctx.counts) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def rows_times_matrices(rows_RX: Tensor, matrices_EXY: Tensor, counts: list[int]) -> Tensor:
    """Return each row times the matrix of its group, (R, Y)."""
    if _in_one_kernel(rows_RX, *matrices_EXY.shape[1:]):
        return F.grouped_mm(rows_RX.contiguous(), matrices_EXY, offs=_ends(counts, rows_RX.device))
    out_RY = rows_RX.new_empty(len(rows_RX), matrices_EXY.shape[2])
    for group, rows, out in nonempty(counts, rows_RX, out_RY):
        torch.mm(rows, matrices_EXY[group], out=out)
    return out_RY


def nonempty(counts: list[int], a_RX: Tensor, b_RY: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each group that has rows, and its rows of both tensors."""
    groups = [group for group, count in enumerate(counts) if count]
    sizes = [counts[group] for group in groups]
    return zip(groups, a_RX.split_with_sizes(sizes), b_RY.split_with_sizes(sizes), strict=True)


def _in_one_kernel(rows: Tensor, *widths: int) -> bool:
    """Whether torch's grouped matmul supports these: on a GPU, in bfloat16, with widths in multiples of 16 bytes."""
    return rows.is_cuda and rows.dtype == torch.bfloat16 and all(width % 8 == 0 for width in widths)


def _ends(counts: list[int], device: torch.device) -> Tensor:
    return torch.tensor(counts, device=device).cumsum(0).int()
