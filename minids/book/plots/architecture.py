"""The whole model in one picture: the map of the book.

Every chapter opens with it. The parts that the chapter is about are lit, and each part has the number of its
chapter. All parts keep their places from picture to picture.
"""

from minids.book.plots.diagram import FAINT, Diagram
from minids.book.plots.style import INK, MUTED, PALE, PARTS, Picture, styled
from minids.model.config import ModelConfig

LATER = {
    "FP8": 7, "DualPipe": 8, "Expert parallelism": 9, "Training": 10, "Long context": 11, "SFT, GRPO": 12,
    "Distillation": 13, "Inference": 14, "Sparse attention": 15, "The bill, paid": 16,
}  # fmt: skip
EVERYTHING = {
    "embedding", "dense blocks", "MoE blocks", "norm", "head", "MTP", "attention", "latents", "feed-forward",
    "router", "shared", "routed",
}  # fmt: skip
LIT = {
    1: EVERYTHING,
    2: {"embedding", "dense blocks", "norm", "head", "attention", "feed-forward"},
    3: {"attention", "latents"},
    4: {"MoE blocks", "feed-forward", "router", "shared", "routed"},
    5: {"router", "routed"},
    6: {"MTP", "embedding", "head"},
    7: {"dense blocks", "MoE blocks", "attention", "latents", "feed-forward", "shared", "routed", "FP8"},
    8: {"dense blocks", "MoE blocks", "DualPipe"},
    9: {"router", "routed", "Expert parallelism"},
    10: EVERYTHING | {"Training"},
    11: {"attention", "Long context"},
    12: EVERYTHING | {"SFT, GRPO"},
    13: EVERYTHING | {"Distillation"},
    14: {"attention", "latents", "MTP", "Inference"},
    15: {"attention", "Sparse attention"},
    16: EVERYTHING | {"The bill, paid"},
}
CHOSEN = [(1, 4), (1, 19), (2, 26), (4, 9), (4, 15), (4, 30), (7, 2), (7, 22)]  # an example: (group, expert)


@styled()
def draw_architecture(chapter: int | None = None) -> Picture:
    """Draw DeepSeek-V3 with a chapter's parts lit; all of it without a chapter.

    Raises ValueError for a chapter that the book does not have.
    """
    if chapter is not None and chapter not in LIT:
        raise ValueError(f"There is no chapter {chapter}: the book has {min(LIT)} to {max(LIT)}.")
    lit = LIT[chapter] if chapter else EVERYTHING | LATER.keys()
    config = ModelConfig.preset("deepseek-v3")
    d = Diagram(height=502, bottom=-28)
    d.wedge([(112, 262), (112, 182), (226, 56), (226, 456)])
    d.wedge([(316, 194), (316, 146), (378, 46), (378, 242)])
    d.wedge([(316, 352), (316, 306), (378, 260), (378, 456)])
    _model(d, config, lit)
    _block(d, lit)
    _experts(d, config, lit)
    _attention(d, config, lit)
    _later(d, lit)
    shown = ", ".join(sorted(lit)) if chapter and lit != EVERYTHING else "everything"
    d.figure.alt = (
        f"The architecture of DeepSeek-V3: embedding, {config.first_k_dense_replace} dense blocks, "
        f"{config.num_hidden_layers - config.first_k_dense_replace} blocks with a mixture of experts, head, and an MTP "
        f"module. A block is attention over cached latents, then {config.n_shared_experts} shared and "
        f"{config.num_experts_per_tok} of {config.n_routed_experts} routed experts. Lit: {shown}."
    )
    return d.figure


