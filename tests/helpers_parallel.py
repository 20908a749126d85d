"""What the processes of the parallel tests do; new processes import it by name."""

import os
import signal
import time
import weakref
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from minids.model.deepseek import DeepSeek, LossTerms
from minids.parallel.launch import first_does
from minids.training.step import language_model_loss


def add_up(rank: int, numbers: torch.Tensor) -> tuple[int, torch.Tensor]:
    total = numbers[rank].clone()
    dist.all_reduce(total)
    return rank, total


def fail(rank: int, who: int, how: str) -> None:
    """One rank fails, and the others wait for it."""
    if rank == who:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "killed while it sends its result":
            Connection._send = lambda self, message: os.write(self.fileno(), message[:10]) and fail(rank, who, "killed")
            return
        if how == "exits":
            os._exit(3)
        raise ValueError(f"{how} is wrong")
    dist.recv(torch.zeros(1), src=who)


def what_the_first_does(rank: int, number: int) -> tuple[int, int | str]:
    """How often this rank did it, and what all know of it: the result, or the error."""
    done = []

    def work() -> int:
        done.append(rank)
        if number < 0:
            raise ValueError(f"{number} is negative")
        return number + rank

    try:
        found = first_does(work)
    except ValueError as error:
        found = str(error)
    return len(done), found


def wait_for_another(rank: int, who: tuple[int, ...]) -> None:
    if rank in who:
        dist.recv(torch.zeros(1), src=1 - rank)


def write_pid(rank: int, folder: Path) -> None:
    (folder / f"{rank}").write_text(f"{os.getpid()}")
    time.sleep(600)


def say(rank: int) -> None:
    print(f"rank {rank} says this")


# Losses


def fail_in_step(model: DeepSeek, rows: dict, whole: dict, config, step: int) -> LossTerms:
    """A loss that fails in the second step."""
    if step == 1:
        raise ArithmeticError("no loss today") from KeyError("its reason")
    return language_model_loss(model, rows, whole, config, step)


def too_steep(*batch_and_settings) -> LossTerms:
    """A loss that is finite, without a finite gradient."""
    terms = language_model_loss(*batch_and_settings)
    return replace(terms, total=terms.total + (terms.total - terms.total.detach()).sqrt())


def endless(*batch_and_settings) -> LossTerms:
    """A loss that is infinite, with a finite gradient."""
    terms = language_model_loss(*batch_and_settings)
    return replace(terms, total=terms.total + float("inf"))


def next_token_only(model: DeepSeek, rows: dict, whole: dict, config, step: int) -> LossTerms:
    """A loss that uses no MTP module."""
    terms = language_model_loss(model, rows, whole, config, step)
    return replace(terms, total=terms.next_token)


def prefer(model: DeepSeek, rows: dict, whole: dict, config, step: int) -> LossTerms:
    """A loss of two texts."""
    return replace(terms := model.loss(rows["tokens"]), total=terms.total - model.loss(rows["rejected"]).total)


earlier: list[weakref.ref] = []


def one_at_a_time(*batch_and_settings) -> LossTerms:
    """A loss that fails while the graph of an earlier micro-batch is in memory."""
    if any(total() is not None for total in earlier):
        raise MemoryError("an earlier micro-batch is still in memory")
    terms = language_model_loss(*batch_and_settings)
    earlier.append(weakref.ref(terms.total))
    return terms
