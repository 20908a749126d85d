"""Muon: momentum whose matrix is made orthogonal before it becomes the update (Jordan et al. 2024).

AdamW divides each number of the gradient by its own recent size. Muon looks at a matrix as a whole. With the momentum's
singular value decomposition M = U S Vᵀ, the update is U Vᵀ: all singular values become 1, so the weak directions of the
gradient move the weights as much as the strong ones.

U Vᵀ needs no decomposition. An odd polynomial of M leaves U and V as they are and changes the singular values only, so
a few steps of

    X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X        from X = M / |M|, with a, b, c = 3.4445, -4.7750, 2.0315

bring all of them near 1 (*Newton-Schulz iteration*): five steps to between 0.7 and 1.2, which is near enough.

The update of an A x B matrix is multiplied by 0.2 · sqrt(max(A, B)), so that its numbers are about as large as AdamW's,
and the same learning rate and weight decay suit both (Liu et al. 2025). Embedding, head, gates and norms stay with
AdamW: their rows or numbers are looked up or compared one by one. DeepSeek-V3 was trained with AdamW throughout,
DeepSeek-V4 with Muon.

Stacked expert weights (E, A, B) are E matrices, and `gate_up_proj` holds two in each: those of gate and of up.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

COEFFICIENTS, STEPS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7
MOMENTUM, SCALE = 0.95, 0.2
NOT_MATRICES = ("embed_tokens.weight", "lm_head.weight", "gate.weight")  # ends of names


def is_muons(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon updates a parameter of the model: a matrix, or a stack of them."""
    return parameter.ndim >= 2 and not name.endswith(NOT_MATRICES)


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of a model, AdamW for its other parameters.

    `matrices` are parameters by name. The products of the iteration are in `dtype`. The state of a matrix is its
    `momentum`. `adamw` is the optimizer of the others: its groups and its state are also in this one's, so learning
    rates are set and moments are stored as those of a single optimizer.
    """

    def __init__(
        self, matrices: dict[str, nn.Parameter], adamw: torch.optim.AdamW, *, lr: float,
        weight_decay: float = 0.1, dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        self.matrices = set(matrices.values())
        self.halves = {matrix for name, matrix in matrices.items() if name.endswith("gate_up_proj")}
        super().__init__(list(matrices.values()), {"lr": lr, "weight_decay": weight_decay})
        self.adamw, self.dtype = adamw, dtype
        self.param_groups += adamw.param_groups
        adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        group = self.param_groups[0]
        updates = {p: self._direction(p) for p in group["params"] if p.grad is not None}
        for parameter, update in zip(updates, orthogonalise(list(updates.values()), self.dtype), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            scale = SCALE * math.sqrt(max(update.shape[-2:]))
            parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)
        self.adamw.step()

    def _direction(self, parameter: nn.Parameter) -> Tensor:
        """Update the momentum, and return Nesterov's direction as a stack of matrices (N, A, B)."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        ahead = parameter.grad.lerp(state["momentum"], MOMENTUM)
        if parameter in self.halves:
            ahead = ahead.unflatten(-2, (2, -1))
        return ahead.reshape(-1, *ahead.shape[-2:])


def orthogonalise(stacks: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return U Vᵀ of each matrix of each stack (N, A, B), roughly, in the stacks' dtype; the products are in `dtype`.

    Matrices of one shape are computed together, because many small products take longer than one large one.
    """
    places = defaultdict(list)
    for place, stack in enumerate(stacks):
        places[stack.shape[1:]].append(place)
    out: list[Tensor] = [None] * len(stacks)
    for of_shape in places.values():
        together = newton_schulz(torch.cat([stacks[place] for place in of_shape]).to(dtype))
        for place, part in zip(of_shape, together.split([len(stacks[place]) for place in of_shape]), strict=True):
            out[place] = part.to(stacks[place].dtype)
    return out


def newton_schulz(X: Tensor) -> Tensor:
    """Return matrices (N, A, B) with the singular vectors of X's, and singular values near 1."""
    a, b, c = COEFFICIENTS
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X  # X Xᵀ is then the smaller of the two possible squares
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(STEPS):
        square = torch.bmm(X, X.mT)
        X = torch.baddbmm(X, torch.baddbmm(square, square, square, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X
