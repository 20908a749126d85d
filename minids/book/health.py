"""Is a training run healthy? What its log records say, by simple rules that an engineer would apply by eye.

`defects(records, config)` returns a sentence for each defect, under the name of the quantity that shows it:

    loss      its running mean is more than a tenth above the lowest one
    experts   one of them got no token in the last 20 steps: it gets no gradient either, and does not learn
    mtp       the MTP loss is far below the next-token loss, although its task is harder: the module sees its target
    gradient  most steps after the warm-up are clipped: the learning rate is then no longer what sets the step's size
    speed     the last steps take more than twice as long as the usual one

No rule proves that a run is right; a missing quantity, such as the load of a dense model, is not judged.
"""

from __future__ import annotations

import numpy as np
import torch

from minids.model.balance import dead_experts
from minids.training.config import TrainConfig

LAST = 20  # steps at the end whose load is judged, and the fewest from which anything else is
RISEN, LEAKED, CLIPPED, SLOWED = 1.1, 0.8, 0.5, 2.0


def defects(records: list[dict], config: TrainConfig) -> dict[str, str]:
    """Return a sentence for each defect of a run with these log records so far, the gravest first; {} if healthy."""
    found = {
        "loss": _loss(records), "experts": _experts(records), "mtp": _mtp(records),
        "gradient": _gradient(records, config), "speed": _speed(records),
    }  # fmt: skip
    return {name: sentence for name, sentence in found.items() if sentence}


def last_load(records: list[dict]) -> np.ndarray:
    """Return the tokens that each expert got in the last 20 steps (layers, experts); of size 0 for a dense model."""
    return np.array([record.get("load", []) for record in records[-LAST:]]).sum(axis=0)


def clipped(records: list[dict], config: TrainConfig) -> float | None:
    """Return the share of the steps after the warm-up whose gradient was clipped; None if there are too few."""
    warmup = round(config.warmup_fraction * config.steps)
    norms = np.array([r["gradient_norm"] for r in records if r["step"] >= warmup and "gradient_norm" in r])
    return float((norms > config.clip_norm).mean()) if len(norms) >= LAST else None


def step_seconds(records: list[dict]) -> np.ndarray:
    """Return how long each step took; empty if the records have no times."""
    ends = [record["seconds"] for record in records if "seconds" in record]
    return np.diff([0.0, *ends]) if ends else np.array([])


def _loss(records: list[dict]) -> str | None:
    losses = np.array([r.get("next_token", r.get("loss", np.nan)) for r in records], dtype=float)
    width = max(LAST, len(losses) // 20)
    if len(losses) < 2 * width or not np.isfinite(losses).all():
        return None
    sums = np.cumsum([0.0, *losses])
    means = (sums[width:] - sums[:-width]) / width
    risen = means[-1] / means.min()
    return f"the loss is {risen - 1:.0%} above its lowest" if risen > RISEN else None


def _experts(records: list[dict]) -> str | None:
    if len(records) < LAST:
        return None
    load = last_load(records)
    dead = sum(dead_experts(torch.tensor(layer)) for layer in load if layer.any())
    return f"{dead} of {load.size} experts {'gets' if dead == 1 else 'get'} no token" if dead else None


def _mtp(records: list[dict]) -> str | None:
    pairs = np.array([(r["mtp"], r["next_token"]) for r in records[-LAST:] if r.get("mtp") and r.get("next_token")])
    if len(pairs) < LAST:
        return None
    mtp, next_token = pairs.mean(axis=0)
    return f"MTP’s loss is {mtp / next_token:.0%} of the next token’s" if mtp < LEAKED * next_token else None


def _gradient(records: list[dict], config: TrainConfig) -> str | None:
    share = clipped(records, config)
    return f"{share:.0%} of the steps are clipped" if share is not None and share > CLIPPED else None


def _speed(records: list[dict]) -> str | None:
    seconds = step_seconds(records)
    if len(seconds) < 2 * LAST:
        return None
    slower = float(np.median(seconds[-max(5, len(seconds) // 20) :]) / np.median(seconds))
    return f"steps take {slower:.1f} times as long as before" if slower > SLOWED else None
