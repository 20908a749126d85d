"""Time and memory of a training step of each arm of the ablation: `python -m minids.book.experiments.costs`.

The steps of all arms are timed in turn in one process, with one thread, in the dtype of the arm, and each time is
divided by that of the full model in the same round. Peak memory is by how much a process grows, with the text loaded,
that makes the trainer of an arm and takes three steps. Let nothing else run meanwhile. The result is
figures/data/costs.json: by arm, `step` (times the full model's: median, lowest, highest) and `peak_bytes`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import torch

from minids.book.bench.measure import alternate, ratio
from minids.book.bench.peak import report_growth
from minids.book.experiments import experts
from minids.book.experiments.ablation import ARMS, TRAIN
from minids.book.experiments.pool import Arm, start, text
from minids.book.recorded import DATA
from minids.device import cpu_name, keep_freed_memory
from minids.files import write_atomically
from minids.training.trainer import Trainer

ROUNDS = 9
# A step of more steps, or fewer, is no other. The model without MTP is chapter 4's.
MODELS = {name: arm for name, arm in ARMS.items() if "steps" not in arm.train}
MODELS["no MTP"] = Arm(experts.MODELS["1 + 7 of 63"])


def trainer_of(name: str) -> Trainer:
    """Return a trainer of an arm, ready to take steps."""
    return start(MODELS[name], replace(TRAIN, steps=10**6), 0, 0).trainer  # a run that does not end meanwhile


def measure() -> dict:
    """Return the time and memory of a training step of every arm."""
    torch.set_num_threads(1)
    keep_freed_memory()
    samples = alternate({name: trainer_of(name).train_step for name in MODELS}, ROUNDS)
    command = [sys.executable, "-m", "minids.book.experiments.costs", "--peak"]
    peaks = {
        name: int(subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout.split()[-1])
        for name in MODELS
    }
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "torch": torch.__version__,
        "arms": {
            name: {"step": ratio(taken, samples["full"]), "peak_bytes": peaks[name]} for name, taken in samples.items()
        },
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        torch.set_num_threads(1)
        text()  # the same for all arms
        report_growth(lambda: trainer_of(sys.argv[2]).train_step)
    elif sys.argv[1:]:
        sys.exit("There are no options: all arms are measured.")
    else:
        write_atomically(DATA / "costs.json", json.dumps(measure()) + "\n")
