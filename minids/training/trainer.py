"""The loop around the training step (step.py): the bias update, a log line per step, checkpoints, and exact resume.

After each optimizer step the biases of the gates are updated once. Another loss than pre-training's is an argument:
`Trainer(loss=...)`. For several processes, some methods are replaced (distributed.py).
"""

from __future__ import annotations

import json
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from minids.files import remove_leftovers
from minids.model.balance import max_violation
from minids.model.deepseek import DeepSeek
from minids.model.kernels import local
from minids.model.moe import Gate
from minids.quantization.products import Recipe, leave_fp8, use_fp8
from minids.training.checkpoint import (
    FILE,
    find_checkpoint,
    remove_other_kind,
    save_checkpoint,
)
from minids.training.config import TrainConfig
from minids.training.log import Log
from minids.training.optimizer import make_optimizer
from minids.training.sharded import load_state
from minids.training.step import (
    Batch,
    Loss,
    Terms,
    TrainingDiverged,
    accumulate_gradients,
    as_batch,
    language_model_loss,
    update_weights,
)  # fmt: skip
from minids.validation import quoted, require


class BatchSource(Protocol):
    """Where batches come from: a function of the step, so that a resumed run sees the same ones (text/batches.py)."""

    def batch(self, step: int, batch_size: int) -> dict: ...

    def domain(self, index: int) -> str:
        """Return the domain of a row of training, for the bits per byte in the log."""


class TrainingInterrupted(Exception):
    """Stopped on request, after a whole step; with a folder, the run is saved."""


