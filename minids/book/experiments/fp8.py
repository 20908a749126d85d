"""Training in FP8 beside FP32 and BF16, with one part of the recipe changed at a time (chapter 7).

One model: MLA, 1 + 5 of 32 experts, one MTP module. Tiles are of 32 numbers, so that a token's 128 channels have four
of them (V3: 7,168 channels, 56 tiles of 128). All arms of one seed begin with the same weights and read the same text:

    FP32, FP32 again       the second begins with weights changed by one part in 10^7: what chance alone does
    BF16                   autocast
    FP8                    V3's recipe
    tiles of 128           one tile is a whole token
    powers of two          scales of 8 bits, as V3.1
    one scale              for each whole tensor, in all three products
    floor of 1e-4          the least amax of activations, for gradients, too: nearly all of their tiles share a scale
    E5M2                   for all tensors
    E5M2 gradients         for dy only, which was usual before V3
    blocks of gradients    dy in blocks of 32 x 32 in Dgrad, with which a 16B model diverged (report, appendix B.2)
    tiles across tokens    Wgrad's operands in tiles along the channels, which no hardware could multiply
    14 bits                a register of 14 bits, never promoted
    8 bits                 one of 8 bits, never promoted, and
    8 bits, promoted       every 32 products
    FP4                    E2M1 instead of E4M3 everywhere
    FP4, floor of 1e-4     the same, with that floor (an arm added after the first results)

What was expected before the runs, and what would refute it: FP8 is not separated from FP32 (refuted if the differences
of all seeds have one sign and are larger than those of FP32 again), its loss stays within 0.25% of FP32's as in the
report, and E5M2 and 8 bits without promotion are worse. One scale, blocks of gradients and tiles across tokens are not
expected to differ: a model of 4 layers in its first 240 steps has no outliers, and the report's model with blocks
diverged after 300B tokens. Nor is the floor, as long as the batch is small. FP4 without further measures is clearly
worse.

`history` is the training loss (next token, nats) of each step.
"""

from __future__ import annotations

import torch

from minids.book.experiments.measures import scores
from minids.book.experiments.pool import Arm, Experiment, start
from minids.book.growing import STAGES
from minids.quantization.accumulate import Register
from minids.quantization.formats import E2M1, E5M2
from minids.quantization.products import Recipe, use_fp8
from minids.training.config import TrainConfig

BLOCK = 32
TRAIN = TrainConfig(
    steps=240, batch_size=8, sequence_length=128, learning_rate=6e-3, warmup_fraction=0.05, decay_fraction=0.5,
    final_learning_rate_fraction=0, fp8_block=BLOCK,
)  # fmt: skip
RECIPES = {
    "FP8": Recipe.of_block(BLOCK),
    "tiles of 128": Recipe.of_block(128),
    "powers of two": Recipe.of_block(BLOCK, power_of_two_scales=True),
    "one scale": Recipe(inputs=None, weights=None, gradients=None, over_tokens=None),
    "floor of 1e-4": Recipe.of_block(BLOCK, gradient_floor=1e-4),
    "E5M2": Recipe.of_block(BLOCK, format=E5M2, gradient_format=E5M2, after_attention=None),
    "E5M2 gradients": Recipe.of_block(BLOCK, gradient_format=E5M2),
    "blocks of gradients": Recipe.of_block(BLOCK, gradients=(BLOCK, BLOCK)),
    "tiles across tokens": Recipe.of_block(BLOCK, over_tokens=(1, BLOCK)),
    "14 bits": Recipe.of_block(BLOCK, register=Register(promote=None)),
    "8 bits": Recipe.of_block(BLOCK, register=Register(bits=8, promote=None)),
    "8 bits, promoted": Recipe.of_block(BLOCK, register=Register(bits=8, promote=BLOCK)),
    "FP4": Recipe.of_block(BLOCK, format=E2M1, gradient_format=E2M1, after_attention=None),
    "FP4, floor of 1e-4": Recipe.of_block(
        BLOCK, format=E2M1, gradient_format=E2M1, gradient_floor=1e-4, after_attention=None
    ),
}
_MODEL = STAGES["+ MTP"]
ARMS = {
    "FP32": Arm(_MODEL),
    "FP32 again": Arm(_MODEL, extra={"weights": "changed by one part in 10^7"}),
    "BF16": Arm(_MODEL, {"dtype": "bfloat16"}),
    **{name: Arm(_MODEL, {"dtype": "fp8"}, {"recipe": repr(recipe)}) for name, recipe in RECIPES.items()},
}


def run(arm: str, weights: int, data: int) -> dict:
    """Train one arm with one pair of seeds and return what is measured."""
    trained = start(ARMS[arm], TRAIN, weights, data)
    if arm in RECIPES:
        use_fp8(trained.model, RECIPES[arm])
    if arm == "FP32 again":
        with torch.no_grad():
            for parameter in trained.model.parameters():
                parameter.mul_(1 + 1e-7)
    records = trained.trainer.run()
    return {
        "seconds": round(records[-1]["seconds"], 1),
        "history": [round(record["next_token"], 4) for record in records],
        "bits_per_byte": scores(trained.model.eval()),
    }


EXPERIMENT = Experiment("fp8", TRAIN, ARMS, run, seeds=(0, 1, 2), crossed=False)
