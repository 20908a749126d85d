"""mini against its dense twin, three seeds each, at equal tokens and at equal time; and mini with V3's recipe.

The arm with V3's recipe (TrainConfig's defaults) differs in more than AdamW: in rate, β2, decay and batch. A step of it
has half the tokens, and there are twice as many steps; in the same time it trains on as many tokens (0.99 times). Equal
time needs a ratio of speeds, which cannot be measured while other runs are going. So the dense twin's steps for equal
time are a constant here, and the ratios are measured by

    python -m minids.book.experiments.miniature

on all cores, with training steps of the arms in turn in one process. Let nothing else run meanwhile.
"""

import statistics
from dataclasses import replace

import torch

from minids.book.bench.measure import alternate, ratio
from minids.book.experiments.runner import Arm, Experiment
from minids.book.recorded import reports_of
from minids.device import best_dtype
from minids.model.config import ModelConfig
from minids.text.corpus import load_corpus
from minids.training.config import MINIATURE, TrainConfig
from minids.training.run import start_run
from minids.units import markdown_table

DENSE_SPEEDUP = 1.4  # steps of mini-dense in the time of one of mini
_MINI, _DENSE = ModelConfig.preset("mini"), ModelConfig.preset("mini-dense")
EXPERIMENT = Experiment(
    name="miniature",
    arms={
        "mini": Arm(_MINI),
        "mini, AdamW": Arm(_MINI, TrainConfig()),
        "dense, equal tokens": Arm(_DENSE),
        "dense, equal time": Arm(_DENSE, replace(MINIATURE, steps=round(MINIATURE.steps * DENSE_SPEEDUP))),
    },
    logged="mini",
)


def measure_speed(rounds: int = 12) -> dict[str, float]:
    """Return how many tokens each arm trains in the time in which mini trains one: medians of the rounds."""
    dtype, corpus = best_dtype(torch.device("cpu")), load_corpus()
    arms = {name: EXPERIMENT.arms[name] for name in ("mini", "mini, AdamW", "dense, equal tokens")}
    trainers = {
        name: start_run(arm.model, replace(arm.train, steps=10**6, dtype=dtype), corpus).trainer
        for name, arm in arms.items()
    }
    samples = alternate({name: trainer.train_step for name, trainer in trainers.items()}, rounds)
    tokens = {name: trainer.config.batch_size for name, trainer in trainers.items()}
    return {
        name: ratio(samples["mini"], taken)["median"] * tokens[name] / tokens["mini"]
        for name, taken in samples.items()
    }  # fmt: skip


def table(data: dict) -> str:
    """Return the results as a Markdown table: medians over the seeds, and the range of the bits per byte."""
    arms = {arm: reports_of(data, arm) for arm in EXPERIMENT.arms}
    baseline = arms["mini"]
    header = ["held-out", *arms, "5-gram, same bytes as mini"]
    rows = [
        [f"{name.replace('_', ' ')}, bits per byte"]
        + [_median_and_range(reports, "bits_per_byte", name) for reports in arms.values()]
        + [_median_and_range(baseline, "baseline_bits_per_byte", name)]
        for name in ("prose", "code", "prose_and_code")
    ]
    measures = {
        "arithmetic solved exactly": lambda r: f"{r['arithmetic_accuracy']:.0%}",
        "MTP's second token agrees": lambda r: f"{r['mtp_agreement']:.0%}",
        "tokens trained on": lambda r: f"{r['tokens'] / 1e6:.2f} M",
        "parameters, active / total": lambda r: "{active:,} / {total:,}".format(**r["parameters"]),
    }
    for name, show in measures.items():
        rows.append([name, *(show(_median_report(reports, name)) for reports in arms.values()), ""])
    return markdown_table([header, *rows])


def _median_and_range(reports: list[dict], table: str, name: str) -> str:
    values = sorted(report[table][name] for report in reports)
    return f"{statistics.median(values):.3f} ({values[0]:.3f} – {values[-1]:.3f})"


def _median_report(reports: list[dict], measure: str) -> dict:
    """The report in the middle by what is shown; tokens and parameters are the same in all of them."""
    key = {"arithmetic solved exactly": "arithmetic_accuracy", "MTP's second token agrees": "mtp_agreement"}
    return sorted(reports, key=lambda report: report[key.get(measure, "tokens")])[len(reports) // 2]


if __name__ == "__main__":
    for name, speed in measure_speed().items():
        print(f"{name}: {speed:.2f} times the tokens of mini in the same time")
