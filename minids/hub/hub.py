"""The released checkpoint layout, in and out: a folder that DeepSeek's tools, transformers and this library share.

    config.json                        the architecture (hf_config.py)
    model.safetensors                  all weights, or
    model-00001-of-00163.safetensors   ... several files, and
    model.safetensors.index.json       which tensor is in which of them
    tokenizer.json                     the tokenizer

Inside, three things are unlike the model in memory:

- **Experts stand alone**: `mlp.experts.7.gate_proj.weight` and so on, where `Experts` stacks them all
  and puts gate above up.
- **MTP modules are layers**: module k is `model.layers.{l+k-1}`, and stores the embedding and the head
  once more. In a file the copies must equal the originals; they may also be absent.
- **Matrices may be FP8**: DeepSeek-V3 is released so, each block of 128 x 128 with one float32 scale in
  a second tensor, `….weight_scale_inv`. They are read as value times scale; `weight_block_size` in
  config.json gives the block.

`released_tensors` is the whole dictionary between the two sides: the released name of every tensor, and
beside it the piece of the model's own memory that it is. Saving writes the pieces, loading fills them.
The tables in each module's docstring say the same in words.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minids.files import atomic_folder
from minids.model.config import ModelConfig
from minids.model.config_json import read_json
from minids.model.deepseek import DeepSeek
from minids.text.tokenizer import END_OF_TEXT, Tokenizer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
FP8 = "F8_E4M3"
SCALE = "_scale_inv"
EMBEDDING = "model.embed_tokens.weight"
# What saving may replace is an earlier export; a folder with anything else in it is somebody's. Finder's are nobody's.
OUR_FILES = re.compile(
    r"(tokenizer_)?config\.json|tokenizer\.json|report\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|\.DS_Store"
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # saving keeps them, unless it writes them anew


def released_tensors(model: DeepSeek) -> dict[str, Tensor]:
    """Return the model's weights by their released names. Each is a view: what is copied in is in the model."""
    c, named = model.config, {}
    for name, tensor in model.state_dict().items():
        name = _released_name(name.replace("_orig_mod.", ""), c)  # torch.compile puts that in
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        stem, _, stacked = name.rpartition(".")
        if stacked == "gate_up_proj":
            for i, both in enumerate(tensor):
                named[f"{stem}.{i}.gate_proj.weight"], named[f"{stem}.{i}.up_proj.weight"] = both.chunk(2)
        elif stacked == "down_proj":
            named |= {f"{stem}.{i}.down_proj.weight": one for i, one in enumerate(tensor)}
        else:
            named[name] = tensor
    return named


def _released_name(name: str, c: ModelConfig) -> str:
    if mtp := re.fullmatch(r"mtp\.(\d+)\.(.*)", name):
        part = "shared_head.norm.weight" if mtp[2] == "norm.weight" else mtp[2].removeprefix("block.")
        name = f"layers.{c.num_hidden_layers + int(mtp[1])}.{part}"
    name = name.replace("gate.expert_bias", "gate.e_score_correction_bias")
    return name if name.startswith("lm_head.") else f"model.{name}"


def _copies(c: ModelConfig) -> dict[str, str]:
    """What the MTP modules store once more: the name of each copy, and the name of its original."""
    head = EMBEDDING if c.tie_word_embeddings else "lm_head.weight"
    copies = {}
    for layer in _mtp_layers(c):
        copies |= {f"{layer}embed_tokens.weight": EMBEDDING, f"{layer}shared_head.head.weight": head}
    return copies


def _accepted_copies(c: ModelConfig) -> dict[str, str]:
    """What a file may hold a second time: those, and a head that shares the embedding's weights."""
    return _copies(c) | ({"lm_head.weight": EMBEDDING} if c.tie_word_embeddings else {})


def _mtp_layers(c: ModelConfig) -> list[str]:
    """What the released names of each MTP module begin with."""
    return [f"model.layers.{c.num_hidden_layers + k}." for k in range(c.num_nextn_predict_layers)]


