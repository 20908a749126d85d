"""The processes of a command: one, or those that torchrun started.

torchrun starts as many processes as it is told, and tells each of them in environment variables how many there are and
which it is. They join, do the same work on different data, and end together. Only the first one prints its progress.

When a process dies, `torchrun --max-restarts` starts all of them again, with the same arguments. A run that this
torchrun has begun then goes on by itself. One that it has found in the folder, and that was refused, does not: what was
begun is noted in torchrun's store, which outlives the processes.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minids.cli.errors import stop
from minids.model.config import ModelConfig
from minids.training.config import TrainConfig
from minids.validation import require

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

    from minids.parallel.layout import Layout

BEGUN, ENDED = "minids train has begun", "minids train has ended"


@dataclass
class Group:
    """The processes that share this run: one, or those that torchrun started."""

    device: torch.device
    layout: Layout | None = None
    is_first: bool = True
    store: Store | None = None  # of torchrun, in which it is noted that the run has begun

    @property
    def restarted(self) -> bool:
        """Whether this torchrun has begun the run already, and started its processes again."""
        return self.store is not None and self.store.check([BEGUN])

    def note_begun(self) -> None:
        if self.store is not None:
            self.store.set(BEGUN, "")

    def wait_for_first(self) -> None:
        """Wait for what only the first process does in the end.

        If it dies meanwhile, torchrun can start all again only as long as the others are there.
        """
        if self.store is None or self.layout is None:
            return
        if self.is_first:
            self.store.set(ENDED, "")
        while not self.store.check([ENDED]):
            time.sleep(0.1)

    def first_does(self, work: Callable[[], Any]) -> Any:
        """Return on all processes what the first one found."""
        if self.layout is None:
            return work()
        from minids.parallel.launch import first_does

        return first_does(work)


@contextmanager
def processes_of(
    flags: dict, model_config: ModelConfig, train_config: TrainConfig, device: torch.device
) -> Iterator[Group]:
    """Let the processes that torchrun started work together, on a GPU each if there are some; only the first prints.

    Before anything starts, raises ValueError if model or batches cannot be divided among them.
    """
    import torch
    import torch.distributed as dist

    from minids.parallel.launch import end_with_torchrun, join_torchrun, lost_another, torchrun_store, under_torchrun
    from minids.parallel.layout import from_torchrun

    layout = from_torchrun(**flags)
    layout.check(model_config, train_config.batch_size, train_config.micro_batch_size)
    store = None
    if under_torchrun():
        end_with_torchrun()
        store = torchrun_store()
    if layout.ranks == 1:
        yield Group(device, store=store)
        return
    if device.type == "cuda":
        here, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        require("nproc-per-node", here, here <= there, f"at most {there}, the GPUs of this machine")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    require("device", device.type, device.type != "mps", "cpu or cuda for several processes")
    group = Group(device, layout, os.environ["RANK"] == "0", store)
    try:
        join_torchrun(device, store)
        with nullcontext() if group.is_first else redirect_stdout(io.StringIO()):
            yield group
    except RuntimeError as error:
        if not lost_another(error):
            raise
        if not group.is_first:
            print(file=sys.stderr)  # ends the line of the first one's progress bar
        stop("another process has ended, so this one does, too. To go on from the last checkpoint: --resume.", 1)
    dist.destroy_process_group()
