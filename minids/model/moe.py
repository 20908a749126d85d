"""The mixture of experts (DeepSeekMoE; V3 report §2.1.2): many small feed-forward layers, few used per token.

    MoE(h) = sum over shared experts of FFN_i(h) + sum over chosen experts of g_i FFN_i(h)        (eq. 12)

(h is the report's u, normalised, which eq. 12 does not show. block.py adds the residual.)

The gate computes a score of every expert, chooses the K_r with the highest scores, and weights their outputs (*top-k
routing*). V3's gate, eq. 13-16:

    s_i = sigmoid(h · e_i)                      affinity of the token to expert i
    chosen = top-K_r of (s_i + b_i)             the bias b_i is used here only,
    g_i = s_i / (sum of the chosen s) · 2.5     and not in the weights

The factor 2.5 (`routed_scaling_factor`) is in the released configuration, not in eq. 13. V2 and DeepSeekMoE use a
softmax over all experts and no bias, and do not renormalise the weights.

**Group-limited selection** limits the number of nodes to which a token is sent. Experts are in groups, one per node
(V2: per device). The score of a group is the sum of its two highest scores (V2: its highest score), and experts are
chosen from the `topk_group` best groups only. The others are masked with -inf. A mask of 0 would be wrong: s + b can be
negative, and then a masked expert could be chosen.

**Four stages**, each of which can be replaced separately:

    gate        chooses the experts of each token and their weights
    dispatch    makes one row for each choice of each token, and sorts the rows by expert
    experts     apply each expert to all of its rows in one product
    combine     sums the rows of each token

Expert parallelism replaces `dispatch` and `combine` of a layer by functions that send the rows to other machines and
back. FP8 replaces only the products of the experts (`Experts.product`).

    paper     code                    released weight (mlp.…)
    u         x_ND: h, normalised
    e_i       gate.weight             gate.weight                       (N_r, hidden)
    b_i       gate.expert_bias        gate.e_score_correction_bias      (N_r,)  float32
    FFN^(r)   experts.gate_up_proj    experts.{i}.gate_proj.weight, experts.{i}.up_proj.weight
              experts.down_proj       experts.{i}.down_proj.weight
    FFN^(s)   shared_experts          shared_experts.{gate,up,down}_proj.weight
    c_i       gate.load               not stored

The N_s shared experts are one SwiGLU of N_s times the width, which computes the same sum.
Shape letters: see minids/model/__init__.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minids.model.balance import sequence_balance_loss
from minids.model.config import ModelConfig
from minids.model.grouped import grouped_linear
from minids.model.kernels import local, to_compute_dtype
from minids.model.layers import SwiGLU

ROW_MULTIPLE = 32  # each expert's rows are padded to a multiple of this


class Gate(nn.Module):
    """The router. In training mode it also counts in `load` how many tokens are routed to each expert."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))
        bias = torch.zeros(c.n_routed_experts, dtype=torch.float32) if c.uses_expert_bias else None
        self.register_buffer("expert_bias", bias)
        self.register_buffer("load", torch.zeros(c.n_routed_experts, dtype=torch.int64), persistent=False)

    def _apply(self, fn, recurse=True):
        # The bias moves to the weights' device but stays float32 in a bfloat16 model, as released.
        bias = self.expert_bias
        super()._apply(fn, recurse)
        if bias is not None:
            self.expert_bias = self.expert_bias.float() if bias.is_meta else bias.to(self.weight.device)
        return self

    def reset_balance(self) -> None:
        """Set the bias and the load to zero."""
        self.load.zero_()
        if self.expert_bias is not None:
            self.expert_bias.zero_()

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights g (N, K), the chosen experts (N, K), and all affinities s (N, E), in float32."""
        c = self.config
        with torch.autocast(x_ND.device.type, enabled=False):  # affinities are computed in float32
            logits_NE = F.linear(x_ND.float(), self.weight.float())
        scores_NE = logits_NE.sigmoid() if c.scoring_func == "sigmoid" else logits_NE.softmax(dim=-1)
        experts_NK = self.choose(scores_NE.detach())
        weights_NK = scores_NE.gather(1, experts_NK)  # s, not s + b
        if c.norm_topk_prob:
            weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + 1e-20)
        if self.training:
            self.load += experts_NK.flatten().bincount(minlength=c.n_routed_experts)
        return weights_NK * c.routed_scaling_factor, experts_NK, scores_NE

    def choose(self, scores_NE: Tensor) -> Tensor:
        """Return the indices (N, K) of each token's experts: top-k of s + b within the best groups."""
        c = self.config
        if self.expert_bias is not None:
            scores_NE = scores_NE + self.expert_bias
        if c.topk_method != "greedy" and c.n_group > 1:
            grouped = scores_NE.unflatten(1, (c.n_group, -1))
            best = 2 if c.topk_method == "noaux_tc" else 1  # V3: sum of the two highest scores; V2: the highest
            group_scores = grouped.topk(best, dim=-1).values.sum(dim=-1)
            dropped = group_scores.topk(c.n_group - c.topk_group, dim=-1, largest=False).indices
            dropped = dropped[..., None].expand(-1, -1, grouped.shape[2])
            scores_NE = grouped.scatter(1, dropped, float("-inf")).flatten(1)
        return scores_NE.topk(c.num_experts_per_tok, dim=-1).indices


