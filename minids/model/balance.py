"""Load balancing of experts: the bias update, the sequence-wise loss, and two measures of imbalance.

A mixture-of-experts layer (moe.py) has many small feed-forward layers, the experts. A router, or gate, computes a score
of each expert for each token, its affinity, and routes the token to the experts with the highest scores.

Without balancing, routing collapses: few experts get most tokens, and the others hardly learn. The usual remedy is an
auxiliary loss, but its gradient interferes with that of the language model. DeepSeek-V3 adds a bias to each score
instead (V3 report §2.1.2; Wang et al. 2024, algorithm 1). After every step, it lowers the bias of each overloaded
expert by γ and raises that of each underloaded one. The bias is used to choose the experts, not to weight their
outputs, so it gets no gradient.

V3 still has a very small auxiliary loss (eq. 17-20), against extreme imbalance within a single sequence. So "without
auxiliary loss" is not quite true of V3.

    paper     code                        paper     code
    γ         speed                       f_i       share of a sequence's choices, 1 = even
    c_i       load_E, tokens routed to    P_i       mean normalised affinity
              each expert
    b_i       expert_bias                 α         balance_weight, a factor in the model's loss

Shape letters: see minids/model/__init__.py.
"""

import torch
from torch import Tensor


@torch.no_grad()
def update_expert_bias(expert_bias: Tensor, load_E: Tensor, speed: float) -> None:
    """Change each bias by `speed` towards an even load, in place: b_i += γ sign(mean(c) - c_i)."""
    load_E = load_E.float()
    expert_bias += speed * torch.sign(load_E.mean() - load_E)


def sequence_balance_loss(scores_BTE: Tensor, top_k: int) -> Tensor:
    """Return sum_i f_i P_i per sequence, averaged over the batch; a scalar (V3 report eq. 17-20, without α).

    `scores_BTE` are the gate's affinities s, positive and without bias. The loss is computed for each sequence and then
    averaged: with f and P averaged over the batch first, opposite imbalances of two sequences would cancel. Even
    routing gives 1.
    """
    B, T, E = scores_BTE.shape
    chosen = scores_BTE.topk(top_k, dim=-1).indices  # eq. 18: without the bias
    counts_BE = scores_BTE.new_zeros(B, E).scatter_add_(1, chosen.flatten(1), scores_BTE.new_ones(B, T * top_k))
    f_BE = counts_BE * E / (top_k * T)
    P_BE = (scores_BTE / scores_BTE.sum(dim=-1, keepdim=True)).mean(dim=1)
    return (f_BE * P_BE).sum(dim=-1).mean()


def max_violation(load_E: Tensor) -> float:
    """Return MaxVio, (max load - mean load) / mean load: 0 is even (Wang et al. 2024, eq. 4).

    Raises ValueError if all loads are zero, because nothing was routed.
    """
    _require_routed(load_E)
    return load_E.max().item() / load_E.float().mean().item() - 1


def dead_experts(load_E: Tensor) -> int:
    """Return the number of experts that received no token. Such an expert gets no gradient.

    Raises ValueError if all loads are zero, because nothing was routed.
    """
    _require_routed(load_E)
    return int((load_E == 0).sum())


def _require_routed(load_E: Tensor) -> None:
    if not load_E.any():
        raise ValueError("the load is zero for every expert: route some tokens in training mode first.")
