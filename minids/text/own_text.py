"""The reader's own text as a corpus, from a file or a folder.

A tenth is held out for validation: the last files of a folder in sorted order or, if there are fewer than
ten files, the last lines of all of them joined.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from minids.text.corpus import Corpus

WANTED = "give a UTF-8 text file or a folder of them"
MODEL_FILES = {"checkpoint.safetensors", "model.safetensors", "model.safetensors.index.json"}  # of a run, of a model


def read_texts(path: str | Path, leave_out: Iterable[str | Path] = ()) -> Corpus:
    """Return a corpus of one domain, 'text', from a UTF-8 file or a folder of them, subfolders and links included.

    In a folder these are skipped, and counted in the corpus's `skipped`: hidden files and folders, files that are not
    UTF-8 text, subfolders that hold a run or a saved model, and what is neither file nor folder, such as a named pipe
    or a link that leads nowhere. Blank files, copies of a file, and the files and subfolders to `leave_out` are left
    out and not counted. A byte-order mark is removed. Raises ValueError for a path that is missing or has too little
    text to hold any of it out, for a single file that is not UTF-8 text, and for what cannot be read.
    """
    path, skipped, documents = Path(path), Counter(), {}
    for file in _files(path, leave_out, skipped):
        text = _read_text(file)
        if text is None and file == path:
            raise ValueError(f"{path} is not UTF-8 text, or has a NUL character: {WANTED}.")
        if text is None:
            skipped["not UTF-8 text"] += 1
        elif text and not text.isspace():
            documents.setdefault(text)
    in_words = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
    if not documents:
        raise ValueError(f"{path} holds no text{in_words and f' (skipped: {in_words})'}: {WANTED}.")
    return Corpus(*_split(list(documents)), {"text": 1}, in_words)


def _split(documents: list[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the training and the validation text."""
    if len(documents) < 10:
        text = "\n".join(documents)
        tenth = len(text) - len(text) // 10
        cut = text.rfind("\n", len(text) // 2, tenth) + 1 or tenth  # at the end of a line, if there are lines
        if not text[cut:]:
            raise ValueError(f"a text of {len(text)} characters is too short: a tenth of them is held out.")
        return {"text": [text[:cut]]}, {"text": [text[cut:]]}
    cut = len(documents) - len(documents) // 10
    return {"text": documents[:cut]}, {"text": documents[cut:]}


def _files(root: Path, leave_out: Iterable[str | Path], skipped: Counter[str]) -> Iterator[Path]:
    """Yield a file, or the files below a folder in sorted order, none twice, and count what is skipped."""
    seen = {identity for identity, _ in map(_look, map(Path, leave_out))}
    waiting = [root]
    while waiting:
        path = waiting.pop()
        inside = path != root
        if inside and path.name.startswith("."):
            skipped["hidden"] += 1
            continue
        identity, mode = _look(path)
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            if not inside:
                raise ValueError(f"{path} {'is neither file nor folder' if mode else 'does not exist'}: {WANTED}.")
            skipped["neither file nor folder"] += 1  # such as a named pipe: opening it would block for ever
        elif inside and identity in seen:
            continue  # to be left out, or already seen under another name
        elif stat.S_ISREG(mode):
            seen.add(identity)
            yield path
        elif inside and not MODEL_FILES.isdisjoint(_names(path)):
            skipped["with a run or a saved model"] += 1
        else:
            seen.add(identity)
            waiting += [path / name for name in reversed(_names(path))]


def _look(path: Path) -> tuple[tuple[int, int] | None, int]:
    """Return the file's identity (device, inode) and its mode; (None, 0) if there is no such file."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None, 0
        raise _unreadable(path, error) from None
    return (status.st_dev, status.st_ino), status.st_mode


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise _unreadable(folder, error) from None


def _read_text(path: Path) -> str | None:
    """Return the content of a file; None if it is not UTF-8 text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    return None if "\0" in text else text


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path} cannot be read: {error.strerror}.")
