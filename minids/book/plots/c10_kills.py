"""A run whose process was killed again and again: what each process did, what was lost, and where the next went on."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from minids.book.plots.style import INK, LAYERS, MUTED, PALE, Picture, new_figure, styled, tint
from minids.book.probes.kills import KilledRun

ROW = 0.2  # inches
KEPT, LOST = LAYERS[1], LAYERS[6]
KEY = (
    ("■", KEPT, "kept by a checkpoint"), ("■", LOST, "lost, done again"), ("×", INK, "killed"),
    ("◆", INK, "while saving"), ("×", INK, "without a bar: while starting"),
)  # fmt: skip


@styled()
def draw_kills(run: KilledRun) -> Picture:
    """Draw each process as a bar over its steps: those that a checkpoint kept, and those that were lost with it.

    The text says only what is the same on every machine: the number of kills, and whether the result is.
    """
    panel = ROW * len(run.lives)
    fig = new_figure(height=panel + 1.75)
    high = fig.get_size_inches()[1]
    ax = fig.add_axes((0.085, 1.05 / high, 0.885, panel / high))
    for step in range(0, run.steps + 1, run.save_every):
        ax.axvline(step, color=PALE, linewidth=1, zorder=0)
    next_starts = [*(life.start for life in run.lives[1:]), run.steps]
    for row, (life, kept) in enumerate(zip(run.lives, next_starts, strict=True)):
        ax.barh(row, kept - life.start, left=life.start, height=0.72, color=KEPT)
        if life.end > kept:
            ax.barh(row, life.end - kept, left=kept, height=0.72, color=tint(LOST, 0.7), edgecolor=LOST, hatch="////")
        if life.killed:
            ax.plot(life.end, row, "D" if life.saving else "x", color=INK, markersize=7, clip_on=False, zorder=5)
            ax.plot([kept, kept], [row, row + 0.64], color=MUTED, linewidth=1, zorder=0.5)
    ax.set(xlim=(0, run.steps), ylim=(len(run.lives) - 0.4, -0.6), xlabel="step; grey lines: checkpoints")
    ax.set_ylabel("process", labelpad=8)
    numbers = [1, *range(5, len(run.lives) + 1, 5)]
    ax.set_yticks([number - 1 for number in numbers], [f"{number}" for number in numbers])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(axis="y", length=0)
    kills, steps = f"{run.kills} kill{'s' * (run.kills != 1)}", f"{run.repeated} step{'s' * (run.repeated != 1)}"
    fig.title(f"{kills}, {steps} done again, {'not one bit' if run.same else 'and the result is'} different",
              y=1 - 0.36 / high)  # fmt: skip
    x = 0.02
    for mark, color, words in KEY:
        fig.text(x, 0.16 / high, mark, size=12, color=color)
        fig.text(x + 0.02, 0.16 / high, words, size=11, color=MUTED)
        x += 0.042 + 0.0089 * len(words)
    result = "are those of an undisturbed run, bit for bit" if run.same else "differ from those of an undisturbed run"
    fig.alt = (
        f"A run of {run.steps} steps, saved every {run.save_every}, with {kills}; after each the next process goes on "
        f"from the last checkpoint. At the end, weights, moments and log {result}."
    )
    return fig
