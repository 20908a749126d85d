"""Is a training run healthy? What its log records say, by simple rules that an engineer would apply by eye.

`judge(records, config)` returns what each rule says, under the name of the quantity that shows the defect:

    loss      its running mean is more than a tenth above the lowest one
    experts   one of them got no token in the last 20 steps: it gets no gradient either, and does not learn
    mtp       the MTP loss is far below the next-token loss, although its task is harder: the module sees its target
    gradient  most steps after the warm-up are clipped: the limit is too low for this model, or the training is unstable
    speed     the last steps take more than twice as long as the usual one

A quantity that is missing, such as the load of a dense model, and one of too few steps are not judged: the loss and
the speed need 40 steps, the others 20. No rule proves that a run is right.
"""

from __future__ import annotations

import numpy as np
import torch

from minids.model.balance import dead_experts
from minids.training.config import TrainConfig

LAST = 20  # steps at the end whose load is judged, and the fewest from which anything is
RISEN, LEAKED, CLIPPED, SLOWED = 1.1, 0.8, 0.5, 2.0


def judge(records: list[dict], config: TrainConfig) -> dict[str, str | None]:
    """Return what each rule says of a run with these log records so far, the gravest defect first.

    It is a sentence for a defect, "" where there is none, and None where the rule cannot judge.
    """
    return {
        "loss": _loss(records), "experts": _experts(records), "mtp": _mtp(records),
        "gradient": _gradient(records, config), "speed": _speed(records),
    }  # fmt: skip


def last_load(records: list[dict]) -> np.ndarray:
    """Return the tokens that each expert got in the last 20 steps (layers, experts); of size 0 for a dense model."""
    return np.array([record.get("load", []) for record in records[-LAST:]]).sum(axis=0)


def clipped(records: list[dict], config: TrainConfig) -> float | None:
    """Return the share of the steps after the warm-up whose gradient was clipped; None if there are too few."""
    after = [r for r in records if r["step"] >= config.warmup_steps]
    norms = np.array([r["gradient_norm"] for r in after if "gradient_norm" in r])
    return float((norms > config.clip_norm).mean()) if len(norms) >= LAST else None


def step_seconds(records: list[dict]) -> np.ndarray:
    """Return how long each step took; empty if the records have no times."""
    ends = [record["seconds"] for record in records if "seconds" in record]
    return np.diff([0.0, *ends]) if ends else np.array([])


def _loss(records: list[dict]) -> str | None:
    losses = [r["next_token"] if "next_token" in r else r["loss"] for r in records]
    width = max(LAST, len(losses) // 20)
    if len(losses) < 2 * width:
        return None
    sums = np.cumsum([0.0, *losses])
    means = (sums[width:] - sums[:-width]) / width
    risen = means[-1] / means.min()
    return f"the loss is {risen - 1:.0%} above its lowest" if risen > RISEN else ""


def _experts(records: list[dict]) -> str | None:
    load = last_load(records)
    if len(records) < LAST or not load.any():
        return None
    dead = sum(dead_experts(torch.tensor(layer)) for layer in load if layer.any())
    return f"{dead} of {load.size} experts {'gets' if dead == 1 else 'get'} no token" if dead else ""


def _mtp(records: list[dict]) -> str | None:
    pairs = np.array([(r["mtp"], r["next_token"]) for r in records[-LAST:] if r.get("mtp") and r.get("next_token")])
    if len(pairs) < LAST:
        return None
    mtp, next_token = pairs.mean(axis=0)
    return f"MTP’s loss is {mtp / next_token:.0%} of the next token’s" if mtp < LEAKED * next_token else ""


def _gradient(records: list[dict], config: TrainConfig) -> str | None:
    share = clipped(records, config)
    if share is None:
        return None
    return f"{share:.0%} of the steps are clipped" if share > CLIPPED else ""


def _speed(records: list[dict]) -> str | None:
    seconds = step_seconds(records)
    if len(seconds) < 2 * LAST:
        return None
    slower = float(np.median(seconds[-max(5, len(seconds) // 20) :]) / np.median(seconds))
    return f"steps take {slower:.1f} times as long as before" if slower > SLOWED else ""
