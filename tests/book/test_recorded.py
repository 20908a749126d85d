"""The machinery of recorded experiments, on one that takes seconds: real processes, real runs, two arms."""

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers_training import small_config

from minids.book.experiments import recorded
from minids.book.experiments.__main__ import EXPERIMENTS, listing, main
from minids.book.experiments.recorded import Arm, Experiment, changed_arms, load, record, reports_of, thin
from minids.text.data import load_corpus, read_texts
from minids.training.trainer import TrainConfig

SHORT = TrainConfig(steps=2, batch_size=2, sequence_length=16)
MODEL = small_config(num_nextn_predict_layers=0)
TWO = Experiment(
    name="two",
    arms={
        "one layer": Arm(replace(MODEL, num_hidden_layers=1), SHORT),
        "slow, two": Arm(MODEL, replace(SHORT, learning_rate=1e-4)),
    },
    logged="slow, two",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Line {i} of a text, which is the {i * 7 % 13}th of its kind.\n" for i in range(400)))
    return path


@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    result, path = record(TWO, folder, seeds=(3, 4), data=text)
    return folder, result, path


def test_every_arm_is_trained_with_every_seed_as_it_says(made):
    _, result, _ = made
    assert [(row["arm"], row["seed"]) for row in result["runs"]] == [(arm, seed) for seed in (3, 4) for arm in TWO.arms]
    for row in result["runs"]:
        train = row["report"]["train"]
        assert (train["seed"], train["steps"], train["sequence_length"]) == (row["seed"], 2, 16)
        assert train["learning_rate"] == TWO.arms[row["arm"]].train.learning_rate
        assert row["report"]["threads"] == 1
        assert row["report"]["tokens"] == 64
    first, second = reports_of(result, "one layer")
    assert first["bits_per_byte"] != second["bits_per_byte"]
    assert reports_of(result, "slow, two")[0]["parameters"]["total"] > first["parameters"]["total"]


def test_the_result_is_written_whole_with_its_settings_and_one_log(made):
    folder, result, path = made
    assert path == folder / "two.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert changed_arms(result, TWO) == []
    assert result["arms"]["slow, two"]["train"] == TWO.arms["slow, two"].changed
    assert [record["step"] for record in result["log"]] == [0, 1]
    assert len(result["log"][0]["load"]) == 1
    assert result["minutes"] >= 0
    assert result["machine"]["cores"] >= 1


def test_what_is_done_is_not_done_again(made, text):
    folder, result, _ = made
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/report.json")}
    again, _ = record(TWO, folder, seeds=(3, 4), data=text)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/report.json")} == before
    assert again["runs"] == result["runs"]


def test_runs_of_other_settings_or_text_are_not_taken_for_its_own(made, text, tmp_path):
    folder, _, _ = made
    other = replace(TWO, arms=TWO.arms | {"one layer": Arm(replace(MODEL, num_hidden_layers=1, hidden_size=32), SHORT)})
    with pytest.raises(ValueError, match=r"another one-layer\.json: choose another folder"):
        record(other, folder, seeds=(3, 4), data=text)
    changed = tmp_path / "text.txt"
    changed.write_text(text.read_text() + "One line more.\n")
    for data in (changed, None):  # None: the book's corpus
        with pytest.raises(ValueError, match=r"another one-layer\.train\.json"):
            record(TWO, folder, seeds=(3, 4), data=data)


def test_a_text_that_is_not_there_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="missing"):
        record(TWO, tmp_path / "runs", data=tmp_path / "missing.txt")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seeds", [(3, 3), (-1, 2)])
def test_seeds_must_differ_and_cannot_be_negative(tmp_path, seeds):
    with pytest.raises(ValueError, match=f"seeds {seeds[0]}, {seeds[1]} are not possible"):
        record(TWO, tmp_path / "runs", seeds)
    assert not (tmp_path / "runs").exists()


def test_names_that_would_share_a_file_are_refused():
    arm = Arm(MODEL, SHORT)
    for name, arms in (("x", {"a b": arm, "a, b": arm}), ("two", {"two": arm})):
        with pytest.raises(ValueError, match="files of one folder"):
            Experiment(name, arms)
    with pytest.raises(ValueError, match="logged='c' is no arm"):
        Experiment("x", {"a": arm}, logged="c")


def test_a_run_is_one_command_that_goes_on_where_it_was_interrupted(tmp_path, text, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command)
        out = Path(command[command.index("--out") + 1])
        (out / "report.json").write_text('{"seconds": 1.0}')
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(recorded.subprocess, "run", run)
    record(replace(TWO, logged=None), tmp_path, seeds=(7,), data=text)
    one, slow = sorted(asked, key=lambda command: "slow-two.json" in " ".join(command))
    assert one[1:5] == ["-m", "minids", "train", "--resume"]
    options = dict(zip(slow[5::2], slow[6::2], strict=True))
    assert options == {
        "--config": str(tmp_path / "slow-two.json"), "--out": str(tmp_path / "slow-two-7"), "--seed": "7",
        "--threads": "1", "--device": "cpu", "--steps": "2", "--batch-size": "2", "--sequence-length": "16",
        "--learning-rate": "0.0001", "--data": str(text),
    }  # fmt: skip


def test_after_a_failure_no_other_run_begins(tmp_path, text, monkeypatch):
    begun = []

    def run(experiment, folder, arm, seed, data):
        begun.append(seed)
        if seed == 0:
            raise RuntimeError("diverged")
        time.sleep(0.3)

    monkeypatch.setattr(recorded, "_run", run)
    monkeypatch.setattr(recorded.os, "cpu_count", lambda: 2)
    with pytest.raises(RuntimeError, match="diverged"):
        record(Experiment("one", {"a": Arm(MODEL, SHORT)}), tmp_path, seeds=tuple(range(20)), data=text)
    assert len(begun) <= 4


