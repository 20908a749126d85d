"""Optimizer steps on several processes against the same steps in one: losses, gradients, norms and next weights."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from configurations import random_model, random_tokens
from helpers_parallel import fail_in_step
from torch import Tensor

from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.parallel.launch import RankFailed
from minids.parallel.schedules import SCHEDULES, Schedule, spell
from minids.parallel.simulate import IllegalSchedule, Times
from minids.quantization.products import Recipe, use_fp8
from minids.training.config import TrainConfig
from minids.training.pipeline import PipelineRun, run_pipeline
from minids.training.step import accumulate_gradients, language_model_loss, make_optimizer, update_weights

TINY = ModelConfig.preset("tiny")  # MLA, MoE with bias, one MTP module, 8 layers
M = 8


def settings(**changes) -> TrainConfig:
    return TrainConfig(**dict(steps=4, batch_size=M, sequence_length=12, balance_weight=0.01, fp8_block=32) | changes)


def batches(c: ModelConfig, count: int = 2, **mask: Tensor) -> list[dict[str, Tensor]]:
    return [{"tokens": random_tokens(c, M, 12, seed=i)} | mask for i in range(count)]


def in_one_process(model: DeepSeek, steps: list[dict[str, Tensor]], config: TrainConfig) -> dict:
    model.train()
    if config.dtype == "fp8":
        use_fp8(model, Recipe.of_block(config.fp8_block))
    optimizer, losses, norms = make_optimizer(model, config), [], []
    for step, batch in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)

        def terms(rows, batch=batch, step=step):
            return language_model_loss(model, rows, batch, config, step)

        parts = accumulate_gradients(terms, batch, config.dtype, len(batch["tokens"]) // M)
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norms.append(update_weights(model, optimizer, parts, config.clip_norm))
        losses.append(sum(part.total.item() for part in parts))
        model.update_expert_bias(config.bias_speed_at(step))
    return dict(losses=losses, norms=norms, gradients=gradients, weights=model.state_dict())


def assert_same(run: PipelineRun, expected: dict, gradient: float = 2e-5, weight: float = 1e-4) -> None:
    """Every tensor differs by at most a share of its largest number."""
    assert run.losses == pytest.approx(expected["losses"], rel=1e-6)
    assert run.norms == pytest.approx(expected["norms"], rel=gradient)
    for found, wanted, share in ((run.gradients, expected["gradients"], gradient),
                                 (run.weights, expected["weights"], weight)):  # fmt: skip
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.allclose(found[name], tensor, rtol=0, atol=share * tensor.abs().max().item()), name


CASES = [(name, ranks) for name in SCHEDULES for ranks in (2, 4)]


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_every_schedule_gives_what_one_process_gives(name, ranks):
    schedule, config = SCHEDULES[name](ranks, M), settings()
    model, steps = random_model(TINY), batches(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = run_pipeline(schedule, model, steps, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert_same(run, in_one_process(model, steps, config))
    executed = [[str(done.action) for done in row] for row in run.timeline]
    assert executed == [[str(part) for action in row for part in action.parts] for row in schedule]


VARIANTS = {
    "tied, one copy of the embedding on each end": ("1F1B", 4, dict(tie_word_embeddings=True), {}),
    "tied, first and last stage on one rank": ("ZBV", 2, dict(tie_word_embeddings=True), {}),
    "tied, everything twice": ("DualPipe", 2, dict(tie_word_embeddings=True), {}),
    "without MTP": ("ZB1P", 2, dict(num_nextn_predict_layers=0), {}),
    "two MTP modules": ("DualPipeV", 2, dict(num_nextn_predict_layers=2), {}),
    "dense": ("DualPipe", 2, dict(n_routed_experts=None, n_shared_experts=None), {}),
    "one stage": ("GPipe", 1, {}, {}),
    "uneven stages": ("1F1B", 3, {}, {}),
    "clipped": ("DualPipe", 4, {}, dict(clip_norm=0.01)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_models_and_settings_give_what_one_process_gives(variant):
    name, ranks, changes, training = VARIANTS[variant]
    c, config = replace(TINY, **changes), settings(**training)
    model, steps = random_model(c), batches(c)
    assert_same(run_pipeline(SCHEDULES[name](ranks, M), model, steps, config), in_one_process(model, steps, config))


def test_a_mask_counts_as_in_one_process():
    mask = torch.arange(M * 12).view(M, 12) % 5 > 0
    mask[0] = False  # a micro-batch without any token that counts
    model, steps, config = random_model(TINY), batches(TINY, mask=mask), settings()
    run = run_pipeline(SCHEDULES["DualPipeV"](2, M), model, steps, config)
    assert_same(run, in_one_process(model, steps, config))


@pytest.mark.parametrize(("dtype", "share"), [("fp8", 0.05), ("bfloat16", 0.4)])
def test_products_in_fewer_bits_have_their_weight_gradients_later_too(dtype, share):
    """A last bit of difference moves a rounding, so gradients agree less closely than the losses."""
    model, steps, config = random_model(TINY), batches(TINY, count=1), settings(dtype=dtype)
    run = run_pipeline(SCHEDULES["DualPipe"](2, M), model, steps, config)
    expected = in_one_process(model, steps, config)
    assert run.losses == pytest.approx(expected["losses"], rel=1e-3)
    for name, wanted in expected["gradients"].items():
        assert (run.gradients[name] - wanted).norm() <= share * wanted.norm(), name


def test_each_action_takes_its_pace_and_starts_after_what_it_needs():
    schedule, config = SCHEDULES["1F1B"](2, 4), settings(batch_size=4)
    rows = [{"tokens": random_tokens(TINY, 4, 12)}]
    run = run_pipeline(schedule, random_model(TINY), rows, config, pace=Times(F=0.02, I=0.01, W=0.02))
    for row in run.timeline:
        for done in row:
            assert done.end - done.start >= {"F": 0.02, "B": 0.03}[done.action.kind]
        for one, two in pairwise(row):
            assert two.start >= one.end
    first, last = ({str(done.action): done for done in row} for row in run.timeline)
    for i in range(4):
        assert first[f"F0.{i}"].end <= last[f"F0.{i}"].start
        assert last[f"B0.{i}"].end <= first[f"B0.{i}"].start


def test_an_error_in_a_rank_ends_the_run_and_names_the_rank():
    with pytest.raises(RankFailed) as error:
        run_pipeline(SCHEDULES["1F1B"](2, M), random_model(TINY), batches(TINY), settings(), loss=fail_in_step)
    assert str(error.value) == "rank 1: ArithmeticError: no loss today"


REFUSED = [
    ("stages", lambda: (SCHEDULES["DualPipeV"](6, 12), TINY, 12)),
    ("rows of a batch", lambda: (SCHEDULES["1F1B"](2, 3), TINY, 4)),
]


@pytest.mark.parametrize(("value", "make"), REFUSED)
def test_what_does_not_fit_the_schedule_is_refused(value, make):
    schedule, c, rows = make()
    with pytest.raises(ValueError, match=f"^{value}=.* is not possible: it must be "):
        run_pipeline(schedule, random_model(c), [{"tokens": random_tokens(c, rows, 12)}], settings(batch_size=rows))


def test_a_schedule_that_would_wait_forever_is_refused_before_it_starts():
    schedule = Schedule(map(spell, ("F0 B0 F0 B0", "F0 F0 B0 B0")), "loop", 1, 2)
    with pytest.raises(IllegalSchedule, match=r"^a deadlock: rank 0 waits before "):
        run_pipeline(schedule, random_model(TINY), [{"tokens": random_tokens(TINY, 2, 12)}], settings(batch_size=2))