def _model(d: Diagram, c: ModelConfig, lit: set[str]) -> None:
    def on(part: str) -> bool:
        return part in lit

    moe = c.num_hidden_layers - c.first_k_dense_replace
    d.panel(8, 44, 204, 420, "The whole model")
    x, w = 20, 92
    mid = x + w / 2
    d.text(mid, 54, "tokens", ha="center", color=MUTED)
    d.line((mid, 66), (mid, 80))
    d.box(x, 80, w, 26, "Embedding", color=PARTS["embedding"], lit=on("embedding"))
    d.line((mid, 106), (mid, 126))
    d.box(x, 126, w, 34, f"{c.first_k_dense_replace} dense\nblocks", color=PARTS["dense"], lit=on("dense blocks"))
    d.line((mid, 160), (mid, 182))
    for shift in (8, 4, 0):
        label = f"{moe} blocks,\nmixtures of\nexperts" if shift == 0 else ""
        d.box(x + shift, 182 + shift, w - 8, 72, label, color=PARTS["routed"], lit=on("MoE blocks"))
    d.line((mid, 262), (mid, 306))
    d.box(x, 306, w, 22, "RMSNorm", color=PARTS["norm"], lit=on("norm"))
    d.line((mid, 328), (mid, 344))
    d.dot(mid, 336)
    d.box(x, 344, w, 26, "Output head", color=PARTS["head"], lit=on("head"))
    d.line((mid, 370), (mid, 386))
    d.text(mid, 392, "next token", ha="center", color=MUTED)
    # The MTP module beside it.
    x2, w2 = 128, 74
    mid2, bright = x2 + w2 / 2, on("MTP")
    d.line((mid, 336), (mid2, 336), (mid2, 352), lit=bright)  # after the final norm
    d.text(mid2 + 5, 316, "and the next\ntoken’s\nembedding", size=10, ha="center", va="top", color=MUTED)
    d.line((mid2 + 14, 320), (mid2 + 14, 352), lit=bright)
    d.box(x2, 352, w2, 18, "join", color=PARTS["mtp"], lit=bright)
    d.line((mid2, 370), (mid2, 378), lit=bright)
    d.box(x2, 378, w2, 19, "1 block", color=PARTS["mtp"], lit=bright)
    d.line((mid2, 397), (mid2, 405), lit=bright)
    d.box(x2, 405, w2, 18, "same head", color=PARTS["head"], lit=bright)
    d.line((mid2, 423), (mid2, 431), lit=bright)
    d.text(mid2, 435, "the one after", ha="center", color=MUTED, size=10)
    d.chapter(x2 + w2, 397, 6, bright)
    d.chapter(x + w, 106, 2, on("embedding") and on("dense blocks"))


def _block(d: Diagram, lit: set[str]) -> None:
    x, w, side = 238, 78, 330
    mid, top = x + w / 2, 452
    d.panel(226, 44, 122, 420, "One block")
    steps = ((82, 98, 146, "attention", "Attention"), (240, 256, 306, "feed-forward", "Feed-\nforward"))
    d.line((mid, 52), (mid, 98))
    for fork, norm, part, name, label in steps:
        color = PARTS["attention"] if name == "attention" else PARTS["routed"]
        d.dot(mid, fork)
        d.line((mid, fork), (side, fork), (side, part + 72), (mid + 7, part + 72))
        d.box(x, norm, w, 22, "RMSNorm", color=PARTS["norm"], lit="norm" in lit)
        d.line((mid, norm + 22), (mid, part))
        d.box(x, part, w, 46, label, color=color, lit=name in lit, size=12)
        d.line((mid, part + 46), (mid, part + 65))
        d.plus(mid, part + 72)
    d.line((mid, 225), (mid, 256))
    d.line((mid, 385), (mid, top - 38))


