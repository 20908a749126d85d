"""A router without a model: balancing as feedback control, and as an assignment problem (chapter 5).

The affinities are made up: expert i has the logit p_i + noise, new noise for every token, and its preference p_i is the
same for all tokens, so that without a bias few experts get most tokens. `run_router` routes some hundred steps of such
tokens in milliseconds. The biases are updated by the library's own rule.

**Why the rule works.** Let x_ni be 1 where token n is routed to expert i. The ideal routing is an assignment problem:

    maximise  sum_ni x_ni s_ni,  with K experts for every token and C = N K / E tokens for every expert

A multiplier b_i for each expert's constraint gives the dual function, an upper bound for every vector b:

    D(b) = max_x sum_ni x_ni s_ni + sum_i b_i (load_i - C)
         = sum_n (sum of the K highest s_ni + b_i) - C sum_i b_i

so the multiplier is a bias on the affinities, used in choosing only. A subgradient of D is load - C. A step against it
lowers the bias of an overloaded expert and raises that of an underloaded one. The library's rule is this step with the
sign of each component in place of its size. The smallest D(b) equals the optimum of the assignment.

D(b + c) = D(b) for a number c that is added to all biases: only differences between biases matter.

    N   tokens of a step      E   experts      K   top_k      C   capacity, the even load
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from minids.model.balance import max_violation, update_expert_bias
from minids.validation import require, require_whole

TOKENS, EXPERTS, TOP_K, STEPS = 512, 16, 2, 300
RESOLUTION = 10**6  # of an affinity in best_assignment, which computes with integers


@dataclass(frozen=True)
class RouterRun:
    """What a router did: loads (steps, E), biases after each step (steps, E), and MaxVio of each step (steps,)."""

    speed: float
    loads: Tensor
    biases: Tensor
    max_violation: Tensor


def run_router(
    speed: float, steps: int = STEPS, *, skew: float = 1.0, drift: bool = False,
    tokens: int = TOKENS, experts: int = EXPERTS, top_k: int = TOP_K, seed: int = 0,
) -> RouterRun:  # fmt: skip
    """Route `steps` batches of new tokens and update the biases after each with `speed` γ; return what happened.

    `skew` is the standard deviation of the preferences, in logits; that of the noise is 1. With `drift` the preferences
    change during the run into those of the experts in reverse order.
    """
    require_whole("top_k", top_k, at_most=experts)
    bias_E, loads, biases = torch.zeros(experts), [], []
    for scores_NE in _affinities(steps, tokens, experts, skew, drift, seed):
        loads.append(route(scores_NE, bias_E, top_k))
        update_expert_bias(bias_E, loads[-1], speed)
        biases.append(bias_E.clone())
    violations = torch.tensor([max_violation(load_E) for load_E in loads])
    return RouterRun(speed, torch.stack(loads), torch.stack(biases), violations)


def route(scores_NE: Tensor, bias_E: Tensor, top_k: int) -> Tensor:
    """Return how many tokens each expert gets, (E,), when every token chooses the `top_k` highest s + b."""
    return (scores_NE + bias_E).topk(top_k, dim=1).indices.flatten().bincount(minlength=scores_NE.shape[1])


def preferences(experts: int = EXPERTS, skew: float = 1.0) -> Tensor:
    """Return what all tokens prefer, (E,), in logits: the quantiles of a normal distribution, from low to high."""
    return skew * torch.special.ndtri((torch.arange(experts) + 0.5) / experts)


@lru_cache(maxsize=4)
def _affinities(steps: int, tokens: int, experts: int, skew: float, drift: bool, seed: int) -> Tensor:
    """Return the affinities s of every step, (steps, N, E)."""
    logits = torch.randn(steps, tokens, experts, generator=torch.Generator().manual_seed(seed))
    liked = preferences(experts, skew)
    if drift:
        done = torch.linspace(0, 1, steps)[:, None]
        liked = (1 - done) * liked + done * liked.flip(0)
        liked = liked[:, None]
    return logits.add_(liked).sigmoid_()


@lru_cache
def chance(tokens: int = TOKENS, experts: int = EXPERTS, top_k: int = TOP_K) -> float:
    """Return the mean MaxVio of a step where no expert is preferred: what chance alone leaves."""
    run = run_router(0, skew=0, tokens=tokens, experts=experts, top_k=top_k)
    return run.max_violation.mean().item()


def some_affinities(tokens: int = 64, experts: int = 8, skew: float = 1.0, seed: int = 0) -> Tensor:
    """Return the affinities of one batch, (N, E), small enough for `best_assignment`."""
    return _affinities(1, tokens, experts, skew, False, seed)[0].double()


def dual(scores_NE: Tensor, bias_E: Tensor, top_k: int) -> float:
    """Return D(b), an upper bound for the total affinity of every balanced routing of these tokens."""
    best = (scores_NE + bias_E).topk(top_k, dim=1).values.sum()
    return (best - _capacity(scores_NE, top_k) * bias_E.sum()).item()


def subgradient(scores_NE: Tensor, bias_E: Tensor, top_k: int) -> Tensor:
    """Return a subgradient of D at b, (E,): each expert's load minus the mean load."""
    return route(scores_NE, bias_E, top_k) - _capacity(scores_NE, top_k)


def descend(
    scores_NE: Tensor, top_k: int, speed: float = 0.1, steps: int = STEPS, falling: bool = True
) -> list[Tensor]:
    """Return the biases (E,) after each step of the library's rule on the same tokens, from zeros.

    γ falls from `speed` as 1 / step, or is always `speed`.
    """
    bias_E, found = torch.zeros(scores_NE.shape[1], dtype=scores_NE.dtype), []
    for step in range(1, steps + 1):
        update_expert_bias(bias_E, route(scores_NE, bias_E, top_k), speed / step if falling else speed)
        found.append(bias_E.clone())
    return found


def best_assignment(scores_NE: Tensor, top_k: int) -> Tensor:
    """Return the balanced routing with the highest total affinity, a mask (N, E), found as a flow of least cost.

    The method has nothing in common with biases: each token sends `top_k` units through edges to different experts, and
    each expert passes on as many as its capacity. Affinities are rounded to 1 / RESOLUTION. For small problems: 64
    tokens and 8 experts take about 0.1 s.

    Raises ValueError unless N K is a multiple of E.
    """
    from networkx import DiGraph, min_cost_flow  # slow to import, and used nowhere else

    N, E = scores_NE.shape
    require("N K", N * top_k, N * top_k % E == 0, f"a multiple of the {E} experts")
    graph = DiGraph()
    for n in range(N):
        graph.add_node(("token", n), demand=-top_k)
    for i in range(E):
        graph.add_node(("expert", i), demand=N * top_k // E)
    for n, row in enumerate((scores_NE.double() * RESOLUTION).round().long().tolist()):
        for i, affinity in enumerate(row):
            graph.add_edge(("token", n), ("expert", i), capacity=1, weight=-affinity)
    flow = min_cost_flow(graph)
    return torch.tensor([[flow["token", n]["expert", i] for i in range(E)] for n in range(N)], dtype=torch.bool)


def _capacity(scores_NE: Tensor, top_k: int) -> float:
    N, E = scores_NE.shape
    return N * top_k / E
