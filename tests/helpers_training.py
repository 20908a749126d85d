"""A model, a text and a run so small that a training step takes milliseconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.data import Batches
from minids.training.trainer import TrainConfig, Trainer


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


def small_batches(config: TrainConfig, vocab_size: int = 512) -> Batches:
    rng = np.random.default_rng(0)
    streams = {domain: rng.integers(vocab_size, size=700, dtype=np.uint16) for domain in ("prose", "code")}
    return Batches(streams, {"prose": 2, "code": 1}, config.sequence_length, config.seed)


def small_trainer(folder: Path, *, settings: dict | None = None, model_changes: dict | None = None, **train_changes):
    """A fresh run: the same arguments give the same weights and the same batches."""
    config = small_train_config(**train_changes)
    model = small_model(config.seed, **(model_changes or {}))
    bytes_per_token = 1 + torch.arange(512) % 5
    return Trainer(
        model, small_batches(config), config, folder, settings=settings or {}, bytes_per_token=bytes_per_token
    )


def state(model: DeepSeek) -> dict[str, torch.Tensor]:
    """A copy of all that a step may change in a model: weights, biases, loads."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def assert_bitwise_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def moments(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of AdamW's state by parameter name."""
    return {
        f"{name}.{key}": value.clone()
        for name, parameter in trainer.model.named_parameters()
        for key, value in trainer.optimizer.state[parameter].items()
    }
