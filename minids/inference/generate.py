"""Writing text: the prompt fills the KV cache at once (*prefill*), then one token follows another (*decoding*).

Prefill runs the whole prompt through the model and leaves a latent per token in the cache. Every decoding step then
runs one token through, and (with MLA) attends to the cached latents in absorbed form.

Greedy decoding (temperature 0) takes the most likely token. Sampling divides the logits by the
temperature first: below 1 it sharpens the distribution, above 1 it flattens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minids.model.deepseek import DeepSeek
from minids.validation import is_number, require, require_whole


@dataclass(frozen=True)
class Generation:
    """`tokens` holds prompt and continuation, of the prompt's rank; `prompt_length` says where it begins."""

    tokens: Tensor
    prompt_length: int

    @property
    def new_tokens(self) -> Tensor:
        return self.tokens[..., self.prompt_length :]


@torch.no_grad()
def generate(
    model: DeepSeek,
    prompt_tokens: Sequence[int] | Tensor,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    end_of_text: int | None = None,
) -> Generation:
    """Continue a prompt (T,), or several of equal length (B, T), by up to `max_new_tokens`.

    `temperature` 0 is greedy; otherwise tokens are sampled, from the `top_k` likeliest if given, and
    the same `seed` gives the same text. Stops early when every row has produced `end_of_text`, if one is
    named; a finished row is filled up with it. `max_position_embeddings` is not enforced: text may become longer, and
    then gets worse. The model is left in the mode it was in. Raises ValueError for an empty
    prompt, an unknown token, or settings out of range.
    """
    prompt = torch.as_tensor(prompt_tokens, dtype=torch.long, device=model.embed_tokens.weight.device)
    _check(model, prompt, max_new_tokens, temperature, top_k)
    tokens_BT = prompt[None] if prompt.ndim == 1 else prompt
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(len(tokens_BT), prompt.shape[-1] + max_new_tokens)
    finished = torch.zeros(len(tokens_BT), dtype=torch.bool, device=prompt.device)
    was_training = model.training
    model.eval()
    try:
        step_BT = tokens_BT
        for _ in range(max_new_tokens):
            logits_BV = model(step_BT, cache)[:, -1].float()
            chosen = sample(logits_BV, temperature, top_k, generator).to(prompt.device)
            if end_of_text is not None:
                chosen = chosen.masked_fill(finished, end_of_text)
                finished |= chosen == end_of_text
            step_BT = chosen[:, None]
            tokens_BT = torch.cat([tokens_BT, step_BT], dim=1)
            if finished.all():
                break
    finally:
        model.train(was_training)
    return Generation(tokens_BT if prompt.ndim == 2 else tokens_BT[0], prompt.shape[-1])


def sample(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Return one token per row, (B,): the likeliest at temperature 0, else drawn from the softmax."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    if top_k is not None:
        threshold = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < threshold, float("-inf"))
    # At most 0, and in float64: a tiny temperature overflows nothing. On the CPU: a seed means the same everywhere.
    above = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).cpu().double()
    probabilities = (above / temperature).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _check(model: DeepSeek, prompt: Tensor, max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    vocabulary = model.config.vocab_size
    if prompt.ndim not in (1, 2) or prompt.numel() == 0:
        raise ValueError(f"the prompt has shape {tuple(prompt.shape)}: give at least one token, (T,) or (B, T).")
    unknown = prompt[(prompt < 0) | (prompt >= vocabulary)]
    if len(unknown):
        raise ValueError(f"the prompt has token {unknown[0].item()}: tokens are 0 to {vocabulary - 1}.")
    require_whole("max_new_tokens", max_new_tokens)
    require("temperature", temperature, is_number(temperature) and temperature >= 0, "0 (greedy) or more")
    in_range = top_k is None or (isinstance(top_k, int) and 1 <= top_k <= vocabulary)
    require("top_k", top_k, in_range, f"None or a whole number from 1 to {vocabulary}")
