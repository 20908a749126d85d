"""A run assembled: what it starts from, where it goes on from, and what it leaves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_training import assert_bitwise_equal, small_config, small_corpus, small_train_config, small_trainer, state

from minids.device import peak_bytes
from minids.hub.reference import REFERENCE
from minids.text.tokenizer import Tokenizer
from minids.training.run import load_run, start_run
from minids.training.step import language_model_loss

CORPUS = small_corpus()
MODEL, CONFIG = small_config(), small_train_config(steps=2)


def test_model_and_batches_follow_from_the_configurations_the_text_and_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(99)
        runs.append(start_run(MODEL, small_train_config(seed=seed), CORPUS))
    first, same, other = runs
    assert first.tokenizer.decode(first.batches.row(0)) in "".join(CORPUS.train["prose"])
    assert_bitwise_equal(state(first.model), state(same.model))
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)
    rows = [[run.batches.row(i).tolist() for i in range(9)] for run in runs]
    assert rows[0] == rows[1] != rows[2]
    first.trainer.run()
    assert not list(tmp_path.iterdir()), "without a folder nothing is written"


def test_a_given_tokenizer_and_loss_are_used_and_the_run_is_found_again_with_what_has_changed(tmp_path):
    tokenizer, steps = Tokenizer.train(CORPUS.train["prose"], 280), []

    def loss(model, rows, whole, config, step):
        steps.append(step)
        return language_model_loss(model, rows, whole, config, step)

    run = start_run(MODEL, CONFIG, CORPUS, tmp_path, tokenizer=tokenizer, loss=loss)
    run.trainer.run()
    assert steps == [0, 1]
    assert run.tokenizer is tokenizer
    with pytest.raises(ValueError, match="was made with loss="):
        start_run(MODEL, CONFIG, CORPUS, tmp_path, resume=True)
    resumed = start_run(MODEL, CONFIG, CORPUS, tmp_path, loss=loss, resume=True)
    assert (resumed.tokenizer.to_json(), resumed.trainer.step, resumed.differences) == (tokenizer.to_json(), 2, ())
    model, loaded_tokenizer = load_run(tmp_path)
    for again in (resumed.model, model):
        assert_bitwise_equal(state(again), state(run.model))
    assert (model.config, model.training, loaded_tokenizer.to_json()) == (MODEL, False, tokenizer.to_json())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:  # the last bits of a sum depend on how many threads share it
        resumed = start_run(MODEL, CONFIG, CORPUS, tmp_path, loss=loss, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert resumed.differences == (f"threads was {threads} and is {threads + 1}",)


def test_a_report_is_of_a_run_that_was_trained_to_its_end_in_a_folder_or_in_memory(tmp_path):
    reports = []
    for folder in (tmp_path, None):
        run = start_run(MODEL, CONFIG, CORPUS, folder)
        with pytest.raises(ValueError, match="the run has taken 0 of 2 steps"):
            run.report()
        run.trainer.run()
        reports.append(run.report()["bits_per_byte"])
    assert reports[0] == reports[1] == start_run(MODEL, CONFIG, CORPUS, tmp_path, resume=True).report()["bits_per_byte"]


def test_a_run_may_begin_with_a_trained_model_and_batches_of_its_own():
    first = start_run(MODEL, CONFIG, CORPUS)
    first.trainer.run()
    weights = state(first.model)
    answers = {"tokens": first.batches.batch(0, 4)["tokens"], "mask": np.arange(17) > 8}

    class Answers:
        def batch(self, step, batch_size):
            return {"tokens": answers["tokens"], "mask": np.tile(answers["mask"], (batch_size, 1))}

        def domain(self, index):
            return "answers"

    second = start_run(first.model, CONFIG, CORPUS, tokenizer=first.tokenizer, batches=Answers())
    assert_bitwise_equal(state(second.model), weights)
    assert [set(record["bits_per_byte"]) for record in second.trainer.run()] == [{"answers"}] * 2
    assert not torch.equal(second.model.lm_head.weight, weights["lm_head.weight"])


def test_a_checkpoint_that_names_no_model_is_refused(tmp_path):
    start_run(MODEL, CONFIG, CORPUS, tmp_path)
    small_trainer(tmp_path).save()
    with pytest.raises(ValueError, match="holds a checkpoint without a configuration"):
        load_run(tmp_path)


@pytest.mark.parametrize("model", [str(REFERENCE), ["a"], None])
def test_what_a_checkpoint_says_of_its_model_is_no_path(tmp_path, model):
    start_run(MODEL, CONFIG, CORPUS, tmp_path)
    small_trainer(tmp_path, settings={"model": model}).save()
    with pytest.raises(ValueError, match="holds a checkpoint without a configuration"):
        load_run(tmp_path)


def test_a_checkpoint_that_says_it_is_larger_than_it_is_takes_no_memory(tmp_path):
    run = start_run(MODEL, CONFIG, CORPUS, tmp_path)
    larger = {"model": replace(MODEL, hidden_size=2**20).to_hf()}
    trainer = small_trainer(tmp_path, settings=run.trainer.settings | larger)
    trainer.settings["tokenizer_sha256"] = run.trainer.settings["tokenizer_sha256"]
    trainer.save()
    before = peak_bytes()
    with pytest.raises(ValueError, match=r"has shape .* in the checkpoint"):
        load_run(tmp_path)
    assert peak_bytes() < before + 2**28, "its embedding alone would take 2 GiB"
