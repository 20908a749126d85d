"""What the command line refuses, each in one line, and what it leaves as it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_cli import SMALL, minids, names_in, train
from helpers_training import file_size_limit, small_config
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from minids.text.tokenizer import Tokenizer

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
    (folder / "unreadable").mkdir()
    (folder / "unreadable" / "tokenizer.json").write_text("{")
    (folder / "retokenized" / "tokenizer.json").unlink()
    shutil.copy(folder / "tokenizer" / "tokenizer.json", folder / "retokenized")
    (folder / "somebody").mkdir()
    (folder / "somebody" / "config.json").write_text('{"my": "settings"}')
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
    f"{TRAIN} --data {'y' * 5000}": "yyy cannot be read: File name too long",
    "generate absent": "absent holds neither a run (checkpoint.safetensors, checkpoint) nor a saved model",
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
    "export new/run model --dtype int8": "--dtype 'int8' is not possible: it must be bfloat16, float32 or fp8.",
    "export new/run model --dtype fp8 --fp8-block 0": "--fp8-block 0 is not possible: it must be a whole number of at",
    "export new/run model --fp8-block 16": "--fp8-block 16 is not possible: it must be left out unless",
    f"{TRAIN} --dtype fp8 --fp8-block 0": "--fp8-block 0 is not possible: it must be a whole number of at least 1.",
    # Where something else is
    f"{TRAIN} --out text.txt": "text.txt is a file",
    f"{TRAIN} --out text.txt/below": "text.txt/below/log.jsonl cannot be written: Not a directory",
    f"{TRAIN} --out exported": "exported holds a saved model",
    f"{TRAIN} --out results": "results holds report.json but no run",
    f"{TRAIN} --out tokenizer": "tokenizer.json is not this run's tokenizer",
    f"{TRAIN} --out unreadable": "tokenizer.json is not this run's tokenizer",
    f"{TRAIN} --out log": "log.jsonl is not the log of a run",
    f"{TRAIN} --out new/run": "new/run already holds a run: resume it (--resume)",
    "export new/run new/run --overwrite": "new/run",
    "export exported exported": "overwrite",
    "export new/run somebody --overwrite": "somebody is no saved model",
    "generate new/run --prompt -": "the prompt on standard input is too long",
    # Another run than the one in the folder
    f"{RESUME} --steps 4": "train.steps=3, not 4",
    f"{RESUME} --seed 1": "train.seed=0, not 1",
    f"{RESUME} --dtype fp8": "train.dtype='float32', not 'fp8'",
    f"{RESUME} --config mini-dense": "model.",
    f"{RESUME} --data other.txt": "was made with another text",
    f"{RESUME} --out retokenized": "was made with another tokenizer",
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
    result = minids(*command.split(" "), stdin="a" * 100_001)
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
