"""The GPUs that trained V3, and the units that serve it, to scale (chapter 9; numbers in cost/cluster.py)."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.collections import PolyCollection
from matplotlib.patches import Circle

from minids.book.plots.diagram import Diagram
from minids.book.plots.style import INK, MUTED, PALE, PAPER, PARTS, Picture, styled, tint
from minids.cost.cluster import V3_TRAINING, V3_UNITS, Training, Unit
from minids.model.config import ModelConfig
from minids.validation import require

NODE_COLUMNS, NODE_ROWS = 4, 2  # how the 8 GPUs of a node are drawn
IN_LINE = 20  # nodes of a unit
STAGE, PLACE = 5, 1  # of the pipeline, and of a GPU in its node: examples, any others would do
PANEL, PANEL_WIDTH, FLOOR, CEILING = 455, 185, 202, 376  # where the enlarged node is
GREEN, SHARED_TOO = PARTS["routed"], tint(PARTS["shared"], 0.6)


def draw_cells(d: Diagram, cells: Sequence[tuple[float, float, str]], width: float, height: float) -> None:
    """Draw many small boxes at once: their left, bottom and colour."""
    corners = [[(x, y), (x + width, y), (x + width, y + height), (x, y + height)] for x, y, _ in cells]
    faces = [color for _, _, color in cells]
    d.ax.add_collection(
        PolyCollection(corners, facecolors=faces, edgecolors="none", zorder=3, snap=True), autolim=False
    )


@styled()
def draw_cluster(layout: Training = V3_TRAINING, config: ModelConfig | None = None) -> Picture:
    """Draw every GPU of a training cluster: a row for each stage of the pipeline, and who sends to whom.

    Raises ValueError for nodes of other than 8 GPUs, for more than 16 nodes in a row or 16 rows, and for GPUs that do
    not divide the experts.
    """
    config, t = config or ModelConfig.preset("deepseek-v3"), layout
    in_row, shown = t.gpus_per_stage // t.gpus_per_node, t.sets - 1
    require("gpus_per_node", t.gpus_per_node, t.gpus_per_node == NODE_COLUMNS * NODE_ROWS, "8")
    require("stages", t.stages, STAGE < t.stages <= 16, f"from {STAGE + 1} to 16")
    require("gpus", t.gpus, in_row <= 16, f"at most {16 * t.gpus_per_node * t.stages}, 16 nodes in a row")
    d = Diagram(height=462)
    left, top, pitch, row_pitch, between = 80, 392, 21.0, 17.5, 18
    width, height = 4.5, 6.2  # of a GPU

    def corner(stage: int, node: int, gpu: int = NODE_COLUMNS) -> tuple[float, float]:
        """Return the lower left of a node, which is that of its GPU 4, or of another GPU."""
        row, column = divmod(gpu, NODE_COLUMNS)
        x = left + node * pitch + node // t.nodes_per_set * between + column * width
        return x, top - (stage + 1) * row_pitch + (NODE_ROWS - 1 - row) * height

    def color(stage: int, node: int, gpu: int) -> str:
        if (node, gpu) == (0, PLACE):
            return INK
        return "#CDD1D7" if stage != STAGE else GREEN if node // t.nodes_per_set == shown else tint(GREEN, 0.45)

    gpus = [(stage, node, gpu) for stage in range(t.stages) for node in range(in_row) for gpu in range(t.gpus_per_node)]
    draw_cells(d, [(*corner(*gpu), color(*gpu)) for gpu in gpus], width - 0.5, height - 0.5)
    for stage in range(t.stages):
        d.text(left - 22, corner(stage, 0)[1] + height, f"{stage}", ha="right", va="center",
               color=INK if stage == STAGE else MUTED)  # fmt: skip
    d.text(left - 22, top + 5, "stage", ha="right", size=12, color=MUTED)
    for i in range(t.sets):
        words = "the same experts again" if i else f"all {config.n_routed_experts} experts of a layer"
        d.text(corner(0, i * t.nodes_per_set)[0], top + 12, f"{t.expert_gpus} GPUs, {t.nodes_per_set} nodes:\n{words}",
               size=12, va="center", linespacing=1.15)  # fmt: skip

    # What belongs together: the same GPU of every stage, a set of a stage, and the whole stage.
    (x0, y), (x1, _), first = corner(STAGE, 0), corner(STAGE, in_row - 1), t.nodes_per_set * shown
    right, middle = x1 + NODE_COLUMNS * width, y + height
    d.outline(x0 - 5, y - 4, right - x0 + 10, 2 * height + 8, edgecolor=MUTED, linestyle=(0, (4, 2)))
    d.outline(corner(STAGE, first)[0] - 2, y - 2, right - corner(STAGE, first)[0] + 4, 2 * height + 4)
    (x, low), (_, high) = corner(t.stages - 1, 0, PLACE), corner(0, 0, PLACE)
    d.outline(x - 1.5, low - 2, width + 2.5, high - low + height + 4, linewidth=1)
    _number(d, x + width / 2, low - 10, "1")
    _number(d, corner(STAGE, first)[0] - 9, middle, "2")
    _number(d, x0 - 7, middle, "3")

    d.wedge([(right + 2, y + 2 * height), (PANEL, CEILING), (PANEL, FLOOR), (right + 2, y)])
    _node(d, t, config)
    said = _messages(d, t)
    often = {1: "once", 2: "twice"}.get(t.sets, f"{t.sets} times")
    finding = (
        f"{t.gpus:,} GPUs: {t.stages} pipeline stages of {t.gpus_per_stage}; each has its experts {often}, "
        f"on {t.expert_gpus} GPUs each time"
    )
    d.text(13, d.height - 26, finding, size=14)
    each = f"{len(t.experts_of_gpu(config, 0))} experts of every layer of its stage"
    d.figure.alt = f"{finding}. {t.nodes} nodes of {t.gpus_per_node} GPUs, each GPU with {each}. {said}."
    return d.figure


def _node(d: Diagram, t: Training, config: ModelConfig) -> None:
    """The last node of a set, with the experts of each GPU."""
    d.panel(PANEL, FLOOR, PANEL_WIDTH, CEILING - FLOOR, f"a node: {t.gpus_per_node} GPUs")
    for gpu in range(t.gpus_per_node):
        held = t.experts_of_gpu(config, t.expert_gpus - t.gpus_per_node + gpu)
        d.box(PANEL + 10, CEILING - 43 - 17.5 * gpu, 46, 15, f"GPU {gpu}", color=GREEN)
        d.text(PANEL + 61, CEILING - 35.5 - 17.5 * gpu, f"experts {held[0]} to {held[-1]}", size=12, va="center")
    note = (
        f"All other weights are on each\nof the {t.gpus_per_stage} GPUs of a stage: there\nis no tensor parallelism.\n"
        "(With DualPipe each GPU has\ntwo stages, of which one is\ndrawn. The order of the nodes\nis not published.)"
    )
    d.text(PANEL, FLOOR - 10, note, va="top", linespacing=1.2, color=MUTED)


def _messages(d: Diagram, t: Training) -> str:
    """Who sends what to whom, below the GPUs; returns the same in words."""
    rows = {
        "pipeline": "activations, to the same place of the next stage: point to point, InfiniBand",
        "experts": f"tokens, among the {t.expert_gpus} GPUs of a set: all-to-all, InfiniBand and NVLink",
        "ZeRO-1": f"once a step, {t.gpus_per_stage} GPUs with equal weights (experts: {t.sets}): reduce-scatter, "
        "all-gather",
    }
    for i, (name, words) in enumerate(rows.items()):
        _number(d, 22, 62 - 22 * i + 4, f"{i + 1}")
        d.text(38, 62 - 22 * i, name, size=12, weight="bold")
        d.text(104, 62 - 22 * i, words, size=12)
    return "; ".join(f"{name}: {words}" for name, words in rows.items())


def _number(d: Diagram, x: float, y: float, number: str) -> None:
    d.ax.add_artist(Circle((x, y), 7.5, facecolor=PAPER, edgecolor=INK, linewidth=1.2, zorder=6))
    d.ax.text(x, y, number, ha="center", va="center_baseline", size=10, zorder=7)


def _draw_gpus(d: Diagram, x: float, y: float, gpus: int, first_pale: int) -> None:
    """Draw the GPUs of many nodes in lines, in sizes that are whole pixels."""
    cells = []
    for gpu in range(gpus):
        node, place = divmod(gpu, NODE_COLUMNS * NODE_ROWS)
        (line, in_line), (row, column) = divmod(node, IN_LINE), divmod(place, NODE_COLUMNS)
        left = x + 3.36 * (in_line * NODE_COLUMNS + column) + 1.92 * in_line
        cells.append((left, y - 11.52 * line - 4.32 * row, GREEN if gpu < first_pale else SHARED_TOO))
    draw_cells(d, cells, 2.88, 3.84)


@styled()
def draw_serving_units(units: Sequence[Unit] = V3_UNITS) -> Picture:
    """Draw the GPUs of some units, and the experts of a layer that one of them has. The last two units are compared."""
    routed, pitch = ModelConfig.preset("deepseek-v3").n_routed_experts, 80
    d, said = Diagram(height=66 + pitch * len(units)), []
    for i, unit in enumerate(units):
        y = d.height - 52 - pitch * (i + 1)
        when, _, where = unit.source.partition(", ")
        d.text(13, y + 54, unit.phase, weight="bold", size=12)
        d.text(13, y + 35, when, color=MUTED)
        d.text(13, y + 20, where, color=MUTED)
        first_pale = routed if unit.each == 1 else unit.gpus  # with one expert each, GPUs differ in what they have
        _draw_gpus(d, 116.16, y + 58, unit.gpus, first_pale)
        nodes, pale = f"{unit.nodes} nodes, {unit.gpus} GPUs", f"; pale: {unit.what}" * (first_pale < unit.gpus)
        groups = f"{unit.attention_groups} groups of {unit.attention} GPUs"
        attention = f"attention: {groups}" if unit.attention > 1 else "attention: each GPU for itself"
        places = f"{unit.gpus} × {unit.each} = {unit.gpus * unit.each} places"
        parts = f"= {routed} routed + {unit.others} {unit.what}"
        for x, first, second in ((116, nodes + pale, attention), (428, places, parts)):
            d.text(x, y + 28, first)
            d.text(x, y + 13, second, color=MUTED)
        x = d.boxes(428, y + 46, [0] * unit.each, (14, 14), GREEN)
        x = d.boxes(x + 4, y + 46, [0] * bool(unit.shared_beside), (14, 14), PARTS["shared"])
        d.text(x + 4, y + 53, f"{unit.each}" + " + shared" * bool(unit.shared_beside), va="center", color=MUTED)
        if i:
            d.ax.plot((13, 635), (y + pitch - 4, y + pitch - 4), color=PALE, linewidth=1)
        beside = " and the shared one" * bool(unit.shared_beside)
        said.append(
            f"{unit.phase}, {unit.source}: {nodes}, {attention}, {unit.each} on a GPU{beside}; {places} {parts}"
        )
    d.text(116, d.height - 52, "the GPUs of a unit", color=MUTED)
    d.text(428, d.height - 52, "experts of a layer on a GPU", color=MUTED)
    before, last = units[-2:]
    finding = (
        f"{last.phase.capitalize()}: {before.gpus} GPUs with {before.each} expert each, "
        f"later {last.gpus} with {last.each}{beside}"
    )
    d.text(13, d.height - 26, finding, size=14)
    d.figure.alt = f"{finding}. Experts of a layer: {'; '.join(said)}."
    return d.figure
