"""The press, checked: what five articles wrote about DeepSeek, and what the configuration says.

An entry is a few words of an article and a comparison. `stated` and `computed` decide a number: right if the
computed one rounds to what is stated, imprecise if they are within 5%, else wrong. A statement that is
no number is decided by `true`, or by `partly` where it is not: comparisons, all of them. No verdict is written down.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from math import comb

from minids.book.plots.style import VERDICT_MARKS, VERDICTS, readable_on
from minids.cost.accounting import (
    FP8_TILE,
    count_parameters,
    kv_cache_bytes,
    kv_cache_elements,
    released_bytes,
    released_numbers,
)
from minids.cost.published import (
    BENCHMARKS,
    CACHE_BITS_V2,
    DOLLARS_PER_HOUR,
    FOUR_BIT,
    LINK_BYTES_PER_SECOND,
    NODE_LINKS,
    OTHER_PRICES,
    PRICES,
    R1_DATA_GPU_HOURS,
    R1_GPUS,
    R1_PRICE,
    R1_RUN_HOURS,
    R1_ZERO_RUN_HOURS,
    REPORTS,
)
from minids.model.config import ModelConfig

ARTICLES = {
    "gap": "“Briser le fossé de 100 millions”, English and French",
    "script": "an article and its video script, English and Chinese",
    "mac": "on V3-0324 and a Mac Studio, French",
    "history": "a history of the company, English, October 2025",
    "what": "“What Happened”, English",
}
NEARLY = 0.05


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an `article` says (`quote`), and what decides it. `because` explains the verdict, its numbers filled in."""

    article: str
    quote: str
    because: str
    stated: str | None = None  # as printed, so that its last digit tells how exact it means to be
    unit: float = 1
    computed: float | None = None
    true: bool | None = None
    partly: bool = False

    @property
    def verdict(self) -> str:
        """right, imprecise or wrong."""
        if self.true is not None:
            return "right" if self.true else "imprecise" if self.partly else "wrong"
        stated, last_digit = float(self.stated), 10.0 ** Decimal(self.stated).as_tuple().exponent
        found = self.computed / self.unit
        if abs(found - stated) <= last_digit / 2 * (1 + 1e-9):
            return "right"
        return "imprecise" if abs(found - stated) <= NEARLY * abs(found) else "wrong"


