"""Reads what is recorded in figures/data: the runs of an experiment, and the rows of the bench.

`minids.book.experiments.runner` makes the runs and documents the format.
"""

import json
from pathlib import Path

from minids.cost.cache import kv_cache_elements
from minids.model.config import ModelConfig

DATA = Path(__file__).parents[2] / "figures" / "data"


def load(name: str) -> dict:
    """Return the recorded results of an experiment, or of the bench."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def reports_of(result: dict, arm: str) -> list[dict]:
    """Return the reports of one arm, in the order of the seeds."""
    return [row["report"] for row in result["runs"] if row["arm"] == arm]


def scores_of(result: dict, arm: str) -> list[float]:
    """Return the held-out bits per byte of prose and code together of each run of an arm, in the order of the seeds."""
    return [report["bits_per_byte"]["prose_and_code"] for report in reports_of(result, arm)]


def model_of(result: dict, arm: str) -> ModelConfig:
    """Return the model that an arm trained."""
    return ModelConfig.from_hf(result["arms"][arm]["model"])


def cached_per_layer(result: dict, arm: str) -> int:
    """Return how many numbers an arm's model caches per token and layer."""
    config = model_of(result, arm)
    return kv_cache_elements(config) // config.num_hidden_layers
