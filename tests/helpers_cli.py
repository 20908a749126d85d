"""The command line, called in this process or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from typer.testing import CliRunner, Result

from minids.__main__ import app
from minids.training.checkpoint import load_checkpoint

FILES = {"checkpoint.safetensors", "tokenizer.json", "log.jsonl", "report.json", "dashboard.png"}
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


def train(folder: Path, *arguments) -> Result:
    """Train as the finished run was, unless the arguments say otherwise."""
    return minids("train", "--config", folder / "small.json", *SMALL, "--data", folder / "text.txt", *arguments)


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoint.safetensors").tensors


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
