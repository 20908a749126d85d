"""The report at the end of a run: its scores beside those of a baseline, and what the training cost.

`make_report` measures and returns plain JSON; `format_report` formats it for the terminal.

Each score has a 95% interval, which says how much it depends on the sample of held-out text (intervals.py). Two parts
of that text are looked at more closely: names in code (identifiers.py), and what also occurs in training, which could
flatter the scores (contamination.py).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch

from minids.cost.parameters import count_parameters
from minids.device import autocast
from minids.inference.generate import generate
from minids.model.balance import dead_experts
from minids.model.deepseek import DeepSeek
from minids.text.batches import Batches, encode_split, pack
from minids.text.corpus import Corpus
from minids.text.tokenizer import Tokenizer
from minids.text.windows import WINDOW
from minids.training.baseline import baseline_scores, best_constant, code_followers
from minids.training.config import TrainConfig
from minids.training.contamination import contamination
from minids.training.evaluate import context_tokens, mtp_agreement, row_scores, solved_problems
from minids.training.identifiers import identifier_answers, identifier_shares
from minids.training.intervals import ratio_interval, wilson_interval
from minids.units import from_to

ROWS_PER_DOMAIN = 256  # held-out rows evaluated, at most, spread evenly over the domain
PROMPT_TOKENS, SAMPLE_TOKENS = 24, 48


def make_report(
    model: DeepSeek, tokenizer: Tokenizer, corpus: Corpus, batches: Batches, config: TrainConfig, records: list[dict]
) -> dict:
    """Evaluate a finished run on held-out text and return its report.

    An interval is [low, high], of 95%, or None if it cannot be estimated. Some entries need an explanation:

    - `intervals`: those of `bits_per_byte` by domain, of `below_baseline` by domain (by which share the bits are below
      those of the 5-gram on the same rows), and of `arithmetic_accuracy` by digits.
    - `arithmetic_problems`: how many problems there are, by digits.
    - `identifiers`: what `identifier_shares` returns; None without code.
    - `contamination`: what `contamination` returns.
    - `max_violation` is a mean over steps and layers. `load` and `dead_experts` are of the last 20 steps together (half
      of a run of fewer than 40): a list and a number per layer.

    Reports of earlier versions lack the first four.
    """
    device = model.embed_tokens.weight.device
    token_bytes = tokenizer.token_bytes()
    held_out = validation_rows(encode_split(tokenizer, corpus.validation), config.sequence_length)
    with autocast(device, config.dtype):
        scores = held_out_rows(model, tokenizer, held_out)
        solved = solved_problems(model, tokenizer, corpus.validation.get("arithmetic", []))
        names = None
        if "code" in corpus.validation:
            code, followers = held_out["code"], code_followers(batches, config, token_bytes)
            names = identifier_answers(model, code, token_bytes, followers, context_tokens(code))
        agreement = None
        if model.mtp:
            agreements = [mtp_agreement(model, rows) for rows in held_out.values()]
            agreement = float(np.average(agreements, weights=[rows[:, 1:].size for rows in held_out.values()]))
        samples = {domain: _sample(model, tokenizer, rows[len(rows) // 2]) for domain, rows in held_out.items()}
    accuracy, problems = None, solved_by_digits(solved)
    if "arithmetic" in corpus.validation:
        accuracy = accuracy_by_digits(solved) | {"best_constant": best_constant([problem for problem, _ in solved])}
    baseline = baseline_scores(batches, config, held_out, token_bytes)
    count = count_parameters(model.config)
    violation = np.array([record["max_violation"] for record in records], dtype=float)  # None, no routing: NaN
    edge = max(1, min(20, len(records) // 2))  # half of a run of fewer than 40 steps
    load = torch.tensor([record["load"] for record in records[-edge:]]).sum(dim=0)  # layers, experts
    tokens = config.steps * config.batch_size * config.sequence_length
    training_seconds = records[-1]["seconds"]
    return {
        "bits_per_byte": per_byte(totals(scores)),
        "baseline_bits_per_byte": per_byte(totals(baseline)),
        "intervals": {
            **bits_intervals(scores, baseline),
            "arithmetic_accuracy": {n: wilson_interval(sum(rights), len(rights)) for n, rights in problems.items()},
        },
        "arithmetic_accuracy": accuracy and accuracy["all"],
        "arithmetic_accuracy_by_digits": accuracy,
        "arithmetic_problems": {n: len(rights) for n, rights in problems.items()},
        "identifiers": None if names is None else identifier_shares(names, len(held_out["code"])),
        "contamination": contamination(corpus, held_out, scores, baseline, token_bytes),
        "mtp_agreement": agreement,
        "tokens": tokens,
        "tokens_per_second": tokens / training_seconds,
        "max_violation": {
            "first_20_steps": np.nanmean(violation[:edge]), "last_20_steps": np.nanmean(violation[-edge:]),
        } if np.isfinite(violation).any() else None,
        "load": load.tolist() if load.any() else None,
        "dead_experts": [dead_experts(layer) if layer.any() else None for layer in load] if load.any() else None,
        "training_seconds": training_seconds,
        "parameters": {"total": count.total, "active": count.active, "mtp": count.mtp},
        "samples": samples,
        "train": asdict(config),
        "dtype": config.dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "corpus_sha256": corpus.sha256,
    }  # fmt: skip


def validation_rows(streams: dict[str, np.ndarray], sequence_length: int) -> dict[str, np.ndarray]:
    """Return up to ROWS_PER_DOMAIN non-overlapping held-out rows of each domain, spread evenly."""
    held_out = {}
    for domain, stream in streams.items():
        whole = max(1, (len(stream) - 1) // sequence_length)  # pack's last row may overlap the one before
        rows = pack(stream, min(sequence_length, len(stream) - 1))[:whole]
        held_out[domain] = spread(rows, ROWS_PER_DOMAIN)
    return held_out


def held_out_rows(
    model: DeepSeek, tokenizer: Tokenizer, held_out: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return bits and bytes of each row, by domain: of its second half, so that no scored token lacks context."""
    bytes_per_token = torch.tensor([len(b) for b in tokenizer.token_bytes()])
    return {domain: row_scores(model, rows, bytes_per_token, context_tokens(rows)) for domain, rows in held_out.items()}


