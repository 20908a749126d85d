"""The same training run on several processes, by data, expert and pipeline parallelism (parallel/layout.py).

The loop is Trainer's, and so is every number: each process knows the whole batch, which is a function of the step, and
computes the share of its rows in the batch's loss. What differs is only how a step's parts come together:

    gradients       summed over the processes with the same weights
    norm            of the whole model's gradient, so that all clip alike
    loads           of the gates, summed before the biases are updated
    log             written by process 0; losses and bits per byte are of the whole batch
    checkpoint      every process writes what it holds (sharded.py)

Without a pipeline the weights are sharded by FSDP2 (parallel/shard.py). With one, each process has all weights of its
stages, and ZeRO-1 shares the optimizer's moments, as in V3 (parallel/zero.py). Its weight gradients come late, and
FSDP2, with its defaults, would miss them without an error.

Sums are in another order than those of one process, so the last bits differ; in the same layout, on the same machines
with one thread each, every run ends with the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minids.files import remove_leftovers
from minids.model.balance import update_expert_bias
from minids.model.deepseek import DeepSeek
from minids.model.moe import Gate
from minids.parallel.execute import Pipeline
from minids.parallel.launch import first_does, from_all
from minids.parallel.layout import Layout
from minids.parallel.shard import gradient_norm, shard
from minids.parallel.zero import Zero1
from minids.quantization.products import Recipe
from minids.training.checkpoint import (
    FILE,
    SHARDED,
    find_checkpoint,
    load_checkpoint,
    remove_other_kind,
    state_of,
)
from minids.training.sharded import load_sharded, read_state, save_sharded
from minids.training.step import Batch, Terms, accumulate_gradients, on_cpu, update_weights
from minids.training.trainer import Trainer


def make_trainer(model: DeepSeek, *run, layout: Layout, **settings) -> Trainer:
    """Return the trainer of this process, with the arguments of `Trainer`. All processes must give the same ones."""
    kind = ShardedTrainer if layout.pp == 1 else PipelineTrainer
    return kind(model, *run, layout=layout, **settings)


class DistributedTrainer(Trainer):
    """What all layouts have in common. Steps, saving and resuming wait for the other processes, so all have to call
    them in the same order."""

    def __init__(self, model: DeepSeek, *run, layout: Layout, **settings):
        self.layout, self.grid = layout, layout.grid(model.embed_tokens.weight.device.type)
        self.first, self.row = dist.get_rank() == 0, layout.coordinates(dist.get_rank())[1]
        super().__init__(model, *run, **settings)
        self.settings["environment"]["processes"] = f"{layout.ranks} ({layout})"
        if not self.first:
            self.log = None

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / SHARDED

    def rows(self, batch: Batch) -> Batch:
        """Return the rows of a batch that this process's pipeline or copy of the model works on."""
        return {name: values.chunk(self.layout.dp)[self.row] for name, values in batch.items()}

    def in_order(self, own: dict[Any, Terms]) -> list[Terms]:
        """Return the terms of all parts of the batch, from those of this process by their order among its rows."""
        own = {key: on_cpu(terms) for key, terms in own.items()}  # others could not use this process's GPU
        found = {(row, key): terms for row, parts in from_all((self.row, own)) for key, terms in parts.items()}
        return [found[key] for key in sorted(found)]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of which this process holds a part, by their names in the model."""
        return dict(self.model.named_parameters())

    def named_gates(self) -> dict[str, Gate]:
        return {name: module for name, module in self.model.named_modules() if isinstance(module, Gate)}

    @property
    def gates(self) -> list[Gate]:
        return list(self.named_gates().values())

    def state(self) -> dict[str, Tensor]:
        """Return what this process holds of the training state: parts of weights and moments, and biases."""
        biases = {f"{name}.expert_bias": gate.expert_bias for name, gate in self.named_gates().items()}
        weights = self.named_parameters() | {name: bias for name, bias in biases.items() if bias is not None}
        return state_of(weights, self.mine().items(), self.optimizer)

    def mine(self) -> dict[str, nn.Parameter]:
        """Return the parameters that this process updates, by name."""
        return self.named_parameters()

    def updated(self) -> set[nn.Parameter]:
        return set(self.mine().values())

    def save(self) -> None:
        """Write the checkpoint into the folder, each process its part."""
        sha256 = self.log.sha256 if self.first else ""
        save_sharded(self.checkpoint_path, self.state(), step=self.step, settings=self.settings, log_sha256=sha256)
        if self.first:
            remove_other_kind(self.checkpoint_path)

    def resume(self) -> list[str]:
        """Load the folder's checkpoint, also one of another number of processes; see `Trainer.resume`."""
        path = find_checkpoint(self.folder)
        if path.name == SHARDED:
            saved = read_state(path)
        else:
            saved = first_does(lambda: {**vars(load_checkpoint(path)), "tensors": None})
        differences = self.differences(saved["settings"], path)
        self.records = first_does(lambda: self._log_up_to(saved["step"], saved["log_sha256"]))
        tensors = self.state()
        load_sharded(path, tensors)
        for name, parameter in self.mine().items():
            start = f"optimizer.{name}."
            moments = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            self.optimizer.state[parameter] = moments
        self.continue_from(saved["step"])
        return differences

    def _log_up_to(self, step: int, sha256: str) -> list[dict]:
        self.require_log()
        with self.log:
            remove_leftovers(self.folder / FILE)
            return self.log.resume(step, sha256)

    def agree(self, stop: bool) -> bool:
        """Return whether any process was asked to stop."""
        asked = torch.tensor(int(stop), device=self.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked)

    def not_finite(self) -> str | None:
        return next((name for name in from_all(super().not_finite()) if name), None)


