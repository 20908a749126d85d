"""A whole training step beside the peer's, in time and in peak memory.

Forward, backward, clipping and AdamW. Ours is in bfloat16 where the processor multiplies in it, and so is the
peer's fastest (but see peer.py). In its default setting the peer is in float32, so our float32 is timed, too.
"""

import gc
import itertools
from functools import partial

import torch

from minids.book.bench.measure import alternate, ratio, summary
from minids.book.bench.peak import peak_of
from minids.book.bench.peer import (
    AS_IT_COMES,
    BATCH,
    CONFIGS,
    DEFAULT,
    FASTEST,
    LENGTH,
    OURS,
    SETTINGS,
    Training,
    fastest,
    make_ours,
    make_peer,
    training_of_ours,
    training_of_peer,
)
from minids.device import best_dtype

OURS_FLOAT32 = "minids, float32"
# batched_mm copies an expert's matrices for every token: it is made for decoding.
CANDIDATES = [setting for setting in SETTINGS if setting[1] != "batched_mm"]


def measure(names: list[str], threads: list[int], rounds: int, with_memory: bool = True) -> list[dict]:
    """Return a row for each configuration and number of threads: times, and the peer's over ours."""
    rows = []
    for name, count in itertools.product(names, threads):
        torch.set_num_threads(count)
        best, tried = fastest(partial(make_step, FASTEST, name), CANDIDATES)
        gc.collect()
        steps = {side: make_step(side, name, best) for side in (OURS, FASTEST, DEFAULT, OURS_FLOAT32)}
        samples = alternate(steps, rounds)
        del steps
        gc.collect()
        rows.append({
            "config": name, "threads": count, "tokens": BATCH[name] * LENGTH,
            "fastest": " ".join(best), "tried_ms": tried,
            "sides": {side: summary(taken) for side, taken in samples.items()},
            "speedup": {
                "fastest": ratio(samples[FASTEST], samples[OURS]),
                "default": ratio(samples[DEFAULT], samples[OURS]),
                "float32": ratio(samples[DEFAULT], samples[OURS_FLOAT32]),
            },
            "peak_bytes": {
                side: peak_of("training", side, name, *best) for side in (OURS, FASTEST) if with_memory
            },
        })  # fmt: skip
    return rows


def make_step(side: str, name: str, setting: tuple[str, str] = AS_IT_COMES) -> Training:
    """Return a side's training step on a configuration, with weights of its own. `setting` is the fastest peer's."""
    model, fast = make_ours(CONFIGS[name]), best_dtype(torch.device("cpu"))
    sizes = {"batch": BATCH[name], "length": LENGTH}
    if side == FASTEST:
        return training_of_peer(make_peer(model, setting), **sizes, dtype=fast)
    if side == DEFAULT:
        return training_of_peer(make_peer(model), **sizes, dtype="float32")
    return training_of_ours(model, **sizes, dtype=fast if side == OURS else "float32")
