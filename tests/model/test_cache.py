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


@examples(20)
@given(configurations(mixture=st.none(), mtp_depth=st.just(0)), st.lists(st.integers(0, 5), min_size=2, max_size=4))
def test_rows_rolled_back_to_different_lengths_go_on_as_each_would_alone(config, lengths):
    model, B = random_model(config).double(), len(lengths)
    start, more = random_tokens(config, B, 5), random_tokens(config, B, 4, seed=1)
    with Float64(), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("minids.model.attention.QUERY_BLOCK", 2)  # so that three tokens are two blocks
        cache = model.new_cache(B, 9)
        model(start, cache)
        for layer in cache:
            layer.length = torch.tensor(lengths)
        together = torch.cat([model(more[:, :1], cache), model(more[:, 1:], cache)], dim=1)
        alone = [model(torch.cat([start[b : b + 1, :n], more[b : b + 1]], dim=1))[:, n:] for b, n in enumerate(lengths)]
    assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)
    assert [layer.length.tolist() for layer in cache] == [[n + 4 for n in lengths]] * len(cache)


def test_where_lengths_differ_the_longest_must_fit():
    cache = Cache(2, 4, 2, like=torch.zeros(1))
    cache.length = torch.tensor([1, 3])
    before = cache.buffer.clone()
    with pytest.raises(ValueError, match="5 positions do not fit"):
        cache.append(torch.ones(2, 2, 2))
    assert torch.equal(cache.buffer, before)
    assert cache.append(torch.full((2, 1, 2), 7.0))[:, :, 0].tolist() == [[0, 7, 0, 0], [0, 0, 0, 7]]
