"""The command line: `minids train`, `minids generate`, `minids export`, `minids count`.

What the reader got wrong is told in one sentence, with exit code 2. A run that ended early for a
reason of its own ends with 1 (diverged) or 130 (Ctrl-C). Settings that belong to a process and not
to a library, threads and memory, are made here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from minids.book.plots import draw_expert_load, draw_loss, moe_layer_names
from minids.cost import accounting
from minids.device import keep_freed_memory
from minids.files import atomic_path, write_atomically
from minids.hub.hub import load_pretrained, save_pretrained
from minids.hub.reference import REFERENCE
from minids.inference.generate import generate as generate_tokens
from minids.model.config import ModelConfig
from minids.model.config_json import read_json
from minids.model.deepseek import DeepSeek
from minids.text.data import CORPUS_SHA256, Batches, Corpus, encode_split, load_corpus, read_texts
from minids.text.tokenizer import Tokenizer
from minids.training.checkpoint import load_checkpoint
from minids.training.report import format_report, make_report, printable
from minids.training.trainer import (
    DTYPES,
    TrainConfig,
    Trainer,
    TrainingDiverged,
    TrainingInterrupted,
    best_dtype,
    read_log,
)

DEFAULTS = TrainConfig()
app = typer.Typer(
    help="DeepSeek-V3, rebuilt in miniature.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def train(
    config: Annotated[str, typer.Option(help="A preset (see `minids count --help`) or a config.json.")] = "mini",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your own text: a UTF-8 file or a folder; its last tenth is held out. Default: the book's corpus."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/NAME_OF_THE_PRESET.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's checkpoint, if it has one.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help=f"Optimizer steps. Default: {DEFAULTS.steps:g}.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=f"Sequences per optimizer step. Default: {DEFAULTS.batch_size:g}.")
    ] = None,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Sequences per forward pass: less memory, same step.")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(help=f"Tokens per sequence. Default: {DEFAULTS.sequence_length:g}.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help=f"Peak learning rate. Default: {DEFAULTS.learning_rate:g}.")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help=f"Steps between checkpoints. Default: {DEFAULTS.save_every:g}.")
    ] = None,
    bias_speed: Annotated[
        float | None,
        typer.Option(help=f"γ, how fast a gate's bias moves; 0: no balancing. Default: {DEFAULTS.bias_speed:g}."),
    ] = None,
    balance_weight: Annotated[
        float | None, typer.Option(help=f"α of the sequence-wise balance loss. Default: {DEFAULTS.balance_weight:g}.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides the initial weights and the order of the text.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. Default: bfloat16 where the hardware has it.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps. Default: cuda if there is one, else cpu.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: one per core.")] = None,
):
    """Train a model from scratch, evaluate it, and write weights, log, pictures and report to a folder."""
    began = time.perf_counter()
    with told_in_one_sentence():
        torch_device = _set_up(device, threads)
        model_config = read_config(config)
        given = dict(
            steps=steps, batch_size=batch_size, micro_batch_size=micro_batch_size, sequence_length=sequence_length,
            learning_rate=learning_rate, bias_speed=bias_speed, balance_weight=balance_weight,
            save_every=save_every, seed=seed, dtype=dtype or best_dtype(torch_device),
        )  # fmt: skip
        train_config = TrainConfig(**{name: value for name, value in given.items() if value is not None})
        _require_memory(model_config)
        folder = out or Path("runs") / (config if config in ModelConfig.preset_names() else Path(config).stem)
        continues = _look_at_folder(folder, resume)
        corpus = read_texts(data) if data is not None else _load_corpus()
        tokenizer, batches = _prepare(corpus, model_config, train_config, folder if continues else None)
        torch.manual_seed(train_config.seed)
        model = DeepSeek(model_config).to(torch_device)
        trainer = Trainer(
            model, batches, train_config, folder,
            settings={"model": model_config.to_hf(), "corpus_sha256": corpus.sha256},
            bytes_per_token=torch.tensor([len(b) for b in tokenizer.token_bytes()]),
        )  # fmt: skip
        differences = trainer.resume() if continues else []
        seconds_before = trainer.seconds
        if not continues:
            _begin_folder(folder, tokenizer)
    for difference in differences:
        typer.echo(f"{difference}: the run goes on, but its last bits may differ.")
    _describe(model_config, train_config, trainer, torch_device)
    _run(trainer)
    typer.echo("evaluating on held-out text ...")
    records = read_log(trainer.log_path)
    report = {"preset": config} | make_report(model, tokenizer, corpus, batches, train_config, records)
    report["seconds"] = time.perf_counter() - began + seconds_before
    _write_results(folder, report, records, model_config)
    typer.echo(format_report(report))
    typer.echo(
        f"\n{report['seconds']:.0f} seconds in all. In {folder}/: checkpoint.safetensors, tokenizer.json, log.jsonl,"
    )
    typer.echo(f'report.json, loss.png, experts.png. Next: minids generate {folder} --prompt "Return the"')


@app.command()
def generate(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run or of an exported model; `reference`: the one that comes along.")
    ] = Path("runs/mini"),
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input.")] = "Return the",
    tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more varied.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
):
    """Continue a prompt with a trained model."""
    with told_in_one_sentence():
        _set_up("cpu", threads)
        model, tokenizer = _load_model(_find(run))
        text = sys.stdin.read() if prompt == "-" else prompt
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        out = generate_tokens(
            model, ids, tokens, temperature=temperature, top_k=top_k, seed=seed, end_of_text=tokenizer.end_of_text
        )
    new = [token for token in out.new_tokens.tolist() if token != tokenizer.end_of_text]
    continued = text + tokenizer.decode(new)
    typer.echo(printable(continued) if sys.stdout.isatty() else continued)


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, or of a model to convert; `reference`: the one that comes along.")
    ],
    folder: Annotated[Path, typer.Argument(help="Where to put it: a new folder, or an earlier export.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, as DeepSeek's models are released, or float32.")] = "bfloat16",
):
    """Write a trained model in the released layout, as load_pretrained, transformers and others read it."""
    with told_in_one_sentence():
        if dtype not in DTYPES:
            raise ValueError(f"--dtype {dtype} is not possible: it must be {' or '.join(DTYPES)}.")
        run = _find(run)
        model, tokenizer = _load_model(run)
        report = read_json(run / "report.json") if (run / "report.json").exists() else None
        save_pretrained(model, folder, tokenizer=tokenizer, report=report, dtype=DTYPES[dtype])
    size = sum(path.stat().st_size for path in folder.iterdir())
    typer.echo(f"{folder}/: {', '.join(sorted(path.name for path in folder.iterdir()))}; {size / 1e6:.1f} MB")


@app.command()
def count(
    config: Annotated[
        str,
        typer.Argument(
            metavar="PRESET_OR_CONFIG", help=f"A config.json, or one of: {', '.join(ModelConfig.preset_names())}."
        ),
    ],
    context: Annotated[int, typer.Option(help="Tokens of context, for cache and attention.")] = 4096,
):
    """Count a model's parameters, cache bytes and training FLOPs from its configuration alone."""
    with told_in_one_sentence():
        if context < 1:
            raise ValueError(f"--context {context} is not possible: it must be at least 1.")
        model_config = read_config(config)
    parameters = accounting.count_parameters(model_config)
    rows = [(part.replace("_", " "), number) for part, number in parameters.breakdown.items() if number]
    rows += [("total", parameters.total), ("active: body", parameters.active_body)]
    rows += [("active: body + head", parameters.active), ("active: with embedding", parameters.active_with_embedding)]
    if parameters.mtp:
        rows.append(("MTP, on top of the total", parameters.mtp))
    for name, number in rows:
        typer.echo(f"{name:<28}{number:>20,}{number / parameters.total:>9.1%}")
    cache = accounting.kv_cache_bytes(model_config)
    flops = accounting.training_flops_per_token(model_config, context)
    size, unit = _in_unit(cache * context, 1024, ("bytes", "KiB", "MiB", "GiB"))
    work, per = _in_unit(flops, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP"))
    typer.echo(f"{'cache per token, BF16':<28}{cache:>20,.0f} bytes, {size:,.2f} {unit} at {context:,} tokens")
    typer.echo(f"{'training, per token':<28}{work:>20,.2f} {per} at {context:,} tokens of context")


def _in_unit(value: float, base: int, units: tuple[str, ...]) -> tuple[float, str]:
    """Return the value in the largest unit that leaves at least 1."""
    for unit in units[:-1]:
        if value < base:
            return value, unit
        value /= base
    return value, units[-1]


# ---------------------------------------------------------------------------------------------------


@contextmanager
def told_in_one_sentence() -> Iterator[None]:
    """Turn a ValueError, which names the bad input, into that sentence and exit code 2."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"minids: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"minids: {error.strerror}: {error.filename or 'the disk'}.", err=True)
        raise typer.Exit(1) from None


def read_config(name: str) -> ModelConfig:
    """Return a preset by name, or else the configuration in the file or folder of that name."""
    if name in ModelConfig.preset_names():
        return ModelConfig.preset(name)
    if not Path(name).exists():
        presets = ", ".join(ModelConfig.preset_names())
        raise ValueError(f"{name!r} is neither a file nor a preset: the presets are {presets}.")
    return ModelConfig.from_hf(name)


def _find(folder: Path) -> Path:
    """Return the folder of a run or of a saved model; `reference` names the one that comes along."""
    if (folder / "checkpoint.safetensors").exists() or (folder / "config.json").exists():
        return folder
    if folder == Path("reference"):
        return REFERENCE
    raise ValueError(
        f"{folder} holds neither a run (checkpoint.safetensors) nor a saved model (config.json): "
        "`minids train` makes one, and `reference` names the one that comes along."
    )


def _load_model(folder: Path) -> tuple[DeepSeek, Tokenizer]:
    """Return model and tokenizer of a run, or else of a saved model."""
    tokenizer = Tokenizer.load(folder)  # first: it is small
    if (folder / "checkpoint.safetensors").exists():
        checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
        if "model" not in checkpoint.settings:
            raise ValueError(f"{folder} holds a checkpoint without a configuration: `minids train` writes one.")
        model = DeepSeek(ModelConfig.from_hf(checkpoint.settings["model"]))
        checkpoint.restore(model)
        return model, tokenizer
    return load_pretrained(folder), tokenizer


def _set_up(device: str | None, threads: int | None) -> torch.device:
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads {threads} is not possible: it must be at least 1.")
        torch.set_num_threads(threads)
    keep_freed_memory()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = device or ("cuda" if available["cuda"] else "cpu")
    if not available.get(device, False):
        usable = ", ".join(name for name, there in available.items() if there)
        raise ValueError(f"--device {device} is not to be had here: choose {usable}.")
    return torch.device(device)


def _require_memory(config: ModelConfig) -> None:
    """Refuse a model whose weights, gradients and moments in float32 exceed the machine's memory."""
    parameters = accounting.count_parameters(config)
    needed = 16 * (parameters.total + parameters.mtp)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"training this model takes at least {needed / 2**30:,.0f} GiB and this machine has {there / 2**30:,.0f}: "
            "choose a smaller one, such as mini."
        )


