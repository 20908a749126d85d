"""The report at the end of a run: its scores beside those of a baseline, and what the training cost.

`make_report` measures and returns plain JSON; `format_report` formats it for the terminal.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from dataclasses import asdict

import numpy as np
import torch

from minids.cost.parameters import count_parameters
from minids.device import autocast
from minids.inference.generate import generate
from minids.model.balance import dead_experts
from minids.model.deepseek import DeepSeek
from minids.text.arithmetic import solve
from minids.text.batches import Batches, encode_split, pack
from minids.text.corpus import Corpus
from minids.text.ngram import END, ByteNGram
from minids.text.tokenizer import Tokenizer
from minids.training.config import TrainConfig
from minids.training.evaluate import mtp_agreement, score_rows, solved_problems

ROWS_PER_DOMAIN = 256  # held-out rows evaluated, at most, spread evenly over the domain
PROMPT_TOKENS, SAMPLE_TOKENS = 24, 48


def make_report(
    model: DeepSeek, tokenizer: Tokenizer, corpus: Corpus, batches: Batches, config: TrainConfig, records: list[dict]
) -> dict:
    """Evaluate a finished run on held-out text and return its report.

    `max_violation` is a mean over steps and layers. `load` and `dead_experts` are of the last 20 steps together (half
    of a run of fewer than 40): a list and a number per layer.
    """
    device = model.embed_tokens.weight.device
    held_out = validation_rows(encode_split(tokenizer, corpus.validation), config.sequence_length)
    with autocast(device, config.dtype):
        scores = score_held_out(model, tokenizer, held_out)
        accuracy = None
        if "arithmetic" in corpus.validation:
            solved = solved_problems(model, tokenizer, corpus.validation["arithmetic"])
            accuracy = accuracy_by_digits(solved) | {"best_constant": best_constant([problem for problem, _ in solved])}
        agreement = None
        if model.mtp:
            agreements = [mtp_agreement(model, rows) for rows in held_out.values()]
            agreement = float(np.average(agreements, weights=[rows[:, 1:].size for rows in held_out.values()]))
        samples = {domain: _sample(model, tokenizer, rows[len(rows) // 2]) for domain, rows in held_out.items()}
    baseline = baseline_scores(batches, config, held_out, tokenizer.token_bytes())
    count = count_parameters(model.config)
    violation = np.array([record["max_violation"] for record in records], dtype=float)  # None, no routing: NaN
    edge = max(1, min(20, len(records) // 2))  # half of a run of fewer than 40 steps
    load = torch.tensor([record["load"] for record in records[-edge:]]).sum(dim=0)  # layers, experts
    tokens = config.steps * config.batch_size * config.sequence_length
    training_seconds = records[-1]["seconds"]
    return {
        "bits_per_byte": per_byte(scores),
        "baseline_bits_per_byte": per_byte(baseline),
        "arithmetic_accuracy": accuracy and accuracy["all"],
        "arithmetic_accuracy_by_digits": accuracy,
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


def score_held_out(
    model: DeepSeek, tokenizer: Tokenizer, held_out: dict[str, np.ndarray]
) -> dict[str, tuple[float, int]]:
    """Return bits and bytes by domain: of the second half of each row, so that no scored token lacks context."""
    bytes_per_token = torch.tensor([len(b) for b in tokenizer.token_bytes()])
    return {domain: score_rows(model, rows, bytes_per_token, context_tokens(rows)) for domain, rows in held_out.items()}


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the rows, from the first to the last and evenly apart; all if there are no more."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def context_tokens(rows: np.ndarray) -> int:
    """Return how many tokens of each row are context only: the first half, so that no scored token lacks context."""
    return max(1, (rows.shape[1] - 1) // 2)


def accuracy_by_digits(solved: list[tuple[str, bool]]) -> dict[str, float]:
    """Return the share of solved problems, of all and by the digits of the longer number."""
    results: dict[str, list[bool]] = {"all": [right for _, right in solved]}
    for problem, right in solved:
        digits = max(len(number) for number in re.split(r"\D", problem))
        results.setdefault(str(digits), []).append(right)
    return {digits: sum(rights) / len(rights) for digits, rights in sorted(results.items())}


def best_constant(problems: list[str]) -> float:
    """Return the fraction of problems that are solved by always giving the most common answer."""
    answers = Counter(solve(int(a), op, int(b)) for a, op, b in (re.split(r"(\D)", problem) for problem in problems))
    return answers.most_common(1)[0][1] / len(problems)


def baseline_scores(
    batches: Batches,
    config: TrainConfig,
    held_out: dict[str, np.ndarray],
    token_bytes: list[bytes],
) -> dict[str, tuple[float, int]]:
    """Train a byte 5-gram on exactly the rows that the run was trained on; return its bits and bytes by domain.

    It is scored on the same bytes as the model: those of the second half of each row.
    """
    consumed = (batches.row(index) for index in range(config.steps * config.batch_size))
    ngram = ByteNGram(_symbols(row, token_bytes, 1)[0] for row in consumed)
    scores = {}
    for domain, rows in held_out.items():
        pairs = [_symbols(row, token_bytes, context_tokens(rows)) for row in rows]
        symbols, predicted = (np.concatenate(column) for column in zip(*pairs, strict=True))
        counted = predicted & (symbols != END)
        scores[domain] = float(ngram.bits(symbols)[counted].sum()), int(counted.sum())
    return scores


def _symbols(row: np.ndarray, token_bytes: list[bytes], context: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a row as byte symbols, and which of them come after its first `context` tokens.

    An END comes first, because rows are not consecutive and have no context before them.
    """
    pieces = [np.frombuffer(token_bytes[token], dtype=np.uint8) if token_bytes[token] else [END] for token in row]
    symbols = np.concatenate([[END], *pieces]).astype(np.int16)
    return symbols, np.arange(len(symbols)) > sum(map(len, pieces[:context]))


