"""The released layout: the names of its files and tensors.

DeepSeek's tools, transformers and this library read the same kind of folder:

    config.json                        the architecture (config_json.py)
    model.safetensors                  all weights, or
    model-00001-of-00163.safetensors   … several files, and
    model.safetensors.index.json       the file of each tensor
    tokenizer.json                     the tokenizer

The files differ from the model in memory in three ways:

- **Each expert has separate matrices**: `mlp.experts.7.gate_proj.weight` and so on. `Experts` stacks those of all
  experts, with gate above up.
- **MTP modules are layers**: module k is `model.layers.{l+k-1}`, and stores copies of the embedding and the head. The
  copies must equal the originals; they may be absent.
- **Matrices may be in FP8**, with their scales in a second tensor, `….weight_scale_inv` (quantization/fp8.py).

`released_tensors` maps the released name of every tensor to a view of the model's memory. Saving writes the views,
loading fills them. The docstrings of the model's files have the same names in tables.
"""

import re

import torch
from torch import Tensor

from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.validation import require

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
SCALE = "_scale_inv"  # follows the name of a matrix in FP8
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # safetensors' names


def released_tensors(model: DeepSeek) -> dict[str, Tensor]:
    """Return the model's weights by released name. Each is a view, so copying into it changes the model."""
    c, named = model.config, {}
    for name, tensor in model.state_dict().items():
        name = released_name(name.replace("_orig_mod.", ""), c)  # a prefix of torch.compile
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


def released_name(name: str, c: ModelConfig) -> str:
    """Return the released name of a parameter or buffer. Stacked experts keep the last part of their name."""
    if mtp := re.fullmatch(r"mtp\.(\d+)\.(.*)", name):
        part = "shared_head.norm.weight" if mtp[2] == "norm.weight" else mtp[2].removeprefix("block.")
        name = f"layers.{c.num_hidden_layers + int(mtp[1])}.{part}"
    name = name.replace("gate.expert_bias", "gate.e_score_correction_bias")
    return name if name.startswith("lm_head.") else f"model.{name}"


def mtp_layers(c: ModelConfig) -> list[str]:
    """Return the prefix of each MTP module's released names."""
    return [f"model.layers.{c.num_hidden_layers + k}." for k in range(c.num_nextn_predict_layers)]


def copied_names(c: ModelConfig) -> dict[str, str]:
    """Return the names of the copies that MTP modules store, each with the name of its original."""
    head = EMBEDDING if c.tie_word_embeddings else "lm_head.weight"
    copies = {}
    for layer in mtp_layers(c):
        copies |= {f"{layer}embed_tokens.weight": EMBEDDING, f"{layer}shared_head.head.weight": head}
    return copies


def is_fp8_matrix(name: str) -> bool:
    """Return whether a tensor of this released name is in FP8 in V3: all matrices but those that it keeps in BF16."""
    kept = ("embed_tokens", "lm_head", "shared_head.head", ".gate", "eh_proj", "norm")
    return name.endswith(".weight") and not name.removesuffix(".weight").endswith(kept)


def require_float(dtype: torch.dtype) -> None:
    """Raise ValueError unless weights can be stored in this dtype."""
    require("dtype", dtype, dtype in FLOATS.values(), ", ".join(map(str, FLOATS.values())))
