"""A small text, small models, and a finished run, on which the tests of the command line work."""

import json
from pathlib import Path

import pytest
from helpers_cli import SMALL, minids_without
from helpers_training import small_config


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A text, and the configurations of a model of two layers and of a dense one."""
    folder = tmp_path_factory.mktemp("cli")
    lines = [f"Line {i} of a small text, and {7 * i} is a number.\n" for i in range(120)]
    (folder / "text.txt").write_text("".join(lines))
    (folder / "small.json").write_text(json.dumps(small_config().to_hf()))
    dense = small_config(n_routed_experts=None, num_nextn_predict_layers=0)
    (folder / "dense.json").write_text(json.dumps(dense.to_hf()))
    return folder


@pytest.fixture(scope="session")
def finished(folder) -> Path:
    """A run of three steps in a process that can load nothing of notebooks and experiments; beside, what it printed."""
    out = folder / "new" / "run"
    arguments = ["--config", folder / "small.json", *SMALL, "--data", folder / "text.txt", "--out", out, "--steps", 3]
    printed = minids_without("IPython ipywidgets minids.book.experiments", "train", *arguments)
    (folder / "new" / "printed").write_text(printed)
    return out