def per_byte(scores: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Return bits per byte by domain, of prose and code together, and of all evaluated text together."""
    together = {}
    if {"prose", "code"} <= scores.keys():
        together["prose_and_code"] = [scores["prose"], scores["code"]]
    together["all"] = list(scores.values())
    single = {domain: [score] for domain, score in scores.items()}
    return {name: sum(bits for bits, _ in s) / sum(n for _, n in s) for name, s in (single | together).items()}


def printable(text: str) -> str:
    """Return the text with control characters, to which the terminal would react, escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _sample(model: DeepSeek, tokenizer: Tokenizer, row: np.ndarray) -> dict[str, str]:
    prompt = row[:PROMPT_TOKENS].tolist()
    out = generate(model, prompt, SAMPLE_TOKENS, temperature=0.7)
    return {"prompt": tokenizer.decode(prompt), "continuation": tokenizer.decode(out.new_tokens.tolist())}


def format_report(report: dict) -> str:
    """Return the report as text for the terminal."""
    ours, base = report["bits_per_byte"], report["baseline_bits_per_byte"]
    lines = ["", f"{'held-out bits per byte':<24}{'model':>8}{'5-gram':>9}{'gain':>8}"]
    for name in ours:
        label = name.replace("_", " ")
        lines.append(f"  {label:<22}{ours[name]:>8.3f}{base[name]:>9.3f}{1 - ours[name] / base[name]:>8.1%}")
    lines.append("")
    if report["arithmetic_accuracy"] is not None:
        by_digits = report["arithmetic_accuracy_by_digits"]
        sizes = ", ".join(f"{share:.0%} with {digits}" for digits, share in by_digits.items() if digits.isdigit())
        lines.append(f"arithmetic, held-out problems solved exactly   {by_digits['all']:.1%} ({sizes} digits)")
        lines.append(f"  always giving the commonest answer solves    {by_digits['best_constant']:.1%}")
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
    for domain, sample in report["samples"].items():
        lines += ["", f"--- {domain}: a held-out prompt ▸ the model's continuation"]
        lines.append(printable(sample["prompt"] + "▸" + sample["continuation"]))
    return "\n".join(lines)
