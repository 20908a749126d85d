"""`minids train` under torchrun: it is killed and restarted, ends with torchrun, and refuses what does not fit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import typer
from helpers_cli import SMALL, minids
from helpers_training import assert_bitwise_equal, small_config, small_train_config, without_seconds

from minids.cli.errors import stop
from minids.cli.processes import BEGUN, Group, processes_of
from minids.parallel.layout import Layout
from minids.training.log import Log, read_log
from minids.training.sharded import load_state


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "text.txt").write_text("".join(f"Line {i} of a small text.\n" for i in range(200)))
    (tmp_path / "small.json").write_text(json.dumps(small_config().to_hf()))
    return tmp_path


@pytest.fixture
def torchrun(folder) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a run of two processes, and ends those that are still there after the test."""
    started = []

    def start(*arguments) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, arguments)]
        config = ["--config", folder / "small.json", "--data", folder / "text.txt", *SMALL, "--save-every", 4]
        with (folder / "output").open("a") as output:
            started.append(subprocess.Popen([*command, *map(str, config)], stdout=output, stderr=output))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(what, seconds: float = 90):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise TimeoutError


def children_of(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_process_is_started_again_and_none_outlives_torchrun(folder, torchrun):
    train = ["-m", "minids", "train", "--steps", 30, "--ep", 2]
    straight = torchrun(*train, "--out", folder / "straight")
    machines = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--local-addr", "localhost"]
    machines += ["--rdzv-endpoint", f"localhost:{free_port()}", "--max-restarts", 1]
    killed = [torchrun(*machines, *train, "--out", folder / "killed") for _ in range(2)]
    orphaned = torchrun(*train, "--steps", 100_000, "--out", folder / "orphaned")
    wait_for(lambda: (folder / "killed" / "checkpoint").exists())
    os.kill(children_of(killed[1])[0], signal.SIGKILL)
    wait_for(lambda: (folder / "orphaned" / "checkpoint").exists())
    workers = children_of(orphaned)
    assert len(workers) == 2
    orphaned.kill()
    wait_for(lambda: not any(map(is_running, workers)), seconds=30)
    orphaned.wait()
    assert [process.wait(120) for process in (straight, *killed)] == [0, 0, 0], (folder / "output").read_text()
    output = (folder / "output").read_text()
    assert "resuming from step" in output
    assert "minids: another process has ended, so this one does, too." in output
    assert "gloo" not in output  # and nothing of torch's about broken connections
    ends = [load_state(folder / name / "checkpoint") for name in ("straight", "killed")]
    assert_bitwise_equal(ends[1].tensors, ends[0].tensors)
    logs = [without_seconds(read_log(folder / name / "log.jsonl")) for name in ("straight", "killed")]
    assert logs[1] == logs[0]
    reports = [json.loads((folder / name / "report.json").read_text()) for name in ("straight", "killed")]
    assert reports[1]["bits_per_byte"] == reports[0]["bits_per_byte"]
    assert output.count("processes, at last                             2 (pp=1, dp=2, ep=2") == 2
    refused = torchrun("--max-restarts", 1, *train, "--steps", 31, "--out", folder / "straight")
    assert refused.wait(60) != 0  # also when it is tried again: this torchrun has not begun that run
    assert (folder / "output").read_text().count("straight already holds a run: resume it (--resume)") == 2
    exported = minids("export", folder / "killed", folder / "exported")  # like the run of one process
    assert exported.exit_code == 0, exported.output


def test_without_torchrun_there_is_one_process(folder):
    result = minids("train", "--pp", 2, "--out", folder / "run")
    assert result.exit_code == 2
    sentence = "it must be a divisor of 1, because there is one process (torchrun starts several)."
    assert result.output == f"minids: --pp 2 is not possible: {sentence}\n"
    assert not (folder / "run").exists()


@pytest.fixture
def as_rank(monkeypatch) -> Callable[..., dist.Store]:
    """Makes this process one that torchrun started, and returns torchrun's store."""
    store = dist.HashStore()
    monkeypatch.setattr("minids.parallel.launch.torchrun_store", lambda: store)
    for name in ("join_torchrun", "end_with_torchrun"):
        monkeypatch.setattr(f"minids.parallel.launch.{name}", lambda *_: None)

    def become(rank: int, ranks: int = 2, on_machine: int = 2) -> dist.Store:
        numbers = dict(RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK=rank % on_machine, LOCAL_WORLD_SIZE=on_machine)
        for name, value in (numbers | dict(TORCHELASTIC_RUN_ID="one")).items():
            monkeypatch.setenv(name, str(value))
        return store

    return become


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_has_lost_another_ends_with_code_1_and_only_the_first_prints_more(rank, as_rank, capsys):
    """Its line begins below the first one's progress bar."""
    as_rank(rank)

    def lose_another():
        flags = dict(dp=None, ep=1, pp=1, schedule=None)
        with processes_of(flags, small_config(), small_train_config(), torch.device("cpu")) as group:
            print(group.layout)
            raise RuntimeError("gloo: connection closed")

    with pytest.raises(typer.Exit) as ended:
        lose_another()
    assert ended.value.exit_code == 1
    out, err = capsys.readouterr()
    assert out == ("pp=1, dp=2, ep=1\n" if rank == 0 else "")
    assert err.startswith("\nminids: another process has ended" if rank else "minids: another process has ended")


@pytest.mark.parametrize(("rank", "code", "told"), [(0, 2, True), (1, 2, False), (1, 1, True), (2, 2, True)])
def test_a_mistake_of_all_is_told_once_on_each_machine_and_an_own_error_by_each_process(
    rank, code, told, as_rank, capsys
):
    as_rank(rank, ranks=4)
    with pytest.raises(typer.Exit):
        stop("no", code)
    assert capsys.readouterr().err == "minids: no\n" * told


def test_a_run_that_was_refused_is_not_noted_as_begun(folder, as_rank):
    """Otherwise torchrun's next attempt would go on with a run that is somebody else's."""
    store = as_rank(0, ranks=1, on_machine=1)
    arguments = ("train", "--config", folder / "small.json", "--data", folder / "text.txt", *SMALL, "--steps", 1)
    with Log(folder / "log.jsonl"):  # another process trains there
        refused = minids(*arguments, "--out", folder)
    assert (refused.exit_code, store.check([BEGUN])) == (2, False), refused.output
    assert "is in use by another training" in refused.output
    assert minids(*arguments, "--out", folder / "run").exit_code == 0
    assert store.check([BEGUN])


def test_the_others_wait_until_the_first_has_done_its_last_work():
    store = dist.HashStore()
    first, other = (Group(torch.device("cpu"), Layout(2), is_first, store) for is_first in (True, False))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(other.wait_for_first)
        time.sleep(0.3)
        assert not waiting.done()
        first.wait_for_first()
        assert waiting.result(timeout=20) is None
