"""A run that is stopped, in whatever way and wherever, goes on bit for bit; what is not its own is left alone."""

import errno
import math
import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_training import (
    assert_bitwise_equal,
    file_size_limit,
    last_token_loss,
    other_value,
    small_trainer,
    state,
    without_seconds,
)

from minids.training.checkpoint import load_checkpoint
from minids.training.config import TrainConfig
from minids.training.log import read_log
from minids.training.step import TrainingDiverged, language_model_loss
from minids.training.trainer import Trainer, TrainingInterrupted


class Crash(Exception):
    pass


def crash(trainer: Trainer) -> None:
    """Die, and tear the line that is being written."""
    with trainer.log.path.open("a") as log:
        log.write('{"step": 9, "loss": 5.')
    raise Crash


def ctrl_c(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def poison_weight(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.model.norm.weight[0] = math.nan


def poison_gradient(trainer: Trainer) -> None:
    trainer.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.fixture(autouse=True)
def handlers():
    """A signal that gets past the trainer ends no test run, and Ctrl-C works in a process of the background too."""
    mine = dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.default_int_handler)
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == mine, "the trainer restores the handlers"


# ---------------------------------------------------------------------------------------------------
# Stopping and going on

STOPS = [  # how, after which step, and how many steps are kept
    *((crash, step, 2 if step >= 2 else 0) for step in range(4)),
    (ctrl_c, 0, 1),
    (terminate, 2, 3),
    *((poison, 2, 2) for poison in (poison_weight, poison_gradient)),
    (poison_weight, 3, 2),  # in the last step: no other loss would show it
]
OPTIONS = ({"micro_batch_size": 3}, {"dtype": "bfloat16"}, {"optimizer": "muon"}, {"loss": last_token_loss})


@pytest.mark.parametrize(("options", "stops"), [({}, STOPS), *((options, [(crash, 2, 2)]) for options in OPTIONS)])
def test_a_run_stopped_in_any_way_at_any_step_goes_on_bitwise_as_if_nothing_had_happened(tmp_path, options, stops):
    options = dict(steps=4, save_every=2) | options
    straight = small_trainer(tmp_path / "straight", **options)
    straight.run()
    for i, (stop, step, kept) in enumerate(stops):
        stopped, resumed = (small_trainer(tmp_path / f"stopped {i}", **options) for _ in range(2))
        with pytest.raises((Crash, TrainingInterrupted, TrainingDiverged)):
            stopped.run(lambda record, do=stop, at=step, it=stopped: do(it) if record["step"] == at else None)
        torch.manual_seed(1234)
        if resumed.checkpoint_path.exists():
            assert resumed.resume() == []
        assert resumed.step == kept, (stop, step)
        resumed.run()
        assert_bitwise_equal(state(resumed.model), state(straight.model))
        ours, theirs = read_log(resumed.log.path), read_log(straight.log.path)
        assert without_seconds(ours) == without_seconds(theirs), (stop, step)
        seconds = [record["seconds"] for record in ours]
        assert seconds == sorted(seconds)
        assert (len(seconds), seconds[-1]) == (4, resumed.seconds)
        ours, theirs = load_checkpoint(resumed.checkpoint_path), load_checkpoint(straight.checkpoint_path)
        assert (ours.step, ours.settings) == (theirs.step, theirs.settings)
        assert_bitwise_equal(ours.tensors, theirs.tensors)


def test_the_log_grows_with_every_step_and_a_checkpoint_follows_every_so_often_and_at_the_end(tmp_path):
    trainer, seen = small_trainer(tmp_path, steps=5, save_every=2), []

    def look(record):
        saved = load_checkpoint(trainer.checkpoint_path).step if trainer.checkpoint_path.exists() else 0
        seen.append((len(trainer.log.path.read_text().splitlines()), saved))

    records = trainer.run(look)
    assert seen == [(1, 0), (2, 0), (3, 2), (4, 2), (5, 4)]
    assert load_checkpoint(trainer.checkpoint_path).step == 5
    assert read_log(trainer.log.path) == records
    with pytest.raises(ValueError, match="already holds a run"):
        small_trainer(tmp_path).run()


def test_without_a_folder_a_run_is_the_same_and_writes_nothing_and_goes_on_after_ctrl_c(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_memory = small_trainer()
    with pytest.raises(TrainingInterrupted, match="stopped after step 2 of 6"):
        in_memory.run(lambda record: ctrl_c(in_memory) if record["step"] == 1 else None)
    records = in_memory.run()
    assert not list(tmp_path.iterdir())
    on_disk = small_trainer(tmp_path / "run")
    assert without_seconds(on_disk.run()) == without_seconds(records)
    assert_bitwise_equal(state(on_disk.model), state(in_memory.model))


THETA, YARN = {"model": {"rope_theta": 2.0}}, {"model": {"rope_scaling": {"factor": 4}}}


@pytest.mark.parametrize(
    ("theirs", "ours", "changes", "named"),
    [
        *(
            ({}, {}, {f.name: other_value(f)}, f"train.{f.name}=")
            for f in fields(TrainConfig)
            if f.name not in ("save_every", "micro_batch_size")
        ),
        ({"corpus_sha256": "a"}, {"corpus_sha256": "b"}, {}, "another text"),
        ({}, THETA, {}, "model.rope_theta=None, not 2.0"),
        (THETA, {}, {}, "model.rope_theta=2.0, not None"),
        ({"model": {"rope_scaling": None}}, YARN, {}, "model.rope_scaling"),
    ],
)
def test_resuming_with_another_setting_is_refused_and_the_setting_named(tmp_path, theirs, ours, changes, named):
    saved = small_trainer(tmp_path, settings=theirs)
    saved.save()
    saved.log.path.write_text('{"step": 9, "seconds": 1.0}\n')
    other = small_trainer(tmp_path, settings=ours, **changes)
    before = state(other.model)
    with pytest.raises(ValueError, match=f"was made with {re.escape(named)}"):
        other.resume()
    assert_bitwise_equal(state(other.model), before)
    assert saved.log.path.read_text() == '{"step": 9, "seconds": 1.0}\n'


# ---------------------------------------------------------------------------------------------------
# What a run does not take for its own


def test_a_folder_serves_one_training_at_a_time_and_the_second_touches_nothing(tmp_path):
    first, second = small_trainer(tmp_path, steps=3, save_every=1), small_trainer(tmp_path, seed=1)
    straight = small_trainer(steps=3).run()

    def meanwhile(record):
        for attempt in (second.run, second.resume, first.resume):
            with pytest.raises(ValueError, match="is in use by another training"):
                attempt()

    assert without_seconds(first.run(meanwhile)) == without_seconds(straight)
    assert read_log(first.log.path) == first.records
    assert small_trainer(tmp_path, steps=3, save_every=1).resume() == [], "the lock ends with the run"


@pytest.mark.parametrize("text", [b"of somebody else\n", b"null\n", b'{"step": 7}\n', b"{}"])
def test_a_log_of_something_else_is_left_alone(tmp_path, text):
    trainer = small_trainer(tmp_path)
    trainer.log.path.write_bytes(text)
    with pytest.raises(ValueError, match="is not the log of a run"):
        trainer.run()
    assert trainer.log.path.read_bytes() == text


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("elsewhere"), os.mkfifo, os.mkdir])
def test_a_log_is_neither_written_through_a_link_nor_waited_for(tmp_path, make):
    trainer = small_trainer(tmp_path / "run")
    (tmp_path / "run").mkdir()
    make(trainer.log.path)
    with pytest.raises(ValueError, match=r"it is a link|is not a regular file|Is a directory"):
        trainer.run()
    assert not (tmp_path / "run" / "elsewhere").exists()


