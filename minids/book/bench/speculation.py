"""Speculative decoding beside plain decoding: the trained miniature continues held-out text, one prompt at a time.

Both write the same number of tokens. The speed-up is tokens per step divided by the cost of a step in plain steps. The
cost depends on model and machine, the tokens per step on the text, too: with one draft they are about 1 + acceptance.
Plain decoding is as fast where both are equal. Prefill counts as a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minids.book.bench.decoding import OurStep
from minids.book.bench.measure import alternate, ratio, summary
from minids.hub.reference import reference
from minids.inference.generate import Generation, generate
from minids.model.deepseek import DeepSeek
from minids.text.batches import encode_split
from minids.text.corpus import load_corpus
from minids.text.tokenizer import Tokenizer
from minids.training.report import spread, validation_rows

PROMPT, NEW, ROWS = 32, 64, 6  # tokens, tokens, prompts of each domain
PLAIN, SPECULATIVE = "plain", "speculative"


def measure(threads: list[int], rounds: int) -> list[dict]:
    """Return a row for each domain, temperature and number of threads."""
    book, out = reference(), []
    held_out = held_out_prompts(book.tokenizer, PROMPT, ROWS)
    for count in threads:
        torch.set_num_threads(count)
        for domain, prompts in held_out.items():
            for temperature in (0.0, 1.0):
                row = compare(book.model, prompts, NEW, temperature, rounds)
                out.append({"domain": domain, "temperature": temperature, "threads": count} | row)
    return out


def held_out_prompts(tokenizer: Tokenizer, length: int, rows: int) -> dict[str, Tensor]:
    """Return the beginnings of held-out rows of each domain, (rows, length)."""
    held_out = validation_rows(encode_split(tokenizer, load_corpus().validation), length)
    return {domain: torch.as_tensor(spread(part, rows)[:, :length]).long() for domain, part in held_out.items()}


def compare(model: DeepSeek, prompts: Tensor, new_tokens: int, temperature: float, rounds: int) -> dict:
    """Return speed-up, tokens per step, acceptance, and the cost of a step in plain steps, for these prompts (B, T)."""
    sides = {
        name: _Writer(model, prompts, new_tokens, temperature, name == SPECULATIVE) for name in (PLAIN, SPECULATIVE)
    }
    samples = alternate(sides, rounds)
    speedup, written = ratio(samples[PLAIN], samples[SPECULATIVE]), sides[SPECULATIVE].written
    tokens_per_step = new_tokens * len(written) / sum(out.steps for out in written)
    verdicts = [verdict for out in written for verdict in out.verdicts]
    drafts = sum(verdict.drafts_BK.numel() for verdict in verdicts)
    return {
        "sides": {side: summary(taken) for side, taken in samples.items()},
        "speedup": speedup,
        "tokens_per_step": tokens_per_step,
        "acceptance": sum(int(verdict.accepted_B) for verdict in verdicts) / drafts,
        "step_cost": tokens_per_step / speedup["median"],
    }


def cost_of_step(model: DeepSeek, new: int, context: int, rounds: int = 3) -> float:
    """Return how many times as long a step of `new` tokens takes as one of 1, with `context` tokens cached."""
    tokens_BT = torch.randint(model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        samples = alternate({count: OurStep(model, tokens_BT, count) for count in (1, new)}, rounds)
    return ratio(samples[new], samples[1])["median"]


class _Writer:
    """Continues every prompt in turn, and keeps what was written last."""

    def __init__(self, model: DeepSeek, prompts: Tensor, new_tokens: int, temperature: float, speculative: bool):
        self.model, self.prompts, self.new_tokens = model, prompts, new_tokens
        self.settings = {"temperature": temperature, "speculative": speculative}
        self.written: list[Generation] = []

    def __call__(self) -> None:
        self.written = [generate(self.model, prompt, self.new_tokens, **self.settings) for prompt in self.prompts]
