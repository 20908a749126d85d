"""A model, a text and a run so small that a training step takes milliseconds."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.arithmetic import arithmetic_documents
from minids.text.batches import Batches
from minids.text.corpus import Corpus
from minids.training.config import TrainConfig
from minids.training.step import Loss, language_model_loss
from minids.training.trainer import Trainer


def small_config(**changes) -> ModelConfig:
    """Two layers, the second a mixture of experts, and one MTP module with another."""
    return replace(ModelConfig.preset("tiny"), num_hidden_layers=2, **changes)


def small_model(seed: int = 0, **changes) -> DeepSeek:
    torch.manual_seed(seed)
    return DeepSeek(small_config(**changes))


def small_train_config(**changes) -> TrainConfig:
    """Six steps; spelled out are the settings that tests do sums with."""
    fixed = dict(
        steps=6, batch_size=4, sequence_length=16, learning_rate=3e-3, final_learning_rate_fraction=0.05,
        warmup_fraction=0.05, decay_fraction=0.4, frozen_bias_fraction=0.034, save_every=100,
    )  # fmt: skip
    return TrainConfig(**(fixed | changes))


def other_value(field: Field):
    """A legal value of a field of TrainConfig that is not its default."""
    known = {"micro_batch_size": 2, "betas": (0.8, 0.7), "dtype": "bfloat16", "optimizer": "muon"}
    if field.name in known:
        return known[field.name]
    return field.default + 1 if isinstance(field.default, int) else field.default / 2


def small_corpus() -> Corpus:
    """A few lines of each domain of the book's corpus."""
    train, validation = (
        {
            "prose": ["Return the sum of all.\n" * n, "The größte one comes first.\n" * n],
            "code": ["def f(x):\n    return x + 1\n" * n],
            "arithmetic": arithmetic_documents(split, n),
        }
        for split, n in (("train", 8), ("validation", 3))
    )
    return Corpus(train, validation, {"prose": 2, "code": 1, "arithmetic": 1})


def small_batches(config: TrainConfig, vocab_size: int = 512) -> Batches:
    rng = np.random.default_rng(0)
    streams = {domain: rng.integers(vocab_size, size=700, dtype=np.uint16) for domain in ("prose", "code")}
    return Batches(streams, {"prose": 2, "code": 1}, config.sequence_length, config.seed)


def small_trainer(
    folder: Path | None = None, *, settings: dict | None = None, model_changes: dict | None = None,
    loss: Loss = language_model_loss, **train_changes,
) -> Trainer:  # fmt: skip
    """A fresh run: the same arguments give the same weights and the same batches."""
    config = small_train_config(**train_changes)
    return Trainer(
        small_model(config.seed, **(model_changes or {})), small_batches(config), config, folder, settings=settings,
        bytes_per_token=1 + torch.arange(512) % 5, loss=loss,
    )  # fmt: skip


@dataclass
class OwnTerms:
    total: Tensor
    confidence: Tensor
    nats_of_row_B: Tensor  # no scalar, so it is not logged


def last_token_loss(model, rows: dict, whole: dict, config: TrainConfig, step: int) -> OwnTerms:
    """Only the last token of each row is learned, by the main head alone."""
    chance_BV = model(rows["tokens"][:, :-1])[:, -1].log_softmax(-1)
    nats_B = -chance_BV.gather(1, rows["tokens"][:, -1:])[:, 0]
    return OwnTerms(
        nats_B.sum() / len(whole["tokens"]), chance_BV.exp().amax(dim=-1).sum() / len(whole["tokens"]), nats_B
    )


def without_seconds(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def state(model: DeepSeek) -> dict[str, torch.Tensor]:
    """A copy of all that a step may change in a model: weights, biases, loads."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of AdamW's state by parameter name."""
    return {
        f"{name}.{key}": value.clone()
        for name, parameter in trainer.model.named_parameters()
        for key, value in trainer.optimizer.state[parameter].items()
    }


def assert_bitwise_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file of this process become larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
