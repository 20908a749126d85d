"""The command line from outside: exit codes, what is printed where, and which files are there afterwards."""

import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from helpers_cli import FILES, SMALL, minids, minids_without, names_in, tensors_of, train
from helpers_training import assert_bitwise_equal, other_value, small_corpus
from safetensors.torch import load_file, save_file

import minids as package
from minids.device import best_dtype
from minids.hub.load import load_pretrained
from minids.text.tokenizer import Tokenizer
from minids.training import trainer
from minids.training.checkpoint import load_checkpoint
from minids.training.config import MINIATURE, TrainConfig
from minids.training.log import read_log
from minids.training.step import TrainingDiverged
from minids.training.trainer import Trainer

# ---------------------------------------------------------------------------------------------------
# Help and count


def test_the_package_gives_its_public_names_when_they_are_asked_for():
    assert {getattr(package, name).__name__ for name in package.__all__} == set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        getattr(package, "absent")  # noqa: B009


def test_help_names_every_command_and_every_setting(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    settings = [f"--{field.name.replace('_', '-')}" for field in fields(TrainConfig)]
    for command, words in {
        "": ["train", "generate", "export", "count"],
        "train": ["--config", "--data", "--out", "--resume", "--device", "--threads", *settings],
        "generate": ["--prompt", "--tokens", "--temperature", "--top-k", "--seed"],
        "export": ["--dtype", "bfloat16", "fp8", "--fp8-block", "--overwrite"],
        "count": ["--context", "deepseek-v3"],
    }.items():
        shown = minids(*command.split(), "--help")
        assert shown.exit_code == 0
        assert [word for word in words if word not in shown.stdout] == []
        assert minids(*command.split(), "-h").stdout == shown.stdout
    assert "Usage" in minids().output


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["count", "deepseek-v3"]])
def test_help_and_count_need_neither_torch_nor_pictures_nor_the_book(arguments, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    printed = minids_without("torch numpy matplotlib IPython minids.book", *arguments)
    assert printed.splitlines()[2:] == minids(*arguments).stdout.splitlines()[2:], "all but the name of the program"


def test_count_gives_the_published_numbers():
    lines = minids("count", "deepseek-v3").stdout.splitlines()
    numbers = {line[:28].strip(): line[28:].split()[0] for line in lines}
    names = ("total", "active: body + head", "MTP, on top of the total", "cache per token, BF16", "training, per token")
    assert [numbers[name] for name in names] == [
        "671,026,419,200", "36,625,618,432", "11,610,068,224", f"{2 * 35_136:,}", "250.46",
    ]  # fmt: skip
    longer = minids("count", "deepseek-v3", "--context", 131072).stdout
    assert f"{70_272 * 131_072 / 2**30:.2f} GiB at 131,072 tokens" in longer


# ---------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize("field", fields(TrainConfig), ids=lambda field: field.name)
def test_every_setting_is_an_option_and_reaches_the_run(folder, tmp_path, monkeypatch, field):
    monkeypatch.chdir(tmp_path)  # where no run is
    asked = []

    def start_run(model_config, config, *_, **__):
        asked.append(config)
        raise ValueError("enough.")

    monkeypatch.setattr("minids.training.run.start_run", start_run)
    value = "adamw" if field.name == "optimizer" else other_value(field)
    values = value if isinstance(value, tuple) else (value,)
    option = f"--{field.name.replace('_', '-')}"
    result = minids("train", "--data", folder / "text.txt", "--device", "cpu", option, *values)
    assert result.output == "minids: enough.\n"
    dtype = {"dtype": best_dtype(torch.device("cpu"))}
    assert asked == [replace(MINIATURE, **dtype | {field.name: value})]
    assert value != getattr(MINIATURE, field.name)


def test_a_run_leaves_all_its_files_and_no_others_and_says_so(finished):
    run, printed = finished, (finished.parent / "printed").read_text()
    assert names_in(run) == FILES
    assert all(name in printed for name in (*FILES, "held-out bits per byte", f"minids generate {run}"))
    assert load_checkpoint(run / "checkpoint.safetensors").step == 3
    assert [record["step"] for record in read_log(run / "log.jsonl")] == [0, 1, 2]
    assert (run / "dashboard.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((run / "report.json").read_text())
    assert (report["preset"], report["train"]["steps"]) == (str(run.parents[1] / "small.json"), 3)
    assert set(report["bits_per_byte"]) == {"text", "all"}


def test_a_dense_model_on_another_corpus_than_the_book_s_without_a_named_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minids.text.corpus.load_corpus", small_corpus)
    result = minids("train", *SMALL, "--config", folder / "dense.json", "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "this corpus differs from the recorded one" in result.stdout
    assert names_in(Path("runs/dense")) == FILES
    report = json.loads(Path("runs/dense/report.json").read_text())
    assert set(report["samples"]) == {"prose", "code", "arithmetic"}
    assert report["arithmetic_accuracy"] is not None


@pytest.mark.parametrize(("save_every", "drawn"), [(1, True), (9, False)])
def test_the_dashboard_is_renewed_while_a_run_goes_on_but_not_before_its_first_checkpoint(
    folder, tmp_path, monkeypatch, save_every, drawn
):
    train_step = Trainer.train_step

    def diverge_at_the_third(trainer):
        if trainer.step == 2:
            raise TrainingDiverged("step 2")
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", diverge_at_the_third)
    result = train(folder, "--out", tmp_path / "run", "--steps", 5, "--save-every", save_every)
    assert result.exit_code == 1
    assert (tmp_path / "run" / "dashboard.png").exists() == drawn
    again = train(folder, "--out", tmp_path / "run", "--steps", 5, "--save-every", save_every, "--resume")
    assert "training diverged at step 2" in again.stderr, "whatever is in the folder, the run begins or resumes"


def test_a_dashboard_that_cannot_be_drawn_is_told_once_and_ends_no_training(folder, tmp_path, monkeypatch):
    calls = []

    def draw(*_, **__):
        calls.append("drawn")
        raise RuntimeError("no\nfont")

    monkeypatch.setattr("minids.book.plots.c10_dashboard.draw_dashboard", draw)
    result = train(folder, "--out", tmp_path / "run", "--steps", 4, "--save-every", 1)
    assert (result.exit_code, calls) == (0, ["drawn"]), result.output
    assert result.stderr.count("dashboard.png was not written: no\\nfont.\n") == 1
    assert "held-out bits per byte" in result.stdout
    assert names_in(tmp_path / "run") == FILES - {"dashboard.png"}
    assert "dashboard.png" not in result.stdout


@pytest.mark.parametrize(
    ("moment", "code", "words"),
    [
        ("minids.training.trainer.Trainer.train_step", 1, "dashboard.png was not written: {} was removed or replaced"),
        ("minids.training.run.make_report", 2, "log.jsonl was changed meanwhile"),
    ],
)
def test_nothing_is_written_into_another_run_s_folder_that_took_the_place_of_this_one(
    folder, finished, tmp_path, monkeypatch, moment, code, words
):
    run, real = tmp_path / "run", pkgutil.resolve_name(moment)

    def after_the_swap(*arguments):
        if run.exists() and (run / "checkpoint.safetensors").exists() and not (tmp_path / "moved").exists():
            run.rename(tmp_path / "moved")
            run.mkdir()
            for name in ("checkpoint.safetensors", "log.jsonl", "tokenizer.json"):
                shutil.copy(finished / name, run)
        return real(*arguments)

    monkeypatch.setattr(moment, after_the_swap)
    result = train(folder, "--out", run, "--steps", 2, "--save-every", 1)
    assert result.exit_code == code, result.output
    assert words.format(run) in result.stderr
    assert names_in(run) == {"checkpoint.safetensors", "log.jsonl", "tokenizer.json"}


# ---------------------------------------------------------------------------------------------------
# Stopping and going on


def test_resuming_a_finished_run_evaluates_it_again_and_trains_neither_model_nor_tokenizer(
    folder, finished, monkeypatch
):
    before = {name: (finished / name).read_bytes() for name in FILES}
    monkeypatch.delattr(Tokenizer, "train")
    monkeypatch.delattr(Trainer, "train_step")
    result = train(folder, "--out", finished, "--steps", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert "the run is complete" in result.stdout
    after = {name: (finished / name).read_bytes() for name in names_in(finished)}
    reports = [json.loads(files.pop("report.json")) for files in (before, after)]
    assert after == before
    assert reports[0] | {"seconds": 0} == reports[1] | {"seconds": 0}


def test_ctrl_c_saves_and_says_how_to_go_on_and_the_resumed_run_is_the_straight_one(
    folder, finished, tmp_path, monkeypatch
):
    """`--resume` begins a run where there is none."""
    monkeypatch.chdir(tmp_path)
    run, steps, real = Path("runs/small"), iter(range(3)), trainer.update_weights

    def update_weights(*arguments, **options):
        if next(steps, None) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(trainer, "update_weights", update_weights)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    result = train(folder, "--steps", 3, "--resume")
    signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130, result.output
    assert "stopped after step 2 of 3; saved" in result.stderr
    assert "--resume" in result.stderr
    assert load_checkpoint(run / "checkpoint.safetensors").step == 2
    assert names_in(run) == {"checkpoint.safetensors", "tokenizer.json", "log.jsonl"}
    result = train(folder, "--steps", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert "resuming from step 2" in result.stdout
    assert names_in(run) == FILES
    assert_bitwise_equal(tensors_of(run), tensors_of(finished))
    assert (run / "tokenizer.json").read_bytes() == (finished / "tokenizer.json").read_bytes()
    losses = [[record["loss"] for record in read_log(out / "log.jsonl")] for out in (run, finished)]
    assert losses[0] == losses[1]


def test_a_diverged_run_exits_with_1_and_keeps_its_checkpoint(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path("runs/tiny")  # named after the preset
    result = train(folder, "--config", "tiny", "--steps", 9, "--learning-rate", 1e30, "--save-every", 1)
    assert result.exit_code == 1
    (sentence,) = (line for line in result.stderr.splitlines() if line.startswith("minids: "))
    words = ("diverged at step", "learning rate below 1e+30", f"The checkpoint in {run} is intact.")
    assert all(word in sentence for word in words)
    assert load_checkpoint(run / "checkpoint.safetensors").step == len(read_log(run / "log.jsonl"))
    assert "report.json" not in names_in(run)


def test_a_disk_that_fills_up_during_the_training_leaves_the_last_checkpoint(folder, tmp_path, monkeypatch):
    real = Trainer.save

    def save(self):
        if self.step == 2:
            raise OSError(28, "No space left on device", str(self.checkpoint_path))
        real(self)

    monkeypatch.setattr(Trainer, "save", save)
    result = train(folder, "--out", tmp_path / "run", "--steps", 3, "--save-every", 1)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("minids: "))
    file = tmp_path / "run" / "checkpoint.safetensors"
    assert (result.exit_code, load_checkpoint(file).step) == (1, 1)
    assert line == f"minids: No space left on device: {file}. The checkpoint in {file.parent} is intact."


# ---------------------------------------------------------------------------------------------------
# Generation and export


def test_generate_continues_the_prompt_that_it_is_given(finished):
    def text(*arguments, **options) -> str:
        result = minids("generate", finished, "--tokens", 12, "--threads", 1, *arguments, **options)
        assert result.exit_code == 0, result.output
        return result.stdout

    named = text("--prompt", "Line\n7 of größe")
    assert named.startswith("Line\n7 of größe")
    assert text("--prompt", "-", stdin="Line\n7 of größe") == named
    assert text("--prompt", "") != named
    sampled = [text("--temperature", 1, "--seed", seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert text("--seed", 1) == text("--seed", 2), "greedy"
    drafted = minids("generate", finished, "--tokens", 12, "--prompt", "", "--speculative")
    assert drafted.stdout == text("--prompt", ""), "drafts change nothing"
    assert re.fullmatch(r"12 tokens in \d+ steps; accepted drafts: \d+%\n", drafted.stderr)
    assert len(minids("generate", "reference", "--tokens", 4).stdout) > len("Return the\n"), "the one that comes along"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_run_is_the_trained_model_with_its_report_and_writes_its_text(finished, tmp_path, dtype):
    out, again = tmp_path / "model", tmp_path / "again"
    result = minids("export", finished, out, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in names_in(out))
    trained = tensors_of(finished)
    for name, tensor in load_pretrained(out).state_dict().items():
        expected = trained[f"model.{name}"]
        rounded = expected if dtype == "float32" or name.endswith("expert_bias") else expected.bfloat16().float()
        assert torch.equal(tensor, rounded)
    if dtype == "float32":
        assert minids("generate", out, "--tokens", 8).stdout == minids("generate", finished, "--tokens", 8).stdout
    assert minids("export", out, again).exit_code == 0
    reports = [(folder / "report.json").read_text() for folder in (finished, out, again)]
    assert json.loads(reports[0]) == json.loads(reports[1]) == json.loads(reports[2])
    (again / "report.json").unlink()
    assert minids("export", again, out, "--overwrite").exit_code == 0
    assert "report.json" not in names_in(out), "of a model that has none"


def test_a_run_in_fp8_is_trained_exported_in_fp8_and_read(folder, finished, tmp_path):
    run, options = tmp_path / "run", ["--dtype", "fp8", "--fp8-block", 8, "--steps", 3]
    result = train(folder, "--out", run, *options)
    assert result.exit_code == 0, result.output
    assert "fp8 on cpu" in result.stdout
    assert names_in(run) == FILES
    report = json.loads((run / "report.json").read_text())
    assert (report["dtype"], report["train"]["dtype"], report["train"]["fp8_block"]) == ("fp8", "fp8", 8)
    losses = [[record["loss"] for record in read_log(out / "log.jsonl")] for out in (run, finished)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0] != losses[1]
    for source, block, size, misread in (
        (finished, [], 128, False), (finished, ["--fp8-block", 16], 16, True), (run, [], 8, False),
    ):  # fmt: skip
        result = minids("export", source, tmp_path / "model", "--dtype", "fp8", *block, "--overwrite")
        assert result.exit_code == 0, result.output
        entries = json.loads((tmp_path / "model" / "config.json").read_text())
        assert entries["quantization_config"]["weight_block_size"] == [size, size]
        told = f"misreads these of {size}: for it, export with --fp8-block 128.\n"
        assert result.output.count("\n") == 1 + misread
        assert result.output.endswith(told) == misread
    trained = tensors_of(run)
    for name, tensor in load_pretrained(tmp_path / "model").state_dict().items():
        error = (tensor - trained[f"model.{name}"]).norm()
        assert error <= 0.04 * trained[f"model.{name}"].norm(), name
    assert minids("export", tmp_path / "model", tmp_path / "plain").exit_code == 0, "and back, in BF16"
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_a_process_without_standard_streams_is_told_nothing_about_python(finished, closed):
    command = f"{sys.executable} -m minids generate '{finished}' --tokens 2 --prompt - {closed}"
    ended = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("out", [".", "run"])
def test_a_run_in_the_folder_of_its_text_goes_on_and_what_is_no_text_is_counted(folder, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "text.txt", ".")
    Path("picture.png").write_bytes(b"\x89PNG\0")
    for resume in ([], ["--resume"]):
        result = train(folder, "--data", ".", "--out", out, "--steps", 1, *resume)
        assert result.exit_code == 0, result.output
        assert "skipped in .: 1 not UTF-8 text\n" in result.stdout
    assert "the run is complete" in result.stdout


INTERRUPTED = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of the background ignores it
runpy.run_module("minids", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_while_packages_load_ends_the_process_at_once(tmp_path):
    """In place of the first package stands one that presses it."""
    (tmp_path / "matplotlib.py").write_text("import signal; signal.raise_signal(signal.SIGINT); print('went on')")
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "train", "--out", tmp_path / "run"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_after_the_training_says_that_the_run_is_saved(folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("minids.training.run.make_report", interrupted)
    result = train(folder, "--out", tmp_path / "run", "--steps", 1)
    assert result.exit_code == 130
    assert "minids: the trained run is saved. To evaluate it, run the same command with --resume." in result.stderr
    monkeypatch.undo()
    assert train(folder, "--out", tmp_path / "run", "--steps", 1, "--resume").exit_code == 0


def test_a_wrong_setting_of_matplotlib_is_told_before_the_training(folder, tmp_path):
    options = ["--config", "tiny", "--steps", "1", "--data", folder / "text.txt", "--out", tmp_path / "run"]
    command = [sys.executable, "-m", "minids", "train", *options]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "foo"})
    assert ended.returncode == 2
    assert re.fullmatch("minids: .*'foo'.*\n", ended.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_model_without_the_mtp_that_its_configuration_names_is_used_with_a_word_about_it(finished, tmp_path):
    assert minids("export", finished, tmp_path / "model").exit_code == 0
    weights = tmp_path / "model" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if ".layers.2." not in name}
    save_file(kept, weights)
    result = minids("generate", tmp_path / "model", "--tokens", 2)
    assert result.exit_code == 0
    assert (
        result.stderr
        == f"minids: {tmp_path / 'model'} holds nothing of the MTP modules: the model is loaded without.\n"
    )
