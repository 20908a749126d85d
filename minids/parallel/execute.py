"""Run a schedule with real processes, on torch's pipeline runtime.

Each rank makes a `Pipeline`: its stages of the model, its list of actions, and the messages that they need. `run` takes
one batch through all ranks, forward and backward, and leaves the gradients of the whole batch in the parameters, as one
process would have them. Weight gradients are deferred (deferred.py), so that I and W are real halves.

torch's runtime (`torch.distributed.pipelining`) receives, computes and sends in a given order. What it lacks is added
here, and only this file uses its private names:

- **Two directions.** The runtime knows one pipeline, in which stage s sends to stage s + 1. Each direction of DualPipe
  gets a range of stage numbers of its own, with numbers between them that no rank has.
- **Messages.** They are put into the order in which the simulator sends them, so both ends of every connection agree.
- **A timeline.** Every action's start and end are recorded; waiting for messages is not part of it. `pace` stretches
  each action to a given duration: with more ranks than cores, real computations would slow each other down.
- **Any order.** torch's runtime takes its first loss for that of micro-batch 0. Here losses are kept by their
  micro-batch, and only until its backward.

The two parts of a pair run one after the other: the gain by their overlap is only simulated.

A parameter may have copies on several ranks: the embedding of first and last stage, and with DualPipe everything. Each
copy sees its own micro-batches, so their gradients are summed (`sum_copies`), and each parameter counts once in the
norm.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _Action, _ComputationType, _PipelineScheduleRuntime

from minids.device import autocast
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.model.kernels import local
from minids.model.moe import Gate
from minids.parallel.deferred import Store, defer
from minids.parallel.experts import spread_experts
from minids.parallel.layout import Grid, Layout
from minids.parallel.schedules import Action, Pair, Schedule
from minids.parallel.simulate import Times, simulate
from minids.parallel.stages import Stage, load
from minids.quantization.products import Recipe, use_fp8
from minids.validation import require

Batch = dict[str, Tensor]
KINDS = {
    "F": _ComputationType.FORWARD,
    "B": _ComputationType.FULL_BACKWARD,
    "I": _ComputationType.BACKWARD_INPUT,
    "W": _ComputationType.BACKWARD_WEIGHT,
}
OVERLAP = _ComputationType.OVERLAP_F_B
SEND_F, RECV_F = _ComputationType.SEND_F, _ComputationType.RECV_F
SEND_B, RECV_B = _ComputationType.SEND_B, _ComputationType.RECV_B
logging.getLogger("torch.distributed.pipelining").setLevel(logging.CRITICAL)  # it prints the schedule with every error


@dataclass(frozen=True)
class Executed:
    """An action as it was executed, in seconds since all ranks began."""

    action: Action
    start: float
    end: float


class Pipeline:
    """One rank of a pipeline.

    `rank` is its place in the pipeline. `tensors` has the weights of the whole model, or at least of this rank's
    stages. With `fp8` the products follow that recipe. `pace` gives the least duration of F, B, I and W, in seconds.
    With a `layout` and its `grid`, several pipelines are side by side, and may share the experts.
    """

    def __init__(
        self, schedule: Schedule, rank: int, config: ModelConfig, tensors: dict[str, Tensor], device: torch.device,
        *, dtype: str = "float32", fp8: Recipe | None = None, pace: Times | None = None,
        layout: Layout | None = None, grid: Grid | None = None,
    ):  # fmt: skip
        self.schedule, self.rank, self.config, self.device, self.dtype, self.pace = (
            schedule, rank, config, device, dtype, pace
        )  # fmt: skip
        with torch.device("meta"):
            model = DeepSeek(config)
        self.group = dist.group.WORLD if grid is None else grid.pp.get_group()
        self.layout, me = layout or Layout(len(schedule), pp=len(schedule)), dist.get_rank()
        in_pipeline = holders(schedule, model)
        self.holders = {n: self.layout.holders(ranks, me, ".experts." in n) for n, ranks in in_pipeline.items()}
        self.stages = nn.ModuleList(
            Stage(model, schedule.place(rank, chunk).stage, schedule.stages) for chunk in range(schedule.chunks)
        )
        load(list(self.stages), tensors, device)
        if self.layout.ep > 1:
            spread_experts(self.stages, grid.ep, grid.expert_groups)
        if fp8 is not None:
            use_fp8(self.stages, fp8)
        self.store = Store()
        defer(self.stages, self.store)
        shared = {
            self.layout.holders(ranks, rank, ".experts." in name)
            for name, ranks in in_pipeline.items() for rank in range(self.layout.ranks)
        }  # fmt: skip
        # All ranks have to make all groups, in the same order.
        groups = {ranks: dist.new_group(ranks) for ranks in sorted(shared) if len(ranks) > 1}
        self.groups = {ranks: group for ranks, group in groups.items() if me in ranks}
        self.timeline: list[Executed] = []
        self._runtime = None

    def run(self, batch: Batch, terms_of: Callable[[nn.Module, Batch], object]) -> dict[tuple[int, int], object]:
        """Take a batch forward and backward. Return the terms of the micro-batches whose last stage is on this rank, by
        direction and number, which is their order in the batch.

        `terms_of(model, rows)` is the share of these rows in the batch's loss. With two directions, the first half of
        the micro-batches travels in direction 0.
        """
        self.micro_batches = cut(batch, self.schedule)
        self.terms_of, self.terms, self.timeline = terms_of, {}, []
        rows, length = self.micro_batches[0]["tokens"].shape
        shape = (rows, length - 1, self.config.hidden_size)
        if self._runtime is None or self._runtime.shape != shape:
            self._runtime = _Runtime(self, shape)
        self.stages.train()
        dist.barrier(self.group)
        origin = torch.tensor([time.perf_counter()], dtype=torch.float64, device=self.device)
        dist.broadcast(origin, group=self.group, group_src=0)  # the processes of a machine share this clock
        self.origin = origin.item()
        try:
            self._runtime.step(return_outputs=False)
            return self.terms
        except RuntimeError as error:
            reason = error.__cause__ or error  # the runtime wraps what its stages raise
        raise reason

    def sum_copies(self) -> None:
        """Sum the gradients and the gates' loads of all copies of each parameter, over the ranks that hold one.

        A copy without a gradient counts as 0, but if none has one, as for an MTP module that the loss does not use,
        none gets one: AdamW would update it.
        """
        for ranks, group in self.groups.items():
            mine = [p for name, p in self.named_parameters() if self.holders[name] == ranks]
            used = torch.tensor([int(p.grad is not None) for p in mine], device=self.device)
            dist.all_reduce(used, group=group)
            mine = [p for p, count in zip(mine, used.tolist(), strict=True) if count]
            for parameter in mine:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            together(lambda flat, group=group: dist.all_reduce(flat, group=group), [local(p.grad) for p in mine])
            for name, gate in self.named_gates():
                if self.holders[f"{name}.weight"] == ranks:
                    dist.all_reduce(gate.load, group=group)

    def gradient_norm(self) -> Tensor:
        """Return the norm of the whole model's gradient, in which each parameter counts once."""
        own = [local(p.grad) for name, p in self.named_parameters() if p.grad is not None and self.owns(name)]
        square = (
            torch.stack([grad.square().sum() for grad in own]).sum() if own else torch.zeros((), device=self.device)
        )
        dist.all_reduce(square)
        return square.sqrt()

    def loss(self) -> float:
        """Return the loss of the whole batch, the same on all ranks."""
        own = sum(terms.total.item() for terms in self.terms.values())
        total = torch.tensor(own, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item()

    def owns(self, name: str) -> bool:
        """Whether this rank is the first of those that hold the parameter."""
        return self.holders[name][0] == dist.get_rank()

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters of all stages of this rank by their names in the model, each once, in the same order on all
        ranks."""
        return sorted({name: p for stage in self.stages for name, p in stage.named_parameters()}.items())

    def named_gates(self) -> list[tuple[str, Gate]]:
        found = {n: m for stage in self.stages for n, m in stage.named_modules() if isinstance(m, Gate)}
        return sorted(found.items())


def together(collective: Callable[[Tensor], object], tensors: list[Tensor]) -> None:
    """Apply a collective in place to tensors of one dtype, as a single message."""
    if tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        collective(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def cut(batch: Batch, schedule: Schedule) -> list[Batch]:
    """Return the schedule's micro-batches of a batch, in order. Raises ValueError if it cannot be divided."""
    shape, count = tuple(batch["tokens"].shape), schedule.micro_batches
    require("shape of tokens", shape, len(shape) == 2 and shape[1] > 1, "(rows, time), with at least 2 tokens in a row")
    rows, allowed = shape[0], f"a multiple of the schedule's {count} micro-batches"
    require("rows of a batch", rows, rows > 0 and rows % count == 0, allowed)
    for name, value in batch.items():
        require(f"rows of {name}", len(value), len(value) == rows, f"{rows}, as many as tokens has")
    parts = {name: value.split(rows // count) for name, value in batch.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(count)]


def holders(schedule: Schedule, model: DeepSeek) -> dict[str, tuple[int, ...]]:
    """Return the ranks that hold each parameter, by its name."""
    found = defaultdict(set)
    for place, rank in schedule.ranks_of().items():
        for name, _ in Stage(model, place.stage, schedule.stages).named_parameters():
            found[name].add(rank)
    return {name: tuple(sorted(ranks)) for name, ranks in found.items()}


class _Stage(PipelineStage):
    """A stage as torch's runtime runs it: it fetches its own micro-batches, and writes its timeline."""

    def __init__(self, pipeline: Pipeline, chunk: int, shape: tuple[int, ...]):
        self.pipeline, self.chunk = pipeline, chunk
        schedule = pipeline.schedule
        self.place, self.count = schedule.place(pipeline.rank, chunk), schedule.stages
        stream = torch.empty(shape, device=pipeline.device, requires_grad=True)
        balance = torch.empty(1, device=pipeline.device, requires_grad=True)
        super().__init__(
            pipeline.stages[chunk], _number(schedule, *self.place), 2 * schedule.pipes * self.count, pipeline.device,
            input_args=(stream, balance), output_args=(stream, balance), dw_builder=pipeline.store.take,
            group=pipeline.group,
        )  # fmt: skip

    @property
    def is_first(self) -> bool:
        return self.place.stage == 0

    @property
    def is_last(self) -> bool:
        return self.place.stage == self.count - 1

    def forward_one_chunk(self, fwd_chunk_id, args, kwargs=None, save_forward_output=True):
        with self._timed("F", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, args, kwargs, save_forward_output)

    def forward_maybe_with_nosync(self, *received):
        pipeline, stage = self.pipeline, self.submod
        rows = pipeline.micro_batches[self.place.pipe * pipeline.schedule.per_pipe + self.number]
        with autocast(pipeline.device, pipeline.dtype):
            if self.is_first:
                received = stage.start(rows["tokens"])
            if not self.is_last:
                return stage(*received)
            stage.receive(rows["tokens"], *received)
            terms = pipeline.terms_of(stage, rows)
            stage.received = None  # only the graph keeps it now
        parts = {field.name: getattr(terms, field.name).detach().cpu() for field in fields(terms)}
        pipeline.terms[self.place.pipe, self.number] = replace(terms, **parts)
        return terms.total

    def backward_one_chunk(self, bwd_chunk_id, loss=None, full_backward=True, last_backward=False):
        with self._timed("B" if full_backward else "I", bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id, last_backward=False):
        with self._timed("W", bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

    @contextmanager
    def _timed(self, kind: str, number: int) -> Iterator[None]:
        """Record the action, and stretch it to its pace."""
        pipeline, self.number = self.pipeline, number
        action = Action(kind, self.chunk, number)
        self._finish()  # then the messages that it needs are there
        start = time.perf_counter()
        yield
        self._finish()
        if pipeline.pace is not None:
            time.sleep(max(0.0, start + float(pipeline.pace.of(action)) - time.perf_counter()))
        pipeline.timeline.append(Executed(action, start - pipeline.origin, time.perf_counter() - pipeline.origin))

    def _finish(self) -> None:
        """Wait until the GPU has done what it was given, but not for later messages: they are in other streams."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


class _Runtime(_PipelineScheduleRuntime):
    """torch's runtime with our list of actions."""

    def __init__(self, pipeline: Pipeline, shape: tuple[int, ...]):
        self.schedule, self.shape, self.losses = pipeline.schedule, shape, {}
        stages = [_Stage(pipeline, chunk, shape) for chunk in range(self.schedule.chunks)]
        # The loss function only tells torch that there is a backward pass: the last stage returns the loss.
        super().__init__(stages, self.schedule.per_pipe, loss_fn=lambda loss, target: loss, scale_grads=False)
        ranks = {_number(self.schedule, *place): rank for place, rank in self.schedule.ranks_of().items()}
        for stage in stages:
            stage.stage_index_to_group_rank = ranks
        self.pipeline_order_with_comms = {pipeline.rank: _with_messages(self.schedule)[pipeline.rank]}

    def _maybe_compute_loss(self, stage, output, target_mbs, mb_index, loss_kwargs=None):
        if stage.is_last:
            self.losses[stage.place.pipe, mb_index] = output

    def _maybe_get_loss(self, stage, mb_index):
        # Taken out, because the graph is not needed any more.
        return self.losses.pop((stage.place.pipe, mb_index)) if stage.is_last else None


def _number(schedule: Schedule, pipe: int, stage: int) -> int:
    """Return torch's number of a stage; the last stage of a pipeline and the first of the next are no neighbours."""
    return 2 * pipe * schedule.stages + stage


def _with_messages(schedule: Schedule) -> list[list[_Action]]:
    """Return every rank's actions in torch's form, with the messages between ranks.

    Actions are taken in the order of their ends in a simulation. After each one, its rank sends the result, and the
    rank that needs it begins to receive.
    """
    ranks_of, orders = schedule.ranks_of(), [[] for _ in schedule]
    spans = sorted((span for spans in simulate(schedule).spans for span in spans), key=lambda span: span.end)
    for span in spans:
        sends = []
        parts = []
        for part in span.action.parts:
            place = schedule.place(span.rank, part.chunk)
            parts.append(_Action(_number(schedule, *place), KINDS[part.kind], part.micro_batch))
            neighbour = place._replace(stage=place.stage + {"F": 1, "B": -1, "I": -1, "W": 0}[part.kind])
            if part.kind != "W" and ranks_of.get(neighbour, span.rank) != span.rank:
                sends.append((part, place, neighbour))
        paired = isinstance(span.action, Pair)
        orders[span.rank].append(_Action(-1, OVERLAP, None, tuple(parts)) if paired else parts[0])
        for part, place, neighbour in sends:
            send, receive = (SEND_F, RECV_F) if part.kind == "F" else (SEND_B, RECV_B)
            orders[span.rank].append(_Action(_number(schedule, *place), send, part.micro_batch))
            orders[ranks_of[neighbour]].append(_Action(_number(schedule, *neighbour), receive, part.micro_batch))
    return orders
