"""Expert parallelism: the experts of a layer on many ranks, to which the tokens travel (V3 report §3.2.2).

Each rank has its own tokens, and E / P of a layer's E experts. Between the four stages of a layer (model/moe.py) two of
them become messages:

    gate        chooses among all experts, as always
    dispatch    sends each token to the ranks that have one of its experts, with its choices and their weights
    experts     apply each expert of this rank to all tokens that have arrived for it
    combine     sums the outputs of a token's experts on this rank, sends the sum back, and adds up what comes back

Both are an *all-to-all*: every rank has a message for every other one, and their sizes differ (*uneven splits*). A
token is sent once to each rank that needs it, not once for each expert. The weights g travel with it, so the sum on the
rank of the experts is weighted already, one row comes back, and the gradient of the router comes back by the same way.

**Hops.** All this is built from one step. A *hop* is between the ranks of a group: a mask says which rows are copied to
which rank; `send` copies them there, and `collect` brings one row back for each copy and sums them. The gradient of
`send` is a `collect`, and that of `collect` is a `send`.

    flat        one hop among all ranks
    two hops    first to each node with one of the token's experts, to the rank with the sender's number there; then
                inside the node. A token crosses to another node once, however many of its experts are there

Between nodes there is InfiniBand (50 GB/s for a GPU), inside a node NVLink (160 GB/s). In V3, the gate chooses experts
of at most four nodes for each token. The limit is in the gate: the messages only follow its choices.

**Formats.** In V3 a token is dispatched in FP8, in tiles of 1 x 128 with powers of two as scales, as the products of
the experts need it anyway; outputs come back in BF16. Of the gradients, those of the experts' outputs travel as tokens
do, and those of the tokens as outputs do (§3.3.3). `Formats()` leaves the numbers as they are.

The trainers here send rows as they are computed, also with dtype fp8.

What production does besides: it overlaps messages with other computation, in V3 on 20 of a GPU's 132 multiprocessors,
and forwards rows in chunks as they arrive (DeepEP).

Letters: P ranks of a hop's group, S rows that are sent, M rows that arrive; the others in minids/model/__init__.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from minids.model import moe
from minids.model.moe import MoE, Route
from minids.quantization.fp8 import Quantized, dequantize, quantize

GRADIENT_FLOOR = 1e-30  # least amax of a tile of a gradient: in effect none (quantization/fp8.py)


@dataclass(frozen=True)
class Formats:
    """In which numbers rows travel; None: as they are. V3's are `Formats(dispatch=128, combine=torch.bfloat16)`."""

    dispatch: int | None = None  # FP8, in tiles of 1 x this many numbers, which share a scale
    combine: torch.dtype | None = None


AS_COMPUTED = Formats()


def spread_experts(
    model: nn.Module, mesh: DeviceMesh, groups: tuple[ProcessGroup, ...], formats: Formats = AS_COMPUTED
) -> None:
    """Let each rank of a mesh keep its part of the experts of all layers, and let the tokens travel between them.

    All ranks must have the same weights before. `groups` are those of `ExpertParallel`, for the ranks of the mesh.
    """
    for layer in [module for module in model.modules() if isinstance(module, MoE)]:
        parallel = ExpertParallel(groups, formats)
        layer.dispatch, layer.combine = parallel.dispatch, parallel.combine
        for name, matrices in list(layer.experts.named_parameters()):
            sharded = distribute_tensor(matrices.detach(), mesh, [Shard(0)], src_data_rank=None)
            setattr(layer.experts, name, nn.Parameter(sharded))


class ExpertParallel:
    """Dispatch and combine among the ranks of one group or, by two hops, of two.

    `groups` are those of this rank, from the outermost: (all ranks,), or (the ranks with the same number on all nodes,
    the ranks of the node). Experts are on the ranks in their order: rank 0 of node 0 has the first ones. `hops` are
    those of the last dispatch, for looking at the traffic.
    """

    def __init__(self, groups: tuple[ProcessGroup, ...], formats: Formats = AS_COMPUTED):
        self.groups, self.formats, self.hops = groups, formats, []

    @property
    def ranks(self) -> int:
        """Over how many ranks the experts are spread."""
        return math.prod(group.size() for group in self.groups)

    @property
    def place(self) -> int:
        """Which of these this rank is."""
        place = 0
        for group in self.groups:
            place = place * group.size() + group.rank()
        return place

    def dispatch(
        self, x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, n_experts: int
    ) -> tuple[Tensor, Travelled]:
        """Send the tokens to the ranks of their experts. Return the rows of this rank's experts, sorted by expert, and
        their route."""
        x_ND, self.hops = moe.to_compute_dtype(x_ND), []
        for group in self.groups:
            n_experts //= group.size()  # of one rank of the group, with all that follow from it
            rank_NK = experts_NK.div(n_experts, rounding_mode="floor")
            hop = Hop((rank_NK[:, :, None] == torch.arange(group.size(), device=x_ND.device)).any(dim=1), group)
            x_ND, weights_NK = hop.send(x_ND, self.formats), hop.send(weights_NK)
            # Counted from the first expert here. Choices that are elsewhere are below 0 or above the last one.
            experts_NK = hop.send(experts_NK) - group.rank() * n_experts
            self.hops.append(hop)
        here_NK = experts_NK.where((experts_NK >= 0) & (experts_NK < n_experts), n_experts)
        rows_RD, route = moe.dispatch(x_ND, weights_NK, here_NK, n_experts)
        return rows_RD, Travelled(route.weight_R, route.token_R, route.counts_E, len(x_ND), tuple(self.hops))

    def combine(self, outs_RD: Tensor, route: Travelled, n_tokens: int) -> Tensor:
        """Return the sum of the experts' outputs for each token of this rank, (N, D)."""
        sums_MD = moe.combine(outs_RD, route, route.arrived)
        for hop in reversed(route.hops):
            sums_MD = hop.collect(sums_MD, self.formats)
        return sums_MD


