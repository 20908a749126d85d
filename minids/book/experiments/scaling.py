"""Loss against compute: four sizes of a dense model and of a mixture of experts (chapter 10).

Each size reads one token per active parameter, so compute grows with the square of the size, from the smallest to the
largest by a factor of 79. (Hoffmann et al. 2022 found 20 tokens per parameter best for large models; that would take
hours here.) The mixture has as many parameters active as its dense twin, up to the router, and 1.3 to 2.2 times as
many in all: after the first layer one shared and 31 routed experts, of which 7 are chosen, balanced by V3's small loss
alone. The recipe is the same for all but the number of steps, and the learning rate, which falls with the width as
1 / width.

What was expected before the runs: in a log-log plot the loss falls nearly on a line for either kind; the mixture is
below its dense twin, by more at larger sizes. Refuted if no size separates the two.
"""

from __future__ import annotations

import math
from dataclasses import replace

from minids.book.experiments.measures import LENGTH, scores
from minids.book.experiments.pool import Arm, Experiment, start
from minids.book.growing import STAGES
from minids.cost.parameters import count_parameters
from minids.model.config import ModelConfig
from minids.training.config import TrainConfig

TRAIN = TrainConfig(
    steps=800, batch_size=8, sequence_length=LENGTH, learning_rate=6e-3, warmup_fraction=0.05, decay_fraction=0.8,
    final_learning_rate_fraction=0,
)  # fmt: skip
WIDTH = 128  # of the learning rate above
SIZES = {"S": (64, 2), "M": (96, 3), "L": (128, 4), "XL": (192, 4)}  # width, layers
KINDS = ("dense", "MoE")
CHOSEN = 7


def model_of(kind: str, size: str) -> ModelConfig:
    """Return the model of a kind and size."""
    width, layers = SIZES[size]
    dense = replace(
        STAGES["+ MLA"], hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32,
        intermediate_size=3 * width,
    )  # fmt: skip
    if kind == "dense":
        return dense
    return replace(
        dense, first_k_dense_replace=1, moe_intermediate_size=3 * width // (1 + CHOSEN), n_routed_experts=31,
        n_shared_experts=1, num_experts_per_tok=CHOSEN, routed_scaling_factor=math.sqrt(CHOSEN),
    )  # fmt: skip


def arm_of(kind: str, size: str) -> Arm:
    """Return the arm: both kinds of a size read as many tokens as the dense model has active parameters."""
    tokens = count_parameters(model_of("dense", size)).active
    steps = round(tokens / (TRAIN.batch_size * TRAIN.sequence_length))
    model = model_of(kind, size)
    return Arm(model, {"steps": steps, "learning_rate": TRAIN.learning_rate * WIDTH / model.hidden_size})


ARMS = {f"{kind} {size}": arm_of(kind, size) for size in SIZES for kind in KINDS}


def run(arm: str, weights: int, data: int) -> dict:
    """Train one arm with one pair of seeds and return its seconds and held-out bits per byte."""
    trained = start(ARMS[arm], TRAIN, weights, data)
    records = trained.trainer.run()
    return {"seconds": round(records[-1]["seconds"], 1), "bits_per_byte": scores(trained.model.eval())}


EXPERIMENT = Experiment("scaling", TRAIN, ARMS, run, seeds=(0, 1, 2), crossed=False)
