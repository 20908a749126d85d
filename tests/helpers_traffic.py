"""What the processes of the test of traffic do; new processes import it by name."""

import torch
from torch import Tensor

from minids.book.probes.experts import groups_of
from minids.parallel.experts import ExpertParallel


def rows_sent(rank: int, experts_NK_by_rank: list[Tensor], n_experts: int, nodes: int) -> list[list[int]]:
    """How many rows this rank sends in each hop to each rank of the hop's group."""
    experts_NK, parallel = experts_NK_by_rank[rank], ExpertParallel(groups_of(rank, nodes))
    parallel.dispatch(torch.randn(len(experts_NK), 4), torch.rand(experts_NK.shape), experts_NK, n_experts)
    return [hop.sent for hop in parallel.hops]
