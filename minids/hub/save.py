"""Saving a model in the released layout, which `load_pretrained` and transformers can read.

The folder is written under a temporary name and renamed when it is complete (files.py). Only an earlier export is ever
replaced, and only on request.
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from minids.files import atomic_folder, remove_leftovers
from minids.hub.card import CARD, is_card, model_card
from minids.hub.names import FLOATS, INDEX, SCALE, SINGLE, copied_names, is_fp8_matrix, released_tensors
from minids.model.config import ModelConfig
from minids.model.config_json import read_config
from minids.model.deepseek import DeepSeek
from minids.quantization.fp8 import block_size, quantization_config, quantize, require_tile
from minids.tensors import write_tensors
from minids.text.backend import END_OF_TEXT
from minids.text.tokenizer import Tokenizer
from minids.validation import quoted, require

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# A folder that contains any other file is not an export. (macOS adds .DS_Store to folders.)
OUR_FILES = re.compile(
    r"(tokenizer_)?config\.json|tokenizer\.json|report\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|README\.md|\.DS_Store"
)


def save_pretrained(
    model: DeepSeek,
    path: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    report: dict | None = None,
    dtype: torch.dtype | None = None,
    weight_block_size: tuple[int, int] | None = None,
    power_of_two_scales: bool = False,
    mtp_copies: bool = True,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Save the model to a folder in the released layout, from which `load_pretrained` loads it.

    The weights are saved in `dtype`, by default their own; the gates' biases stay float32. With torch.float8_e4m3fn
    they are saved as V3's: the matrices of attention and feed-forward layers in FP8 with a scale for each block of
    `weight_block_size`, by default 128 x 128, each expert's on their own; embedding, head, gates, norms and the
    projections of MTP modules in bfloat16. `power_of_two_scales` is V3.1's choice.

    Blocks at the edges may be smaller, as in V3's own files, but transformers (5.23) derives the size of a block from
    the shapes: it reads a matrix of 192 columns and 2 scales in blocks of 96, and refuses one of 576 rows and 5 scales.
    So choose blocks for which `transformers_reads` if it must read the files. It needs `accelerate` to read FP8.

    As in DeepSeek's releases, the MTP modules include copies of embedding and head, unless `mtp_copies` is False.
    Weights of more than `max_shard_bytes` are divided into several files. `report` is saved as report.json. README.md
    is a model card (card.py): the sizes, and with `report` the training and the scores. With `tokenizer`, config.json
    names its end-of-text token as the token at which texts begin and end.

    The folder must be new or empty. With `overwrite` it may also be an earlier export, which is replaced when the new
    one is complete. Its tokenizer is kept unless a new one is given; its report and card are not, because they describe
    other weights. Raises ValueError if the folder holds anything else, such as a README.md that minids did not write,
    for a report of another form, and for settings of FP8 without FP8; OSError, for example if the disk is full. The
    folder is then unchanged.
    """
    folder = Path(path)
    remove_leftovers(folder.resolve())
    dtype = dtype or model.embed_tokens.weight.dtype
    form = _Form(dtype, weight_block_size, power_of_two_scales)
    _require_target(folder, overwrite)
    if tokenizer is not None:
        tokenizer.require_fit(model.config.vocab_size)
    config = replace(model.config, **_text_ids(folder, tokenizer, model.config))
    pieces = released_tensors(model)
    if mtp_copies:
        pieces |= {copy: pieces[original] for copy, original in copied_names(config).items()}
    with atomic_folder(folder, overwrite) as temporary:
        _write_weights(temporary, pieces, form, max_shard_bytes)
        _write_json(temporary / "config.json", config.to_hf() | form.entries())
        if tokenizer is not None:
            (temporary / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
            _write_json(temporary / "tokenizer_config.json", _tokenizer_config(config))
        for name in () if tokenizer is not None else TOKENIZER_FILES:
            if (folder / name).exists():
                shutil.copyfile(folder / name, temporary / name)
        if report is not None:
            _write_json(temporary / "report.json", report)
        card = model_card(
            config, folder.resolve().name, str(dtype).removeprefix("torch."), report,
            tokenizer=(temporary / "tokenizer.json").exists(), transformers=_for_transformers(model, form),
        )  # fmt: skip
        (temporary / CARD).write_text(card, encoding="utf-8")


def transformers_reads(model: DeepSeek, block: int) -> bool:
    """Return whether transformers (5.23) reads FP8 files of the model in blocks of block x block as they are meant.

    It takes the rows of a matrix, divided by its rows of scales, for the height of a block, and so the columns. So no
    matrix may end with a smaller block, unless it is the only one.
    """
    sides = {side for name, piece in released_tensors(model).items() if is_fp8_matrix(name) for side in piece.shape}
    return all(side <= block or side % block == 0 for side in sides)


def _require_target(folder: Path, overwrite: bool) -> None:
    """Raise ValueError unless the folder is new or empty, or an earlier export that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give the name of a folder.")
    if folder.resolve().is_mount():  # a mount point cannot be renamed
        raise ValueError(f"{folder} is a mount point: give the name of a folder in it.")
    if folder.resolve() == Path.cwd():  # the working directory would be replaced
        raise ValueError(f"{folder} is the working directory: give the name of a folder in it.")
    files = sorted(folder.iterdir()) if folder.exists() else []
    if not files:
        return
    strangers = [file.name for file in files if not _is_ours(file)]
    if strangers:
        stranger = quoted(strangers[0])
        raise ValueError(f"{folder} holds {stranger}, which is not part of a saved model: choose another folder.")
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds no config.json, so it is not a saved model: choose another folder.")
    try:
        ModelConfig.from_hf(folder)
    except ValueError as error:
        raise ValueError(f"{folder} is no saved model: choose another folder. ({error})") from None
    if not overwrite:
        raise ValueError(f"{folder} holds a saved model: choose another folder, or pass overwrite=True (--overwrite).")


def _is_ours(file: Path) -> bool:
    """Return whether a file can be part of an export. Anybody's notes can be called README.md, so it is looked into."""
    return bool(OUR_FILES.fullmatch(file.name)) and file.is_file() and (file.name != CARD or is_card(file))


def _text_ids(folder: Path, tokenizer: Tokenizer | None, c: ModelConfig) -> dict:
    """Return the token ids that make config.json agree with the tokenizer, the given one or the earlier export's."""
    names = ("bos_token_id", "eos_token_id")
    if tokenizer is not None:
        end = tokenizer.end_of_text
        return {"bos_token_id": end, "eos_token_id": c.eos_token_id if end in c.end_of_text_ids else end}
    if (folder / "tokenizer.json").exists():
        entries = read_config(folder)
        if entries.get("vocab_size") != c.vocab_size:
            raise ValueError(f"{folder} has a tokenizer for another vocabulary: give the one of this model.")
        entries = {name: value for name, value in entries.items() if name in names}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()}
    return {}


