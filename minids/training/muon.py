"""Muon: momentum whose matrix is made orthogonal before it becomes the update (Jordan et al. 2024).

AdamW divides each number of the gradient by its own recent size. Muon looks at a matrix as a whole. With the momentum's
singular value decomposition M = U S Vᵀ, the update is U Vᵀ, the *polar factor*: all singular values become 1, so the
weak directions of the gradient move the weights as much as the strong ones.

U Vᵀ needs no decomposition. An odd polynomial of M leaves U and V as they are and changes the singular values only, so
a few steps of

    X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X        from X = M / |M|, with a, b, c = 3.4445, -4.7750, 2.0315

bring them near 1 (*Newton-Schulz iteration*): five steps bring all that are above 0.002 of |M| to between 0.68 and
1.21, which is near enough.

The update of an A x B matrix is multiplied by 0.2 · sqrt(max(A, B)), so that its numbers are about as large as AdamW's,
and the same learning rate and weight decay suit both (Liu et al. 2025). Embedding, head, gates and norms stay with
AdamW: a row of the first three belongs to one token or one expert, and a norm is no matrix. DeepSeek-V3 was trained
with AdamW throughout. DeepSeek-V4 uses Muon for most matrices, with ten steps instead of five, of which the last two
bring the values nearer to 1.

Stacked expert weights (E, A, B) are E matrices, and `gate_up_proj` holds two in each: those of gate and of up.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from minids.model.kernels import local

COEFFICIENTS, STEPS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7
MOMENTUM, SCALE = 0.95, 0.2
NOT_MATRICES = ("embed_tokens.weight", "lm_head.weight", "gate.weight")  # ends of names


def is_muons(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon updates a parameter of the model: a matrix, or a stack of them."""
    return parameter.ndim >= 2 and not name.endswith(NOT_MATRICES)


class Muon(torch.optim.AdamW):
    """AdamW, and Muon for the groups of parameters that say so.

    A group of Muon's has two more entries: `parts`, of how many matrices each of its matrices is stacked, and
    `products`, the dtype in which the iteration multiplies. Its state is the `momentum` of each parameter.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient; Muon's lose it."""
        for group in self.param_groups:
            if "parts" not in group:
                continue
            matrices = [p for p in group["params"] if p.grad is not None]
            updates = orthogonalise([self._direction(p, group["parts"]) for p in matrices], group["products"])
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])  # decoupled weight decay, as AdamW's
                scale = SCALE * math.sqrt(max(update.shape[-2:]))
                local(matrix).add_(own_rows(update, matrix), alpha=-group["lr"] * scale)
                matrix.grad = None  # so that AdamW passes it over
        super().step()

    def __setstate__(self, state: dict) -> None:
        """Take over a copied or loaded state; AdamW's own method expects its moments for every parameter."""
        torch.optim.Optimizer.__setstate__(self, state)

    def _direction(self, parameter: nn.Parameter, parts: int) -> Tensor:
        """Update the momentum, and return Nesterov's direction as a stack of matrices (N, A, B)."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        ahead = whole_matrices(parameter.grad.lerp(state["momentum"], MOMENTUM))
        *_, rows, columns = ahead.shape
        return ahead.reshape(-1, rows // parts, columns)


def whole_matrices(x: Tensor) -> Tensor:
    """Return a tensor as it is; of one that is sharded among ranks, all rows of a matrix, or this rank's matrices of a
    stack. Every rank has to call this."""
    return x.full_tensor() if x.ndim == 2 and hasattr(x, "full_tensor") else local(x)


def own_rows(update: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return the part of an update that changes this rank's part of the parameter, in its shape."""
    if parameter.ndim == 3 or not hasattr(parameter, "placements"):
        return update.reshape(local(parameter).shape)
    from torch.distributed.tensor import distribute_tensor  # takes a while to import

    update = update.reshape(parameter.shape)
    return local(distribute_tensor(update, parameter.device_mesh, parameter.placements, src_data_rank=None))


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
