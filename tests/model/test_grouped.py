"""One linear layer per group, forward and both gradients, against a loop over rows."""

from types import SimpleNamespace

import pytest
import torch
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from minids.model import grouped
from minids.model.grouped import grouped_linear, input_grad, weight_grad

groups = st.lists(st.integers(0, 5), min_size=1, max_size=5)
seeds = st.integers(0, 1000)


def group_of_row(counts: list[int]) -> list[int]:
    return [group for group, count in enumerate(counts) for _ in range(count)]


def by_hand(x, weight, counts):
    rows = [weight[group] @ row for row, group in zip(x, group_of_row(counts), strict=True)]
    return torch.stack(rows) if rows else x.new_zeros(0, weight.shape[1])


def inputs(counts: list[int], width: int, out_width: int, seed: int, dtype=torch.float64):
    torch.manual_seed(seed)
    x = torch.randn(sum(counts), width, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(counts), out_width, width, dtype=dtype, requires_grad=True)
    return x, weight, torch.randn(sum(counts), out_width, dtype=dtype)


@examples(60)
@given(groups, st.integers(1, 5), st.integers(1, 5), seeds)
def test_every_row_meets_the_matrix_of_its_group_forward_and_backward(counts, width, out_width, seed):
    x, weight, dy = inputs(counts, width, out_width, seed)
    out, expected = grouped_linear(x, weight, counts), by_hand(x, weight, counts)
    assert_close(out, expected)
    if len(x):
        theirs = torch.autograd.grad(expected, (x, weight), dy, retain_graph=True)
        assert_close(torch.autograd.grad(out, (x, weight), dy), theirs)
        assert_close((input_grad(dy, weight, counts), weight_grad(dy, x, counts)), theirs)


def test_a_group_without_rows_has_no_gradient():
    x, _, dy = inputs([3, 0, 2], 4, 6, seed=0)
    for _ in range(3):  # memory that was used before is not zero by itself
        torch.full((3, 6, 4), torch.nan, dtype=torch.float64)
        assert not weight_grad(dy, x, [3, 0, 2])[1].any()


@pytest.mark.parametrize("frozen", [0, 1])
def test_no_gradient_is_computed_for_what_is_frozen(frozen, monkeypatch):
    called = []
    for name in ("input_grad", "weight_grad"):
        original = getattr(grouped, name)
        monkeypatch.setattr(grouped, name, lambda *a, n=name, f=original: called.append(n) or f(*a))
    x, weight, dy = inputs([3, 2], 4, 6, seed=0)
    (x, weight)[frozen].requires_grad_(False)
    grouped_linear(x, weight, [3, 2]).backward(dy)
    assert called == [["weight_grad"], ["input_grad"]][frozen]


@examples(30)
@given(groups.filter(any), st.sampled_from([8, 16]), st.sampled_from([8, 24]), seeds)
def test_the_one_kernel_of_a_gpu_computes_the_same(counts, width, out_width, seed):
    """torch's grouped matmul has a CPU version too, and there the two ways can be compared."""
    x, weight, dy = inputs(counts, width, out_width, seed, dtype=torch.float32)

    def results():
        out = grouped_linear(x, weight, counts)
        return out, *torch.autograd.grad(out, (x, weight), dy)

    expected = results()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "_in_one_kernel", lambda *_: True)
        assert_close(results(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cuda", "dtype", "widths", "taken"),
    [
        (True, torch.bfloat16, (64, 8), True),
        (True, torch.bfloat16, (64, 12), False),
        (True, torch.float32, (64, 8), False),
        (True, torch.float64, (64, 8), False),
        (False, torch.bfloat16, (64, 8), False),
    ],
)
def test_the_one_kernel_gets_only_what_it_takes(cuda, dtype, widths, taken):
    assert grouped._in_one_kernel(SimpleNamespace(is_cuda=cuda, dtype=dtype), *widths) == taken


def test_a_second_derivative_is_refused_instead_of_wrong():
    x, weight, dy = inputs([3, 2], 4, 6, seed=0)
    (gradient,) = torch.autograd.grad(grouped_linear(x, weight, [3, 2]), x, dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
