"""Traffic between ranks: counted in loops, and sent by real processes."""

import numpy as np
import pytest
import torch
from configurations import examples
from helpers_traffic import rows_sent
from hypothesis import given
from hypothesis import strategies as st

from minids.cost.traffic import WAYS, rows_between_nodes, rows_inside_nodes, traffic
from minids.parallel.launch import launch


def choices_of(tokens: list[int], experts: int, chosen: int) -> list[torch.Tensor]:
    """Different experts for each token, for so many tokens on each rank."""
    return [torch.rand(n, experts).argsort(dim=1)[:, :chosen] for n in tokens]


def counted(choices, n_experts: int, size: int, way: str) -> np.ndarray:
    """Row by row: who holds a copy, and to whom it goes next."""
    ranks = len(choices)
    rows = np.zeros((2 if way == "two hops" else 1, ranks, ranks), dtype=int)
    for rank, tokens in enumerate(choices):
        for token in tokens.tolist():
            there = [expert * ranks // n_experts for expert in token]
            if way == "per expert":
                for other in there:
                    rows[0, rank, other] += 1
            elif way == "per rank":
                for other in set(there):
                    rows[0, rank, other] += 1
            else:
                for node in {other // size for other in there}:
                    middle = node * size + rank % size
                    rows[0, rank, middle] += 1
                    for other in {other for other in there if other // size == node}:
                        rows[1, middle, other] += 1
    return rows


@examples(150)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from(WAYS), st.data())
def test_rows_are_those_of_plain_loops(nodes, size, experts_of_rank, way, data):
    ranks = nodes * size
    experts = ranks * experts_of_rank
    tokens = data.draw(st.lists(st.integers(0, 4), min_size=ranks, max_size=ranks))
    choices = choices_of(tokens, experts, data.draw(st.integers(1, experts)))
    rows, expected = traffic(choices, experts, size, way), counted(choices, experts, size, way)
    np.testing.assert_array_equal(rows, expected)
    pairs = [(a, b, hop[a, b]) for hop in expected for a in range(ranks) for b in range(ranks)]
    assert rows_between_nodes(rows, size) == sum(n for a, b, n in pairs if a // size != b // size)
    assert rows_inside_nodes(rows, size) == sum(n for a, b, n in pairs if a // size == b // size and a != b)


@pytest.mark.parametrize("nodes", [1, 2])
def test_rows_are_those_that_processes_send(nodes):
    choices = choices_of([3, 0, 5, 2], 8, 3)
    sent = launch(rows_sent, 4, choices, 8, nodes)
    rows = traffic(choices, 8, 4 // nodes, "two hops" if nodes > 1 else "per rank")
    for rank, of_rank in enumerate(sent):
        size = 4 // nodes
        across, inside = slice(rank % size, None, size), slice(rank // size * size, rank // size * size + size)
        groups = [slice(None)] if nodes == 1 else [across, inside]
        assert of_rank == [hop[rank, group].tolist() for hop, group in zip(rows, groups, strict=True)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"way": "by mail"}, "way='by mail' is not possible: it must be per expert or per rank or two hops"),
        ({"n_experts": 6}, "n_experts=6 is not possible: it must be a multiple of the number of ranks, 4"),
        ({"ranks_per_node": 3}, "ranks_per_node=3 is not possible: it must be a divisor of the number of ranks, 4"),
        ({"n_experts": 4}, "experts from 0 to 3"),
        ({"experts_NK_by_rank": [[1, 2]] * 4}, "arrays of shape"),
    ],
)
def test_what_cannot_be_counted_is_refused(change, why):
    usual = {"experts_NK_by_rank": [[[7, 2]]] * 4, "n_experts": 8, "ranks_per_node": 2, "way": "per rank"}
    with pytest.raises(ValueError, match=why):
        traffic(**usual | change)
