"""The ablation table: the full model and every change to it, as recorded, and a reader's own change beside them.

    rows = recorded_rows()                                           # a Row of each change
    mine = ablate("8 heads", replace(FULL, num_attention_heads=8))   # trains it: half a minute a pair of seeds
    draw_ablation([*rows, short_full(), mine])                       # with the full model after as many steps

The rows were recorded by `make experiments NAME=ablation` (experiments/ablation.py says what is changed in each, and
what was expected), time and memory of a step by experiments/costs.py, and the model without MTP by chapter 4's
experiment. A row's differences are taken run by run: the same seed of weights and the same text as in the full model's
run. Two standard deviations of them decide whether a change is separated from the full model (recorded.py).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from minids.book.experiments.ablation import FULL, TRAIN, measure
from minids.book.experiments.pool import Arm
from minids.book.recorded import Measured, bits_of, load, model_of, runs_of, scores_of
from minids.cost.cache import kv_cache_bytes
from minids.cost.parameters import count_parameters
from minids.model.config import ModelConfig
from minids.training.config import TrainConfig
from minids.units import markdown_table
from minids.validation import require

QUICK = "full, 200 steps"  # what a reader's change is compared with
WITHOUT_MTP = "1 + 7 of 63"  # the name in chapter 4's experiment
SETTINGS = [field.name for field in fields(TrainConfig) if field.name not in ("steps", "seed")]
EARLIER = {  # row: a similar change in an earlier chapter's experiment, on another model: arm, and the arm it changes
    "MHA": ("attention", "MHA", "MLA 48 + 16"),
    "GQA": ("attention", "GQA", "MLA 48 + 16"),
    "coarse experts": ("experts", "0 + 2 of 16", "1 + 7 of 63"),
    "no shared expert": ("experts", "0 + 8 of 64", "1 + 7 of 63"),
    "no balancing": ("balance", "none", "bias + loss"),
    "auxiliary loss": ("balance", "loss 0.01", "bias + loss"),
    "no MTP": ("mtp", "none", "0.3, then 0.1"),
    "BF16": ("fp8", "BF16", "FP32"),
    "FP8": ("fp8", "FP8", "FP32"),
    "dense, active": ("experts", "dense, active", "1 + 7 of 63"),
    "dense, total": ("experts", "dense, total", "1 + 7 of 63"),
}


@dataclass(frozen=True)
class Row:
    """One change: its runs beside those of the full model, in the same order of seeds.

    `bits` and `full` are held-out bits per byte of prose and code, `earlier` the mean difference that a similar change
    made in an earlier chapter. MaxVio, accepted drafts, the time of a step (times the full model's) and the peak memory
    of training in bytes are None where there is none, or where it was not measured.
    """

    name: str
    model: ModelConfig
    bits: Measured
    full: Measured
    max_violation: float | None = None
    acceptance: float | None = None
    step: float | None = None
    peak_bytes: int | None = None
    earlier: float | None = None
    recorded: bool = True

    @property
    def differences(self) -> tuple[float, ...]:
        """Bits per byte minus the full model's, run by run; above 0 is worse."""
        return tuple(ours - theirs for ours, theirs in zip(self.bits.values, self.full.values, strict=True))

    @property
    def difference(self) -> float:
        """The mean of the differences."""
        return self.bits.mean - self.full.mean

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "not separated"; "one run" where nothing is known about the noise."""
        if len(self.bits.values) < 2:
            return "one run"
        return "better" if self.bits.below(self.full) else "worse" if self.full.below(self.bits) else "not separated"

    @property
    def cache_bytes(self) -> int:
        """The KV cache in bytes per token, in BF16."""
        return kv_cache_bytes(self.model)

    @property
    def active(self) -> int:
        """Active parameters."""
        return count_parameters(self.model).active

    @property
    def total(self) -> int:
        """All parameters but the MTP module's."""
        return count_parameters(self.model).total


@cache
def recorded_rows() -> tuple[Row, ...]:
    """Return the full model and every recorded change, in the order of the experiment; those at equal time last."""
    result, before = load("ablation"), load("experts")
    full = _bits(runs_of(result, "full"))
    named = {name: (model_of(result, name), runs_of(result, name)) for name in result["arms"] if name != QUICK}
    named["no MTP"] = model_of(before, WITHOUT_MTP), runs_of(before, WITHOUT_MTP)
    named = dict(sorted(named.items(), key=lambda row: row[0].endswith("equal time")))
    costs = load("costs")["arms"]
    return tuple(_row(name, model, runs, full, costs.get(name)) for name, (model, runs) in named.items())


def short_full() -> Row:
    """Return the full model after 200 steps, with which a reader's change is compared."""
    runs = runs_of(load("ablation"), QUICK)
    return _row(QUICK, FULL, runs, _bits(runs), None, recorded=False)


def ablate(
    name: str, model: ModelConfig = FULL, *, seeds: tuple[tuple[int, int], ...] = ((0, 0), (1, 1)), steps: int = 200,
    **train: object,
) -> Row:  # fmt: skip
    """Train a change of the full model, and return its row.

    `train` are settings of TrainConfig that the change needs, such as `bias_speed=0.0`. `seeds` are pairs, of the
    weights and of the text, as recorded: 0 or 1. With 200 steps a pair takes about half a minute on a laptop's core and
    is compared with the full model after 200 steps; with 800, as the recorded rows have, four times that. Raises
    ValueError for other steps and for other seeds, which have no recorded run to be compared with, and for settings
    that TrainConfig does not have.
    """
    require("steps", steps, steps in (200, TRAIN.steps), f"200, or the recorded rows' {TRAIN.steps}")
    for setting in train:
        require("setting", setting, setting in SETTINGS, f"one of {', '.join(SETTINGS)}")
    result = load("ablation")
    full = {(run["weights"], run["data"]): run for run in runs_of(result, "full" if steps == TRAIN.steps else QUICK)}
    pairs = [tuple(pair) for pair in seeds]
    known = bool(pairs) and set(pairs) <= full.keys() and len(set(pairs)) == len(pairs)
    require("seeds", seeds, known, f"different pairs among {', '.join(map(str, full))}")
    runs = [measure(Arm(model, {"steps": steps, **train}), *pair) for pair in pairs]
    return _row(name, model, runs, _bits([full[pair] for pair in pairs]), None, recorded=False)


def _row(name: str, model: ModelConfig, runs: list[dict], full: Measured, costs: dict | None, recorded=True) -> Row:
    step, peak = (costs["step"]["median"], costs["peak_bytes"]) if costs else (None, None)
    earlier = _earlier(name) if recorded else None
    means = (_mean(runs, "max_violation"), _mean(runs, "acceptance"))
    return Row(name, model, _bits(runs), full, *means, step, peak, earlier, recorded)


def _bits(runs: list[dict]) -> Measured:
    return Measured(tuple(run["bits_per_byte"]["prose_and_code"] for run in runs))


def _mean(runs: list[dict], what: str) -> float | None:
    values = [run[what] for run in runs if what in run]
    return statistics.mean(np.mean(value) for value in values) if values else None


def _earlier(name: str) -> float | None:
    if name not in EARLIER:
        return None
    experiment, arm, changed = EARLIER[name]
    result = load(experiment)
    if "report" in result["runs"][0]:
        return statistics.mean(scores_of(result, arm)) - statistics.mean(scores_of(result, changed))
    return float(bits_of(result, arm).mean() - bits_of(result, changed).mean())


def table(rows: tuple[Row, ...]) -> str:
    """Return rows as a Markdown table; the first is the full model."""
    header = ["change", "bits per byte", "minus the full model's", "", "cache per token", "MaxVio", "drafts accepted",
              "time of a step", "memory"]  # fmt: skip
    lines = [[row.name, f"{row.bits.mean:.3f}", *_verdict(row), f"{row.cache_bytes:,} B", *_rest(row)] for row in rows]
    lines[0][2:4] = ["", ""]
    return markdown_table([header, *lines])


def _verdict(row: Row) -> tuple[str, str]:
    low, high = min(row.differences), max(row.differences)
    return f"{row.difference:+.3f} ({low:+.3f} to {high:+.3f})".replace("-", "−"), row.verdict


def _rest(row: Row) -> list[str]:
    shown = [(row.max_violation, "{:.2f}"), (row.acceptance, "{:.0%}"), (row.step, "{:.2f}×")]
    memory = None if row.peak_bytes is None else row.peak_bytes / 1e6
    return ["" if value is None else form.format(value) for value, form in [*shown, (memory, "{:,.0f} MB")]]
