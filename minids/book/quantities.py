"""What the press is compared with: quantities by name.

A claim of figures/data/claims.json names them; `claims.py` judges it. `computed` returns what follows from
configurations, or by arithmetic from the hours, links and bits that reports print. `quoted` returns prices and
benchmark scores, which no code can compute: it can only repeat what a list prints.
"""

from __future__ import annotations

from math import comb

from minids.cost import published
from minids.cost.cache import kv_cache_bytes, kv_cache_elements
from minids.cost.parameters import FP8_TILE, count_parameters, released_bytes, released_numbers
from minids.cost.published import (
    BENCHMARKS,
    CACHE_BITS_V2,
    DOLLARS_PER_HOUR,
    FOUR_BIT,
    NODE_LINKS,
    OTHER_PRICES,
    PRICES,
)
from minids.model.config import ModelConfig
from minids.units import GIB


class Quantities(dict[str, object]):
    """What claims are compared with, by name. Raises ValueError for a name that there is not."""

    def __missing__(self, name: str) -> object:
        raise ValueError(f"there is no quantity {name!r}, only {', '.join(self)}")


def quantities() -> Quantities:
    """Return every quantity that a claim may name."""
    return Quantities(**computed(), **quoted())


def computed() -> dict[str, object]:
    """Compute what follows from configurations and from a report's GPU-hours."""
    v3, v2, llm67, moe16 = (ModelConfig.preset(f"deepseek-{n}") for n in ("v3", "v2", "llm-67b", "moe-16b"))
    count, report, released = count_parameters(v3), published.REPORTS["deepseek-v3"], released_numbers(v3)
    stored, file_bytes, four_bit_bytes = sum(released.values()), released_bytes(v3), count.total * FOUR_BIT / 8
    moe_layers = sum(v3.is_moe_layer(i) for i in range(v3.num_hidden_layers))
    full_heads = 2 * v3.num_hidden_layers * v3.num_attention_heads * v3.v_head_dim  # numbers cached with MHA
    dollars = report.gpu_hours * DOLLARS_PER_HOUR
    r1_hours = published.R1_GPUS * (published.R1_ZERO_RUN_HOURS + published.R1_RUN_HOURS) + published.R1_DATA_GPU_HOURS
    r1_dollars, link_bytes = r1_hours * DOLLARS_PER_HOUR, published.LINK_BYTES_PER_SECOND
    return dict(
        # Parameters
        total=count.total, active=count.active, total_over_active=count.total / count.active,
        total_in_billions=count.total / 1e9, total_in_hundred_millions=count.total / 1e8,
        active_in_hundred_millions=count.active / 1e8, layers=v3.num_hidden_layers, moe_layers=moe_layers,
        dense_layers=v3.num_hidden_layers - moe_layers, routed_experts=v3.n_routed_experts,
        routed_experts_of_moe_16b=moe16.n_routed_experts, routed_experts_in_all_layers=v3.n_routed_experts * moe_layers,
        shared_experts=v3.n_shared_experts, chosen_experts=v3.num_experts_per_tok,
        choices=comb(v3.n_routed_experts, v3.num_experts_per_tok), scoring=v3.scoring_func,
        mtp_modules=v3.num_nextn_predict_layers, predicted_tokens=1 + v3.num_nextn_predict_layers,
        # The released files, and the model with 4 bits per weight
        stored=stored, fp8_share=released["F8_E4M3"] / stored, fp8_tile=FP8_TILE, released_bytes=file_bytes,
        released_in_gib=file_bytes / GIB, released_in_gb=file_bytes / 1e9,
        four_bit=FOUR_BIT, four_bit_bytes=four_bit_bytes, four_bit_in_gib=four_bit_bytes / GIB,
        # The cache
        saved=1 - kv_cache_elements(v3) / full_heads, cache_bits_of_v2=CACHE_BITS_V2,
        saved_by_v2=1 - kv_cache_elements(v2) * CACHE_BITS_V2 / (kv_cache_elements(llm67) * 16),
        cache_in_gib=kv_cache_bytes(v3) * 2**17 / GIB, full_heads_in_gib=full_heads * 2 * 2**17 / GIB,
        # Training
        tokens=report.tokens, trillion_tokens=report.tokens / 1e12, hours_per_trillion=report.hours_per_trillion,
        pre_training_hours=report.pre_training_hours, later_hours=report.extension_hours + report.post_training_hours,
        gpu_hours=report.gpu_hours, dollars_per_hour=DOLLARS_PER_HOUR, dollars=dollars,
        r1_dollars=r1_dollars, v3_and_r1_dollars=dollars + r1_dollars,
        links=NODE_LINKS, link_in_gb=link_bytes / 1e9, bits_per_second_of_links=NODE_LINKS * link_bytes * 8,
    )  # fmt: skip


def quoted() -> dict[str, object]:
    """Return prices and benchmark scores as price lists and the V3 report print them, and ratios of prices."""
    (launch, second, *_, latest), r1 = PRICES, published.R1_PRICE
    gpt4o, turbo, claude, o1 = (OTHER_PRICES[n][0] for n in ("GPT-4o", "GPT-4 Turbo", "Claude 3.5 Sonnet", "o1"))
    coding = BENCHMARKS["LiveCodeBench, CoT"]
    return dict(
        # Prices; of input, unless the name says output
        launch_price=launch.input, second_price=second.input, r1_price=r1.input, gpt4o_price=gpt4o, o1_price=o1,
        prices=[(price.input, price.output) for price in PRICES],
        price_list=", ".join(f"{price.input}/{price.output}" for price in PRICES),
        gpt4o_over_launch=gpt4o / launch.input, gpt4o_over_second=gpt4o / second.input, o1_over_r1=o1 / r1.input,
        claude_over_latest=claude / latest.input, claude_over_cached=claude / latest.cached_input,
        turbo_over_latest=turbo / latest.input, saved_on_input=1 - launch.input / gpt4o,
        saved_on_output=1 - launch.output / OTHER_PRICES["GPT-4o"][1],
        # Benchmarks, as the V3 report prints them
        math500=BENCHMARKS["MATH-500"]["V3"], humaneval=BENCHMARKS["HumanEval-Mul"]["V3"],
        mmlu=BENCHMARKS["MMLU"]["V3"], mmlu_of_gpt4o=BENCHMARKS["MMLU"]["GPT-4o"],
        coding=coding["V3"], coding_of_gpt4o=coding["GPT-4o"], coding_of_claude=coding["Claude 3.5 Sonnet"],
    )  # fmt: skip
