"""Four ways to run the experts of a layer on the same tokens, and how long each takes (chapter 4).

    masks      a loop over all experts, each with a mask over all tokens, as Hugging Face's eager code did
    padded     every expert's rows padded to the longest, then one batched product
    grouped    rows sorted by expert, then torch's grouped product
    sorted     rows sorted by expert, then one product for each expert that has rows: minids' own way

All get the same input, weights g and chosen experts, and return the same sum of outputs for each token. The number of
experts varies, the work does not: as many rows, and experts of the same width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minids.model.moe import Experts, combine, dispatch

HIDDEN, WIDTH, CHOSEN = 192, 64, 2
ROUTINGS = {"even": 0.0, "skewed": 0.5}  # experts are chosen in proportion to 1 / rank ** this
OURS = "sorted"
KEPT = 7_500_000  # numbers, 30 MB. If memory is given back after each call, getting it again doubles some times


@dataclass(frozen=True)
class Routed:
    """Tokens, and the weights and experts that a gate gave them."""

    x_ND: Tensor
    weights_NK: Tensor
    experts_NK: Tensor


def by_masks(experts: Experts, tokens: Routed) -> Tensor:
    """Find each expert's tokens by comparing all choices with it; return the outputs (N, D)."""
    out_ND = torch.zeros_like(tokens.x_ND)
    for expert, (gate_up, down) in enumerate(zip(experts.gate_up_proj, experts.down_proj, strict=True)):
        token, choice = torch.where(tokens.experts_NK == expert)
        gate, up = F.linear(tokens.x_ND[token], gate_up).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down) * tokens.weights_NK[token, choice, None]
        out_ND.index_add_(0, token, y)
    return out_ND


def by_padding(experts: Experts, tokens: Routed) -> Tensor:
    """Give every expert as many rows as the busiest one has, zeros beyond its own; return the outputs (N, D)."""
    rows_RD, route = dispatch(tokens.x_ND, tokens.weights_NK, tokens.experts_NK, len(experts.down_proj))
    counts_E, longest = route.counts_E, int(route.counts_E.max())
    shift_E = longest * torch.arange(len(counts_E)) - (counts_E.cumsum(0) - counts_E)
    place_R = torch.arange(len(rows_RD)) + shift_E.repeat_interleave(counts_E)
    padded = rows_RD.new_zeros(len(counts_E) * longest, HIDDEN).index_copy_(0, place_R, rows_RD)
    gate, up = torch.bmm(padded.view(-1, longest, HIDDEN), experts.gate_up_proj.mT).chunk(2, dim=-1)
    outs = torch.bmm(F.silu(gate) * up, experts.down_proj.mT).flatten(0, 1)
    return combine(outs.index_select(0, place_R).mul_(route.weight_R[:, None]), route, len(tokens.x_ND))


def by_grouped_mm(experts: Experts, tokens: Routed) -> Tensor:
    """Multiply all groups of rows in one call; return the outputs (N, D).

    The grouped product leaves rows after the last end unwritten: here there are none.
    """
    rows_RD, route = dispatch(tokens.x_ND, tokens.weights_NK, tokens.experts_NK, len(experts.down_proj))
    ends = route.counts_E.cumsum(0).int()
    gate, up = F.grouped_mm(rows_RD, experts.gate_up_proj.mT, offs=ends).chunk(2, dim=-1)
    hidden_RI = F.silu(gate) * up * route.weight_R[:, None]
    return combine(F.grouped_mm(hidden_RI, experts.down_proj.mT, offs=ends), route, len(tokens.x_ND))


def by_sorting(experts: Experts, tokens: Routed) -> Tensor:
    """Run the library's dispatch, experts and combine; return the outputs (N, D)."""
    rows_RD, route = dispatch(tokens.x_ND, tokens.weights_NK, tokens.experts_NK, len(experts.down_proj))
    return combine(experts(rows_RD, route.weight_R, route.counts_E), route, len(tokens.x_ND))


WAYS: dict[str, Callable[[Experts, Routed], Tensor]] = {
    "masks": by_masks, "padded": by_padding, "grouped": by_grouped_mm, OURS: by_sorting,
}  # fmt: skip
if not hasattr(F, "grouped_mm"):
    del WAYS["grouped"]


def make(n_experts: int, rows: int, skew: float, seed: int = 0) -> tuple[Experts, Routed]:
    """Return random experts, and tokens whose choices make so many rows."""
    generator = torch.Generator().manual_seed(seed)
    experts = Experts(n_experts, HIDDEN, WIDTH).requires_grad_(False)
    for weight in experts.parameters():
        weight.normal_(std=0.06, generator=generator)
    x_ND = torch.randn(rows // CHOSEN, HIDDEN, generator=generator)
    # The highest of logarithms of probabilities plus Gumbel noise are draws without replacement.
    noise = -torch.empty(rows // CHOSEN, n_experts).exponential_(generator=generator).log()
    experts_NK = (noise - skew * torch.arange(1, n_experts + 1).log()).topk(CHOSEN, dim=1).indices
    weights_NK = torch.rand(rows // CHOSEN, CHOSEN, generator=generator)
    return experts, Routed(x_ND, weights_NK, experts_NK)


@torch.inference_mode()
def measure(numbers: Sequence[int] = (8, 16, 32, 64, 128, 256), rows: int = 2048, rounds: int = 9) -> list[dict]:
    """Time all ways, forward in float32, for each number of experts and each routing, after checking that they agree.

    Returns for each: `experts`, `routing`, `busiest` (the largest load over the mean), and `milliseconds` by way, one
    for each round: the processor's time on one thread, to which other programs add little. In a round the ways take
    turns, every second time in reverse.
    """
    torch.empty(KEPT)  # glibc, once it has freed a block of this size, keeps freed memory up to twice as large
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(n, routing, rows, rounds) for routing in ROUTINGS for n in numbers]
    finally:
        torch.set_num_threads(threads)


def _row(n_experts: int, routing: str, rows: int, rounds: int) -> dict:
    experts, tokens = make(n_experts, rows, ROUTINGS[routing])
    expected = by_sorting(experts, tokens)
    for way in WAYS.values():  # which also warms up
        torch.testing.assert_close(way(experts, tokens), expected, rtol=1e-4, atol=1e-4)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for i in range(rounds):
        for name in list(WAYS)[:: 1 if i % 2 == 0 else -1]:
            begun = time.process_time()
            WAYS[name](experts, tokens)
            times[name].append(1e3 * (time.process_time() - begun))
    load_E = tokens.experts_NK.flatten().bincount(minlength=n_experts).float()
    busiest = (load_E.max() / load_E.mean()).item()
    return {"experts": n_experts, "routing": routing, "busiest": busiest, "milliseconds": times}