def _require_float(dtype: torch.dtype) -> None:
    if dtype not in FLOATS.values():
        raise ValueError(f"dtype={dtype} is not possible: it must be {', '.join(map(str, FLOATS.values()))}.")


# ---------------------------------------------------------------------------------------------------
# In


def load_pretrained(path: str | Path, *, dtype: torch.dtype = torch.float32, mtp: bool = True) -> DeepSeek:
    """Return the model in a folder of the released layout, on the CPU and in evaluation mode.

    float32 holds every stored dtype without loss (an FP8 value times its scale to float32's
    precision); the gates' biases are float32 in any case. `mtp=False` leaves the MTP modules out: needed
    for what transformers saved, which drops them. Raises ValueError, one sentence, if the configuration cannot be
    represented, if a file is missing or torn, or if a tensor is missing, extra, or of another shape than
    the configuration says. Then there is no model, rather than half of one.
    """
    folder = Path(path)
    _require_float(dtype)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that holds config.json and the weights.")
    if (folder / "checkpoint.safetensors").exists() and not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a run: `minids export` makes a folder of the released layout from it.")
    config = ModelConfig.from_hf(folder)
    mtp_layers = _mtp_layers(config)
    if not mtp:
        config = replace(config, num_nextn_predict_layers=0)
    block = _weight_block(folder)
    with torch.device("meta"):
        model = DeepSeek(config).to(dtype)
    with ExitStack() as files:  # closes them also if something raises
        stored = _open(folder, files.enter_context)
        # What is no MTP module stays, and is then one tensor too many.
        left_out = tuple(layer for layer in mtp_layers if not mtp and f"{layer}eh_proj.weight" in stored)
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(left_out)}
        _check(stored, model, block)
        model.to_empty(device="cpu")
        if config.tie_word_embeddings:  # to_empty makes two of the one
            model.lm_head.weight = model.embed_tokens.weight
        for name, piece in released_tensors(model).items():
            piece.copy_(_read(stored, name, block))
        for copy, original in _accepted_copies(config).items():
            if copy in stored and not _equal(_read(stored, copy, block), _read(stored, original, block)):
                raise ValueError(f"{copy} in {stored[copy].file} must equal {original}, which it copies.")
    for gate in model.gates:  # to_empty left the counts undefined
        gate.load.zero_()
    return model.eval()


@dataclass(frozen=True)
class _Stored:
    """A tensor in an open file."""

    file: Path
    handle: safe_open
    dtype: str
    shape: tuple[int, ...]


def _open(folder: Path, enter: Callable) -> dict[str, _Stored]:
    """Open every file of weights, and return what is in them by name, without reading the values."""
    places = {} if (folder / SINGLE).exists() else _read_index(folder)
    stored: dict[str, _Stored] = {}
    for file in sorted(set(places.values())) or [SINGLE]:
        try:  # safetensors says of any file that it cannot open that it does not exist
            (folder / file).open("rb").close()
        except FileNotFoundError:
            raise ValueError(f"{folder / file} does not exist: the index names it.") from None
        except OSError as error:
            raise ValueError(f"{folder / file} cannot be read: {error.strerror}.") from None
        try:
            handle = enter(safe_open(folder / file, framework="pt"))
            names = handle.keys()
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / file} is not a whole safetensors file: {error}.") from None
        for name in names:
            if name in stored:
                raise ValueError(f"{name} is stored twice: in {stored[name].file.name} and in {file}.")
            piece = handle.get_slice(name)
            stored[name] = _Stored(folder / file, handle, piece.get_dtype(), tuple(piece.get_shape()))
    for name, file in places.items():
        if name not in stored or stored[name].file.name != file:
            raise ValueError(f"{name} is not in {folder / file}, where the index has it.")
    return stored


