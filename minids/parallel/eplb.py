"""Which GPU holds which expert: EPLB, DeepSeek's load balancer for expert parallelism (V3 report §3.4).

A layer of experts is as slow as its busiest GPU. In training a bias keeps the loads even (balance.py). In serving the
loads are what users ask for, so the placement has to follow them: busy experts get *replicas*, and replicas are placed
such that each GPU gets about the same load. From the measured load of each expert:

1. Pack groups of experts onto nodes. A token chooses experts of few groups, so it is sent to few nodes.
2. In each node, give a replica to the expert with the highest load per replica, until all places are taken.
3. In each node, pack the replicas onto the GPUs.

Packing means here: take the items from the heaviest to the lightest, and put each into the lightest pack that has room.
The best packing is NP-hard to find, and this one can be improved. For example, nothing keeps two replicas of an expert
from the same GPU, where the second is useless (loads 5, 3, 2 on 2 GPUs with 2 places each: 1, 2 and 0, 0). The
entry point, its arguments and all results are those of DeepSeek's published code (github.com/deepseek-ai/EPLB), also
where it does not place well, because serving engines use this algorithm.

Letters: L layers or independent problems, E experts, R replicas (physical experts), X items.
"""

import torch
from torch import Tensor

from minids.validation import require, require_whole


def balanced_packing(weight_LX: Tensor, num_packs: int) -> tuple[Tensor, Tensor]:
    """Put as many items into each pack, of about equal weight; return each item's pack and place in it, (L, X)."""
    items = weight_LX.shape[1]
    require_whole("num_packs", num_packs)
    require("num_packs", num_packs, items % num_packs == 0, f"a divisor of the number of items, {items}")
    room = items // num_packs
    pack_LX, place_LX = torch.zeros_like(weight_LX, dtype=torch.int64), torch.zeros_like(weight_LX, dtype=torch.int64)
    if room == 1:
        return pack_LX + torch.arange(items), place_LX
    for layer, order in enumerate(weight_LX.float().sort(dim=1, descending=True).indices.tolist()):
        weights, filled, own = [0] * num_packs, [0] * num_packs, weight_LX[layer].numpy()  # sums in float32 decide ties
        for item in order:
            pack = min((p for p in range(num_packs) if filled[p] < room), key=weights.__getitem__)
            pack_LX[layer, item], place_LX[layer, item] = pack, filled[pack]
            weights[pack] += own[item]
            filled[pack] += 1
    return pack_LX, place_LX


def replicate_experts(weight_LE: Tensor, num_replicas: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give each expert one replica, and each further one to the expert with the highest load per replica.

    Returns for each replica its expert and its number among that expert's replicas, (L, R), and for each expert the
    number of its replicas, (L, E).
    """
    layers, experts = weight_LE.shape
    require_whole("num_replicas", num_replicas, at_least=experts)
    expert_LR = torch.arange(num_replicas).repeat(layers, 1)
    number_LR, count_LE = torch.zeros_like(expert_LR), torch.ones_like(weight_LE, dtype=torch.int64)
    layer = torch.arange(layers)
    for replica in range(experts, num_replicas):
        busiest = (weight_LE / count_LE).argmax(dim=1)
        expert_LR[:, replica], number_LR[:, replica] = busiest, count_LE[layer, busiest]
        count_LE[layer, busiest] += 1
    return expert_LR, number_LR, count_LE


def rebalance_experts(
    weight: Tensor, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a placement of `num_replicas` replicas on GPUs for the loads `weight`, (layers, experts).

    Three tensors of int64: `phy2log` (L, R), the expert of each replica, where the first R / num_gpus replicas are on
    GPU 0, and so on; `log2phy` (L, E, most replicas of an expert), the replicas of each expert, filled with -1; and
    `logcnt` (L, E), their number. If the nodes do not divide the groups, groups and nodes are ignored (the *global*
    policy, for large decoding units); else the steps above are taken (the *hierarchical* one, for prefill).

    Raises ValueError for numbers that do not divide each other, for fewer replicas than experts, and for loads that are
    negative or not finite.
    """
    weight = torch.as_tensor(weight)
    require("weight", tuple(weight.shape), weight.ndim == 2, "of shape (layers, experts)")
    for layer, expert in (~((weight >= 0) & weight.isfinite())).nonzero().tolist():
        require(f"weight[{layer}, {expert}]", weight[layer, expert].item(), False, "a finite load of at least 0")
    experts = weight.shape[1]
    for name, value in dict(num_groups=num_groups, num_nodes=num_nodes, num_gpus=num_gpus).items():
        require_whole(name, value)
    require_whole("num_replicas", num_replicas, at_least=experts)
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    require("num_groups", num_groups, experts % num_groups == 0, f"a divisor of the number of experts, {experts}")
    require("num_gpus", num_gpus, num_gpus % num_nodes == 0, f"a multiple of num_nodes={num_nodes}")
    require("num_replicas", num_replicas, num_replicas % num_gpus == 0, f"a multiple of num_gpus={num_gpus}")
    weight = weight.float().cpu()
    expert_LR, number_LR, count_LE = _place(weight, num_replicas, num_groups, num_nodes, num_gpus)
    replicas_LEX = expert_LR.new_full((*weight.shape, int(count_LE.max())), -1)
    layer_L1 = torch.arange(len(weight))[:, None]
    replicas_LEX[layer_L1, expert_LR, number_LR] = torch.arange(num_replicas)
    return expert_LR, replicas_LEX, count_LE


def _place(weight_LE: Tensor, replicas: int, groups: int, nodes: int, gpus: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the three steps; return each replica's expert and number, and each expert's number of replicas."""
    layers, experts = weight_LE.shape
    size = experts // groups
    # 1. Experts in the order of the nodes: slot (node, place of the group in it, place in the group) -> expert.
    node_LG, place_LG = balanced_packing(weight_LE.unflatten(1, (groups, size)).sum(dim=2), nodes)
    slot_LE = ((node_LG * (groups // nodes) + place_LG)[..., None] * size + torch.arange(size)).flatten(1)
    expert_LE = slot_LE.argsort(dim=1)
    # 2. Each node is a problem of its own from here on: N = layers x nodes, e experts of a node, r replicas of it.
    weight_Ne = weight_LE.gather(1, expert_LE).view(layers * nodes, -1)
    slot_Nr, number_Nr, count_Ne = replicate_experts(weight_Ne, replicas // nodes)
    # 3. Replicas in the order of the GPUs.
    gpu_Nr, place_Nr = balanced_packing((weight_Ne / count_Ne).gather(1, slot_Nr), gpus // nodes)
    order_Nr = (gpu_Nr * (replicas // gpus) + place_Nr).argsort(dim=1)
    # Back to the experts of the whole layer.
    first_L1N1 = torch.arange(0, experts, experts // nodes)[None, :, None]
    slot_LR = (slot_Nr.gather(1, order_Nr).view(layers, nodes, -1) + first_L1N1).flatten(1)
    number_LR = number_Nr.gather(1, order_Nr).view(layers, -1)
    return expert_LE.gather(1, slot_LR), number_LR, count_Ne.view(layers, -1).gather(1, slot_LE)
