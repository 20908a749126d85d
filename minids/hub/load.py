"""Loading a model from a folder in the released layout.

A file may be damaged, a tensor may be missing, and the configuration may describe another model. Loading must then fail
with a clear message, and never give a wrong model. So the names (names.py), shapes, dtypes and scales of FP8 matrices
are compared with the configuration before any weight is read. The values must be finite.
"""

import re
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minids.cost.parameters import count_parameters
from minids.device import total_memory
from minids.files import read_json
from minids.hub.names import (
    EMBEDDING,
    FLOATS,
    INDEX,
    SCALE,
    SINGLE,
    copied_names,
    mtp_layers,
    released_tensors,
    require_float,
)  # fmt: skip
from minids.model.config import ModelConfig
from minids.model.config_json import read_config
from minids.model.deepseek import DeepSeek
from minids.quantization.fp8 import Quantized, block_size, dequantize, scale_shape
from minids.tensors import open_tensors
from minids.units import GIB, short
from minids.validation import quoted

FP8, POWERS = "F8_E4M3", "F8_E8M0"  # safetensors' names
FILE_NAME = re.compile(r"[\w .+-]{1,200}\.safetensors")


def load_pretrained(path: str | Path, *, dtype: torch.dtype = torch.float32, mtp: bool = True) -> DeepSeek:
    """Return the model in a folder of the released layout, on the CPU and in evaluation mode.

    float32 represents every stored dtype exactly (for FP8, value times scale up to float32's rounding); the gates'
    biases are always float32. `mtp=False` leaves out the MTP modules. They are also left out, with a warning, if the
    files do not contain them: transformers drops them when it saves, but keeps their number in the configuration.
    Raises ValueError, one sentence, if the configuration is not supported, a file is missing or damaged, a tensor is
    missing, unexpected, not finite or of another shape than configured, or the model is larger than the memory.
    """
    folder = Path(path)
    require_float(dtype)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that holds config.json and the weights.")
    is_run = (folder / "checkpoint.safetensors").exists() or (folder / "checkpoint").exists()
    if is_run and not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a run: `minids export` makes a folder of the released layout from it.")
    entries = read_config(folder)
    config = ModelConfig.from_hf(entries)
    block = block_size(entries.get("quantization_config"))
    with ExitStack() as files:  # closes the files also after an exception
        stored = _open(folder, files.enter_context)
        modules = tuple(mtp_layers(config))
        dropped = mtp and bool(modules) and not any(name.startswith(modules) for name in stored)
        mtp = mtp and not dropped
        if not mtp:
            config = replace(config, num_nextn_predict_layers=0)
        # Only a layer with eh_proj is an MTP module that can be left out; other layers beyond the last are an error.
        left_out = tuple(layer for layer in modules if not mtp and f"{layer}eh_proj.weight" in stored)
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(left_out)}
        _require_size(config, dtype, stored)
        with torch.device("meta"):
            model = DeepSeek(config).to(dtype)
        _check(stored, model, block)
        if dropped:
            warnings.warn(f"{folder} holds nothing of the MTP modules: the model is loaded without.", stacklevel=2)
        model.to_empty(device="cpu")
        if config.tie_word_embeddings:  # to_empty unties them
            model.lm_head.weight = model.embed_tokens.weight
        for name, piece in released_tensors(model).items():
            piece.copy_(_read(stored, name, block))
            if not piece.isfinite().all():  # in the requested dtype: float16's largest value is 65,504
                raise ValueError(f"{name} in {stored[name].file} is NaN or infinite in places: it must be finite.")
        for copy, original in _accepted_copies(config).items():
            if copy in stored and not torch.equal(_read(stored, copy, block), _read(stored, original, block)):
                raise ValueError(f"{copy} in {stored[copy].file} must equal {original}, which it copies.")
    for gate in model.gates:  # to_empty left the counts undefined
        gate.load.zero_()
    return model.eval()


def _accepted_copies(c: ModelConfig) -> dict[str, str]:
    """The tensors that may be stored twice: MTP's copies, and a head that shares the embedding's weights."""
    return copied_names(c) | ({"lm_head.weight": EMBEDDING} if c.tie_word_embeddings else {})


@dataclass(frozen=True)
class _Stored:
    """A tensor in an open file."""

    file: Path
    handle: safe_open
    dtype: str
    shape: tuple[int, ...]


