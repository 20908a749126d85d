"""Measures a trained model's routing: which experts its tokens are sent to, and what it loses without some.

The gates are observed, or changed for the length of a `with` block, from outside: the model itself is not edited.
Several changes can be combined in one `with` statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minids.model.deepseek import DeepSeek
from minids.model.moe import Gate, MoE
from minids.validation import require

BATCH, SHUFFLES = 16, 20


def moe_layers(model: DeepSeek) -> list[MoE]:
    """Return the MoE layers of the model's body, in order; not those of its MTP modules."""
    return [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoE)]


def chosen_experts(model: DeepSeek, rows: np.ndarray | Tensor) -> Tensor:
    """Return the experts of every token, (layers, B, T, K), for rows of tokens (B, T), in evaluation mode."""
    return gate_outputs(model, rows)[1]


@torch.no_grad()
def gate_outputs(model: DeepSeek, rows: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights and the experts of every token, each (layers, B, T, K), for rows of tokens (B, T)."""
    rows, found = torch.as_tensor(rows).long(), [[] for _ in moe_layers(model)]
    hooks = [
        moe.gate.register_forward_hook(lambda _, args, out, into=into: into.append(out[:2]))
        for moe, into in zip(moe_layers(model), found, strict=True)
    ]
    training = model.training
    try:
        model.eval()
        for part in rows.split(BATCH):
            model.hidden_states(part)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    layers = [[torch.cat(parts).unflatten(0, rows.shape) for parts in zip(*layer, strict=True)] for layer in found]
    weights, experts = zip(*layers, strict=True)
    return torch.stack(weights), torch.stack(experts)


def loads(experts: Tensor, n_experts: int) -> Tensor:
    """Return how many tokens each expert of each layer gets, (layers, E), from chosen experts (layers, B, T, K)."""
    return torch.stack([layer.flatten().bincount(minlength=n_experts) for layer in experts])


def groups_touched(experts: Tensor, n_experts: int, n_groups: int) -> float:
    """Return how many of `n_groups` groups of experts a token is sent to, on average over (layers, B, T, K)."""
    touched = torch.nn.functional.one_hot(experts // (n_experts // n_groups), n_groups).amax(dim=-2)
    return touched.sum(dim=-1).float().mean().item()


def information(counts: np.ndarray) -> float:
    """Return the mutual information of two labels in bits, from a table of how often they occur together.

    0: a token's expert says nothing about its domain. With D equally frequent domains at most log2 D.
    """
    shares = np.asarray(counts, dtype=float) / np.sum(counts)
    independent = shares.sum(axis=1, keepdims=True) * shares.sum(axis=0, keepdims=True)
    there = shares > 0
    return float((shares[there] * np.log2(shares[there] / independent[there])).sum())


def information_and_control(experts: Tensor, labels: list[int], n_experts: int, seed: int = 0) -> tuple[float, float]:
    """Return the mutual information of expert and row label in one layer, and its mean with the labels shuffled.

    `experts` is (B, T, K), with a label for each row. Whole rows are shuffled, because the tokens of a row belong
    together: what is left with shuffled labels comes from the differences between texts, and from their small number.
    """
    by_row = torch.stack([row.flatten().bincount(minlength=n_experts) for row in experts]).numpy()
    domains, generator = np.array(labels), np.random.default_rng(seed)

    def of(domains: np.ndarray) -> float:
        return information(np.stack([by_row[domains == label].sum(axis=0) for label in np.unique(domains)]))

    return of(domains), float(np.mean([of(generator.permutation(domains)) for _ in range(SHUFFLES)]))


@contextmanager
def choosing(model: DeepSeek, choose: Callable[[Tensor, int], Tensor]) -> Iterator[None]:
    """Change what the gates of the body choose from, until the block ends.

    `choose(scores_NE, layer)` gets the scores that a layer's gate selects by (s + b) and returns other ones; an expert
    with a score of -inf is not chosen while enough others are left. The weights are still those of the experts that are
    chosen. (The bias is added, taken off and added again, which rounds: of two scores that are equal but for their last
    bit, the other one may be chosen.)
    """
    gates = [moe.gate for moe in moe_layers(model)]
    outer = [vars(gate).get("choose") for gate in gates]  # of a block around this one

    def changed(gate: Gate, layer: int) -> Callable[[Tensor], Tensor]:
        bias, inner = 0 if gate.expert_bias is None else gate.expert_bias, gate.choose
        # The gate adds its bias again, to scores that it has no part in yet.
        return lambda scores_NE: inner(choose(scores_NE + bias, layer) - bias)

    for layer, gate in enumerate(gates):
        gate.choose = changed(gate, layer)
    try:
        yield
    finally:
        for gate, before in zip(gates, outer, strict=True):
            del gate.choose
            if before is not None:
                gate.choose = before


def without_best(model: DeepSeek, count: int):
    """Leave out each token's `count` best experts, so that the next best are chosen (DeepSeekMoE, §4.5, figure 4).

    The best are those of the highest s + b in any group; in a model with groups, some may not have been chosen anyway.
    """

    def choose(scores_NE: Tensor, layer: int) -> Tensor:
        return scores_NE.scatter(1, scores_NE.topk(count, dim=1).indices, float("-inf"))

    return choosing(model, choose)


def without_random(model: DeepSeek, count: int, seed: int = 0):
    """Leave out `count` experts of each layer, drawn at random and the same for all tokens."""
    generator = torch.Generator().manual_seed(seed)
    n_experts = model.config.n_routed_experts
    left_out = [torch.randperm(n_experts, generator=generator)[:count] for _ in moe_layers(model)]

    def choose(scores_NE: Tensor, layer: int) -> Tensor:
        return scores_NE.index_fill(1, left_out[layer], float("-inf"))

    return choosing(model, choose)


@contextmanager
def without_shared(model: DeepSeek) -> Iterator[None]:
    """Set the output of the shared experts to zero until the block ends. Raises ValueError where there are none."""
    require("n_shared_experts", shared := model.config.n_shared_experts, shared is not None, "1 or more")
    hooks = [moe.shared_experts.register_forward_hook(lambda _, args, out: out * 0) for moe in moe_layers(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def with_top_k(model: DeepSeek, top_k: int) -> Iterator[None]:
    """Route every token to `top_k` experts instead of the number that the model was trained with."""
    gates, most = [moe.gate for moe in moe_layers(model)], model.config.n_routed_experts
    require("top_k", top_k, 1 <= top_k <= most, f"1 to {most}")
    before = [gate.config for gate in gates]
    for gate, config in zip(gates, [replace(config, num_experts_per_tok=top_k) for config in before], strict=True):
        gate.config = config
    try:
        yield
    finally:
        for gate, config in zip(gates, before, strict=True):
            gate.config = config
