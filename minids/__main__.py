"""The command line: `minids train`, `minids generate`, `minids export`, `minids count`.

Each command is a call into a room of the library, which is loaded only then: help and `count` do not wait for torch.
A mistake in the input is told in one sentence, with exit code 2. An error of the system, such as a full disk, and a
run that diverged end with 1, and one that was stopped by Ctrl-C with 130. Settings that belong to a process and not to
a library, threads and memory, are made here.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from minids.cost.cache import kv_cache_bytes
from minids.cost.flops import training_flops_per_token
from minids.cost.parameters import count_parameters
from minids.files import atomic_path, read_json, write_atomically
from minids.model.config import ModelConfig
from minids.training.config import DTYPES, TrainConfig
from minids.units import in_unit
from minids.validation import BadValueError, quoted, require, require_whole

if TYPE_CHECKING:
    from minids.training.run import Run

LONGEST_LINE = 600  # characters of a refusal
LONGEST_PROMPT = 100_000  # characters that are read from standard input
OUT_OF_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory")  # how torch says it

app = typer.Typer(
    help="DeepSeek-V3, rebuilt in miniature.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _with_options_of(config_class: type) -> Callable:
    """Let a command take every field of a dataclass as an option, with the help that its metadata holds.

    The command gets what was given as keyword arguments, None where nothing was, and so need not list the fields.
    """

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        types = inspect.get_annotations(config_class, eval_str=True)
        options = []
        for field in dataclasses.fields(config_class):
            option = typer.Option(help=field.metadata["help"] + _shown(field.default))
            hint = Annotated[types[field.name] | None, option]
            options.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))
        command.__signature__ = signature.replace(parameters=[*own, *options])
        command.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
        return command

    return decorate


def _shown(default: object) -> str:
    """What help says of a default; of a word it says nothing, because the help text itself does."""
    numbers = default if isinstance(default, tuple) else (default,)
    return "" if isinstance(default, str | None) else f" Default: {' '.join(f'{n:g}' for n in numbers)}."


@app.command()
@_with_options_of(TrainConfig)
def train(
    config: Annotated[str, typer.Option(help="A preset (see `minids count --help`) or a config.json.")] = "mini",
    data: Annotated[
        str | None,
        typer.Option(
            help="Your own text: a UTF-8 file or a folder; its last tenth is held out. Default: the book's corpus.",
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run. Default: runs/NAME_OF_THE_PRESET.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the folder, if there is one.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps. Default: cuda if there is one, else cpu.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: one per core.")] = None,
    **settings,
):
    """Train a model from scratch, evaluate it, and write weights, log, pictures and report to a folder."""
    began = time.perf_counter()
    with _told_in_one_sentence(train):
        with _killed_by_ctrl_c():
            import matplotlib  # noqa: F401, a wrong setting of the reader's is told now and not after the training

            from minids.device import best_dtype, choose_device
            from minids.text.corpus import CORPUS_SHA256, load_corpus
            from minids.text.own_text import read_texts
            from minids.training.run import RUN_FILES, check_start, start_run
        _set_up(threads)
        torch_device = choose_device(device)
        model_config = _read_config(config)
        given = {name: value for name, value in settings.items() if value is not None}
        train_config = TrainConfig(**{"dtype": best_dtype(torch_device)} | given)
        name = config if config in ModelConfig.preset_names() else Path(config).stem
        folder = _path("out", out) or Path("runs") / name
        text = _path("data", data)
        check_start(model_config, train_config, folder, resume, torch_device)
        if text is None:
            typer.echo("reading the corpus ...")
            corpus = load_corpus()
            if corpus.sha256 != CORPUS_SHA256:
                typer.echo("this corpus differs from the recorded one: the figures of the book do not apply to it.")
        else:
            corpus = read_texts(text, leave_out=[folder, *(folder / name for name in RUN_FILES)])
            if corpus.skipped:
                typer.echo(f"skipped in {text}: {corpus.skipped}")
        run = start_run(model_config, train_config, corpus, folder, device=torch_device, resume=resume)
        seconds_before = run.trainer.seconds
        for difference in run.differences:
            typer.echo(f"{difference}: the run goes on, but its last bits may differ.")
        _describe(run)
        _train(run)
        typer.echo("evaluating on held-out text ...")
        try:
            report = {"preset": config} | run.report() | {"seconds": time.perf_counter() - began + seconds_before}
            _write_results(run, report)
        except KeyboardInterrupt:
            _stop("the trained run is saved. To evaluate it, run the same command with --resume.", 130)


@app.command("generate")
def generate_text(
    run: Annotated[
        str,
        typer.Argument(help="Folder of a run or of an exported model; `reference`: the one that comes along."),
    ] = "runs/mini",
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input.")] = "Return the",
    tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more varied.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
):
    """Continue a prompt with a trained model."""
    with _told_in_one_sentence(generate_text, max_new_tokens="tokens"):
        with _killed_by_ctrl_c():
            from minids.inference.generate import generate
            from minids.training.report import printable
            from minids.training.run import load_run
        _set_up(threads)
        require_whole("tokens", tokens)
        model, tokenizer = load_run(_find(_path("run", run)))
        text = _read_stdin() if prompt == "-" else prompt
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        ends = {tokenizer.end_of_text}
        if ends <= set(model.config.end_of_text_ids):  # else the configuration was not made for this tokenizer
            ends = set(model.config.end_of_text_ids)
        out = generate(model, ids, tokens, temperature=temperature, top_k=top_k, seed=seed, end_of_text=sorted(ends))
        new = [token for token in out.new_tokens.tolist() if token not in ends]
        continued = text + tokenizer.decode(new)
        typer.echo(printable(continued) if sys.stdout and sys.stdout.isatty() else continued)


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(help="Folder of a run, or of a model to convert; `reference`: the one that comes along."),
    ],
    folder: Annotated[str, typer.Argument(help="Where to put it: a new folder.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, as DeepSeek's models are released, or float32.")] = "bfloat16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export of that name.")] = False,
):
    """Write a trained model in the released layout, as load_pretrained, transformers and others read it."""
    with _told_in_one_sentence(export):
        with _killed_by_ctrl_c():
            import torch

            from minids.hub.save import save_pretrained
            from minids.training.run import load_run
        require("dtype", dtype, dtype in DTYPES, " or ".join(DTYPES))
        source, target = _find(_path("run", run)), _path("folder", folder)
        model, tokenizer = load_run(source)
        report = read_json(source / "report.json") if (source / "report.json").exists() else None
        save_pretrained(
            model, target, tokenizer=tokenizer, report=report, dtype=getattr(torch, dtype), overwrite=overwrite
        )
        files = sorted(target.iterdir())
        size = sum(file.stat().st_size for file in files)
        typer.echo(f"{target}/: {', '.join(file.name for file in files)}; {size / 1e6:.1f} MB")


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
    with _told_in_one_sentence(count):
        require_whole("context", context)
        model_config = _read_config(config)
        parameters = count_parameters(model_config)
        rows = [(part.replace("_", " "), number) for part, number in parameters.breakdown.items() if number]
        rows += [("total", parameters.total), ("active: body", parameters.active_body)]
        rows += [
            ("active: body + head", parameters.active),
            ("active: with embedding", parameters.active_with_embedding),
        ]
        if parameters.mtp:
            rows.append(("MTP, on top of the total", parameters.mtp))
        for name, number in rows:
            typer.echo(f"{name:<28}{number:>20,}{number / parameters.total:>9.1%}")
        cache = kv_cache_bytes(model_config)
        flops = training_flops_per_token(model_config, context)
        size, unit = in_unit(cache * context, 1024, ("bytes", "KiB", "MiB", "GiB"))
        work, per = in_unit(flops, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP"))
        typer.echo(f"{'cache per token, BF16':<28}{cache:>20,.0f} bytes, {size:,.2f} {unit} at {context:,} tokens")
        typer.echo(f"{'training, per token':<28}{work:>20,.2f} {per} at {context:,} tokens of context")


# ---------------------------------------------------------------------------------------------------


@contextmanager
def _told_in_one_sentence(command: Callable, **options: str) -> Iterator[None]:
    """Turn an error of the input (exit code 2) or of the system (1) into one line.

    A value is named as the command's option. `options` are those with another name in the library.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: typer.echo(f"minids: {message}", err=True)
            yield
    except BadValueError as error:
        name = options.get(error.name, error.name)
        is_option = name in inspect.signature(command).parameters
        _stop(f"--{name.replace('_', '-')} {error.sentence}" if is_option else str(error), 2)
    except ValueError as error:
        _stop(str(error), 2)
    except BrokenPipeError:  # nobody reads on, as in `minids count mini | head -1`
        raise
    except OSError as error:
        _stop(f"{_said(error)}.", 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        _stop("there is not enough memory.", 1)


@contextmanager
def _killed_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once: an import that is interrupted leaves half a package, and other errors."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, handler)


def _read_stdin() -> str:
    text = sys.stdin.read(LONGEST_PROMPT + 1) if sys.stdin else ""
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"the prompt on standard input is too long: it may have {LONGEST_PROMPT:,} characters.")
    return text


