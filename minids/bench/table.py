"""The results as the tables of the README."""


def table(data: dict) -> str:
    """Return two Markdown tables: steps beside the peer's, and the expert layer beside one large matrix product."""
    return f"{_steps(data)}\n\n{_experts(data['experts'])}"


def _steps(data: dict) -> str:
    lines = [
        ["", "threads", "minids", "transformers, fastest", "transformers as it comes", "peak memory, ours / fastest"]
    ]
    for row in data["training"]:
        speedups, memory = [_times(ratio) for ratio in row["speedup"].values()], row["peak_bytes"]
        peaks = f"{memory['minids'] / 1e6:.0f} / {memory['transformers, fastest'] / 1e6:.0f} MB" if memory else ""
        what = f"training step, {row['config']}, {row['tokens']:,} tokens"
        lines.append([what, row["threads"], _milliseconds(row), *speedups, peaks])
    for row in data["decoding"]:
        what = f"decoding step, batch {row['batch']}, context {row['context']:,}"
        lines.append([what, row["threads"], _milliseconds(row), _times(row["speedup"]), "", ""])
    return _markdown(lines)


def _experts(rows: list[dict]) -> str:
    lines = [["share of one large product's rate", *rows[0]["share"], "time, 256 over 8 experts"]]
    for row in rows:
        shares = [f"{share:.0%}" for share in row["share"].values()]
        lines.append([f"threads: {row['threads']}", *shares, f"{row['growth']['median']:.2f}×"])
    return _markdown(lines)


def _markdown(lines: list[list]) -> str:
    head, *body = lines
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _milliseconds(row: dict) -> str:
    milliseconds = row["sides"]["minids"]["median_ms"]
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"


def _times(ratio: dict) -> str:
    return f"{ratio['median']:.1f}× ({ratio['lowest']:.1f} – {ratio['highest']:.1f})"
