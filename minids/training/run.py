"""Assembles a whole training run: from configurations, text and a folder to a trainer and a report.

The command line, the chapters and the recorded experiments start their runs here:

    run = start_run(ModelConfig.preset("tiny"), TrainConfig(steps=50), load_corpus(), Path("runs/tiny"))
    run.trainer.run()
    run.report()["bits_per_byte"]

A run with a folder writes checkpoint.safetensors, log.jsonl and tokenizer.json there and can resume from them. It never
overwrites a file that it did not write. Without a folder it exists in memory only, as in a chapter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minids.cost.parameters import count_parameters
from minids.device import total_memory
from minids.files import write_atomically
from minids.hub.load import load_pretrained
from minids.hub.names import INDEX, SINGLE
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.batches import Batches, encode_split
from minids.text.corpus import Corpus
from minids.text.tokenizer import Tokenizer
from minids.training.checkpoint import load_checkpoint
from minids.training.config import TrainConfig
from minids.training.report import make_report
from minids.training.step import Loss, language_model_loss
from minids.training.trainer import BatchSource, Trainer
from minids.units import GIB

RESULTS = ("report.json", "dashboard.png")  # what the command line writes
RUN_FILES = ("checkpoint.safetensors", "log.jsonl", "tokenizer.json", *RESULTS)


@dataclass(frozen=True)
class Run:
    """A run, ready to start or to resume. `differences` says in words what changed since it was stopped."""

    corpus: Corpus
    tokenizer: Tokenizer
    batches: BatchSource
    trainer: Trainer
    differences: tuple[str, ...] = ()

    @property
    def model(self) -> DeepSeek:
        return self.trainer.model

    def report(self) -> dict:
        """Evaluate the finished run on held-out text and return its report (report.py).

        Raises ValueError for a run that was not trained to its end.
        """
        steps, records = self.trainer.config.steps, self.trainer.records
        if len(records) < steps:
            raise ValueError(f"the run has taken {len(records)} of {steps} steps: finish it first.")
        return make_report(self.model, self.tokenizer, self.corpus, self.batches, self.trainer.config, records)


def start_run(
    model: ModelConfig | DeepSeek, config: TrainConfig, corpus: Corpus, folder: Path | None = None, *,
    tokenizer: Tokenizer | None = None, batches: BatchSource | None = None, loss: Loss = language_model_loss,
    device: torch.device | str = "cpu", resume: bool = False,
) -> Run:  # fmt: skip
    """Return a new run; with `resume`, one that continues from the checkpoint in the folder, if there is one.

    A new run starts with fresh weights for a configuration, or with those of a given model. The tokenizer is trained on
    the training text unless one is given; a resumed run has its own. `batches` are packed rows of the training text
    unless given. Raises ValueError, one sentence, for what `check_start` refuses, for a folder whose run had other
    settings, and for one that cannot be written.
    """
    model_config = model if isinstance(model, ModelConfig) else model.config
    check_start(model_config, config, folder, resume, device)
    continues = folder is not None and _has_run(folder)
    if continues:
        tokenizer = Tokenizer.load(folder)
    elif tokenizer is None:
        texts = [text for documents in corpus.train.values() for text in documents]
        tokenizer = Tokenizer.train(texts, model_config.vocab_size)
    tokenizer.require_fit(model_config.vocab_size)
    if batches is None:
        batches = Batches(encode_split(tokenizer, corpus.train), corpus.mixture, config.sequence_length, config.seed)
    torch.manual_seed(config.seed)
    trainer = Trainer(
        (DeepSeek(model) if model is model_config else model).to(device), batches, config, folder,
        settings={
            "model": model_config.to_hf(), "corpus_sha256": corpus.sha256, "mixture": dict(corpus.mixture),
            "tokenizer_sha256": _sha256(tokenizer),
        },
        bytes_per_token=torch.tensor([len(b) for b in tokenizer.token_bytes()]), loss=loss,
    )  # fmt: skip
    run = Run(corpus, tokenizer, batches, trainer)
    if continues:
        return replace(run, differences=tuple(trainer.resume()))
    if folder is not None:
        _require_own(folder / "tokenizer.json", tokenizer)
        with trainer.log as log:
            log.begin(0)
            _require_own(folder / "tokenizer.json", tokenizer)  # again: with the lock held, no other run can write one
            write_atomically(folder / "tokenizer.json", tokenizer.to_json())
    return run


def check_start(
    model_config: ModelConfig, config: TrainConfig, folder: Path | None, resume: bool = False,
    device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Raise ValueError, one sentence, for a run that cannot start, before any text is read.

    The model must fit into memory with its gradients and moments, and so must a step's tokens. The folder must not be a
    file, hold a saved model or results without their run, or, without `resume`, hold a run.
    """
    parameters = count_parameters(model_config)
    needed, there = 16 * (parameters.total + parameters.mtp), total_memory(torch.device(device))
    if needed > there:
        raise ValueError(
            f"training this model takes at least {needed / GIB:,.0f} GiB and this machine has {there / GIB:,.0f}: "
            "choose a smaller one, such as mini."
        )
    rows = config.micro_batch_size or config.batch_size
    stream = 4 * rows * model_config.hidden_size * model_config.num_hidden_layers  # bytes a position, kept for backward
    needed = config.sequence_length * (8 * config.batch_size + stream)
    if needed > there:
        raise ValueError(
            f"steps of {config.batch_size} x {config.sequence_length} tokens take at least {needed / GIB:,.0f} GiB and "
            f"this machine has {there / GIB:,.0f}: choose fewer, or a smaller micro_batch_size."
        )
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: a run needs a folder.")
    if _has_run(folder):
        if not resume:
            raise ValueError(f"{folder} already holds a run: resume it (--resume), or choose another (--out).")
        return
    for name in ("config.json", SINGLE, INDEX):
        if (folder / name).exists():
            raise ValueError(f"{folder} holds a saved model ({name}): choose another folder (--out).")
    for name in RESULTS:
        if (folder / name).exists():
            raise ValueError(f"{folder} holds {name} but no run: choose another folder (--out).")


