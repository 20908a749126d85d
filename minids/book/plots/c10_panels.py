"""The panels of the dashboard: each draws one quantity of a run into an axes and returns the text above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from minids.book.health import clipped, judge, last_load, step_seconds
from minids.book.plots.helpers import DASHED, label, label_ends, log_scale
from minids.book.plots.style import DOMAINS, INK, LAYERS, MUTED, PARTS, VERDICTS
from minids.training.config import TrainConfig
from minids.units import short

WIDEST = 9  # inches
POINTS, BINS, SAMPLED = 300, 120, 2400  # of a line, of the map of load, and log records that are read for the map
DOTTED = (0, (2, 3))


class Run:
    """What the panels draw from."""

    def __init__(self, records: list[dict], report: dict | None, config: TrainConfig, layer_names: list[str]):
        self.records, self.report, self.config, self.layer_names = records, report, config, layer_names
        self.verdicts = judge(records, config)
        self.tokens = config.batch_size * config.sequence_length  # a step
        total = config.steps * self.tokens
        self.unit, self.unit_name = next(
            (u, name) for u, name in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
            if total >= u or u == 1e3
        )  # fmt: skip
        self.end = total / self.unit
        self.load = last_load(records)
        scored = set((report or {}).get("bits_per_byte", ())) - {"all", "prose_and_code"}
        self.domains = sorted(scored.union(*(r.get("bits_per_byte", ()) for r in records)), key=_order)

    def at(self, steps: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the tokens trained on after these steps, in the unit of the axis."""
        return (np.asarray(steps) + 1) * self.tokens / self.unit

    def line(self, value: Callable[[dict], float | None]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and a running mean of the records for which there is a value, in at most POINTS points."""
        points = [(r["step"], v) for r in self.records if (v := value(r)) is not None]
        if not points:
            return np.array([]), np.array([])
        steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
        every = _few(len(steps))
        return self.at(steps[every]), running_mean(values)[every]


def running_mean(values: np.ndarray) -> np.ndarray:
    """Return a centred running mean over about a thirtieth of the values."""
    half = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _few(count: int) -> np.ndarray:
    """Return at most POINTS indices of so many points, evenly apart and with the last."""
    return np.arange(count - 1, -1, -max(1, -(-count // POINTS)))[::-1]


def _order(domain: str) -> tuple[int, str]:
    """The key that sorts the book's domains first."""
    return (list(DOMAINS).index(domain) if domain in DOMAINS else len(DOMAINS), domain)


def has_mtp(run: Run) -> bool:
    return any(record.get("mtp") for record in (run.records[0], run.records[-1]))


def level(record: dict) -> float | None:
    """Return the mean of the domains' bits per byte, or the loss."""
    if bits := record.get("bits_per_byte"):
        return sum(bits.values()) / len(bits)
    return record.get("next_token", record.get("loss"))


def _uneven(load: np.ndarray) -> tuple[int, float]:
    """The key by which the least even layer is the largest: dead experts, then MaxVio."""
    return (int((load == 0).sum()), load.max() / load.mean()) if load.any() else (-1, 0.0)


def changes_of(run: Run) -> list[tuple[int, str, float, float]]:
    """Return when λ and γ change: the step, the letter, and its values before and from then on."""
    config, found = run.config, []
    if has_mtp(run) and config.mtp_weight != config.final_mtp_weight and 0 < config.decay_start < config.steps:
        found.append((config.decay_start, "λ", config.mtp_weight, config.final_mtp_weight))
    if run.load.any() and config.bias_speed and 0 < config.frozen_start < config.steps:
        found.append((config.frozen_start, "γ", config.bias_speed, 0.0))
    return found


def draw_bits(ax: Axes, run: Run, height: float) -> str:
    report, ends, first, last = run.report or {}, {}, [], []
    held_out, baseline = report.get("bits_per_byte", {}), report.get("baseline_bits_per_byte", {})
    beside = 1 + 0.08 / (ax.get_position().width * WIDEST)
    for i, domain in enumerate(run.domains):
        color = DOMAINS.get(domain, LAYERS[1 + i % (len(LAYERS) - 1)])
        x, values = run.line(lambda record, name=domain: record.get("bits_per_byte", {}).get(name))
        if len(x):  # a run of few steps may not have come to this domain
            ax.plot(x, values, color=color)
            first.append(values[0])
            last.append(values[-1])
        words = domain if len(domain) <= 10 else domain[:9] + "…"
        if domain in held_out:
            ax.plot(run.end * beside, held_out[domain], "o", color=color, clip_on=False)
            ax.hlines(baseline[domain], 0, run.end, color=color, linestyles=DOTTED, linewidth=1.2)
            last.append(held_out[domain])
            ends[f"{words}  {held_out[domain]:.2f}\n5-gram  {baseline[domain]:.2f}"] = (held_out[domain], color)
        else:
            ends[f"{words}  {values[-1]:.2f}"] = (values[-1], color)
    bottom = 0.8 * min(last)
    # At first all lines are high, and arithmetic's 5-gram is, because it remembers answers and these problems are new.
    top = min(1.05 * max(first, default=np.inf), 1.75 * max(last))
    top = max(top, 1.1 * max(last), *(1.05 * baseline[d] for d in baseline if d in run.domains and d != "arithmetic"))
    ax.set_ylim(bottom, top)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    lines = 2.1 if held_out else 1.1
    gap = lines * 0.175 / height * (top - bottom)
    end = run.end if held_out else run.at(run.records[-1]["step"])
    label_ends(ax, ends, gap, lowest=bottom + gap / 2, x=end, shift=14 if held_out else 7, size=11)
    return "bits per byte, by domain; lower is better"


def draw_violation(ax: Axes, run: Run, height: float) -> str:
    violations = np.array([r["max_violation"] for r in run.records], dtype=float)  # NaN for None: nothing was routed
    kept = np.isfinite(violations).any(axis=1)
    low, mean, high = (running_mean(of(violations[kept], axis=1)) for of in (np.nanmin, np.nanmean, np.nanmax))
    every = _few(len(mean))
    x = run.at(np.array([r["step"] for r in run.records])[kept][every])
    ax.fill_between(x, low[every], high[every], color=PARTS["routed"], alpha=0.25, linewidth=0)
    ax.plot(x, mean[every], color=PARTS["routed"])
    ax.set_ylim(0, 1.1 * high[every].max())
    ax.yaxis.set_major_locator(MaxNLocator(3))
    above = max(mean[-1], 0.2 * ax.get_ylim()[1])  # the number stands clear of the axis
    label(ax, f"{mean[-1]:.2f}", (x[-1], above), (7, 0), color=INK)
    layers = violations.shape[1]
    return "MaxVio" + (f", mean and range of {layers} layers" if layers > 1 else "")


def draw_load(ax: Axes, run: Run, height: float) -> str:
    worst = max(range(len(run.load)), key=lambda i: _uneven(run.load[i]))
    sampled = run.records[:: -(-len(run.records) // SAMPLED)]
    load = np.array([record["load"][worst] for record in sampled], dtype=float)
    binned = [part.sum(axis=0) for part in np.array_split(load, min(BINS, len(load)))]
    relative = np.array([part / max(part.mean(), 1e-9) for part in binned]).T
    image = ax.imshow(
        relative, aspect="auto", cmap="cividis", vmin=0, vmax=2, interpolation="nearest",
        extent=(0, run.at(run.records[-1]["step"]), len(relative) - 0.5, -0.5),
    )  # fmt: skip
    ax.set_xlim(0, run.end)
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    ax.set_ylabel(f"{len(relative)} experts", size=10)
    place = ax.get_position()
    bar = ax.figure.colorbar(
        image, cax=ax.figure.add_axes((place.x1 + 0.014, place.y0, 0.012, place.height)), ticks=[0, 1, 2]
    )
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{x:.0f}×" if x < 2 else "≥ 2×")
    bar.ax.tick_params(labelsize=10, length=0)
    bar.outline.set_visible(False)
    name = run.layer_names[worst] if run.layer_names else f"MoE layer {worst + 1}"
    which = f" of {name}" + (", the least even" if len(run.load) > 1 else "")
    return f"load / average{which}"


def draw_losses(ax: Axes, run: Run, height: float) -> str:
    main, mtp = "next_token" if "next_token" in run.records[-1] else "loss", has_mtp(run)
    x, values = run.line(lambda record: record.get(main))
    ax.plot(x, values, color=INK, linewidth=3.2 if mtp else 2)  # MTP's line may lie on it
    ends = {f"{main.removesuffix('_token')} {values[-1]:.2f}": (values[-1], INK)}
    if mtp:
        x, values = run.line(lambda record: record.get("mtp"))
        ax.plot(x, values, color=PARTS["mtp"], linewidth=1.6)
        agreement = (run.report or {}).get("mtp_agreement")
        agrees = "" if agreement is None else f"\nagrees {agreement:.0%}"
        ends[f"MTP {values[-1]:.2f}{agrees}"] = (values[-1], PARTS["mtp"])
    low, high = ax.get_ylim()
    gap = 0.27 / height * (high - low)
    top = max(high, max(last for last, _ in ends.values()) + 2 * gap)  # room for the labels in the first steps
    ax.set_ylim(low, top)
    gap *= (top - low) / (high - low)
    ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    label_ends(ax, ends, gap, lowest=low + 0.6 * gap, x=x[-1], shift=6, size=10)
    return f"loss, nats: next token{', MTP' if mtp else ''}" if main == "next_token" else "loss"


def draw_gradient(ax: Axes, run: Run, height: float) -> str:
    norms = np.array([r["gradient_norm"] for r in run.records])
    steps = np.array([r["step"] for r in run.records])
    parts = np.array_split(np.arange(len(norms)), min(POINTS, len(norms)))
    x = run.at([steps[part[-1]] for part in parts])
    low, high = ([of(norms[part]) for part in parts] for of in (np.min, np.max))  # no spike is lost
    if len(norms) > POINTS:
        ax.fill_between(x, low, high, color=MUTED, alpha=0.45, linewidth=0)
    else:
        ax.plot(x, high, color=MUTED, linewidth=0.8, alpha=0.6)
    ax.plot(*run.line(lambda record: record["gradient_norm"]), color=INK)
    limit = run.config.clip_norm
    ax.axhline(limit, color=VERDICTS["wrong"], linewidth=1.2, linestyle=DASHED)
    log_scale(ax, "y", lambda y: f"{y:g}", ticks=[digit * 10.0**power for power in range(-6, 7) for digit in (1, 3)])
    ax.set_ylim(0.7 * min(limit, *low), 1.4 * max(limit, *high))
    label(ax, f"limit {limit:g}", (run.end, limit), (5, 0), size=10, color=VERDICTS["wrong"])
    share = clipped(run.records, run.config)
    return "gradient norm" + (f", {share:.0%} clipped" if share is not None else "")


def draw_learning_rate(ax: Axes, run: Run, height: float) -> str:
    config = run.config
    steps = np.unique(np.linspace(0, config.steps - 1, min(config.steps, 400)).astype(int))
    rates = np.array([config.learning_rate_at(int(step)) for step in steps])
    done = steps <= run.records[-1]["step"]
    ax.plot(run.at(steps), rates, color=MUTED, linewidth=1, linestyle=DOTTED)
    ax.plot(run.at(steps[done]), rates[done], color=INK)
    peak = 1 - 0.24 / height  # of the panel's height: its number stands above
    ax.set_ylim(0, (rates.max() or config.learning_rate) / peak)  # 0: one step, at the end of the decay
    ax.set_yticks([0])
    label(ax, f"{rates.max():g}", (0, rates.max()), (4, 8), size=10, ha="left")
    changes = changes_of(run)
    for step, *_ in changes:
        ax.axvline(run.at(step - 1), ymax=peak, color=MUTED, linewidth=1, linestyle=DASHED)
    return "learning rate" + "".join(f"  ┊ {name} → {after:g}" for _, name, _, after in changes)


def draw_speed(ax: Axes, run: Run, height: float) -> str:
    seconds = step_seconds(run.records)
    parts = np.array_split(np.arange(len(seconds)), min(60, len(seconds)))
    x = run.at([run.records[part[-1]]["step"] for part in parts])
    speeds = np.array([run.tokens / max(np.median(seconds[part]), 1e-9) for part in parts])
    ax.plot(x, speeds, color=INK)
    ax.set_ylim(0, 1.2 * speeds.max())
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_formatter(lambda y, _: short(y, zeros=False))
    label(ax, short(speeds[-1]), (x[-1], speeds[-1]), (6, 0), size=10)
    return "tokens per second"