def score_held_out(
    model: DeepSeek, tokenizer: Tokenizer, held_out: dict[str, np.ndarray]
) -> dict[str, tuple[float, int]]:
    """Return bits and bytes by domain, the sums of `held_out_rows`."""
    return totals(held_out_rows(model, tokenizer, held_out))


def totals(scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[float, int]]:
    """Return the sums over the rows."""
    return {domain: (bits.sum().item(), size.sum().item()) for domain, (bits, size) in scores.items()}


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the rows, from the first to the last and evenly apart; all if there are no more."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def together(domains: Sequence[str]) -> dict[str, list[str]]:
    """Return the names under which a report has scores, each with its domains."""
    both = {"prose_and_code": ["prose", "code"]} if {"prose", "code"} <= set(domains) else {}
    return {domain: [domain] for domain in domains} | both | {"all": list(domains)}


def per_byte(scores: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Return bits per byte by domain, of prose and code together, and of all evaluated text together."""
    return {
        name: sum(scores[d][0] for d in domains) / sum(scores[d][1] for d in domains)
        for name, domains in together(list(scores)).items()
    }


def bits_intervals(scores: dict, baseline: dict) -> dict[str, dict]:
    """Return the intervals of the bits per byte, and of the share by which they are below the baseline's.

    The second needs no bytes: it is 1 - bits / bits of the baseline, of the same rows.
    """
    of_bits, below = {}, {}
    for name, domains in together(list(scores)).items():
        of_bits[name] = ratio_interval(*(scores[d] for d in domains))
        share = ratio_interval(*((scores[d][0], baseline[d][0]) for d in domains))
        below[name] = share and (1 - share[1], 1 - share[0])
    return {"bits_per_byte": of_bits, "below_baseline": below}


def solved_by_digits(solved: list[tuple[str, bool]]) -> dict[str, list[bool]]:
    """Return which problems were solved: all, and by the digits of the longer number; {} without problems."""
    results: dict[str, list[bool]] = {"all": [right for _, right in solved]} if solved else {}
    for problem, right in solved:
        digits = max(len(number) for number in re.split(r"\D", problem))
        results.setdefault(str(digits), []).append(right)
    return dict(sorted(results.items()))


def accuracy_by_digits(solved: list[tuple[str, bool]]) -> dict[str, float]:
    """Return the share of solved problems, of all and by the digits of the longer number."""
    return {digits: sum(rights) / len(rights) for digits, rights in solved_by_digits(solved).items()}


def printable(text: str) -> str:
    """Return the text with control characters, to which the terminal would react, escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _sample(model: DeepSeek, tokenizer: Tokenizer, row: np.ndarray) -> dict[str, str]:
    prompt = row[:PROMPT_TOKENS].tolist()
    out = generate(model, prompt, SAMPLE_TOKENS, temperature=0.7)
    return {"prompt": tokenizer.decode(prompt), "continuation": tokenizer.decode(out.new_tokens.tolist())}


def format_report(report: dict) -> str:
    """Return the report as text for the terminal. Reports of earlier versions have fewer lines."""
    ours, base, intervals = report["bits_per_byte"], report["baseline_bits_per_byte"], report.get("intervals")
    lines = ["", f"{'held-out bits per byte':<24}{'model':>8}{'5-gram':>9}{'gain':>8}"]
    if intervals:
        lines[-1] += "   with 95% intervals (other text of this kind; not other seeds)"
    for name in ours:
        label = name.replace("_", " ")
        line = f"  {label:<22}{ours[name]:>8.3f}{base[name]:>9.3f}{1 - ours[name] / base[name]:>8.1%}"
        if intervals and intervals["bits_per_byte"][name]:
            bits, below = (intervals[of][name] for of in ("bits_per_byte", "below_baseline"))
            line += f"   {from_to(bits, '.3f')}, gain {from_to(below)}"
        lines.append(line)
    lines.append("")
    if report["arithmetic_accuracy"] is not None:
        by_digits = report["arithmetic_accuracy_by_digits"]
        sizes = ", ".join(f"{share:.0%} with {digits}" for digits, share in by_digits.items() if digits.isdigit())
        lines.append(f"arithmetic, held-out problems solved exactly   {by_digits['all']:.1%} ({sizes} digits)")
        if intervals:
            count, all_of_them = report["arithmetic_problems"]["all"], intervals["arithmetic_accuracy"]["all"]
            lines.append(f"  95% interval, from {count:<6,}problems              {from_to(all_of_them)}")
        lines.append(f"  always giving the commonest answer solves    {by_digits['best_constant']:.1%}")
    for kind, label in (("above", "names that occur above"), ("new", "new names")):
        found = (report.get("identifiers") or {}).get(kind)
        if found and found["asked"]:
            lines.append(f"{f'code, {label}, written exactly':<47}{found['model']:.1%} ({from_to(found['interval'])})")
            rule = "  what followed the same word before"
            lines.append(f"{rule:<47}{found['rule']:.1%}")
    for domain, found in report.get("contamination", {}).items():
        if found["repeated_rows"]:
            rows = f"{found['repeated_rows']} of {found['rows']} scored rows"
            lines.append(f"{f'{domain}, {WINDOW}-byte windows seen in training':<47}{found['windows']:.1%}, in {rows}")
            if found["clean_bits_per_byte"] is not None:
                clean, gain = found["clean_bits_per_byte"], found["clean_below_baseline"]
                lines.append(f"{'  bits per byte without these rows':<47}{clean:.3f}, {gain:.1%} below the 5-gram")
    if report["mtp_agreement"] is not None:
        lines.append(f"MTP module agrees with the main head           {report['mtp_agreement']:.1%}")
    if report["max_violation"] is not None:
        first, last = report["max_violation"].values()
        lines.append(f"busiest expert over the average (MaxVio)       {first:.2f} at first, {last:.2f} at last")
    if report.get("load") is not None:  # older reports have none
        shares = [count * len(layer) / sum(layer) for layer in report["load"] if any(layer) for count in layer]
        dead = sum(count or 0 for count in report["dead_experts"])
        lines.append(f"load of an expert over the average, at last    {min(shares):.2f} to {max(shares):.2f}")
        lines.append(f"experts without a token, at last (dead)        {dead} of {len(shares)}")
    tokens, speed = report["tokens"], report["tokens_per_second"]
    lines.append(f"tokens                                         {tokens:,} at {speed:,.0f} per second")
    total, active = report["parameters"]["total"], report["parameters"]["active"]
    lines.append(f"parameters                                     {total:,}, of which {active:,} active per token")
    how = f"{report['dtype']} on {report['device']}, {report['threads']} threads, torch {report['torch']}"
    lines.append(f"computed in                                    {how}")
    if "processes" in report:
        lines.append(f"processes, at last                             {report['processes']}")
    for domain, sample in report["samples"].items():
        lines += ["", f"--- {domain}: a held-out prompt ▸ the model's continuation"]
        lines.append(printable(sample["prompt"] + "▸" + sample["continuation"]))
    return "\n".join(lines)
