"""The reader's own text: nothing is lost, a tenth is held out, and what is not text is named."""

from pathlib import Path

import pytest
from configurations import examples
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minids.text.own_text import read_texts


def write(folder: Path, texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:02}.txt").write_text(text)


def test_a_folder_holds_out_its_last_files_and_skips_hidden_and_repeated_ones(tmp_path):
    texts = [f"document {i}\n" for i in range(20)]
    write(tmp_path / "subfolder", [*texts, texts[3]])
    (tmp_path / ".DS_Store").write_bytes(b"\0\xff")
    corpus = read_texts(tmp_path)
    assert (corpus.train["text"], corpus.validation["text"]) == (texts[:18], texts[18:])
    assert corpus.mixture == {"text": 1}


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
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0", "picture.png is not UTF-8 text"),
        ("binary.dat", b"ab\0cd", "binary.dat is a binary file: give UTF-8 text"),
        ("utf16.txt", "text".encode("utf-16"), "utf16.txt is not UTF-8 text"),
    ],
)
def test_what_is_not_text_is_named_also_in_a_folder(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for asked in [path, tmp_path] if "text" in says and content else [path]:
        with pytest.raises(ValueError, match=says):
            read_texts(asked)
