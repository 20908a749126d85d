"""Numbers quoted from reports and price lists, each with its source.

All other numbers of the book are computed from these and from the configurations (presets.py).
"""

import math
from dataclasses import dataclass

from minids.validation import require


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures from one model's report, as printed there.

    `hours_per_trillion` is GPU-hours per trillion tokens of pre-training; the other hours are totals.
    """

    name: str
    source: str
    total: str
    active: str
    tokens: float  # of pre-training
    hours_per_trillion: float | None = None
    extension_hours: float | None = None
    post_training_hours: float | None = None

    @property
    def pre_training_hours(self) -> float | None:
        return self.hours_per_trillion and self.hours_per_trillion * self.tokens / 1e12

    @property
    def gpu_hours(self) -> float | None:
        """GPU-hours of the whole final run, or None if the report does not give them for every stage."""
        stages = (self.pre_training_hours, self.extension_hours, self.post_training_hours)
        return None if None in stages else sum(stages)


REPORTS = {
    "deepseek-llm-7b": Report(
        name="LLM 7B", source="DeepSeek LLM, README; V2 report, table 6", total="6.9B", active="6.9B", tokens=2e12
    ),
    "deepseek-llm-67b": Report(
        name="LLM 67B", source="DeepSeek LLM, README; hours: V2 report, §3.2.3", total="67B", active="67B", tokens=2e12,
        hours_per_trillion=300.6e3,
    ),
    "deepseek-moe-16b": Report(
        name="MoE 16B", source="DeepSeekMoE, §5.1", total="16.4B", active="2.8B", tokens=2e12
    ),
    "deepseek-v2-lite": Report(
        name="V2-Lite", source="V2 report, appendix B", total="15.7B", active="2.4B", tokens=5.7e12
    ),
    "deepseek-v2": Report(
        name="V2", source="V2 report, §3", total="236B", active="21B", tokens=8.1e12, hours_per_trillion=172.8e3
    ),
    "deepseek-v3": Report(
        name="V3", source="V3 report, §4 and table 1", total="671B", active="37B", tokens=14.8e12,
        hours_per_trillion=180e3, extension_hours=119e3, post_training_hours=5e3,
    ),
}  # fmt: skip
DOLLARS_PER_HOUR = 2.0  # of an H800, as the V3 report assumes (table 1)
CLUSTER = 2048  # H800s that trained V3 (§3.1)
H800_BF16_FLOPS = 989.4e12  # dense BF16 operations per second, NVIDIA's data sheet of the H100 SXM; FP8 doubles it
H800_FP32_FLOPS = 67e12  # on the CUDA cores, from the same data sheet
H800_BYTES_PER_SECOND = 3.35e12  # of its memory, the same data sheet


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens of DeepSeek's API, valid from `since` until the next entry (its pricing page)."""

    since: str
    model: str
    cached_input: float
    input: float
    output: float


PRICES = (
    Price("2024-12-26", "V3, launch promotion", 0.014, 0.14, 0.28),
    Price("2025-02-08", "V3", 0.07, 0.27, 1.10),
    Price("2025-09-05", "V3.1", 0.07, 0.56, 1.68),
    Price("2025-09-29", "V3.2-Exp", 0.028, 0.28, 0.42),
)
R1_PRICE = Price("2025-01-20", "R1", 0.14, 0.55, 2.19)
# Dollars per million input and output tokens, from OpenAI's and Anthropic's price lists at the time of the articles.
OTHER_PRICES = {
    "GPT-4o": (2.50, 10.0),
    "GPT-4 Turbo": (10.0, 30.0),
    "Claude 3.5 Sonnet": (3.0, 15.0),
    "o1": (15.0, 60.0),
}

