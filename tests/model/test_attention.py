"""Causal attention against torch's scaled_dot_product_attention; grouped heads against copied ones; the cache."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from configurations import (
    configurations,
    examples,
    float64,
    logits_and_gradients,
    mixtures,
    ordinary_attentions,
    random_model,
    random_tokens,
    randomize,
    splits,
)
from hf_oracle import closest_call, record_gates
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from minids.model.attention import Attention, Cache, attend
from minids.model.config import ModelConfig
from minids.model.rope import rope_rotation

CONFIG = ModelConfig(
    vocab_size=10, hidden_size=24, num_hidden_layers=1, intermediate_size=8, num_attention_heads=4, head_dim=6
)
every_sharing = pytest.mark.parametrize("kv_heads", [4, 2, 1])


def attention(kv_heads: int = 4) -> Attention:
    layer = Attention(replace(CONFIG, num_key_value_heads=kv_heads))
    randomize(layer)
    return layer


def rotation(start: int, stop: int) -> torch.Tensor:
    return rope_rotation(CONFIG, torch.arange(start, stop))


@examples(40)
@given(
    kv_heads=st.integers(1, 3),
    sharing=st.integers(1, 3),
    queries=st.integers(1, 8),
    cached=st.integers(0, 6),
    block=st.integers(1, 9),
    key_width=st.integers(1, 9),
    value_width=st.integers(1, 9),
    scale=st.floats(0.05, 3),
)
def test_attend_equals_torch_for_every_sharing_of_heads_and_every_block(
    kv_heads, sharing, queries, cached, block, key_width, value_width, scale
):
    """In one block of queries and in several, the last of them shorter or not."""
    torch.manual_seed(0)
    positions = cached + queries
    q = torch.randn(2, kv_heads * sharing, queries, key_width, requires_grad=True)
    k = torch.randn(2, kv_heads, positions, key_width, requires_grad=True)
    v = torch.randn(2, kv_heads, positions, value_width, requires_grad=True)
    visible = torch.arange(positions) <= torch.arange(cached, positions)[:, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minids.model.attention.QUERY_BLOCK", block)
        out = attend(q, k, v, scale)
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


def test_no_rows_give_no_rows():
    q, k, v = torch.randn(3, 0, 2, 5, 4)
    assert attend(q, k, v, 1.0).shape == (0, 2, 5, 4)


def test_the_first_position_sees_itself_alone():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    assert_close(attend(q, k, v, 1.0)[:, :, 0], v[:, :, 0])


def test_equal_scores_average_the_values_so_far():
    v = torch.arange(4.0).view(1, 1, 4, 1)
    zeros = torch.zeros(1, 1, 4, 3)
    assert_close(attend(zeros, zeros, v, 1.0).flatten(), torch.tensor([0.0, 0.5, 1.0, 1.5]))


def test_bfloat16_stays_near_the_exact_result():
    q, k, v = torch.randn(3, 1, 1, 300, 8).to(torch.bfloat16)
    out = attend(q, k, v, 0.1)
    exact = attend(q.double(), k.double(), v.double(), 0.1)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).abs().max() < 0.02


@every_sharing
def test_the_future_changes_nothing(kv_heads):
    layer, x = attention(kv_heads), torch.randn(2, 9, 24)
    other = torch.cat([x[:, :5], torch.randn(2, 4, 24)], dim=1)
    before, after = (layer(y, rotation(0, 9)) for y in (x, other))
    assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amin(dim=(0, 2)).min() > 0


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_sharing_keys_and_values_is_copying_them_to_every_head_of_the_group(kv_heads):
    shared, full = attention(kv_heads), attention(4)
    full.q_proj.load_state_dict(shared.q_proj.state_dict())
    full.o_proj.load_state_dict(shared.o_proj.state_dict())
    for name in ("k_proj", "v_proj"):
        weight = getattr(shared, name).weight.view(kv_heads, 6, 24)
        getattr(full, name).weight.data = weight.repeat_interleave(4 // kv_heads, dim=0).flatten(0, 1)
    x = torch.randn(2, 7, 24)
    assert_close(shared(x, rotation(0, 7)), full(x, rotation(0, 7)))


def test_the_order_of_tokens_matters_through_position():
    layer, x = attention(), torch.randn(1, 6, 24)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    difference = layer(x, rotation(0, 6))[:, 5] - layer(swapped, rotation(0, 6))[:, 5]
    assert difference.abs().max() > 1e-3


@examples(35)
@given(configurations(ordinary_attentions(), mixtures(), mtp_depth=st.just(0)), st.integers(1, 3), splits(8))
def test_decoding_with_a_cache_equals_one_pass_in_the_logits_and_gradients_of_the_whole_model(config, batch_size, cuts):
    with float64():
        model, tokens = random_model(config).double(), random_tokens(config, batch_size, 8)
        gates = record_gates(model)
        whole = logits_and_gradients(model, tokens)
        leads = [closest_call(gate, scores) for gate, (_, _, scores) in zip(model.gates, gates, strict=True)]
        assume(min(leads, default=1) > 1e-6)  # rounding may flip a closer choice
        assert_close(logits_and_gradients(model, tokens, cuts), whole, rtol=1e-6, atol=1e-6)


@every_sharing
def test_the_cache_holds_a_key_and_a_value_per_shared_head(kv_heads):
    assert attention(kv_heads).new_cache(3, 5).buffer.shape == (3, 5, 2 * kv_heads * 6)


def test_an_overfull_cache_says_so_and_stays_as_it_was():
    cache = Cache(1, 4, 2, like=torch.zeros(1))
    cache.append(torch.ones(1, 3, 2))
    before = cache.buffer.clone()
    with pytest.raises(ValueError, match=r"5 positions do not fit: the cache was made for 4\."):
        cache.append(torch.full((1, 2, 2), 7.0))
    assert cache.length == 3
    assert torch.equal(cache.buffer, before)
    assert cache.append(torch.full((1, 1, 2), 7.0)).shape == (1, 4, 2)


def test_a_cache_returns_what_was_appended_in_order():
    cache, rows = Cache(2, 5, 3, like=torch.zeros(1)), torch.randn(2, 5, 3)
    cache.append(rows[:, :2])
    assert torch.equal(cache.append(rows[:, 2:]), rows)


@torch.no_grad()
def test_setting_the_length_back_forgets():
    layer, x = attention(2), torch.randn(2, 8, 24)
    whole = layer(x, rotation(0, 8))
    cache = layer.new_cache(2, 8)
    layer(x[:, :4], rotation(0, 4), cache)
    layer(torch.randn(2, 4, 24), rotation(4, 8), cache)
    cache.length = 4
    assert_close(layer(x[:, 4:], rotation(4, 8), cache), whole[:, 4:])
