"""What each part of the model is worth: one part left out or replaced, all else equal (chapter 10).

The full model has V3's parts: MLA (without a latent of the queries), in each of three layers a shared and 63 routed
experts of which a token chooses 7, balanced by a bias and V3's small loss, and one MTP module. It has no dense layer
and no groups of experts, and its products are in FP32. An arm differs from it in one part:

    MHA, GQA                 ordinary attention instead of MLA, with 4 or 2 heads of keys and values
    coarse experts           2 of 16 experts of four times the width, none of them shared
    no shared expert         8 of 64 routed ones
    no balancing             neither bias nor loss
    auxiliary loss           of α = 0.01, instead of the bias
    BF16, FP8                the matrix products
    dense, active            layers as wide as the experts that a token uses, dense, total: as wide as all of them
    …, equal time            `dense, active` and `no MTP`, with as many more steps as they train faster
    full, 200 steps          a quarter of the steps, for the reader's own changes (minids/book/ablation.py)

`no MTP` is an arm of the experiment of chapter 4 ("1 + 7 of 63"), which had the same recipe, text and seeds, and is not
trained again. (It was recorded on another processor, which is one more source of noise.)

What was expected before the runs: coarse experts and no shared expert cost a little, as in chapter 4; MHA is no worse
than MLA (chapter 3); none of balancing, FP8 and BF16 is separated from the full model in held-out loss (chapters 5 and
7), but without balancing MaxVio is several times as large; MTP gains or loses less than the noise (chapter 6); the
dense model of the active size is behind at equal tokens, and ahead at equal time, because many small experts are slow
on a CPU. An arm that is separated otherwise refutes its line. `no MTP, equal time` was added when the others were
known.

How long a step takes and how much memory it needs cannot be measured while other runs are going: costs.py does.
"""

from __future__ import annotations

from dataclasses import replace

from minids.book.experiments import experts
from minids.book.experiments.measures import held_out, last_violation, scores
from minids.book.experiments.pool import Arm, Experiment, start
from minids.book.probes.drafts import drafts
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek

TRAIN = experts.TRAIN
FULL = replace(experts.MODELS["1 + 7 of 63"], num_nextn_predict_layers=1)
FASTER = {"dense, active": 1.31, "no MTP": 1.48}  # steps in the time of one of the full model (costs.py)


def like(name: str) -> ModelConfig:
    """Return a model of chapter 4's experiment with the MTP module of the full model."""
    return replace(experts.MODELS[name], num_nextn_predict_layers=1)


def with_heads(kv_heads: int) -> ModelConfig:
    """Return the full model with ordinary attention: heads of 32, of which groups share keys and values."""
    return replace(FULL, kv_lora_rank=None, num_key_value_heads=kv_heads, head_dim=32)


ARMS = {
    "full": Arm(FULL),
    "MHA": Arm(with_heads(4)),
    "GQA": Arm(with_heads(2)),
    "coarse experts": Arm(like("0 + 2 of 16")),
    "no shared expert": Arm(like("0 + 8 of 64")),
    "no balancing": Arm(replace(FULL, topk_method="greedy"), {"bias_speed": 0.0, "balance_weight": 0.0}),
    "auxiliary loss": Arm(replace(FULL, topk_method="greedy"), {"bias_speed": 0.0, "balance_weight": 1e-2}),
    "BF16": Arm(FULL, {"dtype": "bfloat16"}),
    "FP8": Arm(FULL, {"dtype": "fp8", "fp8_block": 32}),
    "dense, active": Arm(like("dense, active")),
    "dense, total": Arm(like("dense, total")),
    "dense, equal time": Arm(like("dense, active"), {"steps": round(TRAIN.steps * FASTER["dense, active"])}),
    "no MTP, equal time": Arm(experts.MODELS["1 + 7 of 63"], {"steps": round(TRAIN.steps * FASTER["no MTP"])}),
    "full, 200 steps": Arm(FULL, {"steps": 200}),
}


def run(arm: str, weights: int, data: int) -> dict:
    """Train one arm with one pair of seeds and return what is measured."""
    return measure(ARMS[arm], weights, data)


def measure(arm: Arm, weights: int, data: int) -> dict:
    """Train any arm with a pair of seeds; return its seconds, held-out bits per byte, MaxVio and accepted drafts."""
    trained = start(arm, TRAIN, weights, data)
    records = trained.trainer.run()
    model = trained.model.eval()
    result = {"seconds": round(records[-1]["seconds"], 1), "bits_per_byte": scores(model)}
    if model.config.uses_moe:
        result["max_violation"] = last_violation(records)
    if model.mtp:
        result["acceptance"] = round(accepted(model), 4)
    return result


def accepted(model: DeepSeek) -> float:
    """Return how often the first module's likeliest token is the main head's, mean over held-out prose and code."""
    shares = [drafts(model, rows, temperature=0)[0].acceptance.mean().item() for rows in held_out().values()]
    return sum(shares) / len(shares)


EXPERIMENT = Experiment("ablation", TRAIN, ARMS, run)
