"""Training runs that SIGKILL ends at a chosen moment; new processes import them by name."""

import gc
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from helpers_training import small_config, small_corpus, small_train_config

from minids.parallel.layout import Layout
from minids.tensors import write_tensors
from minids.training import checkpoint
from minids.training.run import start_run

WRITERS = ("minids/files.py", "minids/training/log.py")


def train(rank: int, folder: Path, kind: str = "", number: int = 0) -> Counter:
    """Begin or resume a run in the folder, train to its end, and return how many moments it had, by kind."""
    moments = die_at(kind, number)
    run = start_run(small_config(), small_train_config(save_every=2), small_corpus(), folder, resume=True)
    run.trainer.run()
    sys.setprofile(None)
    moments["tearing"] = run.trainer.checkpoint_path.stat().st_size
    return moments


def train_together(rank: int, folder: Path, flags: dict, who: int = -1, kind: str = "", number: int = 0) -> Counter:
    """The same by several processes, of which one may be killed."""
    moments = die_at(kind, number) if who in (-1, rank) else Counter()
    config = small_train_config(save_every=2, batch_size=8)
    run = start_run(small_config(), config, small_corpus(), folder, resume=True, layout=Layout(**flags))
    run.trainer.run()
    sys.setprofile(None)
    return moments


def die_at(kind: str, number: int) -> Counter:
    """Let this process be killed at a moment, and count its moments.

    A moment is a call of any function, or the return from it: "saving" a checkpoint, "writing" something else, or
    "computing"; or a byte of a checkpoint, "tearing" it. It is the same on a fast machine and on a slow one.
    """
    moments, saves = Counter(), 0

    def look(frame, event, argument):
        nonlocal saves
        if frame.f_code.co_name in ("save_checkpoint", "save_sharded") and event in ("call", "return"):
            saves += 1 if event == "call" else -1
        writes = any(at and at.f_code.co_filename.endswith(WRITERS) for at in (frame, frame.f_back))
        now = "saving" if saves else "writing" if writes else "computing"
        moments[now] += 1
        if (now, moments[now]) == (kind, number):
            os.kill(os.getpid(), signal.SIGKILL)

    def tear(file, tensors, metadata):
        write_tensors(file, tensors, metadata)
        os.truncate(file, number)
        os.kill(os.getpid(), signal.SIGKILL)

    if kind == "tearing":
        checkpoint.write_tensors = tear
    gc.freeze()  # to look for garbage in all that the fork server has loaded would take longer than the training
    sys.setprofile(look)
    return moments
