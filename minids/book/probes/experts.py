"""What the processes of chapter 9 and its second notebook run; new processes import these functions by name."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from minids.book.probes.kills import CONFIG, MODEL, sums
from minids.device import autocast
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.model.kernels import local
from minids.model.moe import MoE
from minids.parallel.experts import AS_COMPUTED, ExpertParallel, Formats
from minids.parallel.launch import launch
from minids.parallel.layout import Layout
from minids.training.config import TrainConfig
from minids.training.distributed import make_trainer
from minids.training.run import start_run
from minids.training.sharded import load_state, save_sharded

# ---------------------------------------------------------------------------------------------------
# One layer whose experts are spread over all ranks


@dataclass(frozen=True)
class Spread:
    """What a spread layer gave, in the order of the ranks: outputs and gradients of the tokens, and of all weights.

    `rows` are the copies sent, by hop, sender and receiver within the hop's group; `row_bytes` the bytes of one copy on
    its way there and back.
    """

    out: list[Tensor]
    x_grad: list[Tensor]
    grads: dict[str, Tensor]
    load: Tensor
    rows: list[list[list[int]]]
    row_bytes: tuple[int, int]


def spread_layer(
    layer: MoE, x_BTD: list[Tensor], out_grad_BTD: list[Tensor], *, nodes: int = 1, formats: Formats = AS_COMPUTED,
    dtype: str = "float32",
) -> Spread:  # fmt: skip
    """Run a layer forward and backward in one process for each tensor of tokens, its experts spread over all of them.

    The gradients are those of the sum of out · out_grad and the balance losses. With several nodes there are two hops.
    """
    weights = {name: tensor.detach() for name, tensor in layer.state_dict().items()}
    ranks = launch(_run_layer, len(x_BTD), layer.config, weights, x_BTD, out_grad_BTD, nodes, formats, dtype)
    grads = {}
    for name in ranks[0]["grads"]:
        parts = [rank["grads"][name] for rank in ranks]
        grads[name] = torch.cat(parts) if name.startswith("experts.") else sum(parts)  # experts are on one rank each
    rows = [[rank["hops"][hop][0] for rank in ranks] for hop in range(len(ranks[0]["hops"]))]
    out, x_grad = ([rank[name] for rank in ranks] for name in ("out", "x_grad"))
    return Spread(out, x_grad, grads, sum(rank["load"] for rank in ranks), rows, ranks[0]["hops"][0][1:])


def forward_backward(layer: MoE, x_BTD: Tensor, out_grad_BTD: Tensor, dtype: str = "float32") -> tuple[Tensor, Tensor]:
    """Return a layer's output, and the gradient of the tokens for the loss of `spread_layer`."""
    x_BTD = x_BTD.clone().requires_grad_()
    with autocast(x_BTD.device, dtype):
        out_BTD, balance = layer(x_BTD)
    ((out_BTD * out_grad_BTD).sum() + balance * len(x_BTD)).backward()
    return out_BTD.detach(), x_BTD.grad


def _run_layer(
    rank: int, config: ModelConfig, weights: dict[str, Tensor], x_BTD: list[Tensor], out_grad_BTD: list[Tensor],
    nodes: int, formats: Formats, dtype: str,
) -> dict:  # fmt: skip
    layer = MoE(config)
    layer.load_state_dict(weights)
    layer.train()
    parallel = ExpertParallel(groups_of(rank, nodes), formats)
    for name, matrices in list(layer.experts.named_parameters()):
        setattr(layer.experts, name, nn.Parameter(matrices.data.chunk(parallel.ranks)[parallel.place].clone()))
    layer.dispatch, layer.combine = parallel.dispatch, parallel.combine
    out, x_grad = forward_backward(layer, x_BTD[rank], out_grad_BTD[rank], dtype)
    return dict(
        out=out, x_grad=x_grad, grads={name: p.grad for name, p in layer.named_parameters()}, load=layer.gate.load,
        hops=[(hop.sent, hop.bytes_sent, hop.bytes_collected) for hop in parallel.hops],
    )  # fmt: skip


def groups_of(rank: int, nodes: int) -> tuple[dist.ProcessGroup, ...]:
    """The group of all ranks, or those of two hops."""
    ranks = dist.get_world_size()
    if nodes == 1:
        return (dist.group.WORLD,)
    size = ranks // nodes
    across = [dist.new_group(list(range(place, ranks, size))) for place in range(size)]
    inside = [dist.new_group(list(range(node * size, (node + 1) * size))) for node in range(nodes)]
    return across[rank % size], inside[rank // size]


# ---------------------------------------------------------------------------------------------------
# A whole model, trained by several processes


@dataclass(frozen=True)
class Together:
    """The log records of a run on several processes, its weights, and the numbers that each rank kept of weights and of
    the optimizer's moments."""

    records: list[dict]
    weights: dict[str, Tensor]
    parameters: list[int]
    moments: list[int]

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.records]


class Given:
    """Batches that exist already, as a source for a trainer."""

    def __init__(self, batches: list[dict]):
        self.batches = batches

    def batch(self, step: int, batch_size: int) -> dict:
        return self.batches[step]


def train_together(flags: dict, model: DeepSeek, batches: list[dict], config: TrainConfig) -> Together:
    """Train on these batches, a step each, by the processes of a layout; the model itself stays as it is."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    batches = [{name: np.asarray(values) for name, values in batch.items()} for batch in batches]
    config = replace(config, batch_size=len(batches[0]["tokens"]))
    with tempfile.TemporaryDirectory(prefix="minids-") as folder:
        parts = (flags, model.config, weights, batches, config, Path(folder) / "checkpoint")
        ranks = launch(_train, Layout(**flags).ranks, *parts)
        tensors = load_state(parts[-1]).tensors
    found = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    return Together(ranks[0][0], found, [rank[1] for rank in ranks], [rank[2] for rank in ranks])


def _train(
    rank: int, flags: dict, config: ModelConfig, weights: dict, batches: list, train: TrainConfig, path: Path
) -> tuple[list[dict], int, int]:
    model = DeepSeek(config)
    model.load_state_dict(weights)
    trainer = make_trainer(model, Given(batches), train, layout=Layout(**flags))
    records = [trainer.train_step() for _ in batches]
    state = trainer.state()
    kept = Counter()
    for name, tensor in state.items():
        kept[name.partition(".")[0]] += local(tensor).numel()
    save_sharded(path, state, step=len(batches), settings={}, log_sha256="")
    return records, kept["model"], kept["optimizer"]


# ---------------------------------------------------------------------------------------------------
# A run in a folder

STEPS, SAVE_EVERY = 24, 4


def train_in_folder(folder: Path, flags: dict | None, kill: tuple[int, int] | None = None) -> None:
    """Begin or resume a run of 24 steps by the processes of a layout, or by one process, and train to its end.

    `kill` is a rank and a step, after which this rank is killed; then RankFailed is raised, as by `launch`.
    """
    launch(_train_in_folder, 1 if flags is None else Layout(**flags).ranks, folder, flags, kill)


def _train_in_folder(rank: int, folder: Path, flags: dict | None, kill: tuple[int, int] | None) -> None:
    config = replace(CONFIG, steps=STEPS, save_every=SAVE_EVERY)
    layout = None if flags is None else Layout(**flags)
    run = start_run(MODEL, config, sums(), folder, resume=True, layout=layout)

    def look(record: dict) -> None:
        if kill == (rank, record["step"] + 1):
            os.kill(os.getpid(), signal.SIGKILL)  # no process can catch it

    run.trainer.run(look)
