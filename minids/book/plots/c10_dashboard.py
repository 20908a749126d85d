"""The whole training run in one picture: loss, experts, MTP, gradient, learning rate, speed, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from minids.book.health import step_seconds
from minids.book.plots import c10_panels as panel
from minids.book.plots.c10_panels import WIDEST, Run, changes_of, has_mtp, level
from minids.book.plots.style import VERDICT_MARKS, VERDICTS, Picture, new_figure, styled
from minids.training.config import TrainConfig
from minids.units import short

HEIGHT = 6.9  # inches
LEFT, RIGHT = (0.62, 3.62), (6.12, 1.9)  # columns: where their axes begin, and how wide they are, in inches
TOP, BOTTOM, KEY, GAP, HEADER = 6.12, 0.5, 0.24, 0.17, 0.27  # the key is below, if there is one


@styled()
def draw_dashboard(
    records: list[dict], report: dict | None = None, config: TrainConfig | None = None,
    layer_names: Sequence[str] = (),
) -> Picture:  # fmt: skip
    """Draw a run from its log records so far (at least one); with its report also the held-out scores.

    `config` is the run's, by default the one in the report. `layer_names` are those of the layers with experts. A panel
    is drawn for what the records have: a dense model has no load, a model without MTP no second loss. A ✓ or ✗ before
    a panel is the verdict of minids.book.health, which needs some steps, and the title says what is wrong. `alt` says
    what is drawn, not the numbers, so it is the same during a run, after it, and on every processor. Raises ValueError
    without records, and without a configuration.
    """
    if not records:
        raise ValueError("there are no records: train at least one step first.")
    if config is None:
        if report is None:
            raise ValueError("config is missing: give the run's TrainConfig, or its report.")
        config = TrainConfig(**report["train"] | {"betas": tuple(report["train"]["betas"])})
    run = Run(records, report, config, list(layer_names))
    fig = new_figure(HEIGHT)
    main, side = _panels(run)
    if len(side) < 2:
        main, side = main + side, []
    _stack(fig, run, main, LEFT if side else (LEFT[0], WIDEST - LEFT[0] - 1.6))
    _stack(fig, run, side, RIGHT)
    if any(run.verdicts.values()):
        _mark(fig, "wrong", 0.18, HEIGHT - 0.33, size=15)
    elif run.verdicts["loss"] is not None:
        _mark(fig, "right", 0.18, HEIGHT - 0.33, size=15)
    fig.text(0.05, (HEIGHT - 0.33) / HEIGHT, _verdict(run), size=14)
    fig.note(0.05, (HEIGHT - 0.58) / HEIGHT, _progress(run))
    if report:
        key = "line: training, whole rows    dot: held-out, second half of a row    dotted: 5-gram on the same"
        fig.note(0.05, 0.016, key, size=10)
    fig.alt = _alt(run, [name for _, name, *_ in main + side])
    return fig


# ---------------------------------------------------------------------------------------------------
# The panels, from the top down: how to draw each, its name, the rules of health.py for it, its share of the height


def _panels(run: Run) -> tuple[list[tuple], list[tuple]]:
    has = {name for record in (run.records[0], run.records[-1]) for name in record}
    bits = bool(run.domains)
    main = [(panel.draw_bits, "bits per byte by domain", ["loss"], 2.7)] if bits else []
    if run.load.any():
        main += [(panel.draw_violation, "MaxVio", ["experts"], 0.75), (panel.draw_load, "load", [], 1.4)]
    side = []
    if "next_token" in has or not bits:
        name, rules = ("next-token loss and MTP’s", ["loss", "mtp"]) if has_mtp(run) else ("next-token loss", ["loss"])
        side.append((panel.draw_losses, name, rules, 1))
    if "gradient_norm" in has:
        side.append((panel.draw_gradient, "gradient norm and its limit", ["gradient"], 1))
    side.append((panel.draw_learning_rate, "learning rate", [], 1))
    if "seconds" in has:
        side.append((panel.draw_speed, "tokens per second", ["speed"], 1))
    return main, side


def _stack(fig: Picture, run: Run, panels: list[tuple], column: tuple[float, float]) -> None:
    """Draw panels below each other, in a column (left, width) in inches; the tokens stand below the last."""
    left, width = column
    room = TOP - BOTTOM - (KEY if run.report else 0) - len(panels) * (HEADER + GAP) + GAP
    shares = sum(share for *_, share in panels)
    y = TOP
    for i, (draw, _, rules, share) in enumerate(panels):
        height = room * share / shares
        y -= HEADER + height
        ax = fig.add_axes((left / WIDEST, y / HEIGHT, width / WIDEST, height / HEIGHT))
        ax.set_xlim(0, run.end)
        ax.tick_params(labelsize=10, labelbottom=i == len(panels) - 1)
        ax.xaxis.set_major_locator(MaxNLocator(4 if width < 3 else 6))
        header = draw(ax, run, height)
        above = y + height + 0.08
        verdicts = [run.verdicts[rule] for rule in rules]
        judged = any(verdicts) or (verdicts and None not in verdicts)
        if judged:
            _mark(fig, "wrong" if any(verdicts) else "right", left, above, size=12)
        fig.text((left + (0.2 if judged else 0)) / WIDEST, above / HEIGHT, header, size=11)
        y -= GAP
    if panels:
        ax.set_xlabel(f"tokens trained on, {run.unit_name}", size=10)


def _mark(fig: Picture, verdict: str, x: float, y: float, size: float) -> None:
    mark = {"color": VERDICTS[verdict], "weight": "bold", "size": size}
    fig.text(x / WIDEST, y / HEIGHT, VERDICT_MARKS[verdict], **mark)


# ---------------------------------------------------------------------------------------------------
# What they say


def _verdict(run: Run) -> str:
    done = len(run.records)
    if run.report:
        ours, base = (run.report[name]["all"] for name in ("bits_per_byte", "baseline_bits_per_byte"))
        bits = f"held-out {ours:.2f} bits per byte, a 5-gram {base:.2f}"
    else:
        _, values = run.line(level)
        bits = f"{'bits per byte' if run.domains else 'loss'} {values[0]:.2f} → {values[-1]:.2f}"
    if wrong := [sentence for sentence in run.verdicts.values() if sentence]:
        return f"Look here: {'; '.join(wrong[:2])}"
    if run.verdicts["loss"] is None:
        if done < run.config.steps:
            return f"Too early to judge: {done} of {run.config.steps:,} steps, {bits}"
        return f"Too short to judge: {done} step{'s' * (done > 1)}, {bits}"
    dead = f", none of {run.load.size} experts dead" if run.load.any() else ""
    return f"Healthy: {bits}{dead}"


def _progress(run: Run) -> str:
    done, steps = len(run.records), run.config.steps
    parts = [f"step {done:,} of {steps:,}", f"{short(done * run.tokens)} tokens"]
    seconds = step_seconds(run.records)
    if len(seconds):
        parts.append(f"{done * run.tokens / max(seconds.sum(), 1e-9):,.0f} tokens per second on average")
        left = (steps - done) * float(np.median(seconds[-50:]))
        if left:
            size, unit = next(
                (s, u) for s, u in ((3600, "hours"), (60, "minutes"), (1, "seconds")) if left >= 2 * s or s == 1
            )
            parts.append(f"about {left / size:.0f} {unit} left")
    return "  ·  ".join(parts)


def _alt(run: Run, names: list[str]) -> str:
    changes = "; ".join(f"{name} {old:g} → {new:g} at step {step:,}" for step, name, old, new in changes_of(run))
    layers = f" in each of {len(run.load)} layers" if len(run.load) > 1 else ""
    experts = f" Load of {run.load.shape[1]} experts{layers}." if run.load.any() else ""
    return (
        f"A training run of {run.config.steps:,} steps of {run.tokens:,} tokens: {', '.join(names)}.{experts} "
        f"Gradients are clipped at {run.config.clip_norm:g}. Learning rate {run.config.learning_rate:g} at most, "
        f"falling from step {run.config.decay_start:,}" + (f"; {changes}" if changes else "") + "."
    )
