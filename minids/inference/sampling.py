"""From logits to the next token: temperature, top-k, and the draw.

Greedy decoding (temperature 0) takes the most likely token. Sampling first divides the logits by the temperature: below
1 this sharpens the distribution, above 1 it flattens it. Greedy decoding is the limit of small temperatures: all
probability is on one token. So both are a distribution and a draw from it, and whatever holds for any distribution,
such as the rule of speculative decoding (speculative.py), holds for both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Distribution = Callable[[Tensor], Tensor]  # logits (..., V) -> the probabilities that tokens are drawn from


def probabilities(logits: Tensor, temperature: float, top_k: int | None = None) -> Tensor:
    """Return the distribution that tokens are drawn from, of the shape of the logits (..., V), in float64, on the CPU.

    At temperature 0 it is 1 for the likeliest token. With `top_k` only the likeliest tokens are possible. Raises
    ValueError for logits that are NaN or infinite.
    """
    if not logits.isfinite().all():
        raise ValueError("the model's logits are not finite: its weights are damaged, or its training diverged.")
    logits = logits.cpu().double()  # on the CPU, so that a seed means the same everywhere
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    if top_k is not None:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    # At most 0 and in float64, so tiny temperatures do not overflow.
    above = logits - logits.amax(dim=-1, keepdim=True)
    return (above / float(temperature)).softmax(dim=-1)


def draw(probabilities_BV: Tensor, generator: torch.Generator) -> Tensor:
    """Return one token per row, (B,): the first whose cumulative probability is above a random number.

    The rows need not sum to 1.
    """
    cumulative_BV = probabilities_BV.cumsum(dim=-1)
    luck_B1 = torch.rand(len(cumulative_BV), 1, dtype=cumulative_BV.dtype, generator=generator)
    tokens_B1 = torch.searchsorted(cumulative_BV, luck_B1 * cumulative_BV[:, -1:], right=True)
    return tokens_B1[:, 0].clamp(max=probabilities_BV.shape[-1] - 1)  # for a row of zeros: a residual lost in rounding
