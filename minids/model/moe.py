"""The mixture of experts (DeepSeekMoE; V3 report §2.1.2): many small feed-forward layers, few used per token.

    h' = u + sum_shared FFN_i(u) + sum_chosen g_i FFN_i(u)                              (eq. 12)

(block.py adds the u in front, and the FFNs get u normalised, which eq. 12 does not say.)

The gate scores every expert, keeps the best K_r, and weighs their outputs. V3's gate, eq. 13-16:

    s_i = sigmoid(u · e_i)                      affinity of the token to expert i
    chosen = top-K_r of (s_i + b_i)             the bias b_i chooses ...
    g_i = s_i / (sum of the chosen s) · 2.5     ... and never weighs

The factor (`routed_scaling_factor`) is in the released configuration, not in eq. 13. V2 and
DeepSeekMoE use softmax over all experts, no bias, and do not renormalise.

**Group-limited selection** keeps a token on few machines: experts are in groups, one per node (V2:
per device); a group scores by its two best experts (V2: by its best), and only the best `topk_group`
groups stay eligible. The others are masked with -inf. Zero would be wrong: s + b can be negative, and
then a masked expert would win.

**Four stages**, so that each can be replaced alone:

    gate        which experts each token uses, and with what weights
    dispatch    every choice of every token becomes a row; the rows are sorted by expert
    experts     the rows of one expert go through it in one product
    combine     the rows of a token are added up

Expert parallelism puts its own `dispatch` and `combine` into a layer, which send the rows to other machines and back.
FP8 changes only the products of the experts (`Experts.product`).

    paper     code                    released weight (mlp.…)
    e_i       gate.weight             gate.weight                       (N_r, hidden)
    b_i       gate.expert_bias        gate.e_score_correction_bias      (N_r,)  float32
    FFN^(r)   experts.gate_up_proj    experts.{i}.gate_proj.weight, experts.{i}.up_proj.weight
              experts.down_proj       experts.{i}.down_proj.weight
    FFN^(s)   shared_experts          shared_experts.{gate,up,down}_proj.weight
    c_i       gate.load               not stored

All N_s shared experts are one SwiGLU of N_s times the width, which computes the same sum.
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
from minids.model.kernels import to_compute_dtype
from minids.model.layers import SwiGLU

ROW_MULTIPLE = 32  # the rows of an expert are filled up to a multiple of this


class Gate(nn.Module):
    """The router. In training mode it also counts, in `load`, how often each expert is chosen."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))
        bias = torch.zeros(c.n_routed_experts, dtype=torch.float32) if c.uses_expert_bias else None
        self.register_buffer("expert_bias", bias)
        self.register_buffer("load", torch.zeros(c.n_routed_experts, dtype=torch.int64), persistent=False)

    def _apply(self, fn, recurse=True):
        # The bias moves with the weights but stays float32 in a bfloat16 model, as released.
        bias = self.expert_bias
        super()._apply(fn, recurse)
        if bias is not None:
            self.expert_bias = self.expert_bias.float() if bias.is_meta else bias.to(self.weight.device)
        return self

    def reset_balance(self) -> None:
        """Set the bias and the counts back to zero."""
        self.load.zero_()
        if self.expert_bias is not None:
            self.expert_bias.zero_()

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights g (N, K), the chosen experts (N, K), and all affinities s (N, E), in float32."""
        c = self.config
        with torch.autocast(x_ND.device.type, enabled=False):  # routing is decided in float32
            logits_NE = F.linear(x_ND.float(), self.weight.float())
        scores_NE = logits_NE.sigmoid() if c.scoring_func == "sigmoid" else logits_NE.softmax(dim=-1)
        experts_NK = self.choose(scores_NE.detach())
        weights_NK = scores_NE.gather(1, experts_NK)  # of s, not of s + b
        if c.norm_topk_prob:
            weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + 1e-20)
        if self.training:
            self.load += experts_NK.flatten().bincount(minlength=c.n_routed_experts)
        return weights_NK * c.routed_scaling_factor, experts_NK, scores_NE

    def choose(self, scores_NE: Tensor) -> Tensor:
        """Return the indices (N, K) of each token's experts: the best by s + b, within the best groups."""
        c = self.config
        if self.expert_bias is not None:
            scores_NE = scores_NE + self.expert_bias
        if c.topk_method != "greedy" and c.n_group > 1:
            grouped = scores_NE.unflatten(1, (c.n_group, -1))
            best = 2 if c.topk_method == "noaux_tc" else 1  # V3 sums a group's two best, V2 takes the best
            group_scores = grouped.topk(best, dim=-1).values.sum(dim=-1)
            dropped = group_scores.topk(c.n_group - c.topk_group, dim=-1, largest=False).indices
            dropped = dropped[..., None].expand(-1, -1, grouped.shape[2])
            scores_NE = grouped.scatter(1, dropped, float("-inf")).flatten(1)
        return scores_NE.topk(c.num_experts_per_tok, dim=-1).indices


