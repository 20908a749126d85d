"""Recorded experiments: one thing changed, all else equal, several seeds, and the results kept as data.

An experiment has arms, each a model and a training configuration. Every arm is trained with every seed by
`minids train`, in a process and with a thread of its own, as many at once as there are cores. Seeds change
the initial weights and the order of the text; arms of one seed read the same text in the same order, so
they can be compared pair by pair.

The result is one file, figures/data/NAME.json:

    seeds, minutes                   which, and how many minutes all runs took together
    machine                          the one that wrote the file
    arms       NAME                  its configuration, as in config.json, and the training settings that it changes
    runs       arm, seed, report     the report of that run (report.py); `measured`, if the experiment adds more
    log                              of one run, thinned, if the experiment keeps one

`python -m minids.book.experiments` lists the experiments and runs one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from minids.book.recorded import DATA
from minids.device import cpu_name
from minids.files import write_atomically
from minids.model.config import ModelConfig
from minids.text.corpus import load_corpus
from minids.text.own_text import read_texts
from minids.training.config import MINIATURE, TrainConfig
from minids.training.log import read_log
from minids.validation import require

SEEDS = (0, 1, 2)
DEFAULT = MINIATURE
SAME_FOR_ALL = ("seed", "dtype")  # every arm is trained with every seed, and in the dtype of the machine


@dataclass(frozen=True)
class Arm:
    """One variant that is compared. Raises ValueError for a training setting that all arms must share."""

    model: ModelConfig
    train: TrainConfig = DEFAULT

    def __post_init__(self):
        for name in SAME_FOR_ALL:
            shared = getattr(DEFAULT, name)
            require(name, getattr(self.train, name), name not in self.changed, f"{shared!r}, the same for all arms")

    @property
    def changed(self) -> dict:
        """The training settings that are not the default."""
        return {name: value for name, value in asdict(self.train).items() if value != getattr(DEFAULT, name)}


@dataclass(frozen=True)
class Experiment:
    """Arms by name, and what is kept of their runs beside the reports. Raises ValueError for names that collide."""

    name: str
    arms: dict[str, Arm]
    logged: str | None = None  # the arm whose first run's log is kept
    measure: Callable[[str, Path], dict | None] | None = None  # arm, folder of a finished run -> what else to keep

    def __post_init__(self):
        files = [self.name, *map(_file_name, self.arms)]
        if len(set(files)) < len(files):
            raise ValueError(f"{', '.join(files)} must be different: they are files of one folder.")
        if self.logged is not None and self.logged not in self.arms:
            raise ValueError(f"logged={self.logged!r} is no arm: there are {', '.join(self.arms)}.")


def record(
    experiment: Experiment, folder: Path, seeds: tuple[int, ...] = SEEDS, data: Path | None = None
) -> tuple[dict, Path]:
    """Do the runs that are not yet in `folder`, write the results, and return them with the file's path.

    With the book's seeds and corpus that is figures/data/NAME.json, else NAME.json in the folder. `data` is text
    of one's own, as in `minids train`; `measure` is not called for it. Raises ValueError if the folder
    holds runs of other settings, RuntimeError if a run fails.
    """
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds {', '.join(map(str, seeds))} are not possible: they must differ and be at least 0.")
    text = (load_corpus() if data is None else read_texts(data)).sha256
    _remember(experiment, folder, text)
    jobs = [(arm, seed) for seed in seeds for arm in experiment.arms]
    # A thread waits for each process. Each run has one thread: a second would gain less than a second run.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        runs = [pool.submit(_run, experiment, folder, *job, data) for job in jobs]
        ended, waiting = wait(runs, return_when=FIRST_EXCEPTION)
        for run in waiting:  # after a failure, started runs finish and no other starts
            run.cancel()
        for run in ended:
            run.result()
    reports = [run.result() for run in runs]
    rows = []
    for (arm, seed), report in zip(jobs, reports, strict=True):
        rows.append({"arm": arm, "seed": seed, "report": report})
        measure = experiment.measure if data is None else None
        if measure and (measured := measure(arm, _run_folder(folder, arm, seed))) is not None:
            rows[-1]["measured"] = measured
    result = {
        "seeds": list(seeds),
        "minutes": round(sum(report["seconds"] for report in reports) / 60, 1),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "arms": {name: {"model": arm.model.to_hf(), "train": arm.changed} for name, arm in experiment.arms.items()},
        "runs": rows,
    }
    if experiment.logged is not None:
        result["log"] = thin(read_log(_run_folder(folder, experiment.logged, seeds[0]) / "log.jsonl"))
    the_books = tuple(seeds) == SEEDS and data is None
    target = (DATA if the_books else folder) / f"{experiment.name}.json"
    write_atomically(target, json.dumps(result) + "\n")
    return json.loads(json.dumps(result)), target


def _run(experiment: Experiment, folder: Path, arm: str, seed: int, data: Path | None) -> dict:
    """Train one arm with one seed unless that is done, and return its report. An interrupted run is resumed."""
    out = _run_folder(folder, arm, seed)
    if not (out / "report.json").exists():
        out.mkdir(exist_ok=True)
        options = {"config": _arm_file(folder, arm), "out": out, "seed": seed, "threads": 1, "device": "cpu"}
        options |= experiment.arms[arm].changed | ({"data": data} if data is not None else {})
        command = [sys.executable, "-m", "minids", "train", "--resume"]
        for name, value in options.items():
            values = value if isinstance(value, tuple) else (value,)
            command += [f"--{name.replace('_', '-')}", *map(str, values)]
        with (out / "stderr.txt").open("w", encoding="utf-8") as errors:
            finished = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=errors)
        if finished.returncode:
            last = ((out / "stderr.txt").read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{arm}, seed {seed} ended with {finished.returncode}: {last}")
        print(f"{arm}, seed {seed}: done", flush=True)
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def _remember(experiment: Experiment, folder: Path, text: str) -> None:
    """Write the arms' settings, for `minids train`, and to refuse a folder whose runs had other settings."""
    settings = {}
    for name, arm in experiment.arms.items():
        file = _arm_file(folder, name)
        settings[file] = json.dumps(arm.model.to_hf(), indent=1) + "\n"
        settings[file.with_suffix(".train.json")] = json.dumps(arm.changed | {"corpus_sha256": text}) + "\n"
    for file, content in settings.items():
        if file.exists() and file.read_text(encoding="utf-8") != content:
            raise ValueError(f"{folder} holds runs with another {file.name}: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in settings.items():
        write_atomically(file, content)


def _arm_file(folder: Path, arm: str) -> Path:
    return folder / f"{_file_name(arm)}.json"


def _run_folder(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{_file_name(arm)}-{seed}"


def _file_name(arm: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in arm).split()).lower()


def thin(log: list[dict]) -> list[dict]:
    """Keep what the pictures show of each log line, with few digits."""
    return [
        {
            "step": record["step"],
            "bits_per_byte": {domain: round(value, 3) for domain, value in record["bits_per_byte"].items()},
            "max_violation": [value and round(value, 3) for value in record["max_violation"]],
            "load": record["load"],
            **{name: round(record[name], 3) for name in ("next_token", "mtp", "gradient_norm", "seconds")},
        }
        for record in log
    ]


def changed_arms(result: dict, experiment: Experiment) -> list[str]:
    """Return the names of arms that are recorded with other settings than the experiment has now, or not at all."""
    recorded = result["arms"]
    return sorted(
        name
        for name in recorded.keys() | experiment.arms.keys()
        if name not in recorded
        or name not in experiment.arms
        or ModelConfig.from_hf(recorded[name]["model"]) != experiment.arms[name].model
        or recorded[name]["train"] != json.loads(json.dumps(experiment.arms[name].changed))  # a tuple is a list there
    )
