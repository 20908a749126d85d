"""Ranks in one process: what each does is a generator, and `yield` is an all-to-all.

    def rank_of(number, ranks):
        received = yield [f"{number} to {other}" for other in range(ranks)]   # a message for each rank
        return received                                                      # one from each

    run_ranks([rank_of(number, 3) for number in range(3)])

So a program for many processes can be written, run and looked at in one cell: every rank runs the same code, and waits
at each `yield` until all have arrived there.
"""

from collections.abc import Generator, Sequence
from typing import Any

Rank = Generator[list, list, Any]


def run_ranks(ranks: Sequence[Rank]) -> list[Any]:
    """Run all ranks to their end, and return what each returned.

    A rank that yields messages, one for each rank, gets those of all ranks that are for it, in the order of the ranks.
    Raises RuntimeError where real processes would wait forever: some ranks have ended, and others wait for them; and
    ValueError for something else than one message for each rank.
    """
    results, received = [None] * len(ranks), [None] * len(ranks)
    while True:
        sent: dict[int, list] = {}
        for number, rank in enumerate(ranks):
            try:
                sent[number] = rank.send(received[number])
            except StopIteration as end:
                results[number] = end.value
        if not sent:
            return results
        if len(sent) < len(ranks):
            ended = ", ".join(str(number) for number in range(len(ranks)) if number not in sent)
            raise RuntimeError(f"rank {ended} has ended, and others wait for its messages: all need as many exchanges.")
        for number, messages in sent.items():
            if not (isinstance(messages, (list, tuple)) and len(messages) == len(ranks)):
                raise ValueError(f"rank {number} yields {type(messages).__name__}: it must be {len(ranks)} messages.")
        received = [[sent[source][number] for source in sent] for number in range(len(ranks))]
