"""Training steps on several processes: a pipeline's gradients, and the optimizer of each rank.

After the schedule has run, each rank has the gradients of its own stages. Then, on every rank:

    sum the gradients and loads of parameters that are on several ranks
    loss of the whole batch, norm of the whole gradient                    two numbers are exchanged
    clip, the optimizer's step, and the bias update, for the rank's own parameters

Each rank has the optimizer's moments of its own parameters only. With DualPipe a parameter is on two ranks, and both
make the same update from the same sum, so the copies stay equal. (V3 splits the moments among ranks that hold the same
parameters, and so does `minids train`: parallel/zero.py.)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.parallel.execute import Batch, Executed, Pipeline, cut
from minids.parallel.launch import launch
from minids.parallel.schedules import Schedule
from minids.parallel.simulate import Times, simulate
from minids.parallel.stages import layers_of
from minids.quantization.products import Recipe
from minids.training.config import TrainConfig
from minids.training.optimizer import make_optimizer
from minids.training.step import Loss, Terms, TrainingDiverged, language_model_loss, update_weights
from minids.validation import require


@dataclass(frozen=True)
class PipelineRun:
    """What some optimizer steps on a pipeline gave. Names are those of the model."""

    terms: list[list[Terms]]  # of each step: the loss terms of its micro-batches, in their order in the batch
    norms: list[float]  # of each step: the gradient's norm before clipping
    gradients: dict[str, Tensor]  # of the last step, before clipping; none for what the last stage does not use
    weights: dict[str, Tensor]  # after the last step: parameters, and the biases of the gates
    timeline: list[list[Executed]]  # of the last step, for each rank

    @property
    def losses(self) -> list[float]:
        """The loss of each step."""
        return [sum(terms.total.item() for terms in parts) for parts in self.terms]


def run_pipeline(
    schedule: Schedule, model: DeepSeek, batches: list[Batch], config: TrainConfig, *,
    loss: Loss = language_model_loss, pace: Times | None = None, timeout: float = 120.0,
) -> PipelineRun:  # fmt: skip
    """Take one optimizer step per batch, with one process per rank of the schedule, and return the results.

    The model gives the weights at the start, as float32, and stays as it is. Each call begins at step 0 of the
    configuration with a new optimizer. Each batch, a dict of tensors or arrays, is cut into the schedule's
    micro-batches; the configuration's own sizes of batches do not matter. `loss` may call the `loss` and the
    `token_losses` of the model that it is given, with the tokens of its micro-batch; the parameters of this model are
    those of the last stage. `pace` gives each action at least that duration in seconds, for a picture of the schedule,
    and a pair the sum of its parts. On a machine with a GPU for each rank they run there.

    Raises ValueError for a model or batches that do not fit the schedule, IllegalSchedule for one that cannot run, and
    RankFailed, with the rank and its error, if a rank fails or dies, or if all steps take more than `timeout` seconds.
    A loss or gradient that is not finite is such an error (TrainingDiverged), on all ranks in the same step.
    """
    layers_of(model.config, schedule.stages)
    frozen = sum(not parameter.requires_grad for parameter in model.parameters())
    require("frozen parameters", frozen, not frozen, "0, because a pipeline trains all parameters")
    batches = [_on_cpu(batch) for batch in batches]
    allowed = f"from 1 to {config.steps}, the steps of the configuration"
    require("number of batches", len(batches), 1 <= len(batches) <= config.steps, allowed)
    for batch in batches:
        cut(batch, schedule)  # raises if it cannot be divided
    simulate(schedule)  # raises for a schedule that would wait forever
    on_gpus = torch.cuda.device_count() >= len(schedule)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    results = launch(
        _train, len(schedule), schedule, model.config, weights, batches, config, loss, pace, on_gpus,
        timeout=timeout, backend="nccl" if on_gpus else "gloo",
    )  # fmt: skip
    gradients, weights = {}, {}
    terms: list[dict[tuple[int, int], Terms]] = [{} for _ in batches]
    for result in results:
        gradients |= result.gradients
        weights |= result.weights
        for whole, parts in zip(terms, result.terms, strict=True):
            whole |= parts
    in_order = [[parts[i] for i in sorted(parts)] for parts in terms]
    return PipelineRun(in_order, results[0].norms, gradients, weights, [result.timeline for result in results])


def _on_cpu(batch: Batch) -> Batch:
    """Return the batch as tensors that can be sent to other processes."""
    require("batch", batch, isinstance(batch, dict) and "tokens" in batch, "a dict of tensors, with an entry tokens")
    return {name: torch.as_tensor(value).cpu() for name, value in batch.items()}


@dataclass(frozen=True)
class _Result:
    """One rank's part of a PipelineRun."""

    terms: list[dict[tuple[int, int], Terms]]
    norms: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    timeline: list[Executed]


def _train(
    rank: int, schedule: Schedule, model: ModelConfig, weights: dict[str, Tensor], batches: list[Batch],
    config: TrainConfig, loss: Loss, pace: Times | None, on_gpus: bool,
) -> _Result:  # fmt: skip
    """Take the optimizer steps of one rank."""
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)  # where NCCL's collectives run
    fp8 = Recipe.of_block(config.fp8_block) if config.dtype == "fp8" else None
    pipeline = Pipeline(schedule, rank, model, weights, device, dtype=config.dtype, fp8=fp8, pace=pace)
    optimizer = make_optimizer(pipeline.stages, config)
    terms, norms = [], []
    for step, batch in enumerate(batches):
        whole = {name: tensor.to(device) for name, tensor in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        parts = pipeline.run(whole, lambda stage, rows: loss(stage, rows, whole, config, step))  # noqa: B023 (used here)
        pipeline.sum_copies()
        total, norm = pipeline.loss(), pipeline.gradient_norm()
        if not (math.isfinite(total) and norm.isfinite()):
            raise TrainingDiverged(f"step {step}: the loss is {total} and the gradient norm {norm.item()}")
        owned = {name: p.grad for name, p in pipeline.named_parameters() if pipeline.owns(name)}
        gradients = {name: grad.cpu().clone() for name, grad in owned.items() if grad is not None}
        norms.append(update_weights(pipeline.stages, optimizer, list(parts.values()), config.clip_norm, norm))
        for stage in pipeline.stages:
            stage.update_expert_bias(config.bias_speed_at(step))
        terms.append(parts)
    final = {name: tensor.cpu() for stage in pipeline.stages for name, tensor in stage.state_dict().items()}
    return _Result(terms, norms, gradients, final, pipeline.timeline)
