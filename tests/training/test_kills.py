"""Real processes, killed by SIGKILL: what they leave is whole, and the run goes on as if nothing had happened."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from helpers_cli import FILES, SMALL, minids, names_in
from helpers_kills import train, train_together
from helpers_training import assert_bitwise_equal, small_config, without_seconds

from minids.parallel.launch import RankFailed, launch
from minids.training.checkpoint import find_checkpoint, load_checkpoint
from minids.training.log import read_log
from minids.training.sharded import load_state

KINDS = ("saving", "writing", "computing", "tearing")


def is_killed(folder: Path, kind: str, number: int) -> bool:
    """Let a process train until that moment; False if the run comes to its end before."""
    try:
        launch(train, 1, folder, kind, number)
    except RankFailed as death:
        if "signal 9" not in str(death):
            raise
        return True
    return False


def result(folder: Path) -> tuple:
    """Weights and moments, and what else a run has left, but its seconds."""
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    records = without_seconds(read_log(folder / "log.jsonl"))
    return checkpoint.tensors, (checkpoint.step, checkpoint.settings, records, (folder / "tokenizer.json").read_bytes())


def test_a_run_killed_at_any_moment_and_then_twice_more_goes_on_bitwise_as_if_nothing_had_happened(tmp_path):
    (moments,) = launch(train, 1, tmp_path / "straight")
    tensors, rest = result(tmp_path / "straight")
    rng, kills, torn_saves = np.random.default_rng(0), 0, 0
    for i in range(7):
        folder = tmp_path / f"{i}"
        shares = ((i + rng.random()) / 7, rng.random() / 2, rng.random() / 2)  # the first are spread over the whole run
        for kind, share in zip(np.roll(KINDS, i), shares, strict=False):
            died = is_killed(folder, str(kind), 1 + int(share * moments[kind]))
            left = [path.name for path in folder.glob(".*")]
            assert len(left) <= 1, "leftovers do not pile up"
            kills += died
            torn_saves += died and kind in ("saving", "tearing") and left != []
            if (path := folder / "checkpoint.safetensors").exists():
                assert load_checkpoint(path).step in (2, 4, 6)
        assert not is_killed(folder, "", 0)
        assert names_in(folder) == {"checkpoint.safetensors", "log.jsonl", "tokenizer.json"}
        found = result(folder)
        assert_bitwise_equal(found[0], tensors)
        assert found[1] == rest
    assert kills >= 20
    assert torn_saves >= 4


SHARED = dict(ranks=2, ep=2)


def test_a_run_of_which_any_process_is_killed_at_any_moment_goes_on_bitwise_and_no_torn_checkpoint_is_read(tmp_path):
    moments = launch(train_together, 2, tmp_path / "straight", SHARED)
    straight, records = load_state(tmp_path / "straight" / "checkpoint"), read_log(tmp_path / "straight" / "log.jsonl")
    rng, kills, torn_saves = np.random.default_rng(0), 0, 0
    for i in range(3):
        folder = tmp_path / f"{i}"
        for who, kind, latest in ((i % 2, "saving", 0.4), (1 - i % 2, KINDS[i % 3], 1.0)):
            number = 1 + int(latest * rng.random() * moments[who][kind])
            try:
                launch(train_together, 2, folder, SHARED, who, kind, number)
            except RankFailed:
                kills += 1
                torn_saves += any(folder.glob(".checkpoint.*"))
            if path := find_checkpoint(folder):
                assert load_state(path).step in (2, 4, 6)
        launch(train_together, 2, folder, SHARED)
        assert names_in(folder) == {"checkpoint", "log.jsonl", "tokenizer.json"}
        found = load_state(folder / "checkpoint")
        assert_bitwise_equal(found.tensors, straight.tensors)
        assert found.settings == straight.settings
        assert without_seconds(read_log(folder / "log.jsonl")) == without_seconds(records)
    assert kills == 6
    assert torn_saves >= 1


KILLED = """
import os, runpy, signal, sys
name = sys.argv.pop(1)

def look(event, arguments):
    if event == "os.rename" and os.path.basename(arguments[1]) == name:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(look)
runpy.run_module("minids", run_name="__main__", alter_sys=True)
"""


def test_the_command_line_killed_while_it_writes_its_results_writes_them_when_it_is_resumed(tmp_path):
    """Each time the file is complete, but has not yet got its name."""
    (tmp_path / "text.txt").write_text("".join(f"Line {i} of a small text.\n" for i in range(200)))
    (tmp_path / "small.json").write_text(json.dumps(small_config().to_hf()))
    run, options = tmp_path / "run", ["--config", tmp_path / "small.json", "--data", tmp_path / "text.txt", *SMALL]
    command = ["train", *options, "--steps", 3, "--save-every", 2, "--resume", "--out", run]
    for name in ("report.json", "dashboard.png"):
        ended = subprocess.run([sys.executable, "-c", KILLED, name, *map(str, command)], capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        (left,) = names_in(run) - FILES
        assert left.startswith(f".{name}.")
    trained = result(run)
    again = minids(*command)
    assert again.exit_code == 0, again.output
    assert names_in(run) == FILES
    assert_bitwise_equal(result(run)[0], trained[0])
    assert result(run)[1] == trained[1]
