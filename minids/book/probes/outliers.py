"""Outliers made on purpose, which leave a model's function as it is: what FP8 makes of them is due to FP8 alone.

A channel of an RMSNorm's output is multiplied by a factor, and the column of every matrix that reads it is divided by
it. In exact arithmetic nothing changes. (SmoothQuant, Xiao et al. 2022, does the reverse, to remove outliers.)
"""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor

from minids.model.block import Block
from minids.model.deepseek import DeepSeek
from minids.quantization.products import Recipe, use_fp8


@torch.no_grad()
def with_outliers(model: DeepSeek, factor: float, channel: int = 0) -> DeepSeek:
    """Return a copy of the model in which a channel of each block's two normalised inputs is larger by a factor.

    A power of two as factor changes no rounding in float32.
    """
    model = deepcopy(model)
    blocks = [*model.layers, *(module.block for module in model.mtp)]
    for norm, readers in (pair for block in blocks for pair in _inputs(block)):
        norm[channel] *= factor
        for weight in readers:
            weight[..., channel] /= factor
    return model


def _inputs(block: Block) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield the weight of each norm of a block, and the matrices that read the norm's output."""
    attention, mlp = block.self_attn, block.mlp
    names = ("q_proj", "q_a_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa")
    yield block.input_layernorm.weight, [getattr(attention, n).weight for n in names if hasattr(attention, n)]
    if not hasattr(mlp, "experts"):
        yield block.post_attention_layernorm.weight, [mlp.gate_proj.weight, mlp.up_proj.weight]
        return
    readers = [mlp.gate.weight, mlp.experts.gate_up_proj]
    if hasattr(mlp, "shared_experts"):
        readers += [mlp.shared_experts.gate_proj.weight, mlp.shared_experts.up_proj.weight]
    yield block.post_attention_layernorm.weight, readers


@torch.no_grad()
def losses_with_outliers(
    model: DeepSeek, rows_BT: Tensor, powers: tuple[int, ...], recipes: dict[str, Recipe]
) -> dict[str, list[float]]:
    """Return the next-token loss on some rows with outliers of 2^power, in float32 ("FP32") and by each recipe."""
    losses = {name: [] for name in ("FP32", *recipes)}
    for power in powers:
        changed = with_outliers(model, 2.0**power)
        losses["FP32"].append(changed.token_losses(rows_BT).nats[0].mean().item())
        for name, recipe in recipes.items():
            use_fp8(changed, recipe)
            losses[name].append(changed.token_losses(rows_BT).nats[0].mean().item())
    return losses
