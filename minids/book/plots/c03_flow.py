"""One token's way through latent attention, each tensor as wide as it has numbers."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Polygon, Rectangle

from minids.book.plots.c03_sequence import COLORS
from minids.book.plots.diagram import Diagram
from minids.book.plots.style import INK, MUTED, PAPER, PARTS, Picture, readable_on, styled
from minids.cost.attention import mla_cached_numbers
from minids.model.config import ModelConfig

LEFT, PAGE, BAR = 22, 604, 17  # points: where the flow begins, how wide its widest row is, how high a bar is


@styled()
def draw_latent_flow(config: ModelConfig, absorbed: bool = False) -> Picture:
    """Draw one token's way through MLA, each tensor as wide as it has numbers; expanded, or with W^UK absorbed.

    Both pictures of a model have the same scale. Raises ValueError for a model without latents.
    """
    c, cached = config, mla_cached_numbers(config)
    kept, made = cached["absorbed"], cached["full cache"]
    flow = _Flow(config, absorbed)
    flow.draw()
    title = (
        f"{kept:,} numbers are cached; they expand to {made:,}, of which {made - flow.nope - flow.value:,} are copies"
    )
    fate = f"They expand to {made:,}: keys and values of all heads."
    if absorbed:
        title = f"Absorbed: {kept:,} cached numbers serve as keys of wider queries, and nothing is expanded"
        fate = f"The queries become {flow.wide:,} wide, and the latent itself is their key."
    flow.d.text(LEFT, flow.top + 32, title, size=14)
    flow.d.text(LEFT, flow.top + 15, "Widths to scale. A wedge is a matrix or, without a name, a copy.", color=MUTED)
    queries = f"from a latent of {c.q_lora_rank:,}" if c.q_lora_rank else "directly from h"
    flow.d.figure.alt = (
        f"One token in a layer of {c.num_attention_heads} heads: h has {c.hidden_size:,} numbers; "
        f"queries come {queries}; cached are c_kv ({c.kv_lora_rank:,}) and k_rope ({c.qk_rope_head_dim:,}), "
        f"{kept:,} together. {fate}"
    )
    return flow.d.figure


class _Flow:
    """The layout: rows from h at the bottom to out at the top, queries on the left, keys and values on the right.

    What both forms have is in the same place in both; the rows "absorbed" and "sums" are empty in the expanded form.
    """

    def __init__(self, config: ModelConfig, absorbed: bool):
        c, self.config, self.absorbed = config, config, absorbed
        heads = c.num_attention_heads
        self.nope, self.rope, self.value = heads * c.qk_nope_head_dim, heads * c.qk_rope_head_dim, heads * c.v_head_dim
        self.kept = c.kv_lora_rank + c.qk_rope_head_dim
        self.wide = heads * c.kv_lora_rank + self.rope
        gap = 24
        widest = max(self.nope + self.rope + mla_cached_numbers(c)["full cache"], self.wide + self.kept)
        self.scale = (PAGE - gap) / widest
        self.rows = {
            "h": 24,
            "latents": 74,
            "heads": 122,
            "absorbed": 172,
            "meet": 204,
            "sums": 240,
            "o": 278,
            "out": 316,
        }
        self.top = self.rows["out"] + BAR + 6
        self.d = Diagram(height=self.top + 54)

    def draw(self) -> None:
        c, scale = self.config, self.scale
        query_mid = LEFT + scale * (self.nope + self.rope) / 2
        kept_mid = LEFT + PAGE - scale * mla_cached_numbers(c)["full cache"] / 2
        (h,) = self.bar("h", (query_mid + kept_mid) / 2, [(c.hidden_size, "h", PARTS["dense"])])
        # Queries.
        below, row = h, "h"
        if c.q_lora_rank is not None:
            (c_q,) = self.bar("latents", query_mid, [(c.q_lora_rank, "c_q", PARTS["attention"])], names="left")
            self.funnel("h", h, "latents", c_q, "attention", "W^{DQ}")
            below, row = c_q, "latents"
        parts = [(self.nope, "q_nope", PARTS["attention"]), (self.rope, "q_rope", PARTS["rope"])]
        q_nope, q_rope = self.bar("heads", query_mid, parts)
        matrix = "W^{UQ},\\ W^{QR}" if row == "latents" else "W^Q"
        self.funnel(row, below, "heads", (q_nope[0], q_rope[1]), "attention", matrix)
        # What is cached.
        parts = [(c.kv_lora_rank, "c_kv", PARTS["latent"]), (c.qk_rope_head_dim, "k_rope", PARTS["rope"])]
        c_kv, k_rope = self.bar("latents", kept_mid, parts, names="cached")
        self.funnel("h", h, "latents", (c_kv[0], k_rope[1]), "latent", "W^{DKV},\\ W^{KR}")
        (self._absorbed if self.absorbed else self._expanded)(q_nope, q_rope, c_kv, k_rope)

    def _expanded(self, q_nope, q_rope, c_kv, k_rope) -> None:
        parts = [(self.value, "v", COLORS["v_made"]), (self.nope, "k_nope", COLORS["k_nope"]),
                 (self.rope, "k_rope, copied", PARTS["rope"])]  # fmt: skip
        values, keys, copies = self.bar("heads", (c_kv[0] + k_rope[1]) / 2, parts)
        self.funnel("latents", c_kv, "heads", values, "latent", "W^{UV}")
        self.funnel("latents", c_kv, "heads", keys, "latent", "W^{UK}")
        self.funnel("latents", k_rope, "heads", copies, "rope")
        self.meet("each head: softmax of q · k over all tokens, then the mean of v")
        self.finish()

    def _absorbed(self, q_nope, q_rope, c_kv, k_rope) -> None:
        latents = self.config.num_attention_heads * self.config.kv_lora_rank
        parts = [(latents, "q_nope, absorbed", PARTS["attention"]), (self.rope, "q_rope", PARTS["rope"])]
        wide, turned = self.bar("absorbed", LEFT + self.scale * self.wide / 2, parts)
        self.funnel("heads", q_nope, "absorbed", wide, "attention", "(W^{UK})^\\top")
        self.funnel("heads", q_rope, "absorbed", turned, "rope")
        middle, y, right = (c_kv[0] + k_rope[1]) / 2, self.rows["latents"] + BAR + 14, LEFT + PAGE - 6
        self.d.line((middle, y - 14), (middle, y), (right, y), (right, self.rows["meet"]))
        self.meet("each head: softmax of q · [c_kv ; k_rope] over all tokens, then the mean of c_kv")
        (sums,) = self.bar("sums", sum(wide) / 2, [(latents, "means of c_kv", PARTS["latent"])])
        self.finish(sums)

    def finish(self, below: tuple[float, float] | None = None) -> None:
        """Draw the outputs of the heads, through W^UV first if they are still latents, and out."""
        (o,) = self.bar("o", LEFT + PAGE / 2, [(self.value, "o", PARTS["attention"])])
        if below is not None:
            self.funnel("sums", below, "o", o, "latent", "W^{UV}")
        (out,) = self.bar("out", LEFT + PAGE / 2, [(self.config.hidden_size, "out", PARTS["dense"])])
        self.funnel("o", o, "out", out, "attention", "W^O")

    def bar(self, row: str, middle: float, parts: Sequence[tuple[int, str, str]], names: str = "in") -> list:
        """Draw tensors side by side, and return where each begins and ends."""
        y, x = self.rows[row], middle - self.scale * sum(numbers for numbers, _, _ in parts) / 2
        ends, whole = [], x
        for numbers, name, color in parts:
            width = self.scale * numbers
            self.d.ax.add_artist(
                Rectangle((x, y), width, BAR, facecolor=color, edgecolor=PAPER, linewidth=0.6, zorder=3)
            )
            label = f"{name} {numbers:,}"
            if names == "in" and width > 6.4 * len(label):
                self.d.text(x + width / 2, y + BAR / 2 - 0.5, label, size=10, ha="center", va="center",
                            color=readable_on(color))  # fmt: skip
            elif names == "in":
                self.d.text(x + width, y + BAR + 3, label, size=10, ha="right")
            ends.append((x, x + width))
            x += width
        if names == "left":
            self.d.text(whole - 6, y + BAR / 2, f"{parts[0][1]} {parts[0][0]:,}", size=10, ha="right", va="center")
        if names == "cached":
            self._outline(whole, y, x - whole)
            self._enlarge((whole + x) / 2, y, parts)
        return ends

    def _outline(self, x: float, y: float, width: float) -> None:
        self.d.ax.add_artist(
            Rectangle((x - 4, y - 4), width + 8, BAR + 8, facecolor="none", edgecolor=INK, linewidth=1.3,
                      linestyle=(0, (3, 2)), zorder=4)
        )  # fmt: skip

    def _enlarge(self, middle: float, y: float, parts: Sequence[tuple[int, str, str]]) -> None:
        """Draw what is cached once more, so wide that it can be seen, under its place, and say how much wider."""
        numbers, text = sum(part[0] for part in parts), " + ".join(f"{name} {count:,}" for count, name, _ in parts)
        times = round(150 / (numbers * self.scale))
        small = numbers * self.scale / 2 + 4
        if times < 3:
            self.d.text(
                middle - small - 6, y + BAR / 2, f"cached: {text}", size=10, ha="right", va="center", weight="bold"
            )
            return
        width, low = numbers * self.scale * times, 20
        left = min(middle + 24, LEFT + PAGE - width)
        self.d.wedge([(middle - small, y - 4), (middle + small, y - 4), (left + width + 4, low + BAR + 4),
                      (left - 4, low + BAR + 4)])  # fmt: skip
        x = left
        for count, _, color in parts:
            self.d.ax.add_artist(
                Rectangle((x, low), count * self.scale * times, BAR, facecolor=color, edgecolor=PAPER, linewidth=0.6,
                          zorder=3)
            )  # fmt: skip
            x += count * self.scale * times
        self._outline(left, low, width)
        self.d.text(
            left + width + 4, low - 16, f"cached, drawn {times}× wider: {text}", size=10, weight="bold", ha="right"
        )

    def funnel(
        self, row: str, below: tuple[float, float], to: str, above: tuple[float, float], part: str, name: str = ""
    ) -> None:
        """Draw the matrix between two tensors, and its name where the wedge has the room."""
        low, high = self.rows[row] + BAR, self.rows[to]
        corners = [(below[0], low), (below[1], low), (above[1], high), (above[0], high)]
        self.d.ax.add_artist(
            Polygon(corners, closed=True, facecolor=PARTS[part], alpha=0.22, edgecolor="none", zorder=1)
        )
        if name:
            middle, y = (sum(below) + 2 * sum(above)) / 6, low + (high - low) * 0.62
            self.d.text(middle, y, f"${name}$", size=11, ha="center", va="center")

    def meet(self, text: str) -> None:
        self.d.box(LEFT, self.rows["meet"], PAGE, 20, text, size=11)
