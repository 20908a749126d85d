"""What is asked of `generate`, read and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minids.cost.cache import kv_cache_bytes
from minids.device import total_memory
from minids.model.deepseek import DeepSeek
from minids.units import GIB
from minids.validation import is_number, require, require_whole

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def read_request(
    model: DeepSeek,
    prompt_tokens: Sequence[int] | Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Tensor:
    """Return the prompt on the model's device, (T,) or (B, T), int64.

    Raises ValueError, one sentence, for what is no such prompt, an unknown token, a setting out of range, and more
    tokens than the memory can cache.
    """
    weight, vocabulary = model.embed_tokens.weight, model.config.vocab_size
    prompt = _read_tokens(prompt_tokens).to(weight.device)
    if prompt.ndim not in (1, 2) or prompt.numel() == 0:
        raise ValueError(f"the prompt has shape {tuple(prompt.shape)}: give at least one token, (T,) or (B, T).")
    unknown = prompt[(prompt < 0) | (prompt >= vocabulary)]
    if len(unknown):
        raise ValueError(f"the prompt has token {unknown[0].item()}: tokens are 0 to {vocabulary - 1}.")
    require_whole("max_new_tokens", max_new_tokens)
    rows = prompt.numel() // prompt.shape[-1]
    needed = rows * (prompt.shape[-1] + max_new_tokens) * kv_cache_bytes(model.config, weight.element_size())
    there = total_memory(weight.device)
    allowed = f"fewer, because their cache must fit into the {there / GIB:,.0f} GiB of memory"
    require("max_new_tokens", max_new_tokens, needed <= there, allowed)
    require("temperature", temperature, is_number(temperature) and temperature >= 0, "0 (greedy) or more, and finite")
    if top_k is not None:
        require_whole("top_k", top_k, at_most=vocabulary)
    require_whole("seed", seed, at_least=0)
    return prompt


def _read_tokens(prompt_tokens: Sequence[int] | Tensor) -> Tensor:
    try:
        tokens = torch.as_tensor(prompt_tokens)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # torch has one for each kind of what is no array
        tokens = None
    if tokens is None or (tokens.numel() > 0 and tokens.dtype not in WHOLE):
        raise ValueError("the prompt is not possible: it must be whole numbers, (T,), or rows of equal length, (B, T).")
    return tokens.long()
