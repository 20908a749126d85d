"""Rotations against transformers' own; YaRN against the report's numbers and transformers' functions."""

from dataclasses import replace

import pytest
import torch
from configurations import examples, yarns
from hf_oracle import hf_config
from hypothesis import example, given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from minids.model.config import ModelConfig, YarnScaling
from minids.model.rope import apply_rope, rope_frequencies, rope_rotation, softmax_scale, yarn_temperature

V3 = ModelConfig.preset("deepseek-v3")
PLAIN = replace(V3, rope_scaling=None)
layouts = pytest.mark.parametrize("interleaved", [True, False])


def rotation_at(*positions: int, dim: int = 64) -> torch.Tensor:
    return rope_rotation(replace(PLAIN, qk_rope_head_dim=dim), torch.tensor(positions))


def test_frequencies_fall_from_one_radian_a_position_by_powers_of_the_base():
    config = replace(PLAIN, qk_rope_head_dim=4, rope_theta=100.0)
    assert_close(rope_frequencies(config), torch.tensor([1.0, 0.1]))
    assert rope_frequencies(ModelConfig.preset("deepseek-llm-7b")).shape == (64,)  # there, of the whole head


def test_both_layouts_equal_transformers():
    q, k = torch.randn(2, 1, 3, 20, 64)
    rotation = rotation_at(*range(20))
    twice = [torch.cat([part, part], dim=-1)[None] for part in (rotation.real, rotation.imag)]
    split, interleaved = (apply_rope(q, rotation, interleaved=layout) for layout in (False, True))
    assert_close(split, apply_rotary_pos_emb(q, k, *twice)[0])
    assert_close(interleaved, apply_rotary_emb(q, k, rotation[None])[0])
    # The class of V3 leaves the pairs apart, first the first of each and then the second.
    apart = torch.cat([interleaved[..., 0::2], interleaved[..., 1::2]], dim=-1)
    assert_close(apart, apply_rotary_pos_emb_interleave(q, k, *twice)[0])


@layouts
@examples(30)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 2000))
def test_the_score_depends_on_the_distance_alone(interleaved, i, j, shift):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 64)

    def score(at_q, at_k):
        q_turned = apply_rope(q, rotation_at(at_q), interleaved=interleaved)
        return (q_turned * apply_rope(k, rotation_at(at_k), interleaved=interleaved)).sum()

    assert_close(score(i, j), score(i + shift, j + shift), rtol=1e-3, atol=1e-2)


def test_bfloat16_is_turned_in_float32_and_comes_back_as_it_was():
    x, rotation = torch.randn(20, 64).to(torch.bfloat16), rotation_at(*range(20))
    turned = apply_rope(x, rotation, interleaved=True)
    assert torch.equal(turned, apply_rope(x.float(), rotation, interleaved=True).to(torch.bfloat16))


@layouts
def test_a_slice_from_an_odd_place_in_memory_is_turned_too(interleaved):
    x, rotation = torch.randn(1, 1, 7, requires_grad=True), rotation_at(3, dim=6)
    slices, copies = (apply_rope(part, rotation, interleaved=interleaved) for part in (x[..., 1:], x[..., 1:].clone()))
    assert_close(slices, copies)
    ours, theirs = (torch.autograd.grad((x[..., :6] + y)[..., 1:].sum(), x) for y in (slices, copies))
    assert_close(ours, theirs)


def test_yarn_of_v3_leaves_pairs_to_10_alone_and_divides_pairs_from_23():
    share = rope_frequencies(V3) / rope_frequencies(PLAIN)
    assert_close(share[:11], torch.ones(11))
    assert_close(share[23:], torch.full((9,), 1 / 40))
    ramp = torch.arange(1, 13) / 13  # lo, hi = 10, 23
    assert_close(share[11:23], 1 - ramp + ramp / 40)


@pytest.mark.kills("no YaRN temperature")
def test_yarn_sharpens_attention_by_the_square_of_m():
    assert yarn_temperature(40, 1.0) == pytest.approx(1.368888, abs=1e-6)
    assert softmax_scale(V3) == pytest.approx(0.135234, abs=1e-6)
    assert softmax_scale(ModelConfig.preset("deepseek-v2")) == pytest.approx(0.114722, abs=1e-6)
    assert softmax_scale(PLAIN) == softmax_scale(replace(PLAIN, kv_lora_rank=17)) == pytest.approx(192**-0.5)
    assert softmax_scale(ModelConfig.preset("deepseek-llm-7b")) == pytest.approx(128**-0.5)


def yarn(length: int, beta_slow: float) -> YarnScaling:
    return YarnScaling(factor=8, original_max_position_embeddings=length, beta_fast=32, beta_slow=beta_slow)


@examples(60)
@given(
    st.tuples(yarns, st.booleans()).map(lambda x: replace(x[0], mscale=1.0, mscale_all_dim=0.0) if x[1] else x[0]),
    st.sampled_from([2, 8, 64]),
    st.floats(50, 1e6),
)
@example(yarn(64, beta_slow=32), 2, 10000.0)  # a ramp of no width still divides
@example(yarn(8, beta_slow=4), 64, 100.0)  # for a tiny original length the ramp may run backwards
def test_yarn_equals_transformers(scaling, dim, base):
    config = replace(V3, qk_rope_head_dim=dim, rope_theta=base, rope_scaling=scaling)
    theirs, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](hf_config(config))
    assert_close(rope_frequencies(config), theirs, rtol=1e-5, atol=0)
    lengths = rope_rotation(config, torch.arange(5)).abs()
    assert_close(lengths, torch.full_like(lengths, attention_factor))


def test_a_model_on_meta_still_has_its_angles():
    with torch.device("meta"):
        frequencies = rope_frequencies(V3)
    assert torch.equal(frequencies, rope_frequencies(V3))
