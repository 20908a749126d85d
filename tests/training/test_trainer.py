"""The training loop: straight runs against stopped and resumed ones, one step against its parts done by hand."""

import copy
import json
import math
import os
import signal
import threading
from dataclasses import fields, replace

import pytest
import torch
from configurations import examples
from helpers_training import assert_bitwise_equal, moments, small_config, small_model, small_trainer, state
from hypothesis import given
from hypothesis import strategies as st

from minids.model.deepseek import DeepSeek
from minids.training.checkpoint import load_checkpoint
from minids.training.trainer import (
    TrainConfig,
    Trainer,
    TrainingDiverged,
    TrainingInterrupted,
    best_dtype,
    make_optimizer,
    read_log,
)


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """A process that a script started in the background ignores Ctrl-C; these tests are about one that does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def log_without_seconds(trainer: Trainer) -> list[dict]:
    return [{key: value for key, value in r.items() if key != "seconds"} for r in read_log(trainer.log_path)]


def gradients_of_next_step(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The gradients as the optimizer will see them."""
    seen = {}

    def look(*_):
        seen.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

    handle = trainer.optimizer.register_step_pre_hook(look)
    trainer.train_step()
    handle.remove()
    return seen


class Crash(Exception):
    pass


# ---------------------------------------------------------------------------------------------------
# Stopping and going on


@pytest.mark.parametrize(
    ("crash_at", "options"),
    [
        (3, {}),  # right after a checkpoint
        (5, {}),  # two steps after it: they are taken again
        (4, {"micro_batch_size": 2}),
        (4, {"dtype": "bfloat16"}),
    ],
)
def test_a_crashed_and_resumed_run_is_bitwise_the_straight_one(tmp_path, crash_at, options):
    (tmp_path / "straight").mkdir()
    (tmp_path / "crashed").mkdir()
    straight = small_trainer(tmp_path / "straight", save_every=3, **options)
    straight.run()

    def crash(record):
        if record["step"] == crash_at:
            raise Crash

    crashed = small_trainer(tmp_path / "crashed", save_every=3, **options)
    with pytest.raises(Crash):
        crashed.run(crash)
    resumed = small_trainer(tmp_path / "crashed", save_every=3, **options)
    torch.manual_seed(1234)
    resumed.resume()
    assert resumed.step == 3
    resumed.run()
    assert_bitwise_equal(state(resumed.model), state(straight.model))
    assert_bitwise_equal(moments(resumed), moments(straight))
    assert log_without_seconds(resumed) == log_without_seconds(straight)
    assert [record["step"] for record in read_log(resumed.log_path)] == list(range(6))
    ours, theirs = load_checkpoint(resumed.checkpoint_path), load_checkpoint(straight.checkpoint_path)
    assert (ours.step, ours.settings) == (theirs.step, theirs.settings)
    assert_bitwise_equal(ours.tensors, theirs.tensors)


def test_the_clock_goes_on_where_it_stopped(tmp_path):
    first = small_trainer(tmp_path)
    with pytest.raises(TrainingInterrupted):
        first.run(lambda record: os.kill(os.getpid(), signal.SIGINT))
    second = small_trainer(tmp_path)
    second.resume()
    second.run()
    seconds = [record["seconds"] for record in read_log(second.log_path)]
    assert len(seconds) == 6
    assert seconds == sorted(seconds)
    assert second.seconds == seconds[-1]


def test_checkpoints_are_written_every_so_often_and_at_the_end(tmp_path, monkeypatch):
    trainer, saved = small_trainer(tmp_path, steps=5, save_every=2), []
    monkeypatch.setattr(trainer, "save", lambda: saved.append(trainer.step))
    trainer.run()
    assert saved == [2, 4, 5]


def test_resuming_a_finished_run_takes_no_step(tmp_path):
    small_trainer(tmp_path, steps=2).run()
    again, calls = small_trainer(tmp_path, steps=2), []
    again.resume()
    before = state(again.model)
    again.run(calls.append)
    assert (again.step, calls) == (2, [])
    assert_bitwise_equal(state(again.model), before)
    assert len(read_log(again.log_path)) == 2


