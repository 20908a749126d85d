"""Mistakes planted one at a time: the named test passes on the library and fails on each."""

import importlib
import inspect
from contextlib import suppress

import pytest
import torch

from minids import ModelConfig
from minids.book.mistakes import WRONG_VARIANTS, WrongVariant
from minids.cost import accounting
from minids.model.mla import MLA
from minids.model.moe import Gate
from minids.model.rope import softmax_scale

# mistake -> the test that kills it, and with what arguments
KILLED_BY = {
    "the bias weighs": ("test_moe.test_bias_chooses_but_never_weighs", {}),
    "masked groups score zero": ("test_moe.test_a_masked_group_loses_even_when_every_biased_score_is_negative", {}),
    "no scaling factor": ("test_moe.test_normalised_weights_sum_to_the_scaling_factor", {"factor": 2.5}),
    "the bias moves the wrong way": ("test_balance.test_overloaded_experts_go_down_and_underloaded_ones_up", {}),
    "evaluation counts": ("test_moe.test_load_is_counted_in_training_mode_only_and_adds_up", {}),
    "the bias moves per micro-batch": (
        "test_trainer.test_each_bias_moves_once_per_step_against_its_load", {"micro_batch_size": 1},
    ),
    "the balance loss averages the batch first": (
        "test_balance.test_two_sequences_lopsided_in_opposite_ways_do_not_cancel", {},
    ),
    "the balance loss is never added": ("test_deepseek.test_the_terms_add_up_with_their_weights", {}),
    "no YaRN temperature": ("test_rope.test_yarn_sharpens_attention_by_the_square_of_m", {}),
    "half-split RoPE in MLA": ("test_mla.test_equals_the_equations_for_any_shape", {}),
    "a rotated key per head": ("test_mla.test_what_is_cached_does_not_grow_with_the_heads", {}),
    "the scale of the latent": (
        "test_mla.test_absorbed_equals_naive_in_output_and_gradients", {"q_lora_rank": None},
    ),
    "expanded keys and values are cached": (
        "test_mla.test_the_cache_holds_the_latent_and_one_rotated_key_and_nothing_else", {},
    ),
    "the latent counts twice": ("test_accounting.test_v3_caches_the_published_70272_bytes", {}),
    "a query sees one token ahead": ("test_attention.test_the_future_changes_nothing", {"kv_heads": 2}),
    "MTP skips its block": ("test_mtp.test_the_loss_is_that_of_the_equations", {"depth": 1}),
    "MTP predicts what it was told": ("test_mtp.test_the_loss_is_that_of_the_equations", {"depth": 1}),
    "MTP joins as the report prints it": (
        "test_mtp.test_the_projection_takes_the_embedding_first_and_the_hidden_state_second", {},
    ),
}  # fmt: skip
variants = pytest.mark.parametrize("variant", WRONG_VARIANTS.values(), ids=WRONG_VARIANTS)


@variants
def test_the_named_test_passes_on_the_library_and_fails_on_the_mistake(variant, tmp_path):
    test, arguments = KILLED_BY[variant.name]
    module, name = test.split(".")
    function = getattr(importlib.import_module(module), name)

    def run(folder):
        torch.manual_seed(0)
        folder.mkdir()
        needed = {"tmp_path": folder} if "tmp_path" in inspect.signature(function).parameters else {}
        function(**arguments, **needed)

    run(tmp_path / "right")
    with variant.planted(), pytest.raises(AssertionError):
        run(tmp_path / "wrong")
    run(tmp_path / "right again")


@variants
def test_a_mistake_is_a_few_lines_and_shows_them(variant):
    lines = variant.diff().splitlines()
    changed = [line for line in lines if line.startswith(("+", "-"))]
    assert 2 <= len(changed) + (len(changed) == 1) <= 16
    assert all(any(right in line for line in lines) for _, right, _ in variant.edits if "\n" not in right)