# V3 report, table 6.
BENCHMARKS = {
    "MATH-500": {"V3": 90.2, "GPT-4o": 74.6, "Claude 3.5 Sonnet": 78.3},
    "LiveCodeBench, CoT": {"V3": 40.5, "GPT-4o": 33.4, "Claude 3.5 Sonnet": 36.3},
    "MMLU": {"V3": 88.5, "GPT-4o": 87.2, "Claude 3.5 Sonnet": 88.3},
    "HumanEval-Mul": {"V3": 82.6},
    "SWE-bench Verified": {"V3": 42.0, "Claude 3.5 Sonnet": 50.8},
    "GPQA": {"V3": 59.1, "Claude 3.5 Sonnet": 65.0},
}
R1_GPUS, R1_ZERO_RUN_HOURS, R1_RUN_HOURS, R1_DATA_GPU_HOURS = 512, 198, 80, 5e3  # Nature (2025), supplement
NODE_LINKS, LINK_BYTES_PER_SECOND = 8, 50e9  # InfiniBand, of a node with 8 H800s (V3 report §3.2)
NVLINK_BYTES_PER_SECOND = 160e9  # of a GPU, to the others of its node (V3 report §3.2.2)
FOUR_BIT = 4.5  # bits per weight of common 4-bit files: 64 weights share a scale and an offset of 16 bits
CACHE_BITS_V2 = 6  # of V2 as deployed, on average (V2 report, §3.2.3)

# V2 report, appendix D: dense 7B models after 1.33T tokens that differ in their attention.
ATTENTION_7B = {
    "MQA": {"MMLU": 37.9, "BBH": 33.2, "C-Eval": 30.0, "CMMLU": 34.6},
    "GQA, 8 groups": {"MMLU": 41.2, "BBH": 35.6, "C-Eval": 37.7, "CMMLU": 38.4},
    "MHA": {"MMLU": 45.2, "BBH": 37.0, "C-Eval": 42.9, "CMMLU": 43.5},
}
# V2 report, appendix D: mixtures of experts with MHA and with MLA; thousands of numbers cached per token.
ATTENTION_MOE = {
    "small, MHA": {"cached": 110.6, "MMLU": 48.7, "BBH": 37.9, "C-Eval": 51.6, "CMMLU": 52.3},
    "small, MLA": {"cached": 15.6, "MMLU": 50.0, "BBH": 39.0, "C-Eval": 50.9, "CMMLU": 53.4},
    "large, MHA": {"cached": 860.2, "MMLU": 57.5, "BBH": 46.6, "C-Eval": 57.9, "CMMLU": 60.7},
    "large, MLA": {"cached": 34.6, "MMLU": 59.0, "BBH": 50.7, "C-Eval": 59.2, "CMMLU": 62.5},
}

# "Auxiliary-Loss-Free Load Balancing Strategy for MoE" (Wang et al. 2024), table 2: α = 0.001 against the bias.
LOSS_FREE = {
    "1B": {"loss": {"MaxVio": 0.72, "perplexity": 9.56}, "bias": {"MaxVio": 0.04, "perplexity": 9.50}},
    "3B": {"loss": {"MaxVio": 0.52, "perplexity": 7.97}, "bias": {"MaxVio": 0.04, "perplexity": 7.92}},
}

# V3 report, table 4: models of 15.7B (1.33T tokens) and 228.7B parameters (540B tokens), trained without and with one
# MTP module, which is dropped at inference. Bits per byte on the Pile, and benchmarks.
MTP_ABLATION = {
    "15.7B": {
        "Pile": (0.729, 0.729), "BBH": (39.0, 41.4), "MMLU": (50.0, 53.3), "DROP": (39.2, 41.3),
        "TriviaQA": (56.9, 57.7), "NaturalQuestions": (22.7, 22.3), "HumanEval": (20.7, 26.8), "MBPP": (35.8, 36.8),
        "GSM8K": (25.4, 31.4), "MATH": (10.7, 12.6),
    },
    "228.7B": {
        "Pile": (0.658, 0.657), "BBH": (70.0, 70.7), "MMLU": (67.5, 66.6), "DROP": (68.5, 70.6),
        "TriviaQA": (67.0, 67.3), "NaturalQuestions": (27.2, 28.5), "HumanEval": (44.5, 53.7), "MBPP": (61.6, 62.2),
        "GSM8K": (72.3, 74.0), "MATH": (38.6, 39.8),
    },
}  # fmt: skip
# V3 report, §5.4.3: acceptance of the second token, "across various generation topics", and tokens per second.
MTP_ACCEPTANCE, MTP_SPEED_UP = (0.85, 0.90), 1.8

