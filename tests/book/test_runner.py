"""The machinery of recorded experiments, on one that takes seconds: real runs of two arms."""

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers_training import small_config
from typer.testing import CliRunner

from minids.__main__ import app
from minids.book.experiments import pool, runner
from minids.book.experiments.__main__ import EXPERIMENTS, POOLED, listing, main
from minids.book.experiments.runner import Arm, Experiment, changed_arms, record, thin
from minids.book.growing import STAGES
from minids.book.recorded import load, reports_of
from minids.text.corpus import load_corpus
from minids.text.own_text import read_texts
from minids.training.config import MINIATURE, TrainConfig

SHORT = replace(MINIATURE, steps=2, batch_size=2, sequence_length=16)
MODEL = small_config(num_nextn_predict_layers=0)
TWO = Experiment(
    name="two",
    arms={
        "one layer": Arm(replace(MODEL, num_hidden_layers=1), SHORT),
        "slow, two": Arm(MODEL, replace(SHORT, learning_rate=1e-4, betas=(0.8, 0.9))),
    },
    logged="slow, two",
)


def instead_of_processes(patch: pytest.MonkeyPatch, run) -> None:
    """Let `record` call this with the arguments of `minids`, one at a time, instead of starting processes."""
    lock = threading.Lock()

    def stand_in(command, stdout, stderr):
        assert command[:3] == [sys.executable, "-m", "minids"]
        with lock:
            result = run(command[3:])
        stderr.write(result.stderr)
        return subprocess.CompletedProcess(command, result.exit_code)

    patch.setattr(runner, "subprocess", SimpleNamespace(run=stand_in, DEVNULL=subprocess.DEVNULL))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"Line {i} of a text, which is the {i * 7 % 13}th of its kind.\n" for i in range(400)))
    return path


@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    """The folder of the experiment, the result and its path, and the commands that were run, in this process."""
    folder, commands = tmp_path_factory.mktemp("experiment"), []
    with pytest.MonkeyPatch.context() as patch:
        instead_of_processes(patch, lambda command: commands.append(command) or CliRunner().invoke(app, command))
        result, path = record(TWO, folder, seeds=(3, 4), data=text)
    return folder, result, path, commands


def test_every_arm_is_trained_with_every_seed_as_it_says_and_the_result_is_written_whole(made, text):
    folder, result, path, commands = made
    slow = [
        "train", "--resume", "--config", folder / "slow-two.json", "--out", folder / "slow-two-3", "--seed", 3,
        "--threads", 1, "--device", "cpu", "--steps", 2, "--batch-size", 2, "--sequence-length", 16,
        "--learning-rate", 0.0001, "--betas", 0.8, 0.9, "--data", text,
    ]  # fmt: skip
    assert list(map(str, slow)) in commands
    assert path == folder / "two.json"
    assert json.loads(path.read_text()) == result
    assert [(row["arm"], row["seed"]) for row in result["runs"]] == [(arm, seed) for seed in (3, 4) for arm in TWO.arms]
    for row in result["runs"]:
        report, train = row["report"], TWO.arms[row["arm"]].train
        expected = replace(train, seed=row["seed"], dtype=report["dtype"])
        assert TrainConfig(**report["train"] | {"betas": tuple(report["train"]["betas"])}) == expected
        assert (report["threads"], report["tokens"]) == (1, 64)
    first, second = reports_of(result, "one layer")
    assert first["bits_per_byte"] != second["bits_per_byte"]
    assert reports_of(result, "slow, two")[0]["parameters"]["total"] > first["parameters"]["total"]
    assert [record["step"] for record in result["log"]] == [0, 1]
    assert result["minutes"] >= 0
    assert result["machine"]["cores"] >= 1


def test_settings_that_have_changed_since_are_named(made):
    result = made[1]
    assert changed_arms(result, TWO) == []
    one, slow = TWO.arms.values()
    for arms, changed in [
        ({"one layer": one, "slow, two": Arm(MODEL, SHORT)}, ["slow, two"]),
        ({"one layer": Arm(MODEL, SHORT), "slow, two": slow}, ["one layer"]),
        (TWO.arms | {"new": one}, ["new"]),
        ({"one layer": one}, ["slow, two"]),
    ]:
        assert changed_arms(result, Experiment("x", arms)) == changed


