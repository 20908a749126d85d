"""Experiments of many short runs: as many at once as there are cores, each with one thread.

A run has a seed for its initial weights and one for the order of its text. Where the two are crossed, every arm is
trained with every pair of them, so that both kinds of noise are known. Arms of one pair read the same text in the same
order.

The result of each run is kept in a file of the folder as soon as it is there, under a name that depends on all settings
of the run, so that an interrupted experiment goes on where it stopped. (The name does not depend on the code: after a
change of what is measured, take a new folder.) The result of all is figures/data/NAME.json:

    seeds, minutes                   which, and how many minutes of one core all runs took together
    machine, torch, corpus_sha256    what wrote the file
    train                            the training settings that all arms share
    arms       NAME                  its configuration, as in config.json, and what else makes it
    runs       arm, weights, data    the two seeds, and what was measured
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch

from minids.book.recorded import DATA
from minids.device import cpu_name
from minids.files import write_atomically
from minids.hub.reference import reference
from minids.model.config import ModelConfig
from minids.text.batches import Batches, encode_split
from minids.text.corpus import load_corpus
from minids.text.tokenizer import Tokenizer
from minids.training.config import TrainConfig
from minids.training.run import Run, start_run
from minids.validation import require

DOMAINS = ("prose", "code")


@dataclass(frozen=True)
class Arm:
    """A model, the training settings that it changes, and what else its experiment knows of it (plain JSON)."""

    model: ModelConfig
    train: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)

    def settings(self) -> dict:
        """Return everything that makes the arm, as it is recorded."""
        return {"model": self.model.to_hf(), "train": self.train, **self.extra}


@dataclass(frozen=True)
class Experiment:
    """Arms by name, and the function that trains one: `run(arm, weights, data)` returns what to keep (plain JSON).

    That includes "seconds" and "bits_per_byte", a number or, by domain, a dict with "all".
    """

    name: str
    train: TrainConfig
    arms: dict[str, Arm]
    run: Callable[[str, int, int], dict]
    seeds: tuple[int, ...] = (0, 1)
    crossed: bool = True  # every seed of weights with every seed of data, or only with the same


def jobs(experiment: Experiment, seeds: tuple[int, ...] | None = None) -> list[tuple[str, int, int]]:
    """Return arm, seed of weights and seed of data of every run. Raises ValueError for seeds below 0 or twice."""
    seeds = experiment.seeds if seeds is None else seeds
    require("seeds", seeds, len(set(seeds)) == len(seeds) and min(seeds) >= 0, "different numbers of at least 0")
    pairs = product(seeds, seeds) if experiment.crossed else [(seed, seed) for seed in seeds]
    return [(arm, *pair) for pair in pairs for arm in experiment.arms]


def record(
    experiment: Experiment, folder: Path, seeds: tuple[int, ...] | None = None, arms: Sequence[str] | None = None,
) -> Path:  # fmt: skip
    """Do the runs that are not yet in the folder, write the results, and return the file's path.

    With all arms and the experiment's own seeds that is figures/data/NAME.json, else NAME.json in the folder. Raises
    ValueError for seeds below 0 or twice, and for an arm that the experiment does not have.
    """
    whole = experiment
    if arms is not None:
        for arm in arms:
            require("arm", arm, arm in whole.arms, f"one of {', '.join(whole.arms)}")
        experiment = replace(whole, arms={arm: whole.arms[arm] for arm in arms})
    seeds = experiment.seeds if seeds is None else seeds
    all_jobs = jobs(experiment, seeds)
    header = {
        "seeds": list(seeds),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "torch": torch.__version__,
        "corpus_sha256": load_corpus().sha256,
        "train": asdict(experiment.train),
        "arms": {name: arm.settings() for name, arm in experiment.arms.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / _file_name(header, *job) for job in all_jobs]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(_run, experiment.run, file, job) for file, job in zip(files, all_jobs, strict=True)]
        try:
            for run in waiting:
                run.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # started runs finish and no other starts
            raise
    runs = [
        {"arm": arm, "weights": weights, "data": data} | json.loads(file.read_text(encoding="utf-8"))
        for file, (arm, weights, data) in zip(files, all_jobs, strict=True)
    ]
    result = header | {"minutes": round(sum(run["seconds"] for run in runs) / 60, 1), "runs": runs}
    complete = (tuple(seeds), list(experiment.arms)) == (whole.seeds, list(whole.arms))
    target = (DATA if complete else folder) / f"{experiment.name}.json"
    write_atomically(target, json.dumps(result) + "\n")
    return target


def _run(run: Callable[[str, int, int], dict], file: Path, job: tuple[str, int, int]) -> None:
    if file.exists():
        return
    torch.set_num_threads(1)
    result = run(*job)
    write_atomically(file, json.dumps(result) + "\n")
    bits = result["bits_per_byte"]
    bits = bits["all"] if isinstance(bits, dict) else bits
    print("{}, seeds {} and {}: {} bits per byte".format(*job, bits), flush=True)


def _file_name(header: dict, arm: str, weights: int, data: int) -> str:
    """A name that is another one for other settings."""
    settings = [header["corpus_sha256"], header["train"], header["arms"][arm]]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = "-".join("".join(c if c.isalnum() else " " for c in arm).split()).lower()
    return f"{name}-{digest}-{weights}-{data}.json"


def start(arm: Arm, train: TrainConfig, weights: int, data: int) -> Run:
    """Return the run of an arm, ready to start, on prose and code, with the reference model's tokenizer."""
    streams, tokenizer = text()
    corpus = load_corpus().only(*DOMAINS)
    train = replace(train, seed=weights, **arm.train)
    batches = Batches(streams, corpus.mixture, train.sequence_length, data)
    return start_run(arm.model, train, corpus, tokenizer=tokenizer, batches=batches)


@cache
def text() -> tuple[dict[str, np.ndarray], Tokenizer]:
    """Return the training streams of prose and code, and the reference model's tokenizer."""
    tokenizer = reference().tokenizer
    return encode_split(tokenizer, load_corpus().only(*DOMAINS).train), tokenizer
