"""The reader's own text: nothing is lost, a tenth is held out, and what is not text is named."""

import os
import re
from pathlib import Path
from unittest.mock import patch

import pytest
from configurations import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minids.text.own_text import read_texts


def write(folder: Path, texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:02}.txt").write_text(text)


def everything(corpus) -> list[str]:
    return [*corpus.train["text"], *corpus.validation["text"]]


def test_a_folder_holds_out_its_last_files_and_has_no_text_twice(tmp_path):
    texts = [f"document {i}\n" for i in range(20)]
    write(tmp_path / "subfolder", [*texts, texts[3]])
    corpus = read_texts(tmp_path)
    assert (corpus.train["text"], corpus.validation["text"]) == (texts[:18], texts[18:])
    assert (corpus.mixture, corpus.skipped) == ({"text": 1}, "")


def test_what_is_not_text_of_the_reader_s_own_is_skipped_and_counted(tmp_path):
    texts = [f"document {i}\n" for i in range(10)]
    write(tmp_path, texts)
    for hidden in (".git", ".venv"):
        write(tmp_path / hidden, ["ref: refs/heads/main\n"])
    (tmp_path / ".DS_Store").write_text("hidden")
    for i, binary in enumerate([b"\x89PNG\r\n\x1a\n\0\0", b"ab\0cd", "text".encode("utf-16"), b"caf\xe9"]):
        (tmp_path / f"{i}.bin").write_bytes(binary)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "itself").symlink_to("itself")
    for model in ("checkpoint.safetensors", "model.safetensors", "model.safetensors.index.json"):
        write(tmp_path / model.replace(".", "-"), ["a long report"])
        (tmp_path / model.replace(".", "-") / model).touch()
    corpus = read_texts(tmp_path)
    assert everything(corpus) == texts
    says = "3 hidden, 3 neither file nor folder, 4 not UTF-8 text, 3 with a run or a saved model"
    assert corpus.skipped == says
    for named in (".git", ".git/00.txt", "model-safetensors"):
        assert len("".join(everything(read_texts(tmp_path / named)))) > 5, "what is named itself is read"
    for i in range(10):
        (tmp_path / f"{i:02}.txt").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds no text (skipped: {says}): give a UTF-8 text")):
        read_texts(tmp_path)


def test_links_are_followed_once_and_to_no_end(tmp_path):
    write(tmp_path / "elsewhere", ["one", "two"])
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "deep", ["three"])
    links = {"a": "../elsewhere", "b": "../elsewhere", "loop": ".", "deep/up": "../..", "z": "deep/00.txt"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    read = []
    with patch.object(Path, "read_bytes", lambda path: read.append(path) or path.open("rb").read()):
        corpus = read_texts(folder)
    # deep/up is the folder above `data`, in which `elsewhere` was read before, under the name `a`
    assert (*everything(corpus), len(read)) == ("one\ntwo\n", "three", 3)
    assert corpus.skipped == ""


def test_a_run_inside_its_data_goes_on_with_the_same_text(tmp_path):
    """Whether it has written its checkpoint yet or not, and also if its folder is that of the text."""
    write(tmp_path, ["one", "two"])
    before = read_texts(tmp_path).sha256
    write(tmp_path / "run", ["its log"])
    own = [tmp_path / "log.jsonl", tmp_path / "absent.json", tmp_path, tmp_path / "run"]
    own[0].write_text("{}")
    assert read_texts(tmp_path, leave_out=own).sha256 == before != read_texts(tmp_path).sha256


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfline 1\n\xef\xbb\xbfline 2\n")
    assert "".join(everything(read_texts(tmp_path))) == "line 1\n\ufeffline 2\n"


@pytest.mark.parametrize("forbidden", ["listdir", "stat", "open"])
def test_what_may_not_be_read_is_named(tmp_path, monkeypatch, forbidden):
    write(tmp_path / "closed", ["text"])
    closed = tmp_path / "closed" / ("" if forbidden == "listdir" else "00.txt")
    module, real = (os, os.listdir) if forbidden == "listdir" else (Path, getattr(Path, forbidden))

    def refuse(path, *args, **options):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(module, forbidden, refuse)
    with pytest.raises(ValueError, match=f"{closed} cannot be read: Permission denied"):
        read_texts(tmp_path)


@examples(50)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=10, max_size=200))
@example("a word and another word " * 200)  # a novel on one line
@example("a\r\nb\tc\u2028深 \n\n" * 12)
@example("line 0\nline 1\n")
def test_any_text_falls_into_two_parts_and_loses_nothing(tmp_path_factory, text):
    assume(text.strip())
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    corpus = read_texts(path)
    (train,), (validation,) = corpus.train["text"], corpus.validation["text"]
    assert train + validation == text
    assert 0 < len(validation) <= len(train)


@pytest.mark.parametrize(("files", "lines"), [(1, 10), (1, 100), (9, 5)])
def test_fewer_than_ten_files_are_joined_and_hold_out_their_last_lines_whole(tmp_path, files, lines):
    texts = ["".join(f"line {line} of {file}\n" for line in range(lines)) for file in range(files)]
    write(tmp_path, texts)
    corpus = read_texts(tmp_path)
    (train,), (validation,) = corpus.train["text"], corpus.validation["text"]
    assert train + validation == "\n".join(texts)
    assert validation.startswith("line")
    assert 0.1 <= len(validation) / len(train + validation) < 0.3


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.txt", None, "absent.txt does not exist"),
        ("blank.txt", b" \n\t\n", "holds no text"),
        ("mark.txt", b"\xef\xbb\xbf", "holds no text"),
        (
            "picture.png",
            b"\x89PNG\r\n\x1a\n\0\0",
            "or has a NUL character: give a UTF-8 text file",
        ),
        ("binary.dat", b"ab\0cd", "binary.dat is not UTF-8 text"),
        ("utf16.txt", "text".encode("utf-16"), "utf16.txt is not UTF-8 text"),
        ("pipe", os.mkfifo, "pipe is neither file nor folder"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, content, says):
    path = tmp_path / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_texts(path)


def test_a_text_of_which_no_tenth_can_be_held_out_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("123456789")
    with pytest.raises(ValueError, match="a text of 9 characters is too short"):
        read_texts(tmp_path)
    (tmp_path / "a.txt").write_text("1234567890")
    assert read_texts(tmp_path).validation == {"text": ["0"]}


def test_hidden_files_are_not_even_looked_at(tmp_path, monkeypatch):
    real = os.stat

    def stat(path, *arguments, **options):
        if ".secret" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    (tmp_path / ".secret").mkdir()
    (tmp_path / "a.txt").write_text("1234567890")
    monkeypatch.setattr(os, "stat", stat)
    assert read_texts(tmp_path).skipped == "1 hidden"
