"""What the processes of tests/parallel/test_launch.py do; new processes import it by name."""

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist


def add_up(rank: int, numbers: torch.Tensor) -> tuple[int, torch.Tensor]:
    total = numbers[rank].clone()
    dist.all_reduce(total)
    return rank, total


def fail(rank: int, who: int, how: str) -> None:
    """One rank fails, and the others wait for it."""
    if rank == who:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exits":
            os._exit(3)
        raise ValueError(f"{how} is wrong")
    dist.recv(torch.zeros(1), src=who)


def wait_for_another(rank: int) -> None:
    dist.recv(torch.zeros(1), src=1 - rank)


def write_pid(rank: int, folder: Path) -> None:
    (folder / f"{rank}").write_text(f"{os.getpid()}")
    time.sleep(600)


def fail_in_step(model, rows: dict, whole: dict, config, step: int):
    """A loss that fails in the second step."""
    if step == 1:
        raise ArithmeticError("no loss today")
    from minids.training.step import language_model_loss

    return language_model_loss(model, rows, whole, config, step)
