"""The command line from outside: exit codes, what is printed where, and which files are there afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers_training import assert_bitwise_equal, file_size_limit, other_value, small_config, small_corpus
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from typer.testing import CliRunner, Result

import minids as package
from minids.__main__ import app
from minids.device import best_dtype
from minids.hub.load import load_pretrained
from minids.text.tokenizer import Tokenizer
from minids.training import trainer
from minids.training.checkpoint import load_checkpoint
from minids.training.config import TrainConfig
from minids.training.log import read_log
from minids.training.trainer import Trainer

FILES = {"checkpoint.safetensors", "tokenizer.json", "log.jsonl", "report.json", "loss.png", "experts.png"}
SMALL = ["--sequence-length", 32, "--batch-size", 2, "--threads", 1, "--dtype", "float32"]
BLOCKED = """
import runpy, sys
sys.modules |= dict.fromkeys(sys.argv.pop(1).split(), None)  # to import one of them is an error now
runpy.run_module("minids", run_name="__main__", alter_sys=True)
"""


def minids(*arguments, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def minids_without(modules: str, *arguments) -> str:
    """What `python -m minids` prints in a process that cannot import these modules; it must end well."""
    command = [sys.executable, "-c", BLOCKED, modules, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text, and the configurations of a model of two layers and of a dense one."""
    folder = tmp_path_factory.mktemp("cli")
    lines = [f"Line {i} of a small text, and {7 * i} is a number.\n" for i in range(120)]
    (folder / "text.txt").write_text("".join(lines))
    (folder / "small.json").write_text(json.dumps(small_config().to_hf()))
    dense = small_config(n_routed_experts=None, num_nextn_predict_layers=0)
    (folder / "dense.json").write_text(json.dumps(dense.to_hf()))
    return folder


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    """A run of three steps in a process that can load nothing of notebooks and experiments; beside, what it printed."""
    out = folder / "new" / "run"
    arguments = ["--config", folder / "small.json", *SMALL, "--data", folder / "text.txt", "--out", out, "--steps", 3]
    printed = minids_without("IPython ipywidgets minids.book.experiments", "train", *arguments)
    (folder / "new" / "printed").write_text(printed)
    return out


def train(folder: Path, *arguments) -> Result:
    """Train as the finished run was, unless the arguments say otherwise."""
    return minids("train", "--config", folder / "small.json", *SMALL, "--data", folder / "text.txt", *arguments)


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoint.safetensors").tensors


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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
        "export": ["--dtype", "bfloat16", "--overwrite"],
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
    value = other_value(field)
    values = value if isinstance(value, tuple) else (value,)
    option = f"--{field.name.replace('_', '-')}"
    result = minids("train", "--data", folder / "text.txt", "--device", "cpu", option, *values)
    assert result.output == "minids: enough.\n"
    dtype = {"dtype": best_dtype(torch.device("cpu"))}
    assert asked == [TrainConfig(**dtype | {field.name: value})]
    assert value != field.default


