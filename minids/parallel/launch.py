"""Start processes that work together, and end them together.

`launch(function, ranks, ...)` runs the function in one process per rank, joined in a process group of
`torch.distributed`, and returns what each of them returned. A failing rank would leave the others waiting for its
messages. So when one raises or dies, all are killed, and the error names the first; when the parent dies, the processes
notice it and end.

Processes are forked from a *fork server*, which has imported torch and this library once: a start takes about 0.1 s
instead of several. It keeps the environment variables and the library as they were when the first `launch` started it.
Processes import `function` by its name, never the script or notebook that calls, so it must be in a module.
"""

import multiprocessing as mp
import os
import pickle
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from minids.validation import is_number, require, require_whole

PRELOADED = ["minids.parallel.execute"]  # by the fork server, with all that it imports
GRACE = 0.3  # seconds in which further failures are collected, to find the first


class RankFailed(RuntimeError):
    """A rank raised an error or died, or none came to an end. All processes have been ended."""


def launch(function: Callable, ranks: int, *args: Any, timeout: float = 120.0, backend: str = "gloo") -> list[Any]:
    """Return the results of `function(rank, *args)` in `ranks` processes, in the order of the ranks.

    Arguments and results are pickled. Each process computes with one thread. Raises RankFailed with the rank and its
    error, or if not all have returned after `timeout` seconds, and ValueError for functions of a script or notebook.
    """
    require_whole("ranks", ranks)
    a_day = 86_400
    require("timeout", timeout, is_number(timeout) and 0 < timeout <= a_day, f"seconds above 0, and at most {a_day}")
    call = _pickled((function, args))
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="minids-") as folder:
        processes, pipes = [], []
        try:
            with main_module_hidden():
                for rank in range(ranks):
                    receiver, sender = context.Pipe(duplex=False)
                    parts = (call, rank, ranks, folder, timeout, backend, sender)
                    process = context.Process(target=_work, args=parts, name=f"rank {rank}", daemon=True)
                    process.start()
                    sender.close()
                    processes.append(process)
                    pipes.append(receiver)
            return _collect(processes, pipes, timeout)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _pickled(call: tuple) -> bytes:
    """Return the function and its arguments as bytes, without shared memory; functions are in there by their names."""
    try:
        with main_module_hidden():
            return pickle.dumps(call)
    except (pickle.PicklingError, AttributeError) as error:
        raise ValueError(
            f"{error}: other processes import functions and classes by name, so put them into a module."
        ) from None


def _collect(processes: list, pipes: list[Connection], timeout: float) -> list[Any]:
    """Return the results of all ranks, or raise RankFailed."""
    results: dict[int, Any] = {}
    failures: dict[int, tuple[float, str, str]] = {}
    deadline = time.monotonic() + timeout
    while len(results) + len(failures) < len(pipes) and time.monotonic() < deadline:
        pending = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results | failures}
        for pipe in wait(list(pending), max(0.0, deadline - time.monotonic())):
            rank = pending[pipe]
            try:
                kind, value = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):  # it died, and what others report follows from that
                processes[rank].join(timeout=5)
                kind, value = "failure", (0.0, f"rank {rank} died ({_how(processes[rank].exitcode)}).", "")
            if kind == "result":
                results[rank] = value
                continue
            if not failures:  # the others fail, too, when its connections break; the first failure is the reason
                deadline = min(deadline, time.monotonic() + GRACE)
            failures[rank] = value
    if failures:
        _, message, trace = min(failures.values())
        error = RankFailed(message)
        if trace:
            error.add_note(trace)
        raise error
    if len(results) < len(pipes):
        late = [str(rank) for rank in range(len(pipes)) if rank not in results]
        ranks = f"rank{'s' * (len(late) > 1)} {', '.join(late)}"
        raise RankFailed(f"{ranks} had not come to an end after {timeout:g} s.")
    return [results[rank] for rank in range(len(pipes))]


def _how(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"


def _work(call: bytes, rank: int, ranks: int, folder: str, timeout: float, backend: str, pipe: Connection) -> None:
    """Run the function in the process group, and send its result or its error."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(Path(folder) / "store"), ranks)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout + 60)
        )
        function, args = pickle.loads(call)
        result = pickle.dumps(("result", function(rank, *args)))
        _flush_prints()
        pipe.send_bytes(result)
        dist.barrier()  # a rank that leaves early closes connections that others still read
    except BaseException as error:
        message = f"rank {rank}: {type(error).__name__}: {error}"
        failure = pickle.dumps(("failure", (time.monotonic(), message, traceback.format_exc())))
        _flush_prints()
        pipe.send_bytes(failure)
    pipe.close()
    os._exit(0)  # without destroying the group, which would wait for the others


def _flush_prints() -> None:
    """Print what waits to be printed: the process is killed as soon as the parent has all results."""
    sys.stdout.flush()
    sys.stderr.flush()


def torchrun_store() -> dist.Store:
    """Return the store of the torchrun that started this process. It outlives restarts of the processes."""
    return next(dist.rendezvous("env://"))[0]


def join_torchrun(device: torch.device, store: dist.Store) -> None:
    """Join the process group of the processes that `torchrun` started.

    After a failure torchrun starts all processes again, and its store still has the addresses of the earlier ones
    (pytorch#135712). So each attempt writes under a name of its own.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store.set_timeout(timedelta(minutes=5))  # torchrun starts all at about the same time
    store = dist.PrefixStore(name_of_attempt(store, rank, ranks), store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)


def name_of_attempt(store: dist.Store, rank: int, ranks: int) -> str:
    """Return a name that all processes which were started together get, and none that was started earlier.

    The number of restarts is no such name: each machine's torchrun counts its own failures only (pytorch#108158). So
    the processes ask rank 0. Because the store may still hold what an earlier process asked, rank 0 answers everyone
    who asks until all others have its answer. Raises TimeoutError if they do not come within the store's timeout.
    """
    me, seconds = uuid.uuid4().hex, store.timeout.total_seconds()
    late = TimeoutError(f"other processes did not come within {seconds:g} s: look at their output")
    if rank > 0:
        store.set(f"{rank} asks", me)
        try:
            name = store.get(f"answer to {me}").decode()
        except dist.DistStoreError:
            raise late from None
        store.add(name, 1)
        return name
    end = time.monotonic() + seconds
    while store.add(me, 0) < ranks - 1:
        for other in range(1, ranks):
            if store.check([f"{other} asks"]):
                store.set(f"answer to {store.get(f'{other} asks').decode()}", me)
        if time.monotonic() > end:
            raise late
        time.sleep(0.02)
    return me


def lost_another(error: BaseException) -> bool:
    """Whether the error says that another process of the group has ended."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def under_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_with_torchrun() -> None:
    """End this process soon after torchrun has ended, even if that was killed."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent has ended, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def first_does(work: Callable[[], Any]) -> Any:
    """Let rank 0 alone do the work, and return its result on all ranks. Its ValueError is raised on all."""
    found: list = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = work()
        except ValueError as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]


def from_all(value: Any) -> list[Any]:
    """Return the values of all ranks, on all ranks."""
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that happens."""
    wait([mp.parent_process().sentinel])
    os._exit(1)


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Let new processes not import the caller's script, which would run it again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
