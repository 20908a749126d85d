"""Train the miniature that comes with the book, and put it into the package: `make reference`.

    python -m minids.book.experiments.reference [RUN_FOLDER]

Trains `mini` as `make train` does (an interrupted run goes on), rounds the weights to bfloat16, measures what was
saved, in float32, and writes model and report to minids/hub/checkpoints/mini. Commit that folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from minids.hub.hub import load_pretrained, save_pretrained
from minids.hub.reference import REFERENCE
from minids.model.deepseek import DeepSeek
from minids.text.data import Batches, Corpus, encode_split, load_corpus
from minids.text.tokenizer import Tokenizer
from minids.training.evaluate import score_rows
from minids.training.report import context_tokens, format_report, make_report, spread, validation_rows
from minids.training.trainer import TrainConfig, read_log


def main(run: Path) -> None:
    command = [sys.executable, "-m", "minids"]
    subprocess.run([*command, "train", "--config", "mini", "--out", str(run), "--resume"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "export", str(run), f"{folder}/mini"], check=True)
        model, tokenizer = load_pretrained(f"{folder}/mini"), Tokenizer.load(f"{folder}/mini")
    trained = json.loads((run / "report.json").read_text(encoding="utf-8"))
    config = TrainConfig(**trained["train"] | {"betas": tuple(trained["train"]["betas"])})
    corpus = load_corpus()
    batches = Batches(encode_split(tokenizer, corpus.train), corpus.mixture, config.sequence_length, config.seed)
    # What is evaluated is what is saved: rounded weights, computing in float32.
    measured = make_report(
        model, tokenizer, corpus, batches, replace(config, dtype="float32"), read_log(run / "log.jsonl")
    )
    report = {"preset": "mini"} | measured | {"train": trained["train"], "threads": trained["threads"]}
    report["quick_bits_per_byte"] = quick_scores(model, tokenizer, corpus)
    print(format_report(report))
    for name in ("seconds", "training_seconds", "tokens_per_second"):  # of the machine, not of the model
        report.pop(name, None)
    save_pretrained(model, REFERENCE, tokenizer=tokenizer, report=report, dtype=torch.bfloat16, mtp_copies=False)
    print(f"wrote {REFERENCE}")


def quick_scores(model: DeepSeek, tokenizer: Tokenizer, corpus: Corpus, rows: int = 12) -> dict[str, float]:
    """Return the bits per byte on so many held-out rows of each domain: seconds, where the report takes a minute."""
    bytes_per_token = torch.tensor([len(b) for b in tokenizer.token_bytes()])
    held_out = validation_rows(encode_split(tokenizer, corpus.validation), TrainConfig().sequence_length)
    scores = {}
    for domain, all_rows in held_out.items():
        bits, text_bytes = score_rows(model, spread(all_rows, rows), bytes_per_token, context_tokens(all_rows))
        scores[domain] = bits / text_bytes
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/reference"), help="where the run is kept")
    main(parser.parse_args().run)
