"""Cached bytes against the published ones and against the memory that real caches occupy."""

from itertools import pairwise

import pytest
import torch
from configurations import configurations, examples, random_model, random_tokens, splits
from hypothesis import given
from hypothesis import strategies as st

from minids import ModelConfig
from minids.cost.cache import attention_kind, kv_cache_bytes, kv_cache_bytes_by_kind, kv_cache_elements
from minids.cost.published import ATTENTION_MOE, CACHE_BITS_V2, REPORTS


@pytest.mark.kills("the latent counts twice")
def test_v3_caches_the_published_70272_bytes():
    assert kv_cache_bytes(ModelConfig.preset("deepseek-v3")) == 70_272


def test_v2_and_v2_lite_cache_the_published_numbers():
    lite, v2, dense = (ModelConfig.preset(f"deepseek-{name}") for name in ("v2-lite", "v2", "llm-67b"))
    cached = {name: row["cached"] for name, row in ATTENTION_MOE.items()}  # in thousands
    assert round(kv_cache_elements(lite) / 1000, 1) == cached["small, MLA"]
    assert round(kv_cache_elements(v2) / 1000, 1) == cached["large, MLA"]
    assert round(1 - kv_cache_bytes(v2, CACHE_BITS_V2 / 8) / kv_cache_bytes(dense), 3) == 0.933


@pytest.mark.parametrize("name", REPORTS)
def test_the_cache_of_a_model_s_own_kind_is_its_own(name):
    config = ModelConfig.preset(name)
    assert kv_cache_bytes_by_kind(config)[attention_kind(config)] == kv_cache_bytes(config)


def test_a_latent_takes_4_and_a_half_head_widths_and_gqa_has_8_groups():
    sizes = kv_cache_bytes_by_kind(ModelConfig.preset("deepseek-llm-7b"))
    assert sizes["MLA"] == 2 * 30 * 4.5 * 128
    assert sizes["MLA"] / sizes["MQA"] == 2.25
    assert sizes["GQA"] / sizes["MQA"] == 8


def bytes_within(thing: object) -> int:
    """The memory behind every tensor that can be reached from an object, also where a view shows part of it."""
    storages, seen, todo = {}, {}, [thing]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, torch.Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict | list | tuple | set):
            todo += thing.values() if isinstance(thing, dict) else thing
        elif hasattr(thing, "__dict__"):
            todo.append(vars(thing))
    return sum(storages.values())


@torch.no_grad()
@examples(40)
@given(configurations(), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(1, 3), splits(6))
def test_decoding_keeps_the_bytes_that_the_formula_counts_and_no_others(config, dtype, batch_size, cuts):
    model, tokens = random_model(config).to(dtype), random_tokens(config, batch_size, 6)
    cache, counted = model.new_cache(batch_size, 6), kv_cache_bytes(config, dtype.itemsize) * batch_size * 6
    without_cache = bytes_within(model)
    for a, b in pairwise(cuts):
        assert bytes_within(cache) == counted
        model(tokens[:, a:b], cache)
        assert bytes_within(model) == without_cache
    assert bytes_within(cache) == counted
