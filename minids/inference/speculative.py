"""Speculative decoding with the model's own MTP modules: several tokens per step, and not one output changed.

A decoding step reads all active weights to produce one token. A step of several tokens costs much less than as many
steps, but token i+2 can only be computed from token i+1. So a cheap *draft* guesses the next tokens, and the model
judges all guesses in one step (Leviathan et al. 2023; Chen et al. 2023). Here the drafts come from the MTP modules (V3
report §2.2, §5.4.3), which start from hidden states that the model has computed anyway. With K modules, a step is

    draft    module 1 draws token n+1 from its distribution q_1, module 2 then n+2 from q_2, ... module K n+K
    verify   the model reads token n and the K drafts at once, and returns its own distributions p_1 ... p_{K+1}
    judge    the drafts are accepted from the left, x_k with probability min(1, p_k(x_k) / q_k(x_k)), up to the first
             rejected one, whose replacement is drawn from the *residual* max(0, p_k - q_k), normalised; if none is
             rejected, one more, the *bonus token*, is drawn from p_{K+1}
    roll back   the KV caches drop the rows of rejected drafts

**Why no output changes.** A token x comes out of one judgement either as an accepted draft, with probability
q(x) min(1, p(x)/q(x)) = min(p(x), q(x)), or as the replacement of a rejected one. Drafts are rejected with probability
1 - sum of min(p, q) = sum of max(0, p - q), and the replacement is drawn from max(0, p - q) divided by that sum. So the
second way has probability max(0, p(x) - q(x)), and both together p(x), whatever q is. A bad draft costs time only. The
probability of acceptance, the sum of min(p, q), is 1 - total variation of p and q.

At temperature 0, p and q are 1 for one token each: a draft is accepted if it is the model's own choice.

**Which states a module reads.** Position i of module k joins the state of depth k-1 at i with token i+k. It was trained
on h^0 *after* the final norm, and is less often right with any other, although no output shows it. Modules have KV
caches, too. Module k has read k-1 drafts when it makes its own, so those positions are computed again in the next step.

Shape letters: see minids/model/__init__.py; K drafts, N = K + 1 distributions of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minids.inference.sampling import Distribution, draw
from minids.model.cache import Cache, common, read_rows, write_rows
from minids.model.deepseek import DeepSeek


@dataclass(frozen=True)
class Verdict:
    """What one step drafted, how many of its drafts were accepted, and the token that follows them.

    `new_B` tokens came out: accepted + 1, or fewer where the text ended before; 0 for rows that had finished.
    """

    drafts_BK: Tensor
    accepted_B: Tensor
    next_B: Tensor
    new_B: Tensor


def judge(drafts_BK: Tensor, q_BKV: Tensor, p_BNV: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return how many drafts of each row are accepted, (B,), and the token that follows them, (B,).

    `q_BKV` are the distributions that the drafts were drawn from, `p_BNV` those of the model, one more. The tokens
    that come out are distributed as if each had been drawn from p.
    """
    B, K = drafts_BK.shape
    row_B, drafts_BK1 = torch.arange(B), drafts_BK[..., None]
    p_BK, q_BK = p_BNV[:, :K].gather(2, drafts_BK1)[..., 0], q_BKV.gather(2, drafts_BK1)[..., 0]
    luck_BK = torch.rand(B, K, generator=generator, dtype=p_BNV.dtype)
    accepts_BK = luck_BK < p_BK / q_BK  # with probability min(1, p / q)
    accepted_B = accepts_BK.long().cumprod(dim=1).sum(dim=1)  # those before the first rejected one
    none_B1V = torch.zeros_like(p_BNV[:, :1])  # after the last draft nothing is subtracted: the bonus token
    q_BNV = torch.cat([q_BKV, none_B1V], dim=1)
    residual_BV = (p_BNV[row_B, accepted_B] - q_BNV[row_B, accepted_B]).clamp(min=0)
    return accepted_B, draw(residual_BV, generator)  # which normalises the residual


