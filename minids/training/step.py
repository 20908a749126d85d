"""One optimizer step: the loss of a batch, its gradient in parts, and the update.

The rows of a batch may be processed in several micro-batches whose gradients add up (`accumulate_gradients`); then the
optimizer updates the weights (`update_weights`). Weights and optimizer stay in float32. With `dtype` bfloat16 the
matrix products of forward and backward run in bfloat16 (autocast), the gates and the losses in float32. With fp8 they
follow V3's recipe (quantization/products.py), and between steps AdamW's moments are in bfloat16.

The loss is an argument, a function that turns some rows of a batch into terms. The default, `language_model_loss`, is
pre-training. A batch is a dict of tensors with one row per sequence: "tokens", and optionally "mask", which says which
tokens count; other losses may need further entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from minids.device import autocast
from minids.model.deepseek import DeepSeek, LossTerms
from minids.training.config import TrainConfig

Batch = dict[str, Tensor]


class Terms(Protocol):
    """What a loss returns: a dataclass of tensors.

    `total` is minimised, and every scalar is logged under its name. `nats_B`, if there, are the nats of each sequence,
    for the bits per byte in the log.
    """

    total: Tensor


# Called with the model, some rows, the whole batch that holds them, the configuration, and the number of the step.
# The terms of all parts of a batch add up to those of the batch.
Loss = Callable[[DeepSeek, Batch, Batch, TrainConfig, int], Terms]


def language_model_loss(model: DeepSeek, rows: Batch, whole: Batch, config: TrainConfig, step: int) -> LossTerms:
    """Return the pre-training loss of the tokens that count: next token, MTP and balance (V3 report eq. 17, 24, 25)."""
    whole_mask_BT = whole["mask"] if "mask" in whole else torch.ones_like(whole["tokens"], dtype=torch.bool)
    return model.loss(
        rows["tokens"], rows.get("mask"), whole_mask_BT=whole_mask_BT,
        mtp_weight=config.mtp_weight_at(step), balance_weight=config.balance_weight,
    )  # fmt: skip


class TrainingDiverged(Exception):
    """The loss or the gradient is no longer a finite number; the last checkpoint is unchanged."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices only: decay would pull the scales of the norms to zero."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if config.dtype == "fp8":
        keep_moments_in_bfloat16(optimizer)
    return optimizer


def keep_moments_in_bfloat16(optimizer: torch.optim.AdamW) -> None:
    """Store both moments in bfloat16 between the steps (V3 report §3.3.3). The update itself is in float32.

    During the update both moments of all parameters exist in float32, so the peak of memory is not halved.

    Rounded to 8 significant bits, a moment keeps its old value if a step changes it by less than a 512th. With V3's
    β2 = 0.95 the second moment falls by up to a 20th per step. With the usual β2 = 0.999 it could not fall at all.
    """

    def convert(dtype: torch.dtype) -> Callable:
        def hook(optimizer, args, kwargs):
            for state in optimizer.state.values():
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = state[name].to(dtype)

        return hook

    optimizer.register_step_pre_hook(convert(torch.float32))
    optimizer.register_step_post_hook(convert(torch.bfloat16))


def accumulate_gradients(
    terms_of: Callable[[Batch], Terms], batch: Batch, dtype: str, micro_batch_size: int | None = None
) -> list[Terms]:
    """Run a batch forward and backward, micro-batch by micro-batch, and return the terms of each, without gradients.

    `terms_of(rows)` is the share of these rows in the batch's loss, so their gradients add up to that of the batch.
    """
    parts, size = [], micro_batch_size or len(batch["tokens"])
    for start in range(0, len(batch["tokens"]), size):
        rows = {name: value[start : start + size] for name, value in batch.items()}
        with autocast(batch["tokens"].device, dtype):
            terms = terms_of(rows)
        terms.total.backward()
        # Detached, so that no activation of this micro-batch is in memory during the next.
        parts.append(replace(terms, **{field.name: getattr(terms, field.name).detach() for field in fields(terms)}))
    return parts


def update_weights(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Terms], clip_norm: float, norm: Tensor | None = None
) -> float:
    """Clip the gradient, update the weights, and return the gradient's norm before clipping.

    If `model` is a part of a model, `norm` is that of the whole model's gradient. Raises TrainingDiverged and leaves
    the weights unchanged if loss or norm is not a finite number.
    """
    if norm is None:
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)
    norm = norm.item()
    loss = sum(terms.total.item() for terms in parts)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        optimizer.zero_grad()
        raise TrainingDiverged(f"the loss is {loss} and the gradient norm {norm}")
    optimizer.step()
    optimizer.zero_grad()
    return norm