def test_a_torn_last_log_line_is_survived(tmp_path):
    small_trainer(tmp_path, steps=3).run()
    trainer = small_trainer(tmp_path, steps=3)
    whole = trainer.log_path.read_text()
    records = read_log(trainer.log_path)
    with trainer.log_path.open("a") as log:
        log.write('{"step": 3, "loss": 5.')
    assert read_log(trainer.log_path) == records
    trainer.resume()
    assert trainer.log_path.read_text() == whole


def test_a_log_that_is_not_there_yet_is_empty(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_new_run_does_not_go_on_in_the_log_of_one_that_died_before_its_first_checkpoint(tmp_path):
    def crash(record):
        raise Crash

    with pytest.raises(Crash):
        small_trainer(tmp_path).run(crash)
    small_trainer(tmp_path, steps=3).run()
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [0, 1, 2]


OTHER_SETTINGS = dict(
    steps=7, batch_size=8, micro_batch_size=2, sequence_length=8, learning_rate=1e-3, final_learning_rate_fraction=0.01,
    warmup_fraction=0.1, decay_fraction=0.3, weight_decay=0.2, betas=(0.9, 0.99), clip_norm=2.0, mtp_weight=0.2,
    final_mtp_weight=0.2, balance_weight=1e-3, bias_speed=1e-2, frozen_bias_fraction=0.1, save_every=7, seed=1,
    dtype="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_resuming_with_another_setting_is_refused_and_the_setting_named(tmp_path, name):
    saved = small_trainer(tmp_path)
    saved.save()
    saved.log_path.write_text('{"step": 9, "seconds": 1.0}\n')
    other = small_trainer(tmp_path, **{name: OTHER_SETTINGS[name]})
    before = state(other.model)
    with pytest.raises(ValueError, match=rf"was made with train\.{name}=") as error:
        other.resume()
    assert "\n" not in str(error.value)
    assert_bitwise_equal(state(other.model), before)
    assert saved.log_path.read_text() == '{"step": 9, "seconds": 1.0}\n'


@pytest.mark.parametrize(
    ("theirs", "ours", "named"),
    [
        ({"corpus_sha256": "a"}, {"corpus_sha256": "b"}, "corpus_sha256='a', not 'b'"),
        ({"model": {"rope_theta": 1.0}}, {"model": {"rope_theta": 2.0}}, "model.rope_theta=1.0, not 2.0"),
        ({}, {"model": {"rope_theta": 2.0}}, "model.rope_theta"),
        ({"model": {"rope_theta": 1.0}}, {}, "model.rope_theta"),
        ({"model": {"rope_scaling": {"factor": 4}}}, {"model": {"rope_scaling": None}}, "model.rope_scaling"),
        ({"model": {"rope_scaling": None}}, {"model": {"rope_scaling": {"factor": 4}}}, "model.rope_scaling"),
    ],
)
def test_resuming_another_model_or_corpus_is_refused_and_the_difference_named(tmp_path, theirs, ours, named):
    small_trainer(tmp_path, settings=theirs).save()
    with pytest.raises(ValueError, match="was made with") as error:
        small_trainer(tmp_path, settings=ours).resume()
    assert named in str(error.value)


def test_resuming_with_other_threads_goes_on_and_says_that_bits_may_differ(tmp_path):
    """The last bits of a sum depend on how many threads share it."""
    small_trainer(tmp_path).save()
    assert small_trainer(tmp_path).resume() == []
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        trainer = small_trainer(tmp_path)
        assert trainer.resume() == [f"threads was {threads} and is {threads + 1}"]
    finally:
        torch.set_num_threads(threads)


def test_resuming_where_nothing_is_says_so(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        small_trainer(tmp_path).resume()


# ---------------------------------------------------------------------------------------------------
# Signals


def raise_crash(number, frame):
    raise Crash


@pytest.fixture
def handlers():
    """Handlers that do not end the test run if a signal gets past the trainer."""
    before = {number: signal.signal(number, raise_crash) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_in_the_middle_of_a_step_lets_it_finish_and_saves(tmp_path, handlers, number):
    trainer = small_trainer(tmp_path)

    def strike(*_):
        if trainer.step == 2:
            os.kill(os.getpid(), number)

    trainer.optimizer.register_step_pre_hook(strike)
    with pytest.raises(TrainingInterrupted, match="stopped after step 3 of 6"):
        trainer.run()
    assert load_checkpoint(trainer.checkpoint_path).step == 3
    assert [record["step"] for record in read_log(trainer.log_path)] == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is raise_crash


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    trainer, reached = small_trainer(tmp_path), []

    def press_twice(record):
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        trainer.run(press_twice)
    assert reached == ["after the first"]
    assert not trainer.checkpoint_path.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_step_is_a_finished_run(tmp_path):
    trainer = small_trainer(tmp_path, steps=1)
    trainer.run(lambda record: os.kill(os.getpid(), signal.SIGINT))
    assert load_checkpoint(trainer.checkpoint_path).step == 1


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path):
    (tmp_path / "straight").mkdir()
    (tmp_path / "stopped").mkdir()
    straight, stopped, resumed = (small_trainer(tmp_path / name) for name in ("straight", "stopped", "stopped"))
    straight.run()
    with pytest.raises(TrainingInterrupted):
        stopped.run(lambda record: record["step"] == 1 and os.kill(os.getpid(), signal.SIGINT))
    resumed.resume()
    assert resumed.step == 2
    resumed.run()
    assert_bitwise_equal(state(resumed.model), state(straight.model))


def test_training_works_outside_the_main_thread(tmp_path):
    trainer = small_trainer(tmp_path, steps=1)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert load_checkpoint(trainer.checkpoint_path).step == 1


# ---------------------------------------------------------------------------------------------------
# Divergence


def poison_weight(model: DeepSeek) -> None:
    with torch.no_grad():
        model.norm.weight[0] = math.nan


def poison_gradient(model: DeepSeek) -> None:
    model.norm.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize("poison", [poison_weight, poison_gradient])
def test_a_loss_or_gradient_that_is_no_number_stops_before_it_does_harm(tmp_path, poison):
    trainer, kept = small_trainer(tmp_path, save_every=2), {}

    def strike(record):
        if record["step"] == 2:
            poison(trainer.model)
            kept["checkpoint"] = trainer.checkpoint_path.read_bytes()
            kept["state"], kept["moments"] = state(trainer.model), moments(trainer)

    with pytest.raises(TrainingDiverged, match=r"step 3: .*learning rate below 0\.003"):
        trainer.run(strike)
    assert trainer.checkpoint_path.read_bytes() == kept["checkpoint"]
    assert_bitwise_equal(moments(trainer), kept["moments"])
    loads = [name for name in kept["state"] if name.endswith(".load")]
    for name, tensor in state(trainer.model).items():
        assert name in loads or torch.equal(tensor.nan_to_num(7), kept["state"][name].nan_to_num(7))
    assert [record["step"] for record in read_log(trainer.log_path)] == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_after_diverging_a_run_resumes_from_its_checkpoint(tmp_path):
    (tmp_path / "straight").mkdir()
    (tmp_path / "diverged").mkdir()
    straight = small_trainer(tmp_path / "straight", save_every=2)
    straight.run()
    trainer = small_trainer(tmp_path / "diverged", save_every=2)
    with pytest.raises(TrainingDiverged):
        trainer.run(lambda record: record["step"] == 2 and poison_weight(trainer.model))
    trainer.resume()
    trainer.run()
    assert log_without_seconds(trainer) == log_without_seconds(straight)
    assert_bitwise_equal(state(trainer.model), state(straight.model))


# ---------------------------------------------------------------------------------------------------
# One step


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_micro_batches_are_the_same_step(tmp_path, micro_batch_size):
    weights = dict(clip_norm=1e9, balance_weight=0.3, bias_speed=0.01)
    whole = small_trainer(tmp_path, **weights)
    parts = small_trainer(tmp_path, **weights, micro_batch_size=micro_batch_size)
    expected, found = gradients_of_next_step(whole), gradients_of_next_step(parts)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for ours, theirs in zip(parts.model.gates, whole.model.gates, strict=True):
        assert torch.equal(ours.expert_bias, theirs.expert_bias)


@pytest.mark.parametrize("micro_batch_size", [1, None])
def test_each_bias_moves_once_per_step_against_its_load(tmp_path, micro_batch_size):
    trainer = small_trainer(tmp_path, bias_speed=0.25, micro_batch_size=micro_batch_size)
    record = trainer.train_step()
    assert len(record["load"]) == len(trainer.model.gates) == 2
    for gate, load in zip(trainer.model.gates, record["load"], strict=True):
        mean = sum(load) / len(load)
        assert gate.expert_bias.tolist() == [0.25 * ((mean > count) - (mean < count)) for count in load]


def test_the_log_counts_every_routed_token_once(tmp_path):
    trainer = small_trainer(tmp_path)
    for _ in range(2):
        record = trainer.train_step()
        assert [sum(load) for load in record["load"]] == [4 * 16 * 2, 4 * 15 * 2], "2 experts a token; MTP has T - 1"
        expected = [max(load) / (sum(load) / 8) - 1 for load in record["load"]]
        assert record["max_violation"] == pytest.approx(expected)
        assert not any(gate.load.any() for gate in trainer.model.gates)


def test_a_step_minimises_next_token_plus_weighted_mtp_plus_weighted_balance(tmp_path):
    trainer = small_trainer(tmp_path, mtp_weight=0.7, balance_weight=0.4, clip_norm=1e9)
    model = copy.deepcopy(trainer.model).train()
    terms = model.loss(torch.from_numpy(trainer.batches.batch(0, 4)), mtp_weight=0, balance_weight=0)
    (terms.next_token + 0.7 * terms.mtp + 0.4 * terms.balance).backward()
    found = gradients_of_next_step(trainer)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_logged_loss_is_the_sum_of_its_logged_parts_with_the_step_s_lambda(tmp_path):
    trainer = small_trainer(
        tmp_path, mtp_weight=0.9, final_mtp_weight=0.2, balance_weight=0.4, decay_fraction=0.5, warmup_fraction=0
    )
    for step in range(6):
        record = trainer.train_step()
        weight = 0.9 if step < 3 else 0.2
        parts = record["next_token"] + weight * record["mtp"] + 0.4 * record["balance"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_logged_bits_per_byte_are_those_of_each_domain_s_rows(tmp_path, micro_batch_size):
    trainer = small_trainer(tmp_path, micro_batch_size=micro_batch_size)
    model = copy.deepcopy(trainer.model)
    tokens = torch.from_numpy(trainer.batches.batch(0, 4))
    bits, lengths = {}, {}
    with torch.no_grad():
        chances = model(tokens[:, :-1]).log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
    for row in range(4):
        domain = trainer.batches.domain(row)
        bits[domain] = bits.get(domain, 0) - chances[row].sum().item() / math.log(2)
        lengths[domain] = lengths.get(domain, 0) + trainer.bytes_per_token[tokens[row, 1:]].sum().item()
    record = trainer.train_step()
    assert set(bits) == {"prose", "code"}
    assert record["bits_per_byte"] == {d: pytest.approx(bits[d] / lengths[d], rel=1e-5) for d in bits}


def test_gradients_are_clipped_together_and_the_log_has_their_norm_before(tmp_path):
    free = gradients_of_next_step(small_trainer(tmp_path, clip_norm=1e9))
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in free.values()))
    trainer = small_trainer(tmp_path, clip_norm=norm / 10)
    clipped = gradients_of_next_step(trainer)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 10, rtol=1e-4, atol=1e-7, msg=name)
    assert small_trainer(tmp_path, clip_norm=norm / 10).train_step()["gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_gradients_below_the_limit_are_left_alone(tmp_path):
    free, limited = (gradients_of_next_step(small_trainer(tmp_path, clip_norm=limit)) for limit in (1e9, 1e3))
    assert_bitwise_equal(limited, free)


def test_the_optimizer_uses_the_learning_rate_of_the_step(tmp_path):
    trainer, used = small_trainer(tmp_path, warmup_fraction=0.5, decay_fraction=0.3), []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append([g["lr"] for g in optimizer.param_groups])
    )
    logged = [trainer.train_step()["learning_rate"] for _ in range(6)]
    assert logged == [trainer.config.learning_rate_at(step) for step in range(6)]
    assert used == [[rate, rate] for rate in logged]
    assert len(set(logged)) > 3


def test_the_biases_stand_still_in_the_last_steps(tmp_path):
    trainer = small_trainer(tmp_path, frozen_bias_fraction=0.5)
    biases = []
    for _ in range(6):
        trainer.train_step()
        biases.append(torch.cat([gate.expert_bias for gate in trainer.model.gates]))
    moved = [not torch.equal(a, b) for a, b in zip([torch.zeros(16), *biases], biases, strict=False)]
    assert moved == [True] * 3 + [False] * 3


def test_only_matrices_decay():
    """With gradients of zero AdamW does nothing but decay."""
    model, config = small_model(), TrainConfig(weight_decay=0.5, learning_rate=0.1)
    torch.nn.init.ones_(model.norm.weight)
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


def test_weights_biases_and_moments_stay_in_float32_under_bfloat16(tmp_path):
    trainer = small_trainer(tmp_path, dtype="bfloat16")
    record = trainer.train_step()
    assert math.isfinite(record["loss"])
    tensors = {**state(trainer.model), **moments(trainer)}
    assert {tensor.dtype for name, tensor in tensors.items() if not name.endswith(".load")} == {torch.float32}
    exact = small_trainer(tmp_path).train_step()
    assert record["loss"] != exact["loss"]
    assert record["loss"] == pytest.approx(exact["loss"], rel=0.02)


def test_a_dense_model_without_mtp_trains_too(tmp_path):
    trainer = small_trainer(tmp_path, model_changes={"n_routed_experts": None, "num_nextn_predict_layers": 0}, steps=2)
    trainer.run()
    records = read_log(trainer.log_path)
    assert [(r["load"], r["max_violation"], r["mtp"], r["balance"]) for r in records] == [([], [], 0.0, 0.0)] * 2


def test_training_learns(tmp_path):
    trainer = small_trainer(tmp_path, steps=25, warmup_fraction=0, decay_fraction=0, learning_rate=1e-2)
    rows = trainer.batches.batch(0, 4)
    trainer.batches.batch = lambda step, batch_size: rows
    losses = [trainer.train_step()["next_token"] for _ in range(25)]
    assert losses[0] == pytest.approx(math.log(512), rel=0.02)
    assert losses[-1] < 0.5 * losses[0]


def test_the_log_is_json_a_line_and_grows_with_every_step(tmp_path):
    trainer, lengths = small_trainer(tmp_path, steps=3), []
    trainer.run(lambda record: lengths.append(len(trainer.log_path.read_text().splitlines())))
    assert lengths == [1, 2, 3]
    lines = trainer.log_path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == read_log(trainer.log_path)


# ---------------------------------------------------------------------------------------------------
# Settings


def schedule(**options) -> TrainConfig:
    return TrainConfig(learning_rate=1.0, final_learning_rate_fraction=0.1, **options)


def test_the_learning_rate_rises_stays_and_falls():
    config = schedule(steps=100, warmup_fraction=0.1, decay_fraction=0.4)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:60] == [1.0] * 50
    assert rates[60:] == pytest.approx([1 - 0.9 * (i + 1) / 40 for i in range(40)])


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        (dict(steps=1, warmup_fraction=0, decay_fraction=0), [1.0]),
        (dict(steps=1, warmup_fraction=1, decay_fraction=0), [1.0]),
        (dict(steps=1, warmup_fraction=0, decay_fraction=1), [0.1]),
        (dict(steps=4, warmup_fraction=1, decay_fraction=0), [0.25, 0.5, 0.75, 1.0]),
        (dict(steps=3, warmup_fraction=0, decay_fraction=1), [0.7, 0.4, 0.1]),
        (dict(steps=3, warmup_fraction=0, decay_fraction=0), [1.0, 1.0, 1.0]),
        (dict(steps=4, warmup_fraction=0.5, decay_fraction=0.5), [0.5, 1.0, 0.55, 0.1]),
    ],
)
def test_the_learning_rate_at_the_corners(options, rates):
    config = schedule(**options)
    assert [config.learning_rate_at(step) for step in range(config.steps)] == pytest.approx(rates)


