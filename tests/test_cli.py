"""The command line from outside: exit codes, what is printed where, and which files are there afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_training import assert_bitwise_equal
from tokenizers import Tokenizer as Backend
from tokenizers import models
from typer.testing import CliRunner, Result

from minids.__main__ import app
from minids.hub.hub import load_pretrained
from minids.model.config import ModelConfig
from minids.text.data import Corpus, arithmetic_documents
from minids.text.tokenizer import END_OF_TEXT, Tokenizer
from minids.training.checkpoint import load_checkpoint
from minids.training.trainer import Trainer, read_log

FILES = {"checkpoint.safetensors", "tokenizer.json", "log.jsonl", "report.json", "loss.png", "experts.png"}


def minids(*arguments, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def train(*arguments) -> Result:
    small = ["--config", "tiny", "--sequence-length", 32, "--batch-size", 2, "--threads", 1, "--dtype", "float32"]
    return minids("train", *small, *arguments)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_one_sentence(result: Result, *words: str) -> None:
    """Exit code 2 and a single line."""
    assert result.exit_code == 2, result.output
    assert result.output.startswith("minids: ")
    assert result.output.count("\n") == 1
    for word in words:
        assert word in result.output


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"Line {i} of a small text, and {7 * i} is a number.\n" for i in range(120)))
    return path


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory) -> Path:
    """A run of three steps."""
    out = tmp_path_factory.mktemp("runs") / "new" / "run"
    result = train("--data", text, "--out", out, "--steps", 3)
    assert result.exit_code == 0, result.output
    assert "held-out bits per byte" in result.stdout
    assert "minids generate" in result.stdout
    return out


# ---------------------------------------------------------------------------------------------------
# Help and count


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["train", "generate", "export", "count"]),
        (["train"], ["--config", "--data", "--out", "--resume", "--steps", "--threads"]),
        (["generate"], ["--prompt", "--tokens", "--temperature", "--top-k", "--seed"]),
        (["export"], ["--dtype", "bfloat16"]),
        (["count"], ["--context", "deepseek-v3"]),
    ],
)
def test_every_command_explains_itself(command, words, flag, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = minids(*command, flag)
    assert result.exit_code == 0
    assert all(word in result.stdout for word in words)


def test_without_a_command_help_is_shown():
    assert "Usage" in minids().output


def test_count_gives_the_published_number_of_parameters():
    lines = minids("count", "deepseek-v3").stdout.splitlines()
    numbers = {line[:28].strip(): line[28:].split()[0] for line in lines}
    assert numbers["total"] == "671,026,419,200"
    assert numbers["active: body + head"] == "36,625,618,432"
    assert numbers["MTP, on top of the total"] == "11,610,068,224"
    assert numbers["cache per token, BF16"] == f"{2 * 35_136:,}"
    assert numbers["training, per token"] == "250.46"


def test_count_reads_a_config_json_or_its_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ModelConfig.preset("deepseek-v2").to_hf()))
    outputs = [minids("count", name).stdout for name in ("deepseek-v2", tmp_path, tmp_path / "config.json")]
    assert "235,741,434,880" in outputs[0]
    assert len(set(outputs)) == 1


def test_the_context_scales_the_cache():
    """The cache of V3: 70,272 bytes a token."""
    output = minids("count", "deepseek-v3", "--context", 131072).stdout
    assert f"{70_272 * 131_072 / 2**30:.2f} GiB at 131,072 tokens" in output


def test_an_unknown_preset_is_told_with_those_that_exist(tmp_path):
    for command in (["count", "deepseek-v9"], ["train", "--config", "deepseek-v9", "--out", tmp_path / "run"]):
        assert_one_sentence(minids(*command), "'deepseek-v9'", "deepseek-v3", "mini")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "gpt2"}', '{"model_type": "deepseek_v3"}'])
def test_a_config_that_cannot_be_read_is_told_in_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert_one_sentence(minids("count", tmp_path / "config.json"))


def test_a_context_of_nothing_is_refused():
    assert_one_sentence(minids("count", "tiny", "--context", 0), "--context 0")


# ---------------------------------------------------------------------------------------------------
# Training


def test_a_run_leaves_all_its_files_and_no_others(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    assert load_checkpoint(finished / "checkpoint.safetensors").step == 3
    assert [record["step"] for record in read_log(finished / "log.jsonl")] == [0, 1, 2]
    for name in ("loss.png", "experts.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((finished / "report.json").read_text())
    assert report["preset"] == "tiny"
    assert report["train"]["steps"] == 3
    assert set(report["bits_per_byte"]) == {"text", "all"}


def test_the_same_command_gives_the_same_run_and_resume_begins_one_where_there_is_none(finished, text, tmp_path):
    train("--data", text, "--out", tmp_path / "again", "--steps", 3, "--resume")
    ours, theirs = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (tmp_path / "again", finished))
    assert_bitwise_equal(ours.tensors, theirs.tensors)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (finished / "tokenizer.json").read_bytes()


def test_another_seed_gives_another_run(finished, text, tmp_path):
    train("--data", text, "--out", tmp_path / "other", "--steps", 3, "--seed", 1)
    ours, theirs = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (tmp_path / "other", finished))
    assert not ours.tensors["model.lm_head.weight"].equal(theirs.tensors["model.lm_head.weight"])


def test_a_run_without_a_named_folder_goes_to_runs_and_its_preset(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train("--data", text, "--steps", 2)
    assert result.exit_code == 0
    assert {path.name for path in (tmp_path / "runs" / "tiny").iterdir()} == FILES


def test_a_dense_model_has_no_picture_of_its_experts(text, tmp_path):
    config = ModelConfig.preset("tiny").to_hf() | {"n_routed_experts": None, "num_nextn_predict_layers": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = train("--config", tmp_path / "config.json", "--data", text, "--out", tmp_path / "run", "--steps", 2)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - {"experts.png"}


def test_a_single_step_is_a_run_too(text, tmp_path):
    result = train("--data", text, "--out", tmp_path / "run", "--steps", 1)
    assert result.exit_code == 0, result.exception
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_another_corpus_than_the_book_s_is_told_and_trained_on(tmp_path, monkeypatch):
    documents = {
        split: {
            "prose": ["Return the sum of all the elements.\n" * 20],
            "code": ["def f(x):\n    return x + 1\n" * 20],
            "arithmetic": arithmetic_documents(split, 8),
        }
        for split in ("train", "validation")
    }
    corpus = Corpus(documents["train"], documents["validation"], {"prose": 1, "code": 1, "arithmetic": 1})
    monkeypatch.setattr("minids.__main__.load_corpus", lambda: corpus)
    result = train("--out", tmp_path / "run", "--steps", 2)
    assert result.exit_code == 0, result.exception
    assert re.search(r"(?m)^.*corpus.* differs .*$", result.stdout)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["samples"]) == {"prose", "code", "arithmetic"}
    assert report["arithmetic_accuracy"] is not None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["does not exist"]),
        (b"", ["holds no text"]),
        (b"ab\0cd", ["is a binary file"]),
        (b"\xff\xfe\x00", ["is not UTF-8 text"]),
        (b"too short\n" * 2, ["tokens: at least 33 are needed"]),
    ],
    ids=["missing", "empty", "binary", "not UTF-8", "too short"],
)
def test_data_that_cannot_be_used_is_told_in_one_line_and_nothing_is_written(tmp_path, content, words):
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    before = set(tmp_path.rglob("*"))
    assert_one_sentence(train("--data", path, "--out", tmp_path / "run", "--steps", 2), *words)
    assert set(tmp_path.rglob("*")) == before


def test_a_text_of_one_line_trains_or_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("a word and another word " * 100)
    result = train("--data", path, "--out", tmp_path / "run", "--steps", 2)
    if result.exit_code:
        assert_one_sentence(result)
        assert not (tmp_path / "run").exists()
    else:
        assert {file.name for file in (tmp_path / "run").iterdir()} == FILES


def test_a_small_text_whose_held_out_part_is_shorter_than_a_row_is_reported_too(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("".join(f"Line {i} of a small text, and {7 * i} is a number.\n" for i in range(40)))
    result = train("--data", path, "--out", tmp_path / "run", "--steps", 2, "--sequence-length", 256)
    assert result.exit_code == 0, result.exception


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--steps", 0, "steps=0"),
        ("--batch-size", 0, "batch_size=0"),
        ("--micro-batch-size", 3, "micro_batch_size=3"),
        ("--sequence-length", 0, "sequence_length=0"),
        ("--sequence-length", 1, "sequence_length=1"),  # the MTP module would have nothing to predict
        ("--learning-rate", "nan", "learning_rate=nan"),
        ("--save-every", 0, "save_every=0"),
        ("--seed", -1, "seed=-1"),
        ("--dtype", "float16", "dtype='float16'"),
        ("--device", "abacus", "--device abacus"),
        ("--threads", 0, "--threads 0"),
        ("--config", "deepseek-v3", "GiB"),
    ],
)
def test_a_setting_that_cannot_work_is_told_in_one_line_and_nothing_is_written(text, tmp_path, option, value, word):
    result = train("--data", text, "--out", tmp_path / "run", option, value)
    assert_one_sentence(result, word)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_cannot_be_a_folder_is_told_in_one_line(text, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    assert_one_sentence(train("--data", text, "--out", tmp_path / out, "--steps", 1), "file")
    assert (tmp_path / "file").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------
# Stopping and going on


def test_an_existing_run_is_not_overwritten(finished, text):
    before = files_in(finished)
    assert_one_sentence(train("--data", text, "--out", finished, "--steps", 3), "already holds a run", "--resume")
    assert files_in(finished) == before


def test_resuming_a_finished_run_evaluates_it_again_and_trains_neither_model_nor_tokenizer(finished, text, monkeypatch):
    before = files_in(finished)
    monkeypatch.delattr(Tokenizer, "train")
    monkeypatch.delattr(Trainer, "train_step")
    result = train("--data", text, "--out", finished, "--steps", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert "the run is complete" in result.stdout
    after = files_in(finished)
    assert set(after) == FILES
    for name in ("checkpoint.safetensors", "log.jsonl", "tokenizer.json", "loss.png", "experts.png"):
        assert after[name] == before[name], name
    reports = [json.loads(content["report.json"]) for content in (before, after)]
    assert reports[0] | {"seconds": 0} == reports[1] | {"seconds": 0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--steps", 4], "train.steps=3, not 4"),
        (["--steps", 3, "--seed", 1], "train.seed=0, not 1"),
        (["--steps", 3, "--config", "mini-dense"], "model."),
    ],
)
def test_resuming_with_other_settings_is_refused_and_changes_nothing(finished, text, changes, named):
    before = files_in(finished)
    assert_one_sentence(train("--data", text, "--out", finished, "--resume", *changes), named)
    assert files_in(finished) == before


def test_resuming_with_another_text_is_refused_and_changes_nothing(finished, text, tmp_path):
    (tmp_path / "other.txt").write_text(text.read_text().replace("small", "large"))
    before = files_in(finished)
    result = train("--data", tmp_path / "other.txt", "--out", finished, "--steps", 3, "--resume")
    assert_one_sentence(result, "corpus_sha256")
    assert files_in(finished) == before


def stop_in_step(monkeypatch, step: int, how) -> None:
    """Let `how` happen in the middle of that step, once."""
    real = Trainer._accumulate_gradients

    def strike(self, *arguments):
        if self.step == step:
            monkeypatch.setattr(Trainer, "_accumulate_gradients", real)
            how()
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "_accumulate_gradients", strike)


def test_ctrl_c_saves_and_says_how_to_go_on_and_the_resumed_run_is_the_straight_one(
    finished, text, tmp_path, monkeypatch
):
    command = ["--data", text, "--out", tmp_path / "run", "--steps", 3]
    stop_in_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    result = train(*command)
    assert result.exit_code == 130
    assert "stopped after step 2 of 3; saved" in result.stderr
    assert "--resume" in result.stderr
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").step == 2
    assert "report.json" not in files_in(tmp_path / "run")
    result = train(*command, "--resume")
    assert result.exit_code == 0
    assert "going on from step 2" in result.stdout
    ours, theirs = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (tmp_path / "run", finished))
    assert_bitwise_equal(ours.tensors, theirs.tensors)
    losses = [[r["loss"] for r in read_log(folder / "log.jsonl")] for folder in (tmp_path / "run", finished)]
    assert losses[0] == losses[1]


def test_an_interrupt_at_once_exits_with_130_too(text, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    stop_in_step(monkeypatch, 1, interrupt)
    result = train("--data", text, "--out", tmp_path / "run", "--steps", 3, "--save-every", 1)
    assert result.exit_code == 130
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").step == 1


def test_a_diverged_run_exits_with_1_and_keeps_its_checkpoint(text, tmp_path):
    out = tmp_path / "run"
    result = train("--data", text, "--out", out, "--steps", 9, "--learning-rate", 1e30, "--save-every", 1)
    assert result.exit_code == 1
    (sentence,) = (line for line in result.stderr.splitlines() if line.startswith("minids: "))
    assert "diverged at step" in sentence
    assert "learning rate below 1e+30" in sentence
    assert f"The checkpoint in {out} is intact." in sentence
    assert load_checkpoint(out / "checkpoint.safetensors").step == len(read_log(out / "log.jsonl"))
    assert "report.json" not in files_in(out)


def test_a_run_that_died_before_its_first_checkpoint_leaves_nothing_in_the_next_one_s_log(text, tmp_path, monkeypatch):
    def die():
        raise MemoryError

    stop_in_step(monkeypatch, 2, die)
    command = ["--data", text, "--out", tmp_path / "run", "--steps", 3, "--resume"]
    assert isinstance(train(*command).exception, MemoryError)
    assert train(*command).exit_code == 0
    assert [record["step"] for record in read_log(tmp_path / "run" / "log.jsonl")] == [0, 1, 2]


def test_a_finished_run_whose_log_is_lost_is_reported_or_refused_in_one_line(finished, text, tmp_path):
    for name in ("checkpoint.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    result = train("--data", text, "--out", tmp_path, "--steps", 3, "--resume")
    assert result.exit_code in (0, 2), result.exception


# ---------------------------------------------------------------------------------------------------
# Generation


def test_generate_continues_the_prompt_of_a_run(finished):
    result = minids("generate", finished, "--prompt", "Line 7 of größe", "--tokens", 12, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Line 7 of größe")


def test_the_same_seed_writes_the_same_text_and_greedy_needs_none(finished):
    sampled = [
        minids("generate", finished, "--tokens", 20, "--temperature", 1, "--seed", seed).stdout for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert len({minids("generate", finished, "--tokens", 8, "--seed", seed).stdout for seed in (1, 2)}) == 1


def test_a_dash_reads_the_prompt_from_standard_input(finished):
    named = minids("generate", finished, "--prompt", "Line\n7", "--tokens", 8).stdout
    assert minids("generate", finished, "--prompt", "-", "--tokens", 8, stdin="Line\n7").stdout == named


def test_an_empty_prompt_is_a_prompt(finished):
    assert minids("generate", finished, "--prompt", "", "--tokens", 8).exit_code == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--tokens", 0], "max_new_tokens=0"),
        (["--temperature", -1], "temperature=-1"),
        (["--temperature", "nan"], "temperature=nan"),
        (["--top-k", 0], "top_k=0"),
        (["--top-k", 513], "top_k=513"),
        (["--threads", 0], "--threads 0"),
    ],
)
def test_generation_that_cannot_work_is_told_in_one_line(finished, options, word):
    assert_one_sentence(minids("generate", finished, *options), word)


def test_generating_without_a_run_is_told_in_one_line(tmp_path):
    assert_one_sentence(minids("generate", tmp_path / "absent"), "absent", "neither a run", "nor a saved model")


def test_the_model_that_comes_along_writes_without_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = minids("generate", "reference", "--tokens", 4)
    assert result.exit_code == 0, result.output
    assert len(result.stdout) > len("Return the\n")


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"garbage"], ids=["missing", "empty", "garbage"])
def test_a_damaged_run_is_told_in_one_line(finished, tmp_path, name, content):
    for file, old in files_in(finished).items():
        (tmp_path / file).write_bytes(old)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_one_sentence(minids("generate", tmp_path), name)


def test_a_tokenizer_of_another_kind_is_told_in_one_line_before_the_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ModelConfig.preset("tiny").to_hf()))
    Backend(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    for command in (["generate", tmp_path], ["export", tmp_path, tmp_path / "model"]):
        result = minids(*command)
        assert_one_sentence(result, f"{tmp_path / 'tokenizer.json'} is no tokenizer of minids", END_OF_TEXT)


# ---------------------------------------------------------------------------------------------------
# Export


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_run_is_the_trained_model_and_writes_its_text(finished, tmp_path, dtype):
    out = tmp_path / "model"
    result = minids("export", finished, out, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in files_in(out))
    trained = load_checkpoint(finished / "checkpoint.safetensors").tensors
    exported = load_pretrained(out).state_dict()
    for name, tensor in exported.items():
        expected = trained[f"model.{name}"]
        rounded = expected if dtype == "float32" or name.endswith("expert_bias") else expected.bfloat16().float()
        assert torch.equal(tensor, rounded)
    if dtype == "float32":
        assert minids("generate", out, "--tokens", 8).stdout == minids("generate", finished, "--tokens", 8).stdout


def test_an_export_brings_the_report_of_the_run_or_of_the_model_that_it_converts(finished, tmp_path):
    assert minids("export", finished, tmp_path / "model").exit_code == 0
    assert minids("export", tmp_path / "model", tmp_path / "again").exit_code == 0
    report = json.loads((finished / "report.json").read_text())
    assert json.loads((tmp_path / "model" / "report.json").read_text()) == report
    assert json.loads((tmp_path / "again" / "report.json").read_text()) == report


def test_a_run_that_has_no_report_yet_is_exported_without(finished, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("checkpoint.safetensors", "tokenizer.json"):
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes())
    assert minids("export", tmp_path / "run", tmp_path / "model").exit_code == 0
    assert not (tmp_path / "model" / "report.json").exists()


def test_exporting_twice_replaces_and_a_run_is_never_replaced(finished, tmp_path):
    for _ in range(2):
        assert minids("export", finished, tmp_path / "model").exit_code == 0
    before = files_in(finished)
    assert_one_sentence(minids("export", tmp_path / "model", finished), str(finished))
    assert files_in(finished) == before


@pytest.mark.parametrize("dtype", ["float16", "int8", ""])
def test_another_dtype_is_refused(finished, tmp_path, dtype):
    assert_one_sentence(minids("export", finished, tmp_path / "model", "--dtype", dtype), "float32")
    assert not (tmp_path / "model").exists()


def test_exporting_without_a_run_is_told_in_one_line(tmp_path):
    assert_one_sentence(minids("export", tmp_path / "absent", tmp_path / "model"), "absent")


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "minids", "count", "tiny"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == minids("count", "tiny").stdout
