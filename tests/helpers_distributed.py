"""What the processes of the tests of distributed training do; new processes import it by name."""

import os
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from helpers_training import (
    file_size_limit,
    last_token_loss,
    small_batches,
    small_config,
    small_corpus,
    small_train_config,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import Shard, distribute_tensor

from minids.model.kernels import local
from minids.parallel.experts import Formats, Hop
from minids.parallel.layout import Layout
from minids.training.run import Run, start_run
from minids.training.sharded import load_sharded, save_sharded
from minids.training.step import language_model_loss
from minids.training.trainer import TrainingInterrupted


class Masked:
    """Batches of which only some tokens count, not equally many in each row."""

    def __init__(self, config):
        self.rows = small_batches(config, vocab_size=300)  # at most as many as the tokenizer has

    def batch(self, step: int, batch_size: int) -> dict:
        batch = self.rows.batch(step, batch_size)
        return batch | {"mask": np.random.default_rng(step).random(batch["tokens"].shape) < 0.5}

    def domain(self, index: int) -> str:
        return self.rows.domain(index)


def make_run(
    folder: Path | None = None, layout: Layout | None = None, resume: bool = False, model: dict | None = None,
    masked: bool = False, last_token: bool = False, **changes,
) -> Run:  # fmt: skip
    """A run of four steps, by one process or as one of several.

    The learning rate is small, because AdamW makes much of a last bit where a gradient is nearly 0: with larger steps,
    a token whose experts score almost the same would sometimes go to another one, and all later numbers would differ.
    """
    fixed = dict(steps=4, batch_size=8, save_every=2, learning_rate=3e-4)
    config = small_train_config(**fixed | changes)
    return start_run(
        small_config(**(model or {})), config, small_corpus(), folder, resume=resume, layout=layout,
        batches=Masked(config) if masked else None, loss=last_token_loss if last_token else language_model_loss,
    )  # fmt: skip


def train(rank: int, flags: dict | None, folder: Path | None, stop_after: int | None = None, **settings) -> tuple:
    """Train to the end, or until the last process is asked to stop; return the records, and what is said of the run.

    Without flags this is the run of one process.
    """
    run = make_run(folder, Layout(**flags) if flags else None, **settings)

    def look(record: dict) -> None:
        if record["step"] + 1 == stop_after and rank == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        run.trainer.run(look)
    except TrainingInterrupted as reason:
        return run.trainer.records, str(reason)
    return run.trainer.records, run.differences


def other_machine(rank: int, folder: Path) -> str:
    """The error that a process gets if the last one sees another folder."""
    own = folder if rank < dist.get_world_size() - 1 else folder.with_name("elsewhere")
    try:
        make_run(own, Layout(dist.get_world_size()), resume=True)
    except ValueError as error:
        return str(error).removeprefix(f"{own} ")


def report_of_first(rank: int, folder: Path) -> str | None:
    """What the first process reports while the others do not take part."""
    run = make_run(folder, Layout(dist.get_world_size()), steps=1)
    run.trainer.run()
    return run.report()["processes"] if rank == 0 else None


def group_sizes(rank: int, layouts: list[Layout]) -> list[list[int]]:
    """The sizes of the groups between which tokens travel."""
    return [[group.size() for group in layout.grid("cpu").expert_groups] for layout in layouts]


def collected_gradient(rank: int, formats: Formats, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient that arrives for rows which this rank sends back to the other one, and the one that was sent."""
    hop = Hop(torch.arange(2).repeat(3, 1) != rank, dist.group.WORLD)  # three rows, each to the other rank
    outs = torch.zeros(3, 64, requires_grad=True)
    gradients = [scale * torch.randn(3, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    hop.collect(outs, formats).backward(gradients[rank])
    return outs.grad, gradients[1 - rank]


def not_finite(rank: int, flags: dict) -> tuple[str | None, int]:
    """What all processes say of a weight that only the last one has, and how many modules FSDP2 has wrapped."""
    run = make_run(layout=Layout(**flags))
    if rank == dist.get_world_size() - 1:
        with torch.no_grad():
            local(run.model.layers[1].mlp.gate.weight)[-1, -1] = float("nan")
    wrapped = [module for module in run.model.modules() if isinstance(module, FSDPModule)]
    return run.trainer.not_finite(), len(wrapped)


def load_more(rank: int, path: Path, who: int) -> str:
    """The error that a process gets if another one wants a tensor that was not saved."""
    save_some(rank, path)
    tensors = {"both": torch.tensor(0.0)} | ({"absent": torch.zeros(2)} if rank == who else {})
    try:
        load_sharded(path, tensors)
    except ValueError as error:
        return str(error)


def save_on_full_disk(rank: int, path: Path, who: int) -> str:
    """The error that a process gets if another one's file may not become large."""
    save_some(rank, path)
    tensors = {f"own {rank}": torch.zeros(5000)}
    with file_size_limit(4000) if rank == who else nullcontext():
        try:
            save_sharded(path, tensors, step=4, settings={}, log_sha256="")
        except OSError as error:
            return str(error)
    return "saved"


def save_some(rank: int, path: Path) -> None:
    """Write a checkpoint with a tensor that is sharded, one that both ranks have, and one of each rank alone."""
    rows = distribute_tensor(torch.arange(6.0).view(3, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    tensors = {"rows": rows, "both": torch.tensor(7.0), f"own {rank}": torch.tensor(float(rank))}
    save_sharded(path, tensors, step=3, settings={"a": 1}, log_sha256=str(rank))
