"""mini against its dense twin, three seeds each, at equal tokens and at equal time.

    python -m minids.experiments.miniature RUNS_FOLDER

runs `minids train` nine times, two at once with one thread each, and writes figures/data/miniature.json:
the report of every run, and the log of mini's first seed for the pictures. About an hour on two cores.
Runs that are already in RUNS_FOLDER are not repeated.

Equal time needs a ratio of speeds, and a speed measured while another run is going is worth little.
So the dense twin's steps for equal time are a constant here, from a measurement of the two models'
training steps alternating in one process on a quiet machine.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minids.files import write_atomically
from minids.train import TrainConfig, read_log

SEEDS = (0, 1, 2)
STEPS = TrainConfig().steps
DENSE_SPEEDUP = 1.7  # tokens per second of mini-dense over mini
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


def run(folder: Path, arm: str, seed: int) -> dict:
    """Train one arm with one seed unless it is there already, and return its report."""
    out = run_folder(folder, arm, seed)
    if not (out / "report.json").exists():
        preset, steps = ARMS[arm]
        options = ["--config", preset, "--steps", str(steps), "--seed", str(seed), "--threads", "1"]
        command = [sys.executable, "-m", "minids", "train", *options, "--out", str(out), "--resume"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(f"{arm}, seed {seed}: done", flush=True)
    return json.loads((out / "report.json").read_text())


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