def test_a_first_line_that_a_crash_tore_is_no_obstacle(tmp_path):
    trainer = small_trainer(tmp_path, steps=1)
    trainer.log.path.write_bytes(b'{"st')
    assert len(trainer.run()) == len(read_log(trainer.log.path)) == 1


def lose_a_line(log: bytes) -> bytes:
    return log[log.index(b"\n") + 1 :]


def change_a_digit(log: bytes) -> bytes:
    return log.replace(b'"step": 1', b'"step": 2', 1)


def turn_into_nulls(log: bytes) -> bytes:
    return b"null\n" * log.count(b"\n")


@pytest.mark.parametrize("change", [lose_a_line, change_a_digit, turn_into_nulls, lambda log: b""])
def test_a_log_that_is_not_the_one_of_the_checkpoint_is_refused(tmp_path, change):
    trainer = small_trainer(tmp_path, steps=2)
    trainer.run()
    changed = change(trainer.log.path.read_bytes())
    trainer.log.path.write_bytes(changed)
    with pytest.raises(ValueError, match="does not hold the 2 steps before the checkpoint"):
        small_trainer(tmp_path, steps=2).resume()
    assert trainer.log.path.read_bytes() == changed


def test_a_run_whose_log_misses_a_step_is_not_trained_on(tmp_path):
    """Its checkpoint could never be resumed."""
    full, ahead = small_trainer(tmp_path / "full"), small_trainer(tmp_path / "ahead")
    with file_size_limit(1000), pytest.raises(OSError, match="too large"):
        full.run()
    ahead.train_step()
    for trainer in (full, ahead):
        with pytest.raises(ValueError, match="was changed meanwhile"):
            trainer.run()


