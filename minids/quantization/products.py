"""The three matrix products of a linear layer in FP8, as DeepSeek-V3 trained (report §3.3).

    y  = x W^T          Fprop    sum over the input's channels        x in tiles of 1 x 128, W in blocks of 128 x 128
    dx = dy W           Dgrad    sum over the output's channels       dy in tiles of 1 x 128, the same blocks of W
    dW = dy^T x         Wgrad    sum over the tokens                  both in tiles of 128 x 1

A tile must lie along the sum: within it the scale is a common factor, so that the tensor core adds plain FP8 products,
and the scale is applied once, when the partial sum is promoted to FP32. That is why the tiles of the weight gradient
stand upright, why x is re-tiled for it, and why both sides need fine tiles there: neither x nor dy is a weight.

What stays in higher precision: the stored weights (*master weights*), from which the FP8 weights are made in each
step, and their gradients, in float32; the embedding, the head, the gates, the norms and the attention operator; the
projection of the MTP modules, as in the released files. The input of the linear layer after attention is kept for
Wgrad in E5M6 with powers of two as scales (§3.3.3), the inputs of all others in E4M3.

**What is simulated.** On a CPU there are no FP8 products. Each number is rounded to FP8, bit for bit as on hardware,
and multiplied by its scale in float32. Then the sums are in float32, too: the tensor core's register of 14 bits is
simulated only with `register` (accumulate.py). It then cuts numbers that include their scales, so it loses the bits
that the hardware loses only if the scales are powers of two. On a GPU with FP8 tensor cores those compute the products
(`on_tensor_cores`). To round and multiply back, and to compute in float32, is called *fake quantisation*.

What is left out of the recipe: SwiGLU's inputs are not cached in FP8, and no communication is in FP8. What is not in
FP8 runs in float32, not in BF16. Decoding with MLA's absorbed form reads the master weights of `kv_b_proj`. The
experts' gate and up matrices are one stack, so they share blocks if the width of an expert is no multiple of the block.

The backward pass has two plain functions, `input_grad` and `weight_grad`, as the grouped products have: a pipeline
schedule can leave the second for later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minids.model import grouped
from minids.model.linear import Linear
from minids.model.moe import Experts
from minids.quantization.accumulate import Register, accumulate
from minids.quantization.formats import E4M3, E5M6, Format
from minids.quantization.fp8 import Quantized, Tile, dequantize, quantize, require_tile


@dataclass(frozen=True)
class Recipe:
    """How the operands of the three products are rounded. The default is V3's; chapter 7 changes one field at a
    time."""

    inputs: Tile | None = (1, 128)  # of x in Fprop
    weights: Tile | None = (128, 128)
    gradients: Tile | None = (1, 128)  # of dy in Dgrad
    over_tokens: Tile | None = (128, 1)  # of x and dy in Wgrad
    format: Format = E4M3  # of x and W in Fprop, and so in Wgrad and Dgrad
    gradient_format: Format = E4M3  # of dy
    gradient_floor: float = 1e-30  # least amax of a tile of dy: in effect none (see fp8.py)
    after_attention: Format | None = E5M6  # in which the input of o_proj is kept for Wgrad; None: as in Fprop
    power_of_two_scales: bool = False
    register: Register | None = None  # that sums the products; None is float32

    def __post_init__(self):
        for name in ("inputs", "weights", "gradients", "over_tokens"):
            require_tile(name, getattr(self, name))

    @classmethod
    def of_block(cls, size: int, **changes) -> Recipe:
        """Return V3's recipe with tiles of 1 x size and blocks of size x size."""
        tiles = dict(inputs=(1, size), weights=(size, size), gradients=(1, size), over_tokens=(size, 1))
        return cls(**tiles | changes)

    def cast(self, x: Tensor, tile: Tile | None) -> Quantized:
        """Return an activation or a weight as an operand."""
        return quantize(x, tile, power_of_two_scales=self.power_of_two_scales, format=self.format)

    def cast_gradient(self, dy: Tensor, tile: Tile | None) -> Quantized:
        """Return a gradient as an operand."""
        powers, form = self.power_of_two_scales, self.gradient_format
        return quantize(dy, tile, power_of_two_scales=powers, format=form, floor=self.gradient_floor)


def fp8_layers(model: nn.Module) -> dict[str, Linear | Experts]:
    """Return by name the layers that V3 multiplies in FP8: not the output head and the projection of MTP modules."""
    kinds = {name: module for name, module in model.named_modules() if isinstance(module, (Linear, Experts))}
    return {name: layer for name, layer in kinds.items() if name.rpartition(".")[2] not in ("lm_head", "eh_proj")}


