"""Generating text: *prefill* computes the KV cache of the prompt, then *decoding* generates one token per step.

Prefill runs the model on all tokens of the prompt at once and caches a row per token and layer (with MLA, a latent and
a rotated key). Each decoding step runs the model on one token, which attends to the cached rows (with MLA, in absorbed
form).

Greedy decoding (temperature 0) takes the most likely token. Sampling first divides the logits by the temperature: below
1 this sharpens the distribution, above 1 it flattens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minids.inference.request import read_request
from minids.model.deepseek import DeepSeek


@dataclass(frozen=True)
class Generation:
    """`tokens` holds prompt and continuation, (T,) or (B, T) like the prompt, which has `prompt_length` tokens."""

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
    end_of_text: int | Sequence[int] | None = None,
) -> Generation:
    """Continue a prompt (T,), or several of equal length (B, T), by up to `max_new_tokens`.

    `temperature` 0 is greedy; otherwise tokens are sampled, from the `top_k` likeliest if given, and the same `seed`
    gives the same text. Stops early when every row has generated `end_of_text` (or one of several); a finished row is
    padded with the first of them. `max_position_embeddings` is not enforced: longer text is possible but gets worse.
    The model's training mode is restored at the end. Raises ValueError for an empty prompt, an unknown token, a setting
    out of range, a KV cache larger than the memory, and logits that are not finite.
    """
    prompt, ends = read_request(model, prompt_tokens, max_new_tokens, temperature, top_k, seed, end_of_text)
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
            if len(ends):
                chosen = torch.where(finished, ends[0], chosen)
                finished |= torch.isin(chosen, ends)
            step_BT = chosen[:, None]
            tokens_BT = torch.cat([tokens_BT, step_BT], dim=1)
            if finished.all():
                break
    finally:
        model.train(was_training)
    return Generation(tokens_BT if prompt.ndim == 2 else tokens_BT[0], prompt.shape[-1])


def sample(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Return one token per row, (B,): the likeliest at temperature 0, otherwise sampled from the softmax.

    Raises ValueError for logits that are NaN or infinite.
    """
    if not logits_BV.isfinite().all():
        raise ValueError("the model's logits are not finite: its weights are damaged, or its training diverged.")
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    if top_k is not None:
        threshold = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < threshold, float("-inf"))
    # At most 0 and in float64, so tiny temperatures do not overflow. On the CPU, so a seed means the same everywhere.
    above = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).cpu().double()
    probabilities = (above / float(temperature)).softmax(dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