def test_a_run_leaves_all_its_files_and_no_others_and_says_so(finished):
    run, printed = finished, (finished.parent / "printed").read_text()
    assert names_in(run) == FILES
    assert all(name in printed for name in (*FILES, "held-out bits per byte", f"minids generate {run}"))
    assert load_checkpoint(run / "checkpoint.safetensors").step == 3
    assert [record["step"] for record in read_log(run / "log.jsonl")] == [0, 1, 2]
    for name in ("loss.png", "experts.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((run / "report.json").read_text())
    assert (report["preset"], report["train"]["steps"]) == (str(run.parents[1] / "small.json"), 3)
    assert set(report["bits_per_byte"]) == {"text", "all"}


def test_a_dense_model_on_another_corpus_than_the_book_s_without_a_named_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minids.text.corpus.load_corpus", small_corpus)
    result = minids("train", *SMALL, "--config", folder / "dense.json", "--steps", 1)
    assert result.exit_code == 0, result.output
    assert "this corpus differs from the recorded one" in result.stdout
    assert "experts.png" not in result.stdout
    assert names_in(Path("runs/dense")) == FILES - {"experts.png"}
    report = json.loads(Path("runs/dense/report.json").read_text())
    assert set(report["samples"]) == {"prose", "code", "arithmetic"}
    assert report["arithmetic_accuracy"] is not None


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
    assert "going on from step 2" in result.stdout
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


# ---------------------------------------------------------------------------------------------------
# What is refused

DAMAGED = {"missing": None, "empty": b"", "garbage": b"garbage"}


@pytest.fixture(scope="module")
def refused(folder, finished) -> Path:
    """The folder of the tests, with everything in it that cannot be used."""
    for name, content in {"empty.txt": b"", "binary.txt": b"ab\0cd", "latin.txt": b"\xff\xfe\x00"}.items():
        (folder / name).write_bytes(content)
    (folder / "few.txt").write_text("too short\n" * 2)
    (folder / "results").mkdir()
    (folder / "results" / "report.json").write_text("of something else")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text(Tokenizer.train(["something else"], 260).to_json())
    shutil.copytree(finished, folder / "retokenized", copy_function=os.link)
    (folder / "retokenized" / "tokenizer.json").unlink()
    shutil.copy(folder / "tokenizer" / "tokenizer.json", folder / "retokenized")
    (folder / "log").mkdir()
    (folder / "log" / "log.jsonl").write_text("of something else")
    (folder / "other.txt").write_text((folder / "text.txt").read_text().replace("small", "large"))
    for i, content in enumerate(["", "{", "[]", '{"model_type": "gpt2"}', '{"model_type": "deepseek_v3"}']):
        (folder / f"bad{i}.json").write_text(content)
    for name in ("checkpoint.safetensors", "tokenizer.json", "log.jsonl"):
        for kind, content in DAMAGED.items():
            damaged = folder / f"{kind}-{name}"
            shutil.copytree(finished, damaged, copy_function=os.link)
            (damaged / name).unlink()
            if content is not None:
                (damaged / name).write_bytes(content)
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text(json.dumps(small_config().to_hf()))
    Backend(BPE(vocab={"a": 0}, merges=[])).save(str(folder / "foreign" / "tokenizer.json"))
    minids("export", finished, folder / "exported")
    return folder


TRAIN = "train --config small.json --data text.txt --out absent"
RESUME = f"train --config small.json {' '.join(map(str, SMALL))} --data text.txt --out new/run --steps 3 --resume"
REFUSED = {
    # What is not there, or cannot be read
    "count deepseek-v9": "'deepseek-v9' is neither a file nor a preset: the presets are ",
    f"{TRAIN} --config deepseek-v9": "'deepseek-v9'",
    f"{TRAIN} --data absent.txt": "absent.txt does not exist",
    "generate absent": "absent holds neither a run (checkpoint.safetensors) nor a saved model",
    "export absent model": "absent holds neither a run",
    **{f"count bad{i}.json": word for i, word in enumerate(("bad0.json", "bad1.json", "bad2.json", "gpt2", ""))},
    f"{TRAIN} --data empty.txt": "holds no text",
    f"{TRAIN} --data binary.txt": "binary.txt is not UTF-8 text",
    f"{TRAIN} --data latin.txt": "is not UTF-8 text",
    f"{TRAIN} --data few.txt": "tokens: at least 257 are needed",
    **{f"generate {kind}-{name}": name for name in ("checkpoint.safetensors", "tokenizer.json") for kind in DAMAGED},
    "export foreign model": "tokenizer.json is not a tokenizer of minids",  # before weights are looked for
    # Options
    "count tiny --context 0": "--context 0 is not possible",
    f"{TRAIN} --steps 0": "--steps 0 is not possible: it must be a whole number of at least 1.",
    f"{TRAIN} --batch-size 2 --micro-batch-size 3": "--micro-batch-size 3 is not possible: it must be 1 to",
    f"{TRAIN} --sequence-length 1": "--sequence-length 1 is not possible: it must be at least 2",  # for MTP
    f"{TRAIN} --betas 0.9 1": "--betas (0.9, 1.0)",
    f"{TRAIN} --dtype float16": "--dtype 'float16'",
    f"{TRAIN} --device abacus": "device 'abacus' is not available here",
    **{f"{TRAIN} --threads {n}": f"--threads {n} is not possible" for n in (0, 100_000)},
    f"{TRAIN} --seed {2**64}": f"--seed {2**64} is not possible",
    f"{TRAIN} --steps {'9' * 400}": f"--steps {'9' * 78} … is not possible",
    f"{TRAIN} --batch-size 99999999999": "steps of 99999999999 x 256 tokens take at least",
    f"{TRAIN} --batch-size 99999999999 --micro-batch-size 1": "steps of 99999999999 x 256 tokens take at least",
    "train --out  --data text.txt": "--out '' is not possible: it must be the name of a file or a folder.",
    f"count {'x' * 200}": "minids: 'xxx",
    f"generate new/run --seed {2**64}": f"--seed {2**64} is not possible",
    "generate new/run --tokens 99999999999999": "--tokens 99999999999999 is not possible",
    f"{TRAIN} --config deepseek-v3": "GiB",
    "generate new/run --tokens 0": "--tokens 0",
    "generate new/run --temperature nan": "--temperature nan",
    "generate new/run --top-k 513": "--top-k 513",
    "export new/run model --dtype int8": "--dtype 'int8' is not possible: it must be float32 or bfloat16.",
    # Where something else is
    f"{TRAIN} --out text.txt": "text.txt is a file",
    f"{TRAIN} --out text.txt/below": "text.txt/below/log.jsonl cannot be written: Not a directory",
    f"{TRAIN} --out exported": "exported holds a saved model",
    f"{TRAIN} --out results": "results holds report.json of something else",
    f"{TRAIN} --out tokenizer": "tokenizer.json is another tokenizer than this run's",
    f"{TRAIN} --out log": "log.jsonl is not the log of a run",
    f"{TRAIN} --out new/run": "new/run already holds a run: go on with it (--resume)",
    "export new/run new/run --overwrite": "new/run",
    "export exported exported": "overwrite",
    # Another run than the one in the folder
    f"{RESUME} --steps 4": "train.steps=3, not 4",
    f"{RESUME} --seed 1": "train.seed=0, not 1",
    f"{RESUME} --config mini-dense": "model.",
    f"{RESUME} --data other.txt": "corpus_sha256",
    f"{RESUME} --out retokenized": "tokenizer_sha256",
    "generate retokenized": "is not the one that this run was trained with",
    f"{RESUME} --out missing-log.jsonl": "missing-log.jsonl/log.jsonl does not exist",
    **{f"{RESUME} --out {kind}-log.jsonl": "does not hold the 3 steps" for kind in ("empty", "garbage")},
}


@pytest.mark.parametrize(("command", "words"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_done_is_told_in_one_sentence_and_nothing_is_written(refused, monkeypatch, command, words):
    def everything() -> dict:
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in refused.rglob("*")}

    monkeypatch.chdir(refused)
    before = everything()
    result = minids(*command.split(" "))
    assert result.exit_code == 2, result.output
    assert result.output.startswith("minids: ")
    assert result.output.count("\n") == 1
    assert len(result.output) < 700
    assert words in result.output
    assert everything() == before


@pytest.mark.parametrize("room", [1000, 100_000])  # for the tokenizer not, or for it but for no checkpoint
def test_a_full_disk_is_told_in_one_line_and_no_file_is_half_written(folder, tmp_path, room):
    out = tmp_path / "a folder\nof two lines"
    with file_size_limit(room):
        result = train(folder, "--out", out, "--steps", 2)
    assert result.exit_code == 1, result.output
    (line,) = (line for line in result.output.splitlines() if line.startswith("minids: "))
    assert "File too large" in line
    assert "a folder\\nof two lines" in line
    assert names_in(out) <= {"tokenizer.json", "log.jsonl"}
    assert train(folder, "--out", out, "--steps", 2).exit_code == 0
    assert "minids generate '" in train(folder, "--out", out, "--steps", 2, "--resume").stdout, "it can be pasted"
    with file_size_limit(room):
        assert minids("export", out, tmp_path / "model").exit_code == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("raised", [lambda: torch.empty(2**60), lambda: exec("raise MemoryError")])
def test_a_lack_of_memory_is_told_in_one_line(folder, monkeypatch, raised):
    monkeypatch.setattr("minids.training.run.start_run", lambda *_, **__: raised())
    result = train(folder, "--out", folder / "absent")
    assert (result.exit_code, result.output) == (1, "minids: there is not enough memory.\n")


def test_other_errors_are_not_told_as_something_else(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("minids.training.run.start_run", broken)
    assert isinstance(train(folder, "--out", folder / "absent").exception, RuntimeError)


def test_a_reader_who_leaves_early_is_no_error_of_the_disk():
    command = f"{sys.executable} -m minids count deepseek-v3 | true"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (finished.stdout, finished.stderr) == ("", "")
