"""Contamination: does held-out text that also occurs in training flatter the scores?

Some repetition is always left: licences, idioms, code copied from file to file. Here the score of all rows is compared
with that of the clean ones, into whose scored half no repeated window reaches. If repeated rows score better, the
model need not remember them: text that is written often is also easy to guess. So the 5-gram is compared on the clean
rows, too. If the model is as far below it there as on all rows, the comparison does not rest on repeated text.
"""

import numpy as np

from minids.text.corpus import Corpus
from minids.text.windows import WINDOW, repeated_windows
from minids.training.evaluate import context_tokens

RowScores = dict[str, tuple[np.ndarray, np.ndarray]]  # bits and bytes of each row, by domain
NO_TEXT = b"\xff"  # stands for end of text in a row's bytes: UTF-8 never has it, so no window with it is repeated


def contamination(
    corpus: Corpus, held_out: dict[str, np.ndarray], scores: RowScores, baseline: RowScores, token_bytes: list[bytes]
) -> dict[str, dict]:
    """Return by domain how much of the held-out text occurs in the training text, and the scores without it.

    `windows` is the share of the windows of 50 bytes of all held-out documents that occur in the training text of any
    domain; `rows` and `repeated_rows` count the scored rows and those of them into whose scored half such a window
    reaches. Then come bits per byte of the repeated and of the clean rows, and by which share the clean ones are below
    the 5-gram; None for no rows.
    """
    documents = {domain: [text.encode() for text in texts] for domain, texts in corpus.validation.items()}
    rows = {d: [b"".join(token_bytes[t] or NO_TEXT for t in row) for row in held_out[d]] for d in held_out}
    training = (text.encode() for texts in corpus.train.values() for text in texts)
    asked = [text for texts in (*documents.values(), *rows.values()) for text in texts]
    found = iter(repeated_windows(asked, training))
    in_documents = {domain: np.concatenate([next(found) for _ in texts]) for domain, texts in documents.items()}
    result = {}
    for domain, tokens in held_out.items():
        begins = [sum(len(token_bytes[t] or NO_TEXT) for t in row[: context_tokens(tokens)]) for row in tokens]
        # The windows that reach beyond the context, into the scored part.
        repeated = np.array([next(found)[max(0, begin - WINDOW + 1) :].any() for begin in begins])
        bits, size = scores[domain]
        windows = in_documents[domain]
        result[domain] = {
            "windows": float(windows.mean()) if len(windows) else 0.0,
            "rows": len(repeated),
            "repeated_rows": int(repeated.sum()),
            "repeated_bits_per_byte": _ratio(bits[repeated], size[repeated]),
            "clean_bits_per_byte": _ratio(bits[~repeated], size[~repeated]),
            "clean_below_baseline": None
            if repeated.all()
            else 1 - _ratio(bits[~repeated], baseline[domain][0][~repeated]),
        }
    return result


def _ratio(numbers: np.ndarray, of: np.ndarray) -> float | None:
    return float(numbers.sum() / of.sum()) if len(numbers) else None
