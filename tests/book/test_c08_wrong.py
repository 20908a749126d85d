"""One step of a pipeline against one process, which notices every mistake of chapter 8b; and PyTorch's wrappers."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from configurations import random_model, random_tokens
from torch import nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

from minids.book.mistakes import WRONG_VARIANTS
from minids.book.probes.pipelines import WIDTH, averaged, follow, without_replicas
from minids.model.config import ModelConfig
from minids.parallel.launch import RankFailed, launch
from minids.parallel.schedules import SCHEDULES, Schedule, spell
from minids.training.config import TrainConfig
from minids.training.optimizer import make_optimizer
from minids.training.pipeline import run_pipeline
from minids.training.step import update_weights

TIED = replace(ModelConfig.preset("tiny"), num_hidden_layers=4, tie_word_embeddings=True)
LENGTHS = torch.tensor([3, 6, 10, 12])  # of the tokens that count in each row, so in each micro-batch


@pytest.mark.kills("copies keep their own gradients", schedule="1F1B")
@pytest.mark.kills("copies are summed twice", schedule="DualPipe")
@pytest.mark.kills("copies count twice in the norm", schedule="1F1B")
@pytest.mark.kills("each rank clips by its own norm", schedule="1F1B")
@pytest.mark.kills("each copy balances its own load", schedule="DualPipe")
@pytest.mark.kills("the last micro-batch overwrites the gradient", schedule="1F1B")
@pytest.mark.kills("both directions take the first half", schedule="DualPipe")
@pytest.mark.kills("each micro-batch has its own mean", schedule="1F1B")
@pytest.mark.parametrize("schedule", ["1F1B", "DualPipe"])
def test_a_step_of_micro_batches_is_that_of_the_whole_batch_in_one_process(schedule):
    model, config = random_model(TIED).train(), TrainConfig(steps=4, batch_size=4, sequence_length=12)
    batch = {"tokens": random_tokens(TIED, 4, 12), "mask": torch.arange(12) < LENGTHS[:, None]}
    run = run_pipeline(SCHEDULES[schedule](2, 4), model, [batch], config)
    one = deepcopy(model)
    terms = one.loss(batch["tokens"], batch["mask"], balance_weight=config.balance_weight)
    terms.total.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in one.named_parameters()}
    norm = update_weights(one, make_optimizer(one, config), [terms], config.clip_norm)
    one.update_expert_bias(config.bias_speed)
    assert run.losses == pytest.approx([terms.total.item()], rel=1e-6)
    assert run.norms == pytest.approx([norm], rel=1e-5)
    for found, wanted, share in ((run.gradients, gradients, 1e-5), (run.weights, one.state_dict(), 1e-4)):
        for name, tensor in wanted.items():  # AdamW moves a single weight by a last bit of a gradient that is nearly 0
            assert (found[name] - tensor).norm() <= share * tensor.norm(), name


def test_processes_compute_with_all_mistakes_that_are_planted_where_they_are_started():
    batch = [{"tokens": random_tokens(TIED, 4, 12)}]
    doubled, counted = (WRONG_VARIANTS[f"copies {what}"] for what in ("are summed twice", "count twice in the norm"))

    def norm() -> float:
        run = run_pipeline(SCHEDULES["DualPipe"](2, 4), random_model(TIED), batch, TrainConfig(batch_size=4))
        return run.norms[0]

    right = norm()
    with doubled.planted(), counted.planted():
        assert norm() == pytest.approx(2 * 2**0.5 * right, rel=1e-5)
    assert norm() == right


@pytest.mark.parametrize("name", SCHEDULES)
def test_processes_that_follow_a_legal_schedule_come_to_an_end(name):
    assert launch(follow, 4, SCHEDULES[name](4, 8), timeout=60) == [None] * 4


def test_processes_that_follow_an_order_with_a_deadlock_do_not():
    schedule = Schedule(map(spell, ("F0 B0 F0 B0", "F0 F0 B0 B0")), "loop", 1, 2)
    with pytest.raises(RankFailed, match=r"^ranks 0, 1 had not come to an end after 1 s.$"):
        launch(follow, 2, schedule, timeout=1)


MEAN = "the mean"
WRAPPED = [  # where one is wrong and this test fails, torch may have mended it: see chapter 8b
    (("Interleaved1F1B", "DDP"), [MEAN, MEAN]),
    (("ZBVZeroBubble", "DDP"), [MEAN, "its own rows only"]),
    (("Interleaved1F1B", "DDP", True), 2 * ["the mean, but its own last micro-batch"]),
    (("ZBVZeroBubble", "FSDP2"), [MEAN, "no gradient"]),
    (("ZBVZeroBubble", "FSDP2, not resharded"), [MEAN, MEAN]),
]


@pytest.mark.parametrize(("arguments", "expected"), WRAPPED)
def test_wrappers_around_a_split_backward_do_what_chapter_8b_says(arguments, expected):
    assert averaged(*arguments) == expected


def test_the_mean_over_the_replicas_is_that_of_their_gradients():
    x, y = torch.randn(2, 8, WIDTH)
    _, both = without_replicas(x, y)
    halves = [without_replicas(*half)[1] for half in zip(x.chunk(2), y.chunk(2), strict=True)]
    for stage, whole in enumerate(both):
        torch.testing.assert_close(whole, (halves[0][stage] + halves[1][stage]) / 2)


def test_torch_s_split_backward_counts_each_use_of_a_weight_once():
    """pytorch#180952: with one use after the other, the first one counted twice."""
    x, w = torch.randn(2, 3, requires_grad=True), nn.Parameter(torch.randn(3, 3))
    (expected,) = torch.autograd.grad((x @ w @ w).sum(), w)
    _, groups = stage_backward_input([(x @ w @ w).sum()], None, [x], iter([w]))
    stage_backward_weight(iter([w]), groups)
    torch.testing.assert_close(w.grad, expected)
