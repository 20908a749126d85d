"""What the report of a run compares the model with. A score means little without such a comparison beside it.

A byte 5-gram (text/ngram.py) for bits per byte and a rule for identifiers (text/identifiers.py) learn from exactly the
rows that the run was trained on. The answer that is right most often, for arithmetic, is not learned: it is taken from
the held-out problems themselves.
"""

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from minids.text.arithmetic import solve
from minids.text.batches import Batches
from minids.text.identifiers import Followers, row_text
from minids.text.ngram import END, ByteNGram
from minids.training.config import TrainConfig
from minids.training.evaluate import context_tokens


def baseline_scores(
    batches: Batches, config: TrainConfig, held_out: dict[str, np.ndarray], token_bytes: list[bytes]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Train a byte 5-gram on the run's rows; return by domain its bits and bytes for each held-out row.

    It is scored on the same bytes as the model: those of the second half of each row.
    """
    ngram = ByteNGram(_symbols(row, token_bytes, 1)[0] for _, row in _consumed(batches, config))
    scores = {}
    for domain, rows in held_out.items():
        pairs = [_symbols(row, token_bytes, context_tokens(rows)) for row in rows]
        symbols, predicted = (np.concatenate(column) for column in zip(*pairs, strict=True))
        counted = predicted & (symbols != END)
        row_of = np.repeat(np.arange(len(rows)), [len(row) for row, _ in pairs])[counted]
        bits = np.bincount(row_of, ngram.bits(symbols)[counted], minlength=len(rows))
        scores[domain] = bits, np.bincount(row_of, minlength=len(rows))
    return scores


def code_followers(batches: Batches, config: TrainConfig, token_bytes: list[bytes]) -> Followers:
    """Return the rule for identifiers, learned from the run's rows of code."""
    rows = (row for domain, row in _consumed(batches, config) if domain == "code")
    return Followers(row_text(row, token_bytes)[0] for row in rows)


def best_constant(problems: list[str]) -> float:
    """Return the fraction of problems that are solved by always giving the most common answer.

    It is the most common one of these same problems, so no constant answer solves more: an upper bound.
    """
    answers = Counter(solve(int(a), op, int(b)) for a, op, b in (re.split(r"(\D)", problem) for problem in problems))
    return answers.most_common(1)[0][1] / len(problems)


def _consumed(batches: Batches, config: TrainConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield domain and tokens of each row that the run was trained on."""
    for index in range(config.steps * config.batch_size):
        yield batches.domain(index), batches.row(index)


def _symbols(row: np.ndarray, token_bytes: list[bytes], context: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a row as byte symbols, and which of them come after its first `context` tokens.

    An END comes first, because rows are not consecutive and have no context before them.
    """
    pieces = [np.frombuffer(token_bytes[token], dtype=np.uint8) if token_bytes[token] else [END] for token in row]
    symbols = np.concatenate([[END], *pieces]).astype(np.int16)
    return symbols, np.arange(len(symbols)) > sum(map(len, pieces[:context]))
