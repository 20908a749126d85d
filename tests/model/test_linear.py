"""The seam of all matrix products: whatever computes them is replaced in one place, and nothing goes past it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from configurations import Float64, configurations, examples, mixtures, random_model, random_tokens
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from minids import DeepSeek, ModelConfig
from minids.device import autocast
from minids.model.grouped import grouped_linear, input_grad, weight_grad
from minids.model.linear import Linear
from minids.model.moe import Experts

MATRIX_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "_grouped_mm", "_scaled_mm"}


class MultipliedMatrices(TorchDispatchMode):
    """While it lasts, the names of the parameters that take part in a matrix product are collected in `names`."""

    def __init__(self, model: DeepSeek):
        super().__init__()
        self.name_of = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in MATRIX_PRODUCTS:
            storages = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
            self.names |= {self.name_of[storage] for storage in storages & self.name_of.keys()}
        return func(*args, **(kwargs or {}))


def without_matrix_products(x: Tensor, weight_YX: Tensor) -> Tensor:
    return (x[..., None, :] * weight_YX).sum(dim=-1)


def rows_without_matrix_products(x_RX: Tensor, weight_EYX: Tensor, counts: list[int]) -> Tensor:
    rows = x_RX.split(counts)
    return torch.cat([without_matrix_products(x, w) for x, w in zip(rows, weight_EYX, strict=True)])


@torch.no_grad()
@examples(15)
@given(configurations(mixture=mixtures()))
def test_every_matrix_is_multiplied_by_product_but_the_gates_and_the_absorbed_ones(config):
    model, tokens = random_model(config).double(), random_tokens(config, 2, 6)

    def outputs() -> list[Tensor]:
        cache = model.new_cache(2, 6)
        return [*model.token_losses(tokens).nats, model(tokens[:, :4], cache), model(tokens[:, 4:], cache)]

    with pytest.MonkeyPatch.context() as patch, Float64():
        expected = outputs()
        patch.setattr(Linear, "product", staticmethod(without_matrix_products))
        patch.setattr(Experts, "product", staticmethod(rows_without_matrix_products))
        with MultipliedMatrices(model) as multiplied:
            ours = outputs()
    assert_close(ours, expected)
    gates = {name for name, _ in model.named_parameters() if name.endswith(".gate.weight")}
    absorbed = {f"layers.{i}.self_attn.kv_b_proj.weight" for i in range(config.num_hidden_layers) if config.uses_mla}
    assert multiplied.names == gates | absorbed


LATER: list[tuple[Tensor, Callable[[], Tensor]]] = []  # a weight, and what computes its gradient


class Deferred(torch.autograd.Function):
    """The default products of `Linear` and `Experts`, with a backward pass that leaves the gradient of the weight."""

    @staticmethod
    def forward(ctx, x, weight, counts=None):
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        return F.linear(x, weight) if counts is None else grouped_linear(x, weight, counts)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        assert weight.is_leaf  # the parameter itself, whatever autocast multiplies
        x, w = x.to(dy.dtype), weight.to(dy.dtype)
        if ctx.counts is None:
            LATER.append((weight, lambda: dy.flatten(0, -2).mT @ x.flatten(0, -2)))
            return dy @ w, None
        LATER.append((weight, lambda: weight_grad(dy, x, ctx.counts)))
        return input_grad(dy, w, ctx.counts), None, None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_may_leave_the_gradient_of_every_weight_for_later(monkeypatch, dtype):
    config = ModelConfig.preset("tiny")
    plain, deferred = (random_model(config).train() for _ in range(2))
    tokens = random_tokens(config, 2, 12)
    with autocast(torch.device("cpu"), dtype):
        total = plain.loss(tokens).total
    total.backward()
    monkeypatch.setattr(Linear, "product", staticmethod(Deferred.apply))
    monkeypatch.setattr(Experts, "product", staticmethod(Deferred.apply))
    with autocast(torch.device("cpu"), dtype):
        total = deferred.loss(tokens).total
    total.backward()
    at_once = {name for name, parameter in deferred.named_parameters() if parameter.grad is not None}
    assert at_once == {n for n, p in plain.named_parameters() if p.ndim == 1 or "gate.weight" in n or "embed" in n}
    while LATER:
        weight, gradient = LATER.pop()
        weight.grad = gradient().float() + (0 if weight.grad is None else weight.grad)
    for late, at_once in zip(deferred.parameters(), plain.parameters(), strict=True):
        error = (late.grad - at_once.grad).norm()
        assert error <= (1e-4 if dtype == "float32" else 0.05) * at_once.grad.norm() + 1e-6
