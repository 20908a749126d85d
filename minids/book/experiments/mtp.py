"""With and without multi-token prediction: the main head's loss, the modules' loss, and the acceptance (chapter 6).

One model: MLA, 1 + 5 of 32 experts balanced by V3's bias and small loss. The arms differ in what is predicted beyond
the next token:

    none              nothing
    λ = 0.1, 0.3, 1   one module, its loss weighted by a constant λ
    0.3, then 0.1     one module and V3's schedule: λ falls when the learning rate begins to, after two thirds
    two modules       depth 2, λ = 0.3 shared by both
    afterwards        `none`, and then one module trained with all other weights frozen, on the same text again

What was expected before the runs, and what would refute it: the module learns to draft (acceptance above one half), and
the second module drafts less well than the first. The main head's loss is not expected to become better: in table 4 of
the V3 report the bits per byte on the Pile do not move (0.729 and 0.729; 0.658 and 0.657) while several benchmarks do,
which a miniature cannot measure. It becomes worse with λ = 1 if the body is too small for two tasks (refuted if it is
not separated from `none`). A module trained afterwards drafts less well, because the body was not trained for it.

Acceptance is 1 - total variation on held-out text at temperature 1 (probes/drafts.py), and at temperature 0 how often
the likeliest tokens agree. The modules' loss, `mtp_bits_per_byte`, is of whole rows, the main head's `bits_per_byte` of
their second halves only: the two are not comparable with each other.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from minids.book.experiments.measures import held_out, scores
from minids.book.experiments.pool import Arm, Experiment, start, text
from minids.book.growing import STAGES
from minids.book.probes.drafts import drafts
from minids.model.deepseek import DeepSeek
from minids.training.config import TrainConfig

TRAIN = TrainConfig(
    steps=600, batch_size=8, sequence_length=128, learning_rate=6e-3, warmup_fraction=0.05, decay_fraction=1 / 3,
    final_learning_rate_fraction=0,
)  # fmt: skip
_ONE = replace(STAGES["+ bias"], num_nextn_predict_layers=1)


def _weight(of_all_steps: float) -> dict:
    return {"mtp_weight": of_all_steps, "final_mtp_weight": of_all_steps}


ARMS = {
    "none": Arm(STAGES["+ bias"]),
    **{f"λ = {weight:g}": Arm(_ONE, _weight(weight)) for weight in (0.1, 0.3, 1.0)},
    "0.3, then 0.1": Arm(_ONE),
    "two modules": Arm(replace(_ONE, num_nextn_predict_layers=2), _weight(0.3)),
    "afterwards": Arm(_ONE, _weight(1.0) | {"balance_weight": 0.0, "bias_speed": 0.0}, {"body": "none, frozen"}),
}


def run(arm: str, weights: int, data: int) -> dict:
    """Train one arm with one pair of seeds and return what is measured."""
    if arm == "afterwards":
        body = start(ARMS["none"], TRAIN, weights, data)
        body.trainer.run()
        trained = start(ARMS[arm], TRAIN, weights, data)
        trained.model.load_state_dict(body.model.state_dict(), strict=False)
        for name, parameter in trained.model.named_parameters():
            parameter.requires_grad_(name.startswith("mtp."))
    else:
        trained = start(ARMS[arm], TRAIN, weights, data)
    records = trained.trainer.run()
    model = trained.model.eval()
    result = {"seconds": round(records[-1]["seconds"], 1), "bits_per_byte": scores(model)}
    return result | (of_drafts(model) if model.mtp else {})


@torch.no_grad()
def of_drafts(model: DeepSeek) -> dict:
    """Return for each depth, by domain: acceptance at temperatures 1 and 0, and the module's loss in bits per byte."""
    size_V = torch.tensor([len(b) for b in text()[1].token_bytes()])
    result = {name: [{} for _ in model.mtp] for name in ("acceptance", "agreement", "mtp_bits_per_byte")}
    for domain, rows in held_out().items():
        rows = torch.as_tensor(rows).long()
        sampled, greedy = drafts(model, rows, 1.0), drafts(model, rows, 0.0)
        losses = zip(*(model.token_losses(part).nats[1:] for part in rows.split(16)), strict=True)
        for k, nats in enumerate(map(torch.cat, losses)):
            size = size_V[rows[:, k + 2 :]]
            bits = nats[size > 0].sum() / size.sum() / math.log(2)
            means = sampled[k].acceptance.mean(), greedy[k].acceptance.mean(), bits
            for name, mean in zip(result, means, strict=True):
                result[name][k][domain] = round(mean.item(), 4)
    return result


EXPERIMENT = Experiment("mtp", TRAIN, ARMS, run)