def test_a_resumed_run_may_save_more_often_and_take_smaller_parts_of_a_batch(tmp_path):
    straight, stopped = small_trainer(steps=4), small_trainer(tmp_path, steps=4, save_every=2, micro_batch_size=2)
    with pytest.raises(TrainingInterrupted):
        stopped.run(lambda record: ctrl_c(stopped))
    resumed = small_trainer(tmp_path, steps=4, save_every=1, micro_batch_size=1)
    assert resumed.resume() == ["micro_batch_size was 2 and is 1"]
    saved = []
    resumed.run(lambda record: saved.append(load_checkpoint(resumed.checkpoint_path).step))
    assert saved == [1, 2, 3]
    losses = [[record["loss"] for record in records] for records in (straight.run(), resumed.records)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert small_trainer(tmp_path, steps=4, save_every=9, micro_batch_size=1).resume() == []


def test_a_checkpoint_of_the_beginning_can_be_resumed_and_run(tmp_path):
    trainer, straight = small_trainer(tmp_path), small_trainer()
    with trainer.log:
        trainer.save()
    trainer.resume()
    assert without_seconds(trainer.run()) == without_seconds(straight.run())


def test_a_run_that_was_resumed_does_not_go_on_over_what_another_process_wrote_since(tmp_path):
    stopped = small_trainer(tmp_path, steps=4)
    with pytest.raises(TrainingInterrupted):
        stopped.run(lambda record: ctrl_c(stopped))
    late, other = (small_trainer(tmp_path, steps=4) for _ in range(2))
    late.resume()
    other.resume()
    records = other.run()
    with pytest.raises(ValueError, match="was changed meanwhile"):
        late.run()
    assert read_log(other.log.path) == records
    finished = other.log.path.read_bytes()
    other.log.path.write_bytes(finished.replace(b"1", b"2"))  # of the same length
    with pytest.raises(ValueError, match="was changed meanwhile"):
        other.run()


@pytest.mark.parametrize("room", [200, 1000, 100_000])  # for a part of a line, a line, but no checkpoint
def test_on_a_full_disk_the_log_stays_whole_and_the_run_can_begin_again(tmp_path, room):
    full, straight = small_trainer(tmp_path, save_every=2), small_trainer()
    with file_size_limit(room), pytest.raises(OSError, match="too large"):
        full.run()
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert read_log(full.log.path) == full.records[: len(read_log(full.log.path))]
    again = small_trainer(tmp_path, save_every=2)
    assert without_seconds(again.run()) == without_seconds(straight.run())


# ---------------------------------------------------------------------------------------------------
# What goes wrong in the middle of a run


def batches(change: Callable[[dict], object]) -> Callable:
    """From now on, let the source of batches give something else."""

    def harm(trainer: Trainer, stack: ExitStack) -> None:
        real = trainer.batches
        trainer.batches = SimpleNamespace(batch=lambda *which: change(real.batch(*which)), domain=real.domain)

    return harm


def tokens(change: Callable[[np.ndarray], object]) -> Callable:
    return batches(lambda batch: {"tokens": change(batch["tokens"])})


def last_token(value: int) -> Callable:
    """Change the last token of the last row."""

    def change(t: np.ndarray) -> np.ndarray:
        t = t.copy()
        t[-1, -1] = value
        return t

    return change


def loss_times(factor: float) -> Callable:
    def loss(*arguments):
        terms = language_model_loss(*arguments)
        return replace(terms, total=factor * terms.total)

    return lambda trainer, stack: setattr(trainer, "loss", loss)


def full_disk(trainer: Trainer, stack: ExitStack) -> None:
    stack.enter_context(file_size_limit(100_000))


def read_only_folder(trainer: Trainer, stack: ExitStack) -> None:
    """As root is refused nothing, the system's answer is made here."""

    def refuse(**where):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), where["dir"])

    stack.enter_context(pytest.MonkeyPatch.context()).setattr("tempfile.mkdtemp", refuse)