def use_fp8(model: nn.Module, recipe: Recipe | None = None) -> None:
    """Let the `fp8_layers` of a model compute their products by the recipe, by default V3's.

    Parameters stay as they are. A `Trainer` sets the products when it is made, by its dtype: set another recipe after
    that. Raises ValueError for a model without any such layer.
    """
    recipe, layers = recipe or Recipe(), fp8_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer or experts of minids that could multiply in FP8.")
    for name, layer in layers.items():
        if isinstance(layer, Experts):
            layer.product = partial(grouped_linear, recipe=recipe)
        else:
            kept = recipe.after_attention if name.rpartition(".")[2] == "o_proj" else None
            layer.product = partial(linear, recipe=recipe, kept=kept)


def leave_fp8(model: nn.Module) -> None:
    """Undo `use_fp8`: the products are the default ones again. Other products that someone has set stay."""
    for module in model.modules():
        if getattr(vars(module).get("product"), "func", None) in (linear, grouped_linear):
            del module.product


def linear(x: Tensor, weight_YX: Tensor, recipe: Recipe, kept: Format | None = None) -> Tensor:
    """Return x W^T for x (..., X), in x's dtype. `kept` is the format in which x is kept for Wgrad, if another."""
    rows = x.shape[:-1].numel()
    out = grouped_linear(x.reshape(rows, x.shape[-1]), weight_YX[None], [rows], recipe, kept)
    return out.view(*x.shape[:-1], len(weight_YX))


def grouped_linear(
    x_RX: Tensor, weight_EYX: Tensor, counts: list[int], recipe: Recipe, kept: Format | None = None
) -> Tensor:
    """Return each row times its expert's matrix, (R, Y), in x's dtype; the first `counts[0]` rows are expert 0's, etc.

    In Wgrad, tiles that span several rows end where an expert's rows end. Each expert's matrix has blocks of its own.
    """
    if not torch.is_grad_enabled():
        return forward(x_RX, weight_EYX, counts, recipe)[0].to(x_RX.dtype)
    return _Product.apply(x_RX, weight_EYX, counts, recipe, kept)


@dataclass(frozen=True)
class Saved:
    """What the backward pass needs: x and W in 8 bits (or x in E5M6, here in the 16 bits of float16), and the
    recipe."""

    x: Quantized
    weight: Quantized
    counts: list[int]
    recipe: Recipe


def forward(
    x_RX: Tensor, weight_EYX: Tensor, counts: list[int], recipe: Recipe, kept: Format | None = None
) -> tuple[Tensor, Saved]:
    """Return the product y (R, Y), in float32, and what its backward pass needs. What is `kept` in another format has
    powers of two as scales."""
    x, w = recipe.cast(x_RX, recipe.inputs), recipe.cast(weight_EYX, recipe.weights)
    saved_x = quantize(x_RX, recipe.inputs, power_of_two_scales=True, format=kept) if kept else x
    return _rows_times_matrices(x, w.mT, counts, recipe), Saved(saved_x, w, counts, recipe)


def input_grad(dy_RY: Tensor, saved: Saved) -> Tensor:
    """Return the gradient with respect to the rows, (R, X), in float32."""
    dy = saved.recipe.cast_gradient(dy_RY, saved.recipe.gradients)
    return _rows_times_matrices(dy, saved.weight, saved.counts, saved.recipe)


def weight_grad(dy_RY: Tensor, saved: Saved) -> Tensor:
    """Return the gradient with respect to the matrices, (E, Y, X), in float32. `saved` may be without its weight."""
    r = saved.recipe
    (dy_RY, x_RX), counts, tile = _in_whole_tiles((dy_RY, dequantize(saved.x)), saved.counts, r.over_tokens)
    dy, x = r.cast_gradient(dy_RY, tile), r.cast(x_RX, tile)
    if r.register is None and _for_tensor_cores(dy, x, counts, (dy.tile[0], x.tile[0])):
        return torch.stack(
            [on_tensor_cores(a.mT, b) for a, b in zip(_split(dy, counts), _split(x, counts), strict=True)]
        )
    dy_RY, x_RX = dequantize(dy), dequantize(x)
    if r.register is None:
        return grouped.weight_grad(dy_RY, x_RX, counts)
    grad_EYX = x_RX.new_zeros(len(counts), dy_RY.shape[1], x_RX.shape[1])
    for expert, part_dy, part_x in grouped.nonempty(counts, dy_RY, x_RX):
        grad_EYX[expert] = accumulate(part_dy.mT, part_x, r.register)
    return grad_EYX


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RX, weight_EYX, counts, recipe, kept):
        y_RY, saved = forward(x_RX, weight_EYX, counts, recipe, kept)
        ctx.save_for_backward(saved.x.values, saved.x.scales, saved.weight.values, saved.weight.scales)
        ctx.rest = (saved.x.tile, saved.weight.tile, counts, recipe, x_RX.dtype, weight_EYX.dtype)
        return y_RY.to(x_RX.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_RY):
        x_tile, w_tile, counts, recipe, x_dtype, w_dtype = ctx.rest
        x_values, x_scales, w_values, w_scales = ctx.saved_tensors
        saved = Saved(Quantized(x_values, x_scales, x_tile), Quantized(w_values, w_scales, w_tile), counts, recipe)
        dx = input_grad(dy_RY, saved).to(x_dtype) if ctx.needs_input_grad[0] else None
        dw = weight_grad(dy_RY, saved).to(w_dtype) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None, None


