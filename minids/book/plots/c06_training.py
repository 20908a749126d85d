"""What multi-token prediction does to a model: the recorded experiment, and the V3 report's own ablation."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes
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
    arms = list(result["arms"])
    trained = [arm for arm in arms if arm != AFTERWARDS]  # the main model of the other is that of `none`
    rows = [(arm, depth) for arm in arms for depth in range(1, 1 + max(1, depths_of(result, arm)))]
    fig = new_figure(height=5.5)
    bits, shares = (fig.add_axes((x, 0.125, width, 0.63)) for x, width in ((0.19, 0.29), (0.705, 0.145)))
    for ax, most, words in ((bits, 4, "bits per byte of the main head"), (shares, 3, "accepted drafts")):
        ax.set(ylim=(len(rows) + 1.2, -0.6), yticks=[])
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(words, size=11)
        ax.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    _draw_noise(bits, noise(result | {"arms": trained}), bits_of(result, NONE).mean(), below=len(rows))
    said = _draw_losses(bits, result, rows) + _draw_acceptance(shares, result, rows)
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


def _draw_noise(ax: Axes, floor: dict[str, float], center: float, below: int) -> None:
    """Draw how far runs are apart that differ in one seed: grey around the centre, and a bar for each kind of seed."""
    away = max(floor.values())
    ax.axvspan(center - away, center + away, color=PALE, alpha=0.6, linewidth=0, zorder=0)
    for i, (seed, apart) in enumerate(floor.items()):
        row = below + 0.05 + 0.75 * i
        ax.barh(row, 2 * apart, left=center - apart, height=0.3, color=MUTED)
        write_row(ax, row, {0.02: f"seed of {seed}"}, ha="left", color=MUTED)
        write_row(ax, row, {0.545: f"± {apart:.3f}"}, color=MUTED)


def _draw_losses(ax: Axes, result: dict, rows: list[tuple[str, int]]) -> list[str]:
    """Name the rows, draw the main head's bits per byte of each arm, and return them in words."""
    write_row(ax, -0.95, {0.545: "mean"}, color=MUTED)
    write_row(ax, -0.95, {0.565: f"against “{NONE}”"}, ha="left", color=MUTED)
    said = []
    for row, (arm, depth) in enumerate(rows):
        write_row(ax, row, {0.02: arm if depth == 1 else f"    depth {depth}"}, ha="left", size=12)
        if arm == AFTERWARDS:
            write_row(ax, row, {0.2: f"the model of “{NONE}”, frozen"}, ha="left", color=INK)
        elif depth == 1:
            scores = bits_of(result, arm)
            draw_runs(ax, row, scores.ravel(), INK)
            write_row(ax, row, {0.545: f"{scores.mean():.3f}"})
            write_row(ax, row, {0.565: SAID[compare(result, arm, NONE)] if arm != NONE else ""}, ha="left")
            said.append(f"{arm} {scores.mean():.3f} ({scores.min():.3f} to {scores.max():.3f}) bits per byte")
    return said


def _draw_acceptance(ax: Axes, result: dict, rows: list[tuple[str, int]]) -> list[str]:
    """Draw how often the drafts of each arm and depth are accepted, and return it in words."""
    write_row(ax, -0.95, {0.912: "T = 1", 0.985: "greedy"}, color=MUTED)
    said = []
    for row, (arm, depth) in enumerate(rows):
        if arm == NONE:
            continue
        sampled, greedy = (accepted(result, arm, name, depth) for name in ("acceptance", "agreement"))
        for found, fill in ((sampled, INK), (greedy, "white")):
            ax.plot([found.low, found.high], [row, row], color=INK, linewidth=1.2)
            ax.plot(found.mean, row, "o", color=INK, markersize=6.5, markerfacecolor=fill)
        write_row(ax, row, {0.912: f"{sampled.mean:.3f}", 0.985: f"{greedy.mean:.3f}"})
        said.append(f"{arm}, depth {depth}: acceptance {sampled}, greedy {greedy}")
    return said


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
