"""Identifiers in held-out code: does the model write the name that a programmer wrote?

Bits per byte are a mean over everything, and much of a program is easy: spaces, brackets, `return`. Names carry the
meaning. Some occur **above** in the same text and can be copied from there, which induction heads do. Others are
**new**, and the model can know them only from training, such as `ValueError` after `raise`.

The measure is a cloze test, scored by *exact match*: given the true text before a name, does greedy decoding write
exactly this name? A single pass over the true text (*teacher forcing*) decides all names: a name counts as right if
each of its tokens is the likeliest one given the true tokens before. In addition, the name must end where it ends: the
likeliest next token must not continue it. The tokens are those into which the tokenizer cuts the true text; a name that
greedy decoding would write in other tokens counts as wrong.

The comparison is a rule that only counts (text/identifiers.py).
"""

import re
from dataclasses import dataclass

import numpy as np
import torch

from minids.model.deepseek import DeepSeek
from minids.text.identifiers import WORD, Followers, names, row_text
from minids.training.evaluate import batches_of
from minids.training.intervals import share_interval


@dataclass(frozen=True)
class Answer:
    """What became of one name: the `row` it is in, whether it occurs `above`, and who wrote it exactly."""

    row: int
    name: str
    above: bool
    model: bool
    rule: bool


@torch.no_grad()
def identifier_answers(
    model: DeepSeek, rows: np.ndarray, token_bytes: list[bytes], followers: Followers, context: int = 1
) -> list[Answer]:
    """Return an answer for each name in rows of code (B, T + 1), in order.

    Asked are the names whose first token is not among the first `context` ones. A token may hold more than the name:
    the space or a sign before it, which the model must then write, too. A name at the very end of a row is left out,
    because its end is not known.
    """
    model.eval()
    answers = []
    continues = {token for token, piece in enumerate(token_bytes) if re.match(rb"[\w\x80-\xff]", piece)}
    choices_BT = np.concatenate(
        [model(tokens[:, :-1]).argmax(dim=-1).cpu().numpy() for tokens in batches_of(rows, model)]
    )
    for i, (row, choices) in enumerate(zip(rows, choices_BT, strict=True)):
        text, starts = row_text(row, token_bytes)
        right = choices == row[1:]  # right[t] is about token t + 1
        first_seen: dict[bytes, int] = {}
        for match in re.finditer(WORD, text):
            first_seen.setdefault(match.group(), match.start())
        found = names(text)
        for name, guess in zip(found, followers.guesses(found), strict=True):
            end = name.start + len(name.text)
            first, last = np.searchsorted(starts, [name.start, end - 1], side="right") - 1  # its first and last token
            if first < context or end == len(text):
                continue
            # The last token may reach beyond the name; if it does not, the next choice must not continue the name.
            stops = starts[last + 1] > end or choices[last] not in continues
            answers.append(
                Answer(
                    i, name.text.decode(errors="replace"), first_seen[name.text] < name.start,
                    bool(right[first - 1 : last].all() and stops), guess == name.text,
                )
            )  # fmt: skip
    return answers


def identifier_shares(answers: list[Answer], rows: int) -> dict[str, dict]:
    """Return the shares written exactly, for names that occur `above` and for `new` ones, from answers in so many rows.

    For each: how many were `asked`, the share of the `model` with its 95% `interval`, and the share of the `rule`. If
    none was asked, the three are None.
    """
    shares = {}
    for kind in ("above", "new"):
        of_kind = [answer for answer in answers if answer.above == (kind == "above")]
        places, right = ([a.row for a in of_kind], [a.model for a in of_kind])
        asked_B, right_B = (np.bincount(places, weights, minlength=rows) for weights in (None, right))
        n = len(of_kind)
        shares[kind] = {
            "asked": n,
            "model": sum(right) / n if n else None,
            "interval": share_interval(right_B, asked_B),
            "rule": sum(a.rule for a in of_kind) / n if n else None,
        }
    return shares
