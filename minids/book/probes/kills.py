"""A training run whose process is killed at random moments, and which is resumed each time (chapter 10).

A *life* is what a process does of the run: it begins or resumes it, and trains. All but the last are ended by SIGKILL,
which a process can neither catch nor delay. What a life did is then read from what it left in the folder: the log has a
line for each step, the checkpoint knows its own step, and whoever dies while saving leaves the hidden folder in which
files.py writes.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing as mp
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from minids.model.config import ModelConfig
from minids.parallel.launch import PRELOADED, end_with_parent, main_module_hidden
from minids.text.arithmetic import arithmetic_documents
from minids.text.corpus import Corpus
from minids.training.checkpoint import find_checkpoint, read_head
from minids.training.config import TrainConfig
from minids.training.log import read_log
from minids.training.run import start_run
from minids.training.sharded import load_state
from minids.validation import require_whole

MODEL = replace(ModelConfig.preset("tiny"), num_hidden_layers=2)
CONFIG = TrainConfig(steps=60, batch_size=4, sequence_length=16, save_every=3)
LONGEST = 8  # steps of a life before it is killed, at most


@dataclass(frozen=True)
class Life:
    """The steps done at its start and at its end, whether it was killed, and whether it was saving then."""

    start: int
    end: int
    killed: bool = False
    saving: bool = False


@dataclass(frozen=True)
class KilledRun:
    """The lives of a run, of which the last came to its end, and the digests of its result and an undisturbed run's."""

    lives: tuple[Life, ...]
    steps: int
    save_every: int
    digest: str
    undisturbed: str

    @property
    def kills(self) -> int:
        return sum(life.killed for life in self.lives)

    @property
    def repeated(self) -> int:
        """The number of steps that were lost and done again."""
        return sum(life.end - life.start for life in self.lives) - self.steps

    @property
    def same(self) -> bool:
        """Whether weights, moments and log are those of the undisturbed run, bit for bit."""
        return self.digest == self.undisturbed


def killed_run(kills: int = 21, seed: int = 0) -> KilledRun:
    """Train a small model, kill its process so many times, resume it each time, and return what happened.

    A process is killed while it starts, or after 1 to 7 steps and a fraction of the mean time of a step and its share
    of the saving. Numbers of steps and fractions are drawn with the seed; what a process does at such a moment depends
    on the machine. Raises RuntimeError if a process ends in another way.
    """
    require_whole("kills", kills)
    require_whole("seed", seed, at_least=0)
    rng, lives, start = np.random.default_rng(seed), [], 0
    with tempfile.TemporaryDirectory(prefix="minids-") as parent:
        undisturbed, folder = Path(parent) / "undisturbed", Path(parent) / "killed"
        starting, training = _live(undisturbed)
        for _ in range(kills):
            steps, fraction = int(rng.integers(LONGEST)), rng.random()
            if steps == 0:
                _live(folder, Kill(None, fraction * starting), last=start)
                lives.append(Life(start, start, killed=True))
            else:
                _live(folder, Kill(min(start + steps, CONFIG.steps - 1), fraction * training / CONFIG.steps))
                saving = any(folder.glob(".checkpoint*"))
                lives.append(Life(start, _steps_in(folder / "log.jsonl"), killed=True, saving=saving))
            path = find_checkpoint(folder)
            start = read_head(path)["step"] if path else 0
        _live(folder)
        lives.append(Life(start, _steps_in(folder / "log.jsonl")))
        return KilledRun(tuple(lives), CONFIG.steps, CONFIG.save_every, digest_of(folder), digest_of(undisturbed))


@dataclass(frozen=True)
class Kill:
    """When a process is killed: so many seconds after the run has done a step, or (None) after its own start."""

    after_step: int | None
    seconds: float


def _live(folder: Path, kill: Kill | None = None, last: int = CONFIG.steps) -> tuple[float, float] | None:
    """Train in a new process to the end, and return how many seconds starting and training took; or kill it.

    A process that is to be killed does not train beyond the `last` step: on a busy machine the signal may come late.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, __name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(folder, None if kill is None else last, sender), daemon=True)
    with main_module_hidden():
        process.start()
    sender.close()
    try:
        if kill is None:
            return receiver.recv(), receiver.recv()
        if kill.after_step is not None:
            receiver.recv()  # it has resumed: the log has the steps of the checkpoint and no others
            while process.is_alive() and _steps_in(folder / "log.jsonl") < kill.after_step:
                time.sleep(0.001)
        process.join(kill.seconds)
    except EOFError:
        pass  # it has ended before its time, as its exit code will say
    finally:
        if kill is not None:
            process.kill()
        process.join()
    if process.exitcode != (0 if kill is None else -signal.SIGKILL):
        raise RuntimeError(f"a process of the run ended with exit code {process.exitcode}.")


def _train(folder: Path, last: int | None, sender: Connection) -> None:
    """Begin or resume the run and send the seconds; train to its end and send the seconds, or wait at the last step."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    gc.freeze()  # to look for garbage in all that the fork server has loaded would take longer than the training
    torch.set_num_threads(1)

    def wait_at_last(step: int) -> None:
        if step == last:
            time.sleep(600)

    began = time.perf_counter()
    run = start_run(MODEL, CONFIG, sums(), folder, resume=True)
    started = time.perf_counter()
    sender.send(started - began)
    wait_at_last(run.trainer.step)
    run.trainer.run(lambda record: wait_at_last(record["step"] + 1))
    sender.send(time.perf_counter() - started)


def sums() -> Corpus:
    """A small text to train on: arithmetic problems."""
    text = {split: {"arithmetic": arithmetic_documents(split, 50)} for split in ("train", "validation")}
    return Corpus(**text, mixture={"arithmetic": 1})


def _steps_in(log: Path) -> int:
    return log.read_bytes().count(b"\n")


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of a run's weights, biases and moments, and of its log without the seconds."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_state(find_checkpoint(folder)).tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    for record in read_log(folder / "log.jsonl"):
        digest.update(json.dumps(record | {"seconds": None}).encode())
    return digest.hexdigest()
