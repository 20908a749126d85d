"""Evaluation of a trained model, in numbers that are comparable across tokenizers and models.

Loss per token depends on how long a token is. **Bits per byte** does not: it is the negative
log2 probability of a text, divided by its length in bytes. It compares two models that cut the same
text into different tokens, and a 5-gram of bytes with both.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from minids.model.deepseek import DeepSeek
from minids.model.kernels import cross_entropy
from minids.text.tokenizer import Tokenizer

BATCH = 16


@torch.no_grad()
def row_scores(
    model: DeepSeek, rows: np.ndarray, bytes_per_token: Tensor, context: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each packed row (B, T + 1) the bits that the model needs, (B,) float64, and its bytes, (B,) int64.

    The first `context` tokens of each row are given, the others scored. Tokens without bytes (end of
    text) add neither bits nor bytes. `bytes_per_token` is indexed by token id. Bits per byte of a text
    are the ratio of the sums over its rows.
    """
    model.eval()
    bits, text_bytes = [], []
    for tokens_BT in batches_of(rows, model):
        targets_BT = tokens_BT[:, context:]
        logits = model(tokens_BT[:, :-1])[:, context - 1 :].flatten(0, 1)
        bytes_BT = bytes_per_token.to(targets_BT.device)[targets_BT]
        nats_BT = cross_entropy(logits, targets_BT.flatten()).view(targets_BT.shape)
        # On the CPU: MPS has no float64.
        nats_B = torch.where(bytes_BT > 0, nats_BT, 0).cpu().double().sum(dim=1)
        bits.append(nats_B.numpy() / math.log(2))
        text_bytes.append(bytes_BT.sum(dim=1).cpu().numpy())
    return np.concatenate(bits), np.concatenate(text_bytes)


def context_tokens(rows: np.ndarray) -> int:
    """Return how many tokens of each row are context only: the first half, so that no scored token lacks context."""
    return max(1, (rows.shape[1] - 1) // 2)


@torch.no_grad()
def mtp_agreement(model: DeepSeek, rows: np.ndarray) -> float | None:
    """Return how often the first MTP module and the main head predict the same token at a position; None without MTP.

    Both read the true text, the module one token less of it. This estimates the acceptance rate of
    greedy speculative decoding (V3 report §5.4.3), which reads the main head's own choice instead of
    the true token.
    """
    if not model.mtp:
        return None
    model.eval()
    agree = total = 0
    for tokens_BT in batches_of(rows, model):
        hidden_BTD, _ = model.hidden_states(tokens_BT)
        drafted, _ = model.mtp_hidden_states(tokens_BT, hidden_BTD)[0]
        main_choice = model.lm_head(hidden_BTD[:, 1:]).argmax(dim=-1)
        agree += (model.lm_head(drafted).argmax(dim=-1) == main_choice).sum().item()
        total += main_choice.numel()
    return agree / total


@torch.no_grad()
def solved_problems(model: DeepSeek, tokenizer: Tokenizer, documents: Sequence[str]) -> list[tuple[str, bool]]:
    """Return problems ('12+7') of the documents, in order, and whether greedy decoding answers each exactly.

    The line break is part of the answer. Each problem follows the solved ones above it. Greedy decoding
    writes the right answer if and only if every token of it is the most likely one given the right tokens
    before, so a single pass over the true text decides all problems of a document. A problem that is solved
    above, with its numbers in either order, is left out: its answer could be copied.
    """
    model.eval()
    (equals,), (line_break,) = tokenizer.encode("="), tokenizer.encode("\n")
    solved = []
    for start in range(0, len(documents), BATCH):
        texts = documents[start : start + BATCH]
        rows = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]
        width = max(map(len, rows))
        padded = np.array([row + [tokenizer.end_of_text] * (width - len(row)) for row in rows])
        (tokens_BT,) = batches_of(padded, model)
        right_BT = (model(tokens_BT[:, :-1]).argmax(dim=-1) == tokens_BT[:, 1:]).tolist()
        for text, row, right in zip(texts, rows, right_BT, strict=True):
            begins = [i for i, token in enumerate(row) if token == equals]
            ends = [i for i, token in enumerate(row) if token == line_break]
            # right[i] is about token i + 1, so the answer to '=' at i is right[i : end].
            answers = [all(right[i:end]) for i, end in zip(begins, ends, strict=True)]
            problems = [line.split("=")[0] for line in text.splitlines()]
            fresh = _fresh_problems(text)
            solved += [(p, answer) for p, answer, new in zip(problems, answers, fresh, strict=True) if new]
    return solved


def _fresh_problems(text: str) -> list[bool]:
    """Return for each line whether its problem, with the numbers in either order, is on no line above."""
    seen: set[tuple] = set()
    fresh = []
    for line in text.splitlines():
        problem = line.split("=")[0]
        operator = next(c for c in problem if not c.isdigit())
        key = (operator, *sorted(problem.split(operator)))
        fresh.append(key not in seen)
        seen.add(key)
    return fresh


def batches_of(rows: np.ndarray, model: DeepSeek) -> Iterator[Tensor]:
    """Yield the rows in batches of up to BATCH, as int64 on the model's device."""
    device = model.embed_tokens.weight.device
    for start in range(0, len(rows), BATCH):
        yield torch.from_numpy(rows[start : start + BATCH].astype(np.int64)).to(device)
