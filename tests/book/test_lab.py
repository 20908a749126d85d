"""`make lab`: the reader's copies, and the command that opens them."""

import json
import os

import pytest

from minids.book import __main__ as book


@pytest.fixture
def chapters(tmp_path):
    folder = tmp_path / "chapters"
    for name in ("01_a.ipynb", "solutions/01_a.ipynb", ".ipynb_checkpoints/01_a-checkpoint.ipynb"):
        cell = {
            "cell_type": "code",
            "id": "a",
            "source": "é",
            "outputs": ["four"],
            "execution_count": 1,
            "metadata": {},
        }
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    return folder


def test_what_is_new_is_copied_without_outputs(chapters, tmp_path):
    assert book.copy_chapters(chapters, tmp_path / "my") == ["01_a.ipynb", "solutions/01_a.ipynb"]
    copy = json.loads((tmp_path / "my" / "01_a.ipynb").read_text(encoding="utf-8"))
    assert copy["cells"] == [
        {"cell_type": "code", "id": "a", "source": "é", "outputs": [], "execution_count": None, "metadata": {}}
    ]


def test_what_the_reader_wrote_stays(chapters, tmp_path):
    book.copy_chapters(chapters, tmp_path / "my")
    mine = tmp_path / "my" / "01_a.ipynb"
    mine.write_text("my answers")
    (tmp_path / "my" / "solutions" / "01_a.ipynb").unlink()
    assert book.copy_chapters(chapters, tmp_path / "my") == ["solutions/01_a.ipynb"]
    assert mine.read_text() == "my answers"


def test_jupyterlab_opens_the_first_copy_on_this_machine_only_and_without_news(chapters, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(book, "CHAPTERS", chapters)
    monkeypatch.setattr(book, "MINE", tmp_path / "my")
    monkeypatch.setattr(
        os, "execve", lambda program, command, environment: seen.update(command=command, env=environment)
    )
    book.lab(["--no-browser"])
    assert {"--ip=127.0.0.1", "--no-browser", f"--ServerApp.root_dir={tmp_path}"} <= set(seen["command"])
    assert "--LabApp.default_url=/lab/tree/my/01_a.ipynb" in seen["command"]
    config = tmp_path / "my" / ".jupyter" / "labconfig" / "page_config.json"
    assert seen["env"]["JUPYTER_CONFIG_PATH"].startswith(str(config.parents[1]))
    assert json.loads(config.read_text())["disabledExtensions"] == {
        "@jupyterlab/apputils-extension:announcements": True
    }
