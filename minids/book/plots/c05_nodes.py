"""Node-limited routing: one token's choice, number by number, and what the limit costs in recorded runs (chapter 5)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minids.book.plots.c05_arms import LOOKS, bits, family, strength, violation
from minids.book.plots.diagram import FAINT, Diagram
from minids.book.plots.helpers import label, name_ticks
from minids.book.plots.style import INK, MUTED, PALE, PAPER, PARTS, Picture, new_figure, readable_on, styled
from minids.book.recorded import Measured, runs_of
from minids.model.config import ModelConfig
from minids.model.moe import Gate
from minids.validation import require_whole

NODES, PER_NODE, CHOSEN = 8, 4, 4


@dataclass(frozen=True)
class Choice:
    """One token's choice among experts that stand on nodes: values are s + b, (nodes, experts of a node)."""

    values: Tensor
    sums: Tensor  # of the two highest values of each node
    kept: Tensor  # nodes, a mask
    chosen: Tensor  # experts, a mask
    unlimited: Tensor  # what would be chosen without a limit
    zero_filled: Tensor  # what would be chosen with 0 in place of -inf


@lru_cache
def choice(kept: int = 2, shift: float = 0.0) -> Choice:
    """Return the library's choice for one token, with random affinities and random biases, all moved by `shift`."""
    generator = torch.Generator().manual_seed(22)
    scores = torch.randn(NODES, PER_NODE, generator=generator).mul(1.2).sub(0.6).sigmoid()
    bias = torch.randn(NODES, PER_NODE, generator=generator).mul(0.18).sub(0.12)
    values = ((scores + bias) * 100).round() / 100 + shift  # as many decimals as are shown
    sums = values.topk(2).values.sum(dim=1)
    mask = torch.zeros(NODES, dtype=torch.bool).index_fill(0, sums.topk(kept).indices, True)
    zero_filled = (values * mask[:, None]).flatten().topk(CHOSEN).indices
    chosen, unlimited = _choose(values, kept), _choose(values, NODES)
    return Choice(values, sums, mask, *map(_as_mask, (chosen, unlimited, zero_filled)))


def _choose(values: Tensor, kept: int) -> Tensor:
    """Return the experts that the library's gate chooses by s + b."""
    config = ModelConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, intermediate_size=8, num_attention_heads=1,
        moe_intermediate_size=8, n_routed_experts=NODES * PER_NODE, num_experts_per_tok=CHOSEN, n_group=NODES,
        topk_group=kept,
    )  # fmt: skip
    return Gate(config).choose(values.flatten()[None])[0]  # the gate's own bias is 0


def _as_mask(experts: Tensor) -> Tensor:
    return torch.zeros(NODES * PER_NODE, dtype=torch.bool).index_fill(0, experts, True).view(NODES, PER_NODE)


@styled()
def draw_node_choice(kept: int = 2, shift: float = 0.0) -> Picture:
    """Draw how one token chooses 4 of 32 experts when it may be sent to at most `kept` of 8 nodes.

    `shift` is added to all biases. At -1 a mask of 0 in place of -inf would choose experts on dropped nodes. Raises
    ValueError where `kept` is not from 1 to 8.
    """
    require_whole("kept", kept, at_most=NODES)
    c = choice(kept, float(shift))
    d = Diagram(height=384)
    pitch, width, height = 70.0, 58.0, 19.0
    for node in range(NODES):
        x, stays = 82 + pitch * node, bool(c.kept[node])
        ink, best = INK if stays else MUTED, c.values[node].topk(2).indices.tolist()
        d.text(x + width / 2, 314, f"node {node + 1}", ha="center", weight="bold" if stays else "normal", color=ink)
        for row, value in enumerate(c.values[node].tolist()):
            _box(d, x, 288 - height * row, width, f"{value:.2f}", PAPER, INK if row in best else None)
            lost = bool(c.unlimited[node, row]) and not stays
            color = PARTS["routed"] if c.chosen[node, row] else PAPER if stays else FAINT
            shown = f"{value:.2f}" if stays else "−∞"
            _box(d, x, 124 - height * row, width, shown, color, INK if lost else None, dashed=lost)
        d.line((x + width / 2, 229), (x + width / 2, 219), lit=stays, arrow=False)
        d.text(x + width / 2, 206, f"{c.sums[node]:.2f}".replace("-", "−"), size=12, ha="center", color=ink,
               weight="bold" if stays else "normal")  # fmt: skip
        if stays:
            d.line((x + width / 2, 199), (x + width / 2, 147))
    moved = f"\n{shift:+g} for all".replace("-", "−") if shift else ""
    for y, text in ((261, f"$s_i + b_i${moved}"), (210, "sum of\nthe two\nhighest"), (97, "masked;\nchosen:\nfilled")):
        d.text(14, y, text, va="center", size=11, linespacing=1.2)
    nodes, lost = int(c.chosen.any(dim=1).sum()), int((c.unlimited & ~c.chosen).sum())
    without = int(c.unlimited.any(dim=1).sum())
    limit = f"At most {kept} of {NODES} nodes" if kept < NODES else "Without a limit"
    sent = f"the token goes to {nodes} {'node' if nodes == 1 else 'nodes'}"
    price = f", {lost} of its {CHOSEN} best experts {'is' if lost == 1 else 'are'} out of reach" if lost else (
        f" and gets its {CHOSEN} best experts"
    )  # fmt: skip
    d.text(14, 358, f"{limit}: {sent}{price}", size=14)
    d.text(82, 338, "outlined: the two highest of a node", size=10, color=MUTED)
    d.text(82, 40, f"dashed: would be chosen without the limit ({without} nodes)", size=11)
    moves = dict.fromkeys((float(shift), -1.0))  # with -1 the values are negative
    wrong = [int((moved.zero_filled & ~moved.kept[:, None]).sum()) for moved in (choice(kept, by) for by in moves)]
    also = f" ({wrong[1]} after −1 for all)" if len(wrong) > 1 else ""
    said = f"with 0 in place of −∞, {wrong[0]} of {CHOSEN} chosen experts would stand on dropped nodes{also}"
    d.text(82, 20, said, size=11)
    chosen = [f"node {n + 1}: {c.values[n, i]:.2f}" for n, i in c.chosen.nonzero().tolist()]
    d.figure.alt = (
        f"One token, {NODES * PER_NODE} experts on {NODES} nodes, {kept} nodes kept: "
        f"{', '.join(f'{n + 1}' for n in c.kept.nonzero().flatten().tolist())}. Chosen: {', '.join(chosen)}. Without a "
        f"limit {without} nodes; {said}."
    )
    return d.figure


