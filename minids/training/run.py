"""Assembles a whole training run: from configurations, text and a folder to a trainer and a report.

The command line, the chapters and the recorded experiments start their runs here:

    run = start_run(ModelConfig.preset("tiny"), TrainConfig(steps=50), load_corpus(), Path("runs/tiny"))
    run.trainer.run()
    run.report()["bits_per_byte"]

A run with a folder writes checkpoint.safetensors, log.jsonl and tokenizer.json there and can resume from them. It never
overwrites a file that it did not write. Without a folder it exists in memory only, as in a chapter. Several processes
can share a run: each calls `start_run` with the same arguments and a layout (parallel/layout.py), and they write
checkpoint/ (sharded.py).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minids.cost.parameters import count_parameters
from minids.device import total_memory
from minids.files import remove_leftovers, write_atomically
from minids.hub.load import load_pretrained
from minids.hub.names import INDEX, SINGLE
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.batches import Batches, encode_split
from minids.text.corpus import Corpus
from minids.text.tokenizer import Tokenizer
from minids.training.checkpoint import FILE, SHARDED, find_checkpoint, read_head
from minids.training.config import TrainConfig
from minids.training.log import Log
from minids.training.report import make_report
from minids.training.sharded import load_state
from minids.training.step import Loss, language_model_loss
from minids.training.trainer import BatchSource, Trainer
from minids.units import GIB

if TYPE_CHECKING:
    from minids.parallel.layout import Layout

RESULTS = ("report.json", "dashboard.png")  # what the command line writes
RUN_FILES = (FILE, SHARDED, "log.jsonl", "tokenizer.json", *RESULTS)


@dataclass(frozen=True)
class Run:
    """A run, ready to start or to resume. `differences` says in words what changed since it was stopped."""

    corpus: Corpus
    tokenizer: Tokenizer
    batches: BatchSource
    trainer: Trainer
    layout: Layout | None = None
    differences: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        """What this process trains: the model, or its part of it."""
        return self.trainer.model

    def report(self) -> dict:
        """Evaluate the finished run on held-out text and return its report (report.py).

        It also has `processes`, in words, if several took the last steps. Of several processes, one may call this, if
        the run has a folder. Raises ValueError for a run that was not trained to its end.
        """
        steps, records = self.trainer.config.steps, self.trainer.records
        if len(records) < steps:
            raise ValueError(f"the run has taken {len(records)} of {steps} steps: finish it first.")
        model = self.model
        if self.layout is not None:  # this process holds a part of it only
            if self.trainer.folder is None:
                raise ValueError(
                    "a run of several processes needs a folder for its report: its model is read from there."
                )
            model = load_run(self.trainer.folder)[0].to(self.trainer.device)
        report = make_report(model, self.tokenizer, self.corpus, self.batches, self.trainer.config, records)
        path = self.trainer.folder and find_checkpoint(self.trainer.folder)
        processes = read_head(path)["settings"]["environment"].get("processes") if path else None
        return report | ({"processes": processes} if processes else {})


def start_run(
    model: ModelConfig | DeepSeek, config: TrainConfig, corpus: Corpus, folder: Path | None = None, *,
    tokenizer: Tokenizer | None = None, batches: BatchSource | None = None, loss: Loss = language_model_loss,
    device: torch.device | str = "cpu", resume: bool = False, layout: Layout | None = None,
) -> Run:  # fmt: skip
    """Return a new run; with `resume`, one that continues from the checkpoint in the folder, if there is one.

    A new run starts with fresh weights for a configuration, or with those of a given model. The tokenizer is trained on
    the training text unless one is given; a resumed run has its own. `batches` are packed rows of the training text
    unless given. Raises ValueError, one sentence, for what `check_start` refuses, for a folder whose run had other
    settings, and for one that cannot be written.
    """
    model_config = model if isinstance(model, ModelConfig) else model.config
    once, make = _in_one_process, Trainer
    if layout is not None:
        from minids.parallel.launch import first_does as once  # imports what only several processes need
        from minids.training.distributed import make_trainer

        layout.require_processes()
        make = partial(make_trainer, layout=layout)
    once(lambda: check_start(model_config, config, folder, resume, device))
    continues = once(lambda: folder is not None and find_checkpoint(folder) is not None)
    if continues:
        _require_shared(folder, layout)
        tokenizer = Tokenizer.load(folder)
    elif tokenizer is None:
        texts = [text for documents in corpus.train.values() for text in documents]
        tokenizer = once(lambda: Tokenizer.train(texts, model_config.vocab_size))
    tokenizer.require_fit(model_config.vocab_size)
    if batches is None:
        batches = Batches(encode_split(tokenizer, corpus.train), corpus.mixture, config.sequence_length, config.seed)
    torch.manual_seed(config.seed)
    trainer = make(
        (DeepSeek(model) if model is model_config else model).to(device), batches, config, folder,
        settings={
            "model": model_config.to_hf(), "corpus_sha256": corpus.sha256, "mixture": dict(corpus.mixture),
            "tokenizer_sha256": _sha256(tokenizer),
        },
        bytes_per_token=torch.tensor([len(b) for b in tokenizer.token_bytes()]), loss=loss,
    )  # fmt: skip
    run = Run(corpus, tokenizer, batches, trainer, layout)
    if continues:
        return replace(run, differences=tuple(trainer.resume()))
    if folder is not None:
        once(lambda: _begin(trainer.log, folder / "tokenizer.json", tokenizer))
        _require_shared(folder, layout)
    return run


def _begin(log: Log, path: Path, tokenizer: Tokenizer) -> None:
    """Begin an empty log, and write the tokenizer beside it."""
    _require_own(path, tokenizer)
    with log:
        log.begin(0)
        _require_own(path, tokenizer)  # again: with the lock held, no other run can write one
        write_atomically(path, tokenizer.to_json())


def _require_shared(folder: Path, layout: Layout | None) -> None:
    """Raise ValueError, on all processes, if some of them do not see the folder of the first, but another machine's."""
    if layout is None:
        return
    import torch.distributed as dist

    from minids.parallel.launch import first_does, from_all

    first = dist.get_rank() == 0
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".shared.") if first else nullcontext() as probe:
        name = first_does(lambda: Path(probe.name).name)
        seen = from_all((folder / name).exists())
    if not all(seen):
        raise ValueError(f"{folder} is not the same on all machines: a run of several needs one that all of them see.")


def _in_one_process(work: Callable[[], Any]) -> Any:
    return work()


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
    if folder.exists():
        remove_leftovers(folder / SHARDED)  # puts one back that was about to be replaced by another
    if find_checkpoint(folder):
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
    path = find_checkpoint(folder)
    if path is None:
        model = load_pretrained(folder)
        tokenizer.require_fit(model.config.vocab_size)
        return model, tokenizer
    checkpoint = load_state(path)
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
