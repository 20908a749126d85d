"""What the experts of a trained model tell about the domain of a text, and about the digits of a problem."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from minids.book.plots.helpers import DASHED, label_ends, name_ticks
from minids.book.plots.style import (
    LAYERS,
    MUTED,
    PAPER,
    Picture,
    new_figure,
    readable_on,
    styled,
)
from minids.book.probes.specialists import (
    PARTS_OF_PROBLEM,
    Observed,
    bits_about_digits,
    bits_about_domain,
    bits_about_token,
    digits_control,
    parts_of_digits,
    relative_shares,
)

MOST = 3  # times its even share: the brightest colour
DIGIT_EXPERTS = 12  # that are shown
LITTLE = 0.05  # bits: no title is made of less


@styled()
def draw_expert_domains(observed: Observed, layer: int = 1) -> Picture:
    """Draw how much of each domain goes to each expert of a layer, and for all layers what an expert tells.

    Above: a domain's choices of an expert relative to even shares. Below: the bits that a chosen expert tells about its
    token and about its domain, and, dashed, the bits that are found with tokens, or whole rows, shuffled.
    """
    shares = relative_shares(observed, layer)
    favourite = shares.argmax(axis=0)
    order = sorted(range(shares.shape[1]), key=lambda expert: (favourite[expert], -shares[favourite[expert], expert]))
    fig = new_figure(height=5.5)
    ax = fig.add_axes((0.13, 0.61, 0.85, 0.21))
    ax.imshow(shares[:, order], aspect="auto", cmap="cividis", vmin=0, vmax=MOST, interpolation="nearest")
    for (row, column), share in np.ndenumerate(shares[:, order]):
        ground = to_hex(colormaps["cividis"](min(1.0, share / MOST)))
        ax.text(column, row, f"{share:.1f}", ha="center", va="center", size=10, color=readable_on(ground))
    for edge in np.flatnonzero(np.diff(favourite[order])):
        ax.axvline(edge + 0.5, color=PAPER, linewidth=4)
    name_ticks(ax, "y", observed.domains)
    name_ticks(ax, "x", [str(expert) for expert in order])
    ax.tick_params(axis="x", labelsize=10, labelcolor=MUTED)
    ax.spines[:].set_visible(False)
    fig.note(
        0.02, 0.845, "how often a domain’s tokens choose each expert (below: its number); 1: as often as any other"
    )
    told = _draw_bits(fig, observed)
    twice, (domain, expert) = int((shares.max(axis=0) >= 2).sum()), np.unravel_index(shares.argmax(), shares.shape)
    fig.title(f"MoE layer {layer}: {twice} of {len(order)} experts get at least twice their even share of one domain",
              y=0.93)  # fmt: skip
    fig.alt = (
        f"MoE layer {layer}: {twice} of {len(order)} experts get at least twice their even share of a domain; expert "
        f"{expert} gets {shares[domain, expert]:.1f} times that of {observed.domains[domain]}. Bits that an expert "
        f"tells, by layer: {told}"
    )
    return fig


def _draw_bits(fig: Picture, observed: Observed) -> str:
    """Draw what a chosen expert tells about its token and its domain, layer by layer, and return it in words."""
    two = observed.domains[:2]
    about = {
        "the token": bits_about_token(observed),
        "the domain": bits_about_domain(observed),
        " or ".join(two): bits_about_domain(observed, *two),
    }
    ax = fig.add_axes((0.13, 0.1, 0.52, 0.31))
    layers = range(1, len(observed.experts) + 1)
    for found, color in zip(about.values(), LAYERS[1:], strict=False):
        ax.plot(layers, [bits for bits, _ in found], "o-", color=color, markersize=5)
        ax.plot(layers, [control for _, control in found], color=color, linewidth=1, linestyle=DASHED)
    ax.set(xlim=(0.9, len(layers) + 0.1), xticks=layers, xlabel="MoE layer")
    ax.set_ylim(0, None)
    top = ax.get_ylim()[1]
    ends = {
        f"{name}  {found[-1][0]:.2f}, shuffled {found[-1][1]:.2f}": (found[-1][0], color)
        for (name, found), color in zip(about.items(), LAYERS[1:], strict=False)
    }
    label_ends(ax, ends, gap=0.13 * top, lowest=0.04 * top, size=11)
    fig.note(0.02, 0.45, "bits that a chosen expert tells about … (dashed: with tokens, or rows, shuffled)")
    return "; ".join(
        f"about {name} " + ", ".join(f"{bits:.2f}" for bits, _ in found)
        + f" ({max(control for _, control in found):.2f} or less when shuffled)"
        for name, found in about.items()
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Digits


@styled()
def draw_digits(observed: Observed, layer: int = 3) -> Picture:
    """Draw which experts the digits of arithmetic problems go to, by their part of the problem, in one layer.

    To the right, for all layers, the bits that a digit's first expert tells about its value and about its part and,
    dashed, the bits that are found with the digits' experts shuffled.
    """
    shares = parts_of_digits(observed, layer)
    experts = shares.max(axis=0).argsort()[::-1][:DIGIT_EXPERTS].tolist()
    experts.sort(key=lambda expert: (shares[:, expert].argmax(), -shares[:, expert].max()))
    fig = new_figure(height=3.6)
    ax = fig.add_axes((0.17, 0.17, 0.4, 0.52))
    ax.imshow(shares[:, experts], aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    for (row, column), share in np.ndenumerate(shares[:, experts]):
        ground = to_hex(colormaps["cividis"](float(share)))
        ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", size=10, color=readable_on(ground))
    name_ticks(ax, "y", PARTS_OF_PROBLEM)
    name_ticks(ax, "x", [str(expert) for expert in experts])
    ax.set_xlabel(f"expert of MoE layer {layer}", color=MUTED, size=11)
    ax.spines[:].set_visible(False)
    fig.note(0.02, 0.745, "% of a part’s digits that are routed to an expert")
    layers = range(1, len(observed.experts) + 1)
    bits, control = (np.array([f(observed, n) for n in layers]).T for f in (bits_about_digits, digits_control))
    right = fig.add_axes((0.66, 0.17, 0.2, 0.52))
    names = ("its value", "its part")
    for line, shuffled, color in zip(bits, control, LAYERS[1:], strict=False):
        right.plot(layers, line, "o-", color=color, markersize=5)
        right.plot(layers, shuffled, color=color, linewidth=1, linestyle=DASHED)
    right.set(xlim=(0.8, len(layers) + 0.2), xticks=layers, xlabel="MoE layer")
    right.xaxis.label.set(size=11, color=MUTED)
    right.set_ylim(0, 1.06 * bits.max())
    ends = {
        f"{name} {line[-1]:.2f}": (line[-1], color) for name, line, color in zip(names, bits, LAYERS[1:], strict=False)
    }
    label_ends(right, ends, gap=0.13 * bits.max(), lowest=0.05 * bits.max(), size=11, shift=2)
    fig.note(0.615, 0.745, "bits the first expert tells (dashed: shuffled)")
    fig.title(_digits_finding(bits - control), y=0.88)
    fig.alt = (
        "Bits that a digit’s first expert tells, by layer: "
        + "; ".join(
            f"about {name} {', '.join(f'{x:.2f}' for x in line)} ({shuffled.max():.2f} or less when shuffled)"
            for name, line, shuffled in zip(names, bits, control, strict=True)
        )
        + f". Its part is one of {', '.join(PARTS_OF_PROBLEM)}. "
        f"In MoE layer {layer}, "
        + "; ".join(
            f"expert {row.argmax()} gets {row.max():.0%} of the digits of the {part}"
            for part, row in zip(PARTS_OF_PROBLEM, shares, strict=True)
        )
    )
    return fig


def _digits_finding(excess: np.ndarray) -> str:
    """Say what the first expert tells most about in the first and last layer, where it tells more than a little more.

    `excess` are the bits beyond those with experts shuffled, (2, layers), of values and of parts.
    """
    last, finding = excess.shape[1], "A digit’s first expert tells"
    ends = {layer: excess[:, layer - 1] for layer in (1, last)}
    most = {
        layer: "its part" if part > value else "its value"
        for layer, (value, part) in ends.items() if abs(part - value) >= LITTLE
    }  # fmt: skip
    if not most:
        told = "as much about its value as its part" if excess.max() >= LITTLE else "little about its value or part"
        return f"{finding} {told} in layers 1 and {last}"
    if len(most) == 2 and most[1] == most[last]:
        return f"{finding} most about {most[1]} in layers 1 and {last}"
    return f"{finding} most about " + ", about ".join(f"{name} in layer {layer}" for layer, name in most.items())
