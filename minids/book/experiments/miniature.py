"""mini against its dense twin, three seeds each, at equal tokens and at equal time.

Equal time needs a ratio of speeds, which cannot be measured while other runs are going. So the dense twin's steps
for equal time are a constant here, and the ratio is measured by

    python -m minids.book.experiments.miniature

on all cores, with training steps of the two models in turn in one process. Let nothing else run meanwhile.
"""

import statistics

import torch

from minids.book.bench.measure import alternate, ratio
from minids.book.bench.peer import training_of_ours
from minids.book.experiments.runner import Arm, Experiment
from minids.book.recorded import reports_of
from minids.device import best_dtype
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.training.config import TrainConfig

STEPS = TrainConfig().steps
DENSE_SPEEDUP = 1.4  # tokens per second of mini-dense over mini
_MINI, _DENSE = ModelConfig.preset("mini"), ModelConfig.preset("mini-dense")
EXPERIMENT = Experiment(
    name="miniature",
    arms={
        "mini": Arm(_MINI),
        "dense, equal tokens": Arm(_DENSE),
        "dense, equal time": Arm(_DENSE, TrainConfig(steps=round(STEPS * DENSE_SPEEDUP))),
    },
    logged="mini",
)


def measure_speedup(rounds: int = 12) -> float:
    """Return how many times faster a training step of mini-dense is than one of mini: the median of the rounds."""
    config, dtype = TrainConfig(), best_dtype(torch.device("cpu"))
    steps = {
        name: training_of_ours(DeepSeek(ModelConfig.preset(name)), config.batch_size, config.sequence_length, dtype)
        for name in ("mini", "mini-dense")
    }
    samples = alternate(steps, rounds)
    return ratio(samples["mini"], samples["mini-dense"])["median"]


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
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _median_and_range(reports: list[dict], table: str, name: str) -> str:
    values = sorted(report[table][name] for report in reports)
    return f"{statistics.median(values):.3f} ({values[0]:.3f} – {values[-1]:.3f})"


def _median_report(reports: list[dict], measure: str) -> dict:
    """The report in the middle by what is shown; tokens and parameters are the same in all of them."""
    key = {"arithmetic solved exactly": "arithmetic_accuracy", "MTP's second token agrees": "mtp_agreement"}
    return sorted(reports, key=lambda report: report[key.get(measure, "tokens")])[len(reports) // 2]


if __name__ == "__main__":
    print(f"mini-dense trains {measure_speedup():.2f} times as fast as mini")