class ShardedTrainer(DistributedTrainer):
    """Data parallelism with sharded weights, and expert parallelism."""

    def prepare(self, model: DeepSeek) -> nn.Module:
        self.layout.check(model.config, self.config.batch_size, self.config.micro_batch_size)
        shard(model, self.layout, self.grid)
        return super().prepare(model)

    def accumulate(self, batch: Batch) -> list[Terms]:
        config, step = self.config, self.step
        own = accumulate_gradients(
            lambda rows: self.loss(self.model, rows, batch, config, step), self.rows(batch), config.dtype,
            config.micro_batch_size,
        )  # fmt: skip
        for gate in self.gates:
            dist.all_reduce(gate.load)
        return self.in_order(dict(enumerate(own)))

    def update(self, parts: list[Terms]) -> float:
        return update_weights(self.model, self.optimizer, parts, self.config.clip_norm, gradient_norm(self.model))


class PipelineTrainer(DistributedTrainer):
    """Pipelines, side by side if there are several, whose optimizer follows ZeRO-1."""

    def prepare(self, model: DeepSeek) -> nn.Module:
        config = self.config
        schedule = self.layout.check(model.config, config.batch_size, config.micro_batch_size)
        fp8 = Recipe.of_block(config.fp8_block) if config.dtype == "fp8" else None
        self.pipeline = Pipeline(
            schedule, self.layout.coordinates(dist.get_rank())[0], model.config, model.state_dict(), self.device,
            dtype=config.dtype, fp8=fp8, layout=self.layout, grid=self.grid,
        )  # fmt: skip
        self.zero = Zero1(self.pipeline.named_parameters(), self.pipeline.holders, self.pipeline.groups)
        self.all_gates = [name for name, module in model.named_modules() if isinstance(module, Gate)]
        return self.pipeline.stages

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.pipeline.named_parameters())

    def named_gates(self) -> dict[str, Gate]:
        return dict(self.pipeline.named_gates())

    def mine(self) -> dict[str, nn.Parameter]:
        return self.zero.mine

    def accumulate(self, batch: Batch) -> list[Terms]:
        config, step = self.config, self.step
        terms = self.pipeline.run(self.rows(batch), lambda stage, rows: self.loss(stage, rows, batch, config, step))
        self.pipeline.sum_copies()
        return self.in_order(terms)

    def update(self, parts: list[Terms]) -> float:
        norm = self.pipeline.gradient_norm()
        norm = update_weights(self.model, self.optimizer, parts, self.config.clip_norm, norm)
        self.zero.spread()
        return norm

    def update_biases(self, speed: float) -> list[Tensor]:
        own = {name: gate.load.cpu().clone() for name, gate in self.named_gates().items()}
        for gate in self.gates:
            if gate.expert_bias is not None:
                update_expert_bias(gate.expert_bias, gate.load, speed)
            gate.load.zero_()
        loads = {name: load for part in from_all(own) for name, load in part.items()}
        return [loads[name] for name in self.all_gates]
