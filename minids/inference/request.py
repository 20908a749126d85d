"""Checks of `generate`'s arguments, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minids.cost.cache import kv_cache_bytes
from minids.device import total_memory
from minids.model.deepseek import DeepSeek
from minids.units import GIB
from minids.validation import is_number, require, require_whole


def read_request(
    model: DeepSeek,
    prompt_tokens: Sequence[int] | Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    end_of_text: int | Sequence[int] | None,
    speculative: bool,
) -> tuple[Tensor, Tensor]:
    """Return the prompt, (T,) or (B, T), and the ids that end a text, (any,), as int64 on the model's device.

    Raises ValueError, one sentence, for an invalid prompt, an unknown token, a setting out of range, a KV cache
    larger than the memory, and speculation without MTP modules.
    """
    c = model.config
    require("speculative", speculative, isinstance(speculative, bool), "True or False")
    without = "False, because the model has no MTP modules that could draft"
    require("speculative", speculative, not speculative or c.num_nextn_predict_layers > 0, without)
    weight, vocabulary = model.embed_tokens.weight, c.vocab_size
    prompt = _read_tokens("the prompt", prompt_tokens, vocabulary).to(weight.device)
    if prompt.ndim not in (1, 2) or prompt.numel() == 0:
        raise ValueError(f"the prompt has shape {tuple(prompt.shape)}: give at least one token, (T,) or (B, T).")
    ends = _read_tokens("end_of_text", [] if end_of_text is None else end_of_text, vocabulary).to(weight.device)
    require_whole("max_new_tokens", max_new_tokens)
    rows = prompt.numel() // prompt.shape[-1]
    per_token, positions = kv_cache_bytes(c, weight.element_size()), prompt.shape[-1] + max_new_tokens
    if speculative:  # every module has a cache, too, and the hidden states that the first one reads are kept
        per_token *= 1 + c.num_nextn_predict_layers / c.num_hidden_layers
        per_token += c.hidden_size * weight.element_size()
        positions += c.num_nextn_predict_layers
    needed = rows * positions * per_token
    there = total_memory(weight.device)
    allowed = f"fewer, because their cache must fit into the {there / GIB:,.0f} GiB of memory"
    require("max_new_tokens", max_new_tokens, needed <= there, allowed)
    require("temperature", temperature, is_number(temperature) and temperature >= 0, "0 (greedy) or more, and finite")
    if top_k is not None:
        require_whole("top_k", top_k, at_most=vocabulary)
    require_whole("seed", seed, at_least=0)
    return prompt, ends.flatten()


def _read_tokens(name: str, given: Sequence[int] | Tensor, vocabulary: int) -> Tensor:
    try:
        tokens = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # torch raises any of these for invalid arrays
        tokens = torch.tensor(math.nan)
    if tokens.numel() > 0 and (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool):
        raise ValueError(f"{name} is not possible: it must be whole numbers, with rows of equal length.")
    tokens = tokens.long()
    unknown = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(unknown):
        raise ValueError(f"{name} has token {unknown[0].item()}: tokens are 0 to {vocabulary - 1}.")
    return tokens
