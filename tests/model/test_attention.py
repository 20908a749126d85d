"""Causal attention against torch's scaled_dot_product_attention."""

import pytest
import torch
import torch.nn.functional as F
from configurations import examples, randomize
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from minids.model.attention import Attention, attend
from minids.model.config import ModelConfig
from minids.model.rope import rope_rotation

sizes = st.integers(1, 9)


@examples(40)
@given(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), sizes, st.integers(0, 6), sizes, sizes, sizes)
def test_attend_equals_torch_for_every_sharing_of_heads_and_every_block(
    batch_size, kv_heads, sharing, queries, cached, block, key_width, value_width
):
    """In one block of queries and in several, the last of them shorter or not."""
    torch.manual_seed(0)
    positions = cached + queries
    q = torch.randn(batch_size, kv_heads * sharing, queries, key_width, requires_grad=True)
    k = torch.randn(batch_size, kv_heads, positions, key_width, requires_grad=True)
    v = torch.randn(batch_size, kv_heads, positions, value_width, requires_grad=True)
    visible = torch.arange(positions) <= torch.arange(cached, positions)[:, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=0.7, enable_gqa=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minids.model.attention.QUERY_BLOCK", block)
        out = attend(q, k, v, 0.7)
    assert_close(out, expected)
    direction = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((x * direction).sum(), (q, k, v)) for x in (out, expected))
    assert_close(ours, theirs)


def test_a_block_never_computes_the_scores_of_keys_after_it(monkeypatch):
    """Four blocks of 64: instead of 256 · 256 scores, 64 · (64 + 128 + 192 + 256)."""
    monkeypatch.setattr("minids.model.attention.QUERY_BLOCK", 64)
    q, k, v = torch.randn(3, 1, 1, 256, 8)
    with FlopCounterMode(display=False) as counter:
        attend(q, k, v, 1.0)
    assert counter.get_total_flops() == 64 * (64 + 128 + 192 + 256) * (8 + 8) * 2


def test_bfloat16_stays_near_the_exact_result():
    q, k, v = torch.randn(3, 1, 1, 300, 8).to(torch.bfloat16)
    out = attend(q, k, v, 0.1)
    assert out.dtype == torch.bfloat16
    assert (out.double() - attend(q.double(), k.double(), v.double(), 0.1)).abs().max() < 0.02


@pytest.mark.kills("a query sees one token ahead", kv_heads=2)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_future_changes_nothing(kv_heads):
    config = ModelConfig(
        vocab_size=10, hidden_size=24, num_hidden_layers=1, intermediate_size=8, num_attention_heads=4,
        num_key_value_heads=kv_heads,
    )  # fmt: skip
    layer, x = Attention(config), torch.randn(2, 9, 24)
    randomize(layer)
    other = torch.cat([x[:, :5], torch.randn(2, 4, 24)], dim=1)
    before, after = (layer(y, rope_rotation(config, torch.arange(9))) for y in (x, other))
    assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amin(dim=(0, 2)).min() > 0
