"""One linear layer per group of rows: the matrix products of the experts of a mixture.

Rows that are sorted by expert each go through the matrix of their own expert:

    y = x W_e^T        for the rows x of expert e

and the backward pass takes two products of the same kind, kept apart because they need not run together:

    dx = dy W_e        `input_grad`:  the layers below wait for it
    dW_e = dy^T x      `weight_grad`: nothing waits for it before the optimizer's step

A pipeline schedule that splits its backward (zero bubble, DualPipe) fills its gaps with the second.

On a CPU, one product per expert writes straight into its part of the result. On a GPU, in
bfloat16, all groups go to torch's grouped matmul at once.

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
    if not torch.is_grad_enabled():  # in a short decoding step autograd's overhead would count
        return _rows_times_matrices(x_RX, weight_EYX.mT, counts)
    return _GroupedLinear.apply(x_RX, weight_EYX, counts)


@torch.no_grad()
def input_grad(dy_RY: Tensor, weight_EYX: Tensor, counts: list[int]) -> Tensor:
    """Return the gradient of the rows, (R, X)."""
    return _rows_times_matrices(dy_RY, weight_EYX, counts)


@torch.no_grad()
def weight_grad(dy_RY: Tensor, x_RX: Tensor, counts: list[int]) -> Tensor:
    """Return the gradient of the matrices, (E, Y, X): zero where an expert has no rows."""
    if _in_one_kernel(x_RX, dy_RY.shape[1], x_RX.shape[1]):
        return F.grouped_mm(dy_RY.contiguous().mT, x_RX.contiguous(), offs=_ends(counts, x_RX.device))
    grad_EYX = x_RX.new_zeros(len(counts), dy_RY.shape[1], x_RX.shape[1])
    for expert, dy, x in _nonempty(counts, dy_RY, x_RX):
        torch.mm(dy.mT, x, out=grad_EYX[expert])
    return grad_EYX


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RX: Tensor, weight_EYX: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_RX, weight_EYX)
        ctx.counts = counts
        return _rows_times_matrices(x_RX, weight_EYX.mT, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_RY: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_RX, weight_EYX = ctx.saved_tensors
        dx = input_grad(dy_RY, weight_EYX, ctx.counts) if ctx.needs_input_grad[0] else None
        dw = weight_grad(dy_RY, x_RX, ctx.counts) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def _rows_times_matrices(rows_RX: Tensor, matrices_EXY: Tensor, counts: list[int]) -> Tensor:
    """Return each row times the matrix of its group, (R, Y)."""
    if _in_one_kernel(rows_RX, *matrices_EXY.shape[1:]):
        return F.grouped_mm(rows_RX.contiguous(), matrices_EXY, offs=_ends(counts, rows_RX.device))
    out_RY = rows_RX.new_empty(len(rows_RX), matrices_EXY.shape[2])
    for group, rows, out in _nonempty(counts, rows_RX, out_RY):
        torch.mm(rows, matrices_EXY[group], out=out)
    return out_RY


def _nonempty(counts: list[int], a_RX: Tensor, b_RY: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each group that has rows, with its rows of both tensors."""
    groups = [group for group, count in enumerate(counts) if count]
    sizes = [counts[group] for group in groups]
    return zip(groups, a_RX.split_with_sizes(sizes), b_RY.split_with_sizes(sizes), strict=True)


def _in_one_kernel(rows: Tensor, *widths: int) -> bool:
    """Whether torch's grouped matmul takes these: on a GPU, in bfloat16, widths in whole multiples of 16 bytes."""
    return rows.is_cuda and rows.dtype == torch.bfloat16 and all(width % 8 == 0 for width in widths)


def _ends(counts: list[int], device: torch.device) -> Tensor:
    return torch.tensor(counts, device=device).cumsum(0).int()