@dataclass(frozen=True)
class Route:
    """Where the rows that the experts work on come from: a row for each choice of each token, sorted by expert."""

    weight_R: Tensor  # g_i of the choice
    token_R: Tensor  # which of the N tokens the row belongs to
    counts_E: Tensor  # how many rows each expert gets


def dispatch(x_ND: Tensor, weights_NK: Tensor, experts_NK: Tensor, n_experts: int) -> tuple[Tensor, Route]:
    """Return the tokens as rows sorted by expert, (R, D), in the dtype of the experts' products, and their route."""
    route, x_ND = sort_by_expert(weights_NK, experts_NK, n_experts), to_compute_dtype(x_ND)
    many_rows = len(route.token_R) >= ROW_MULTIPLE * n_experts
    if x_ND.dtype == torch.bfloat16 and x_ND.device.type == "cpu" and many_rows:
        route = fill_up(route)
    return x_ND.index_select(0, route.token_R), route


def sort_by_expert(weights_NK: Tensor, experts_NK: Tensor, n_experts: int) -> Route:
    """Return the choices of all tokens in the order of their experts."""
    expert_of_choice = experts_NK.flatten()
    order = expert_of_choice.argsort(stable=True)
    counts_E = expert_of_choice.bincount(minlength=n_experts)
    return Route(weights_NK.flatten().index_select(0, order), order // experts_NK.shape[1], counts_E)


def combine(outs_RD: Tensor, route: Route, n_tokens: int) -> Tensor:
    """Return for each token the sum of the outputs of its rows, (N, D)."""
    return outs_RD.new_zeros(n_tokens, outs_RD.shape[1]).index_add_(0, route.token_R, outs_RD)


def fill_up(route: Route) -> Route:
    """Return the route with rows of token 0 and weight 0 after each expert's, up to a multiple of `ROW_MULTIPLE`.

    Without them every training step would bring matrix products of new shapes, and for each of those the CPU's
    bfloat16 library prepares a kernel anew. (Few rows, as in decoding, have few shapes and stay as they are.)
    """
    token_R, counts_E = route.token_R, route.counts_E
    filled_E = (counts_E + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
    shift_E = (filled_E - counts_E).cumsum(0) - (filled_E - counts_E)  # rows filled in before each expert's
    place_R = torch.arange(len(token_R), device=token_R.device) + shift_E.repeat_interleave(counts_E)
    rows = int(filled_E.sum())
    token = token_R.new_zeros(rows).index_copy(0, place_R, token_R)
    return Route(route.weight_R.new_zeros(rows).index_copy(0, place_R, route.weight_R), token, filled_E)


class Experts(nn.Module):
    """The routed experts' weights, stacked, and their computation: rows sorted by expert -> their weighted outputs."""

    product: Callable[[Tensor, Tensor, list[int]], Tensor] = staticmethod(grouped_linear)  # of rows, matrices, counts

    def __init__(self, n_experts: int, hidden_size: int, width: int):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(n_experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(n_experts, hidden_size, width))

    def forward(self, x_RD: Tensor, weight_R: Tensor, counts_E: Tensor) -> Tensor:
        """Return g_i FFN_i(x) for each row, (R, D); the first `counts_E[0]` rows are expert 0's, and so on."""
        counts = counts_E.tolist()
        gate, up = self.product(x_RD, self.gate_up_proj, counts).chunk(2, dim=-1)
        # g_i could multiply the outputs instead, but these rows are narrower.
        hidden_RI = F.silu(gate) * up * weight_R[:, None].to(x_RD.dtype)
        return self.product(hidden_RI, self.down_proj, counts)


class MoE(nn.Module):
    """Routed and shared experts: (B, T, D) -> (B, T, D), and the balance loss of the batch."""

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
        del rows_RD  # many more numbers than the tokens; without gradients the shared experts can have the memory
        if self.config.n_shared_experts is not None:
            out = out + self.shared_experts(x_BTD)
        return out, self.balance_loss(scores_NE.unflatten(0, x_BTD.shape[:2]))

    def balance_loss(self, scores_BTE: Tensor) -> Tensor:
        if not self.training:
            return scores_BTE.new_zeros(())
        return sequence_balance_loss(scores_BTE, self.config.num_experts_per_tok)
