"""Rows of tokens, and batches of rows that depend only on seed and step.

The documents of a domain are one stream of tokens, with an end-of-text token between documents, and the stream
is cut into rows of equal length. Nothing masks attention across documents, as in DeepSeek-V3 (report §4.1);
its fill-in-the-middle is left out.

Training accepts as a source of batches any object with

    batch(step, batch_size) -> {"tokens": (batch_size, sequence_length + 1) int64}

a dictionary of numpy arrays with one row per sequence. In each row of "tokens" the model reads all tokens but
the last and predicts all but the first. A source may add other arrays with one row per sequence, such as a mask
of the tokens that count in the loss. Because a batch is a function of its step alone, a run that is interrupted
goes on with exactly the batches it would have had.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minids.text.tokenizer import Tokenizer
from minids.validation import require, require_whole


def pack(stream: np.ndarray, sequence_length: int) -> np.ndarray:
    """Cut a token stream into rows, (rows, sequence_length + 1), each starting with the last token of the one before.

    So every token but the first is predicted. Where too few tokens are left for the last row, it starts earlier and
    predicts some of them a second time. Raises ValueError if the stream is shorter than one row.
    """
    require_whole("sequence_length", sequence_length)
    if len(stream) <= sequence_length:
        raise ValueError(
            f"the text has {len(stream)} tokens: at least {sequence_length + 1} are needed for one sequence."
        )
    rows = -(-(len(stream) - 1) // sequence_length)
    starts = np.minimum(np.arange(rows) * sequence_length, len(stream) - sequence_length - 1)
    return sliding_window_view(stream, sequence_length + 1)[starts]


class Batches:
    """Training rows in a fixed order, in which every row of a domain comes once per epoch of that domain.

    `streams` are tokens by domain. `mixture` says how many rows of each domain make up a cycle, over which they are
    spread evenly. Each epoch of a domain has another order, given by `seed`. Raises ValueError if a stream is shorter
    than one row, or if the mixture has a domain without a stream.
    """

    def __init__(self, streams: Mapping[str, np.ndarray], mixture: Mapping[str, int], sequence_length: int, seed: int):
        require("mixture", mixture, bool(mixture), "one domain or more")
        for domain, weight in mixture.items():
            require("domain", domain, domain in streams, f"one of {', '.join(streams)}")
            require_whole(f"mixture[{domain!r}]", weight)
        self.rows = {domain: pack(streams[domain], sequence_length) for domain in mixture}
        self.seed = seed
        # Each domain is spread evenly over one cycle: its j-th row belongs at (j + 1/2) / weight.
        places = [((j + 0.5) / weight, domain) for domain, weight in mixture.items() for j in range(weight)]
        self.cycle = [domain for _, domain in sorted(places)]
        self._permutations: dict[tuple[str, int], np.ndarray] = {}

    def domain(self, index: int) -> str:
        """Return the domain of the index-th row of training."""
        return self.cycle[index % len(self.cycle)]

    def row(self, index: int) -> np.ndarray:
        """Return the index-th row of training, (sequence_length + 1,)."""
        cycles, place = divmod(index, len(self.cycle))
        domain = self.cycle[place]
        served = cycles * self.cycle.count(domain) + self.cycle[:place].count(domain)
        epoch, position = divmod(served, len(self.rows[domain]))
        return self.rows[domain][self._permutation(domain, epoch)[position]]

    def batch(self, step: int, batch_size: int) -> dict[str, np.ndarray]:
        """Return the rows of one step as {"tokens": (batch_size, sequence_length + 1) int64}."""
        require_whole("step", step, at_least=0)
        require_whole("batch_size", batch_size)
        rows = [self.row(index) for index in range(step * batch_size, (step + 1) * batch_size)]
        return {"tokens": np.stack(rows).astype(np.int64)}

    def _permutation(self, domain: str, epoch: int) -> np.ndarray:
        key = (domain, epoch)
        if key not in self._permutations:
            entropy = [self.seed, epoch, *domain.encode()]
            self._permutations[key] = np.random.default_rng(entropy).permutation(len(self.rows[domain]))
        return self._permutations[key]


def encode_split(tokenizer: Tokenizer, documents: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Return each domain's documents as one token stream."""
    return {domain: tokenizer.encode_documents(texts) for domain, texts in documents.items()}