def _look_at_folder(folder: Path, resume: bool) -> bool:
    """Return whether to go on from the folder's checkpoint; never start over one."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: --out needs a folder.")
    exists = (folder / "checkpoint.safetensors").exists()
    if exists and not resume:
        raise ValueError(f"{folder} already holds a run: go on with --resume, or choose another folder with --out.")
    return exists


def _load_corpus() -> Corpus:
    typer.echo("reading the corpus ...")
    corpus = load_corpus()
    if corpus.sha256 != CORPUS_SHA256:
        typer.echo(
            "this corpus differs from the recorded one: the run is fine, but does not compare with the book's figures."
        )
    return corpus


def _prepare(
    corpus: Corpus, model_config: ModelConfig, config: TrainConfig, existing_run: Path | None
) -> tuple[Tokenizer, Batches]:
    if existing_run is None:
        texts = [text for documents in corpus.train.values() for text in documents]
        tokenizer = Tokenizer.train(texts, model_config.vocab_size)
    else:
        tokenizer = Tokenizer.load(existing_run / "tokenizer.json")
    streams = encode_split(tokenizer, corpus.train)
    return tokenizer, Batches(streams, corpus.mixture, config.sequence_length, config.seed)


def _begin_folder(folder: Path, tokenizer: Tokenizer) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "tokenizer.json", tokenizer.to_json())
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}.") from None


def _describe(model_config: ModelConfig, config: TrainConfig, trainer: Trainer, device: torch.device) -> None:
    parameters = accounting.count_parameters(model_config)
    typer.echo(
        f"{parameters.total:,} parameters, {parameters.active:,} active per token, {parameters.mtp:,} more in MTP; "
        f"{config.steps} steps of {config.batch_size} x {config.sequence_length} tokens, "
        f"{config.dtype} on {device} with {torch.get_num_threads()} threads"
    )
    if trainer.step == config.steps:
        typer.echo("the run is complete")
    elif trainer.step:
        typer.echo(f"going on from step {trainer.step}")


def _run(trainer: Trainer) -> None:
    config = trainer.config
    tokens_per_step = config.batch_size * config.sequence_length
    with tqdm(
        total=config.steps * tokens_per_step, initial=trainer.step * tokens_per_step, unit="tok", unit_scale=True
    ) as bar:

        def show(record: dict) -> None:
            bar.update(tokens_per_step)
            by_domain = "  ".join(f"{domain} {value:.2f}" for domain, value in record["bits_per_byte"].items())
            bar.set_postfix_str(f"step {record['step'] + 1}  bits per byte: {by_domain}", refresh=False)

        try:
            trainer.run(show)
        except TrainingInterrupted as reason:
            bar.close()
            typer.echo(f"{reason}; saved. To go on, run the same command with --resume.", err=True)
            raise typer.Exit(130) from None
        except TrainingDiverged as reason:
            bar.close()
            kept = f" The checkpoint in {trainer.folder} is intact." if trainer.checkpoint_path.exists() else ""
            typer.echo(f"minids: training diverged at {reason}.{kept}", err=True)
            raise typer.Exit(1) from None


def _write_results(folder: Path, report: dict, records: list[dict], config: ModelConfig) -> None:
    write_atomically(folder / "report.json", json.dumps(report, indent=2, default=float) + "\n")
    pictures = {"loss.png": draw_loss(records, report)}
    if report["max_violation"] is not None:
        pictures["experts.png"] = draw_expert_load(records, moe_layer_names(config))
    for name, figure in pictures.items():
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


if __name__ == "__main__":
    app()