def test_what_is_done_is_not_done_again_and_runs_of_other_settings_or_text_are_not_taken_for_its_own(
    made, text, tmp_path, monkeypatch
):
    folder, result, *_ = made
    instead_of_processes(monkeypatch, lambda arguments: pytest.fail("a run was started"))
    again, _ = record(TWO, folder, seeds=(3, 4), data=text)
    assert again["runs"] == result["runs"]
    changed = tmp_path / "text.txt"
    changed.write_text(text.read_text() + "One line more.\n")
    narrow = replace(
        TWO, arms=TWO.arms | {"one layer": Arm(replace(MODEL, num_hidden_layers=1, hidden_size=32), SHORT)}
    )
    for experiment, data, named in (
        (narrow, text, "one-layer.json"),
        (TWO, changed, "one-layer.train.json"),
        (TWO, None, "one-layer.train.json"),  # the book's corpus
    ):
        with pytest.raises(ValueError, match=f"another {re.escape(named)}: choose another folder"):
            record(experiment, folder, seeds=(3, 4), data=data)


@pytest.mark.parametrize(
    ("impossible", "says"),
    [
        (lambda folder: record(TWO, folder, data=folder / "missing.txt"), "missing"),
        (lambda folder: record(TWO, folder, seeds=(3, 3)), "seeds 3, 3 are not possible"),
        (lambda folder: record(TWO, folder, seeds=(-1, 2)), "seeds -1, 2 are not possible"),
        (lambda _: Experiment("x", {"a b": Arm(MODEL), "a, b": Arm(MODEL)}), "files of one folder"),
        (lambda _: Experiment("two", {"two": Arm(MODEL)}), "files of one folder"),
        (lambda _: Experiment("x", {"a": Arm(MODEL)}, logged="c"), "logged='c' is no arm"),
        (
            lambda _: Arm(MODEL, replace(MINIATURE, seed=1)),
            "seed=1 is not possible: it must be 0, the same for all arms",
        ),
        (lambda _: Arm(MODEL, replace(MINIATURE, dtype="bfloat16")), "dtype='bfloat16'"),
    ],
)
def test_what_cannot_be_recorded_is_refused_and_leaves_nothing_behind(tmp_path, impossible, says):
    with pytest.raises(ValueError, match=says):
        impossible(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_is_told_with_its_last_word_and_no_other_begins(tmp_path, text, monkeypatch):
    begun = []
    instead_of_processes(monkeypatch, lambda command: begun.append(command) or CliRunner().invoke(app, command))
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 1)
    refused = Experiment("refused", {"too long": Arm(MODEL, replace(SHORT, sequence_length=10**6))})
    with pytest.raises(RuntimeError, match=r"too long, seed \d ended with 2: minids: the text has .* tokens"):
        record(refused, tmp_path, seeds=tuple(range(20)), data=text)
    assert len(begun) <= 5
    assert not (tmp_path / "refused.json").exists()


def test_only_the_books_seeds_and_corpus_renew_the_books_data_and_are_measured(tmp_path, text, monkeypatch):
    """The runs are made up, and the folder of the book's data is another one."""
    monkeypatch.setattr(runner, "_run", lambda e, folder, arm, seed, data: {"seconds": 60.0, "of": arm})
    monkeypatch.setattr(runner, "DATA", tmp_path / "data")
    (tmp_path / "data").mkdir()
    arms = {"a": Arm(MODEL, SHORT), "b": Arm(MODEL, SHORT)}
    experiment = Experiment("made up", arms, measure=lambda arm, run: None if arm == "b" else {"run": run.name})
    result, path = record(experiment, tmp_path / "runs")
    assert path == tmp_path / "data" / "made up.json"
    measured = [row.get("measured") for row in result["runs"]]
    assert measured == [{"run": "a-0"}, None, {"run": "a-1"}, None, {"run": "a-2"}, None]
    assert result["minutes"] == 6
    _, path = record(experiment, tmp_path / "runs", seeds=(0, 1))
    assert path == tmp_path / "runs" / "made up.json"
    result, path = record(experiment, tmp_path / "own", data=text)
    assert path == tmp_path / "own" / "made up.json"
    assert not any("measured" in row for row in result["runs"])
    remembered = json.loads((tmp_path / "own" / "a.train.json").read_text())
    assert remembered["corpus_sha256"] == read_texts(text).sha256 != load_corpus().sha256


