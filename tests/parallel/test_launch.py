"""Processes that work together give their results, and end together, whatever ends them."""

import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import helpers_parallel as workers
import pytest
import torch
import torch.distributed as dist

from minids.parallel.launch import RankFailed, launch, name_of_attempt


def test_results_come_in_the_order_of_the_ranks():
    numbers = torch.arange(6.0).view(3, 2)
    results = launch(workers.add_up, 3, numbers)
    assert [rank for rank, _ in results] == [0, 1, 2]
    assert all(torch.equal(total, numbers.sum(dim=0)) for _, total in results)


FAILURES = [("this", "rank 1: ValueError: this is wrong"), ("killed", "rank 1 died (signal 9)."),
            ("killed while it sends its result", "rank 1 died (signal 9)."),
            ("exits", "rank 1 died (exit status 3).")]  # fmt: skip


@pytest.mark.parametrize(("how", "message"), FAILURES)
def test_a_rank_that_fails_ends_all_and_is_named(how, message):
    began = time.monotonic()
    with pytest.raises(RankFailed) as error:
        launch(workers.fail, 3, 1, how)
    assert str(error.value) == message
    assert time.monotonic() - began < 30  # the others would have waited for 120 s
    assert ("in fail" in "".join(getattr(error.value, "__notes__", []))) == (how == "this")


@pytest.mark.parametrize(("who", "ranks"), [((0, 1), "ranks 0, 1"), ((1,), "rank 1")])
def test_ranks_that_wait_for_one_another_are_ended(who, ranks):
    with pytest.raises(RankFailed, match=f"^{ranks} had not come to an end after 3 s\\.$"):
        launch(workers.wait_for_another, 2, who, timeout=3)


def test_no_process_survives_the_one_that_started_it_and_no_print_is_lost(tmp_path):
    """The script has no `if __name__ == "__main__"`, and is not imported by its processes."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nimport helpers_parallel as workers\nfrom minids.parallel.launch import launch\n"
        f"launch(workers.say, 2)\nlaunch(workers.write_pid, 2, Path({str(tmp_path)!r}))\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": ""}
    parent = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        files = [tmp_path / "0", tmp_path / "1"]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        pids = [int(file.read_text()) for file in files]
        assert all(map(alive, pids))
    finally:
        parent.kill()
    assert sorted(parent.communicate(timeout=60)[0].splitlines()) == ["rank 0 says this", "rank 1 says this"]
    wait_until(lambda: not any(map(alive, pids)))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") if os.path.exists("/proc") else open(os.devnull) as file:
        return " Z " not in file.read()  # nobody may have collected its exit status yet


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_function_of_a_script_or_notebook_is_refused(monkeypatch):
    def mine(rank): ...

    mine.__module__, mine.__qualname__ = "__main__", "mine"
    monkeypatch.setattr(sys.modules["__main__"], "mine", mine, raising=False)
    with pytest.raises(ValueError, match="put them into a module"):
        launch(mine, 2)


@pytest.mark.parametrize(("name", "value"), [("timeout", 0), ("timeout", None), ("timeout", math.inf), ("ranks", 0)])
def test_an_impossible_time_or_number_of_ranks_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value} is not possible: it must be "):
        launch(workers.add_up, **{"ranks": 2, name: value})


@pytest.mark.parametrize(("number", "known"), [(7, 7), (-1, "-1 is negative")])
def test_what_the_first_rank_does_all_know_also_if_it_is_refused(number, known):
    assert launch(workers.what_the_first_does, 3, number) == [(1, known), (0, known), (0, known)]


@pytest.mark.parametrize("came", [(0, 1, 2), (1, 2), (0, 2), (0,), (1,)])
def test_processes_that_start_together_agree_on_a_name_that_earlier_ones_did_not_have(came):
    """Of the earlier ones, those that `came` asked or answered, and left that in the store. Some start late."""
    store = dist.HashStore()

    def start_one(rank: int) -> str:
        time.sleep(rank / 10)
        return name_of_attempt(store, rank, 3)

    def start(ranks, seconds: float) -> set:
        store.set_timeout(timedelta(seconds=seconds))
        with ThreadPoolExecutor(3) as threads:
            waiting = [threads.submit(start_one, rank) for rank in ranks]
        return {thread.exception() or thread.result() for thread in waiting}

    earlier = start(came, 0.3)
    names = [start(range(3), 20), start(range(3), 20)]
    assert [len(found) for found in names] == [1, 1]
    assert len(earlier.union(*names)) == len(earlier) + 2
    assert all(isinstance(name, str) for name in set.union(*names))
