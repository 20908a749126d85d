"""Generating text: *prefill* computes the KV cache of the prompt, then *decoding* generates one token per step.

Prefill runs the model on all tokens of the prompt at once and caches a row per token and layer (with MLA, a latent and
a rotated key). Each decoding step runs the model on one token, which attends to the cached rows (with MLA, in absorbed
form).

With `speculative=True` the model's MTP modules draft the next tokens, and one step verifies them (speculative.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minids.inference.request import read_request
from minids.inference.sampling import Distribution, draw, probabilities
from minids.inference.speculative import Verdict, speculate
from minids.model.deepseek import DeepSeek


@dataclass(frozen=True)
class Generation:
    """`tokens` holds prompt and continuation, (T,) or (B, T) like the prompt, which has `prompt_length` tokens.

    `steps` counts the model's forward passes, prefill included. With speculation, `verdicts` tells what became of the
    `drafts_per_step` of every step after prefill.
    """

    tokens: Tensor
    prompt_length: int
    steps: int
    verdicts: list[Verdict] | None = None
    drafts_per_step: int = 0

    @property
    def new_tokens(self) -> Tensor:
        return self.tokens[..., self.prompt_length :]

    @property
    def acceptance(self) -> Tensor | None:
        """The accepted fraction of each row's drafts, (B, K), or (K,) for one prompt; None without speculation.

        The k-th draft of a step is accepted if it and those before it are, even if the text ends before it. It is NaN
        for a row without any.
        """
        if self.verdicts is None:
            return None
        judged_B1 = torch.zeros_like(self.tokens[..., 0]).view(-1, 1)
        places = torch.arange(self.drafts_per_step, device=judged_B1.device)
        accepted_BK = judged_B1 * places
        for verdict in self.verdicts:
            judged_in_step_B1 = verdict.new_B[:, None] > 0
            accepted_BK += judged_in_step_B1 & (places < verdict.accepted_B[:, None])
            judged_B1 += judged_in_step_B1
        return (accepted_BK / judged_B1).view(*self.tokens.shape[:-1], self.drafts_per_step)


def generate(
    model: DeepSeek,
    prompt_tokens: Sequence[int] | Tensor,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    end_of_text: int | Sequence[int] | None = None,
    speculative: bool = False,
) -> Generation:
    """Continue a prompt (T,), or several of equal length (B, T), by up to `max_new_tokens`.

    `temperature` 0 is greedy; otherwise tokens are sampled, from the `top_k` likeliest if given, and the same `seed`
    gives the same text. Stops early when every row has generated `end_of_text` (or one of several); a finished row is
    padded with the first of them. With `speculative`, greedy decoding writes the same text up to rounding, and sampling
    another one from the same distribution, in fewer steps. `max_position_embeddings` is not enforced: longer text is
    possible but gets worse. The model's training mode is restored at the end. Raises ValueError for an empty prompt, an
    unknown token, a setting out of range, a KV cache larger than the memory, speculation without MTP modules, and
    logits that are not finite.
    """
    prompt, ends = read_request(
        model, prompt_tokens, max_new_tokens, temperature, top_k, seed, end_of_text, speculative
    )  # fmt: skip
    prompt_BT = prompt[None] if prompt.ndim == 1 else prompt
    write = speculate if speculative else write_one_by_one
    distribution = partial(probabilities, temperature=temperature, top_k=top_k)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():  # faster than no_grad
            tokens_BT, steps, verdicts = write(
                model, prompt_BT, max_new_tokens, distribution, torch.Generator().manual_seed(seed), ends
            )  # fmt: skip
    finally:
        model.train(was_training)
    # Copies, because autograd accepts no tensor that was made in inference mode.
    tokens = (tokens_BT if prompt.ndim == 2 else tokens_BT[0]).clone()
    if verdicts is None:
        return Generation(tokens, prompt.shape[-1], steps)
    verdicts = [Verdict(*(part.clone() for part in vars(verdict).values())) for verdict in verdicts]
    return Generation(tokens, prompt.shape[-1], steps, verdicts, model.config.num_nextn_predict_layers)


def write_one_by_one(
    model: DeepSeek, prompt_BT: Tensor, max_new_tokens: int, distribution: Distribution, generator: torch.Generator,
    ends: Tensor,
) -> tuple[Tensor, int, None]:  # fmt: skip
    """Return the prompts with their continuations, (B, T), one token per step, and the number of steps."""
    tokens_BT = step_BT = prompt_BT
    cache = model.new_cache(len(prompt_BT), prompt_BT.shape[1] + max_new_tokens)
    goes_on_B = torch.ones(len(prompt_BT), dtype=torch.bool, device=prompt_BT.device)
    for _ in range(max_new_tokens):
        hidden_BTD, _ = model.hidden_states(step_BT, cache)
        chosen_B = draw(distribution(model.lm_head(hidden_BTD[:, -1])), generator).to(prompt_BT.device)
        if len(ends):
            chosen_B = torch.where(goes_on_B, chosen_B, ends[0])
            goes_on_B &= ~torch.isin(chosen_B, ends)
        step_BT = chosen_B[:, None]
        tokens_BT = torch.cat([tokens_BT, step_BT], dim=1)
        if not goes_on_B.any():
            break
    return tokens_BT, tokens_BT.shape[1] - prompt_BT.shape[1], None
