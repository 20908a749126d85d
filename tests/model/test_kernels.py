"""The hand-written forward and backward computations against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from minids.model.grouped import grouped_linear
from minids.model.kernels import cross_entropy, rms_norm


@examples(40)
@given(
    st.lists(st.integers(1, 4), max_size=3), st.integers(1, 9), st.floats(1e-8, 1), st.sampled_from([0.0, 1e-3, 1e3])
)
def test_the_norm_and_its_gradients_equal_torch_for_any_shape(shape, width, eps, size):
    torch.manual_seed(0)
    weight = torch.randn(width, requires_grad=True)
    x = (size * torch.randn(*shape, width)).requires_grad_()
    ours, expected = rms_norm(x, weight, eps), F.rms_norm(x, (width,), weight, eps)
    assert_close(ours, expected)
    direction = torch.randn_like(ours)
    gradients = (torch.autograd.grad((y * direction).sum(), (x, weight)) for y in (ours, expected))
    assert_close(*gradients, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert_close(rms_norm(x, weight, eps), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_the_norm_of_bfloat16_is_the_exact_one_rounded_once(grad):
    x, weight = torch.randn(7, 4096).to(torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    with torch.set_grad_enabled(grad):
        out = rms_norm(x, weight, 1e-6)
    exact = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(out, exact.float().to(torch.bfloat16))


def test_the_norm_comes_out_in_the_dtype_of_the_product_that_follows():
    with torch.autocast("cpu", torch.bfloat16):
        assert rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6).dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_cross_entropy_and_its_gradient_equal_torch(scale):
    """On more rows than are taken at a time, and a rest."""
    logits, targets = (scale * torch.randn(600, 11)).requires_grad_(), torch.randint(11, (600,))
    ours, expected = cross_entropy(logits, targets), F.cross_entropy(logits, targets, reduction="none")
    assert_close(ours, expected)
    direction = torch.randn(600)
    assert_close(*(torch.autograd.grad((loss * direction).sum(), logits)[0] for loss in (ours, expected)))


def test_cross_entropy_of_bfloat16_logits_is_taken_in_float32():
    logits, targets = torch.randn(30, 2000).to(torch.bfloat16), torch.randint(2000, (30,))
    assert_close(cross_entropy(logits, targets), F.cross_entropy(logits.float(), targets, reduction="none"))


def test_cross_entropy_in_bfloat16_keeps_the_gradient_of_a_confident_target():
    logits = torch.tensor([[9.0, 2.0, 1.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    cross_entropy(logits, torch.tensor([0])).sum().backward()
    exact = logits.detach().double().softmax(dim=-1)
    exact[0, 0] -= 1
    assert_close(logits.grad.double(), exact, rtol=1e-2, atol=0)


def test_a_target_that_is_no_token_is_refused():
    """torch's own would pass over -100."""
    with pytest.raises(IndexError):
        cross_entropy(torch.randn(2, 8), torch.tensor([3, -100]))


@pytest.mark.parametrize(
    "kernel",
    [
        lambda x: rms_norm(x, torch.ones(4), 1e-6).square(),
        lambda x: cross_entropy(x, torch.arange(3)).square(),
        lambda x: grouped_linear(x, torch.randn(2, 4, 4), [2, 1]).square(),
    ],
    ids=["rms_norm", "cross_entropy", "grouped_linear"],
)
def test_a_second_derivative_is_refused_instead_of_wrong(kernel):
    x = torch.randn(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(kernel(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
