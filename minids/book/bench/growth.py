"""How time and memory grow with experts, context, batch and layers, beside predictions from counts.

Each curve varies one quantity. A prediction takes one measured point, the anchor, and scales it with the count of
operations, or of numbers kept:

    experts   training step; each token passes through 8 of E experts of width 64, so that the operations
              stay the same, and only weights, gradients and moments grow
    context   decoding step at batch 8; operations that grow with the context are those of attention
    batch     training step of B rows
    layers    training step of L layers

Memory is the peak of a training process: 16 bytes per weight (itself, gradient, two moments), and what is
kept per token for the backward pass. For decoding it is the cache, by its formula and as allocated.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from minids.book.bench.decoding import OurStep
from minids.book.bench.measure import alternate, summary
from minids.book.bench.peak import peak_of
from minids.book.bench.peer import CONFIGS, LENGTH, make_ours, training_of_ours
from minids.cost.cache import kv_cache_bytes
from minids.cost.flops import decoding_flops_per_token, training_flops_per_token
from minids.cost.parameters import count_parameters
from minids.device import best_dtype
from minids.model.config import ModelConfig

BASE = CONFIGS["64 experts"]
ROWS = 8  # of a training step, and of a decoding step


@dataclass(frozen=True)
class Curve:
    """What changes, over which values, and at which of them the prediction is anchored."""

    name: str
    values: tuple[int, ...]
    anchor: int
    decodes: bool = False

    def config(self, value: int) -> ModelConfig:
        changes = {
            "experts": dict(n_routed_experts=value, topk_group=BASE.n_group),  # no group limit: 8 of 8 must be possible
            "layers": dict(num_hidden_layers=value),
        }
        return replace(BASE, **changes.get(self.name, {}))

    def rows(self, value: int) -> int:
        return value if self.name == "batch" else ROWS

    def operations(self, value: int) -> float:
        """Return the multiplications and additions of one step."""
        if self.decodes:
            return ROWS * decoding_flops_per_token(self.config(value), value)
        return self.rows(value) * LENGTH * training_flops_per_token(self.config(value), LENGTH)

    def step(self, value: int) -> Callable[[], object]:
        """Return the step to be timed."""
        model = make_ours(self.config(value))
        if self.decodes:
            with torch.no_grad():
                return torch.no_grad()(OurStep(model, torch.zeros(ROWS, value, dtype=torch.long)))
        return training_of_ours(model, self.rows(value), LENGTH, best_dtype(torch.device("cpu")))


CURVES = {
    curve.name: curve
    for curve in (
        Curve("experts", (8, 16, 32, 64, 128, 256), anchor=8),
        Curve("context", (256, 512, 1024, 2048, 4096), anchor=4096, decodes=True),
        Curve("batch", (1, 2, 4, 8, 16, 32), anchor=8),
        Curve("layers", (2, 4, 8, 16), anchor=4),
    )
}


def measure(threads: int, rounds: int) -> list[dict]:
    """Return a row for each curve: its points, measured and predicted."""
    torch.set_num_threads(threads)
    return [_measure(curve, threads, rounds) for curve in CURVES.values()]


def _measure(curve: Curve, threads: int, rounds: int) -> dict:
    samples = alternate({str(value): curve.step(value) for value in curve.values}, rounds)
    times = {value: summary(samples[str(value)]) for value in curve.values}
    memory = {value: _memory(curve, value) for value in curve.values}
    anchor = curve.anchor
    points = [
        {
            "value": value,
            "time": times[value],
            "predicted_ms": times[anchor]["median_ms"] * curve.operations(value) / curve.operations(anchor),
            "bytes": memory[value],
            "predicted_bytes": _predicted_memory(curve, value, memory[anchor]),
        }
        for value in curve.values
    ]
    return {"curve": curve.name, "threads": threads, "anchor": anchor, "points": points}


def _memory(curve: Curve, value: int) -> int:
    if not curve.decodes:
        return peak_of("growth", curve.name, str(value))
    return sum(cache.buffer.nbytes for cache in make_ours(curve.config(value)).new_cache(ROWS, value))


def _predicted_memory(curve: Curve, value: int, at_anchor: int) -> float:
    """16 bytes per weight, and the rest of the anchor's bytes in proportion to tokens and layers."""
    if curve.decodes:
        return ROWS * value * kv_cache_bytes(curve.config(value), bytes_per_element=4)

    def state(v: int) -> int:
        return 16 * count_parameters(curve.config(v)).total

    def kept(v: int) -> int:
        return curve.rows(v) * curve.config(v).num_hidden_layers

    return state(value) + (at_anchor - state(curve.anchor)) * kept(value) / kept(curve.anchor)
