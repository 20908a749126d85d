"""The two kinds of gates on the same logits: softmax, as in DeepSeekMoE and V2, and V3's normalised sigmoid.

The numbers are those of the toy layer (minids/book/toy.py).
"""

from __future__ import annotations

from minids.book.plots.c04_experts import ROUTER, V2
from minids.book.plots.diagram import LINE, say, two_decimals
from minids.book.plots.helpers import DASHED, name_ticks
from minids.book.plots.style import INK, MUTED, PALE, PAPER, Picture, new_figure, styled, tint
from minids.book.toy import WORDS, toy_input, toy_moe
from minids.validation import is_number, require, require_whole


@styled()
def draw_gates(token: int = 2, scale: float = 1.0) -> Picture:
    """Draw one token's scores under softmax and sigmoid, from the same logits, and the weights that follow for all.

    Left, the gate of V1 and V2: softmax, weights as they are. Right, V3's: sigmoid, weights normalised. The factors
    that follow (V2: 16, V3: 2.5) are 1 here. `scale` multiplies the logits. Raises ValueError for a token that is not
    one of WORDS, counted from 1, and for a scale that is not positive.
    """
    require_whole("token", token, at_most=len(WORDS))
    require("scale", scale, is_number(scale) and scale > 0, "a positive number")
    fig, sums, said = new_figure(height=5.3), [], []
    for column, (kind, changes) in enumerate({"Softmax (V1, V2)": V2, "Sigmoid (V3)": {}}.items()):
        gate = toy_moe(**changes).gate
        gate.weight.mul_(scale)
        weights, chosen, scores = (part.tolist() for part in gate(toy_input()))
        left, whole = 0.09 + 0.49 * column, sum(scores[token - 1][i] for i in chosen[token - 1])
        _scores(fig.add_axes((left, 0.505, 0.40, 0.30)), scores[token - 1], chosen[token - 1])
        _weights(fig.add_axes((left, 0.085, 0.34, 0.275)), weights, token)
        sums.append([sum(row) for row in weights])
        how = f"over {whole:.2f}" if gate.config.norm_topk_prob else "not normalised (V2)"
        fig.text(left - 0.07, 0.845, kind, size=12, weight="bold")
        fig.text(
            left + 0.40, 0.845, f"the {len(scores[0])} scores sum to {sum(scores[token - 1]):.2f}", size=12, ha="right"
        )
        fig.text(left - 0.07, 0.39, f"Weights: chosen scores, {how}", size=12)
        fig.text(left + 0.40, 0.39, "sum", size=11, ha="right", color=MUTED)
        said.append(
            f"{kind}: scores {say(scores[token - 1], two_decimals)}, weights of experts "
            f"{' and '.join(map(str, chosen[token - 1]))} {say(weights[token - 1], two_decimals)}, "
            f"sums of the six tokens {say(sums[-1], two_decimals)}"
        )
    own, all_ = sums[0][token - 1], sums[0]
    fig.title(
        f"“{WORDS[token - 1]}”: weights sum to {own:.2f} with softmax (all words: {min(all_):.2f} to {max(all_):.2f}), "
        f"to {sums[1][token - 1]:.2f} with V3’s gate"
    )
    fig.alt = f"Token {token} of “{' '.join(WORDS)}”, logits times {scale:g}. " + "; ".join(said)
    return fig


def _scores(ax, scores: list[float], chosen: list[int]) -> None:
    for i, score in enumerate(scores):
        lit = i in chosen
        ax.bar(i, score, 0.62, color=ROUTER if lit else PALE, edgecolor=INK if lit else LINE, linewidth=1)
        ax.text(i, score + 0.03, two_decimals(score), size=11, ha="center", color=INK if lit else MUTED)
    ax.set(ylim=(0, 1.12), xlim=(-0.6, len(scores) - 0.4))
    ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    name_ticks(ax, "x", [f"expert {i}" for i in range(len(scores))])
    ax.tick_params(axis="x", labelsize=11)


def _weights(ax, weights: list[list[float]], token: int) -> None:
    for row, values in enumerate(weights):
        here, start = row == token - 1, 0.0
        for value in values:
            ax.barh(row, value, 0.7, left=start, color=ROUTER if here else tint(ROUTER, 0.4), edgecolor=PAPER)
            if here and value > 0.12:
                ax.text(start + value / 2, row, two_decimals(value), size=10, ha="center", va="center_baseline")
            start += value
        ax.text(1.17, row, two_decimals(start), size=11, va="center_baseline", ha="right", color=INK if here else MUTED,
                weight="bold" if here else "normal")  # fmt: skip
    ax.axvline(1, color=MUTED, linewidth=1, linestyle=DASHED)
    ax.set(xlim=(0, 1), ylim=(len(weights) - 0.4, -0.6))
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    name_ticks(ax, "y", WORDS)
    ax.spines["left"].set_visible(False)
    label = ax.get_yticklabels()[token - 1]
    label.set_weight("bold")