def all_claims() -> list[Claim]:
    """Return every claim, in the order of the articles."""
    v3, v2, llm67, moe16 = (ModelConfig.preset(f"deepseek-{n}") for n in ("v3", "v2", "llm-67b", "moe-16b"))
    count, report = count_parameters(v3), REPORTS["deepseek-v3"]
    dollars = report.gpu_hours * DOLLARS_PER_HOUR
    launch, second, latest = PRICES[0], PRICES[1], PRICES[-1]
    stored = sum(released_numbers(v3).values())
    gib = released_bytes(v3) / 2**30
    four_bit = count.total * FOUR_BIT / 8 / 2**30
    cache = kv_cache_elements(v3)
    mha = 2 * v3.num_hidden_layers * v3.num_attention_heads * v3.v_head_dim
    saved_v2 = 1 - kv_cache_elements(v2) * CACHE_BITS_V2 / (kv_cache_elements(llm67) * 16)
    saved_mha = 1 - cache / mha
    moe_layers = v3.num_hidden_layers - v3.first_k_dense_replace
    r1_dollars = (R1_GPUS * (R1_ZERO_RUN_HOURS + R1_RUN_HOURS) + R1_DATA_GPU_HOURS) * DOLLARS_PER_HOUR
    gpt4o, claude, o1 = (OTHER_PRICES[name] for name in ("GPT-4o", "Claude 3.5 Sonnet", "o1"))
    turbo = OTHER_PRICES["GPT-4 Turbo"]
    math500, coding, mmlu = (BENCHMARKS[name] for name in ("MATH-500", "LiveCodeBench, CoT", "MMLU"))
    fp8_share = released_numbers(v3)["F8_E4M3"] / sum(released_numbers(v3).values())
    return [
        Claim(article="gap", quote="roughly $5.6 million in compute credits", stated="5.6", unit=1e6, computed=dollars,
              because=f"${dollars:,.0f}: GPU-hours of the final run at ${DOLLARS_PER_HOUR:.0f} each, nothing else."),
        Claim(article="gap", quote="671-billion parameter", stated="671", unit=1e9, computed=count.total,
              because=f"{count.total:,}."),
        Claim(article="gap", quote="only activates 37 billion per token", stated="37", unit=1e9, computed=count.active,
              because=f"{count.active:,} with the head, without the embedding."),
        Claim(article="gap", quote="reduces the KV cache size by nearly 93%", stated="93", unit=0.01,
              computed=saved_mha, because=f"V3 saves {saved_mha:.1%} of the same shape with full heads. The "
              f"{saved_v2:.1%} are V2's, against a GQA model, with a {CACHE_BITS_V2}-bit cache."),
        Claim(article="gap", quote="finer slices (e.g., 64 routed experts)", stated="64", computed=v3.n_routed_experts,
              because=f"V3 has {v3.n_routed_experts}; {moe16.n_routed_experts} is DeepSeekMoE 16B."),
        Claim(article="gap", quote="Shared experts … always on", true=v3.n_shared_experts > 0,
              because=f"Every mixture has {v3.n_shared_experts} that all tokens use."),
        Claim(article="gap", quote="purely in FP8", true=fp8_share == 1,
              because=f"{fp8_share:.1%} of the released numbers; not embedding, head, gates, norms. And master "
                      "weights are FP32."),
        Claim(article="gap", quote="small 1x16 tiles", stated="16", computed=FP8_TILE,
              because=f"Activations are scaled in tiles of 1×{FP8_TILE}."),
        Claim(article="gap", quote="3.2 terabits per second of interconnect", stated="3.2", unit=1e12,
              computed=NODE_LINKS * LINK_BYTES_PER_SECOND * 8,
              because=f"{NODE_LINKS} InfiniBand links of {LINK_BYTES_PER_SECOND / 1e9:.0f} GB/s in a node. What the "
                      "H800 lost is NVLink."),
        Claim(article="gap", quote="MATH: V3 90.0", stated="90.0", computed=math500["V3"],
              because=f"{math500['V3']} on MATH-500, beside scores of others on all of MATH."),
        Claim(article="gap", quote="LiveCodeBench: V3 40.2, behind GPT-4o and Claude",
              true=coding["V3"] < min(coding["GPT-4o"], coding["Claude 3.5 Sonnet"]),
              because=f"{coding['V3']} against {coding['GPT-4o']} and {coding['Claude 3.5 Sonnet']}: the reverse."),
        Claim(article="gap", quote="MMLU: 88.5", stated="88.5", computed=mmlu["V3"], because="Table 6 of the report."),
        Claim(article="gap", quote="MMLU: GPT-4o 88.7", stated="88.7", computed=mmlu["GPT-4o"],
              because=f"The report measures {mmlu['GPT-4o']} for the version it compares with."),
        Claim(article="gap", quote="17x price difference", stated="17", computed=gpt4o[0] / launch.input,
              because=f"{gpt4o[0]} / {launch.input} = {gpt4o[0] / launch.input:.1f}, at a promotional price; then "
                      f"{gpt4o[0] / second.input:.1f}."),
        Claim(article="script", quote="2.78 million H800 GPU-hours", stated="2.78", unit=1e6, computed=report.gpu_hours,
              because=f"{report.gpu_hours:,.0f}: rounded down."),
        Claim(article="script", quote="$5.57 million", stated="5.57", unit=1e6, computed=dollars,
              because=f"${dollars:,.0f}: rounded down."),
        Claim(article="script", quote="API pricing is approximately $0.028", stated="0.028", computed=second.input,
              because=f"Input cost ${launch.input}, then ${second.input}. V3.2-Exp’s, cached, cost that."),
        Claim(article="script", quote="FFN layers are replaced with MoE layers",
              true=all(v3.is_moe_layer(i) for i in range(v3.num_hidden_layers)), partly=moe_layers > 0,
              because=f"{moe_layers} of {v3.num_hidden_layers}; the first {v3.first_k_dense_replace} stay dense."),
        Claim(article="script", quote="256 expert modules … routed to 8",
              true=(v3.n_routed_experts, v3.num_experts_per_tok) == (256, 8),
              because="In each mixture, beside a shared one."),
        Claim(article="script", quote="bias terms before the softmax", true=v3.scoring_func == "softmax",
              because=f"V3's gate is a {v3.scoring_func}; the bias is an expert's and only chooses."),
        Claim(article="script", quote="predicting the next N tokens", true=v3.num_nextn_predict_layers > 1,
              partly=v3.num_nextn_predict_layers == 1,
              because=f"{v3.num_nextn_predict_layers} module: {1 + v3.num_nextn_predict_layers} tokens in all."),
        Claim(article="script", quote="107x cheaper than Claude Sonnet", stated="107",
              computed=claude[0] / latest.input,
              because=f"{claude[0] / latest.cached_input:.0f}× divides a full price by a cached one. Like for like: "
                      f"{claude[0] / latest.input:.0f}×."),
        Claim(article="script", quote="357x cheaper than GPT-4", stated="357", computed=turbo[0] / latest.input,
              because=f"The same with GPT-4 Turbo’s price; like for like {turbo[0] / latest.input:.0f}×."),
        Claim(article="script", quote="nearly twenty times larger", stated="2e1", computed=count.total / count.active,
              because=f"Total over active is {count.total / count.active:.1f}."),
        Claim(article="script", quote="a layer of shared experts", true=v3.n_shared_experts == 1 and moe_layers == 1,
              partly=v3.n_shared_experts >= 1, because=f"One shared expert in each of {moe_layers} layers."),
        Claim(article="script", quote="671 億參數", stated="671", unit=1e8, computed=count.total,
              because=f"億 is a hundred million: {count.total / 1e8:,.0f} 億."),
        Claim(article="script", quote="37 億", stated="37", unit=1e8, computed=count.active,
              because=f"{count.active / 1e8:,.0f} 億: off by ten again."),
        Claim(article="mac", quote="685 milliards de paramètres", stated="685", unit=1e9, computed=stored,
              because=f"So many are stored, with MTP, copies and scales. The model has {count.total / 1e9:.0f}."),
        Claim(article="mac", quote="taille de 641 Go", stated="641", unit=2**30, computed=released_bytes(v3),
              because=f"{gib:.1f} GiB, which are {released_bytes(v3) / 1e9:.1f} GB."),
        Claim(article="mac", quote="352 Go en 4 bits", stated="352", unit=2**30, computed=count.total * FOUR_BIT / 8,
              because=f"{four_bit:.1f} GiB: with a scale and an offset for every 64 weights, {FOUR_BIT} bits each."),
        Claim(article="mac", quote="6 millions de dollars", stated="6", unit=1e6, computed=dollars,
              because=f"${dollars:,.0f}, for V3; V3-0324's own training is not published."),
        Claim(article="mac", quote="l’API à 0,27 dollar par million", stated="0.27", computed=second.input,
              because="The list price of input that is not cached, from February 2025."),
        Claim(article="history", quote="2.664 M GPU hours of pre-training", stated="2.664", unit=1e6,
              computed=report.pre_training_hours,
              because=f"{report.hours_per_trillion:,.0f} hours for each of {report.tokens / 1e12} trillion tokens."),
        Claim(article="history", quote="then refined with a further 0.1 M", stated="0.1", unit=1e6,
              computed=report.extension_hours + report.post_training_hours,
              because=f"{report.extension_hours + report.post_training_hours:,.0f} for context and post-training."),
        Claim(article="history", quote="around 5.5 million USD", stated="5.5", unit=1e6, computed=dollars,
              because=f"${dollars:,.0f} rounds to 5.6."),
        Claim(article="history", quote="R1 training ≈ 6 M USD", true=round(r1_dollars / 1e6) == 6,
              partly=round((dollars + r1_dollars) / 1e6) == 6,
              because=f"R1's own runs: ${r1_dollars:,.0f}. With V3, on which it was built: "
                      f"${dollars + r1_dollars:,.0f}."),
        Claim(article="history", quote="dozens of neural networks", true=24 <= v3.n_routed_experts < 100,
              partly=v3.n_routed_experts >= 100,
              because=f"{v3.n_routed_experts} in each of {moe_layers} layers: {v3.n_routed_experts * moe_layers:,}."),
        Claim(article="history", quote="R1 around 50 times less than o1", stated="50", computed=o1[0] / R1_PRICE.input,
              because=f"{o1[0]} / {R1_PRICE.input} = {o1[0] / R1_PRICE.input:.1f}."),
        Claim(article="history", quote="reduce their AI costs by 98%", stated="2", unit=0.01,
              computed=launch.input / gpt4o[0],
              because=f"What is left is not 2%: of input {launch.input / gpt4o[0]:.1%}, of output "
                      f"{launch.output / gpt4o[1]:.1%}."),
        Claim(article="history", quote="2.78 M H800 [hours]", stated="2.78", unit=1e6, computed=report.gpu_hours,
              because=f"{report.gpu_hours:,.0f}: rounded down."),
        Claim(article="what", quote="MATH benchmark: 91.2%", stated="91.2", computed=math500["V3"],
              because=f"{math500['V3']} on MATH-500."),
        Claim(article="what", quote="HumanEval: 93.1%", stated="93.1", computed=BENCHMARKS["HumanEval-Mul"]["V3"],
              because=f"{BENCHMARKS['HumanEval-Mul']['V3']} on the version that the report uses, HumanEval-Mul."),
        Claim(article="what", quote="under $6 million", true=dollars < 6e6, because=f"${dollars:,.0f}."),
        Claim(article="what", quote="reduces memory usage … by 40%", stated="40", unit=0.01, computed=saved_mha,
              because=f"The cache falls by {saved_mha:.1%}, from {mha * 2 * 2**17 / 2**30:.0f} to "
                      f"{kv_cache_bytes(v3) * 2**17 / 2**30:.1f} GiB at 128K tokens; the weights stay."),
        Claim(article="what", quote="V3 at $0.50 / $1.50",
              true=(0.50, 1.50) in {(price.input, price.output) for price in PRICES},
              because=f"The list had {', '.join(f'{price.input}/{price.output}' for price in PRICES)}."),
        Claim(article="what", quote="256 total, 8 active … 14.8T",
              true=(v3.n_routed_experts, v3.num_experts_per_tok, report.tokens) == (256, 8, 14.8e12),
              because=f"And one shared. {comb(256, 8):,} choices of 8."),
    ]  # fmt: skip