def test_every_mistake_has_its_test():
    assert KILLED_BY.keys() == WRONG_VARIANTS.keys()


def test_the_library_is_itself_again_after_an_error():
    code = MLA.attend_absorbed.__code__
    with suppress(KeyError), WRONG_VARIANTS["the scale of the latent"].planted():
        assert MLA.attend_absorbed.__code__ is not code
        raise KeyError
    assert MLA.attend_absorbed.__code__ is code


@variants
def test_a_mistake_shows_its_lines_while_it_is_planted_too(variant):
    before = variant.diff()
    with variant.planted():
        assert variant.diff() == before
        assert WrongVariant("the same", "?", variant.edits).diff() == before


def test_two_mistakes_stand_together_unless_they_are_in_one_function():
    bias_weighs, no_scaling, half_split = (
        WRONG_VARIANTS[name] for name in ("the bias weighs", "no scaling factor", "half-split RoPE in MLA")
    )
    right = Gate.forward.__code__, MLA.queries.__code__
    with bias_weighs.planted():
        planted = Gate.forward.__code__
        with half_split.planted():
            assert MLA.queries.__code__ is not right[1]
        for again in (bias_weighs, no_scaling):
            message = "^Gate.forward has a mistake planted already: end that block first.$"
            with pytest.raises(ValueError, match=message), again.planted():
                pass
        assert (Gate.forward.__code__, MLA.queries.__code__) == (planted, right[1])
    assert (Gate.forward.__code__, MLA.queries.__code__) == right


def test_an_edit_that_no_longer_fits_is_told_before_anything_changes():
    code = MLA.queries.__code__
    variant = WrongVariant("?", "?", ((MLA.queries, "interleaved=True", "interleaved=False"), (MLA.latent, "gone", "")))
    with pytest.raises(ValueError, match=r"'gone' is 0 times in MLA\.latent"), variant.planted():
        pass
    assert MLA.queries.__code__ is code


def test_the_numbers_in_the_texts_are_those_of_v3():
    v3 = ModelConfig.preset("deepseek-v3")
    effect = {name: variant.effect for name, variant in WRONG_VARIANTS.items()}
    m_squared = softmax_scale(v3) * v3.qk_head_dim**0.5
    assert f"{m_squared:.2f} in V3" in effect["no YaRN temperature"]
    per_layer = accounting.kv_cache_elements(v3) // v3.num_hidden_layers
    keys = v3.num_attention_heads * v3.qk_rope_head_dim
    assert (
        f"from {per_layer} numbers per token and layer to {v3.kv_lora_rank + keys:,}"
        in effect["a rotated key per head"]
    )
    expanded = v3.num_attention_heads * (v3.qk_nope_head_dim + v3.v_head_dim) + v3.qk_rope_head_dim
    assert f"{expanded:,} numbers" in effect["expanded keys and values are cached"]
    assert f"instead of {per_layer}" in effect["expanded keys and values are cached"]
    assert f"{accounting.kv_cache_bytes(v3):,} bytes" in effect["the latent counts twice"]
    factors = [ModelConfig.preset(name).routed_scaling_factor for name in ("deepseek-v3", "deepseek-v2")]
    assert "of {:g} in V3 and of {:g} in V2".format(*factors) in effect["no scaling factor"]


def test_with_expanded_keys_and_values_every_output_is_right():
    """As its text says: no test of outputs can find it."""
    config = ModelConfig.preset("tiny")
    layer, x = MLA(config), torch.randn(1, 5, config.hidden_size)
    rotation = torch.randn(5, config.qk_rope_head_dim // 2).mul(1j).exp()

    def in_two_parts():
        cache = layer.new_cache(1, 5)
        return torch.cat([layer(x[:, :3], rotation[:3], cache), layer(x[:, 3:], rotation[3:], cache)], dim=1)

    right = in_two_parts()
    with WRONG_VARIANTS["expanded keys and values are cached"].planted():
        torch.testing.assert_close(in_two_parts(), right)