def _said(error: OSError) -> str:
    what = error.strerror or str(error)
    return what if error.filename is None else f"{what}: {error.filename}"


def _stop(sentence: str, code: int) -> NoReturn:
    """Say why on one line of stderr, names with line breaks in them included, and leave."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in sentence)
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
    typer.echo(f"minids: {line}", err=True)
    raise typer.Exit(code) from None


def _path(name: str, given: str | None) -> Path | None:
    """Return an argument that names a file or folder; ValueError for an empty one, which Path reads as '.'."""
    require(name, given, given != "", "the name of a file or a folder")
    return None if given is None else Path(given)


def _read_config(name: str) -> ModelConfig:
    """Return a preset by name, or else the configuration in the file or folder of that name."""
    if name in ModelConfig.preset_names():
        return ModelConfig.preset(name)
    if not name or not Path(name).exists():
        presets = ", ".join(ModelConfig.preset_names())
        raise ValueError(f"{quoted(name)} is neither a file nor a preset: the presets are {presets}.")
    return ModelConfig.from_hf(name)


def _find(folder: Path) -> Path:
    """Return the folder of a run or of a saved model; `reference` names the one that comes with the book."""
    if (folder / "checkpoint.safetensors").exists() or (folder / "config.json").exists():
        return folder
    if folder == Path("reference"):
        from minids.hub.reference import REFERENCE

        return REFERENCE
    raise ValueError(
        f"{folder} holds neither a run (checkpoint.safetensors) nor a saved model (config.json): "
        "`minids train` makes one, and `reference` names the one that comes with the book."
    )


def _set_up(threads: int | None) -> None:
    import torch

    from minids.device import keep_freed_memory

    if threads is not None:
        require_whole("threads", threads, at_most=os.cpu_count())
        torch.set_num_threads(threads)
    keep_freed_memory()


def _describe(run: Run) -> None:
    import torch

    parameters, config = count_parameters(run.model.config), run.trainer.config
    typer.echo(
        f"{parameters.total:,} parameters, {parameters.active:,} active per token, {parameters.mtp:,} more in MTP; "
        f"{config.steps} steps of {config.batch_size} x {config.sequence_length} tokens, "
        f"{config.dtype} on {run.trainer.device} with {torch.get_num_threads()} threads"
    )
    if run.trainer.step == config.steps:
        typer.echo("the run is complete")
    elif run.trainer.step:
        typer.echo(f"going on from step {run.trainer.step}")


def _train(run: Run) -> None:
    """Train with a progress bar; leave with an exit code if the run was stopped or diverged."""
    from tqdm import tqdm

    from minids.training.trainer import TrainingDiverged, TrainingInterrupted

    trainer, config = run.trainer, run.trainer.config
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
        except (TrainingDiverged, OSError) as reason:
            bar.close()
            what = f"training diverged at {reason}" if isinstance(reason, TrainingDiverged) else _said(reason)
            kept = f" The checkpoint in {trainer.folder} is intact." if trainer.checkpoint_path.exists() else ""
            _stop(f"{what}.{kept}", 1)


def _write_results(run: Run, report: dict) -> None:
    """Write report and pictures into the folder of the run, and print the report."""
    from minids.training.report import format_report
    from minids.training.run import RUN_FILES

    folder, records = run.trainer.folder, run.trainer.records
    write_atomically(folder / "report.json", json.dumps(report, indent=2, default=float) + "\n")
    from minids.book.plots.c10_training import draw_expert_load, draw_loss  # after the report is safe

    pictures = {"loss.png": draw_loss(records, report)}
    if report["max_violation"] is not None:
        pictures["experts.png"] = draw_expert_load(records, run.model.config.moe_layer_names())
    for name, figure in pictures.items():
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    typer.echo(format_report(report))
    files = ", ".join(name for name in RUN_FILES if (folder / name).exists())
    typer.echo(f"\n{report['seconds']:.0f} seconds in all. In {folder}/: {files}.")
    typer.echo(f'Next: minids generate {shlex.quote(str(folder))} --prompt "Return the"')


if __name__ == "__main__":
    app()