def test_a_thinned_log_keeps_few_digits_of_what_is_drawn():
    same = {"step": 0, "load": [[1, 2], [3, 4]]}
    line = same | {"bits_per_byte": {"prose": 1.23456}, "max_violation": [0.98765, 1], "balance": 1.0}
    few = same | {"bits_per_byte": {"prose": 1.235}, "max_violation": [0.988, 1]}
    names = ("next_token", "mtp", "gradient_norm", "seconds")
    line, few = line | dict.fromkeys(names, 3.14159), few | dict.fromkeys(names, 3.142)
    dense = {"load": [], "max_violation": []}
    assert thin([line, line | dense]) == [few, few | dense]


# ---------------------------------------------------------------------------------------------------
# The command


def test_the_command_lists_what_there_is(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    runs_of = {name: 3 * len(experiment.arms) for name, experiment in EXPERIMENTS.items()}
    runs_of |= {"growing": 5 * len(STAGES)}
    runs_of |= {name: 4 * len(POOLED[name].arms) for name in ("experts", "balance", "mtp")}
    runs_of |= {"fp8": 3 * len(POOLED["fp8"].arms)}
    runs_of |= {"ablation": 4 * len(POOLED["ablation"].arms), "scaling": 3 * len(POOLED["scaling"].arms)}
    for line, (name, runs) in zip(lines, runs_of.items(), strict=True):
        minutes = load(name)["minutes"]
        assert line.split(":")[0].split() == f"{name} {runs} runs, {minutes:,.0f} minutes of one core".split()


def test_the_command_hands_its_options_on(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setitem(EXPERIMENTS, "two", TWO)
    monkeypatch.setattr(runner, "record", lambda *given: asked.append(given) or ({}, tmp_path / "two.json"))
    main(["two", "--seeds", "5", "6", "--folder", str(tmp_path), "--data", "my.txt"])
    main(["two"])
    monkeypatch.setattr(pool, "record", lambda *given: asked.append(given) or tmp_path / "one.json")
    main(["fp8", "--seeds", "5", "--arms", "FP8", "BF16"])
    main(["fp8"])
    assert asked == [
        (TWO, tmp_path, (5, 6), Path("my.txt")),
        (TWO, Path("runs/experiments/two"), runner.SEEDS, None),
        (POOLED["fp8"], Path("runs/experiments/fp8"), (5,), ["FP8", "BF16"]),
        (POOLED["fp8"], Path("runs/experiments/fp8"), None, None),
    ]
    assert f"wrote {tmp_path / 'two.json'}\n" in capsys.readouterr().out
    assert "two          6 runs, not yet recorded: one layer · slow, two" in listing()


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("none", 2, "'none' is no experiment: there are miniature, attention"),
        ("--seeds 1", 2, "name the experiment"),
        ("--arms MHA", 2, "name the experiment"),
        ("ablation --arms MHHA", 2, "minids: arm='MHHA' is not possible"),
        ("attention --seeds 1 1", 2, "minids: seeds 1, 1 are not possible"),
        ("attention --arms MHA", 2, "attention has no --arms"),
        ("attention --data nothing.txt", 2, "minids: nothing.txt"),
        (f"attention --folder {__file__}", 2, "minids: "),
        ("attention", 130, "minids: stopped; the same command resumes."),
    ],
)
def test_a_command_that_ends_early_says_why_in_one_sentence(monkeypatch, capsys, command, code, words):
    def interrupted(*_):
        raise KeyboardInterrupt

    if code == 130:
        monkeypatch.setattr(runner, "record", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == code
    assert words in capsys.readouterr().err