# DeepSeekMoE, tables 1 and 2, §4.4 and 4.5: loss on the Pile after 100B tokens, and parameters as printed.
# "1 + 7 of 63": one shared expert, 7 chosen of 63 routed ones. "0 + 2 of 16" is GShard, "0 + 1 of 16" the Switch
# Transformer. "× 1.2" and the like have larger experts or layers; "dense × 16" is as wide as all experts together.
DEEPSEEKMOE_2B = {
    "dense": {"total": "0.2B", "active": "0.2B", "loss": 2.060},
    "dense × 4": {"loss": 1.908},
    "dense × 16": {"loss": 1.806},
    "hash layer": {"total": "2.0B", "active": "0.2B", "loss": 1.932},
    "0 + 1 of 16": {"total": "2.0B", "active": "0.2B", "loss": 1.881},
    "0 + 2 of 16": {"total": "2.0B", "active": "0.3B", "loss": 1.867},
    "0 + 2 of 16, × 1.2": {"loss": 1.824},
    "0 + 2 of 16, × 1.5": {"loss": 1.808},
    "1 + 7 of 63": {"total": "2.0B", "active": "0.3B", "loss": 1.808},
    "2 + 6 of 62": {"total": "2.0B", "active": "0.3B", "loss": 1.806},
    "4 + 4 of 60": {"total": "2.0B", "active": "0.3B", "loss": 1.811},
    "1 + 7 of 63, shared one replaced": {"loss": 2.414},
}

# V3 report, §4.2: settings of pre-training that change, over 14.8T tokens in sequences of 4K.
V3_TOKENS, V3_SEQUENCE = REPORTS["deepseek-v3"].tokens, 4096
V3_WARMUP_STEPS, V3_BATCHES, V3_BATCH_GROWTH = 2000, (3072, 15360), 469e9  # steps, sequences, tokens
V3_RATES = (2.2e-4, 2.2e-5, 7.3e-6)  # constant, after the cosine, of the last plateau
V3_RATE_ENDS = (10e12, 14.3e12, 14.633e12)  # tokens: of the constant, of the cosine, of the first plateau (333B long)
V3_BIAS_SPEED, V3_FROZEN = 0.001, 500e9  # γ, and the tokens at the end for which it is 0
V3_MTP_WEIGHTS = (0.3, 0.1)  # λ, until and from the end of the constant learning rate


@dataclass(frozen=True)
class Settings:
    """What changes while V3 is pre-trained."""

    learning_rate: float
    batch_size: float  # sequences
    bias_speed: float  # γ
    mtp_weight: float  # λ


def v3_settings_at(tokens: float) -> Settings:
    """Return V3's settings after so many tokens of pre-training, from 0 to 14.8T (V3 report §4.2).

    The report says that the batch is "gradually increased"; here it grows in proportion to the tokens. The warm-up is
    linear in steps, of which the first are small. Raises ValueError for other numbers of tokens.
    """
    require("tokens", tokens, 0 <= tokens <= V3_TOKENS, f"0 to {V3_TOKENS:g}")
    small, large = V3_BATCHES
    batch = min(large, small + (large - small) * tokens / V3_BATCH_GROWTH)
    # The batch b grows by g = (large - small) / growth a token, a step takes 4096 b tokens: ln(b / small) = 4096 g s.
    steps = math.log(batch / small) * V3_BATCH_GROWTH / (V3_SEQUENCE * (large - small))
    constant_end, cosine_end, plateau_end = V3_RATE_ENDS
    high, low, last = V3_RATES
    if tokens < constant_end:
        rate = high * min(1, steps / V3_WARMUP_STEPS)
    elif tokens < cosine_end:
        done = (tokens - constant_end) / (cosine_end - constant_end)
        rate = low + (high - low) * (1 + math.cos(math.pi * done)) / 2
    else:
        rate = low if tokens < plateau_end else last
    return Settings(
        learning_rate=rate,
        batch_size=batch,
        bias_speed=V3_BIAS_SPEED if tokens < V3_TOKENS - V3_FROZEN else 0.0,
        mtp_weight=V3_MTP_WEIGHTS[int(tokens >= constant_end)],
    )
