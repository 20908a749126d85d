"""Experiments of many short runs: what is run, what is kept, and what depends on which seed."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers_training import small_config, small_corpus, small_train_config

from minids.book.experiments import pool
from minids.book.experiments.pool import Arm, Experiment, record, start
from minids.text.batches import encode_split
from minids.text.corpus import CORPUS_SHA256
from minids.text.tokenizer import Tokenizer

ARMS = {"a, b": Arm(small_config()), "a: b": Arm(small_config(), {"bias_speed": 0.5}, {"scope": "batch"})}


@pytest.fixture
def done(monkeypatch, tmp_path) -> list:
    """The runs that are done, in threads; figures/data is another folder."""
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(pool, "DATA", tmp_path / "data")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    (tmp_path / "data").mkdir()
    return []


def experiment(done: list, **changes) -> Experiment:
    """Two arms, whose runs only say that they were asked for."""

    def run(arm: str, weights: int, data: int) -> dict:
        done.append((arm, weights, data))
        return {"seconds": 15.0, "bits_per_byte": {"all": len(arm) + weights + 0.1 * data}}

    return replace(Experiment("made up", small_train_config(), ARMS, run), **changes)


def test_every_arm_is_run_with_every_pair_of_seeds_and_all_of_it_is_written(done, tmp_path):
    path = record(experiment(done), tmp_path / "runs")
    jobs = [(arm, weights, data) for weights in (0, 1) for data in (0, 1) for arm in ARMS]
    assert (path, done) == (tmp_path / "data" / "made up.json", jobs)
    result = json.loads(path.read_text())
    assert result["runs"] == [
        {"arm": arm, "weights": w, "data": d, "seconds": 15.0, "bits_per_byte": {"all": 4 + w + 0.1 * d}}
        for arm, w, d in jobs
    ]
    assert (result["minutes"], result["seeds"]) == (2.0, [0, 1])
    assert result["arms"]["a: b"] == {"model": small_config().to_hf(), "train": {"bias_speed": 0.5}, "scope": "batch"}
    assert result["train"] == json.loads(json.dumps(asdict(small_train_config())))
    assert (result["corpus_sha256"], result["torch"]) == (CORPUS_SHA256, torch.__version__)


def test_seeds_that_are_not_crossed_and_not_the_book_s_stay_in_the_folder(done, tmp_path):
    path = record(experiment(done, crossed=False), tmp_path / "new", seeds=(7, 8))
    assert path == tmp_path / "new" / "made up.json"
    assert done == [(arm, seed, seed) for seed in (7, 8) for arm in ARMS]


def test_some_arms_alone_leave_the_book_s_results_as_they_are(done, tmp_path, capsys):
    path = record(experiment(done), tmp_path / "new", arms=["a: b"])
    assert path == tmp_path / "new" / "made up.json"
    assert json.loads(path.read_text())["arms"].keys() == {"a: b"} == {arm for arm, *_ in done}
    assert "a: b, seeds 0 and 1: 4.1 bits per byte\n" in capsys.readouterr().out
    record(experiment(done, run=lambda *_: {"seconds": 1, "bits_per_byte": 2.5}), tmp_path / "number", (7,))
    assert "a, b, seeds 7 and 7: 2.5 bits per byte\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"'b' is not possible.* one of a, b, a: b"):
        record(experiment(done), tmp_path / "new", arms=["b"])


def test_only_what_is_not_there_is_run_and_other_settings_are_other_runs(done, tmp_path):
    first = record(experiment(done), tmp_path).read_text()
    next(tmp_path.glob("a-b-*-1-0.json")).unlink()
    done.clear()
    assert record(experiment(done), tmp_path).read_text() == first
    assert [seeds for _, *seeds in done] == [[1, 0]]
    one = Arm(small_config(), {"bias_speed": 0.5}, {"scope": "sequence"})
    for changes, runs in (({"train": small_train_config(steps=7)}, 8), ({"arms": ARMS | {"a: b": one}}, 4)):
        done.clear()
        record(experiment(done, **changes), tmp_path)
        assert len(done) == runs


def test_initial_weights_and_order_of_the_text_have_a_seed_each(monkeypatch):
    corpus = small_corpus()
    tokenizer = Tokenizer.train([text for texts in corpus.train.values() for text in texts], 300)
    streams = encode_split(tokenizer, corpus.only(*pool.DOMAINS).train)
    monkeypatch.setattr(pool, "text", lambda: (streams, tokenizer))
    monkeypatch.setattr(pool, "load_corpus", lambda: corpus)
    runs = {seeds: start(ARMS["a: b"], small_train_config(), *seeds) for seeds in ((0, 0), (0, 1), (1, 0))}
    weights = {seeds: run.model.lm_head.weight for seeds, run in runs.items()}
    tokens = {seeds: run.batches.batch(0, 4)["tokens"] for seeds, run in runs.items()}
    assert torch.equal(weights[0, 0], weights[0, 1])
    assert not torch.equal(weights[0, 0], weights[1, 0])
    assert np.array_equal(tokens[0, 0], tokens[1, 0])
    assert not np.array_equal(tokens[0, 0], tokens[0, 1])
    assert all(run.trainer.config.bias_speed == 0.5 for run in runs.values())


def test_after_an_error_no_other_run_starts_and_seeds_must_differ(done, tmp_path):
    def fails(arm: str, weights: int, data: int) -> dict:
        done.append(arm)
        time.sleep(0.2)
        raise ArithmeticError("no loss")

    with pytest.raises(ArithmeticError, match="no loss"):
        record(experiment(done, run=fails), tmp_path)
    assert len(done) <= 2 < len(pool.jobs(experiment(done)))
    for seeds in ((1, 1), (0, -1)):
        with pytest.raises(ValueError, match=r"must be different numbers of at least 0"):
            record(experiment(done), tmp_path, seeds)