@examples(100)
@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_is_positive_and_never_above_its_peak(steps, warmup, decay):
    config = schedule(steps=steps, warmup_fraction=min(warmup, 1 - decay), decay_fraction=decay)
    rates = [config.learning_rate_at(step) for step in range(steps)]
    assert all(0 < rate <= 1 + 1e-12 for rate in rates)
    assert config.decay_start == steps or rates[-1] == pytest.approx(0.1)
    falling = rates[config.decay_start :]
    assert falling == sorted(falling, reverse=True)


def test_lambda_switches_when_the_decay_begins():
    config = TrainConfig(steps=10, decay_fraction=0.4, mtp_weight=0.3, final_mtp_weight=0.1)
    assert [config.mtp_weight_at(step) for step in range(10)] == [0.3] * 6 + [0.1] * 4
    assert config.learning_rate_at(5) == config.learning_rate > config.learning_rate_at(6)


@pytest.mark.parametrize(("fraction", "frozen"), [(0, 0), (0.034, 3), (0.5, 50), (1, 100)])
def test_gamma_is_zero_at_the_end_only(fraction, frozen):
    config = TrainConfig(steps=100, frozen_bias_fraction=fraction, bias_speed=0.01)
    assert [config.bias_speed_at(step) for step in range(100)] == [0.01] * (100 - frozen) + [0.0] * frozen


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("steps", "batch_size", "sequence_length", "save_every") for value in (0, -1, 2.5)),
        *((name, value) for name in ("learning_rate", "clip_norm") for value in (0, -1, math.inf, math.nan)),
        *(
            (name, value)
            for name in ("weight_decay", "mtp_weight", "final_mtp_weight", "balance_weight")
            for value in (-1e-9, math.inf, math.nan)
        ),
        *(("bias_speed", value) for value in (-1, math.nan)),
        *(("seed", value) for value in (-1, 0.5)),
        *(
            (f"{part}_fraction", value)
            for part in ("warmup", "decay", "frozen_bias")
            for value in (-0.1, 1.1, math.nan)
        ),
        *(("micro_batch_size", value) for value in (0, -1, 3, 16)),
        *(("dtype", value) for value in ("float16", "", None)),
        *(("betas", value) for value in ((1.5, 0.9), (0.9, 1.0), (-0.1, 0.9))),
    ],
)
def test_a_setting_that_cannot_work_is_named_in_one_sentence(name, value):
    with pytest.raises(ValueError, match=name) as error:
        TrainConfig(**(dict(batch_size=8) | {name: value}))
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_warm_up_and_decay_must_fit_into_the_run():
    with pytest.raises(ValueError, match=r"decay_fraction=0\.6 .* warmup_fraction=0\.5"):
        TrainConfig(warmup_fraction=0.5, decay_fraction=0.6)


def test_settings_are_frozen_and_named():
    config = TrainConfig()
    with pytest.raises(AttributeError):
        config.steps = 3
    with pytest.raises(TypeError):
        TrainConfig(3)
    assert replace(config, steps=3).steps == 3


def test_settings_of_the_corners_are_accepted():
    TrainConfig(
        steps=1, batch_size=1, micro_batch_size=1, warmup_fraction=0, decay_fraction=1, frozen_bias_fraction=1,
        final_learning_rate_fraction=0, weight_decay=0, mtp_weight=0, final_mtp_weight=0, balance_weight=0,
        bias_speed=0,
    )  # fmt: skip


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_bfloat16_is_chosen_only_where_the_cpu_multiplies_in_it(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert best_dtype(torch.device("cpu")) == dtype
    assert best_dtype(torch.device("mps")) == "float32"


def test_small_runs_have_every_part():
    """What these tests train: a dense layer, a mixture of experts, and an MTP module with another."""
    config = small_config()
    assert [config.is_moe_layer(i) for i in range(3)] == [False, True, True]
    assert config.uses_mla
    assert config.uses_expert_bias