class Drafter:
    """The MTP modules at work: they share the model's embedding and head, and have KV caches of their own."""

    def __init__(self, model: DeepSeek, batch_size: int, max_length: int):
        self.model = model
        self.caches = [module.block.self_attn.new_cache(batch_size, max_length) for module in model.mtp]
        width, like = model.config.hidden_size, model.norm.weight
        self.states = Cache(batch_size, max_length, width, like)  # h^0 of all positions
        self.first_B = torch.zeros(batch_size, dtype=torch.long, device=like.device)  # what the modules read next

    def draft(
        self, tokens_BS: Tensor, last_B: Tensor, distribution: Distribution, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the K tokens drafted after `last_B`, (B, K), and the distributions they were drawn from, (B, K, V).

        `last_B` is the position of each row's last token: the drafts are written after it into `tokens_BS`. The
        modules read the positions before it that are not in their caches yet.
        """
        K, first, last, count = len(self.caches), common(self.first_B), common(last_B), common(last_B - self.first_B)
        longest = count if isinstance(count, int) else int(count.max())
        rotation, drafted, distributions = self.model.rope(first, longest), [], []
        hidden_BtD = read_rows(self.states.buffer, first, longest)
        for k, (module, cache) in enumerate(zip(self.model.mtp, self.caches, strict=True), start=1):
            cache.length = first
            embedding_BtD = self.model.embed_tokens(read_rows(tokens_BS, first + k, longest))
            hidden_BtD, _ = module(hidden_BtD, embedding_BtD, rotation, cache)
            q_B1V = distribution(self.model.lm_head(read_rows(hidden_BtD, count - 1, 1)))
            draft_B1 = draw(q_B1V[:, 0], generator)[:, None]
            write_rows(tokens_BS, last + k, draft_B1.to(tokens_BS.device))
            drafted.append(draft_B1)
            distributions.append(q_B1V)
        self.first_B = (last_B - K + 1).clamp(min=0)  # from there on, module K has read drafts
        return torch.cat(drafted, dim=1), torch.cat(distributions, dim=1)


def speculate(
    model: DeepSeek, prompt_BT: Tensor, max_new_tokens: int, distribution: Distribution, generator: torch.Generator,
    ends: Tensor,
) -> tuple[Tensor, int, list[Verdict]]:  # fmt: skip
    """Return the prompts with their continuations, (B, S), the number of steps, and the verdicts of all but the first.

    Rows accept different numbers of drafts, so they grow at different speeds. A row is finished when it has written one
    of `ends` or `max_new_tokens`; shorter rows are filled up with the first of `ends`.
    """
    (B, T), K, device = prompt_BT.shape, len(model.mtp), prompt_BT.device
    final = T + max_new_tokens - 1  # the last position to be written; finished rows go on drafting behind it
    cache, drafter = model.new_cache(B, final + 1 + K), Drafter(model, B, final + 1 + K)
    tokens_BS = torch.cat([prompt_BT, prompt_BT.new_zeros(B, max_new_tokens + 2 * K)], dim=1)

    hidden_BTD, _ = model.hidden_states(prompt_BT, cache)
    drafter.states.append(hidden_BTD)
    tokens_BS[:, T] = draw(distribution(model.lm_head(hidden_BTD[:, -1])), generator)
    last, last_B, verdicts = T, torch.full((B,), T, device=device), []

    while (goes_on_B := ~torch.isin(read_rows(tokens_BS, last, 1)[:, 0], ends) & (last_B < final)).any():
        # Draft.
        drafts_BK, q_BKV = drafter.draft(tokens_BS, last_B, distribution, generator)
        # Verify.
        hidden_BND, _ = model.hidden_states(read_rows(tokens_BS, last, K + 1), cache)
        drafter.states.append(hidden_BND)
        p_BNV = distribution(model.lm_head(hidden_BND))
        # Judge.
        accepted_B, next_B = (x.to(device) for x in judge(drafts_BK, q_BKV, p_BNV, generator))
        write_rows(tokens_BS, common(last_B + accepted_B + 1), next_B[:, None])
        stops_BN = torch.isin(read_rows(tokens_BS, last + 1, K + 1), ends)
        stops_BN |= torch.arange(K + 1, device=device) == accepted_B[:, None]
        new_B = (stops_BN.int().argmax(dim=1) + 1).minimum(final - last_B) * goes_on_B
        verdicts.append(Verdict(drafts_BK.to(device), accepted_B, next_B, new_B))
        # Roll back.
        last_B = last_B + new_B
        last = common(last_B)
        for rolled_back in (*cache, drafter.states):
            rolled_back.length = last

    tokens_BS = tokens_BS[:, : int(last_B.max()) + 1]
    if len(ends):
        after_BS = torch.arange(tokens_BS.shape[1], device=device) > last_B[:, None]
        tokens_BS = torch.where(after_BS, ends[0], tokens_BS)
    return tokens_BS, 1 + len(verdicts), verdicts
