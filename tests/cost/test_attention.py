"""The three ways to attend over latents: against torch's counter, and their crossings against the counts."""

import math

import pytest
import torch
from configurations import examples
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minids import ModelConfig
from minids.cost.attention import absorption_pays_from, expansion_pays_from, mla_cached_numbers, mla_multiplications
from minids.model.attention import attend
from minids.model.mla import MLA


def with_latents(heads: int, latent: int, nope: int, rope: int, value: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=3, intermediate_size=8, num_attention_heads=heads,
        kv_lora_rank=latent, qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=value,
    )  # fmt: skip


def counted_by_torch(step) -> int:
    """Multiplications in a function's matrix products, as torch's own counter finds them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step()
    return counter.get_total_flops() // 2


@examples(25)
@given(
    st.integers(1, 5), st.integers(1, 20), st.integers(1, 4), st.integers(1, 9), st.integers(1, 6),
    st.sampled_from([2, 4, 6]), st.integers(1, 7),
)  # fmt: skip
def test_the_multiplications_are_those_that_torch_counts(new, older, heads, latent, nope, rope, value):
    config = with_latents(heads, latent, nope, rope, value)
    layer, context = MLA(config), new + older
    q_nope, q_rope = torch.randn(1, heads, new, nope), torch.randn(1, heads, new, rope)
    rows = torch.randn(1, context, latent + rope)
    q, k = (torch.randn(1, heads, length, nope + rope) for length in (new, context))
    v = torch.randn(1, heads, context, value)
    assert mla_multiplications(config, context, new) == {
        "full cache": counted_by_torch(lambda: (layer.kv_b_proj(rows[:, -new:, :latent]), attend(q, k, v, 1.0))),
        "expanded": counted_by_torch(lambda: layer.attend_expanded(q_nope, q_rope, rows)),
        "absorbed": counted_by_torch(lambda: layer.attend_absorbed(q_nope, q_rope, rows)),
    }
    kept, of_all_heads = rows[0, 0].numel(), (k.numel() + v.numel()) // context
    assert mla_cached_numbers(config) == {"full cache": of_all_heads, "expanded": kept, "absorbed": kept}


@examples(50)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
@example(3, 4, 2, 2)  # the crossing is at 12 tokens of context, where neither way saves anything
@example(4, 4, 2, 2)  # both ways cost the same in every context
@example(5, 4, 2, 2)  # expanding costs less in every context
def test_the_lines_cross_where_the_closed_form_says(new, latent, nope, value):
    config = with_latents(2, latent, nope, 2, value)

    def absorbing_saves(context):
        count = mla_multiplications(config, context, new)
        return count["expanded"] - count["absorbed"]

    crossing = absorption_pays_from(config, new)
    if crossing is None:
        assert new >= expansion_pays_from(config)
        assert absorbing_saves(10**9) <= 0
    else:
        assert new < expansion_pays_from(config)
        before = math.floor(crossing * (1 - 1e-9))
        assert before < new or absorbing_saves(before) <= 0  # the context includes the new tokens
        assert absorbing_saves(math.floor(crossing * (1 + 1e-9)) + 1) > 0
        assert expansion_pays_from(config, crossing) == pytest.approx(new)  # the same crossing, asked the other way


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v2", "deepseek-v3"])
def test_expanding_pays_from_171_queries_in_v2_and_v3(name):
    assert expansion_pays_from(ModelConfig.preset(name)) == pytest.approx(512 * 256 / 768)


@pytest.mark.parametrize("ask", [mla_cached_numbers, expansion_pays_from, mla_multiplications, absorption_pays_from])
def test_without_latents_there_is_nothing_to_absorb(ask):
    more = [4096] * (ask in (mla_multiplications, absorption_pays_from))
    with pytest.raises(ValueError, match="no latents"):
        ask(ModelConfig.preset("deepseek-llm-7b"), *more)
