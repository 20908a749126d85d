"""The weight gradient comes when its work is done, and once."""

import gc
import weakref

import pytest
import torch

from minids.model.linear import Linear
from minids.parallel.deferred import Store, defer


def test_each_backward_leaves_its_own_weight_gradient_for_later():
    layer, store = Linear(4, 3), Store()
    defer(layer, store)
    xs, dys = torch.randn(2, 5, 4).requires_grad_(), torch.randn(2, 5, 3)
    works = []
    for x, dy in zip(xs, dys, strict=True):
        layer(x).backward(dy)
        works.append(store.take())
    assert torch.allclose(xs.grad, dys @ layer.weight)
    assert layer.weight.grad is None
    works[1]()
    assert torch.allclose(layer.weight.grad, dys[1].T @ xs[1])
    works[0]()
    assert torch.allclose(layer.weight.grad, (dys.mT @ xs).sum(dim=0))


def test_what_the_work_needed_is_freed_and_a_frozen_weight_leaves_no_work():
    layer, store = Linear(4, 3), Store()
    defer(layer, store)
    x = torch.randn(5, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    work, kept = store.take(), weakref.ref(x)
    del x
    assert kept() is not None
    assert not [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (1, 3, 4)]  # the copy of W
    work()
    assert kept() is None
    layer.weight.requires_grad_(False)
    layer(torch.randn(5, 4).requires_grad_()).sum().backward()
    assert store.waiting == []


def test_a_product_without_two_halves_is_refused():
    layer = Linear(4, 3)
    layer.product = torch.nn.functional.linear
    with pytest.raises(ValueError, match="use the plain one or FP8"):
        defer(layer, Store())
