"""Latent attention against the report's equations, one position and one head at a time, in complex numbers."""

from dataclasses import replace

import pytest
import torch
from configurations import (
    Float64,
    configurations,
    examples,
    latent_attentions,
    logits_and_gradients,
    random_model,
    random_tokens,
    randomize,
    splits,
    yarns,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from minids.model.config import ModelConfig, YarnScaling
from minids.model.mla import MLA
from minids.model.rope import rope_frequencies, rope_rotation, yarn_temperature

YARN = YarnScaling(factor=4, original_max_position_embeddings=32, beta_fast=4, mscale=0.707, mscale_all_dim=0.707)
CONFIG = replace(ModelConfig.preset("tiny"), rope_scaling=YARN)
with_and_without_query_compression = pytest.mark.parametrize("q_lora_rank", [None, 12])


def latent_attention(q_lora_rank: int | None = 12) -> MLA:
    layer = MLA(replace(CONFIG, q_lora_rank=q_lora_rank))
    randomize(layer)
    return layer


def rotation(start: int, stop: int, config: ModelConfig = CONFIG) -> Tensor:
    return rope_rotation(config, torch.arange(start, stop))


def by_the_equations(layer: MLA, config: ModelConfig, x_TD: Tensor) -> Tensor:
    """Equations 1 to 11 of the V3 report, for one sequence, with no two positions or heads at once."""
    c, heads = config, config.num_attention_heads
    weight = {name: parameter.double() for name, parameter in layer.named_parameters()}
    theta = rope_frequencies(c).double()

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean() + 1e-6).sqrt() * weight[f"{name}.weight"]

    def rope(x: Tensor, t: int) -> Tensor:
        turned = torch.view_as_complex(x.clone().view(-1, 2)) * torch.polar(torch.ones_like(theta), t * theta)
        return torch.view_as_real(turned).flatten()

    queries, keys, values = [], [], []
    for t, h in enumerate(x_TD.double()):
        c_kv, k_rope = (weight["kv_a_proj_with_mqa.weight"] @ h).split([c.kv_lora_rank, c.qk_rope_head_dim])
        kv = (weight["kv_b_proj.weight"] @ norm(c_kv, "kv_a_layernorm")).view(heads, -1)
        if c.q_lora_rank is None:
            q = weight["q_proj.weight"] @ h
        else:
            q = weight["q_b_proj.weight"] @ norm(weight["q_a_proj.weight"] @ h, "q_a_layernorm")
        q = q.view(heads, -1)
        n = c.qk_nope_head_dim
        queries.append([torch.cat([q[i, :n], rope(q[i, n:], t)]) for i in range(heads)])
        keys.append([torch.cat([kv[i, :n], rope(k_rope, t)]) for i in range(heads)])
        values.append([kv[i, n:] for i in range(heads)])
    scale = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5
    if c.rope_scaling is not None:
        scale *= yarn_temperature(c.rope_scaling.factor, c.rope_scaling.mscale_all_dim) ** 2
    out = []
    for t in range(len(x_TD)):
        attended = []
        for i in range(heads):
            shares = torch.stack([queries[t][i] @ keys[j][i] * scale for j in range(t + 1)]).softmax(dim=0)
            attended.append(sum(share * values[j][i] for j, share in enumerate(shares)))
        out.append(weight["o_proj.weight"] @ torch.cat(attended))
    return torch.stack(out).float()


@pytest.mark.kills("half-split RoPE in MLA")
@examples(20)
@given(latent_attentions(), st.none() | yarns.map(lambda yarn: replace(yarn, mscale=yarn.mscale_all_dim)))
def test_equals_the_equations_for_any_shape(entries, yarn):
    config = replace(CONFIG, **entries, rope_scaling=yarn)
    layer = MLA(config)
    randomize(layer)
    x = torch.randn(1, 6, config.hidden_size, generator=torch.Generator().manual_seed(0))
    assert_close(layer(x, rotation(0, 6, config))[0], by_the_equations(layer, config, x[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.kills("the scale of the latent", q_lora_rank=None)
@with_and_without_query_compression
def test_absorbed_equals_naive_in_output_and_gradients(q_lora_rank):
    layer, x = latent_attention(q_lora_rank), torch.randn(2, 7, 64, requires_grad=True)
    queries, latent = layer.queries(x, rotation(0, 7)), layer.latent(x, rotation(0, 7))
    naive, absorbed = layer.attend_expanded(*queries, latent), layer.attend_absorbed(*queries, latent)
    assert_close(absorbed, naive, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(naive)
    inputs = [x, *(p for name, p in layer.named_parameters() if "o_proj" not in name)]
    of_naive, of_absorbed = (
        torch.autograd.grad((out * direction).sum(), inputs, retain_graph=True) for out in (naive, absorbed)
    )
    assert_close(of_absorbed, of_naive, rtol=1e-4, atol=1e-4)


@examples(20)
@given(configurations(latent_attentions(), st.none(), mtp_depth=st.just(0)), st.integers(1, 3), splits(8))
def test_either_form_alone_gives_the_same_logits_and_gradients_of_the_whole_model(config, batch_size, cuts):
    """The one form for training, prefill and decoding alike."""
    model, tokens = random_model(config).double(), random_tokens(config, batch_size, 8)
    results = []
    for form in (MLA.attend_expanded, MLA.attend_absorbed):
        with pytest.MonkeyPatch.context() as patch, Float64():
            for name in ("attend_expanded", "attend_absorbed"):
                patch.setattr(
                    MLA, name, lambda layer, q_nope, q_rope, rows, *_, form=form: form(layer, q_nope, q_rope, rows)
                )
            results += [logits_and_gradients(model, tokens, pieces) for pieces in (None, cuts)]
    for result in results[1:]:
        assert_close(result, results[0], rtol=1e-6, atol=1e-6)


@pytest.mark.kills("expanded keys and values are cached")
def test_the_cache_holds_the_latent_and_one_rotated_key_and_nothing_else():
    cache = latent_attention().new_cache(3, 50)
    tensors = [value for value in vars(cache).values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() for tensor in tensors) == 3 * 50 * (CONFIG.kv_lora_rank + CONFIG.qk_rope_head_dim)


@pytest.mark.kills("a rotated key per head")
def test_what_is_cached_does_not_grow_with_the_heads():
    one, many = (MLA(replace(CONFIG, num_attention_heads=heads)).new_cache(1, 1) for heads in (1, 32))
    assert one.buffer.shape == many.buffer.shape


@torch.no_grad()
def test_decoding_expands_no_cached_token():
    layer, cache, expanded = latent_attention(), latent_attention().new_cache(1, 6), []
    layer.kv_b_proj.register_forward_hook(lambda module, args, out: expanded.append(out.shape))
    layer(torch.randn(1, 4, 64), rotation(0, 4), cache)
    assert len(expanded) == 1
    layer(torch.randn(1, 2, 64), rotation(4, 6), cache)
    assert len(expanded) == 1
