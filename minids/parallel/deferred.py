"""The weight gradient, later: the backward pass of a matrix product in two halves.

The backward pass of y = x W^T computes two products. The stage before waits for dx = dy W, and only the optimizer
waits for dW. `defer` sets the `product` of all linear layers and experts of a module so that the backward pass computes
dx alone and puts the other half into a `Store`. The schedule decides when it runs: at once (B) or later (I, then W).
Until then the store keeps x and dy, so a schedule that saves time in this way needs more memory.

The halves are `input_grad` and `weight_grad` of the product that the layer had before: the plain one (model/grouped.py)
or FP8's (quantization/products.py). The gradients of gates, norms and embeddings are cheap, and computed in
the first half.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minids.model import grouped
from minids.model.kernels import to_compute_dtype
from minids.model.linear import Linear
from minids.model.moe import Experts
from minids.quantization import products

Work = Callable[[], None]


class Store:
    """The weight gradients that the last backward passes left for later."""

    def __init__(self):
        self.waiting: list[Work] = []

    def take(self) -> Work:
        """Return a function that computes what has been left since the last call, and adds it to the gradients."""
        waiting, self.waiting = self.waiting, []

        def work() -> None:
            for compute in waiting:
                compute()
            waiting.clear()  # frees x and dy

        return work


class Product(Protocol):
    """A product of rows and matrices in three functions. `saved` is a dataclass of what its backward pass needs; the
    weight gradient does not need its `weight`."""

    def forward(self, x_RX: Tensor, weight_EYX: Tensor, counts: list[int]) -> tuple[Tensor, Any]: ...

    def input_grad(self, dy_RY: Tensor, saved: Any) -> Tensor: ...

    def weight_grad(self, dy_RY: Tensor, saved: Any) -> Tensor: ...


@dataclass(frozen=True)
class Saved:
    """What the backward pass of the plain product needs. Under autocast, `weight` is a copy in another dtype."""

    x: Tensor
    weight: Tensor | None
    counts: list[int]


class Plain:
    """The default product, in float32 or autocast's dtype."""

    def forward(self, x_RX, weight_EYX, counts):
        weight_EYX = to_compute_dtype(weight_EYX)
        return grouped.rows_times_matrices(x_RX, weight_EYX.mT, counts), Saved(x_RX, weight_EYX, counts)

    def input_grad(self, dy_RY, saved):
        return grouped.input_grad(dy_RY, saved.weight, saved.counts)

    def weight_grad(self, dy_RY, saved):
        return grouped.weight_grad(dy_RY, saved.x, saved.counts)


class FP8:
    """V3's products, with the arguments that `use_fp8` gave the layer."""

    input_grad, weight_grad = staticmethod(products.input_grad), staticmethod(products.weight_grad)

    def __init__(self, **settings):
        self.forward = partial(products.forward, **settings)


def defer(module: nn.Module, store: Store) -> None:
    """Let the weight gradients of all linear layers and experts of the module wait in the store.

    Raises ValueError for a layer with another product than the plain one or FP8's.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, (Linear, Experts)):
            own = vars(layer).get("product")
            if own is None:
                product = Plain()
            elif getattr(own, "func", None) in (products.linear, products.grouped_linear):
                product = FP8(**own.keywords)
            else:
                raise ValueError(f"{name} has the product {own}, which has no two halves: use the plain one or FP8.")
            layer.product = partial(grouped_linear if isinstance(layer, Experts) else linear, product, store)


def linear(product: Product, store: Store, x: Tensor, weight_YX: Tensor) -> Tensor:
    """Return x W^T for x (..., X)."""
    rows = x.shape[:-1].numel()
    out = grouped_linear(product, store, x.reshape(rows, x.shape[-1]), weight_YX, [rows])
    return out.view(*x.shape[:-1], len(weight_YX))


def grouped_linear(product: Product, store: Store, x_RX: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    """Return each row times its expert's matrix, (R, Y). `weight` is (E, Y, X), or (Y, X) for a single one."""
    return _Product.apply(product, store, to_compute_dtype(x_RX), weight, counts)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, product, store, x_RX, weight, counts):
        y_RY, ctx.saved = product.forward(x_RX, weight if weight.ndim == 3 else weight[None], counts)
        ctx.rest = product, store, weight, x_RX.dtype
        return y_RY.to(x_RX.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_RY):
        (product, store, weight, x_dtype), saved = ctx.rest, ctx.saved
        if ctx.needs_input_grad[3]:
            kept = replace(saved, weight=None)

            @torch.no_grad()
            def add_weight_grad() -> None:
                grad = product.weight_grad(dy_RY, kept).to(weight.dtype).view_as(weight)
                if weight.is_leaf:
                    weight.grad = grad if weight.grad is None else weight.grad.add_(grad)
                else:  # this rank's part of a sharded parameter
                    torch.autograd.backward(weight, grad)

            store.waiting.append(add_weight_grad)
        dx = product.input_grad(dy_RY, saved).to(x_dtype) if ctx.needs_input_grad[2] else None
        return None, None, dx, None, None
