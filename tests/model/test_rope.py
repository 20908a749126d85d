"""Rotations by hand and by transformers; YaRN against the report's numbers and transformers' functions."""

import math
from dataclasses import replace

import pytest
import torch
from configurations import examples, yarns
from hf_oracle import hf_config
from hypothesis import given
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


def rotation_at(positions: torch.Tensor, dim: int = 64) -> torch.Tensor:
    return rope_rotation(replace(PLAIN, qk_rope_head_dim=dim), positions)


def test_frequencies_fall_from_one_turn_a_radian_by_powers_of_the_base():
    config = replace(PLAIN, qk_rope_head_dim=4, rope_theta=100.0)
    assert_close(rope_frequencies(config), torch.tensor([1.0, 0.1]))


def test_a_dense_model_turns_the_whole_head():
    assert rope_frequencies(ModelConfig.preset("deepseek-llm-7b")).shape == (64,)
    assert rope_frequencies(V3).shape == (32,)


def test_neighbours_are_a_pair_when_interleaved():
    rotation = rotation_at(torch.tensor([1]), dim=4)
    turned = apply_rope(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), rotation, interleaved=True)
    expected = [math.cos(1), math.sin(1), -math.sin(0.01), math.cos(0.01)]
    assert_close(turned, torch.tensor([expected]))


def test_halves_face_each_other_when_split():
    rotation = rotation_at(torch.tensor([1]), dim=4)
    turned = apply_rope(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), rotation, interleaved=False)
    expected = [math.cos(1), -math.sin(0.01), math.sin(1), math.cos(0.01)]
    assert_close(turned, torch.tensor([expected]))


@layouts
def test_position_0_is_left_alone_and_lengths_everywhere(interleaved):
    x = torch.randn(2, 3, 50, 64)
    turned = apply_rope(x, rotation_at(torch.arange(50)), interleaved=interleaved)
    assert torch.equal(turned[..., 0, :], x[..., 0, :])
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@layouts
@examples(30)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 2000))
def test_the_score_depends_on_the_distance_alone(interleaved, i, j, shift):
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 64)

    def score(at_q, at_k):
        q_turned = apply_rope(q, rotation_at(torch.tensor([at_q])), interleaved=interleaved)
        return (q_turned * apply_rope(k, rotation_at(torch.tensor([at_k])), interleaved=interleaved)).sum()

    assert_close(score(i, j), score(i + shift, j + shift), rtol=1e-3, atol=1e-2)


def test_the_wrong_layout_gives_other_scores():
    q, k = torch.randn(2, 20, 64)
    rotation = rotation_at(torch.arange(20))
    right, wrong = (
        apply_rope(q, rotation, interleaved=layout) @ apply_rope(k, rotation, interleaved=layout).T
        for layout in (True, False)
    )
    assert_close(right.diag(), wrong.diag())  # at distance 0 nothing shows
    assert (right - wrong).abs().max() > 1


def test_half_split_equals_transformers_llama():
    q, k = torch.randn(2, 1, 3, 20, 64)
    rotation = rotation_at(torch.arange(20))
    both = (torch.cat([part, part], dim=-1)[None] for part in (rotation.real, rotation.imag))
    for ours, theirs in zip((q, k), apply_rotary_pos_emb(q, k, *both), strict=True):
        assert_close(apply_rope(ours, rotation, interleaved=False), theirs)


def test_interleaved_equals_transformers_deepseek_v3_up_to_the_order_it_leaves_behind():
    q, k = torch.randn(2, 1, 3, 20, 64)
    rotation = rotation_at(torch.arange(20))
    both = (torch.cat([part, part], dim=-1)[None] for part in (rotation.real, rotation.imag))
    for ours, theirs in zip((q, k), apply_rotary_pos_emb_interleave(q, k, *both), strict=True):
        turned = apply_rope(ours, rotation, interleaved=True)
        assert_close(torch.cat([turned[..., 0::2], turned[..., 1::2]], dim=-1), theirs)


def test_interleaved_equals_the_complex_rotation_of_transformers_deepseek_v2():
    q, k = torch.randn(2, 1, 3, 20, 64)
    rotation = rotation_at(torch.arange(20))
    for ours, theirs in zip((q, k), apply_rotary_emb(q, k, rotation[None]), strict=True):
        assert_close(apply_rope(ours, rotation, interleaved=True), theirs)


def test_bfloat16_is_turned_in_float32_and_comes_back_as_it_was():
    x = torch.randn(20, 64).to(torch.bfloat16)
    rotation = rotation_at(torch.arange(20))
    turned = apply_rope(x, rotation, interleaved=True)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rope(x.float(), rotation, interleaved=True).to(torch.bfloat16))


@layouts
def test_a_slice_from_an_odd_place_in_memory_is_turned_too(interleaved):
    x, rotation = torch.randn(1, 1, 7, requires_grad=True), rotation_at(torch.tensor([3]), dim=6)
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


def test_yarn_sharpens_attention_by_the_square_of_m():
    assert yarn_temperature(40, 1.0) == pytest.approx(1.368888, abs=1e-6)
    assert softmax_scale(V3) == pytest.approx(0.135234, abs=1e-6)
    assert softmax_scale(ModelConfig.preset("deepseek-v2")) == pytest.approx(0.114722, abs=1e-6)
    assert softmax_scale(PLAIN) == pytest.approx(192**-0.5)


def test_the_scale_never_comes_from_the_latent_width():
    assert softmax_scale(replace(V3, kv_lora_rank=17)) == softmax_scale(V3)
    assert softmax_scale(ModelConfig.preset("deepseek-llm-7b")) == 128**-0.5


@examples(60)
@given(
    st.tuples(yarns, st.booleans()).map(lambda x: replace(x[0], mscale=1.0, mscale_all_dim=0.0) if x[1] else x[0]),
    st.sampled_from([2, 8, 64]),
    st.floats(50, 1e6),
)
def test_yarn_equals_transformers(yarn, dim, base):
    config = replace(V3, qk_rope_head_dim=dim, rope_theta=base, rope_scaling=yarn)
    theirs, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](hf_config(config))
    ours = rope_frequencies(config)
    assert_close(ours, theirs, rtol=1e-5, atol=0)
    lengths = rope_rotation(config, torch.arange(5)).abs()
    assert_close(lengths, torch.full_like(lengths, attention_factor))


def test_yarn_with_a_ramp_of_no_width_still_divides():
    yarn = YarnScaling(factor=8, original_max_position_embeddings=64, beta_fast=32, beta_slow=32)
    config = replace(V3, qk_rope_head_dim=2, rope_scaling=yarn)
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](hf_config(config))
    assert_close(rope_frequencies(config), theirs)


def test_yarn_s_ramp_may_run_backwards_for_a_tiny_original_length_as_it_does_in_transformers():
    yarn = YarnScaling(factor=8, original_max_position_embeddings=8, beta_fast=32, beta_slow=4)
    config = replace(V3, rope_theta=100.0, rope_scaling=yarn)
    theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](hf_config(config))
    assert_close(rope_frequencies(config), theirs)


def test_a_model_on_meta_still_has_its_angles():
    with torch.device("meta"):
        frequencies = rope_frequencies(V3)
    assert torch.equal(frequencies, rope_frequencies(V3))