FAULTS = [
    (full_disk, OSError, "File too large: '.*checkpoint.safetensors'"),
    (read_only_folder, OSError, "Read-only file system: '.*checkpoint.safetensors'"),
    *((loss_times(x), TrainingDiverged, f"step 3: the loss is {x} .*Check the loss") for x in (math.nan, math.inf)),
    (tokens(lambda t: t + 512), ValueError, r"has the token \d+: tokens must be from 0 to 511"),
    (tokens(lambda t: t - 512), ValueError, r"has the token -\d+: tokens must be from 0 to 511"),
    (tokens(lambda t: t[:3]), ValueError, r"has tokens of shape \(3, 17\): it must be \(4, 17\)"),
    (tokens(lambda t: t[:, :9]), ValueError, r"has tokens of shape \(4, 9\): it must be \(4, 17\)"),
    (tokens(lambda t: t[0]), ValueError, r"has tokens of shape \(17,\): it must be \(4, 17\)"),
    (tokens(lambda t: t.astype(np.float32)), ValueError, "has tokens of type float32: they must be int64"),
    (tokens(last_token(512)), ValueError, r"has the token 512: tokens must be from 0 to 511"),
    (tokens(last_token(-1)), ValueError, r"has the token -1: tokens must be from 0 to 511"),
    (tokens(lambda t: t.astype(np.int32)), ValueError, "has tokens of type int32: they must be int64"),
    (tokens(lambda t: t.astype(str)), ValueError, "has tokens=array.* …: it must be an array of numbers"),
    (tokens(lambda t: [[1, 2], [3]]), ValueError, r"has tokens=\[\[1, 2\], \[3\]\]: it must be an array of numbers"),
    (batches(lambda b: b | {"mask": np.ones((4, 16))}), ValueError, r"mask of shape \(4, 16\): it must be \(4, 17\)"),
    (batches(lambda b: b | {"mask": np.full((4, 17), math.inf)}), ValueError, "a mask with values that are not finite"),
    (batches(lambda b: b | {"reward": np.ones((3, 2))}), ValueError, r"reward of shape \(3, 2\): it must be \(4, 2\)"),
    (batches(lambda b: {}), ValueError, "is {}: it must be a dict of arrays with an entry tokens"),
    (batches(lambda b: [b]), ValueError, r"is \[\{'tokens.* …: it must be a dict of arrays with an entry tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "error", "words"), FAULTS)
def test_a_fault_is_told_in_one_sentence_and_the_run_goes_on_bitwise_from_its_last_checkpoint(
    tmp_path, harm, error, words
):
    """It begins after step 2 (of 0 to 5), between two checkpoints."""
    straight, broken, resumed = small_trainer(), *(small_trainer(tmp_path, save_every=2) for _ in range(2))
    straight.run()
    with ExitStack() as stack, pytest.raises(error, match=words) as told:
        broken.run(lambda record: harm(broken, stack) if record["step"] == 2 else None)
    assert "\n" not in str(told.value)
    if error is not OSError:
        assert "step 3" in str(told.value)
    resumed.resume()
    assert resumed.step == 2
    assert without_seconds(resumed.run()) == without_seconds(straight.records)
    assert_bitwise_equal(state(resumed.model), state(straight.model))


def test_a_run_whose_folder_was_moved_away_writes_nothing_into_its_successor(tmp_path):
    """And it goes on where its folder is now."""
    moved, straight, first = tmp_path / "moved", small_trainer(), small_trainer(tmp_path / "run", save_every=2)

    def replace_folder(record):
        if record["step"] == 2:
            first.folder.rename(moved)
            small_trainer(first.folder, seed=1, steps=2).run()

    with pytest.raises(OSError, match=r"log was removed or replaced during the run: '.*/run/log\.jsonl'"):
        first.run(replace_folder)
    assert small_trainer(first.folder, seed=1, steps=2).resume() == [], "the successor is whole"
    resumed = small_trainer(moved, save_every=2)
    resumed.resume()
    assert resumed.step == 2
    assert without_seconds(resumed.run()) == without_seconds(straight.run())


def test_a_log_that_was_removed_during_the_run_ends_it_and_every_checkpoint_comes_after_its_lines(
    tmp_path, monkeypatch
):
    trainer, real, events = small_trainer(tmp_path, save_every=2), os.fsync, []
    log_file = lambda fd: trainer.log._file and fd == trainer.log._file.fileno()
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("log") if log_file(fd) else None, real(fd))[1])
    monkeypatch.setattr(trainer, "save", lambda save=trainer.save: (events.append("save"), save()))
    with pytest.raises(OSError, match="log was removed"):
        trainer.run(lambda record: trainer.log.path.unlink() if record["step"] == 2 else None)
    assert events == ["log", "save", "log"]


