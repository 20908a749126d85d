"""Dense layers, coarse experts, finer experts, with and without a shared one: what the split is worth (chapter 4).

The arms follow figure 3 and table 1 of the DeepSeekMoE report. All MoE arms have the same parameters in all experts and
in the active ones, up to the routers: 16 experts' worth of weights, of which a token uses two. "1 + 7 of 63" has one
shared expert and 63 routed ones of a quarter of the width, of which 7 are chosen. Two dense arms are as wide as the
active, and as all experts together.

- Every MoE arm has V3's gate (sigmoid, normalised weights but for "1 + 1 of 15", bias) and its tiny sequence-wise loss
  (α = 1e-4), and no bias is updated in the last 3.4% of the steps. The report's models have a softmax gate and an
  auxiliary loss. The weights are multiplied by the root of the number K of chosen experts, so that their sum is about
  as large as one expert's output; V3 multiplies by 2.5, with K = 8. In a try with one seed, K instead of its root made
  the finest arm 0.02 bits per byte worse.
- With a single chosen expert a normalised weight is always 1, and the router gets no gradient. So "1 + 1 of 15" has
  weights that are not normalised. The same with normalisation is an arm of its own, as a negative control.
- One learning rate for all arms: of 3e-3, 6e-3 and 1e-2, 6e-3 was best for the dense model, with one seed. For the
  wide dense model 3e-3 made no difference (1.900 bits per byte against 1.901).
- Equal tokens, not equal time: on a CPU the arms take different times, which are recorded.

On trained models of some arms it is also measured what the loss becomes without some of the experts, as in §4.5 of the
report: without each token's best routed experts, without random ones, without the shared one, and with fewer chosen.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

from minids.book.experiments.measures import held_out, last_violation, routed, scores
from minids.book.experiments.pool import Arm, Experiment, start
from minids.book.growing import STAGES
from minids.book.probes.routing import with_top_k, without_best, without_random, without_shared
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.training.config import TrainConfig

TRAIN = TrainConfig(
    steps=800, batch_size=8, sequence_length=128, learning_rate=6e-3, warmup_fraction=0.05, decay_fraction=0.8,
    final_learning_rate_fraction=0, bias_speed=5e-3,
)  # fmt: skip
_BODY = STAGES["+ MLA"]
COARSE, ACTIVE = 16, 2  # experts' worth of weights in all, and used by a token
WIDTH = _BODY.intermediate_size // ACTIVE  # of a coarse expert
LEFT_OUT = (1, 2, 4)  # sixteenths of the routed experts


def _moe(split: int, shared: int, **changes) -> ModelConfig:
    """Return a model with every coarse expert cut into `split` pieces, of which `shared` are shared."""
    chosen = ACTIVE * split - shared
    mixture = dict(
        moe_intermediate_size=WIDTH // split, n_routed_experts=COARSE * split - shared,
        n_shared_experts=shared or None, num_experts_per_tok=chosen, routed_scaling_factor=math.sqrt(chosen),
    )  # fmt: skip
    return replace(_BODY, **mixture | changes)


MODELS = {
    "dense, active": _BODY,
    "dense, total": replace(_BODY, intermediate_size=WIDTH * COARSE),
    "0 + 2 of 16": _moe(1, 0),
    "1 + 1 of 15": _moe(1, 1, norm_topk_prob=False, routed_scaling_factor=2.0),  # a sigmoid's score begins at 1/2
    "1 + 1 of 15, g = 1": _moe(1, 1),
    "1 + 3 of 31": _moe(2, 1),
    "0 + 8 of 64": _moe(4, 0),
    "1 + 7 of 63": _moe(4, 1),
    "2 + 6 of 62": _moe(4, 2),
}
PROBED = ("0 + 2 of 16", "0 + 8 of 64", "1 + 7 of 63")


def run(arm: str, weights: int, data: int) -> dict:
    """Train one arm with one pair of seeds and return what is measured."""
    trained = start(EXPERIMENT.arms[arm], TRAIN, weights, data)
    records = trained.trainer.run()
    model = trained.model.eval()
    result = {"seconds": round(records[-1]["seconds"], 1), "bits_per_byte": scores(model)}
    if model.config.uses_moe:
        result["max_violation"] = last_violation(records)
        result |= routed(model)
    if arm in PROBED:
        result["without"] = without(model)
    return result


def without(model: DeepSeek) -> dict[str, dict[str, float]]:
    """Return held-out bits per byte by domain with some experts left out, or other numbers of them chosen."""
    c, rows = model.config, {domain: rows[::2] for domain, rows in held_out().items()}
    changes = {"as trained": nullcontext()}
    for sixteenths in LEFT_OUT:
        count = sixteenths * COARSE * WIDTH // c.moe_intermediate_size // 16
        changes[f"best {sixteenths}"] = without_best(model, count)
        changes[f"random {sixteenths}"] = without_random(model, count)
    for top_k in sorted({max(1, c.num_experts_per_tok * eighths // 8) for eighths in (1, 2, 4, 6)}):
        if top_k < c.num_experts_per_tok:
            changes[f"top {top_k}"] = with_top_k(model, top_k)
    found = {}
    for name, change in changes.items():
        with change:
            found[name] = scores(model, rows)
    if c.n_shared_experts:
        with without_shared(model):
            found["no shared"] = scores(model, rows)
            with with_top_k(model, c.num_experts_per_tok + 1):
                found["no shared, one more"] = scores(model, rows)
    return found


EXPERIMENT = Experiment("experts", TRAIN, {name: Arm(model) for name, model in MODELS.items()}, run)
