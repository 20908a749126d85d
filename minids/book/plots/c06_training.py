"""What multi-token prediction does to a model: the recorded experiment, and the V3 report's own ablation."""

from __future__ import annotations

import statistics

from matplotlib.ticker import MaxNLocator

from minids.book.plots.helpers import across, draw_runs, write_row
from minids.book.plots.style import INK, MUTED, PALE, Picture, new_figure, styled
from minids.book.recorded import STANDINGS, Measured, bits_of, compare, model_of, noise, runs_of
from minids.cost.published import MTP_ABLATION

NONE, AFTERWARDS = "none", "afterwards"
LOOKS = (
    (MUTED, "o", -0.16, 0.81),
    (INK, "D", 0.16, 0.975),
)  # of the two sizes: colour, marker, place in its row, column
LONGEST = 90  # letters of a title
SAID = dict(zip(STANDINGS, ("lower", "higher", "not separated"), strict=True))


def accepted(result: dict, arm: str, name: str = "acceptance", depth: int = 1) -> Measured:
    """Return the mean over the domains of "acceptance" at temperature 1, or of greedy "agreement", of each run."""
    return Measured(tuple(statistics.mean(run[name][depth - 1].values()) for run in runs_of(result, arm)))


@styled()
def draw_mtp_ablation(result: dict) -> Picture:
    """Draw the main head's held-out bits per byte of every arm, and how often the drafts of its modules are accepted.

    Left: a dot for each run, their range and their mean, and what `Measured` separates from the arm without MTP. Grey
    is as far around that arm's mean as two runs of an arm are apart that differ in one seed. Right: acceptance at
    temperature 1 (filled) and greedy agreement (open) at every depth.
    """
    arms, scores = list(result["arms"]), {arm: bits_of(result, arm) for arm in result["arms"]}
    trained = [arm for arm in arms if arm != AFTERWARDS]  # the main model of the other is that of `none`
    floor, center = noise(result | {"arms": trained}), scores[NONE].mean()
    rows = [(arm, depth) for arm in arms for depth in range(1, 1 + max(1, depths_of(result, arm)))]
    fig = new_figure(height=5.5)
    bits, shares = (fig.add_axes((x, 0.125, width, 0.63)) for x, width in ((0.19, 0.29), (0.705, 0.145)))
    for ax in (bits, shares):
        ax.set(ylim=(len(rows) + 1.2, -0.6), yticks=[])
        ax.spines["left"].set_visible(False)
    write_row(bits, -0.95, {0.545: "mean"}, color=MUTED)
    write_row(bits, -0.95, {0.565: f"against “{NONE}”"}, ha="left", color=MUTED)
    write_row(shares, -0.95, {0.912: "T = 1", 0.985: "greedy"}, color=MUTED)
    away = max(floor.values())
    bits.axvspan(center - away, center + away, color=PALE, alpha=0.6, linewidth=0, zorder=0)
    said = []
    for row, (arm, depth) in enumerate(rows):
        write_row(bits, row, {0.02: arm if depth == 1 else f"    depth {depth}"}, ha="left", size=12)
        if arm in trained and depth == 1:
            draw_runs(bits, row, scores[arm].ravel(), INK)
            write_row(bits, row, {0.545: f"{scores[arm].mean():.3f}"})
            write_row(bits, row, {0.565: SAID[compare(result, arm, NONE)] if arm != NONE else ""}, ha="left")
            low, high = scores[arm].min(), scores[arm].max()
            said.append(f"{arm} {scores[arm].mean():.3f} ({low:.3f} to {high:.3f}) bits per byte")
        elif arm == AFTERWARDS:
            write_row(bits, row, {0.2: f"the model of “{NONE}”, frozen"}, ha="left", color=INK)
        if arm != NONE:
            sampled, greedy = (accepted(result, arm, name, depth) for name in ("acceptance", "agreement"))
            for found, fill in ((sampled, INK), (greedy, "white")):
                shares.plot([found.low, found.high], [row, row], color=INK, linewidth=1.2)
                shares.plot(found.mean, row, "o", color=INK, markersize=6.5, markerfacecolor=fill)
            write_row(shares, row, {0.912: f"{sampled.mean:.3f}", 0.985: f"{greedy.mean:.3f}"})
            said.append(f"{arm}, depth {depth}: acceptance {sampled}, greedy {greedy}")
    for i, (seed, apart) in enumerate(floor.items()):
        row = len(rows) + 0.05 + 0.75 * i
        bits.barh(row, 2 * apart, left=center - apart, height=0.3, color=MUTED)
        write_row(bits, row, {0.02: f"seed of {seed}"}, ha="left", color=MUTED)
        write_row(bits, row, {0.545: f"± {apart:.3f}"}, color=MUTED)
    bits.set_xlabel("bits per byte of the main head", size=11)
    shares.set_xlabel("accepted drafts", size=11)
    for ax, most in ((bits, 4), (shares, 3)):
        ax.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    fig.title(_main_loss(result, [arm for arm in trained if arm != NONE]), y=0.93)
    fig.title(_drafts(result, [arm for arm in trained if arm != NONE]), y=0.87)
    fig.note(
        0.02,
        0.815,
        "held-out prose and code; dot: a run, bar: mean. Drafts: filled at temperature 1, open greedy",
        size=10.5,
    )
    fig.alt = "; ".join(said)
    return fig


