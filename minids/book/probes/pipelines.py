"""What the processes of chapter 8 and its second notebook run; new processes import these functions by name."""

from __future__ import annotations

import os
import signal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from minids.model.linear import Linear
from minids.parallel.deferred import Store, defer
from minids.parallel.launch import launch
from minids.parallel.schedules import Schedule


def follow(rank: int, schedule: Schedule) -> None:
    """Do the actions of a rank in the given order, even if it is wrong. Nothing is computed, but all messages are sent.

    A forward waits for a message of the stage before and sends one to the stage after. A backward does the reverse.
    """
    ranks_of, sent = schedule.ranks_of(), []
    for part in [part for action in schedule[rank] for part in action.parts if part.kind != "W"]:
        place, step = schedule.place(rank, part.chunk), 1 if part.kind == "F" else -1
        before, after = (place._replace(stage=place.stage + by) for by in (-step, step))
        number = 4 * part.micro_batch + 2 * place.pipe + (part.kind == "F")  # the same at every stage
        if ranks_of.get(before, rank) != rank:
            dist.recv(torch.empty(1), src=ranks_of[before], tag=number)
        if ranks_of.get(after, rank) != rank:
            sent.append(dist.isend(torch.zeros(1), dst=ranks_of[after], tag=number))
    for message in sent:
        message.wait()


# ---------------------------------------------------------------------------------------------------
# PyTorch's wrappers for data parallelism, around the stages of its own schedules

WIDTH, MICRO_BATCHES = 16, 4


def two_stages() -> list[nn.Sequential]:
    """Return a small model in two stages, always with the same weights."""
    torch.manual_seed(0)
    return [nn.Sequential(Linear(WIDTH, 4 * WIDTH), nn.GELU(), Linear(4 * WIDTH, WIDTH)) for _ in range(2)]


def without_replicas(x_BX: Tensor, y_BX: Tensor) -> tuple[float, list[Tensor]]:
    """Return the loss of these rows, and each stage's gradient as a vector, by autograd alone."""
    stages = two_stages()
    loss = (stages[1](stages[0](x_BX)) - y_BX).square().mean()
    gradients = [torch.autograd.grad(loss, list(stage.parameters()), retain_graph=True) for stage in stages]
    return loss.item(), [torch.cat([part.flatten() for part in parts]) for parts in gradients]


def replica(
    rank: int, schedule: str, wrapper: str, x_BX: Tensor, y_BX: Tensor, deferred: bool = False
) -> tuple[float, list[Tensor | None]]:
    """Return the loss of this replica's share of the rows, and each stage's gradient as a vector, None if it has none.

    Both stages are in this process, and torch's `schedule` runs them. The wrapper around each stage is to average the
    gradients over the replicas: "DDP", "FSDP2" around each layer and each stage, or "FSDP2, not resharded". With
    `deferred` the weight gradients are those of parallel/deferred.py.
    """
    replicas = dist.get_world_size()
    alone = [dist.new_group([other]) for other in range(replicas)][rank]  # the pipeline has one rank
    rows, targets = x_BX.chunk(replicas)[rank], y_BX.chunk(replicas)[rank]
    stages, store = two_stages(), Store()
    if deferred:
        defer(nn.ModuleList(stages), store)
    wrapped = [_wrapped(stage, wrapper) for stage in stages]
    received = torch.empty(len(rows) // MICRO_BATCHES, WIDTH)
    pipeline = [
        PipelineStage(
            stage, i, 2, torch.device("cpu"), group=alone, dw_builder=store.take if deferred else None,
            input_args=(received.clone().requires_grad_(i > 0),), output_args=(received.clone().requires_grad_(),),
        )
        for i, stage in enumerate(wrapped)
    ]  # fmt: skip

    def share(out: Tensor, y: Tensor) -> Tensor:
        return (out - y).square().mean() / MICRO_BATCHES

    runtime = get_schedule_class(schedule)(pipeline, MICRO_BATCHES, loss_fn=share, scale_grads=False)
    for _ in range(2):  # an error could come in the second step only
        losses: list[Tensor] = []
        for stage in wrapped:
            stage.zero_grad()
        runtime.step(rows, target=targets, losses=losses)
    return sum(loss.item() for loss in losses), [_gradient(stage) for stage in stages]


def _wrapped(stage: nn.Sequential, wrapper: str) -> nn.Module:
    if wrapper == "DDP":
        return DistributedDataParallel(stage)
    options = {"mesh": init_device_mesh("cpu", (dist.get_world_size(),))}
    if wrapper == "FSDP2, not resharded":
        options["reshard_after_forward"] = False
    for layer in (stage[0], stage[2]):
        fully_shard(layer, **options)
    return fully_shard(stage, **options)


def _gradient(stage: nn.Module) -> Tensor | None:
    parts = [parameter.grad for parameter in stage.parameters()]
    if any(part is None for part in parts):
        return None
    return torch.cat([(part.full_tensor() if isinstance(part, DTensor) else part).flatten() for part in parts])


def averaged(schedule: str, wrapper: str, deferred: bool = False) -> list[str]:
    """Return in words what the gradient of each stage is with two replicas (see `replica`), the same for both.

    Raises RuntimeError if a loss is wrong, or if the replicas do not say the same.
    """
    x_BX, y_BX = torch.randn(2, 32, WIDTH, generator=torch.Generator().manual_seed(0))
    last_B = torch.arange(32) % 16 >= 12  # the last micro-batch of each replica
    _, mean = without_replicas(x_BX, y_BX)
    _, before_last = without_replicas(x_BX[~last_B], y_BX[~last_B])
    said = []
    for rank, (loss, found) in enumerate(launch(replica, 2, schedule, wrapper, x_BX, y_BX, deferred)):
        own_B = torch.arange(32) // 16 == rank
        own_loss, own = without_replicas(x_BX[own_B], y_BX[own_B])
        _, own_last = without_replicas(x_BX[own_B & last_B], y_BX[own_B & last_B])
        mixed = [(3 * one + another) / 4 for one, another in zip(before_last, own_last, strict=True)]
        known = {"the mean": mean, "its own rows only": own, "the mean, but its own last micro-batch": mixed}
        if abs(loss - own_loss) > 1e-6:
            raise RuntimeError(f"the loss is {loss}, not {own_loss}.")
        said.append([
            "no gradient" if gradient is None else next(
                (name for name, stages in known.items() if torch.allclose(gradient, stages[i], atol=1e-6)),
                "another one",
            )
            for i, gradient in enumerate(found)
        ])  # fmt: skip
    if said[0] != said[1]:
        raise RuntimeError(f"the replicas have different gradients: {said}.")
    return said[0]


def killed(model: nn.Module, *batch_and_settings: object) -> None:
    """A loss that kills the process that computes it, as Linux does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
