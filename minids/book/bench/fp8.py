"""One linear layer in simulated FP8 beside the same layer in float32, and its sums in a register of 14 bits.

Forward pass and both gradients, for 4,096 tokens and three shapes:

    plain                F.linear in float32
    without re-tiling    V3's recipe, but the weight gradient reads x and dy as they were rounded for the other two
                         products, in tiles of 1 x 128. Both are rounded once
    full recipe          x and dy are rounded again for the weight gradient, in tiles of 128 x 1

On tensor cores FP8 is faster than BF16. Here it is simulated: each number is rounded and multiplied by its scale, and
then multiplied in float32, so the ratios say what the simulation costs. Rounding costs the same for each number, and
the product for each pair of them, so the narrowest layer has the highest ratio.

The register is timed on the forward product alone: the product of float32 numbers, against the same product with the
sum cut to 14 bits after every 32 products.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minids.book.bench.measure import alternate, ratio, summary
from minids.quantization.accumulate import Register, accumulate
from minids.quantization.fp8 import dequantize, quantize
from minids.quantization.products import Recipe, forward, linear

TOKENS = 4096
SHAPES = [(256, 1024), (256, 256), (1024, 256)]  # width of the input, of the output
PLAIN, ONCE, FULL = "plain", "without re-tiling", "full recipe"
PRODUCT, PROMOTED, NEVER = "forward product", "14 bits, promoted", "14 bits, never promoted"

Products = tuple[Tensor, Tensor, Tensor]  # output, gradient of the input, gradient of the weight


def measure(rounds: int) -> list[dict]:
    """Return a row for each shape, measured with one thread."""
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        layer = Layer(*shape)
        sides = {PLAIN: layer.plain, ONCE: layer.without_retiling, FULL: layer.full_recipe}
        short = {PROMOTED: partial(layer.short_sums, 128), NEVER: partial(layer.short_sums, None)}
        samples = alternate(sides, rounds) | alternate({PRODUCT: layer.product, **short}, rounds)
        costs = {name: ratio(samples[name], samples[PLAIN]) for name in (ONCE, FULL)}
        costs |= {name: ratio(samples[name], samples[PRODUCT]) for name in short}
        taken = {name: summary(times) for name, times in samples.items()}
        rows.append({"shape": list(shape), "tokens": TOKENS, "threads": 1, "sides": taken, "cost": costs})
    return rows


class Layer:
    """A linear layer, its input and the gradient of its output, and the ways to compute its three products."""

    def __init__(self, inputs: int, outputs: int):
        torch.manual_seed(0)
        self.x, self.dy = torch.randn(TOKENS, inputs, requires_grad=True), torch.randn(TOKENS, outputs)
        self.weight = (torch.randn(outputs, inputs) * inputs**-0.5).requires_grad_()

    def plain(self) -> Products:
        return self._backward(F.linear(self.x, self.weight))

    def full_recipe(self) -> Products:
        return self._backward(linear(self.x, self.weight, Recipe()))

    @torch.no_grad()
    def without_retiling(self) -> Products:
        y, saved = forward(self.x, self.weight[None], [len(self.x)], Recipe())
        dy = dequantize(quantize(self.dy, Recipe().gradients))
        return y, dy @ dequantize(saved.weight)[0], dy.mT @ dequantize(saved.x)

    @torch.no_grad()
    def product(self) -> Tensor:
        return F.linear(self.x, self.weight)

    @torch.no_grad()
    def short_sums(self, promote: int | None) -> Tensor:
        return accumulate(self.x, self.weight.mT, Register(14, promote))

    def _backward(self, y: Tensor) -> Products:
        y.backward(self.dy)
        dx, dw, self.x.grad, self.weight.grad = self.x.grad, self.weight.grad, None, None
        return y.detach(), dx, dw