def _rows_times_matrices(rows: Quantized, matrices: Quantized, counts: list[int], recipe: Recipe) -> Tensor:
    """Return each row times the matrix of its group, (R, Y), in float32."""
    if recipe.register is None and _for_tensor_cores(rows, matrices, counts, (rows.tile[1], matrices.tile[0])):
        groups = (Quantized(v, s, matrices.tile) for v, s in zip(matrices.values, matrices.scales, strict=True))
        return torch.cat([on_tensor_cores(a, b) for a, b in zip(_split(rows, counts), groups, strict=True)])
    rows_RX, matrices_EXY = dequantize(rows), dequantize(matrices)
    if recipe.register is None:
        return grouped.rows_times_matrices(rows_RX, matrices_EXY, counts)
    out_RY = rows_RX.new_empty(len(rows_RX), matrices_EXY.shape[2])
    for group, part, out in grouped.nonempty(counts, rows_RX, out_RY):
        out.copy_(accumulate(part, matrices_EXY[group], recipe.register))
    return out_RY


def _in_whole_tiles(
    tensors: tuple[Tensor, ...], counts: list[int], tile: Tile | None
) -> tuple[list[Tensor], list[int], Tile | None]:
    """Return rows in which every expert begins with a new tile, their number for each expert, and the tile.

    An expert's rows are filled up with zeros, which add nothing to the sum over tokens.
    """
    if tile is None:
        return list(tensors), counts, tile
    height = min(tile[0], -(-max(counts) // 16) * 16 or 1)  # no more zeros than the largest expert needs
    filling = [-count % height for count in counts]
    if not any(filling):
        return list(tensors), counts, (height, tile[1])
    counts_E, filling_E = torch.tensor([counts, filling], device=tensors[0].device)
    shift_E = filling_E.cumsum(0) - filling_E
    place_R = torch.arange(sum(counts), device=tensors[0].device) + shift_E.repeat_interleave(counts_E)
    filled = [
        rows.new_zeros(sum(counts) + sum(filling), rows.shape[1]).index_copy_(0, place_R, rows) for rows in tensors
    ]
    return filled, [count + more for count, more in zip(counts, filling, strict=True)], (height, tile[1])


def _split(rows: Quantized, counts: list[int]) -> list[Quantized]:
    """Return the rows of each group."""
    height = rows.tile[0]
    values = rows.values.split(counts)
    scales = rows.scales.split([count // height for count in counts])
    return [Quantized(v, s, rows.tile) for v, s in zip(values, scales, strict=True)]


# ---------------------------------------------------------------------------------------------------
# On a GPU


def _for_tensor_cores(a: Quantized, b: Quantized, counts: list[int], depths: Tile) -> bool:
    """Whether the groups can be multiplied there: E4M3 on a GPU that has FP8, in multiples of 16, and whole tiles.

    `depths` is how many terms of the sum share a scale in a and in b, which must be the same terms.
    """
    sides = (*a.values.shape[1:], *b.values.shape[1:], *depths)
    fits = all(side % 16 == 0 for side in sides) and all(count % a.tile[0] == 0 for count in counts)
    is_e4m3 = a.values.dtype == b.values.dtype == E4M3.dtype
    return _has_fp8(a.values.device) and is_e4m3 and fits and depths[0] == depths[1]


def _has_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def on_tensor_cores(a: Quantized, b: Quantized) -> Tensor:
    """Return the product (M, N) of a (M, K) and b (K, N) in float32: torch's FP8 product for each tile of K.

    The scales multiply each partial sum of at most 128 products, which is then added in float32: the promotion. One
    call for each tile is no fast kernel; it shows what the hardware computes.
    """
    (M, K), N, step = a.values.shape, b.values.shape[1], min(a.tile[1], 128)
    out_MN = torch.zeros(M, N, device=a.values.device)
    one = torch.ones((), device=out_MN.device)
    rows = a.scales.repeat_interleave(min(a.tile[0], M), dim=0)[:M]  # a tile may be larger than the matrix
    columns = b.scales.repeat_interleave(min(b.tile[1], N), dim=1)[:, :N]
    for start in range(0, K if M else 0, step):  # an expert may have no rows
        tile = start // a.tile[1]
        left = a.values[:, start : start + step].contiguous()
        right = b.values[start : start + step].mT.contiguous().mT  # torch's product reads it column by column
        sums = torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True)
        out_MN.addcmul_(sums, rows[:, tile, None] * columns[tile])
    return out_MN
