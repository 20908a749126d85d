"""What FP8 makes smaller, and what it does not: bytes of a training step and of the released files (chapter 7)."""

from __future__ import annotations

from collections import defaultdict

from matplotlib.axes import Axes

from minids.book.plots.c07_formats import COLORS
from minids.book.plots.helpers import label, name_ticks
from minids.book.plots.style import MUTED, Picture, new_figure, readable_on, styled
from minids.cost.parameters import released_numbers
from minids.cost.precision import (
    BF16,
    Bytes,
    activation_bytes,
    communication_bytes,
    file_bytes,
    state_bytes,
    trained_weights,
)
from minids.model.config import ModelConfig
from minids.units import short

UNITS = (" B", " KB", " MB", " GB", " TB")
ROWS = {  # the four quantities
    "state": "weights, gradients\nand moments",
    "kept": "kept for backward,\nper token",
    "sent": "to an expert and\nback, per token",
    "files": "released files",
}

Part = tuple[str, Bytes, tuple[str, str]]  # name, bytes, and the format on each side


@styled()
def draw_bytes(config: ModelConfig, small: ModelConfig, names: tuple[str, str] = ("V3", "miniature")) -> Picture:
    """Draw four sizes before and after, of a large and a small model: each bar is divided by formats.

    The bars of BF16 all have the same length.
    """
    fig = new_figure(height=5.9)
    said = []
    for name, of, place in zip(names, (config, small), (0.18, 0.785), strict=True):
        large = of is config
        ax = fig.add_axes((place, 0.11, 0.44 if large else 0.09, 0.71))
        for row, (quantity, parts) in enumerate(_quantities(of).items()):
            said.append(f"{name}, {ROWS[quantity]}: {_draw(ax, row, parts, named=large)}".replace("\n", " "))
        ax.set(xlim=(0, 1), ylim=(len(ROWS) - 0.45, -0.6), xticks=[])
        ax.spines[:].set_visible(False)
        name_ticks(ax, "y", list(ROWS.values()) if large else [""] * len(ROWS))
        ax.tick_params(axis="y", labelsize=11)
        fig.text(place, 0.835, name, size=12, weight="bold")
    state, weights = state_bytes(config), trained_weights(config)
    before, after = (sum(getattr(part, side) for part in state.values()) / weights for side in ("bf16", "fp8"))
    saved = [(state[part].bf16 - state[part].fp8) / weights for part in ("copy of the matrices", "moments")]
    finding = (
        f"Of {before:.0f} bytes for each weight in training, FP8 saves {saved[0]:.0f} and BF16 moments {saved[1]:.0f}"
    )
    fig.title(finding, y=0.94)
    fig.note(
        0.02, 0.89, "upper bar: BF16 mixed precision; lower bar: V3’s FP8 recipe; colours: the format of the numbers"
    )
    for x, (format, words) in zip((0.18, 0.3, 0.42, 0.54), _KEY.items(), strict=True):
        fig.text(x, 0.045, f"■ {words}", size=11, color=COLORS[format])
    fig.alt = f"{finding}: {after:.1f} remain. " + ". ".join(said)
    return fig


_KEY = {"FP32": "FP32", "BF16": "BF16", "E5M6": "E5M6", "E4M3": "E4M3, with its scales"}


def _quantities(config: ModelConfig) -> dict[str, list[Part]]:
    """Return the parts of each row."""
    state = state_bytes(config)
    sent = communication_bytes(config)
    numbers, files = released_numbers(config), file_bytes(config)
    rest = BF16 * numbers["BF16"]
    return {
        "state": [
            ("master", state["master weights"], ("FP32", "FP32")),
            ("gradient", state["gradients"], ("FP32", "FP32")),
            ("moments", state["moments"], ("FP32", "BF16")),
            ("copy", state["copy of the matrices"], ("BF16", "E4M3")),
            ("", state["copy of the others"], ("BF16", "BF16")),
        ],
        "kept": _kept(config),
        "sent": [("dispatch", sent["dispatch"], ("BF16", "E4M3")), ("combine", sent["combine"], ("BF16", "BF16"))],
        "files": [
            ("matrices", Bytes(files.bf16 - rest, files.fp8 - rest), ("BF16", "E4M3")),
            ("", Bytes(rest, rest), ("BF16", "BF16")),
        ],
    }  # fmt: skip


def _kept(config: ModelConfig) -> list[Part]:
    """Return the inputs of matrices, summed over all layers: of attention, and by the place in the experts."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0])
    for layer in range(config.num_hidden_layers):
        for matrices, size in activation_bytes(config, layer).items():
            names = {"SwiGLU": "SwiGLU", "down_proj": "down", "o_proj": "o", "up_proj": "gate, up"}
            name = names.get(matrices.split()[-1], "q, kv")
            after = "BF16" if size.bf16 == size.fp8 else "E5M6" if name == "o" else "E4M3"
            sums[name, after][0] += size.bf16
            sums[name, after][1] += size.fp8
    order = ["q, kv", "o", "gate, up", "SwiGLU", "down"]
    parts = [(name, Bytes(*both), ("BF16", after)) for (name, after), both in sums.items()]
    return sorted(parts, key=lambda part: (order.index(part[0]), part[2] == ("BF16", "BF16")))


def _draw(ax: Axes, row: int, parts: list[Part], named: bool) -> str:
    """Draw the two bars of a row, and say what they show."""
    whole = [sum(getattr(size, side) for _, size, _ in parts) for side in ("bf16", "fp8")]
    for bar, side in enumerate(("bf16", "fp8")):
        left, y = 0.0, row - 0.19 + 0.38 * bar
        for name, size, formats in parts:
            width, color = getattr(size, side) / whole[0], COLORS[formats[bar]]
            ax.barh(y, width, left=left, height=0.34, color=color, edgecolor="white", linewidth=0.8)
            if named and width > 0.0175 * (len(name) + 1.4):
                ax.text(left + width / 2, y, name, size=10, ha="center", va="center", color=readable_on(color))
            left += width
        text = short(whole[bar], UNITS) + (f"  {whole[1] / whole[0]:.0%}" if bar else "")
        label(ax, text, (left, y), (4, 0), size=11, color=MUTED)
    return f"{short(whole[0], UNITS)} in BF16, {short(whole[1], UNITS)} in FP8 ({whole[1] / whole[0]:.0%})"
