"""What a token's messages cost on each link, and how many experts are free of charge (chapter 9)."""

from __future__ import annotations

from functools import lru_cache

import torch

from minids.book.plots.helpers import label, name_ticks
from minids.book.plots.style import INK, LAYERS, PAPER, Picture, new_figure, styled
from minids.cost.dispatch import Moved, expected_rows, free_experts, most_rows, row_bytes, seconds
from minids.cost.published import NODE_LINKS
from minids.cost.traffic import rows_between_nodes, rows_inside_nodes, traffic
from minids.model.config import ModelConfig
from minids.model.moe import Gate
from minids.units import short
from minids.validation import require_whole

LINKS = {"InfiniBand": LAYERS[2], "NVLink": LAYERS[1]}  # between nodes, and inside a node
UNITS = (" B", " KB", " MB")
TOKENS = 320  # of each rank
MOST_CHOSEN = 28  # on the axis: with as many nodes as V3 has groups, 25.6 are free
MICRO = 1e6


@lru_cache
def limited_rows(config: ModelConfig, ranks_per_node: int) -> tuple[Moved, float]:
    """Return a token's copies in two hops with the limit of the gate, counted, and its nodes.

    The library's gate chooses by random affinities.
    """
    ranks = config.n_group * ranks_per_node
    affinities = torch.rand(ranks * TOKENS, config.n_routed_experts, generator=torch.Generator().manual_seed(9))
    chosen_NK = Gate(config).choose(affinities)  # the gate's bias is 0
    rows = traffic(chosen_NK.split(TOKENS), config.n_routed_experts, ranks_per_node, "two hops")
    counts = Moved(rows_between_nodes(rows, ranks_per_node), rows_inside_nodes(rows, ranks_per_node))
    return counts.times(1 / len(chosen_NK)), int(rows[0].sum()) / len(chosen_NK)


def ways(config: ModelConfig, ranks_per_node: int) -> dict[str, dict[str, Moved]]:
    """Return the bytes of a token and layer, by the last measure added and by direction."""
    c, size = config, row_bytes(config.hidden_size)

    def expected(way: str) -> Moved:
        return expected_rows(c.n_routed_experts, c.num_experts_per_tok, c.n_group, ranks_per_node, way).times(size)

    limited, _ = limited_rows(c, ranks_per_node)
    both = {
        "one copy per expert": expected("per expert"),
        "one per GPU": expected("per rank"),
        "+ two hops:\none per node": expected("two hops"),
        f"+ at most {c.topk_group} nodes": limited.times(size),
    }
    found = {name: {"dispatch": moved, "combine": moved} for name, moved in both.items()}
    small = limited.times(row_bytes(c.hidden_size, fp8=True))
    return found | {"+ dispatch in FP8": {"dispatch": small, "combine": limited.times(size)}}