def test_what_a_killed_save_left_goes_when_the_run_is_resumed_even_if_it_is_complete(tmp_path):
    small_trainer(tmp_path, steps=1).run()
    (tmp_path / ".checkpoint.safetensors.killed_1.tmp").mkdir()
    (tmp_path / ".checkpoint.safetensors.killed_1.tmp" / "new").write_text("half of a checkpo")
    small_trainer(tmp_path, steps=1).resume()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "log.jsonl"}


# ---------------------------------------------------------------------------------------------------
# Signals


def test_a_second_ctrl_c_interrupts_within_the_step_and_nothing_is_left_of_it():
    straight, trainer, reached = small_trainer(), small_trainer(), []
    expected = straight.run()

    def press_twice(*_):  # the gradients of this step are there, and its load is counted
        if trainer.step == 2:
            handle.remove()
            for press in ("first", "second"):
                ctrl_c(trainer)
                reached.append(press)

    handle = trainer.optimizer.register_step_pre_hook(press_twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert reached == ["first"]
    assert without_seconds(trainer.run()) == without_seconds(expected)
    assert_bitwise_equal(state(trainer.model), state(straight.model))


def test_ctrl_c_in_the_last_step_and_a_run_outside_the_main_thread_end_well(tmp_path):
    last, elsewhere = small_trainer(tmp_path / "a", steps=1), small_trainer(tmp_path / "b", steps=1)
    last.run(lambda record: ctrl_c(last))
    thread = threading.Thread(target=elsewhere.run)
    thread.start()
    thread.join()
    assert [load_checkpoint(trainer.checkpoint_path).step for trainer in (last, elsewhere)] == [1, 1]
