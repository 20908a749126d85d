"""Stopping and going on as if nothing had happened: the exact training state in one safetensors file.

What the next step depends on: the weights, the gates' biases, AdamW's two moments and its counter,
and the number of steps done. Nothing else: batches are a function of the step, there is no dropout,
and the loads are zero between steps. So a resumed run is bitwise the run that was never stopped, on
the same machine with the same number of threads.

safetensors holds tensors and a table of strings, no pickled code, so opening a checkpoint cannot
run anything. The file appears under its name only when it is complete.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minids.files import atomic_path
from minids.model.deepseek import DeepSeek


@dataclass(frozen=True)
class Checkpoint:
    """A training state: steps done, the run's settings (plain JSON), and all tensors by name."""

    step: int
    settings: dict
    tensors: dict[str, Tensor]

    def restore(self, model: DeepSeek, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load the weights, and with an optimizer its moments, in place.

        Raises ValueError, before anything is changed, if a tensor is missing, extra or of another shape.
        """
        targets = _weights(model)
        parts = {"model": targets}
        if optimizer is not None:
            parts["optimizer"] = _moments(model)
        expected = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        # To generate text, no optimizer is needed, and its tensors are passed over.
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
        with torch.no_grad():
            for name, tensor in targets.items():
                tensor.copy_(found[f"model.{name}"])
        if optimizer is not None:
            for name, parameter in model.named_parameters():
                optimizer.state[parameter] = {
                    key: found[f"optimizer.{name}.{key}"].to(parameter.device, copy=True)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }


def save_checkpoint(
    path: Path, model: DeepSeek, optimizer: torch.optim.Optimizer, *, step: int, settings: dict
) -> None:
    """Write the whole training state to `path`, atomically. `settings` is kept as JSON and given back."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in _weights(model).items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in _moments(model, optimizer).items()}
    metadata = {"step": str(step), "settings": json.dumps(settings)}
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; ValueError, one sentence, if there is none or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        return Checkpoint(int(metadata["step"]), json.loads(metadata["settings"]), tensors)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: there is no checkpoint to read.") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}.") from None


def _weights(model: DeepSeek) -> dict[str, Tensor]:
    """Parameters and the gates' biases by name; shared weights once."""
    biases = {name: tensor for name, tensor in model.named_buffers() if name.endswith("expert_bias")}
    return dict(model.named_parameters()) | biases


def _moments(model: DeepSeek, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """AdamW's state by name; zeros for a parameter that has had no gradient yet, or without an optimizer for all."""
    moments = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter) if optimizer is not None else None
        if not state:
            zeros = torch.zeros_like(parameter)
            state = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        moments |= {f"{name}.{key}": value for key, value in state.items()}
    return moments
