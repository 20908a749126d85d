"""Reads what is recorded in figures/data: the runs of an experiment, and the rows of the bench.

`minids.book.experiments.runner` and `pool` make the runs and document the two formats.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minids.cost.cache import kv_cache_elements
from minids.model.config import ModelConfig

DATA = Path(__file__).parents[2] / "figures" / "data"
STANDINGS = ("ahead of", "behind", "not separated from")


@dataclass(frozen=True)
class Measured:
    """One number of all runs of an arm, in the order of their seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def below(self, other: "Measured") -> bool:
        """Whether this arm is separated from the other and below it.

        Runs with the same seeds are compared: this arm is below in each of them, and on average by two standard
        deviations of the differences or more. Anything less is not called an effect in this book. Takes two runs or
        more, as many of either arm.
        """
        differences = [theirs - ours for ours, theirs in zip(self.values, other.values, strict=True)]
        return min(differences) > 0 and statistics.mean(differences) >= 2 * statistics.stdev(differences)

    def apart(self, other: "Measured") -> bool:
        """Whether the two arms are separated, in either direction."""
        return self.below(other) or other.below(self)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def load(name: str) -> dict:
    """Return the recorded results of an experiment, or of the bench."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def reports_of(result: dict, arm: str) -> list[dict]:
    """Return the reports of one arm, in the order of the seeds."""
    return [row["report"] for row in result["runs"] if row["arm"] == arm]


def scores_of(result: dict, arm: str) -> list[float]:
    """Return the held-out bits per byte of prose and code together of each run of an arm, in the order of the seeds."""
    return [report["bits_per_byte"]["prose_and_code"] for report in reports_of(result, arm)]


def runs_of(result: dict, arm: str) -> list[dict]:
    """Return the short runs of one arm (pool.py), in the order of their seeds of weights and of data."""
    runs = [run for run in result["runs"] if run["arm"] == arm]
    return sorted(runs, key=lambda run: (run["weights"], run["data"]))


def bits_of(result: dict, arm: str) -> np.ndarray:
    """Return the held-out bits per byte of prose and code of an arm's short runs by seed, (weights, data)."""
    bits = [run["bits_per_byte"]["prose_and_code"] for run in runs_of(result, arm)]
    return np.array(bits).reshape(len(result["seeds"]), -1)


def compare(result: dict, arm: str, other: str) -> str:
    """Return the standing of an arm of short runs: "ahead of" another, "behind" or "not separated from" it."""
    one, two = (Measured(tuple(bits_of(result, name).ravel().tolist())) for name in (arm, other))
    ahead, behind, neither = STANDINGS
    return ahead if one.below(two) else behind if two.below(one) else neither


def noise(result: dict) -> dict[str, float]:
    """Return how far two short runs of an arm that differ only in the seed of weights, or of data, are apart on
    average."""
    bits = np.stack([bits_of(result, arm) for arm in result["arms"]])
    return {seed: float(np.abs(np.diff(bits, axis=axis)).mean()) for axis, seed in ((1, "weights"), (2, "data"))}


def model_of(result: dict, arm: str) -> ModelConfig:
    """Return the model that an arm trained."""
    return ModelConfig.from_hf(result["arms"][arm]["model"])


def cached_per_layer(result: dict, arm: str) -> int:
    """Return how many numbers an arm's model caches per token and layer."""
    config = model_of(result, arm)
    return kv_cache_elements(config) // config.num_hidden_layers
