"""Who sends how many rows to whom, for given choices of experts (V3 report §3.2.2).

Experts are spread evenly over P ranks in their order, and ranks over nodes. A token's row can be sent in three ways:

    per expert   a copy for each of its K choices
    per rank     one copy for each rank that has one of its experts, whose outputs are summed there
    two hops     one copy for each node, to the rank with the sender's place in that node, then one for each rank there

The counts are those of `dispatch` in parallel/experts.py. `combine` sends as many rows back, so its matrix is the
transpose. On the diagonal are rows that stay on their rank and are no messages.
"""

from collections.abc import Sequence

import numpy as np

from minids.validation import require, require_whole

WAYS = ("per expert", "per rank", "two hops")


def traffic(experts_NK_by_rank: Sequence, n_experts: int, ranks_per_node: int, way: str) -> np.ndarray:
    """Return the numbers of rows by hop, sender and receiver: (1, P, P), or (2, P, P) for two hops.

    `experts_NK_by_rank` are the chosen experts of the tokens of each rank, an array or a tensor (N, K) for each of the
    P ranks, where N may differ. Raises ValueError for ranks that do not divide the experts, for nodes that do not
    divide the ranks, for experts that do not exist, and for another way.
    """
    choices, ranks = [np.asarray(experts_NK) for experts_NK in experts_NK_by_rank], len(experts_NK_by_rank)
    require("way", way, way in WAYS, " or ".join(WAYS))
    require("n_experts", n_experts, ranks > 0 and n_experts % ranks == 0, f"a multiple of the number of ranks, {ranks}")
    require_whole("ranks_per_node", ranks_per_node)
    require("ranks_per_node", ranks_per_node, ranks % ranks_per_node == 0, f"a divisor of the number of ranks, {ranks}")
    for experts_NK in choices:
        shape, inside = experts_NK.shape, ((experts_NK >= 0) & (experts_NK < n_experts)).all()
        require("experts_NK_by_rank", shape, len(shape) == 2, "arrays of shape (tokens, choices)")
        require("experts_NK_by_rank", experts_NK.tolist(), bool(inside), f"experts from 0 to {n_experts - 1}")
    nodes, hops = ranks // ranks_per_node, 2 if way == "two hops" else 1
    rows_HPP = np.zeros((hops, ranks, ranks), dtype=np.int64)
    for rank, experts_NK in enumerate(choices):
        is_there_NKP = (experts_NK // (n_experts // ranks))[..., None] == np.arange(ranks)
        if way == "per expert":
            rows_HPP[0, rank] = is_there_NKP.sum(axis=(0, 1))
            continue
        needed_NP = is_there_NKP.any(axis=1)
        if way == "per rank":
            rows_HPP[0, rank] = needed_NP.sum(axis=0)
            continue
        by_node, place = needed_NP.reshape(-1, nodes, ranks_per_node), rank % ranks_per_node
        rows_HPP[0, rank, place::ranks_per_node] = by_node.any(axis=2).sum(axis=0)
        for node, needed in enumerate(by_node.sum(axis=0)):
            here = node * ranks_per_node
            rows_HPP[1, here + place, here : here + ranks_per_node] += needed
    return rows_HPP


def rows_between_nodes(rows_HPP: np.ndarray, ranks_per_node: int) -> int:
    """Return how many of the rows go from one node to another, in all hops, or in the one matrix given."""
    node_P = np.arange(rows_HPP.shape[-1]) // ranks_per_node
    return int(rows_HPP[..., node_P[:, None] != node_P].sum())


def rows_inside_nodes(rows_HPP: np.ndarray, ranks_per_node: int) -> int:
    """Return how many go to another rank of the same node."""
    rank_P = np.arange(rows_HPP.shape[-1])
    moved = int(rows_HPP[..., rank_P[:, None] != rank_P].sum())
    return moved - rows_between_nodes(rows_HPP, ranks_per_node)
