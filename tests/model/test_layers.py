"""RMSNorm, SwiGLU and cross-entropy by hand, and against torch's and transformers' own."""

import math

import pytest
import torch
import torch.nn.functional as F
from configurations import examples
from hf_oracle import LlamaConfig
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from minids.model.layers import RMSNorm, SwiGLU, cross_entropy


def test_rms_norm_divides_by_the_root_mean_square_and_scales():
    norm = RMSNorm(2, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 10.0])
    root = math.sqrt((3**2 + 4**2) / 2 + 0.5)
    assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3 / root, 40 / root]))


def test_rms_norm_forgets_the_length_and_keeps_the_mean():
    x = torch.randn(5, 16) + 3
    norm = RMSNorm(16)
    assert_close(norm(1000 * x), norm(x))
    assert (norm(x).mean(dim=-1) > 0.5).all()


def test_rms_norm_of_zero_is_zero():
    assert torch.equal(RMSNorm(4)(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_rms_norm_equals_transformers():
    ours, theirs = RMSNorm(16, eps=1e-2), LlamaRMSNorm(16, eps=1e-2)
    ours.weight.data.uniform_(0.5, 1.5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 16)
    assert_close(ours(x), theirs(x))


def test_rms_norm_computes_in_float32_whatever_comes_in():
    x = torch.randn(7, 4096).to(torch.bfloat16)
    out = RMSNorm(4096)(x)
    exact = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.float().to(torch.bfloat16))


def test_swiglu_gates_one_projection_with_the_silu_of_another():
    layer = SwiGLU(1, 1)
    for parameter, value in zip((layer.gate_proj, layer.up_proj, layer.down_proj), (2.0, 3.0, 5.0), strict=True):
        parameter.weight.data.fill_(value)
    silu = 2 / (1 + math.exp(-2))
    assert_close(layer(torch.ones(1)), torch.tensor([5 * silu * 3]))


def test_swiglu_equals_transformers_with_the_same_weight_names():
    ours = SwiGLU(12, 20)
    theirs = LlamaMLP(LlamaConfig(hidden_size=12, intermediate_size=20, num_attention_heads=1))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, 5, 12)
    assert_close(ours(x), theirs(x))


@examples(40)
@given(
    st.lists(st.integers(1, 4), max_size=3), st.integers(1, 9), st.floats(1e-8, 1), st.sampled_from([0.0, 1e-3, 1e3])
)
def test_the_norm_and_its_gradients_equal_torch_for_any_shape(shape, width, eps, size):
    torch.manual_seed(0)
    norm = RMSNorm(width, eps)
    norm.weight.data.normal_()
    x = (size * torch.randn(*shape, width)).requires_grad_()
    ours, expected = norm(x), F.rms_norm(x, (width,), norm.weight, eps)
    assert_close(ours, expected)
    direction = torch.randn_like(ours)
    gradients = (torch.autograd.grad((y * direction).sum(), (x, norm.weight)) for y in (ours, expected))
    assert_close(*gradients, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert_close(norm(x), expected)


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_their_number():
    assert_close(cross_entropy(torch.full((2, 8), 5.0), torch.tensor([0, 7])), torch.full((2,), math.log(8)))


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
