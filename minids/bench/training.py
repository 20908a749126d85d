"""A whole training step beside the peer's, in time and in peak memory."""

import gc

import torch

from minids.bench.measure import alternate, ratio, summary
from minids.bench.peak import peak_of
from minids.bench.peer import (
    BATCH,
    CONFIGS,
    DEFAULT,
    FASTEST,
    LENGTH,
    OURS,
    Training,
    make_ours,
    make_peer,
    training_of_ours,
    training_of_peer,
)  # fmt: skip
from minids.train import best_dtype

OURS_FLOAT32 = "minids, float32"


def measure(names: list[str], threads: list[int], rounds: int, with_memory: bool = True) -> list[dict]:
    """Return a row for each configuration and number of threads: times, and the peer's over ours."""
    rows = []
    for name in names:
        tokens = BATCH[name] * LENGTH
        memory = {side: peak_of("training", side, name) for side in (OURS, FASTEST, DEFAULT)} if with_memory else {}
        steps = {side: make_step(side, name) for side in (OURS, FASTEST, DEFAULT, OURS_FLOAT32)}
        for count in threads:
            torch.set_num_threads(count)
            samples = alternate(steps, rounds)
            rows.append({
                "config": name, "threads": count, "tokens": tokens,
                "sides": {side: summary(taken) for side, taken in samples.items()},
                "speedup": {side: ratio(samples[side], samples[OURS]) for side in (FASTEST, DEFAULT)},
                "peak_bytes": memory,
            })  # fmt: skip
        del steps
        gc.collect()
    return rows


def make_step(side: str, name: str) -> Training:
    """Return a side's training step on a configuration, with weights of its own."""
    model, fast = make_ours(CONFIGS[name]), best_dtype(torch.device("cpu"))
    sizes = {"batch": BATCH[name], "length": LENGTH}
    if side in (FASTEST, DEFAULT):
        return training_of_peer(make_peer(model, side), **sizes, dtype=fast if side == FASTEST else "float32")
    return training_of_ours(model, **sizes, dtype=fast if side == OURS else "float32")


def take_steps(side: str, name: str, steps: int = 3) -> None:
    """Take a few steps: what a process does whose peak memory is asked for."""
    step = make_step(side, name)
    for _ in range(steps):
        step()
