"""Train the miniature that comes with the book, and put it into the package: `make reference`.

    python -m minids.book.experiments.reference [RUN_FOLDER]

Trains `mini` as `make train` does (an interrupted run is resumed), rounds the weights to bfloat16, evaluates the
saved model in float32, and writes model and report to minids/hub/checkpoints/mini. Commit that folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from minids.hub.load import load_pretrained
from minids.hub.reference import REFERENCE
from minids.hub.save import save_pretrained
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.batches import encode_split
from minids.text.corpus import Corpus, load_corpus
from minids.text.tokenizer import Tokenizer
from minids.training.config import MINIATURE, TrainConfig
from minids.training.report import format_report, make_report, score_held_out, spread, validation_rows
from minids.training.run import start_run


def main(folder: Path) -> None:
    command = [sys.executable, "-m", "minids", "train", "--config", "mini", "--out", str(folder), "--resume"]
    subprocess.run(command, check=True)
    trained = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    config = TrainConfig(**trained["train"] | {"betas": tuple(trained["train"]["betas"])})
    run = start_run(ModelConfig.preset("mini"), config, load_corpus(), folder, resume=True)
    # Evaluate what is saved: rounded weights, computing in float32.
    with tempfile.TemporaryDirectory() as exported:
        save_pretrained(run.model, f"{exported}/mini", dtype=torch.bfloat16)
        model = load_pretrained(f"{exported}/mini")
    config, records = replace(config, dtype="float32"), run.trainer.records
    measured = make_report(model, run.tokenizer, run.corpus, run.batches, config, records)
    report = {"preset": "mini"} | measured | {"train": trained["train"], "threads": trained["threads"]}
    report["quick_bits_per_byte"] = quick_scores(model, run.tokenizer, run.corpus)
    print(format_report(report))
    for name in ("seconds", "training_seconds", "tokens_per_second"):  # of the machine, not of the model
        report.pop(name, None)
    save_pretrained(
        model, REFERENCE, tokenizer=run.tokenizer, report=report, dtype=torch.bfloat16, mtp_copies=False, overwrite=True
    )
    print(f"wrote {REFERENCE}")


def quick_scores(model: DeepSeek, tokenizer: Tokenizer, corpus: Corpus, count: int = 12) -> dict[str, float]:
    """Return the bits per byte on a few held-out rows of each domain: in seconds, where the report takes a minute."""
    held_out = validation_rows(encode_split(tokenizer, corpus.validation), MINIATURE.sequence_length)
    few = {domain: spread(rows, count) for domain, rows in held_out.items()}
    return {domain: bits / size for domain, (bits, size) in score_held_out(model, tokenizer, few).items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/reference"), help="where the run is kept")
    main(parser.parse_args().run)
