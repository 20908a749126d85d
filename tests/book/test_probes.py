"""Looking into models: shares of variances computed another way, and what a change of weights leaves."""

import numpy as np
import pytest
import torch

from minids.book.probes.attention import (
    keys_and_values_svd,
    project_keys_and_values,
    share_of_distance,
    share_of_rotated,
    silence,
)
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.model.mla import MLA
from minids.model.rope import rope_rotation


def test_a_row_of_equal_scores_says_nothing_and_a_shift_changes_nothing():
    rng = np.random.default_rng(0)
    content, position = rng.normal(size=(2, 6, 6))
    flat = np.ones((6, 6)) * rng.normal(size=(6, 1))
    assert share_of_rotated(flat, position) == pytest.approx(1)
    assert share_of_rotated(content, flat) == pytest.approx(0)
    assert share_of_rotated(content + flat, position) == pytest.approx(share_of_rotated(content, position))


def test_the_share_is_that_of_variances_over_what_a_query_sees():
    content, position = np.random.default_rng(1).normal(size=(2, 5, 5))
    sums = [sum(part[t, : t + 1].var() * (t + 1) for t in range(5)) for part in (content, position)]
    assert share_of_rotated(content, position) == pytest.approx(sums[1] / sum(sums))


def test_what_depends_on_distance_alone_is_told_from_what_does_not():
    rng = np.random.default_rng(3)
    steps = np.subtract.outer(np.arange(30), np.arange(30))
    by_distance = rng.normal(size=60)[steps]
    by_token = np.tile(rng.normal(size=30), (30, 1))  # columns
    assert share_of_distance(by_distance + rng.normal(size=(30, 1))) == pytest.approx(1)
    assert share_of_distance(by_token) < 0.2
    assert 0.3 < share_of_distance(by_distance + by_token) < 0.7


# ---------------------------------------------------------------------------------------------------
# What a change of weights leaves


def small_mha() -> tuple[DeepSeek, np.ndarray]:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, intermediate_size=16, num_attention_heads=3, head_dim=6,
        initializer_range=0.3,
    )  # fmt: skip
    return DeepSeek(config).eval(), np.random.default_rng(0).integers(50, size=(4, 20))


def test_keys_and_values_have_no_more_rank_than_what_they_are_made_of():
    model, rows = small_mha()
    for values, directions in keys_and_values_svd(model, rows):
        assert directions.shape == (36, 36)
        assert (values[:12] > 1e-3 * values[0]).all()
        assert (values[12:] < 1e-5 * values[0]).all()


def test_the_decomposition_is_of_the_projections_outputs_before_rope():
    model, rows = small_mha()
    values, directions = keys_and_values_svd(model, rows)[0]
    with torch.no_grad():
        u = model.layers[0].input_layernorm(model.embed_tokens(torch.from_numpy(rows[:, :-1])))
        a = model.layers[0].self_attn
        stacked = torch.cat([a.k_proj(u), a.v_proj(u)], dim=-1).flatten(0, 1)
    torch.testing.assert_close((stacked @ directions).norm(dim=0), values, rtol=1e-4, atol=1e-4)


def test_a_projection_on_all_directions_changes_nothing_and_one_on_few_leaves_their_rank():
    model, rows = small_mha()
    tokens = torch.from_numpy(rows)
    with torch.no_grad():
        before = model(tokens)
        decompositions = keys_and_values_svd(model, rows)
        for rank in (12, 5):
            for layer, (_, directions) in zip(model.layers, decompositions, strict=True):
                project_keys_and_values(layer.self_attn, directions[:, :rank])
            if rank == 12:
                torch.testing.assert_close(model(tokens), before, rtol=1e-3, atol=1e-4)
    for layer in model.layers:
        stacked = torch.cat([layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight])
        assert torch.linalg.matrix_rank(stacked) == 5
    assert not torch.allclose(model(tokens), before, atol=1e-2)


@pytest.mark.parametrize("q_lora_rank", [None, 5])
def test_a_silenced_part_leaves_the_scores_of_the_other(q_lora_rank):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=8, hidden_size=12, num_hidden_layers=1, intermediate_size=8, num_attention_heads=2,
        q_lora_rank=q_lora_rank, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4,
    )  # fmt: skip
    x, rotation = torch.randn(1, 7, 12), rope_rotation(config, torch.arange(7))
    for part in ("content", "rotated"):
        layer = MLA(config)
        before = layer.queries(x, rotation)
        silence(layer, part)
        after = layer.queries(x, rotation)
        gone, left = (0, 1) if part == "content" else (1, 0)
        assert not after[gone].any()
        assert torch.equal(after[left], before[left])
