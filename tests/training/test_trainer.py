"""One step against its parts done by hand, and what the log says of it."""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers_training import (
    assert_bitwise_equal,
    last_token_loss,
    moments,
    small_model,
    small_trainer,
    state,
    without_seconds,
)
from torch import Tensor, nn

from minids.training.config import TrainConfig
from minids.training.optimizer import make_optimizer
from minids.training.step import TrainingDiverged, accumulate_gradients, update_weights
from minids.training.trainer import Trainer


def observed_step(trainer: Trainer) -> tuple[dict[str, Tensor], dict]:
    """Take a step; return the gradients as the optimizer sees them, and the record."""
    seen = {}

    def look(*_):
        seen.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

    handle = trainer.optimizer.register_step_pre_hook(look)
    record = trainer.train_step()
    handle.remove()
    return seen, record


# ---------------------------------------------------------------------------------------------------
# Divergence


@dataclass
class Total:
    total: Tensor


@pytest.mark.parametrize("harm", [None, "a later micro-batch", "the gradient only"])
def test_a_step_changes_the_weights_only_if_loss_and_gradient_are_numbers(harm):
    layer = nn.Linear(2, 1)
    batch = {"tokens": torch.tensor([[1.0, 2.0], [3.0, -1.0], [math.nan if harm == "a later micro-batch" else 0.0, 1]])}
    before, sizes = copy.deepcopy(layer.state_dict()), []

    def terms_of(rows):
        sizes.append(len(rows["tokens"]))
        edge = (0 * layer.weight).sqrt().sum() if harm == "the gradient only" else 0.0
        return Total(layer(rows["tokens"]).sum() + edge)

    def step():
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        parts = accumulate_gradients(terms_of, batch, "float32", micro_batch_size=2)
        return parts, update_weights(layer, optimizer, parts, clip_norm=1e9)

    if harm:
        with pytest.raises(TrainingDiverged, match="nan"):
            step()
        assert_bitwise_equal(layer.state_dict(), before)
    else:
        parts, norm = step()
        assert (len(parts), norm) == (2, pytest.approx(math.sqrt(4**2 + 2**2 + 3**2)))  # of the sum over three rows
        torch.testing.assert_close(layer.weight.detach(), before["weight"] - torch.tensor([[4.0, 2.0]]))
    assert sizes == [2, 1]
    assert all(parameter.grad is None for parameter in layer.parameters())


# ---------------------------------------------------------------------------------------------------
# One step


class Masked:
    """Of the batches' tokens, some count. In the first step nothing counts in the last row and in that of `code`."""

    def __init__(self, batches):
        self.batches, self.domain = batches, batches.domain

    def batch(self, step: int, batch_size: int) -> dict:
        batch = self.batches.batch(step, batch_size)
        batch["mask"] = np.random.default_rng(step).random(batch["tokens"].shape) < 0.4
        if step == 0:
            batch["mask"][[1, 3]] = False
        return batch


