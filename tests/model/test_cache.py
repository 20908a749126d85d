"""The KV cache: decoding with it equals one pass over the whole, for every kind of attention."""

from dataclasses import replace

import pytest
import torch
from configurations import (
    Float64,
    configurations,
    examples,
    logits_and_gradients,
    mixtures,
    random_model,
    random_tokens,
    splits,
)
from hf_oracle import closest_call, record_gates
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from minids import ModelConfig
from minids.model.cache import Cache

TINY = replace(ModelConfig.preset("tiny"), num_hidden_layers=3)


@examples(40)
@given(configurations(mixture=mixtures(), mtp_depth=st.just(0)), st.integers(1, 3), splits(8))
def test_decoding_equals_one_pass_in_the_logits_and_gradients_of_the_whole_model(config, batch_size, cuts):
    model, tokens = random_model(config).double(), random_tokens(config, batch_size, 8)
    gates = record_gates(model)
    with Float64():
        whole, in_pieces = logits_and_gradients(model, tokens), logits_and_gradients(model, tokens, cuts)
    leads = [closest_call(gate, scores) for gate, (_, _, scores) in zip(model.gates, gates, strict=False)]
    assume(min(leads, default=1) > 1e-6)  # rounding may flip a closer choice
    assert_close(in_pieces, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [dict(), dict(kv_lora_rank=None, num_key_value_heads=2)], ids=["MLA", "GQA"])
@torch.no_grad()
def test_a_cache_rolled_back_forgets_and_an_overfull_one_stays_as_it_was(kind):
    config = replace(TINY, **kind)
    model, tokens = random_model(config), random_tokens(config, 2, 8)
    cache = model.new_cache(2, 8)
    model(tokens[:, :4], cache)
    model(random_tokens(config, 2, 3, seed=1), cache)
    with pytest.raises(ValueError, match="do not fit"):
        model(tokens[:, :2], cache)
    assert [layer.length for layer in cache] == [7] * 3
    for layer in cache:
        layer.length = 4
    assert_close(model(tokens[:, 4:], cache), model(tokens)[:, 4:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "message"), [((1, 2, 2), "5 positions do not fit"), ((2, 1, 2), "2 sequences")])
def test_rows_that_do_not_fit_are_refused_and_leave_the_cache_as_it_was(rows, message):
    cache = Cache(1, 4, 2, like=torch.zeros(1))
    cache.append(torch.ones(1, 3, 2))
    before = cache.buffer.clone()
    with pytest.raises(ValueError, match=message):
        cache.append(torch.full(rows, 7.0))
    assert cache.length == 3
    assert torch.equal(cache.buffer, before)
