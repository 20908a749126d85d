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


def by_hand(x, weight, counts):
    group_of_row = [group for group, count in enumerate(counts) for _ in range(count)]
    rows = [weight[group] @ row for row, group in zip(x, group_of_row, strict=True)]
    return torch.stack(rows) if rows else x @ weight[0].T


def inputs(counts: list[int], width: int, out_width: int, seed: int, dtype=torch.float64):
    torch.manual_seed(seed)
    x = torch.randn(sum(counts), width, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(counts), out_width, width, dtype=dtype, requires_grad=True)
    return x, weight, torch.randn(sum(counts), out_width, dtype=dtype)


@examples(60)
@given(groups, st.integers(1, 5), st.integers(1, 5), seeds)
def test_every_row_is_multiplied_by_the_matrix_of_its_group_forward_and_backward(counts, width, out_width, seed):
    x, weight, dy = inputs(counts, width, out_width, seed)
    out, expected = grouped_linear(x, weight, counts), by_hand(x, weight, counts)
    assert_close(out, expected)
    with torch.no_grad():
        assert_close(grouped_linear(x, weight, counts), expected)
    theirs = torch.autograd.grad(expected, (x, weight), dy, retain_graph=True)
    assert_close(torch.autograd.grad(out, (x, weight), dy), theirs)
    torch.full((len(counts), out_width, width), torch.nan, dtype=torch.float64)  # memory is not zero by itself
    assert_close((input_grad(dy, weight, counts), weight_grad(dy, x, counts)), theirs)


@pytest.mark.parametrize(("frozen", "computed"), [(0, "weight_grad"), (1, "input_grad")])
def test_no_gradient_is_computed_for_what_is_frozen(frozen, computed, monkeypatch):
    called = []
    for name in ("input_grad", "weight_grad"):
        original = getattr(grouped, name)
        monkeypatch.setattr(grouped, name, lambda *a, n=name, f=original: called.append(n) or f(*a))
    x, weight, dy = inputs([3, 2], 4, 6, seed=0)
    (x, weight)[frozen].requires_grad_(False)
    grouped_linear(x, weight, [3, 2]).backward(dy)
    assert called == [computed]


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


def test_the_one_kernel_gets_only_what_it_takes():
    bfloat16, float32 = torch.bfloat16, torch.float32
    cases = [(True, bfloat16, 8), (True, bfloat16, 12), (True, float32, 8), (False, bfloat16, 8)]
    taken = [grouped._in_one_kernel(SimpleNamespace(is_cuda=cuda, dtype=d), 64, width) for cuda, d, width in cases]
    assert taken == [True, False, False, False]
