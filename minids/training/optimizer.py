"""Which optimizer updates which parameter, what it keeps between steps, and in which number format.

DeepSeek-V3 was trained with AdamW. Muon (muon.py) gets further in the same time on the book's miniature, so `minids
train` uses it; the chapters and the recorded experiments use AdamW, as V3, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minids.training.config import TrainConfig
from minids.training.muon import Muon, is_muons


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on the matrices only: decay would pull the scales of the norms to zero.

    With `optimizer` muon, Muon updates all matrices but embedding, head and gates (muon.py).
    """
    named = dict(model.named_parameters())
    muons = {name: p for name, p in named.items() if config.optimizer == "muon" and is_muons(name, p)}
    others = [p for name, p in named.items() if name not in muons]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if muons:
        products = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        optimizer = Muon(muons, optimizer, lr=config.learning_rate, weight_decay=config.weight_decay, dtype=products)
    if config.dtype == "fp8":
        keep_moments_in_bfloat16(optimizer)
    return optimizer


def moments_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return what the optimizer keeps of a parameter between steps; zeros before its first gradient.

    Muon keeps `momentum`, AdamW the two moments `exp_avg` and `exp_avg_sq`, and a counter, `step`.
    """
    state = optimizer.state.get(parameter)
    if state:
        return state
    zeros = torch.zeros_like(parameter)
    if isinstance(optimizer, Muon) and parameter in optimizer.matrices:
        return {"momentum": zeros}
    return {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def keep_moments_in_bfloat16(optimizer: torch.optim.Optimizer) -> None:
    """Store the moments in bfloat16 between the steps (V3 report §3.3.3). The update itself is in float32.

    During the update both moments of all parameters exist in float32, so the peak of memory is not halved.

    Rounded to 8 significant bits, a moment keeps its old value if a step changes it by less than a 512th. With V3's
    β2 = 0.95 the second moment falls by up to a 20th per step. With the usual β2 = 0.999 it could not fall at all.
    """

    def convert(dtype: torch.dtype) -> Callable:
        def hook(optimizer, args, kwargs):
            for state in optimizer.state.values():
                for name in state.keys() - {"step"}:
                    state[name] = state[name].to(dtype)

        return hook

    optimizer.register_step_pre_hook(convert(torch.float32))
    optimizer.register_step_post_hook(convert(torch.bfloat16))