def test_a_run_that_fails_is_told_with_its_last_word(tmp_path, text):
    refused = Experiment("refused", {"too long": Arm(MODEL, replace(SHORT, sequence_length=10**6))})
    with pytest.raises(RuntimeError, match=r"too long, seed 0 ended with 2: minids: the text has .* tokens"):
        record(refused, tmp_path, seeds=(0,), data=text)
    assert not (tmp_path / "refused.json").exists()


def test_an_arm_can_only_change_what_the_command_line_offers():
    with pytest.raises(ValueError, match=r"mtp_weight is no option of `minids train`"):
        Arm(MODEL, TrainConfig(mtp_weight=0.1))
    with pytest.raises(ValueError, match="seed is no option"):
        Arm(MODEL, TrainConfig(seed=1))
    assert Arm(MODEL, SHORT).changed == {"steps": 2, "batch_size": 2, "sequence_length": 16}


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """An experiment whose runs are made up, and the folder of the book's data moved away."""
    monkeypatch.setattr(recorded, "_run", lambda e, folder, arm, seed, data: {"seconds": 60.0, "of": arm})
    monkeypatch.setattr(recorded, "DATA", tmp_path / "data")
    (tmp_path / "data").mkdir()

    def measure(arm, run):
        return None if arm == "b" else {"run": run.name}

    return Experiment("measured", {"a": Arm(MODEL, SHORT), "b": Arm(MODEL, SHORT)}, measure=measure)


def test_the_books_seeds_and_corpus_renew_the_books_data_and_are_measured(made_up, tmp_path):
    result, path = record(made_up, tmp_path / "runs")
    assert [row.get("measured") for row in result["runs"]] == [
        {"run": "a-0"}, None, {"run": "a-1"}, None, {"run": "a-2"}, None,
    ]  # fmt: skip
    assert path == tmp_path / "data" / "measured.json"
    assert result["minutes"] == 6
    _, path = record(made_up, tmp_path / "runs", seeds=(0, 1))
    assert path == tmp_path / "runs" / "measured.json"


def test_text_of_ones_own_renews_nothing_and_is_not_measured(made_up, tmp_path, text):
    result, path = record(made_up, tmp_path / "runs", data=text)
    assert path == tmp_path / "runs" / "measured.json"
    assert not any("measured" in row for row in result["runs"])
    remembered = json.loads((tmp_path / "runs" / "a.train.json").read_text())
    assert remembered["corpus_sha256"] == read_texts(text).sha256 != load_corpus().sha256


def test_settings_that_have_changed_since_are_named():
    result = {"arms": {"a": {"model": MODEL.to_hf(), "train": Arm(MODEL, SHORT).changed}}}
    assert changed_arms(result, Experiment("x", {"a": Arm(MODEL, SHORT)})) == []
    assert changed_arms(result, Experiment("x", {"a": Arm(MODEL)})) == ["a"]
    assert changed_arms(result, Experiment("x", {"a": Arm(replace(MODEL, hidden_size=32), SHORT)})) == ["a"]
    assert changed_arms(result, Experiment("x", {"a": Arm(MODEL, SHORT), "b": Arm(MODEL, SHORT)})) == ["b"]


def test_a_thinned_log_keeps_few_digits_and_one_layer():
    line = {"step": 0, "bits_per_byte": {"prose": 1.23456}, "max_violation": [0.98765, 1], "load": [[1, 2], [3, 4]]}
    assert thin([line | {"seconds": 3.0}]) == [
        {"step": 0, "bits_per_byte": {"prose": 1.235}, "max_violation": [0.988, 1], "load": [[1, 2]]}
    ]
    assert thin([line | {"load": [], "max_violation": []}])[0]["load"] == []


def test_the_command_lists_what_there_is(capsys, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "two", TWO)
    main([])
    printed = capsys.readouterr().out
    assert printed == listing() + "\n"
    for name, experiment in EXPERIMENTS.items():
        (line,) = [line for line in printed.splitlines() if line.startswith(name)]
        minutes = "not yet recorded" if name == "two" else f"{load(name)['minutes']:,.0f} minutes"
        assert f"{len(experiment.arms) * 3} runs, {minutes}" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "'none' is no experiment: there are miniature, attention"),
        (["--seeds", "1"], "name the experiment"),
        (["two", "--seeds", "1", "1"], "minids: seeds 1, 1 are not possible"),
        (["two", "--data", "nothing.txt"], "minids: nothing.txt"),
        (["two", "--folder", "__file__"], "minids: "),
    ],
)
def test_a_mistake_is_told_in_one_sentence(arguments, words, monkeypatch, capsys):
    monkeypatch.setitem(EXPERIMENTS, "two", TWO)
    with pytest.raises(SystemExit) as ended:
        main([__file__ if word == "__file__" else word for word in arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_command_hands_its_options_on(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setitem(EXPERIMENTS, "two", TWO)
    monkeypatch.setattr(recorded, "record", lambda *given: asked.append(given) or ({}, tmp_path / "two.json"))
    main(["two", "--seeds", "5", "6", "--folder", str(tmp_path), "--data", "my.txt"])
    main(["two"])
    assert asked == [
        (TWO, tmp_path, (5, 6), Path("my.txt")),
        (TWO, Path("runs/experiments/two"), recorded.SEEDS, None),
    ]
    assert f"wrote {tmp_path / 'two.json'}\n" in capsys.readouterr().out


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(EXPERIMENTS, "two", TWO)
    monkeypatch.setattr(recorded, "record", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["two"])
    assert ended.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