def claims(article: str | None = None, verdict: str | None = None) -> Claims:
    """Return the claims for a notebook to show, all of them or those of an article or with a verdict.

    Raises ValueError for an article or a verdict that there is not.
    """
    found = all_claims()
    for kind, asked, known in (
        ("article", article, list(ARTICLES)),
        ("verdict", verdict, list(VERDICTS)),
    ):
        if asked is not None and asked not in known:
            raise ValueError(f"There is no {kind} {asked!r}: there are {', '.join(known)}.")
    return Claims(c for c in found if article in (None, c.article) and verdict in (None, c.verdict))


class Claims(list[Claim]):
    """Claims as a table, coloured by verdict."""

    def __init__(self, found: Iterable[Claim]):
        super().__init__(found)

    def __repr__(self) -> str:
        return "\n".join(f"{VERDICT_MARKS[c.verdict]} {c.verdict:<9}  {c.quote}  |  {c.because}" for c in self)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="background:{VERDICTS[c.verdict]};color:{readable_on(VERDICTS[c.verdict])};'
            f'white-space:nowrap">{VERDICT_MARKS[c.verdict]} {c.verdict}</td>'
            f'<td style="text-align:left">“{escape(c.quote)}”</td><td style="text-align:left">{escape(c.because)}</td>'
            f"<td>{c.article}</td></tr>"
            for c in self
        )
        names = ("verdict", "the words", "what the numbers say", "article")
        head = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