def _box(
    d: Diagram, x: float, y: float, width: float, text: str, color: str, outline: str | None, dashed: bool = False
) -> None:
    d.ax.add_artist(
        Rectangle((x, y), width, 17, facecolor=color, edgecolor=outline or PALE, linewidth=1.4 if outline else 0.8,
                  linestyle=(0, (3, 2)) if dashed else "-", zorder=3 if outline else 2.5)
    )  # fmt: skip
    ink = MUTED if text == "−∞" else readable_on(color)
    d.text(x + width / 2, y + 8, text.replace("-", "−"), ha="center", va="center", color=ink)


@styled()
def draw_nodes(result: dict, free: str = "bias 0.01") -> Picture:
    """Draw what the limit on nodes changes in recorded runs: nodes that a token is sent to, MaxVio, bits per byte.

    `free` is the arm with the same bias and without a limit.
    """
    arms = [free, *sorted((arm for arm in result["arms"] if family(arm) == "nodes"), key=_kept, reverse=True)]
    names = [f"{_kept(arm)} of {NODES}" for arm in arms]
    columns = {
        "nodes that a token is sent to": {
            arm: Measured(tuple(run["groups"] for run in runs_of(result, arm))) for arm in arms
        },
        "MaxVio, all held-out tokens": {arm: violation(result, arm) for arm in arms},
        "held-out bits per byte": {arm: bits(result, arm) for arm in arms},
    }
    fig = new_figure(height=4.2)
    color, marker = LOOKS["nodes"]
    for j, (words, found) in enumerate(columns.items()):
        ax = fig.add_axes((0.07 + 0.325 * j, 0.16, 0.25, 0.58))
        for x, arm in enumerate(arms):
            one = found[arm]
            ax.plot([x, x], [one.low, one.high], color=color, linewidth=1.4)
            ax.plot([x], [one.mean], marker, color=color, markersize=7, markeredgecolor="white")
            shown = f"{one.mean:.3f}" if j == 2 else f"{one.mean:.2f}"
            label(ax, shown, (x, one.high), (0, 5))
        low, high = min(one.low for one in found.values()), max(one.high for one in found.values())
        ax.set(xlim=(-0.5, len(arms) - 0.5), ylim=(low - 0.15 * (high - low), high + 0.25 * (high - low)))
        if not j:
            ax.set_ylim(bottom=0)
        name_ticks(ax, "x", names)
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter((lambda y, _: f"{y:.3f}") if j == 2 else (lambda y, _: f"{y:g}"))
        ax.set_title(words, size=11, color=MUTED, pad=10)
    fig.text(0.5, 0.035, "nodes that are kept", size=12, ha="center")
    scores = columns["held-out bits per byte"]
    fig.title(_cost(scores, free), y=0.91)
    fig.alt = "Node-limited routing. " + "; ".join(
        f"{name} nodes kept: a token is sent to {columns['nodes that a token is sent to'][arm]} nodes, MaxVio "
        f"{columns['MaxVio, all held-out tokens'][arm]}, bits per byte {scores[arm]}"
        for name, arm in zip(names, arms, strict=True)
    )
    return fig


def _kept(arm: str) -> int:
    return int(strength(arm)) if family(arm) == "nodes" else NODES


def _cost(scores: dict[str, Measured], free: str) -> str:
    """Return which limits change the bits per byte, and by how much."""
    groups = {"cost": [], "save": [], "not separated": []}
    for arm, found in scores.items():
        if arm != free:
            way = "cost" if scores[free].below(found) else "save" if found.below(scores[free]) else "not separated"
            groups[way].append((_kept(arm), abs(found.mean - scores[free].mean)))
    same, said = groups.pop("not separated"), []
    for way, found in groups.items():
        (kept, first), *others = found or [(0, 0)]
        more = "".join(f", {n} of {NODES} {change:.3f}" for n, change in others)
        said += [f"{kept} of {NODES} nodes {way} {first:.3f} bits a byte{more}"] * bool(found)
    if same:
        numbers = ", ".join(f"{n} of {NODES}" for n, _ in same)
        said.append(f"{numbers}: not separated" if said else f"{numbers} nodes: bits per byte not separated")
    return "; ".join(said)
