"""One optimizer step: the loss of a batch, its gradient in parts, and the update.

The rows of a batch may be processed in several micro-batches whose gradients add up (`accumulate_gradients`); then the
optimizer updates the weights (`update_weights`). Weights and optimizer stay in float32. With `dtype` bfloat16 the
matrix products of forward and backward run in bfloat16 (autocast), the gates and the losses in float32. With fp8 they
follow V3's recipe (quantization/products.py), and between steps the optimizer's moments are in bfloat16.

The loss is an argument, a function that turns some rows of a batch into terms. The default, `language_model_loss`, is
pre-training. A batch is a dict of tensors with one row per sequence: "tokens", and optionally "mask", which says which
tokens count; other losses may need further entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from minids.device import autocast
from minids.model.deepseek import DeepSeek, LossTerms
from minids.model.kernels import local
from minids.training.config import TrainConfig
from minids.validation import quoted

Batch = dict[str, Tensor]


def as_batch(arrays: dict, step: int, config: TrainConfig, vocab_size: int) -> Batch:
    """Return a source's arrays for a step as tensors, after checks; tokens are (batch_size, sequence_length + 1) int64.

    Raises ValueError, one sentence, for tokens of another shape or type or outside the vocabulary, for a mask that has
    not the shape of the tokens or is not finite, and for entries with another number of rows. The values of further
    entries are their loss's affair: log-probabilities, for example, can be infinite.
    """
    this, shape = f"the batch of step {step}", (config.batch_size, config.sequence_length + 1)
    if not (isinstance(arrays, Mapping) and "tokens" in arrays):
        raise ValueError(f"{this} is {quoted(arrays)}: it must be a dict of arrays with an entry tokens.")
    batch = {}
    for name, array in arrays.items():
        try:
            batch[name] = torch.as_tensor(array)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{this} has {name}={quoted(array)}: it must be an array of numbers.") from None
    for name, values in batch.items():
        found = tuple(values.shape)
        wanted = shape if name in ("tokens", "mask") else (shape[0], *found[1:])
        if found != wanted:
            raise ValueError(f"{this} has {name} of shape {found}: it must be {wanted}.")
    tokens = batch["tokens"]
    if "mask" in batch and not batch["mask"].isfinite().all():
        raise ValueError(f"{this} has a mask with values that are not finite: NaN and infinity are not allowed.")
    if tokens.dtype != torch.int64:
        raise ValueError(f"{this} has tokens of type {str(tokens.dtype).removeprefix('torch.')}: they must be int64.")
    for token in (tokens.min().item(), tokens.max().item()):
        if not 0 <= token < vocab_size:
            raise ValueError(f"{this} has the token {token}: tokens must be from 0 to {vocab_size - 1}.")
    return batch


class Terms(Protocol):
    """What a loss returns: a dataclass of tensors.

    `total` is minimised, and every scalar is logged under its name. `nats_B`, if there, are the nats of each sequence,
    for the bits per byte in the log.
    """

    total: Tensor


# Called with the model, some rows, the whole batch that holds them, the configuration, and the number of the step.
# The terms of all parts of a batch add up to those of the batch. In a pipeline, a loss can call the model's `loss` and
# `token_losses` only.
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


def on_cpu(terms: Terms) -> Terms:
    """Return terms whose tensors are on the CPU."""
    return replace(terms, **{field.name: getattr(terms, field.name).cpu() for field in fields(terms)})


def update_weights(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: list[Terms], clip_norm: float, norm: Tensor | None = None
) -> float:
    """Clip the gradient, update the weights, and return the gradient's norm before clipping.

    If `model` is a part of a model, `norm` is that of the whole model's gradient. Raises TrainingDiverged and leaves
    the weights unchanged if loss or norm is not a finite number.
    """
    if norm is None:
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    scale = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            local(parameter.grad).mul_(scale)
    norm = norm.item()
    loss = sum(terms.total.item() for terms in parts)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        model.zero_grad()
        raise TrainingDiverged(f"the loss is {loss} and the gradient norm {norm}")
    optimizer.step()
    model.zero_grad()
    return norm