def _open(folder: Path, enter: Callable) -> dict[str, _Stored]:
    """Open every file of weights and return its tensors by name, without reading the values."""
    places = {} if (folder / SINGLE).exists() else _read_index(folder)
    stored: dict[str, _Stored] = {}
    for file in sorted(set(places.values())) or [SINGLE]:
        handle = enter(open_tensors(folder / file, missing="the index names it"))
        for name in handle.keys():  # noqa: SIM118, not a mapping
            if name in stored:
                raise ValueError(f"{quoted(name)} is stored twice: in {stored[name].file.name} and in {file}.")
            piece = handle.get_slice(name)
            stored[name] = _Stored(folder / file, handle, piece.get_dtype(), tuple(piece.get_shape()))
    for name, file in places.items():
        if name not in stored or stored[name].file.name != file:
            raise ValueError(f"{quoted(name)} is not in {folder / file}, although the index says so.")
    return stored


def _read_index(folder: Path) -> dict[str, str]:
    """Return the file of each tensor. Only file names are allowed, because a path could lead out of the folder."""
    if not (folder / INDEX).exists():
        raise ValueError(f"{folder} has no weights: {SINGLE} or {INDEX} is needed.")
    places = read_json(folder / INDEX).get("weight_map")
    files = places.values() if isinstance(places, dict) else ()
    if not files or not all(FILE_NAME.fullmatch(str(file)) for file in files):
        raise ValueError(f"{folder / INDEX} has no weight_map: it must name a file of this folder for each tensor.")
    return places


def _require_size(config: ModelConfig, dtype: torch.dtype, stored: dict[str, _Stored]) -> None:
    """Raise ValueError if the files are too small, even at one bit per number, or the memory is."""
    count = count_parameters(config)
    numbers, there = count.total + count.mtp, total_memory(torch.device("cpu"))
    in_files = sum(file.stat().st_size for file in {tensor.file for tensor in stored.values()})
    if numbers > 8 * in_files:
        raise ValueError(f"the weights have {in_files:,} bytes: the configuration requires {short(numbers)} numbers.")
    if numbers * dtype.itemsize > there:
        needed = numbers * dtype.itemsize / GIB
        raise ValueError(f"loading this model takes {needed:,.0f} GiB of memory: this machine has {there / GIB:,.0f}.")


def _check(stored: dict[str, _Stored], model: DeepSeek, block: tuple[int, int]) -> None:
    """Raise ValueError, one sentence, unless the files hold exactly the tensors of this model."""
    copies = _accepted_copies(model.config)
    shapes = {name: tuple(piece.shape) for name, piece in released_tensors(model).items()}
    shapes |= {copy: shapes[original] for copy, original in copies.items()}
    for name, shape in list(shapes.items()):
        if name in stored and stored[name].dtype == FP8 and len(shape) == 2:
            shapes[name + SCALE] = scale_shape(shape, block)
    for name in shapes:
        if name not in stored and name not in copies:
            asks = "its FP8 weight" if name.endswith(SCALE) else "the configuration"
            raise ValueError(f"{name} is missing from the weights: {asks} requires it.")
    for name, tensor in stored.items():
        if name.endswith("rotary_emb.inv_freq"):  # in old files; computed from the configuration
            continue
        if name not in shapes:
            raise ValueError(f"{quoted(name)} in {tensor.file} is not a tensor of the configured model.")
        if tensor.shape != shapes[name]:
            asks = f"weight_block_size {list(block)}" if name.endswith(SCALE) else "the configuration"
            raise ValueError(
                f"{name} has shape {list(tensor.shape)} in {tensor.file}: {asks} requires {list(shapes[name])}."
            )
        is_scale = name.endswith(SCALE)  # powers of two hold scales and no weights, although torch calls them floats
        special = POWERS if is_scale else FP8
        if tensor.dtype not in FLOATS and not (tensor.dtype == special and (is_scale or name + SCALE in shapes)):
            allowed = f"{', '.join(FLOATS)}, or {special}{'' if is_scale else ' if it is a matrix'}"
            raise ValueError(f"{name} is stored as {tensor.dtype} in {tensor.file}: it must be {allowed}.")


def _read(stored: dict[str, _Stored], name: str, block: tuple[int, int]) -> Tensor:
    """Return a stored tensor in its own dtype, or in float32 if it is FP8."""
    tensor = stored[name].handle.get_tensor(name)
    if stored[name].dtype == FP8:
        return dequantize(Quantized(tensor, stored[name + SCALE].handle.get_tensor(name + SCALE), block))
    return tensor