@dataclass(frozen=True)
class Travelled(Route):
    """The rows of this rank's experts: `token_R` counts the tokens that arrived, and the hops lead back."""

    arrived: int
    hops: tuple[Hop, ...]


class Hop:
    """Copies of rows, sent to the ranks of a group and collected again.

    The mask (N, P) says which rows are copied to which rank. `sent` and `received` are the numbers of copies by rank;
    `bytes_sent` and `bytes_collected` are those of one copy, on its way there and back, of all that was sent so far.
    """

    def __init__(self, mask_NP: Tensor, group: ProcessGroup):
        self.group, self.rows = group, len(mask_NP)
        self.source_S = mask_NP.mT.nonzero()[:, 1]  # in the order of the ranks
        sent_P = mask_NP.sum(dim=0)
        received_P = torch.empty_like(sent_P)
        dist.all_to_all_single(received_P, sent_P, group=group)
        self.sent, self.received = sent_P.tolist(), received_P.tolist()
        self.bytes_sent = self.bytes_collected = 0

    def send(self, x_NX: Tensor, formats: Formats = AS_COMPUTED) -> Tensor:
        """Return the copies that arrive here, (M, X), in the order of their senders."""
        return Exchange.apply(x_NX.index_select(0, self.source_S), self, True, formats)

    def collect(self, y_MX: Tensor, formats: Formats = AS_COMPUTED) -> Tensor:
        """Return for each row the sum of what its copies have become on the other ranks, (N, X)."""
        y_SX = Exchange.apply(y_MX, self, False, formats)
        return y_SX.new_zeros(self.rows, y_SX.shape[1]).index_add_(0, self.source_S, y_SX)


class Exchange(torch.autograd.Function):
    """An all-to-all of rows, there or back; the gradient takes the opposite way, in its own format."""

    @staticmethod
    def forward(ctx, rows_SX: Tensor, hop: Hop, there: bool, formats: Formats) -> Tensor:
        ctx.rest = hop, there, formats
        out_MX, size = exchange(rows_SX, hop, there, formats)
        if there:
            hop.bytes_sent += size
        else:
            hop.bytes_collected += size
        return out_MX

    @staticmethod
    def backward(ctx, grad_MX: Tensor):
        hop, there, formats = ctx.rest
        return exchange(grad_MX, hop, not there, formats, floor=GRADIENT_FLOOR)[0], None, None, None


def exchange(rows_SX: Tensor, hop: Hop, there: bool, formats: Formats, **cast) -> tuple[Tensor, int]:
    """Return the rows that arrive, in the dtype of those that leave, and the bytes of one row's message."""
    arriving, leaving = (hop.received, hop.sent) if there else (hop.sent, hop.received)
    message_SX, tile = rows_SX, formats.dispatch if there else None
    if tile is not None:
        message_SX = to_bytes(quantize(rows_SX, (1, tile), power_of_two_scales=True, **cast))
    elif not there and formats.combine is not None:
        message_SX = rows_SX.to(formats.combine)
    out_MX = message_SX.new_empty(sum(arriving), message_SX.shape[1])
    dist.all_to_all_single(out_MX, message_SX.contiguous(), arriving, leaving, group=hop.group)
    size = message_SX.shape[1] * message_SX.element_size()
    if tile is not None:
        out_MX = dequantize(from_bytes(out_MX, rows_SX.shape[1], tile))
    return out_MX.to(rows_SX.dtype), size


def to_bytes(x: Quantized) -> Tensor:
    """Return each row's message, (rows, bytes): its codes, then its scales, of which only the exponents are sent."""
    return torch.cat([x.values.view(torch.uint8), x.scales.to(torch.float8_e8m0fnu).view(torch.uint8)], dim=1)


def from_bytes(message: Tensor, width: int, tile: int) -> Quantized:
    """The inverse of `to_bytes`."""
    values, scales = message[:, :width].contiguous(), message[:, width:].contiguous()
    return Quantized(values.view(torch.float8_e4m3fn), scales.view(torch.float8_e8m0fnu).float(), (1, tile))