def _read_index(folder: Path) -> dict[str, str]:
    """Return the file of each tensor."""
    if not (folder / INDEX).exists():
        raise ValueError(f"{folder} has no weights: {SINGLE} or {INDEX} is needed.")
    places = read_json(folder / INDEX).get("weight_map")
    if (
        not places
        or not isinstance(places, dict)
        or not all(re.fullmatch(r"[^/\\]+\.safetensors", str(f)) for f in places.values())
    ):
        raise ValueError(f"{folder / INDEX} has no weight_map: it must name a file of this folder for each tensor.")
    return places


def _weight_block(folder: Path) -> tuple[int, int]:
    """Return the rows and columns of an FP8 block."""
    entry = read_json(folder).get("quantization_config") or {}
    is_fp8 = isinstance(entry, dict) and (entry.get("quant_method"), entry.get("fmt", "e4m3")) == ("fp8", "e4m3")
    if entry and not is_fp8:
        raise ValueError(
            f"quantization_config {json.dumps(entry)} is not supported: it must be fp8 in e4m3, or absent."
        )
    block = entry.get("weight_block_size", [128, 128])
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)):
        raise ValueError(f"weight_block_size={block!r} is not possible: it must be two whole numbers.")
    return tuple(block)


def _check(stored: dict[str, _Stored], model: DeepSeek, block: tuple[int, int]) -> None:
    """Raise ValueError, one sentence, unless the files hold exactly this model's tensors."""
    config, copies = model.config, _accepted_copies(model.config)
    shapes = {name: tuple(piece.shape) for name, piece in released_tensors(model).items()}
    shapes |= {copy: shapes[original] for copy, original in copies.items()}
    for name, shape in list(shapes.items()):
        if name in stored and stored[name].dtype == FP8 and len(shape) == 2:
            shapes[name + SCALE] = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
    for name in shapes:
        if name not in stored and name not in copies:
            asks = "its FP8 weight" if name.endswith(SCALE) else "the configuration"
            module = next((layer for layer in _mtp_layers(config) if name.startswith(layer)), None)
            dropped = module is not None and not any(name.startswith(module) for name in stored)
            hint = "; to load the model without its MTP modules, pass mtp=False" if dropped else ""
            raise ValueError(f"{name} is missing from the weights: {asks} asks for it{hint}.")
    for name, tensor in stored.items():
        if name.endswith("rotary_emb.inv_freq"):  # in old files; it follows from the configuration
            continue
        if name not in shapes:
            raise ValueError(f"{name} in {tensor.file} is a tensor that the configuration does not ask for.")
        if tensor.shape != shapes[name]:
            asks = f"weight_block_size {list(block)}" if name.endswith(SCALE) else "the configuration"
            raise ValueError(
                f"{name} has shape {list(tensor.shape)} in {tensor.file}: {asks} asks for {list(shapes[name])}."
            )
        if tensor.dtype not in FLOATS and not (tensor.dtype == FP8 and name + SCALE in shapes):
            allowed = f"{', '.join(FLOATS)}, or {FP8} if it is a matrix"
            raise ValueError(f"{name} is stored as {tensor.dtype} in {tensor.file}: it must be {allowed}.")