@dataclass(frozen=True)
class Route:
    """The rows of the experts' input: one for each choice of each token, sorted by expert."""

    weight_R: Tensor  # g_i
    token_R: Tensor  # index of the row's token, of N
    counts_E: Tensor  # number of rows of each expert


def dispatch(x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, n_experts: int) -> tuple[Tensor, Route]:
    """Return the rows sorted by expert, (R, D), in the dtype of the experts' products, and their route."""
    route, x_ND = sort_by_expert(weights_NK, experts_NK, n_experts), to_compute_dtype(x_ND)
    many_rows = len(route.token_R) >= ROW_MULTIPLE * n_experts
    if x_ND.dtype == torch.bfloat16 and x_ND.device.type == "cpu" and many_rows:
        route = fill_up(route)
    return x_ND.index_select(0, route.token_R), route


def sort_by_expert(weights_NK: Tensor, experts_NK: Tensor, n_experts: int) -> Route:
    """Return the route of all tokens' choices, sorted by expert. A choice of `n_experts`, no expert's number, is left
    out."""
    expert_of_choice = experts_NK.flatten()
    counts_E = expert_of_choice.bincount(minlength=n_experts)[:n_experts]
    order = expert_of_choice.argsort(stable=True)[: counts_E.sum()]
    return Route(weights_NK.flatten().index_select(0, order), order // experts_NK.shape[1], counts_E)


def combine(outs_RD: Tensor, route: Route, n_tokens: int) -> Tensor:
    """Return the sum of the experts' outputs for each token, (N, D)."""
    return outs_RD.new_zeros(n_tokens, outs_RD.shape[1]).index_add_(0, route.token_R, outs_RD)


def fill_up(route: Route) -> Route:
    """Return the route with each expert's rows padded to a multiple of `ROW_MULTIPLE`, by rows of token 0 and weight 0.

    Without padding, the matrix products of every training step would have new shapes, and the CPU's bfloat16 library
    prepares a kernel for each new shape. (The few rows of decoding have few shapes and are not padded.)
    """
    token_R, counts_E = route.token_R, route.counts_E
    filled_E = (counts_E + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
    shift_E = (filled_E - counts_E).cumsum(0) - (filled_E - counts_E)  # padding before each expert's rows
    place_R = torch.arange(len(token_R), device=token_R.device) + shift_E.repeat_interleave(counts_E)
    rows = int(filled_E.sum())
    token = token_R.new_zeros(rows).index_copy(0, place_R, token_R)
    return Route(route.weight_R.new_zeros(rows).index_copy(0, place_R, route.weight_R), token, filled_E)


class Experts(nn.Module):
    """The routed experts, with stacked weights: rows sorted by expert -> their weighted outputs.

    With expert parallelism the weights are sharded, and a rank applies the experts that it has.
    """

    product: Callable[[Tensor, Tensor, list[int]], Tensor] = staticmethod(grouped_linear)  # rows, matrices, counts

    def __init__(self, n_experts: int, hidden_size: int, width: int):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(n_experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(n_experts, hidden_size, width))

    def forward(self, x_RD: Tensor, weight_R: Tensor, counts_E: Tensor) -> Tensor:
        """Return g_i FFN_i(h) for each row, (R, D); the first `counts_E[0]` rows are expert 0's, and so on."""
        counts = counts_E.tolist()
        gate, up = self.product(x_RD, local(self.gate_up_proj), counts).chunk(2, dim=-1)
        # The factor g_i is applied before down_proj, where the rows are narrower than the outputs.
        hidden_RI = F.silu(gate) * up * weight_R[:, None].to(x_RD.dtype)
        return self.product(hidden_RI, local(self.down_proj), counts)


class MoE(nn.Module):
    """Routed and shared experts: (B, T, D) -> (B, T, D), and the batch's balance loss."""

    dispatch, combine = staticmethod(dispatch), staticmethod(combine)

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.gate = Gate(c)
        self.experts = Experts(c.n_routed_experts, c.hidden_size, c.moe_intermediate_size)
        if c.n_shared_experts is not None:
            self.shared_experts = SwiGLU(c.hidden_size, c.n_shared_experts * c.moe_intermediate_size)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the sequence-wise balance loss (a scalar, 0 outside training mode)."""
        x_ND = x_BTD.flatten(0, 1)
        weights_NK, experts_NK, scores_NE = self.gate(x_ND)
        rows_RD, route = self.dispatch(x_ND, weights_NK, experts_NK, self.config.n_routed_experts)
        rows_RD = self.experts(rows_RD, route.weight_R, route.counts_E)
        out = self.combine(rows_RD, route, len(x_ND)).view_as(x_BTD)
        del rows_RD  # larger than the output; without gradients this frees memory for the shared experts
        if self.config.n_shared_experts is not None:
            out = out + self.shared_experts(x_BTD)
        return out, self.balance_loss(scores_NE.unflatten(0, x_BTD.shape[:2]))

    def balance_loss(self, scores_BTE: Tensor) -> Tensor:
        if not self.training:
            return scores_BTE.new_zeros(())
        return sequence_balance_loss(scores_BTE, self.config.num_experts_per_tok)
