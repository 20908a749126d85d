"""Which optimizer updates which parameter, what it keeps between steps, and in which number format.

DeepSeek-V3 was trained with AdamW. `minids train` uses Muon (muon.py), in a recipe that gets further on the book's
miniature in the same time; the chapters and most recorded experiments use AdamW, as V3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minids.training.config import TrainConfig
from minids.training.muon import Muon, is_muons


def make_optimizer(model: nn.Module, config: TrainConfig, mine: set[nn.Parameter] | None = None) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices only: decay would pull the scales of the norms to zero.

    With `optimizer` muon, Muon updates all matrices but embedding, head and gates (muon.py). `mine` are the parameters
    that this process updates, by default all.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if mine is not None and parameter not in mine:
            continue
        muons = config.optimizer == "muon" and is_muons(name, parameter)
        stacked = "gate and up" if name.endswith("gate_up_proj") else "matrix"
        kind = stacked if muons else "table" if parameter.ndim >= 2 else "flat"
        groups[kind, hasattr(parameter, "placements")].append(parameter)  # fused operations take no mixture of both
    products = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    settings = {
        "table": {}, "flat": {"weight_decay": 0.0},
        "matrix": {"parts": 1, "products": products}, "gate and up": {"parts": 2, "products": products},
    }  # fmt: skip
    optimizer = (Muon if config.optimizer == "muon" else torch.optim.AdamW)(
        [
            {"params": groups[kind, sharded]} | settings[kind]
            for kind in settings for sharded in (False, True) if groups[kind, sharded]
        ],
        lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True,
    )  # fmt: skip
    if config.dtype == "fp8":
        keep_moments_in_bfloat16(optimizer)
    return optimizer


def moments_of(optimizer: torch.optim.AdamW, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return what the optimizer keeps of a parameter between steps; zeros before its first gradient.

    Muon keeps `momentum`, AdamW the two moments `exp_avg` and `exp_avg_sq`, and a counter, `step`.
    """
    if state := optimizer.state.get(parameter):
        return state
    zeros = torch.zeros_like(parameter)
    muons = (group["params"] for group in optimizer.param_groups if "parts" in group)
    if any(parameter is matrix for matrices in muons for matrix in matrices):
        return {"momentum": zeros}
    return {"step": torch.zeros((), device=parameter.device), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def keep_moments_in_bfloat16(optimizer: torch.optim.Optimizer) -> None:
    """Store the moments in bfloat16 between the steps (V3 report §3.3.3). The update itself is in float32.

    During the update the moments of all parameters exist in float32, so the peak of memory is not halved.

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