def _read(stored: dict[str, _Stored], name: str, block: tuple[int, int]) -> Tensor:
    tensor = stored[name].handle.get_tensor(name)
    if stored[name].dtype == FP8:
        return dequantize_blocks(tensor, stored[name + SCALE].handle.get_tensor(name + SCALE), block)
    return tensor


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN being one; the dtypes may differ."""
    return torch.equal(a, b) or torch.allclose(a.float(), b.float(), rtol=0, atol=0, equal_nan=True)


def dequantize_blocks(values: Tensor, scale_inv: Tensor, block: tuple[int, int] = (128, 128)) -> Tensor:
    """Return values times the scale of their block, in float32. The blocks at the edges may be cut off.

    Quantising multiplied by 448 / amax of the block; stored is the inverse, amax / 448 (V3 report §3.3).
    """
    rows, columns = values.shape
    scale = scale_inv.float().repeat_interleave(block[0], dim=0)[:rows]
    return values.float() * scale.repeat_interleave(block[1], dim=1)[:, :columns]


# ---------------------------------------------------------------------------------------------------
# Out


def save_pretrained(
    model: DeepSeek,
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    report: dict | None = None,
    dtype: torch.dtype | None = None,
    mtp_copies: bool = True,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write the model to a folder in the released layout, from which `load_pretrained` gives it back.

    The weights keep their dtype unless `dtype` names another, the gates' biases stay float32. As released,
    the MTP modules bring copies of embedding and head, unless `mtp_copies` is False. Above `max_shard_bytes` the
    weights are cut into several files. `report` is JSON about the training, put beside. With `tokenizer`,
    config.json names its end of text as the token that texts begin and end with.

    The folder appears when all is written, and only then replaces an earlier one. Of that one the tokenizer stays,
    unless given anew; its report goes, because it describes other weights. Raises ValueError if the folder of that
    name holds anything else than a model.
    """
    folder = Path(path)
    dtype = dtype or model.embed_tokens.weight.dtype
    _require_float(dtype)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens: the model knows {model.config.vocab_size}.")
    config = replace(model.config, **_text_ids(folder, tokenizer))
    entries = config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    with atomic_folder(folder, lambda: _require_free(folder)) as temporary:
        _write_weights(temporary, model, dtype, mtp_copies, max_shard_bytes)
        _write_json(temporary / "config.json", entries)
        if tokenizer is not None:
            (temporary / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
            _write_json(temporary / "tokenizer_config.json", _tokenizer_config(model.config))
        if report is not None:
            _write_json(temporary / "report.json", report)
        for name in TOKENIZER_FILES:
            if (folder / name).exists() and not (temporary / name).exists():
                shutil.copyfile(folder / name, temporary / name)


def _write_weights(folder: Path, model: DeepSeek, dtype: torch.dtype, mtp_copies: bool, max_shard_bytes: int) -> None:
    pieces = released_tensors(model)
    if mtp_copies:
        pieces |= {copy: pieces[original] for copy, original in _copies(model.config).items()}
    dtypes = {name: torch.float32 if name.endswith("e_score_correction_bias") else dtype for name in pieces}
    sizes = {name: piece.numel() * dtypes[name].itemsize for name, piece in pieces.items()}
    shards = _cut(sizes, max_shard_bytes)
    for file, names in shards.items():
        # Clones: safetensors takes no two tensors of the same memory. No name for them: one file's at a time.
        save_file({name: _clone(pieces[name], dtypes[name]) for name in names}, folder / file, {"format": "pt"})
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})


def _text_ids(folder: Path, tokenizer: Tokenizer | None) -> dict[str, int]:
    """What config.json must say so that it agrees with the tokenizer: the one given, or the one that stays."""
    names = ("bos_token_id", "eos_token_id")
    if tokenizer is not None:
        return dict.fromkeys(names, tokenizer.end_of_text)
    if (folder / "tokenizer.json").exists() and (folder / "config.json").exists():
        return {name: value for name, value in read_json(folder).items() if name in names}
    return {}


def _clone(piece: Tensor, dtype: torch.dtype) -> Tensor:
    return piece.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _require_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give the name of a folder.")
    if folder.resolve() == Path.cwd():  # it would be replaced under our feet
        raise ValueError(f"{folder} is the working directory: give the name of a folder in it.")
    if folder.resolve().is_mount():  # nothing can be renamed across its border
        raise ValueError(f"{folder} is a mount point: give the name of a folder in it.")
    strangers = sorted(p.name for p in folder.iterdir() if not OUR_FILES.fullmatch(p.name)) if folder.exists() else []
    if strangers:
        raise ValueError(f"{folder} holds {strangers[0]}, which is no part of a saved model: choose another folder.")


def _cut(sizes: dict[str, int], max_bytes: int) -> dict[str, list[str]]:
    """Return which tensors go into which file: in order, a new file whenever the next one would not fit."""
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, start=1)}


def _tokenizer_config(c: ModelConfig) -> dict:
    """What transformers' AutoTokenizer wants to know beyond tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,  # transformers 4 would; 5 does not
        "model_max_length": c.max_position_embeddings,
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
