"""`minids train`: read the text, train with a progress bar, evaluate, and write the results into the run's folder."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minids.cli.arguments import path_of, read_config, set_up, with_options_of
from minids.cli.errors import killed_by_ctrl_c, one_line, sentence_of, stop, told_in_one_sentence
from minids.cli.processes import processes_of
from minids.cost.parameters import count_parameters
from minids.files import atomic_path, write_atomically
from minids.model.config import ModelConfig
from minids.training.config import MINIATURE

if TYPE_CHECKING:
    from minids.text.corpus import Corpus
    from minids.training.run import Run


@with_options_of(MINIATURE)
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
        bool, typer.Option("--resume", help="Resume from the checkpoint in the folder, if there is one.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps. Default: cuda if there is one, else cpu.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: one per core.")] = None,
    dp: Annotated[
        int | None, typer.Option(help="Under torchrun: data-parallel processes. Default: all processes / pp.")
    ] = None,
    ep: Annotated[int, typer.Option(help="How many of the dp processes share one set of a layer's experts.")] = 1,
    pp: Annotated[int, typer.Option(help="Under torchrun: processes of a pipeline.")] = 1,
    schedule: Annotated[
        str | None, typer.Option(help="Of the pipeline: 1F1B, ZB1P, DualPipe, …. Default: 1F1B.")
    ] = None,
    **settings,
):
    """Train a model from scratch, evaluate it, and write weights, log, pictures and report to a folder.

    On several processes: `torchrun --nproc-per-node 8 -m minids train --ep 8 --batch-size 64`.
    """
    began = time.perf_counter()
    with told_in_one_sentence(train):
        with killed_by_ctrl_c():
            import matplotlib  # noqa: F401, reports a wrong setting of the reader's before the training

            from minids.device import best_dtype, choose_device
            from minids.training.run import check_start, start_run
        set_up(threads)
        torch_device = choose_device(device)
        model_config = read_config(config)
        given = {name: value for name, value in settings.items() if value is not None}
        train_config = replace(MINIATURE, **given)
        name = config if config in ModelConfig.preset_names() else Path(config).stem
        folder = path_of("out", out) or Path("runs") / name
        text = path_of("data", data)
        flags = dict(dp=dp, ep=ep, pp=pp, schedule=schedule)
        with processes_of(flags, model_config, train_config, torch_device) as group:
            best = {"dtype": group.first_does(lambda: best_dtype(group.device))}
            train_config = replace(train_config, **best | given)
            resume = resume or group.restarted
            group.first_does(lambda: check_start(model_config, train_config, folder, resume, group.device))
            corpus = group.first_does(lambda: _read_corpus(text, folder))
            run = start_run(
                model_config, train_config, corpus, folder, device=group.device, resume=resume, layout=group.layout
            )
            group.note_begun()
            began -= run.trainer.seconds  # as if it had not been interrupted
            for difference in run.differences:
                typer.echo(f"{difference}: the run continues, but the last bits of its numbers may differ.")
            _describe(run)
            dashboard = _Dashboard(run)
            _train(run, dashboard, group.is_first)
            try:
                if group.is_first:
                    _evaluate(run, config, began, dashboard)
                group.wait_for_first()
            except KeyboardInterrupt:
                stop("the trained run is saved. To evaluate it, run the same command with --resume.", 130)


def _read_corpus(text: Path | None, folder: Path) -> Corpus:
    """Return the reader's own text, without what the run itself wrote into its folder, or else the book's corpus."""
    from minids.text.corpus import CORPUS_SHA256, load_corpus
    from minids.text.own_text import read_texts
    from minids.training.run import RUN_FILES

    if text is not None:
        corpus = read_texts(text, leave_out=[folder, *(folder / name for name in RUN_FILES)])
        if corpus.skipped:
            typer.echo(f"skipped in {text}: {corpus.skipped}")
        return corpus
    typer.echo("reading the corpus ...")
    corpus = load_corpus()
    if corpus.sha256 != CORPUS_SHA256:
        typer.echo("this corpus differs from the recorded one: the book's numbers do not apply to it.")
    return corpus


def _describe(run: Run) -> None:
    import torch

    parameters, config = count_parameters(run.trainer.model_config), run.trainer.config
    shared = "" if run.layout is None else f" in each of {run.layout.ranks} processes: {run.layout}"
    typer.echo(
        f"{parameters.total:,} parameters, {parameters.active:,} active per token, {parameters.mtp:,} more in MTP; "
        f"{config.steps} steps of {config.batch_size} x {config.sequence_length} tokens, "
        f"{config.dtype} on {run.trainer.device.type} with {torch.get_num_threads()} threads{shared}"
    )
    if run.trainer.step == config.steps:
        typer.echo("the run is complete")
    elif run.trainer.step:
        typer.echo(f"resuming from step {run.trainer.step}")


def _train(run: Run, dashboard: _Dashboard, is_first: bool) -> None:
    """Train with a progress bar, and renew the dashboard now and then; exit with a code if stopped or diverged.

    Of several processes, all train, and the first one shows it.
    """
    from tqdm import tqdm

    from minids.training.checkpoint import find_checkpoint
    from minids.training.step import TrainingDiverged
    from minids.training.trainer import TrainingInterrupted

    trainer, config = run.trainer, run.trainer.config
    tokens_per_step = config.batch_size * config.sequence_length
    with tqdm(
        total=config.steps * tokens_per_step, initial=trainer.step * tokens_per_step, unit="tok", unit_scale=True,
        disable=not is_first,
    ) as bar:  # fmt: skip

        def show(record: dict) -> None:
            bar.update(tokens_per_step)
            by_domain = "  ".join(f"{domain} {value:.2f}" for domain, value in record["bits_per_byte"].items())
            bar.set_postfix_str(f"step {record['step'] + 1}  bits per byte: {by_domain}", refresh=False)
            dashboard.renew()

        try:
            trainer.run(show if is_first else lambda record: None)
        except TrainingInterrupted as reason:
            bar.close()
            stop(f"{reason}; saved. To resume, run the same command with --resume.", 130)
        except (TrainingDiverged, OSError) as reason:
            bar.close()
            what = f"training diverged at {reason}" if isinstance(reason, TrainingDiverged) else sentence_of(reason)
            kept = f" The checkpoint in {trainer.folder} is intact." if find_checkpoint(trainer.folder) else ""
            stop(f"{what}.{kept}", 1)


def _evaluate(run: Run, preset: str, began: float, dashboard: _Dashboard) -> None:
    """Evaluate the finished run, and write its results."""
    typer.echo("evaluating on held-out text ...")
    report = {"preset": preset} | run.report()
    report["seconds"] = time.perf_counter() - began
    _write_results(run, report, dashboard)


def _write_results(run: Run, report: dict, dashboard: _Dashboard) -> None:
    """Print the report, and write it and the dashboard into the folder of the run."""
    from minids.training.report import format_report
    from minids.training.run import RUN_FILES

    folder = run.trainer.folder
    typer.echo(format_report(report))
    with run.trainer.log as log:  # locked, so that no other run begins in the folder
        log.begin(run.trainer.step)  # raises ValueError if it holds another run now
        write_atomically(folder / "report.json", json.dumps(report, indent=2, default=float) + "\n")
        dashboard.write(report)
    files = ", ".join(name for name in RUN_FILES if (folder / name).exists())
    typer.echo(f"\n{report['seconds']:.0f} seconds in all. In {folder}/: {files}.")
    typer.echo(f'Next: minids generate {shlex.quote(str(folder))} --prompt "Return the"')


class _Dashboard:
    """dashboard.png, a picture of the run so far.

    A picture is no reason to end a training: an error is told in one sentence, and nothing is drawn after it.
    """

    def __init__(self, run: Run):
        from minids.book.live import Pace

        self.run, self.pace, self.broken = run, Pace(seconds=15), False

    def renew(self) -> None:
        """Write the picture again if the last one was written long enough ago."""
        if self.pace.due():
            self.write()

    def write(self, report: dict | None = None) -> None:
        """Write the picture while the run's log is open; not before the first checkpoint."""
        from tqdm import tqdm

        if self.broken:
            return
        try:
            if self.run.trainer.checkpoint_path.exists():  # a folder with results but no run is refused
                with self.pace:
                    self._write(report)
        except Exception as error:
            self.broken = True
            reason = sentence_of(error) if isinstance(error, OSError) else str(error) or type(error).__name__
            tqdm.write(one_line(f"dashboard.png was not written: {reason.rstrip('.')}."), file=sys.stderr)

    def _write(self, report: dict | None) -> None:
        from minids.book.plots.c10_dashboard import draw_dashboard

        trainer = self.run.trainer
        names = trainer.model_config.moe_layer_names()
        picture = draw_dashboard(trainer.records, report, config=trainer.config, layer_names=names).png()
        if not trainer.log.is_in_place():
            raise ValueError(f"{trainer.folder} was removed or replaced during the run")
        with atomic_path(trainer.folder / "dashboard.png") as temporary:
            temporary.write_bytes(picture)
