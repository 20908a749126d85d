"""ZeRO-1: ranks with the same weights share the optimizer's work and its memory (Rajbhandari et al. 2020).

Data parallelism copies the weights to every rank, and without more it would copy the optimizer, too: for each weight in
float32, AdamW keeps two more numbers. ZeRO leaves the same thing on one rank only, in three stages:

    ZeRO-1     the optimizer's moments          V3: "ZeRO-1 Data Parallelism" (report §3.2)
    ZeRO-2     and the gradients
    ZeRO-3     and the weights themselves       FSDP: they are gathered before each layer (shard.py)

The gradients are summed over all ranks. Each rank then updates only its part of the weights, for which it keeps the
moments, and sends the new values to the others. A part is made of whole parameters here, because Muon needs whole
matrices; for AdamW any cut would do. The parts have about the same size: the largest parameter goes to the rank with
the least so far.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import nn

from minids.model.kernels import local
from minids.parallel.execute import together


class Zero1:
    """Which of a rank's parameters it updates: `mine`, by name. `holders` are the ranks that hold each parameter, and
    `groups` the process groups of these ranks."""

    def __init__(
        self, parameters: list[tuple[str, nn.Parameter]], holders: dict[str, tuple[int, ...]],
        groups: dict[tuple[int, ...], dist.ProcessGroup],
    ):  # fmt: skip
        self.groups, self.parts = groups, defaultdict(list)
        size = defaultdict(int)
        for name, parameter in sorted(parameters, key=lambda named: -named[1].numel()):
            rank = min(holders[name], key=lambda rank: size[holders[name], rank])  # every holder finds the same one
            size[holders[name], rank] += parameter.numel()
            self.parts[holders[name], rank].append((name, parameter))
        me = dist.get_rank()
        self.mine = {name: p for (_, rank), part in self.parts.items() if rank == me for name, p in part}

    @torch.no_grad()
    def spread(self) -> None:
        """Send the parameters that this rank has updated to their other holders, and receive the rest."""
        for ranks, rank in sorted(self.parts):  # in an order that all ranks agree on
            part = self.parts[ranks, rank]
            if len(ranks) > 1:
                group = self.groups[ranks]
                tensors = [local(parameter) for _, parameter in part]
                together(lambda flat, group=group, rank=rank: dist.broadcast(flat, src=rank, group=group), tensors)
