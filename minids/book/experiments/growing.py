"""Every stage of the growing model with five seeds: the scoreboard's noise floor (minids/book/growing.py).

A seed changes the initial weights and the order of the text; the stages of one seed read the same text in the same
order. Each run is one call of `grow`, as in the chapters, with one thread.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from minids.book.growing import RECIPE, STAGES, grow
from minids.book.recorded import DATA
from minids.device import cpu_name
from minids.files import write_atomically
from minids.text.corpus import load_corpus

NAME, SEEDS = "growing", (0, 1, 2, 3, 4)


def record(folder: Path, seeds: tuple[int, ...] = SEEDS) -> Path:
    """Train every stage with every seed and write the results: figures/data/growing.json for the book's seeds, else a
    file in the folder. Return its path."""
    jobs = [(stage, seed) for seed in seeds for stage in STAGES]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(_run, *zip(*jobs, strict=True)))
    result = {
        "seeds": list(seeds),
        "minutes": round(sum(run["seconds"] for run in runs) / 60, 1),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "torch": torch.__version__,
        "corpus_sha256": load_corpus().sha256,
        "train": asdict(RECIPE),
        "arms": {stage: {"model": config.to_hf()} for stage, config in STAGES.items()},
        "runs": runs,
    }
    target = (DATA if tuple(seeds) == SEEDS else folder) / f"{NAME}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps(result) + "\n")
    return target


def _run(stage: str, seed: int) -> dict:
    torch.set_num_threads(1)
    grown = grow(STAGES[stage], seed)
    print(f"{stage}, seed {seed}: {grown.bits_per_byte:.3f} bits per byte", flush=True)
    return {"arm": stage, "seed": seed, "bits_per_byte": grown.bits_per_byte, "seconds": round(grown.seconds, 1)}
