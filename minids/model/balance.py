"""Keeping experts equally busy: the bias update, the sequence-wise loss, and how far off we are.

A mixture-of-experts layer (moe.py) has many small feed-forward layers, the experts. For each token a
router, or gate, gives every expert a score, its affinity, and the token is sent to the best few.

A router left alone sends most tokens to few experts, and the others never learn. The classic cure
is an auxiliary loss, whose gradient fights the language model's. DeepSeek-V3 moves a bias instead
(V3 report §2.1.2; Wang et al. 2024, algorithm 1): after every step, each overloaded expert's bias
goes down by γ and each underloaded one's up. The bias takes part in choosing the experts and never
in weighing them, so no gradient sees it.

A very small loss stays (eq. 17-20), against extreme imbalance inside a single sequence. "Without
auxiliary loss" is not quite true of V3.

    paper     code                        paper     code
    γ         speed                       f_i       share of a sequence's choices, 1 = even
    c_i       load_E, tokens an expert    P_i       mean normalised affinity
              was chosen by
    b_i       expert_bias                 α         balance_weight, applied by the model's loss

Shape letters: see minids/model/__init__.py.
"""

import torch
from torch import Tensor


@torch.no_grad()
def update_expert_bias(expert_bias: Tensor, load_E: Tensor, speed: float) -> None:
    """Move each bias in place by `speed` towards even load: b_i += γ sign(mean(c) - c_i)."""
    load_E = load_E.float()
    expert_bias += speed * torch.sign(load_E.mean() - load_E)


def sequence_balance_loss(scores_BTE: Tensor, top_k: int) -> Tensor:
    """Return sum_i f_i P_i per sequence, averaged over the batch; a scalar (V3 report eq. 17-20, without α).

    `scores_BTE` are the gate's affinities s, positive and without bias. The loss is taken within
    each sequence first and averaged after: the other order would let two lopsided sequences cancel.
    Even routing gives 1.
    """
    B, T, E = scores_BTE.shape
    chosen = scores_BTE.topk(top_k, dim=-1).indices  # eq. 18: without the bias
    counts_BE = scores_BTE.new_zeros(B, E).scatter_add_(1, chosen.flatten(1), scores_BTE.new_ones(B, T * top_k))
    f_BE = counts_BE * E / (top_k * T)
    P_BE = (scores_BTE / scores_BTE.sum(dim=-1, keepdim=True)).mean(dim=1)
    return (f_BE * P_BE).sum(dim=-1).mean()


def max_violation(load_E: Tensor) -> float:
    """Return MaxVio, (max load - mean load) / mean load: 0 is even (Wang et al. 2024, eq. 4).

    Raises ValueError for an all-zero load: nothing was routed.
    """
    mean = load_E.float().mean().item()
    if mean == 0:
        raise ValueError("the load is zero for every expert: route some tokens in training mode first.")
    return load_E.max().item() / mean - 1
