"""Measures how well MTP modules draft: what a step of speculative decoding would accept, at every position of a text.

The draft of depth k is sampled from q, the module's distribution, and judged against p, the main head's distribution of
the same token. It is accepted with probability

    sum over x of q(x) min(1, p(x) / q(x))  =  sum over x of min(p(x), q(x))  =  1 - total variation of p and q

Both read the true text, so this needs no decoding: one forward pass gives p and q at all positions. The draft of depth
k is judged only where those before it were accepted, and here the true tokens stand in their place.

`judged` compares this with what speculative decoding does: which drafts it accepted while it wrote a text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minids.inference.generate import generate
from minids.inference.sampling import probabilities
from minids.model.deepseek import DeepSeek
from minids.validation import require, require_whole

BATCH = 16


@dataclass(frozen=True)
class Drafts:
    """The drafts of one depth for rows of tokens (B, T), each with the judge's distribution.

    `acceptance[:, i]` is 1 - total variation and `entropy[:, i]` that of p in bits, both (B, T - depth - 1): the first
    token that depth k predicts is token k + 1.
    """

    acceptance: Tensor
    entropy: Tensor


@torch.no_grad()
def drafts(model: DeepSeek, rows: np.ndarray | Tensor, temperature: float = 1.0) -> list[Drafts]:
    """Return the drafts of each depth for rows of tokens (B, T), at a temperature; 0 compares the likeliest tokens.

    Raises ValueError for a model without MTP modules, and for rows that are too short for the deepest one.
    """
    require("num_nextn_predict_layers", len(model.mtp), len(model.mtp) > 0, "at least 1 to draft")
    rows, shortest = torch.as_tensor(rows, device=model.lm_head.weight.device).long(), 2 + len(model.mtp)
    enough = rows.ndim == 2 and rows.shape[1] >= shortest
    require("rows", tuple(rows.shape), enough, f"(B, T) with T at least {shortest}")
    found = [[] for _ in model.mtp]
    training = model.training
    try:
        model.eval()
        for tokens_BT in rows.split(BATCH):
            hidden_BTD, _ = model.hidden_states(tokens_BT[:, :-1])
            p_BTV = probabilities(model.lm_head(hidden_BTD), temperature)
            entropy_BT = torch.special.entr(p_BTV).sum(dim=-1) / math.log(2)
            for k, (depth_BTD, _) in enumerate(model.mtp_hidden_states(tokens_BT[:, :-1], hidden_BTD), start=1):
                q_BTV = probabilities(model.lm_head(depth_BTD), temperature)
                overlap_BT = torch.minimum(p_BTV[:, k:], q_BTV).sum(dim=-1)
                found[k - 1].append((overlap_BT, entropy_BT[:, k:]))
    finally:
        model.train(training)
    return [Drafts(*(torch.cat(parts) for parts in zip(*depth, strict=True))) for depth in found]


def judged(
    model: DeepSeek, prompts: np.ndarray | Tensor, new_tokens: int, seed: int = 0, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return 1 - TV of every draft judged while prompts (B, T) were continued, and whether it was accepted.

    1 - TV is computed from one forward pass over the finished texts, without a cache. That is possible because a draft
    is judged only if all drafts before it were accepted: the tokens before it are those of the text. Drafts behind the
    last token of the text do not count. Raises ValueError if a text is too short for a draft of each depth.
    """
    require_whole("new_tokens", new_tokens, at_least=1 + len(model.mtp))
    out = generate(model, prompts, new_tokens, temperature=temperature, seed=seed, speculative=True)
    computed, accepted = [], []
    tokens_BS = torch.atleast_2d(out.tokens)
    depths, row_B = drafts(model, tokens_BS, temperature), torch.arange(len(tokens_BS))
    last_B = torch.full_like(row_B, out.prompt_length)  # prefill has written the first token
    for verdict in out.verdicts:
        accepted_B, new_B = verdict.accepted_B.cpu(), verdict.new_B.cpu()
        for k, depth in enumerate(depths, start=1):
            judged_B = new_B >= k  # so the row was active, and the drafts before the k-th were accepted
            computed.append(depth.acceptance[row_B[judged_B], last_B[judged_B] - 1])  # of token last + k
            accepted.append(accepted_B[judged_B] >= k)
        last_B = last_B + new_B
    return torch.cat(computed), torch.cat(accepted)
