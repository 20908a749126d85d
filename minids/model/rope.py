"""Rotary position embedding (Su et al. 2021), and YaRN, which stretches it to longer contexts.

RoPE splits a vector into pairs and turns pair k of the token at position t by the angle t θ_k,
θ_k = base^(-2k/d). A query turned by its position times a key turned by its position depends on the
distance alone, so position enters through the score and nowhere else.

**Two layouts.** Which entries form a pair is a convention of the weights. MLA's released weights are
interleaved, (x_0, x_1), (x_2, x_3), ...; the dense models and DeepSeekMoE-16B are half-split,
(x_0, x_{d/2}), (x_1, x_{d/2+1}), .... Read with the wrong one, a checkpoint still runs and still
writes words; only its loss shows the mistake.

**YaRN** (Peng et al. 2023; V3 report §4.3). A pair that turns many times within the trained length has
met every angle; one that never completes a turn would, in a longer text, come to angles it has never
met. So YaRN divides slow frequencies by the stretch factor, leaves fast ones alone, and blends in
between. It also sharpens attention: MLA's softmax scale is multiplied by m², m = 0.1 · mscale_all_dim ·
ln(factor) + 1. Both apply at every length once YaRN is configured, as in Hugging Face's code;
DeepSeek's own demo switches them on beyond the original length only.

**As complex numbers.** A pair (a, b) is the number a + ib, and to turn it by an angle is to multiply by
e^(i·angle). So all the turns that a model needs are one table of complex numbers.

    paper      code              meaning
    θ_k        frequencies       angle per position, one for each pair, (rope_dim / 2,)
    e^(i t θ)  rotation          the turn of each pair at each position t, (T, rope_dim / 2), complex
    s          factor            stretch of the context
    β, α       beta_fast/_slow   turns within the original context: above β a pair is left alone,
                                 below α it is divided by s
"""

import math

import torch
from torch import Tensor

from minids.model.config import ModelConfig, YarnScaling


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Return θ_k in radians per position, shape (rope_dim / 2,), float32; stretched where YaRN is set."""
    dim, base = config.rope_dim, config.rope_theta
    # On the CPU whatever the default device, so that a model built on "meta" still has its angles.
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    frequencies = 1.0 / base**exponents
    if config.rope_scaling is None:
        return frequencies
    divided = _share_divided(config.rope_scaling, dim, base)
    return frequencies * (1 - divided) + frequencies / config.rope_scaling.factor * divided


def _share_divided(yarn: YarnScaling, dim: int, base: float) -> Tensor:
    """For each pair, 0 where its frequency stays, 1 where it is divided by the factor, a ramp between."""

    def pair_that_turns(times: float) -> float:
        length = yarn.original_max_position_embeddings
        return dim * math.log(length / (2 * math.pi * times)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1)
    width = (high - low) or 0.001  # a ramp of no width would divide by zero
    return ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)


def yarn_temperature(factor: float, mscale: float) -> float:
    """Return m = 0.1 mscale ln(factor) + 1, by which YaRN scales queries and keys."""
    return 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(config: ModelConfig) -> float:
    """Return what attention scores are multiplied by: 1/sqrt(head width), times m² under YaRN.

    The width is that of the query and key heads, d_h + d_h^R in MLA (eq. 10), never the latent's.
    Ordinary attention has no m² here, as in Hugging Face's Llama: what it has is in `rope_rotation`.
    """
    if not config.uses_mla:
        return config.head_dim**-0.5
    yarn = config.rope_scaling
    m = 1.0 if yarn is None else yarn_temperature(yarn.factor, yarn.mscale_all_dim)
    return config.qk_head_dim**-0.5 * m * m


def rope_rotation(config: ModelConfig, positions: Tensor) -> Tensor:
    """Return e^(i t θ_k) for each of the positions t (T,): (T, rope_dim / 2), complex64."""
    angles = positions[:, None].float() * rope_frequencies(config).to(positions.device)
    yarn, radius = config.rope_scaling, 1.0
    if yarn is not None and yarn.mscale != yarn.mscale_all_dim:
        # No released model needs this: the rotation is multiplied by m(mscale) / m(mscale_all_dim).
        radius = yarn_temperature(yarn.factor, yarn.mscale) / yarn_temperature(yarn.factor, yarn.mscale_all_dim)
    return torch.polar(torch.full_like(angles, radius), angles)


def apply_rope(x: Tensor, rotation: Tensor, *, interleaved: bool) -> Tensor:
    """Turn each pair of x (..., T, rope_dim) by its angle; rotation: (T, rope_dim / 2). Same shape and dtype out."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.float().chunk(2, dim=-1)
    turned = torch.complex(first, second) * rotation
    parts = turned.real, turned.imag
    return (torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)).to(x.dtype)
