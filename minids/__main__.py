"""The command line: `minids train`, `minids generate`, `minids export`, `minids count`.

Each command imports the part of the library that it calls only when it runs, so help and `count` do not import torch.
`train` is defined in cli/train.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from minids.cli.arguments import find_run, path_of, read_config, read_stdin, set_up
from minids.cli.errors import killed_by_ctrl_c, told_in_one_sentence
from minids.cli.train import train
from minids.cost.cache import kv_cache_bytes
from minids.cost.flops import training_flops_per_token
from minids.cost.parameters import count_parameters
from minids.files import read_json
from minids.model.config import ModelConfig
from minids.training.config import DTYPES
from minids.units import in_unit
from minids.validation import require, require_whole

app = typer.Typer(
    help="DeepSeek-V3, rebuilt in miniature.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)


@app.command("generate")
def generate_text(
    run: Annotated[
        str,
        typer.Argument(help="Folder of a run or of an exported model, or `reference` for the bundled model."),
    ] = "runs/mini",
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input.")] = "Return the",
    tokens: Annotated[int, typer.Option(help="Maximum number of new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token; higher: more varied.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens only.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    speculative: Annotated[
        bool, typer.Option("--speculative", help="Let the MTP modules draft, and say how many drafts were accepted.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
):
    """Continue a prompt with a trained model."""
    with told_in_one_sentence(generate_text, max_new_tokens="tokens"):
        with killed_by_ctrl_c():
            from minids.inference.generate import generate
            from minids.training.report import printable
            from minids.training.run import load_run
        set_up(threads)
        require_whole("tokens", tokens)
        model, tokenizer = load_run(find_run(path_of("run", run)))
        text = read_stdin() if prompt == "-" else prompt
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        ends = {tokenizer.end_of_text}
        if ends <= set(model.config.end_of_text_ids):  # otherwise the configuration belongs to another tokenizer
            ends = set(model.config.end_of_text_ids)
        out = generate(
            model, ids, tokens, temperature=temperature, top_k=top_k, seed=seed, end_of_text=sorted(ends),
            speculative=speculative,
        )  # fmt: skip
        new = [token for token in out.new_tokens.tolist() if token not in ends]
        continued = text + tokenizer.decode(new)
        typer.echo(printable(continued) if sys.stdout and sys.stdout.isatty() else continued)
        if speculative:
            accepted = ", ".join(f"{share:.0%}" for share in out.acceptance.tolist())
            typer.echo(f"{len(out.new_tokens)} tokens in {out.steps} steps; accepted drafts: {accepted}", err=True)


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(help="Folder of a run or of a model to convert, or `reference` for the bundled model."),
    ],
    folder: Annotated[str, typer.Argument(help="The new folder to write.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float32, or fp8: in blocks, as V3.")] = "bfloat16",
    fp8_block: Annotated[
        int | None,
        typer.Option(help="With dtype fp8: side of a block. Default: that of a run trained in fp8, else 128."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in this folder.")] = False,
):
    """Write a trained model in the released layout, which load_pretrained, transformers and other tools read."""
    with told_in_one_sentence(export):
        with killed_by_ctrl_c():
            import torch

            from minids.hub.save import save_pretrained, transformers_reads
            from minids.training.run import load_run
        require("dtype", dtype, dtype in DTYPES, "bfloat16, float32 or fp8")
        if fp8_block is not None:
            require("fp8_block", fp8_block, dtype == "fp8", "left out unless the dtype is fp8")
            require_whole("fp8_block", fp8_block)
        source, target = find_run(path_of("run", run)), path_of("folder", folder)
        model, tokenizer = load_run(source)
        side = fp8_block or (_block_of_training(source) if dtype == "fp8" else 128)
        report = read_json(source / "report.json") if (source / "report.json").exists() else None
        save_pretrained(
            model, target, tokenizer=tokenizer, report=report, overwrite=overwrite,
            dtype=torch.float8_e4m3fn if dtype == "fp8" else getattr(torch, dtype),
            weight_block_size=(side, side) if dtype == "fp8" else None,
        )  # fmt: skip
        files = sorted(target.iterdir())
        size = sum(file.stat().st_size for file in files)
        typer.echo(f"{target}/: {', '.join(file.name for file in files)}; {size / 1e6:.1f} MB")
        if dtype == "fp8" and not transformers_reads(model, side):
            fitting = [f"--fp8-block {n}" for n in (128, 64, 32, 16) if transformers_reads(model, n)]
            typer.echo(
                f"transformers (5.23) derives blocks from the shapes of matrices and misreads these of {side}: "
                f"for it, export with {[*fitting, '--dtype bfloat16'][0]}."
            )


def _block_of_training(source: Path) -> int:
    """Return the block of a run that was trained in FP8; 128 for another run, and for a model."""
    from minids.training.checkpoint import find_checkpoint, read_head

    path = find_checkpoint(source)
    train = {} if path is None else read_head(path)["settings"].get("train", {})
    return train["fp8_block"] if train.get("dtype") == "fp8" else 128


@app.command()
def count(
    config: Annotated[
        str,
        typer.Argument(
            metavar="PRESET_OR_CONFIG", help=f"A config.json, or one of: {', '.join(ModelConfig.preset_names())}."
        ),
    ],
    context: Annotated[int, typer.Option(help="Context length in tokens, for the KV cache and attention.")] = 4096,
):
    """Compute a model's parameters, KV-cache bytes and training FLOPs from its configuration."""
    with told_in_one_sentence(count):
        require_whole("context", context)
        model_config = read_config(config)
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


if __name__ == "__main__":
    app()
