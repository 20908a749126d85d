"""What it costs to send a token to its experts and back: expected rows, bytes, time on each link (V3 report §3.2.2).

traffic.py counts the rows of given choices. Here they are expected values, for choices that are equally likely: each of
the E experts is equally likely to be chosen, each set of K experts too, and the sender is any of the ranks. Of G groups
of E / G experts, a token's K choices are in

    G (1 - C(E - E/G, K) / C(E, K))

on average, as each group is missed with that ratio of probability. With the ranks as groups, these are the copies "per
rank"; with the nodes as groups, those of the first of "two hops". One of n nodes is the sender's own, so (n - 1) / n of
the copies cross to another node.

A limit on nodes has no such formula, as the best nodes of a token are not equally likely to have many of its experts.
It has a bound, `topk_group`, which the report uses; for the expected number, count what the gate chooses.

**Why two hops.** A GPU receives 50 GB/s by InfiniBand and forwards 160 GB/s by NVLink, so it can forward 3.2 copies in
the time in which one arrives. A token on four nodes can have 4 · 3.2 = 12.8 experts there before NVLink is the slower
link. The report rounds this to 13 experts "with the same communication cost"; V3 has 8.
"""

from __future__ import annotations

from math import comb
from typing import NamedTuple

from minids.cost.parameters import FP8_TILE
from minids.cost.precision import BF16
from minids.cost.published import LINK_BYTES_PER_SECOND, NVLINK_BYTES_PER_SECOND
from minids.cost.traffic import WAYS
from minids.validation import is_number, require, require_whole

EXPONENT = 1  # bytes of a scale that is a power of two; others, as in DeepEP, are float32 and take 4


class Moved(NamedTuple):
    """Rows, bytes or seconds of a token in one direction: between nodes (InfiniBand), and inside a node (NVLink)."""

    between_nodes: float
    inside_nodes: float

    def times(self, factor: float) -> Moved:
        """Return both, multiplied: rows by the bytes of a row are bytes."""
        return Moved(self.between_nodes * factor, self.inside_nodes * factor)


def expected_groups(n_experts: int, chosen: int, groups: int) -> float:
    """Return how many of the groups have one of a token's experts, on average over all sets of so many experts.

    Raises ValueError for more choices than experts, and for groups that do not divide the experts.
    """
    require_whole("chosen", chosen, at_most=n_experts)
    require(
        "groups", groups, groups > 0 and n_experts % groups == 0, f"a divisor of the number of experts, {n_experts}"
    )
    return groups * (1 - comb(n_experts - n_experts // groups, chosen) / comb(n_experts, chosen))


def expected_rows(n_experts: int, chosen: int, nodes: int, ranks_per_node: int, way: str) -> Moved:
    """Return the copies of a token by link, on average over senders and sets of experts. `way` as in traffic.py.

    Raises ValueError as `expected_groups` does, and for another way.
    """
    require("way", way, way in WAYS, " or ".join(WAYS))
    ranks, elsewhere = nodes * ranks_per_node, (nodes - 1) / nodes
    needed = chosen if way == "per expert" else expected_groups(n_experts, chosen, ranks)
    if way == "two hops":  # inside a node, the rank with the sender's place has the row already
        on_nodes = expected_groups(n_experts, chosen, nodes)
        return Moved(on_nodes * elsewhere, needed * (ranks_per_node - 1) / ranks_per_node)
    return Moved(needed * elsewhere, needed * (ranks_per_node - 1) / ranks)


def row_bytes(width: int, fp8: bool = False, scale_bytes: int = EXPONENT) -> int:
    """Return the bytes of a row of so many numbers: in BF16, or in E4M3 with a scale for each 128 of them."""
    require_whole("width", width)
    return width + scale_bytes * -(-width // FP8_TILE) if fp8 else BF16 * width


def seconds(size: Moved) -> Moved:
    """Return the time of so many bytes of a GPU on each link. Both work at once, so together they take the larger."""
    return Moved(size.between_nodes / LINK_BYTES_PER_SECOND, size.inside_nodes / NVLINK_BYTES_PER_SECOND)


def most_rows(chosen: float, nodes: int) -> Moved:
    """Return the most copies in two hops, as the report counts them: none of the nodes is the sender's own, and each
    expert is on another GPU."""
    return Moved(min(chosen, nodes), chosen)


def free_experts(nodes: int) -> float:
    """Return how many experts a token can have on so many nodes before NVLink takes longer than InfiniBand."""
    require_whole("nodes", nodes)
    return nodes * NVLINK_BYTES_PER_SECOND / LINK_BYTES_PER_SECOND


def algorithm_bandwidth(link: float, rows: float, crossing: float) -> float:
    """Return the bandwidth that a benchmark reports if it divides the bytes of all rows by the time.

    `link` is the bandwidth of the link itself, in any unit. Only the rows that cross use it, so the time is theirs; the
    others are counted as moved although they stayed inside a node. DeepEP counts a token's copies for all n nodes, the
    sender's own included, of which (n - 1) / n cross; its kernels for decoding count one for each choice. So its tables
    have 58 GB/s on a link of 50 GB/s: with four nodes, this is 43.5 GB/s on the link. In the words of NCCL's tests, the
    one is the *algorithm bandwidth*, the other the *bus bandwidth*.

    Raises ValueError unless some of the rows cross.
    """
    require("crossing", crossing, is_number(crossing) and 0 < crossing <= rows, f"above 0 and at most rows={rows}")
    return link * rows / crossing
