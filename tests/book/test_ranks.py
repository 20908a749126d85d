"""Ranks in one process exchange messages as processes do."""

import pytest

from minids.book.ranks import run_ranks


def talk(rank: int, ranks: int, rounds: int, messages: int | None = None):
    heard = []
    for i in range(rounds):
        heard.append((yield [(rank, other, i) for other in range(messages or ranks)]))
    return heard


def test_messages_arrive_in_the_order_of_their_senders():
    for to, heard in enumerate(run_ranks([talk(rank, 3, 2) for rank in range(3)])):
        assert heard == [[(source, to, i) for source in range(3)] for i in range(2)]
    assert run_ranks([talk(0, 1, 0)]) == [[]]


def test_what_would_wait_forever_is_an_error():
    with pytest.raises(RuntimeError, match=r"^rank 0, 2 has ended, and others wait"):
        run_ranks([talk(rank, 3, 1 + (rank == 1)) for rank in range(3)])
    with pytest.raises(ValueError, match=r"^rank 1 yields list: it must be 2 messages"):
        run_ranks([talk(0, 2, 1), talk(1, 2, 1, messages=1)])
