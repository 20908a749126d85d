"""Measurements of a trained model: the two parts of its attention scores, and the rank of its keys and values.

A score of MLA is the sum of a **content part**, q_nope · k_nope, and a **rotated part**, q_rope · k_rope, both times
a scale. A row holds the scores of one query. A softmax does not change when a whole row is shifted by the same
amount, so the shares below are shares of the variation within rows.
"""

import numpy as np
import torch
from torch import Tensor, nn

from minids.model.deepseek import DeepSeek
from minids.model.mla import MLA
from minids.validation import require

# ---------------------------------------------------------------------------------------------------
# The two parts of a score


def centred(scores: np.ndarray) -> np.ndarray:
    """Return scores (T, T) minus the mean of their row; mean and result cover only keys up to the query, else 0."""
    seen = np.tril(np.ones(scores.shape, dtype=bool))
    mean = np.where(seen, scores, 0).sum(axis=1, keepdims=True) / seen.sum(axis=1, keepdims=True)
    return np.where(seen, scores - mean, 0)


def share_of_rotated(content: np.ndarray, rotated: np.ndarray) -> float:
    """Return the rotated part's share of the sum of both parts' variances within rows; (T, T) each."""
    by_content, by_rotated = (np.square(centred(part)).sum() for part in (content, rotated))
    return float(by_rotated / (by_content + by_rotated))


def share_of_distance(part: np.ndarray) -> float:
    """Return the share of a part's variance within rows that distance alone explains, by least squares; (T, T)."""
    rows, columns = np.tril_indices(len(part))
    # One unknown for each row, because a row may be shifted, and one for each distance.
    unknowns = np.hstack([np.eye(len(part))[rows], np.eye(len(part))[rows - columns]])
    left = part[rows, columns] - unknowns @ np.linalg.lstsq(unknowns, part[rows, columns], rcond=None)[0]
    return float(1 - np.square(left).sum() / np.square(centred(part)).sum())


@torch.no_grad()
def silence(attention: MLA, part: str) -> None:
    """Remove one part of an MLA layer's scores, "content" or "rotated", by setting its queries to zero."""
    require("part", part, part in ("content", "rotated"), "content or rotated")
    rows = attention.q_up.weight.unflatten(0, (attention.heads, -1))
    content, rotated = rows.split_with_sizes([attention.nope_dim, attention.rope_dim], dim=1)
    (content if part == "content" else rotated).zero_()


# ---------------------------------------------------------------------------------------------------
# The rank of keys and values


@torch.no_grad()
def keys_and_values_svd(model: DeepSeek, rows: np.ndarray) -> list[tuple[Tensor, Tensor]]:
    """Return, for each layer, the singular values of its stacked keys and values before RoPE, and their directions.

    Directions are the columns of a matrix (width of keys and values, as many as there are values), largest first.
    """
    collected: list[list[Tensor]] = [[] for _ in model.layers]
    hooks = [
        projection.register_forward_hook(lambda _module, _args, out, to=to: to.append(out.flatten(0, 1)))
        for layer, to in zip(model.layers, collected, strict=True)
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj)
    ]
    model.eval()
    try:
        model(torch.from_numpy(rows[:, :-1].astype(np.int64)))
    finally:
        for hook in hooks:
            hook.remove()
    stacked = (torch.cat(keys_values, dim=1) for keys_values in collected)
    return [
        (values, directions.T) for _, values, directions in (torch.linalg.svd(x, full_matrices=False) for x in stacked)
    ]


@torch.no_grad()
def project_keys_and_values(attention: nn.Module, basis: Tensor) -> None:
    """Project a layer's keys and values, before RoPE, onto the span of orthonormal columns, by changing its weights."""
    stacked = torch.cat([attention.k_proj.weight, attention.v_proj.weight])
    keys, values = (basis @ (basis.T @ stacked)).chunk(2)
    attention.k_proj.weight.copy_(keys)
    attention.v_proj.weight.copy_(values)
