"""A small saved model, and functions that look at a folder or damage it."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers_training import small_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from minids.quantization.fp8 import Quantized, dequantize, scale_shape

# Layer 0 is dense, layer 1 has 8 experts, layer 2 is the MTP module.
SMALL = small_config(vocab_size=300)
EXPERT = "model.layers.1.mlp.experts.5.gate_proj.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
COPIES = ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor in the folder; each is in one file only."""
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    tensors = {name: tensor for file in files for name, tensor in file.items()}
    assert len(tensors) == sum(map(len, files))
    return tensors


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names, and under each the same dtype and the same numbers."""
    assert ours.keys() == theirs.keys()
    different = [n for n in ours if ours[n].dtype != theirs[n].dtype or not torch.equal(ours[n], theirs[n])]
    assert not different


def contents(folder: Path) -> dict[str, bytes | None]:
    """Whatever is below the folder, hidden or not."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def held_open(folder: Path) -> list[str]:
    """What this process has open or mapped below the folder, where /proc says so."""
    if not Path("/proc/self/maps").exists():
        return []
    opened = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in opened + mapped if str(folder.resolve()) in line]


def refusal(act: Callable, folder: Path, **options) -> str:
    """The one sentence that answers a fault. It draws no random number and leaves everything as it was."""
    random_state, before = torch.get_rng_state(), contents(folder.parent)
    with pytest.raises(ValueError, match=r"^[^\n]+[^.\n]\.$") as error:
        act(folder, **options)
    message = str(error.value)
    del error  # its traceback still holds the open files
    assert not held_open(folder)
    assert ". " not in message
    assert torch.equal(torch.get_rng_state(), random_state)
    assert contents(folder.parent) == before
    return message


SCALE = EXPERT + "_scale_inv"


def quantize_folder(folder: Path, block: tuple[int, int], layers: str) -> dict:
    """Store matrices in FP8 with any scales; return by name what they then stand for."""
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if re.fullmatch(layers, name)]:
        values, scale = tensors[name].to(torch.float8_e4m3fn), torch.rand(scale_shape(tensors[name].shape, block))
        tensors |= {name: values, f"{name}_scale_inv": scale}
        meant[name] = dequantize(Quantized(values, scale, block))
    save_file(tensors, folder / "model.safetensors")
    entry = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    change_json(folder / "config.json", quantization_config=entry)
    return meant
