"""Every stage of the growing model with five seeds: the scoreboard's noise floor (minids/book/growing.py).

A seed changes the initial weights and the order of the text; the stages of one seed read the same text in the same
order. Each run is one call of `grow`, as in the chapters, with one thread.
"""

from __future__ import annotations

from minids.book.experiments.pool import Arm, Experiment
from minids.book.growing import CHANGES, RECIPE, STAGES, grow, recipe_of


def run(stage: str, seed: int, _: int) -> dict:
    """Train a stage with a seed, of weights and data alike, and return its scores."""
    grown = grow(STAGES[stage], seed, recipe_of(stage))
    result = {"bits_per_byte": grown.bits_per_byte, "seconds": round(grown.seconds, 1)}
    more = {"max_violation": grown.max_violation, "acceptance": grown.acceptance}
    return result | {name: round(value, 3) for name, value in more.items() if value is not None}


EXPERIMENT = Experiment(
    name="growing", train=RECIPE, run=run, seeds=(0, 1, 2, 3, 4), crossed=False,
    arms={stage: Arm(model, CHANGES.get(stage, {})) for stage, model in STAGES.items()},
)  # fmt: skip
