"""Optimizer steps on several processes against the same steps in one: losses, gradients, norms and next weights."""

import math
import re
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import helpers_parallel as losses
import pytest
import torch
from configurations import random_model, random_tokens
from torch import Tensor

from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.parallel.deferred import Store, defer
from minids.parallel.launch import RankFailed
from minids.parallel.schedules import SCHEDULES, Schedule, spell
from minids.parallel.simulate import IllegalSchedule, Times
from minids.parallel.stages import layers_of
from minids.quantization.products import Recipe, use_fp8
from minids.training.config import TrainConfig
from minids.training.optimizer import make_optimizer
from minids.training.pipeline import PipelineRun, run_pipeline
from minids.training.step import Loss, accumulate_gradients, language_model_loss, update_weights

TINY = ModelConfig.preset("tiny")  # MLA, MoE with bias, one MTP module, 8 layers
M = 8


def settings(**changes) -> TrainConfig:
    return TrainConfig(**dict(steps=4, batch_size=M, sequence_length=12, balance_weight=0.01, fp8_block=32) | changes)


def batches(c: ModelConfig, count: int = 2, **mask: Tensor) -> list[dict[str, Tensor]]:
    return [{"tokens": random_tokens(c, M, 12, seed=i)} | mask for i in range(count)]


def in_one_process(
    model: DeepSeek, steps: list[dict[str, Tensor]], config: TrainConfig, loss: Loss = language_model_loss,
    deferred: bool = False,
) -> dict:  # fmt: skip
    model.train()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if config.dtype == "fp8":
        use_fp8(model, Recipe.of_block(config.fp8_block))
    store = Store()
    if deferred:
        defer(model, store)
    optimizer, totals, norms = make_optimizer(model, config), [], []
    for step, batch in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)

        def terms(rows, batch=batch, step=step):
            return loss(model, rows, batch, config, step)

        parts = accumulate_gradients(terms, batch, config.dtype, len(batch["tokens"]) // M)
        store.take()()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        norms.append(update_weights(model, optimizer, parts, config.clip_norm))
        totals.append([part.total.item() for part in parts])
        model.update_expert_bias(config.bias_speed_at(step))
    return dict(totals=totals, norms=norms, gradients=gradients, weights=model.state_dict(), start=start)


def assert_same(run: PipelineRun, expected: dict) -> None:
    """Gradients differ by at most a share of their largest number, and weights of how far they have moved.

    (AdamW divides by the size of the gradient. Where that is nearly 0, a last bit of it moves a single weight.)
    """
    for parts, totals in zip(run.terms, expected["totals"], strict=True):
        assert [part.total.item() for part in parts] == pytest.approx(totals, rel=2e-6)
    assert run.losses == pytest.approx([sum(totals) for totals in expected["totals"]], rel=1e-6)
    assert run.norms == pytest.approx(expected["norms"], rel=2e-5)
    assert run.gradients.keys() == expected["gradients"].keys()
    for name, wanted in expected["gradients"].items():
        assert (run.gradients[name] - wanted).abs().max() <= 2e-5 * wanted.abs().max(), name
    assert run.weights.keys() == expected["weights"].keys()
    for name, wanted in expected["weights"].items():
        assert (run.weights[name] - wanted).norm() <= 2e-3 * (wanted - expected["start"][name]).norm(), name


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


CHANGING = dict(steps=2, decay_fraction=0.5, frozen_bias_fraction=0.5)
VARIANTS = {
    "tied, a copy on each end": ("1F1B", 4, dict(tie_word_embeddings=True, num_nextn_predict_layers=0), {}),
    "tied, first and last stage on one rank": ("ZBV", 2, dict(tie_word_embeddings=True), {}),
    "tied, everything twice": ("DualPipe", 2, dict(tie_word_embeddings=True), {}),
    "without MTP": ("ZB1P", 2, dict(num_nextn_predict_layers=0), {}),
    "two MTP modules": ("DualPipeV", 2, dict(num_nextn_predict_layers=2), {}),
    "dense": ("DualPipe", 2, dict(n_routed_experts=None, n_shared_experts=None), {}),
    "one stage": ("GPipe", 1, {}, {}),
    "uneven stages": ("1F1B", 3, {}, {}),
    "clipped, with rates that change": ("DualPipe", 4, {}, dict(clip_norm=0.01, **CHANGING)),
    "Muon": ("DualPipe", 2, {}, dict(optimizer="muon", **CHANGING)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_models_and_settings_give_what_one_process_gives(variant):
    name, ranks, changes, training = VARIANTS[variant]
    c, config = replace(TINY, **changes), settings(**training)
    model, steps = random_model(c), batches(c)
    assert_same(run_pipeline(SCHEDULES[name](ranks, M), model, steps, config), in_one_process(model, steps, config))


def test_the_later_stages_have_one_layer_more():
    assert layers_of(TINY, 3) == [range(2), range(2, 5), range(5, 8)]


def test_a_mask_counts_as_in_one_process():
    mask = torch.arange(M * 12).view(M, 12) % 5 > 0
    mask[0] = False  # a micro-batch without any token that counts
    model, steps, config = random_model(TINY), batches(TINY, mask=mask), settings()
    run = run_pipeline(SCHEDULES["DualPipeV"](2, M), model, steps, config)
    assert_same(run, in_one_process(model, steps, config))


def test_products_in_fp8_have_their_weight_gradients_later_too():
    model, steps, config = random_model(TINY), batches(TINY, count=1), settings(dtype="fp8")
    assert_same(run_pipeline(SCHEDULES["DualPipe"](2, M), model, steps, config), in_one_process(model, steps, config))


def test_products_in_bfloat16_have_their_weight_gradients_later_too():
    """autocast adds the gradients of the head's two uses in bfloat16, so torch's own are not exactly the same."""
    steps, config = batches(TINY, count=1), settings(dtype="bfloat16")
    run = run_pipeline(SCHEDULES["DualPipe"](2, M), random_model(TINY), steps, config)
    assert_same(run, in_one_process(random_model(TINY), steps, config, deferred=True))
    plain, exact = (in_one_process(random_model(TINY), steps, c)["gradients"] for c in (config, settings()))
    for name, gradient in exact.items():
        assert (run.gradients[name] - gradient).norm() < 1.1 * (plain[name] - gradient).norm(), name


def test_micro_batches_may_come_in_any_order():
    rows = [[a._replace(micro_batch=M - 1 - a.micro_batch) for a in row] for row in SCHEDULES["GPipe"](2, M)]
    model, steps, config = random_model(TINY), batches(TINY), settings()
    run = run_pipeline(Schedule(rows, "loop", 1, M), model, steps, config)
    assert_same(run, in_one_process(model, steps, config))


@pytest.mark.parametrize("name", ["1F1B", "DualPipe"])
def test_what_the_loss_does_not_use_is_not_updated(name):
    model, steps, config = random_model(TINY), batches(TINY), settings(weight_decay=0.5)
    run = run_pipeline(SCHEDULES[name](2, M), model, steps, config, loss=losses.next_token_only)
    expected = in_one_process(model, steps, config, losses.next_token_only)
    assert not any(key.startswith("mtp.") for key in expected["gradients"])
    assert_same(run, expected)


def test_batches_may_differ_in_shape_and_no_graph_stays_in_memory():
    model, config = random_model(TINY), settings()
    steps = [{"tokens": random_tokens(TINY, rows, length)} for rows, length in ((M, 12), (2 * M, 9))]
    for ranks in (1, 2):
        run = run_pipeline(SCHEDULES["1F1B"](ranks, M), model, steps, config, loss=losses.one_at_a_time)
        assert_same(run, in_one_process(deepcopy(model), steps, config))


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
        run_pipeline(SCHEDULES["1F1B"](2, M), random_model(TINY), batches(TINY), settings(), loss=losses.fail_in_step)
    assert str(error.value) == "rank 1: ArithmeticError: no loss today"
    assert "KeyError: 'its reason'" in error.value.__notes__[0]


@pytest.mark.parametrize("loss", [losses.too_steep, losses.endless])
def test_what_is_not_finite_is_told_with_the_numbers_of_the_whole_model(loss):
    model, steps, config = random_model(TINY), batches(TINY, count=1), settings()
    with pytest.raises(RankFailed) as error:
        run_pipeline(SCHEDULES["DualPipe"](2, M), model, steps, config, loss=loss)
    said = re.search(r": TrainingDiverged: step 0: the loss is (.*) and the gradient norm (.*)$", str(error.value))
    expected = in_one_process(model, steps, config)
    total, norm = sum(expected["totals"][0]), expected["norms"][0]
    wanted = (total, math.nan) if loss is losses.too_steep else (math.inf, norm)
    assert tuple(map(float, said.groups())) == pytest.approx(wanted, nan_ok=True)


def rows(*counts: int) -> list[dict]:
    return [{"tokens": random_tokens(TINY, count, 12)} for count in counts]


REFUSED = [
    ("stages", (9, 9), rows(9), False),
    ("rows of a batch", (2, 3), rows(3, 4), False),
    ("rows of a batch", (2, 3), rows(0), False),
    ("rows of mask", (2, 3), [rows(3)[0] | {"mask": torch.ones(6, 13)}], False),
    ("shape of tokens", (2, 3), [{"tokens": torch.ones(13)}], False),
    ("shape of tokens", (2, 3), [{"tokens": torch.ones(3, 1)}], False),
    ("batch", (2, 3), [{"mask": torch.ones(3, 13)}], False),
    ("batch", (2, 3), rows(3)[0], False),
    ("number of batches", (2, 3), [], False),
    ("number of batches", (2, 3), rows(3, 3, 3, 3, 3), False),  # of 4 steps: the learning rate would be negative
    ("frozen parameters", (2, 3), rows(3), True),
]


@pytest.mark.parametrize(("value", "size", "steps", "frozen"), REFUSED)
def test_what_does_not_fit_is_refused(value, size, steps, frozen):
    model = random_model(TINY)
    model.norm.weight.requires_grad_(not frozen)
    with pytest.raises(ValueError, match=f"^{value}=.* is not possible: it must be "):
        run_pipeline(SCHEDULES["1F1B"](*size), model, steps, settings())


def test_a_loss_that_needs_the_whole_model_for_other_tokens_is_refused():
    """Its last stage has the activations of one micro-batch only, and would take them for those of any tokens."""
    pairs = [rows(2)[0] | {"rejected": random_tokens(TINY, 2, 12, seed=1)}]
    with pytest.raises(RankFailed, match=r"rank 1: ValueError: the loss of a pipeline can use the tokens of its micro"):
        run_pipeline(SCHEDULES["1F1B"](2, 2), random_model(TINY), pairs, settings(), loss=losses.prefer)


def test_both_directions_may_end_on_the_same_rank():
    word = "F0 F1 " * (M // 2) + "B0 B1 " * (M // 2)
    model, steps, config = random_model(TINY), batches(TINY, count=1), settings()
    run = run_pipeline(Schedule([spell(word)], "both ways", 2, M), model, steps, config)
    assert_same(run, in_one_process(model, steps, config))


def test_a_schedule_that_would_wait_forever_is_refused_before_it_starts():
    schedule = Schedule(map(spell, ("F0 B0 F0 B0", "F0 F0 B0 B0")), "loop", 1, 2)
    with pytest.raises(IllegalSchedule, match=r"^a deadlock: rank 0 waits before "):
        run_pipeline(schedule, random_model(TINY), [{"tokens": random_tokens(TINY, 2, 12)}], settings(batch_size=2))