def _attention(d: Diagram, c: ModelConfig, lit: set[str]) -> None:
    on = "latents" in lit
    d.panel(378, 44, 262, 200, "Multi-head latent attention", on)
    d.chapter(622, 232, 3, on)
    d.text(390, 51, f"h, {c.hidden_size}", color=MUTED)
    d.line((429, 63), (429, 80), lit=on)
    d.dot(429, 69, lit=on)
    for x in (511, 593):
        d.line((429, 69), (x, 69), (x, 80), lit=on)
    d.box(390, 80, 78, 26, f"c_q, {c.q_lora_rank}", color=PARTS["attention"], lit=on)
    d.box(476, 80, 70, 26, f"c_kv, {c.kv_lora_rank}", color=PARTS["latent"], lit=on, cached=True)
    d.box(554, 80, 78, 26, f"k_rope, {c.qk_rope_head_dim}", color=PARTS["rope"], lit=on, cached=True)
    heads = c.num_attention_heads
    d.line((429, 106), (429, 134), lit=on)
    d.line((495, 106), (495, 134), lit=on)
    d.line((527, 106), (527, 120), (560, 120), (560, 134), lit=on)
    d.box(390, 134, 78, 26, f"{heads} queries", color=PARTS["attention"], lit=on, size=10)
    d.box(476, 134, 50, 26, "keys", color=PARTS["attention"], lit=on, size=10)
    d.box(534, 134, 50, 26, "values", color=PARTS["attention"], lit=on, size=10)
    for x in (429, 501, 559, 608):
        d.line((x, 106 if x == 608 else 160), (x, 184), lit=on)
    d.box(390, 184, 242, 26, "each query attends to all keys up to its own", color=PARTS["attention"], lit=on, size=10)
    width = c.kv_lora_rank + c.qk_rope_head_dim
    d.text(632, 52, f"dashed: cached, {width} numbers", color=MUTED, size=10, ha="right")


def _experts(d: Diagram, c: ModelConfig, lit: set[str]) -> None:
    on = bool({"shared", "routed", "router"} & lit)
    d.panel(378, 258, 262, 206, "Mixture of experts", on)
    d.chapter(622, 452, 4, "shared" in lit)
    d.box(390, 290, 64, 28, "Router", color=PARTS["router"], lit="router" in lit)
    d.chapter(454, 318, 5, "router" in lit)
    d.box(390, 346, 64, 28, f"{c.n_shared_experts} shared", color=PARTS["shared"], lit="shared" in lit)
    side, pitch, left, bottom = 3.9, 4.9, 474, 302
    columns = c.n_routed_experts // c.n_group
    kept = {group for group, _ in CHOSEN}
    for group in range(c.n_group):
        for expert in range(columns):
            used = (group, expert) in CHOSEN and "routed" in lit
            color = PARTS["routed"] if used else "#BFD9CF" if group in kept and "routed" in lit else PALE
            d.square(left + expert * pitch, bottom + group * 1.5 * pitch, side if not used else side + 0.6, color)
    top = bottom + c.n_group * 1.5 * pitch
    routed = INK if "routed" in lit else MUTED
    d.text(left, top + 4, f"{c.n_routed_experts} routed, {c.num_experts_per_tok} used", size=10, color=routed)
    d.text(left, bottom - 14, f"from {c.topk_group} of {c.n_group} groups", size=10, color=MUTED)
    d.line((422, 270), (422, 290), lit="router" in lit)
    d.line((454, 304), (468, 304), lit="router" in lit)
    d.line((384, 280), (384, 360), (390, 360), lit="shared" in lit)
    d.line((422, 280), (384, 280), lit="shared" in lit, arrow=False)
    middle = left + columns * pitch / 2
    d.line((422, 374), (422, 412), (middle - 7, 412), lit="shared" in lit)
    d.line((middle, top + 18), (middle, 405), lit="routed" in lit)
    d.plus(middle, 412, on)
    d.line((middle, 419), (middle, 440), lit=on)


def _later(d: Diagram, lit: set[str]) -> None:
    width, gap = 121.6, 6
    for i, (name, number) in enumerate(LATER.items()):
        x, y, on = 8 + i % 5 * (width + gap), 10 - i // 5 * 28, name in lit
        d.box(x, y, width, 22, color=PALE if on else FAINT, lit=on)
        d.chapter(x + 12, y + 11, number, on)
        d.text(x + 25, y + 11, name, size=10, va="center", color=INK if on else MUTED)
