"""What the processes of the tests of expert parallelism do; new processes import it by name."""

import torch.distributed as dist
from torch import Tensor, nn

from minids.device import autocast
from minids.model.config import ModelConfig
from minids.model.moe import MoE
from minids.parallel.experts import ExpertParallel, Formats


def groups_of(rank: int, nodes: int) -> tuple[dist.ProcessGroup, ...]:
    """The groups of one hop for a single node, or those of two."""
    ranks = dist.get_world_size()
    if nodes == 1:
        return (dist.group.WORLD,)
    size = ranks // nodes
    across = [dist.new_group(list(range(place, ranks, size))) for place in range(size)]
    inside = [dist.new_group(list(range(node * size, (node + 1) * size))) for node in range(nodes)]
    return across[rank % size], inside[rank // size]


def make_layer(config: ModelConfig, weights: dict[str, Tensor]) -> MoE:
    layer = MoE(config)
    layer.load_state_dict(weights)
    return layer.train()


def backward(layer: MoE, x_BTD: Tensor, push_BTD: Tensor, dtype: str = "float32") -> tuple[Tensor, Tensor]:
    """The output for these tokens and, for a loss that pulls at it, the gradient of the tokens."""
    x_BTD = x_BTD.clone().requires_grad_()
    with autocast(x_BTD.device, dtype):
        out_BTD, balance = layer(x_BTD)
    ((out_BTD * push_BTD).sum() + balance * len(x_BTD)).backward()
    return out_BTD.detach(), x_BTD.grad


def run_layer(
    rank: int, config: ModelConfig, weights: dict[str, Tensor], x_BTD: list[Tensor], push_BTD: list[Tensor],
    nodes: int, formats: Formats, dtype: str = "float32",
) -> dict:  # fmt: skip
    """One rank's tokens through a layer whose experts are spread over all ranks, forward and backward."""
    layer = make_layer(config, weights)
    parallel = ExpertParallel(groups_of(rank, nodes), formats)
    for name, matrices in list(layer.experts.named_parameters()):
        setattr(layer.experts, name, nn.Parameter(matrices.data.chunk(parallel.ranks)[parallel.place].clone()))
    layer.dispatch, layer.combine = parallel.dispatch, parallel.combine
    out, x_grad = backward(layer, x_BTD[rank], push_BTD[rank], dtype)
    return dict(
        out=out, x_grad=x_grad, grads={name: p.grad for name, p in layer.named_parameters()}, load=layer.gate.load,
        hops=[(hop.sent, hop.bytes_sent, hop.bytes_collected) for hop in parallel.hops],
    )  # fmt: skip