def load_run(folder: Path) -> tuple[DeepSeek, Tokenizer]:
    """Return model and tokenizer of a run's folder, or of a saved model's.

    Raises ValueError if it holds neither, if the checkpoint is damaged, and if the tokenizer is of another model.
    """
    tokenizer = Tokenizer.load(folder)  # first: it is small
    if not _has_run(folder):
        model = load_pretrained(folder)
        tokenizer.require_fit(model.config.vocab_size)
        return model, tokenizer
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    entries = checkpoint.settings.get("model")
    if not isinstance(entries, dict):
        raise ValueError(f"{folder} holds a checkpoint without a configuration: `minids train` writes one.")
    if checkpoint.settings.get("tokenizer_sha256") != _sha256(tokenizer):
        raise ValueError(f"{folder}/tokenizer.json is not the one that this run was trained with: restore it.")
    config = ModelConfig.from_hf(entries)
    with torch.device("meta"):
        checkpoint.check(DeepSeek(config))  # before memory is allocated for it
    model = DeepSeek(config)
    checkpoint.restore(model)
    return model.eval(), tokenizer


def _has_run(folder: Path) -> bool:
    return (folder / "checkpoint.safetensors").exists()


def _sha256(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _require_own(path: Path, tokenizer: Tokenizer) -> None:
    """Raise ValueError if the file is another tokenizer, for example that of a run that died early."""
    if not path.exists():
        return
    try:
        same = _sha256(Tokenizer.load(path)) == _sha256(tokenizer)
    except ValueError:
        same = False
    if not same:
        raise ValueError(f"{path} is not this run's tokenizer: choose another folder (--out), or remove it.")
