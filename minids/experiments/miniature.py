"""mini against its dense twin, three seeds each, at equal tokens and at equal time.

    python -m minids.experiments.miniature RUNS_FOLDER
    python -m minids.experiments.miniature --speed

The first runs `minids train` nine times, two at once with one thread each, and writes figures/data/miniature.json:
the report of every run, and the log of mini's first seed for the pictures. About 45 minutes on two cores.
Runs that are already in RUNS_FOLDER are not repeated.

Equal time needs a ratio of speeds, and a speed measured while another run is going is worth little.
So the dense twin's steps for equal time are a constant here. The second command measures the ratio: on
all cores, training steps of the two models in turn, in one process. Let nothing else run meanwhile.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from minids.config import ModelConfig
from minids.files import write_atomically
from minids.model import DeepSeek
from minids.train import TrainConfig, autocast, best_dtype, make_optimizer, read_log

SEEDS = (0, 1, 2)
STEPS = TrainConfig().steps
DENSE_SPEEDUP = 1.4  # tokens per second of mini-dense over mini
# name -> preset, steps
ARMS = {
    "mini": ("mini", STEPS),
    "dense, equal tokens": ("mini-dense", STEPS),
    "dense, equal time": ("mini-dense", round(STEPS * DENSE_SPEEDUP)),
}
TARGET = Path(__file__).parents[2] / "figures" / "data" / "miniature.json"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(arm, seed) for seed in SEEDS for arm in ARMS]
    with ThreadPoolExecutor(max_workers=2) as pool:
        reports = list(pool.map(lambda job: run(folder, *job), jobs))
    rows = [{"arm": arm, "seed": seed, "report": report} for (arm, seed), report in zip(jobs, reports, strict=True)]
    log = read_log(run_folder(folder, "mini", SEEDS[0]) / "log.jsonl")
    write_atomically(TARGET, json.dumps({"dense_speedup": DENSE_SPEEDUP, "runs": rows, "log": thin(log)}) + "\n")
    print(f"wrote {TARGET}")


def measure_speedup(steps: int = 40) -> float:
    """Return how many times faster a training step of mini-dense is than one of mini: the ratio of medians."""
    device, config = torch.device("cpu"), TrainConfig(dtype=best_dtype(torch.device("cpu")))
    models = {name: DeepSeek(ModelConfig.preset(name)) for name in ("mini", "mini-dense")}
    optimizers = {name: make_optimizer(model, config) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(steps):
        tokens = torch.randint(0, 2048, (config.batch_size, config.sequence_length + 1))
        for name, model in models.items():
            began = time.perf_counter()
            with autocast(device, config.dtype):
                terms = model.loss(tokens)
            terms.total.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            model.update_expert_bias(config.bias_speed)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[5:]) for name, times in seconds.items()}  # the first steps warm up
    return medians["mini"] / medians["mini-dense"]


def run(folder: Path, arm: str, seed: int) -> dict:
    """Train one arm with one seed unless it is there already, and return its report."""
    out = run_folder(folder, arm, seed)
    if not (out / "report.json").exists():
        preset, steps = ARMS[arm]
        options = ["--config", preset, "--steps", str(steps), "--seed", str(seed), "--threads", "1"]
        command = [sys.executable, "-m", "minids", "train", *options, "--out", str(out), "--resume"]
        out.mkdir(parents=True, exist_ok=True)
        with (out / "stderr.txt").open("w") as errors:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=errors)
        print(f"{arm}, seed {seed}: done", flush=True)
    report = json.loads((out / "report.json").read_text())
    if report["train"]["steps"] != ARMS[arm][1]:
        raise ValueError(f"{out} is a run of {report['train']['steps']} steps: take another folder.")
    return report


def run_folder(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def thin(log: list[dict]) -> list[dict]:
    """Keep of each log line what the pictures show, with few digits."""
    return [
        {
            "step": record["step"],
            "bits_per_byte": {domain: round(value, 3) for domain, value in record["bits_per_byte"].items()},
            "max_violation": [round(value, 3) for value in record["max_violation"]],
            "load": [record["load"][0]],
        }
        for record in log
    ]


def table(data: dict) -> str:
    """Return the results as a Markdown table: medians over the seeds, and the range of the bits per byte."""
    arms = {arm: [row["report"] for row in data["runs"] if row["arm"] == arm] for arm in ARMS}
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="where the runs are kept, and found again")
    parser.add_argument("--speed", action="store_true", help="only measure how much faster the dense twin trains")
    arguments = parser.parse_args()
    if arguments.speed:
        print(f"mini-dense trains {measure_speedup():.2f} times as fast as mini")
    elif arguments.folder is not None:
        main(arguments.folder)
    else:
        parser.error("give a folder for the runs, or --speed")
