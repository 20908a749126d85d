"""A whole training run, assembled in one place: configurations, text and a folder in, a trainer and a report out.

The command line, the chapters and the recorded experiments all start their runs here:

    run = start_run(ModelConfig.preset("tiny"), TrainConfig(steps=50), load_corpus(), Path("runs/tiny"))
    run.trainer.run()
    run.report()["bits_per_byte"]

A run in a folder leaves checkpoint.safetensors, log.jsonl and tokenizer.json there, and goes on from them later.
Without a folder it lives in memory only, as in a chapter.
"""

from __future__ import annotations

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
from minids.training.trainer import Loss, Trainer, language_model_loss, read_log


@dataclass(frozen=True)
class Run:
    """A run, ready to be trained or to go on. `differences` says in words what changed since it was stopped."""

    corpus: Corpus
    tokenizer: Tokenizer
    batches: Batches
    trainer: Trainer
    differences: tuple[str, ...] = ()

    @property
    def model(self) -> DeepSeek:
        return self.trainer.model

    def report(self) -> dict:
        """Evaluate the finished run on held-out text and return its report (report.py).

        Raises ValueError unless its log, in its folder, has a record of every step.
        """
        trainer = self.trainer
        records = [] if trainer.folder is None else read_log(trainer.log_path)
        if len(records) < trainer.config.steps:
            raise ValueError(
                f"the log has {len(records)} of {trainer.config.steps} steps: a report is of a run that was trained to "
                "its end, in a folder."
            )
        return make_report(self.model, self.tokenizer, self.corpus, self.batches, trainer.config, records)


def start_run(
    model_config: ModelConfig, config: TrainConfig, corpus: Corpus, folder: Path | None = None, *,
    tokenizer: Tokenizer | None = None, device: torch.device | str = "cpu", resume: bool = False,
    loss: Loss = language_model_loss,
) -> Run:  # fmt: skip
    """Return a run with fresh weights; with `resume`, one that goes on from the checkpoint in the folder, if any.

    The tokenizer is trained on the training text unless one is given; a resumed run has its own. Raises ValueError,
    one sentence, for a model that does not fit into memory, and for a folder that is a file, holds a saved model, holds
    a run which is not to be resumed or had other settings, or cannot be written.
    """
    _require_memory(model_config)
    continues = folder is not None and _has_run(folder, resume)
    if continues:
        tokenizer = Tokenizer.load(folder)
    elif tokenizer is None:
        texts = [text for documents in corpus.train.values() for text in documents]
        tokenizer = Tokenizer.train(texts, model_config.vocab_size)
    batches = Batches(encode_split(tokenizer, corpus.train), corpus.mixture, config.sequence_length, config.seed)
    torch.manual_seed(config.seed)
    trainer = Trainer(
        DeepSeek(model_config).to(device), batches, config, folder,
        settings={"model": model_config.to_hf(), "corpus_sha256": corpus.sha256},
        bytes_per_token=torch.tensor([len(b) for b in tokenizer.token_bytes()]), loss=loss,
    )  # fmt: skip
    run = Run(corpus, tokenizer, batches, trainer)
    if continues:
        return replace(run, differences=tuple(trainer.resume()))
    if folder is not None:
        _begin_folder(folder, tokenizer)
    return run


def load_run(folder: Path) -> tuple[DeepSeek, Tokenizer]:
    """Return model and tokenizer of a run's folder, or of a saved model's; ValueError if it holds neither."""
    tokenizer = Tokenizer.load(folder)  # first: it is small
    if not (folder / "checkpoint.safetensors").exists():
        return load_pretrained(folder), tokenizer
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    if "model" not in checkpoint.settings:
        raise ValueError(f"{folder} holds a checkpoint without a configuration: `minids train` writes one.")
    model = DeepSeek(ModelConfig.from_hf(checkpoint.settings["model"]))
    checkpoint.restore(model)
    return model.eval(), tokenizer


def _require_memory(config: ModelConfig) -> None:
    """Refuse a model whose weights, gradients and moments in float32 exceed the memory of the machine."""
    parameters = count_parameters(config)
    needed, there = 16 * (parameters.total + parameters.mtp), total_memory()
    if needed > there:
        raise ValueError(
            f"training this model takes at least {needed / 2**30:,.0f} GiB and this machine has {there / 2**30:,.0f}: "
            "choose a smaller one, such as mini."
        )


def _has_run(folder: Path, resume: bool) -> bool:
    """Return whether the folder holds a run to go on with; refuse a folder that a new run would spoil."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: a run needs a folder.")
    exists = (folder / "checkpoint.safetensors").exists()
    if exists and not resume:
        raise ValueError(f"{folder} already holds a run: go on with it (--resume), or choose another folder (--out).")
    if not exists and any((folder / name).exists() for name in (SINGLE, INDEX)):
        raise ValueError(f"{folder} holds a saved model: choose another folder (--out).")
    return exists


def _begin_folder(folder: Path, tokenizer: Tokenizer) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "tokenizer.json", tokenizer.to_json())
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}.") from None
