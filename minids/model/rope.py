"""Rotary position embedding (RoPE; Su et al. 2021), and YaRN, which extends it to longer contexts.

RoPE splits a vector into pairs and rotates pair k at position t by the angle t θ_k, with θ_k = base^(-2k/d). The dot
product of a rotated query and a rotated key depends on their positions only through the distance.

**Two layouts.** Which entries form a pair is a convention of the weights. MLA's released weights are
interleaved, (x_0, x_1), (x_2, x_3), ...; the dense models and DeepSeekMoE-16B are half-split,
(x_0, x_{d/2}), (x_1, x_{d/2+1}), .... With the wrong layout a checkpoint still runs and still generates words; only its
loss shows the mistake.

**YaRN** (Peng et al. 2023; V3 report §4.3). A pair of high frequency makes many turns within the trained length, so
training covers all its angles. A pair of low frequency makes less than one turn, and in a longer text its angles would
be larger than any in training. So YaRN divides low frequencies by the scaling factor s, keeps high ones, and
interpolates in between. It also sharpens attention: MLA's softmax scale is multiplied by m², with m = 0.1 ·
mscale_all_dim · ln(s) + 1. With YaRN configured, both apply at every length, as in Hugging Face's code; DeepSeek's own
demo applies them only if it is set up for more than the original length.

**Complex numbers.** As a complex number, the pair (a, b) is a + ib, and rotating it by an angle is multiplying it by
e^(i · angle). So one table of complex numbers holds all rotations.

    paper      code              meaning
    θ_k        frequencies       angle per position for each pair, (rope_dim / 2,)
    e^(i t θ)  rotation          rotation of each pair at each position t, (T, rope_dim / 2), complex
    s          factor            context length divided by the original one
    β, α       beta_fast/_slow   turns within the original context: a pair with more than β keeps its frequency,
                                 one with fewer than α has it divided by s
"""

import math

import torch
from torch import Tensor

from minids.model.config import ModelConfig, YarnScaling


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Return θ_k in radians per position, shape (rope_dim / 2,), float32, scaled by YaRN if configured."""
    dim, base = config.rope_dim, config.rope_theta
    # On the CPU whatever the default device is: a model built on "meta" needs real angles, too.
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    frequencies = 1.0 / base**exponents
    if config.rope_scaling is None:
        return frequencies
    divided = _share_divided(config.rope_scaling, dim, base)
    return frequencies * (1 - divided) + frequencies / config.rope_scaling.factor * divided


def _share_divided(yarn: YarnScaling, dim: int, base: float) -> Tensor:
    """Return for each pair 0 to keep its frequency, 1 to divide it by the factor, and a linear ramp in between."""

    def pair_that_turns(times: float) -> float:
        length = yarn.original_max_position_embeddings
        return dim * math.log(length / (2 * math.pi * times)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1)
    width = (high - low) or 0.001  # avoids a division by zero
    return ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)


def yarn_temperature(factor: float, mscale: float) -> float:
    """Return m = 0.1 mscale ln(factor) + 1, YaRN's factor on queries and on keys."""
    return 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(config: ModelConfig) -> float:
    """Return the factor on attention scores: 1 / sqrt(width of a query head), times m² for MLA with YaRN.

    In MLA the width is d_nope + d_rope (d_h + d_h^R in eq. 10), also in the absorbed form. For MHA, GQA and MQA,
    YaRN's factor is in `rope_rotation` instead, as in Hugging Face's Llama.
    """
    if not config.uses_mla:
        return config.head_dim**-0.5
    yarn = config.rope_scaling
    m = 1.0 if yarn is None else yarn_temperature(yarn.factor, yarn.mscale_all_dim)
    return config.qk_head_dim**-0.5 * m * m


def rope_rotation(config: ModelConfig, positions: Tensor) -> Tensor:
    """Return e^(i t θ_k) for positions t (..., T): (..., T, rope_dim / 2), complex64."""
    angles = positions[..., None].float() * rope_frequencies(config).to(positions.device)
    yarn, radius = config.rope_scaling, 1.0
    if yarn is not None and yarn.mscale != yarn.mscale_all_dim:
        # YaRN also scales the rotation, by m(mscale) / m(mscale_all_dim), which is 1 in DeepSeek's models.
        radius = yarn_temperature(yarn.factor, yarn.mscale) / yarn_temperature(yarn.factor, yarn.mscale_all_dim)
    return torch.polar(torch.full_like(angles, radius), angles)


def apply_rope(x: Tensor, rotation: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate each pair of x (..., T, rope_dim) by `rotation` (T, rope_dim / 2). Returns x's shape and dtype.

    Where sequences differ in their positions, x is (B, H, T, rope_dim) and `rotation` (B, 1, T, rope_dim / 2).
    """
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.float().chunk(2, dim=-1)
    turned = torch.complex(first, second) * rotation
    parts = turned.real, turned.imag
    return (torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)).to(x.dtype)
