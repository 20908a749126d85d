"""The reader's own text as a corpus, from a file or a folder.

A tenth is held out for validation: the last files of a folder in sorted order or, if there are fewer than
ten files, the last lines of all of them joined.
"""

from pathlib import Path

from minids.text.corpus import Corpus


def read_texts(path: str | Path) -> Corpus:
    """Return a corpus of one domain, 'text', from a UTF-8 file or a folder of them, subfolders included.

    Hidden files, blank files and copies of a file are left out. Raises ValueError for a path that is missing or has
    no text, and for a file that is not UTF-8 text.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a UTF-8 text file or a folder of them.")
    files = (
        sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
    )
    documents = list(dict.fromkeys(text for text in map(_read_text, files) if text.strip()))
    if not documents:
        raise ValueError(f"{path} holds no text: give a UTF-8 text file or a folder of them.")
    if len(documents) < 10:
        text = "\n".join(documents)
        tenth = len(text) - len(text) // 10
        cut = text.rfind("\n", len(text) // 2, tenth) + 1 or tenth  # at the end of a line, if there are lines
        train, validation = [text[:cut]], [text[cut:]]
    else:
        cut = len(documents) - len(documents) // 10
        train, validation = documents[:cut], documents[cut:]
    return Corpus({"text": train}, {"text": validation}, {"text": 1})


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: convert it or leave it out.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    if "\0" in text:
        raise ValueError(f"{path} is a binary file: give UTF-8 text.")
    return text
