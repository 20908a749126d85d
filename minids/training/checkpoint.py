"""Exact resume: the complete training state in one safetensors file. (Of several processes: sharded.py.)

The next step depends on the weights, the gates' biases, the optimizer's moments and counter, and the
number of steps done. It depends on nothing else: batches are a function of the step, there is no dropout,
and the loads are zero between steps. So a resumed run is bitwise equal to an uninterrupted one, on
the same machine with the same number of threads.

The file gets its name only when it is complete. It holds a SHA-256 digest of its content, so that a flipped
bit is noticed when the run is resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minids.files import atomic_path, read_json, remove_folder
from minids.model.deepseek import DeepSeek
from minids.tensors import open_tensors, write_tensors
from minids.training.optimizer import moments_of

FILE, SHARDED = "checkpoint.safetensors", "checkpoint"  # of one process, and of several (sharded.py)
ADVICE = "restore it, or train again in another folder"


@dataclass(frozen=True)
class Checkpoint:
    """A training state: steps done, the run's settings (plain JSON), the digest of its log, and all tensors by name."""

    step: int
    settings: dict
    log_sha256: str
    tensors: dict[str, Tensor]

    def restore(self, model: DeepSeek, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load the weights, and with an optimizer its moments, in place; ValueError for what `check` refuses."""
        self.check(model, optimizer)
        with torch.no_grad():
            for name, tensor in _weights(model).items():
                tensor.copy_(self.tensors[f"model.{name}"])
        if optimizer is not None:
            for name, parameter in model.named_parameters():
                optimizer.state[parameter] = {
                    key: self.tensors[f"optimizer.{name}.{key}"].to(parameter.device, copy=True)
                    for key in moments_of(optimizer, parameter)
                }

    def check(self, model: DeepSeek, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Raise ValueError if a tensor is missing, extra or of another shape. The model may be on the meta device."""
        expected = state_of(_weights(model), [] if optimizer is None else model.named_parameters(), optimizer)
        # Generating text needs no optimizer, so its tensors are ignored.
        passed_over = () if optimizer is not None else ("optimizer.",)
        found = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(passed_over)}
        if unmatched := sorted(expected.keys() ^ found.keys()):
            name = unmatched[0]
            raise ValueError(f"the checkpoint {'lacks' if name in expected else 'has an unknown'} tensor {name}.")
        for name, tensor in expected.items():
            if found[name].shape != tensor.shape:
                raise ValueError(
                    f"{name} has shape {tuple(found[name].shape)} in the checkpoint: "
                    f"the model has {tuple(tensor.shape)}."
                )


def save_checkpoint(
    path: Path, model: DeepSeek, optimizer: torch.optim.Optimizer, *, step: int, settings: dict, log_sha256: str = ""
) -> None:
    """Write the whole training state to `path`, atomically. `settings` is stored as JSON."""
    tensors = state_of(_weights(model), model.named_parameters(), optimizer)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"step": str(step), "settings": json.dumps(settings), "log_sha256": log_sha256}
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, metadata | {"sha256": _digest(tensors, metadata)})


def find_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint in the folder of a run; the later one, if a process was killed while it replaced the other
    kind."""
    found = [path for path in (folder / FILE, folder / SHARDED) if path.exists()]
    return found[0] if len(found) == 1 else max(found, key=_steps_of, default=None)


def _steps_of(path: Path) -> int:
    try:
        return read_head(path)["step"]
    except ValueError:
        return -1


def remove_other_kind(path: Path) -> None:
    """Remove the checkpoint of the kind that `path` is not: after `path` was written, it is an earlier one."""
    if path.name == SHARDED:
        (path.parent / FILE).unlink(missing_ok=True)
    else:
        remove_folder(path.parent / SHARDED)


def read_head(path: Path) -> dict:
    """Return the `step` and the `settings` of a checkpoint without reading its tensors; ValueError if that fails."""
    try:
        if path.name == SHARDED:
            head = read_json(path / "state.json")
            return {"step": int(head["step"]), "settings": dict(head["settings"])}
        with open_tensors(path, "there is no checkpoint to read") as file:
            head = file.metadata()
        return {"step": int(head["step"]), "settings": json.loads(head["settings"])}
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"{path} is not a complete checkpoint of a run: {ADVICE}.") from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint of one process; ValueError, one sentence, if there is none or it is damaged."""
    try:
        opened = open_tensors(path, "there is no checkpoint to read")
    except ValueError as error:
        raise ValueError(f"{str(error).removesuffix('.')}; {ADVICE}.") from None
    with opened as file:
        metadata = file.metadata() or {}
        if "sha256" not in metadata:
            raise ValueError(f"{path} is not the checkpoint of a run: `minids train` writes one.")
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except SafetensorError as error:  # a dtype that torch does not know
            raise ValueError(f"{path} is damaged: {error}; {ADVICE}.") from None
    if metadata.pop("sha256") != _digest(tensors, metadata):
        raise ValueError(f"{path} is damaged: its content does not match its digest; {ADVICE}.")
    try:
        step, settings, log_sha256 = int(metadata["step"]), json.loads(metadata["settings"]), metadata["log_sha256"]
        if step < 0 or not isinstance(settings, dict):
            raise ValueError
    except (LookupError, ValueError, RecursionError):
        raise ValueError(f"{path} is not the checkpoint of a run: `minids train` writes one.") from None
    return Checkpoint(step, settings, log_sha256, tensors)


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Return the SHA-256 of the metadata, and of the name, dtype, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _weights(model: DeepSeek) -> dict[str, Tensor]:
    """Parameters and the gates' biases by name; shared weights once."""
    biases = {name: tensor for name, tensor in model.named_buffers() if name.endswith("expert_bias")}
    return dict(model.named_parameters()) | biases


def state_of(
    weights: dict[str, Tensor], updated: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer | None
) -> dict[str, Tensor]:
    """Return the tensors of a training state by name: weights, and the moments of those parameters that are updated
    here; zeros for one that has had no gradient yet."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in weights.items()}
    for name, parameter in updated:
        moments = moments_of(optimizer, parameter)
        tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
    return tensors
