"""The training state of several processes: a folder in which each writes its part (torch's distributed checkpoint).

    checkpoint/
        shard-00001-….safetensors     what rank 0 holds: its parts of weights and moments, and where in the whole they
        shard-00002-….safetensors     belong. What several ranks hold is written by one of them
        …
        state.json                    steps done, settings, the digests of the log and of these files

Because a file says where its numbers belong, a run that was saved by 4 processes can be resumed by 2, or by one: each
reads from all files what it needs (*resharding*).

The folder gets its name when it is complete and every file is on the disk; until then it is a hidden one beside it
(files.py). So whenever a process is killed, also while it saves, `checkpoint` is the old state or the new one (or,
between two renames, put back when the run goes on).

The files are safetensors: torch's own format would hold pickled objects, which can run code when they are read.
(torch.distributed.checkpoint is imported where it is used, because a single process rarely needs it.)
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from minids.files import atomic_folder, read_json, write_atomically
from minids.parallel.launch import first_does, from_all
from minids.training.checkpoint import ADVICE, SHARDED, Checkpoint, load_checkpoint

STATE = "state.json"


def save_sharded(path: Path, tensors: dict[str, Tensor], *, step: int, settings: dict, log_sha256: str) -> None:
    """Write the state into the folder `path`, atomically. All processes call this, each with the tensors it holds.

    What counts is rank 0's `log_sha256`. The folder must be on a disk that all processes see.
    """
    import torch.distributed.checkpoint as dcp

    first = dist.get_rank() == 0
    with atomic_folder(path, overwrite=True) if first else nullcontext() as temporary:
        place = Path(first_does(lambda: str(temporary)))
        with _quiet(), _told(path):
            dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(place), save_distributed=True))
        names = sorted(file.name for file in place.glob("*.safetensors"))
        digests = {name: _digest(place / name) for name in names[dist.get_rank() :: dist.get_world_size()]}
        files = {name: digest for part in from_all(digests) for name, digest in part.items()}
        if first:
            state = {"step": step, "settings": settings, "log_sha256": log_sha256, "files": files}
            write_atomically(place / STATE, json.dumps(state, indent=2) + "\n")
    dist.barrier()  # the folder has its name now


def read_state(path: Path, alone: bool = False) -> dict:
    """Return the content of a folder's state.json, after each process has compared some of the files with it.

    All processes call this, or one that reads `alone` and compares all files. Raises ValueError, the same on all
    processes, if the folder is no complete checkpoint, or damaged.
    """
    alone = alone or not dist.is_initialized()
    try:
        state = read_json(path / STATE)
        files, names = state["files"], sorted(state["files"])
        there = sorted(file.name for file in path.glob("*.safetensors"))
        mine = names if alone else names[dist.get_rank() :: dist.get_world_size()]
        damaged = [name for name in mine if name in there and files[name] != _digest(path / name)]
        damaged += [name for name in names if name not in there] + [name for name in there if name not in names]
        if not (isinstance(state["step"], int) and isinstance(state["settings"], dict)):
            damaged.append(STATE)
    except (ValueError, LookupError, TypeError, AttributeError):
        state, damaged = {}, [STATE]
    if not alone:
        damaged = [name for names in from_all(damaged) for name in names]
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged[0]} is not what was written; {ADVICE}.")
    return state


def load_sharded(path: Path, tensors: dict[str, Tensor], alone: bool = False) -> None:
    """Read the tensors from a checkpoint, of either kind, in place: of each, the part that this process holds.

    All processes call this, or one that reads `alone`. Raises ValueError, the same on all processes, for a tensor that
    the checkpoint lacks or has in another shape; others in it are left out.
    """
    import torch.distributed.checkpoint as dcp

    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="minids-") as folder:  # torch reads all files of a folder
            (Path(folder) / path.name).symlink_to(path.resolve())
            load_sharded(Path(folder), tensors, alone)
        return
    reader, alone = dcp.HuggingFaceStorageReader(str(path)), alone or not dist.is_initialized()
    wrong = _unmatched(reader.read_metadata().state_dict_metadata, tensors)
    wrong = wrong if alone else next(filter(None, from_all(wrong)), None)
    if wrong:
        raise ValueError(wrong)
    with _quiet(), _told(path):
        dcp.load(tensors, storage_reader=reader, no_dist=alone)


def _unmatched(stored: dict, tensors: dict[str, Tensor]) -> str | None:
    """Return what is wrong with the first tensor that the checkpoint lacks or has in another shape."""
    for name, tensor in tensors.items():
        if name not in stored:
            return f"the checkpoint lacks tensor {name}."
        if stored[name].size != tensor.shape:
            found, wanted = tuple(stored[name].size), tuple(tensor.shape)
            return f"{name} has shape {found} in the checkpoint: the model has {wanted}."
    return None


def load_state(path: Path) -> Checkpoint:
    """Return a training state as a single process has it, also one that several have written. Any process may call it.

    Raises ValueError, one sentence, if there is none or it is damaged.
    """
    if path.name != SHARDED:
        return load_checkpoint(path)
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    state = read_state(path, alone=True)
    stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in stored.items()}
    load_sharded(path, tensors, alone=True)
    return Checkpoint(state["step"], state["settings"], state["log_sha256"], tensors)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise the error of a process as OSError on all of them; torch's own is no Exception, and pages long."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as failed:
        rank, (error, _) = min(failed.failures.items())
        number = error.errno if isinstance(error, OSError) else None
        raise OSError(number, f"{getattr(error, 'strerror', None) or error} (process {rank})", str(path)) from None


def _quiet() -> warnings.catch_warnings:
    """Let torch not warn that a single process loads, and of its own deprecated calls."""
    return warnings.catch_warnings(action="ignore")
