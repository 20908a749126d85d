"""What the pooled experiments measure on a trained model: held-out scores, and where the tokens are routed."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from minids.book.experiments.pool import DOMAINS, text
from minids.book.probes.routing import chosen_experts, groups_touched, information_and_control, loads
from minids.model.balance import max_violation
from minids.model.deepseek import DeepSeek
from minids.text.batches import encode_split
from minids.text.corpus import load_corpus
from minids.training.report import per_byte, score_held_out, spread, validation_rows

LENGTH, ROWS = 128, 128  # tokens of a row, and rows of each domain
LAST = 50  # steps of training whose MaxVio is averaged


@cache
def held_out() -> dict[str, np.ndarray]:
    """Return the held-out rows by domain."""
    _, tokenizer = text()
    rows = validation_rows(encode_split(tokenizer, load_corpus().only(*DOMAINS).validation), LENGTH)
    return {domain: spread(part, ROWS) for domain, part in rows.items()}


def scores(model: DeepSeek, rows: dict[str, np.ndarray] | None = None) -> dict[str, float]:
    """Return bits per byte by domain and of all, rounded, on the held-out rows or on others."""
    found = per_byte(score_held_out(model, text()[1], rows or held_out()))
    return {name: round(value, 4) for name, value in found.items()}


def last_violation(records: list[dict]) -> float:
    """Return MaxVio of a batch, averaged over the layers and the last steps of training."""
    return round(float(np.mean([record["max_violation"] for record in records[-LAST:]])), 3)


def routed(model: DeepSeek, groups: int | None = None) -> dict:
    """Return held-out loads by layer, domain and expert, MaxVio of all held-out tokens, and the bits that an
    expert tells about the domain, also with shuffled labels.

    With `groups` also how many of so many groups of experts a token is sent to.
    """
    n_experts = model.config.n_routed_experts
    experts = [chosen_experts(model, rows[:, :-1]) for rows in held_out().values()]  # as many of each domain
    counts = np.stack([loads(part, n_experts).numpy() for part in experts], axis=1)  # layers, domains, experts
    labels = [domain for domain, part in enumerate(experts) for _ in range(part.shape[1])]
    pairs = [information_and_control(layer, labels, n_experts) for layer in torch.cat(experts, dim=1)]
    touched = {} if groups is None else {"groups": round(groups_touched(torch.cat(experts, 1), n_experts, groups), 3)}
    return touched | {
        "load": counts.tolist(),
        "max_violation_held_out": [round(max_violation(layer.sum(0)), 3) for layer in torch.from_numpy(counts)],
        "information": [round(found, 4) for found, _ in pairs],
        "information_shuffled": [round(control, 4) for _, control in pairs],
    }