def _tokenizer_config(c: ModelConfig) -> dict:
    """What transformers' AutoTokenizer needs beyond tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,  # the default of transformers 4, but not of 5
        "model_max_length": c.max_position_embeddings,
    }


@dataclass(frozen=True)
class _Form:
    """How the weights are stored. Raises ValueError for what weights cannot be stored in."""

    dtype: torch.dtype
    weight_block_size: tuple[int, int] | None
    power_of_two_scales: bool

    def __post_init__(self):
        allowed = [*FLOATS.values(), torch.float8_e4m3fn]
        require("dtype", self.dtype, self.dtype in allowed, ", ".join(map(str, allowed)))
        for name, default in (("weight_block_size", None), ("power_of_two_scales", False)):
            value = getattr(self, name)
            require(name, value, self.is_fp8 or value is default, f"{default} unless dtype is torch.float8_e4m3fn")
        require_tile("weight_block_size", self.weight_block_size)

    @property
    def block(self) -> tuple[int, int]:
        return block_size(None) if self.weight_block_size is None else self.weight_block_size

    @property
    def is_fp8(self) -> bool:
        return self.dtype == torch.float8_e4m3fn

    @property
    def of_the_rest(self) -> torch.dtype:
        return torch.bfloat16 if self.is_fp8 else self.dtype

    def entries(self) -> dict:
        """The entries of config.json."""
        named = {"torch_dtype": str(self.of_the_rest).removeprefix("torch.")}
        if self.is_fp8:
            named["quantization_config"] = quantization_config(self.block, self.power_of_two_scales)
        return named

    def tensors(self, name: str, piece: Tensor) -> dict[str, Tensor]:
        """Return the tensors that the files hold for one tensor of the model, in memory of their own."""
        if self.is_fp8 and is_fp8_matrix(name):
            quantized = quantize(piece.detach(), self.block, power_of_two_scales=self.power_of_two_scales)
            return {name: quantized.values, name + SCALE: quantized.scales}
        dtype = torch.float32 if name.endswith("e_score_correction_bias") else self.of_the_rest
        return {name: piece.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)}


def _for_transformers(model: DeepSeek, form: _Form) -> bool:
    """Return whether transformers computes what the model does from the saved files."""
    height, width = form.block
    reads_blocks = not form.is_fp8 or (height == width and transformers_reads(model, height))
    return model.config.to_hf()["model_type"] != "minids" and reads_blocks


def _write_weights(folder: Path, pieces: dict[str, Tensor], form: _Form, max_shard_bytes: int) -> None:
    sizes = {name: _bytes(form.tensors(name, piece.to("meta"))) for name, piece in pieces.items()}
    shards, places = _shards(sizes, max_shard_bytes), {}
    for file, names in shards.items():
        # Copies, because safetensors does not save tensors that share memory. They are freed after each file.
        tensors = {key: tensor for name in names for key, tensor in form.tensors(name, pieces[name]).items()}
        write_tensors(folder / file, tensors, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _shards(sizes: dict[str, int], max_bytes: int) -> dict[str, list[str]]:
    """Return the tensors of each file, in order. A new file begins when the next tensor does not fit."""
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


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