def depths_of(result: dict, arm: str) -> int:
    """Return how many MTP modules an arm's model has."""
    return model_of(result, arm).num_nextn_predict_layers


def _main_loss(result: dict, arms: list[str]) -> str:
    """Say which arms' main head `Measured` separates from that without MTP, and by how much."""
    center = bits_of(result, NONE).mean()
    for most in (2, 0):  # names, or only how many there are if the line would be too long
        parts = []
        for verdict, words in SAID.items():
            found = [arm for arm in arms if compare(result, arm, NONE) == verdict]
            if not found:
                continue
            by = _range([abs(bits_of(result, arm).mean() - center) for arm in found]) + " "
            names = (
                " and ".join(f"“{arm}”" for arm in found) if len(found) <= most else f"{len(found)} of {len(arms)} arms"
            )
            parts.append(f"{by if verdict != STANDINGS[-1] else ''}{words} in {names}")
        text = f"Main loss, against “{NONE}”: " + ", ".join(parts)
        if len(text) <= LONGEST:
            break
    return text


def _drafts(result: dict, arms: list[str]) -> str:
    """Say the acceptance at temperature 1 of the first modules, of the second, and of the one trained afterwards."""
    first = [accepted(result, arm).mean for arm in arms]
    parts = [f"Accepted at temperature 1: {_range(first)}"]
    parts += [f"{accepted(result, arm, depth=2).mean:.3f} at depth 2" for arm in arms if depths_of(result, arm) > 1]
    if AFTERWARDS in result["arms"]:
        parts.append(f"{accepted(result, AFTERWARDS).mean:.3f} if trained afterwards")
    return ", ".join(parts)


def _range(values: list[float]) -> str:
    low, high = (f"{edge(values):.3f}" for edge in (min, max))
    return low if low == high else f"{low} to {high}"


# ---------------------------------------------------------------------------------------------------
# The report's ablation


@styled()
def draw_mtp_published() -> Picture:
    """Draw how table 4 of the V3 report changes with an MTP module: each benchmark at both sizes."""
    scores = {size: dict(table) for size, table in MTP_ABLATION.items()}
    loss = {size: table.pop("Pile") for size, table in scores.items()}
    changes = {
        name: [round(table[name][1] - table[name][0], 1) for table in scores.values()]
        for name in next(iter(scores.values()))
    }
    fig = new_figure(height=5.2)
    ax = fig.add_axes((0.19, 0.115, 0.47, 0.63))
    ax.axvline(0, color=MUTED, linewidth=1, zorder=0)
    for (size, table), (color, marker, up, x) in zip(scores.items(), LOOKS, strict=True):
        ax.plot(
            x - 0.014 - 0.01 * len(size), -1.1, marker, color=color, markersize=7, transform=across(ax), clip_on=False
        )
        write_row(ax, -1.1, {x: size}, color=color)
        for row, name in enumerate(sorted(changes, key=lambda name: -sum(changes[name]))):
            before, after = table[name]
            ax.plot([0, after - before], [row + up] * 2, color=color, linewidth=2)
            ax.plot(after - before, row + up, marker, color=color, markersize=7)
            write_row(ax, row, {x: f"{before:.1f} → {after:.1f}"})
            if size == next(iter(scores)):
                write_row(ax, row, {0.02: name}, ha="left", size=12)
    ax.set(ylim=(len(changes) - 0.4, -0.6), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("change of the benchmark’s score with MTP, in points", size=11)
    falls = [
        f"{name} at {size}"
        for name, both in changes.items()
        for size, change in zip(scores, both, strict=True)
        if change < 0
    ]
    rises = sum(change > 0 for both in changes.values() for change in both)
    most = max(abs(after - before) for before, after in loss.values())
    moved = " and ".join(f"{before:.3f} → {after:.3f}" for before, after in loss.values())
    fig.title(f"MTP changes the loss by at most {most:.3f}: {moved} bits per byte", y=0.93)
    fig.title(f"{rises} of {2 * len(changes)} benchmark scores rise, {' and '.join(falls)} fall", y=0.865)
    fig.note(
        0.02, 0.81, "V3 report, table 4: one module, dropped at inference; no spread over seeds is given", size=10.5
    )
    fig.alt = (
        f"Bits per byte on the Pile without and with MTP: {moved}. Change in points at {' and '.join(scores)}: "
        + ", ".join(f"{name} {small:+.1f} and {large:+.1f}" for name, (small, large) in changes.items())
    )
    return fig
