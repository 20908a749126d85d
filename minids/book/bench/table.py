"""The results as the tables of the README."""

from minids.units import markdown_table


def table(data: dict) -> str:
    """Return the Markdown tables: steps beside the peer's, speculative decoding, the expert layer, and FP8.

    The line below them names the machine and says how often other programs were busy.
    """
    parts = [_steps(data), _speculation(data["speculation"]), _experts(data["experts"]), _fp8(data["fp8"])]
    return "\n\n".join([*parts, _circumstances(data)])


def _steps(data: dict) -> str:
    peers = ["transformers, fastest", "as it comes, float32", "both in float32"]
    lines = [["", "threads", "minids", *peers, "peak memory, ours / fastest"]]
    for row in data["training"]:
        speedups, memory = [_times(ratio) for ratio in row["speedup"].values()], row["peak_bytes"]
        peaks = f"{memory['minids'] / 1e6:.0f} / {memory['transformers, fastest'] / 1e6:.0f} MB" if memory else ""
        what = f"training step, {row['config']}, {row['tokens']:,} tokens"
        lines.append([what, row["threads"], _milliseconds(row), *speedups, peaks])
    for row in data["decoding"]:
        what = f"decoding step, batch {row['batch']}, context {row['context']:,}"
        lines.append([what, row["threads"], _milliseconds(row), _times(row["speedup"]), "", "", ""])
    return markdown_table(lines)


def _speculation(rows: list[dict]) -> str:
    lines = [["speculative decoding", "threads", "acceptance", "tokens per step", "cost of a step", "speed-up"]]
    for row in rows:
        how = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']:g}"
        numbers = [f"{row['acceptance']:.2f}", f"{row['tokens_per_step']:.2f}", f"{row['step_cost']:.2f} plain steps"]
        lines.append([f"{row['domain']}, {how}", row["threads"], *numbers, _times(row["speedup"], decimals=2)])
    return markdown_table(lines)


def _experts(rows: list[dict]) -> str:
    lines = [["share of one large product's rate", *rows[0]["share"], "time, 256 over 8 experts"]]
    for row in rows:
        shares = [f"{share:.0%}" for share in row["share"].values()]
        lines.append([f"threads: {row['threads']}", *shares, f"{row['growth']['median']:.2f}×"])
    return markdown_table(lines)


def _fp8(rows: list[dict]) -> str:
    lines = [["simulated FP8, forward and backward", "threads", "float32", *rows[0]["cost"]]]
    for row in rows:
        what = f"linear layer, {' → '.join(map(str, row['shape']))}, {row['tokens']:,} tokens"
        costs = [_times(cost, decimals=2) for cost in row["cost"].values()]
        lines.append([what, row["threads"], f"{row['sides']['plain']['median_ms']:.0f} ms", *costs])
    return markdown_table(lines)


def _circumstances(data: dict) -> str:
    where = "{cpu}, {cores} cores, torch {torch}, transformers {transformers}".format(**data["environment"])
    rows = [*data["training"], *data["decoding"], *data["speculation"], *data["experts"], *data["fp8"]]
    samples = [side for row in rows for side in row["sides"].values()]
    samples += [point["time"] for curve in data.get("growth", []) for point in curve["points"]]
    taken, disturbed = (sum(side[name] for side in samples) for name in ("samples", "disturbed"))
    quiet = (
        f" During {disturbed} of {taken} samples other programs were busy."
        if data["environment"]["tells_others"]
        else ""
    )
    verify = sorted(row["verify"]["median"] for row in data["decoding"])
    return (
        "A decoding step of two tokens, as speculative decoding takes it, costs "
        f"{verify[0]:.2f} to {verify[-1]:.2f} times a plain one. Measured on {where}.{quiet}"
    )


def _milliseconds(row: dict) -> str:
    milliseconds = row["sides"]["minids"]["median_ms"]
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"


def _times(ratio: dict, decimals: int = 1) -> str:
    median, lowest, highest = (f"{ratio[name]:.{decimals}f}" for name in ("median", "lowest", "highest"))
    return f"{median}× ({lowest} – {highest})"