class Trainer:
    """One run: the model, its optimizer, and its progress.

    With a `folder`, `run` keeps `log.jsonl` (a line per step) and `checkpoint.safetensors` there; without one it only
    trains. `records` are the log records of all steps so far. `settings` (plain JSON: configuration, data) goes into
    every checkpoint, with the name of the loss; a run resumes only with the settings it began with, where a setting
    that did not exist then counts as its default. Only `save_every` and `micro_batch_size` may change. The environment
    (threads, torch, machine) goes there too, because the last bits of every sum depend on it. `bytes_per_token`, by
    token id, is for the bits per byte in the log.
    With dtype fp8 the model's products follow V3's recipe, with another dtype they are plain, whatever `use_fp8` set
    before: set another recipe after the trainer is made. Raises ValueError for sequences that are too short for the
    model, and for fp8 on mps.
    """

    def __init__(
        self, model: DeepSeek, batches: BatchSource, config: TrainConfig, folder: Path | None = None, *,
        settings: dict | None = None, bytes_per_token: Tensor | None = None, loss: Loss = language_model_loss,
    ):  # fmt: skip
        self.batches, self.config, self.folder, self.loss = batches, config, folder, loss
        self.model_config, self.device = model.config, model.embed_tokens.weight.device
        shortest = 1 + model.config.num_nextn_predict_layers
        length = config.sequence_length
        require("sequence_length", length, length >= shortest, f"at least {shortest} for this model")
        on_mps = config.dtype == "fp8" and self.device.type == "mps"
        require("dtype", config.dtype, not on_mps, "float32 or bfloat16 on mps")
        self.model = self.prepare(model)
        environment = {
            "threads": torch.get_num_threads(), "torch": torch.__version__,
            "machine": platform.machine(), "device": self.device.type,
        }  # fmt: skip
        own = {"train": _plain(config), "loss": getattr(loss, "__qualname__", repr(loss)), "environment": environment}
        self.settings = (settings or {}) | own
        self.bytes_per_token = None if bytes_per_token is None else bytes_per_token.to(self.device)
        self.optimizer = make_optimizer(self.model, config, self.updated())
        self.step = 0
        self.seconds = 0.0
        self.records: list[dict] = []
        self.log = None if folder is None else Log(folder / "log.jsonl")
        self._resumed = False

    def prepare(self, model: DeepSeek) -> nn.Module:
        """Set the products of the model, and return what this process trains of it: all."""
        leave_fp8(model)  # of an earlier trainer
        if self.config.dtype == "fp8":
            use_fp8(model, Recipe.of_block(self.config.fp8_block))
        return model

    def updated(self) -> set[nn.Parameter] | None:
        """Return the parameters that this process updates; None: all."""
        return None

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / FILE

    def resume(self) -> list[str]:
        """Load the folder's checkpoint and drop the log lines of later steps.

        Returns the differences of the environment, in words: without any, the run continues bit for
        bit. Raises ValueError if the checkpoint is of another run, naming the first setting that differs, and if
        another process trains in the folder.
        """
        self.require_log()
        path = find_checkpoint(self.folder) or self.checkpoint_path
        with self.log:
            checkpoint = load_state(path)
            differences = self.differences(checkpoint.settings, path)
            checkpoint.check(self.model, self.optimizer)
            self.records = self.log.resume(checkpoint.step, checkpoint.log_sha256)
            checkpoint.restore(self.model, self.optimizer)
            self.continue_from(checkpoint.step)
            remove_leftovers(self.folder / FILE)  # of a save in which the process was killed
        return differences

    def require_log(self) -> None:
        if not self.log.path.exists():
            raise ValueError(f"{self.log.path} does not exist: restore it, or choose another folder.")

    def continue_from(self, step: int) -> None:
        """Go on after so many steps, whose records are known."""
        self.step, self._resumed = step, True
        self.seconds = self.records[-1]["seconds"] if self.records else 0.0

    def differences(self, settings: dict, path: Path) -> list[str]:
        """Return the differences between this environment and a checkpoint's, in words; ValueError for another run's
        settings."""
        differences = []
        one = {"train": _plain(TrainConfig()), "environment": {"processes": "1"}}
        here, there = _flatten(one) | _flatten(self.settings), _flatten(one) | _flatten(settings)
        for name in here | there:
            ours, theirs = here.get(name), there.get(name)
            if ours == theirs or name == "train.save_every":
                continue
            if name.startswith("environment.") or name == "train.micro_batch_size":  # in which order sums are made
                differences.append(f"{name.partition('.')[2]} was {theirs} and is {ours}")
            else:
                what = f"{name}={quoted(theirs)}, not {quoted(ours)}"
                if name.endswith("_sha256"):  # a digest means nothing to a reader
                    what = f"another {'text' if name == 'corpus_sha256' else name.removesuffix('_sha256')}"
                raise ValueError(
                    f"{path} was made with {what}: resume with the same settings or choose another folder."
                )
        return differences

    def save(self) -> None:
        """Write the checkpoint into the folder."""
        save_checkpoint(
            self.checkpoint_path, self.model, self.optimizer,
            step=self.step, settings=self.settings, log_sha256=self.log.sha256,
        )  # fmt: skip
        remove_other_kind(self.checkpoint_path)

    def run(self, on_step: Callable[[dict], None] = lambda record: None) -> list[dict]:
        """Train from the current step to the last and return the log records of all steps.

        With a folder it saves every `save_every` steps and at the end. Ctrl-C lets the step finish, saves if there is a
        folder, and raises TrainingInterrupted; calling `run` again continues. Raises TrainingDiverged, and ValueError
        if the folder holds a run that was not resumed or another process trains there; OSError for a full disk or a log
        that was removed.
        """
        with _stop_requested() as stop, self.log or nullcontext() as log:
            if log:
                if not self._resumed and self.step == 0 and find_checkpoint(self.folder):
                    raise ValueError(f"{self.folder} already holds a run: resume it, or choose another folder.")
                log.begin(self.step)
            while self.step < self.config.steps:
                record = self.train_step()
                if log:
                    log.append(record)
                on_step(record)
                done, stopped = self.step == self.config.steps, self.agree(stop.is_set())
                if done or stopped or self.step % self.config.save_every == 0:
                    self._require_finite_weights()
                    if log:
                        log.sync()  # the log must not be behind the checkpoint
                    if self.folder:
                        self.save()
                if stopped and not done:
                    raise TrainingInterrupted(f"stopped after step {self.step} of {self.config.steps}")
        return self.records

    def agree(self, stop: bool) -> bool:
        """Return whether to stop after this step. Several processes have to stop after the same one."""
        return stop

    def _require_finite_weights(self) -> None:
        """Raise TrainingDiverged if the last update made a weight not finite, which only the next loss would show."""
        if name := self.not_finite():
            raise TrainingDiverged(f"step {self.step - 1}: {name} is no longer finite. {self._advice()}")

    def not_finite(self) -> str | None:
        """Return the name of a weight that is not finite."""
        return next((name for name, p in self.model.named_parameters() if not local(p).isfinite().all()), None)

    def _advice(self) -> str:
        own = "" if self.loss is language_model_loss else f"Check the loss, {self.settings['loss']}. "
        return f"{own}Try a learning rate below {self.config.learning_rate:g}, or a longer warm-up"

    @property
    def gates(self) -> list[Gate]:
        return self.model.gates

    def accumulate(self, batch: Batch) -> list[Terms]:
        """Run this step's batch forward and backward, and return the terms of its parts in order."""
        config, step = self.config, self.step
        return accumulate_gradients(
            lambda rows: self.loss(self.model, rows, batch, config, step), batch, config.dtype, config.micro_batch_size
        )

    def update(self, parts: list[Terms]) -> float:
        """Update the weights, and return the norm of the gradient."""
        return update_weights(self.model, self.optimizer, parts, self.config.clip_norm)

    def update_biases(self, speed: float) -> list[Tensor]:
        """Update the biases of all gates, and return their loads."""
        return self.model.update_expert_bias(speed)

    def train_step(self) -> dict:
        """Take one optimizer step and return its log record; ValueError for a batch that `as_batch` refuses."""
        config, step, began = self.config, self.step, time.perf_counter()
        arrays = self.batches.batch(step, config.batch_size)
        batch = as_batch(arrays, step, config, self.model_config.vocab_size)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        self.model.train()
        self.model.zero_grad()
        for gate in self.gates:
            gate.load.zero_()  # gradients and loads of a step that was interrupted
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        parts = self.accumulate(batch)
        try:
            norm = self.update(parts)
        except TrainingDiverged as reason:
            raise TrainingDiverged(f"step {step}: {reason}. {self._advice()}") from None
        loads = self.update_biases(config.bias_speed_at(step))
        self.seconds += time.perf_counter() - began
        record = {
            "step": step,
            **_sums(parts),
            **self._bits_per_byte(batch, parts),
            "gradient_norm": norm,
            "learning_rate": config.learning_rate_at(step),
            "max_violation": [max_violation(load) if load.any() else None for load in loads],  # a loss may skip MTP
            "load": [load.tolist() for load in loads],
            "seconds": self.seconds,
        }
        self.step += 1
        self.records.append(record)
        return record

    def _bits_per_byte(self, batch: Batch, parts: list[Terms]) -> dict[str, dict[str, float]]:
        """Return {"bits_per_byte": by domain} of this step's rows; {} for a loss without `nats_B`.

        Unlike in `row_scores`, the bits of end-of-text tokens count, so this is a little larger.
        """
        if self.bytes_per_token is None or not hasattr(parts[0], "nats_B"):
            return {}
        bits_B = torch.cat([terms.nats_B for terms in parts]) / math.log(2)
        bytes_BT = self.bytes_per_token[batch["tokens"][:, 1:]]
        if "mask" in batch:
            bytes_BT = bytes_BT * batch["mask"][:, 1:]
        bits_B, bytes_B, first = bits_B.cpu(), bytes_BT.sum(dim=1).cpu(), self.step * self.config.batch_size
        domains = [self.batches.domain(first + i) for i in range(len(bits_B))]
        result = {}
        for domain in sorted(set(domains)):
            mine = torch.tensor([d == domain for d in domains])
            if text_bytes := bytes_B[mine].sum().item():  # a mask may exclude a whole domain
                result[domain] = bits_B[mine].sum().item() / text_bytes
        return {"bits_per_byte": result}


def _sums(parts: list[Terms]) -> dict[str, float]:
    """Add up each scalar term over the parts of a batch; the total is called `loss`."""
    names = [field.name for field in fields(parts[0]) if getattr(parts[0], field.name).ndim == 0]
    sums = {name: sum(getattr(terms, name).item() for terms in parts) for name in names}
    return {"loss": sums.pop("total"), **sums}


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets, so that a step is never cut in the middle.

    A second Ctrl-C interrupts at once. Signals can only be caught in the main thread.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {}

    def request(number, frame):
        stop.set()
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _plain(config: TrainConfig) -> dict:
    """The settings as JSON gives them back, with lists for tuples."""
    return json.loads(json.dumps(asdict(config)))


def _flatten(settings: dict, prefix: str = "") -> dict[str, object]:
    """{'a': {'b': 1}} -> {'a.b': 1}, to name the setting that differs."""
    flat = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