@pytest.fixture(params=[False, True], ids=["all tokens count", "masked"])
def trainer(request):
    """A function that makes a trainer, with a mask or without."""

    def make(**options) -> Trainer:
        made = small_trainer(**options)
        if request.param:
            made.batches = Masked(made.batches)
        return made

    return make


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_a_run_in_micro_batches_of_any_size_is_the_run_in_whole_batches(trainer, micro_batch_size):
    options = dict(clip_norm=1e9, balance_weight=0.3, bias_speed=0.01)
    whole, parts = trainer(**options), trainer(**options, micro_batch_size=micro_batch_size)
    for _ in range(3):
        (expected, theirs), (found, ours) = observed_step(whole), observed_step(parts)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5, msg=name)
        torch.testing.assert_close(*without_seconds([ours, theirs]), rtol=1e-4, atol=1e-6)
        for our, their in zip(parts.model.gates, whole.model.gates, strict=True):
            assert torch.equal(our.expert_bias, their.expert_bias)


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_the_log_has_the_nats_per_token_and_each_domain_s_bits_per_byte_of_what_counts(trainer, micro_batch_size):
    trainer = trainer(micro_batch_size=micro_batch_size)
    model, batch = copy.deepcopy(trainer.model), trainer.batches.batch(0, 4)
    tokens, mask = torch.from_numpy(batch["tokens"]), batch.get("mask", np.ones((4, 17), dtype=bool))
    with torch.no_grad():
        chances = model(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    nats, bits, lengths = [], {}, {}
    for row, i in zip(*np.nonzero(mask[:, 1:]), strict=True):
        nats.append(-chances[row, i].item())
        domain, size = trainer.batches.domain(row), trainer.bytes_per_token[tokens[row, i + 1]].item()
        bits[domain], lengths[domain] = bits.get(domain, 0) + nats[-1] / math.log(2), lengths.get(domain, 0) + size
    record = trainer.train_step()
    assert set(bits) == ({"prose"} if "mask" in batch else {"prose", "code"})
    assert record["bits_per_byte"] == {d: pytest.approx(bits[d] / lengths[d], rel=1e-5) for d in bits}
    assert record["next_token"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)


@pytest.mark.kills("the bias moves per micro-batch", micro_batch_size=1)
@pytest.mark.parametrize("micro_batch_size", [1, None])
def test_each_bias_moves_once_per_step_against_its_load(micro_batch_size):
    trainer = small_trainer(bias_speed=0.25, micro_batch_size=micro_batch_size)
    record = trainer.train_step()
    assert [sum(load) for load in record["load"]] == [4 * 16 * 2, 4 * 15 * 2], "2 experts a token; MTP has T - 1"
    for gate, load, violation in zip(trainer.model.gates, record["load"], record["max_violation"], strict=True):
        mean = sum(load) / len(load)
        assert gate.expert_bias.tolist() == [0.25 * ((mean > count) - (mean < count)) for count in load]
        assert violation == pytest.approx(max(load) / mean - 1)
        assert not gate.load.any()


def test_every_step_minimises_and_logs_next_token_plus_weighted_mtp_plus_weighted_balance():
    weights = dict(mtp_weight=0.9, final_mtp_weight=0.2, balance_weight=0.4, clip_norm=1e9)
    trainer = small_trainer(**weights, warmup_fraction=0, decay_fraction=0.5)
    for step in range(6):
        model = copy.deepcopy(trainer.model).train()
        terms = model.loss(torch.from_numpy(trainer.batches.batch(step, 4)["tokens"]), mtp_weight=0, balance_weight=0)
        total = terms.next_token + (0.9 if step < 3 else 0.2) * terms.mtp + 0.4 * terms.balance
        total.backward()
        found, record = observed_step(trainer)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        expected = {"loss": total, "next_token": terms.next_token, "mtp": terms.mtp, "balance": terms.balance}
        assert {name: record[name] for name in expected} == {n: pytest.approx(t.item()) for n, t in expected.items()}


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_loss_of_ones_own_is_minimised_and_logged_by_the_names_of_its_scalars(micro_batch_size):
    seen = []

    def loss(model, rows, whole, config, step):
        seen.append((len(rows["tokens"]), len(whole["tokens"]), config, step))
        return last_token_loss(model, rows, whole, config, step)

    trainer = small_trainer(
        steps=6, warmup_fraction=0, learning_rate=1e-2, micro_batch_size=micro_batch_size, loss=loss
    )
    tokens = torch.from_numpy(trainer.batches.batch(0, 4)["tokens"])
    trainer.batches.batch = lambda step, batch_size: {"tokens": tokens}
    with torch.no_grad():
        terms = last_token_loss(trainer.model, {"tokens": tokens}, {"tokens": tokens}, trainer.config, 0)
    first, *_, last = trainer.run()
    sizes = [4] if micro_batch_size is None else [3, 1]
    assert seen == [(size, 4, trainer.config, step) for step in range(6) for size in sizes]
    assert not {"bits_per_byte", "nats_of_row_B"} & set(first)
    assert first["loss"] == pytest.approx(terms.total.item())
    assert first["confidence"] == pytest.approx(terms.confidence.item())
    assert last["loss"] < 0.8 * first["loss"]


def test_gradients_above_the_limit_are_clipped_together_and_the_log_has_their_norm_before():
    free, record = observed_step(small_trainer(clip_norm=1e9))
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in free.values()))
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    clipped, record = observed_step(small_trainer(clip_norm=norm / 10))
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 10, rtol=1e-4, atol=1e-7, msg=name)
    assert_bitwise_equal(observed_step(small_trainer(clip_norm=1.1 * norm))[0], free)


def test_each_step_has_its_learning_rate_and_in_the_last_ones_the_biases_stand_still():
    trainer = small_trainer(warmup_fraction=0.5, decay_fraction=0.3, frozen_bias_fraction=0.5)
    used, biases = [], [torch.zeros(16)]
    trainer.optimizer.register_step_pre_hook(lambda adamw, *_: used.append([g["lr"] for g in adamw.param_groups]))
    records = trainer.run(lambda _: biases.append(torch.cat([gate.expert_bias for gate in trainer.model.gates])))
    rates = [trainer.config.learning_rate_at(step) for step in range(6)]
    assert [record["learning_rate"] for record in records] == rates
    assert used == [[rate, rate] for rate in rates]
    assert len(set(rates)) > 3
    assert [not torch.equal(a, b) for a, b in pairwise(biases)] == [True] * 3 + [False] * 3


def test_only_matrices_decay():
    """With gradients of zero AdamW does nothing but decay."""
    model, config = small_model(), TrainConfig(weight_decay=0.5, learning_rate=0.1)
    optimizer = make_optimizer(model, config)
    before = state(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0, msg=name)
    assert {p.ndim for p in model.parameters()} == {1, 2, 3}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


def test_weights_biases_and_moments_stay_in_float32_under_bfloat16():
    trainer = small_trainer(dtype="bfloat16")
    loss, exact = (each.train_step()["loss"] for each in (trainer, small_trainer()))
    tensors = {**state(trainer.model), **moments(trainer)}
    assert {tensor.dtype for name, tensor in tensors.items() if not name.endswith(".load")} == {torch.float32}
    assert loss == pytest.approx(exact, rel=0.02)
    assert loss != exact


def test_a_dense_model_without_mtp_trains_too():
    records = small_trainer(model_changes={"n_routed_experts": None, "num_nextn_predict_layers": 0}, steps=2).run()
    assert [(r["load"], r["max_violation"], r["mtp"], r["balance"]) for r in records] == [([], [], 0.0, 0.0)] * 2