@styled()
def draw_dispatch_bytes(config: ModelConfig, ranks_per_node: int = NODE_LINKS) -> Picture:
    """Draw a token's time and bytes on InfiniBand and NVLink, with each of the report's measures added to the last.

    A node has a group of experts. Raises ValueError for ranks that do not divide the experts.
    """
    found = ways(config, ranks_per_node)
    fig = new_figure(height=5.6)
    longest, said = MICRO * max(max(seconds(moved)) for both in found.values() for moved in both.values()), []
    for direction, place in (("dispatch", 0.21), ("combine", 0.61)):
        ax = fig.add_axes((place, 0.14, 0.38, 0.65))
        for row, (name, both) in enumerate(found.items()):
            sizes, times = both[direction], seconds(both[direction]).times(MICRO)
            for bar, color in enumerate(LINKS.values()):
                y = row - 0.185 + 0.37 * bar
                ax.barh(y, times[bar], height=0.34, color=color)
                text = f"{times[bar]:.2f} µs, {short(sizes[bar], UNITS)}"
                label(ax, text, (times[bar], y), (4, 0), weight="bold" if times[bar] == max(times) else "normal")
            to = " and ".join(
                f"{time:.2f} µs for {short(size, UNITS)} on {link}"
                for link, size, time in zip(LINKS, sizes, times, strict=True)
            )
            said.append(f"{direction}, {name}: {to}".replace("\n", " "))
        ax.set(xlim=(0, 1.68 * longest), ylim=(len(found) - 0.45, -0.6), xticks=[])
        ax.spines["bottom"].set_visible(False)
        name_ticks(ax, "y", list(found) if direction == "dispatch" else [""] * len(found))
        ax.tick_params(axis="y", labelsize=11)
        fig.text(place, 0.805, direction, size=12, weight="bold")
    between = [sum(moved.between_nodes for moved in both.values()) for both in found.values()]
    last, first = short(between[-1], UNITS), short(between[0], UNITS)
    finding = f"Between nodes, a token costs {last} instead of {first}, there and back"
    fig.title(finding, y=0.93)
    fig.note(0.02, 0.88, "time of a token in a layer, and its bytes; bold: the link that takes longer")
    for x, (link, where) in zip((0.21, 0.5), zip(LINKS, ("between nodes", "inside a node"), strict=True), strict=True):
        fig.text(x, 0.085, f"■ {link}, {where}", size=11, color=LINKS[link])
    tokens, nodes = config.n_group * ranks_per_node * TOKENS, limited_rows(config, ranks_per_node)[1]
    note = f"Expected for random experts; with the limit, counted for {tokens:,} random tokens: {nodes:.2f} nodes"
    fig.note(0.02, 0.03, note)
    fig.alt = f"{finding}. {'; '.join(said)}. {note}."
    return fig


@styled()
def draw_free_experts(config: ModelConfig, nodes: int | None = None) -> Picture:
    """Draw the time of a dispatch in FP8 against the number of experts, if a token is sent to at most `nodes` nodes.

    None: to as many as the model's gate allows. Raises ValueError for more nodes than the model has groups.
    """
    nodes = config.topk_group if nodes is None else nodes
    require_whole("nodes", nodes, at_most=config.n_group)
    size, free, own = row_bytes(config.hidden_size, fp8=True), free_experts(nodes), config.num_experts_per_tok

    def times(chosen: float, nodes: int = nodes) -> Moved:
        return seconds(most_rows(chosen, nodes).times(MICRO * size))

    fig = new_figure(height=4.4)
    ax = fig.add_axes((0.09, 0.15, 0.75, 0.64))
    bends = sorted({1, nodes, free, MOST_CHOSEN})
    ax.plot(bends, [max(times(k)) for k in bends], color="#C9CCD1", linewidth=9, solid_capstyle="butt")
    for link, (name, color) in enumerate(LINKS.items()):
        ax.plot(bends, [times(k)[link] for k in bends], color=color)
        label(ax, name, (MOST_CHOSEN, times(MOST_CHOSEN)[link]), (8, 0), size=12, color=color)
    ax.plot(
        [free], [max(times(free))], "o", color=PAPER, markeredgecolor=INK, markeredgewidth=2, markersize=9, zorder=4
    )
    label(ax, f"{free:g} = {nodes} × {free / nodes:g}", (free, max(times(free))), (4, -17), ha="left")
    ax.plot([own], [max(times(own))], "o", color=INK, markersize=9, zorder=4)
    label(
        ax,
        f"{own} experts: {max(times(own)):.2f} µs",
        (own, max(times(own))),
        (0, 11),
        ha="right" if nodes < 4 else "center",
    )
    ax.set(xlim=(0, MOST_CHOSEN), ylim=(0, 1.1 * max(times(MOST_CHOSEN, config.n_group))), xlabel="experts of a token")
    ax.set_xticks(range(0, MOST_CHOSEN + 1, 4))
    fig.note(0.09, 0.815, "µs for each token, in FP8, one direction; grey: the link that takes longer")
    few = f"{nodes} node{'s' * (nodes > 1)}"
    finding = f"On at most {few}, up to {free:g} experts take the time of {nodes}; this model has {own}"
    fig.title(finding, y=0.92)
    fig.alt = (
        f"{finding}. Time for a token in FP8: {max(times(nodes)):.2f} µs from {nodes} to {free:g} experts, which is "
        f"InfiniBand's; {max(times(MOST_CHOSEN)):.2f} µs for {MOST_CHOSEN}, which is NVLink's."
    )
    return fig
