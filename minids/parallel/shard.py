"""Data parallelism with sharded weights, on PyTorch's own engine: FSDP2 (ZeRO-3; Zhao et al. 2023).

Each rank keeps 1 / dp of every parameter, of its gradient and of the optimizer's moments. Before a block computes, its
weights are gathered from all ranks, and afterwards dropped. The gradients of its backward pass are summed, and each
rank keeps its part of the sum (*reduce-scatter*).

    embedding, norms, attention, gates, shared and dense layers     over all dp ranks
    routed experts, with expert parallelism                         first over the ep ranks that share a set of experts
                                                                    (experts.py), then over the dp / ep copies of it

Only the second row is special: the experts are never gathered among the ep ranks, as tokens travel to them instead.
Their gradient is complete with respect to these ranks, too, because tokens of all of them have arrived.

Gradients are summed and not averaged: each rank's loss is its share of the loss of the whole batch (training/step.py).

FSDP2 exchanges the parameters of a module while its `forward` runs. A model of ours is also called by `loss` and
`token_losses`, so these are registered as such methods.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from minids.model.deepseek import DeepSeek
from minids.model.kernels import local
from minids.model.moe import Experts
from minids.parallel.experts import spread_experts
from minids.parallel.layout import Grid, Layout


def shard(model: DeepSeek, layout: Layout, grid: Grid) -> None:
    """Shard a model, in place, over the ranks of a layout without a pipeline. All ranks must have the same weights."""
    if layout.ep > 1:
        spread_experts(model, grid.ep, grid.expert_groups)
        for experts in [module for module in model.modules() if isinstance(module, Experts)]:
            fully_shard(experts, mesh=grid.copies)
    for block in [*model.layers, *model.mtp]:
        fully_shard(block, mesh=grid.dp)
    fully_shard(model, mesh=grid.dp)
    for method in ("loss", "token_losses"):
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # otherwise the factor needs an operation that gloo lacks
    # The losses of tokens are views, and nothing is added to them in place.
    warnings.filterwarnings("ignore", message=r"(?s)FSDP2-wrapped module .* returned a view tensor")


def gradient_norm(model: DeepSeek) -> Tensor:
    """Return the norm of the whole model's gradient; every number of it is on one rank."""
    parts = [local(p.grad).square().sum() for p in model.parameters() if p.grad is not None]
    square = torch.stack(parts).sum() if parts else torch.zeros((), device=model.device)
    dist.all_reduce(square)
    return square.sqrt()
