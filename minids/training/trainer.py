"""The training loop: schedules, clipping, the bias update, a log line per step, and exact resume.

After DeepSeek-V3's recipe (report §4.2), scaled to a run of minutes:

    AdamW, β = (0.9, 0.95), weight decay 0.1, gradient norm clipped at 1.0, α = 1e-4: as there
                     here                                        DeepSeek-V3
    learning rate    warm-up, constant, a line down over the     warm-up, constant for 10T of 14.8T tokens,
                     last 60% of the steps                       a cosine down, two short plateaus at the end
    λ (MTP)          0.3, then 0.1 from where the decay begins   the same
    γ (bias)         0.005, then 0 for the last 3.4%             0.001, then 0 for the last 3.4%
    batch            constant                                    grows fivefold over the first 3%

A run is a number of steps, never a time, so that it can be repeated. One step is one optimizer
step: its rows may pass in several micro-batches whose gradients add up, and the gates' biases move
once, after the last. Weights and optimizer stay in float32; with `dtype` bfloat16 the matrix
products of forward and backward run in bfloat16 (autocast), the gates and the losses in float32.
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from minids.files import write_atomically
from minids.model.balance import max_violation
from minids.model.deepseek import DeepSeek
from minids.text.data import Batches
from minids.training.checkpoint import load_checkpoint, save_checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything about a run that is not architecture. Raises ValueError, one sentence, for bad values."""

    steps: int = 1800
    batch_size: int = 4  # rows per optimizer step
    micro_batch_size: int | None = None  # rows per forward pass; None: all at once
    sequence_length: int = 256
    learning_rate: float = 1.8e-3
    final_learning_rate_fraction: float = 0.05  # of the peak
    warmup_fraction: float = 0.03
    decay_fraction: float = 0.6
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    mtp_weight: float = 0.3  # λ
    final_mtp_weight: float = 0.1
    balance_weight: float = 1e-4  # α
    bias_speed: float = 5e-3  # γ
    frozen_bias_fraction: float = 0.034
    save_every: int = 200
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        for name, least in {"steps": 1, "batch_size": 1, "sequence_length": 1, "save_every": 1, "seed": 0}.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            self._require(name, whole and value >= least, f"a whole number of at least {least}")
        for name in ("learning_rate", "clip_norm"):
            self._require(name, self._number(name) > 0, "a number above 0")
        for name in (
            "weight_decay", "mtp_weight", "final_mtp_weight", "balance_weight", "bias_speed",
        ):  # fmt: skip
            self._require(name, self._number(name) >= 0, "a number of at least 0")
        for name in ("warmup_fraction", "decay_fraction", "final_learning_rate_fraction", "frozen_bias_fraction"):
            self._require(name, 0 <= self._number(name) <= 1, "between 0 and 1")
        together = self.warmup_fraction + self.decay_fraction
        self._require("decay_fraction", together <= 1, f"at most 1 with warmup_fraction={self.warmup_fraction}")
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        self._require("betas", pair and all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1")
        size, micro = self.batch_size, self.micro_batch_size
        divides = micro is None or (isinstance(micro, int) and micro >= 1 and size % micro == 0)
        self._require("micro_batch_size", divides, f"None or a divisor of batch_size={size}")
        self._require("dtype", self.dtype in DTYPES, " or ".join(DTYPES))

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        self._require(name, number, "a finite number")
        return value

    def _require(self, name: str, condition: bool, allowed: str) -> None:
        if not condition:
            raise ValueError(f"{name}={getattr(self, name)!r} is not possible: it must be {allowed}.")

    @property
    def decay_start(self) -> int:
        return self.steps - round(self.decay_fraction * self.steps)

    def learning_rate_at(self, step: int) -> float:
        """Warm-up – constant – decay: a line up, a plateau, a line down. `step` counts from 0."""
        warmup = round(self.warmup_fraction * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if step < self.decay_start:
            return self.learning_rate
        done = (step - self.decay_start + 1) / (self.steps - self.decay_start)
        return self.learning_rate * (1 - done * (1 - self.final_learning_rate_fraction))

    def mtp_weight_at(self, step: int) -> float:
        return self.mtp_weight if step < self.decay_start else self.final_mtp_weight

    def bias_speed_at(self, step: int) -> float:
        return 0.0 if step >= self.steps - round(self.frozen_bias_fraction * self.steps) else self.bias_speed


class TrainingDiverged(Exception):
    """The loss or the gradient is no longer a finite number; the last checkpoint is as it was."""


class TrainingInterrupted(Exception):
    """Stopped on request, after saving."""


class Trainer:
    """One run in one folder: `log.jsonl` (a line per step) and `checkpoint.safetensors`.

    `settings` (plain JSON: configuration, data) goes into every checkpoint; a run resumes only with
    the settings it began with. The environment (threads, torch, machine) goes there too, because the
    last bits of every sum depend on it. `bytes_per_token`, by token id, is for the log's bits per byte.
    """

    def __init__(
        self, model: DeepSeek, batches: Batches, config: TrainConfig, folder: Path,
        *, settings: dict, bytes_per_token: Tensor,
    ):  # fmt: skip
        self.model, self.batches, self.config, self.folder = model, batches, config, folder
        shortest = 1 + model.config.num_nextn_predict_layers
        if config.sequence_length < shortest:
            raise ValueError(f"sequence_length={config.sequence_length} is not possible: this model needs {shortest}.")
        self.device = model.embed_tokens.weight.device
        environment = {
            "threads": torch.get_num_threads(), "torch": torch.__version__,
            "machine": platform.machine(), "device": self.device.type,
        }  # fmt: skip
        self.settings = settings | {"train": json.loads(json.dumps(asdict(config))), "environment": environment}
        self.bytes_per_token = bytes_per_token.to(self.device)
        self.optimizer = make_optimizer(model, config)
        self.step = 0
        self.seconds = 0.0

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def resume(self) -> list[str]:
        """Go back to the folder's checkpoint; log lines of steps after it are dropped.

        Returns what is different in the environment, in words: if nothing is, the run goes on bit for
        bit. Raises ValueError if the checkpoint is of another run, naming the first setting that differs.
        """
        checkpoint = load_checkpoint(self.checkpoint_path)
        differences = []
        here, there = _flatten(self.settings), _flatten(checkpoint.settings)
        for name in here | there:
            ours, theirs = here.get(name), there.get(name)
            if ours != theirs and name.startswith("environment."):
                differences.append(f"{name.removeprefix('environment.')} was {theirs} and is {ours}")
            elif ours != theirs:
                raise ValueError(
                    f"{self.checkpoint_path} was made with {name}={theirs!r}, not {ours!r}: "
                    "resume with the same settings or choose another folder."
                )
        records = [record for record in read_log(self.log_path) if record["step"] < checkpoint.step]
        if [record["step"] for record in records] != list(range(checkpoint.step)):
            raise ValueError(
                f"{self.log_path} does not hold the {checkpoint.step} steps before the checkpoint: "
                "bring it back, or choose another folder."
            )
        checkpoint.restore(self.model, self.optimizer)
        for gate in self.model.gates:
            gate.load.zero_()  # of a step that was not finished
        self.step = checkpoint.step
        write_atomically(self.log_path, "".join(json.dumps(record) + "\n" for record in records))
        self.seconds = records[-1]["seconds"] if records else 0.0
        return differences

    def save(self) -> None:
        save_checkpoint(self.checkpoint_path, self.model, self.optimizer, step=self.step, settings=self.settings)

    def run(self, on_step: Callable[[dict], None] = lambda record: None) -> None:
        """Train from where the run stands to its last step, saving on the way and at the end.

        Ctrl-C lets the step finish, saves, and raises TrainingInterrupted. Raises TrainingDiverged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.step == 0 and self.checkpoint_path.exists():
            raise ValueError(f"{self.folder} already holds a run: resume it, or choose another folder.")
        mode = "a" if self.step else "w"  # a run that died before its first checkpoint left lines behind
        with _stop_requested() as stop, self.log_path.open(mode, encoding="utf-8") as log:
            while self.step < self.config.steps:
                record = self.train_step()
                log.write(json.dumps(record) + "\n")
                log.flush()
                on_step(record)
                done = self.step == self.config.steps
                if done or stop.is_set() or self.step % self.config.save_every == 0:
                    os.fsync(log.fileno())  # the log never lags the checkpoint
                    self.save()
                if stop.is_set() and not done:
                    raise TrainingInterrupted(f"stopped after step {self.step} of {self.config.steps}")

    def train_step(self) -> dict:
        """Take one optimizer step and return its log record."""
        config, began = self.config, time.perf_counter()
        tokens_BT = torch.from_numpy(self.batches.batch(self.step, config.batch_size)).to(self.device)
        self.model.train()
        sums, row_losses = self._accumulate_gradients(tokens_BT)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm).item()
        if not (math.isfinite(sums["loss"]) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            raise TrainingDiverged(
                f"step {self.step}: the loss is {sums['loss']} and the gradient norm {norm}. "
                f"Try a learning rate below {config.learning_rate:g}, or a longer warm-up"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loads = self.model.update_expert_bias(config.bias_speed_at(self.step))
        self.seconds += time.perf_counter() - began
        record = {
            "step": self.step,
            **sums,
            "bits_per_byte": self._bits_per_byte(tokens_BT, row_losses),
            "gradient_norm": norm,
            "learning_rate": config.learning_rate_at(self.step),
            "max_violation": [max_violation(load) for load in loads],
            "load": [load.tolist() for load in loads],
            "seconds": self.seconds,
        }
        self.step += 1
        return record

    def _accumulate_gradients(self, tokens_BT: Tensor) -> tuple[dict[str, float], Tensor]:
        """Add up the gradients of all micro-batches; return mean loss terms, and each row's next-token loss."""
        config = self.config
        micro_batches = tokens_BT.split(config.micro_batch_size or config.batch_size)
        sums = dict.fromkeys(("loss", "next_token", "mtp", "balance"), 0.0)
        row_losses = []
        for micro_BT in micro_batches:
            with autocast(self.device, config.dtype):
                terms = self.model.loss(
                    micro_BT, mtp_weight=config.mtp_weight_at(self.step), balance_weight=config.balance_weight
                )
            (terms.total / len(micro_batches)).backward()
            values = (terms.total, terms.next_token, terms.mtp, terms.balance)
            for name, value in zip(sums, values, strict=True):
                sums[name] += value.item() / len(micro_batches)
            row_losses.append(terms.next_token_of_row)
        return sums, torch.cat(row_losses)

    def _bits_per_byte(self, tokens_BT: Tensor, row_losses: Tensor) -> dict[str, float]:
        """Bits per byte of this step's rows, by domain.

        Unlike in `score_rows`, the bits of end-of-text tokens count, so this lies a little above.
        """
        bits = row_losses * (tokens_BT.shape[1] - 1) / math.log(2)
        row_bytes = self.bytes_per_token[tokens_BT[:, 1:]].sum(dim=1)
        first = self.step * self.config.batch_size
        domains = [self.batches.domain(first + i) for i in range(len(tokens_BT))]
        result = {}
        for domain in sorted(set(domains)):
            mine = torch.tensor([d == domain for d in domains], device=self.device)
            result[domain] = (bits[mine].sum() / row_bytes[mine].sum()).item()
        return result


def make_optimizer(model: DeepSeek, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices only: decay would pull the norms' scales to zero."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Return the context in which matrix products run in `dtype`."""
    return torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32")


def best_dtype(device: torch.device) -> str:
    """Return 'bfloat16' where the hardware multiplies in it, else 'float32': emulated, it would be slower."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else False
    return "bfloat16" if native else "float32"


def read_log(path: Path) -> list[dict]:
    """Return the records of a log.jsonl; a last line cut off by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


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


def _flatten(settings: dict, prefix: str = "") -> dict[str, object]:
    """{'a': {'b': 1}} -> {'a.b': 1}, to name the setting that differs."""
    flat = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
