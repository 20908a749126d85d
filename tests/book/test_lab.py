"""`make lab`: the reader's copies, and the command that opens them."""

import json
import os

import pytest

from minids.book import __main__ as book

CELL = {"cell_type": "code", "id": "a", "source": "é", "metadata": {}}
NAMES = ["01_a.ipynb", "solutions/01_a.ipynb"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Where the reader's copies go; beside it are the chapters, executed."""
    monkeypatch.setattr(book, "CHAPTERS", tmp_path / "chapters")
    monkeypatch.setattr(book, "MINE", tmp_path / "my")
    for name in (*NAMES, ".ipynb_checkpoints/01_a-checkpoint.ipynb"):
        path = tmp_path / "chapters" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        executed = CELL | {"outputs": ["four"], "execution_count": 1}
        path.write_text(json.dumps({"cells": [executed]}), encoding="utf-8")
    return tmp_path / "my"


def test_new_chapters_are_copied_without_outputs_and_what_the_reader_wrote_stays(mine):
    assert book.copy_chapters(book.CHAPTERS, mine) == NAMES
    copy = json.loads((mine / "01_a.ipynb").read_text(encoding="utf-8"))
    assert copy["cells"] == [CELL | {"outputs": [], "execution_count": None}]
    (mine / "01_a.ipynb").write_text("my answers")
    (mine / "solutions" / "01_a.ipynb").unlink()
    assert book.copy_chapters(book.CHAPTERS, mine) == NAMES[1:]
    assert (mine / "01_a.ipynb").read_text() == "my answers"


def test_jupyterlab_opens_the_first_copy_on_this_machine_only_and_without_news(mine, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *process: started.extend(process))
    book.lab(["--no-browser"])
    _, command, environment = started
    assert {"--ip=127.0.0.1", "--no-browser", f"--ServerApp.root_dir={mine.parent}"} <= set(command)
    assert "--LabApp.default_url=/lab/tree/my/01_a.ipynb" in command
    folder = environment["JUPYTER_CONFIG_PATH"].split(os.pathsep)[0]
    config = json.loads((mine.parent / folder / "labconfig" / "page_config.json").read_text())
    assert config["disabledExtensions"] == {"@jupyterlab/apputils-extension:announcements": True}
