"""The book's corpus: text for the miniature that needs no download and is the same on every machine.

It is read from the sources of two pure-Python packages that torch requires, sympy and networkx, pinned to
exact versions. It has three domains; their labels show later which experts specialise in which domain:

    prose        the docstrings, without their doctest examples
    code         the sources, without the docstrings
    arithmetic   generated problems with their answers (`arithmetic.py`)

Validation text must not occur in the training text. So whole sub-packages are held out, all text of a file belongs to
one split, and validation text that repeats training text is dropped.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minids.files import read_json, write_atomically
from minids.text.arithmetic import arithmetic_documents
from minids.validation import require

SOURCES = {"sympy": "1.14.0", "networkx": "3.6.1"}
# The hash of the corpus that the book's results were measured on. It identifies the version of the extraction: a change
# of what is extracted needs the new hash here. The cache file is named after it.
CORPUS_SHA256 = "58f4a04b46e9327d250934bd89c5f303eb897a00365ce3f16e08c9ab86f0b00b"
# Sub-packages whose files are for validation only.
HELD_OUT = (
    "sympy/geometry", "sympy/series", "sympy/sets", "sympy/logic", "sympy/vector",
    "networkx/linalg", "networkx/utils", "networkx/algorithms/community", "networkx/algorithms/connectivity",
)  # fmt: skip
# Tests and benchmarks repeat themselves, and the output of a parser generator is neither prose nor code.
LEFT_OUT = {"tests", "benchmarks", "_antlr", "autolev"}
# A heading in a docstring: a line, and a line of dashes or the like below it.
HEADING = re.compile(r"(?m)^.*\n[ \t]*[-=~^]{3,}[ \t]*$\n*")
# Training rows of each domain out of 20.
MIXTURE = {"prose": 9, "code": 6, "arithmetic": 5}
LARGEST_CACHE = 64 << 20  # bytes; the corpus has a quarter of that
ARITHMETIC_DOCUMENTS = {"train": 10_000, "validation": 200}


@dataclass(frozen=True)
class Corpus:
    """Documents by split and domain: `train["prose"]` is a list of texts. `mixture` gives training rows per domain.

    `skipped` says what was skipped in the reader's own folder, such as '3 hidden, 1 not UTF-8 text'.
    """

    train: Mapping[str, list[str]]
    validation: Mapping[str, list[str]]
    mixture: Mapping[str, int]
    skipped: str = ""

    @cached_property
    def sha256(self) -> str:
        """The hash of all documents with their splits and domains."""
        digest = hashlib.sha256()
        for part in json.JSONEncoder(sort_keys=True).iterencode([self.train, self.validation]):
            digest.update(part.encode())
        return digest.hexdigest()

    def only(self, *domains: str) -> Corpus:
        """Return the corpus of these domains alone, in equal parts; ValueError for a domain that it does not have."""
        for domain in domains:
            require("domain", domain, domain in self.train, " or ".join(self.train))
        train, validation = ({d: documents[d] for d in domains} for documents in (self.train, self.validation))
        return Corpus(train, validation, dict.fromkeys(domains, 1))


def load_corpus() -> Corpus:
    """Return the book's corpus, extracted once and cached.

    The cache is in `$MINIDS_CACHE`, or else in `~/.cache/minids`. If the cache cannot be written, or the hash is
    not the recorded one, the corpus is extracted each time. Raises ValueError if a source package has another version.
    """
    for package, version in SOURCES.items():
        found = importlib.metadata.version(package)
        if found != version:
            raise ValueError(f"{package} {found} is installed: the corpus needs {package}=={version} exactly.")
    path = _cache_file()
    if path is not None and (cached := _read_cache(path)) is not None:
        return cached
    splits = extract_documents()
    corpus = Corpus(splits["train"], splits["validation"], MIXTURE)
    if path is not None and corpus.sha256 == CORPUS_SHA256:
        with suppress(OSError):  # a read-only home is not an error
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(splits))
    return corpus


def _cache_file() -> Path | None:
    """Return where the corpus is cached; None for a user without a home."""
    try:
        folder = Path(os.environ.get("MINIDS_CACHE") or "~/.cache/minids").expanduser()
    except RuntimeError:
        return None
    # Checkouts with different extractions use different files.
    return folder / f"corpus-{CORPUS_SHA256[:16]}.json"


def _read_cache(path: Path) -> Corpus | None:
    """Return the corpus in a cache file; None if the file is missing, damaged, or holds another corpus."""
    try:
        splits = read_json(path, LARGEST_CACHE)
        corpus = Corpus(splits["train"], splits["validation"], MIXTURE)
        return corpus if corpus.sha256 == CORPUS_SHA256 else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def extract_documents() -> dict[str, dict[str, list[str]]]:
    """Read the installed sources and return documents by split and domain, in sorted order.

    A paragraph (text between blank lines) that was seen before is dropped, because a model would memorise what one
    package repeats a hundred times. Validation also loses every longer line that occurs in training.
    """
    splits = {split: {"prose": [], "code": []} for split in ("train", "validation")}
    paragraphs: set[str] = set()
    lines: set[str] = set()
    files = _source_files()
    in_order = [file for split in ("train", "validation") for file in files if _split_of(file[0]) == split]
    for relative, path in in_order:  # all of training first, because validation must not repeat it
        split = _split_of(relative)
        prose, code = separate(path.read_text(encoding="utf-8"))
        for domain, text in (("prose", prose), ("code", code)):
            text = _without_repeated_paragraphs(text, paragraphs)
            if split == "train":
                lines.update(line.strip() for line in text.splitlines())
            else:
                text = _without_known_lines(text, lines)
            if len(text) >= 200:  # shorter documents are left from files that only import
                splits[split][domain].append(text)
    for split, count in ARITHMETIC_DOCUMENTS.items():
        splits[split]["arithmetic"] = arithmetic_documents(split, count)
    return splits


def _source_files() -> list[tuple[str, Path]]:
    """(path as 'sympy/core/add.py', file) of every source, sorted."""
    files = []
    for package in SOURCES:
        root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
        for path in root.rglob("*.py"):
            relative = path.relative_to(root.parent)
            if LEFT_OUT.isdisjoint(relative.parts):
                files.append((relative.as_posix(), path))
    return sorted(files)


def _split_of(relative: str) -> str:
    return "validation" if relative.startswith(tuple(f"{package}/" for package in HELD_OUT)) else "train"


def separate(source: str) -> tuple[str, str]:
    """Split a Python source into its prose (docstrings, without doctests and headings) and its code (the rest)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # invalid escape sequences are accepted
        tree = ast.parse(source)
    prose, docstring_lines = [], set()
    for docstring in _docstrings(tree):
        text = HEADING.sub("", _without_doctests(_dedent(docstring.value)))
        prose.append(re.sub(r"\n{3,}", "\n\n", text).strip())
        docstring_lines.update(range(docstring.lineno, docstring.end_lineno + 1))
    lines = source.splitlines()
    code = "\n".join(line.rstrip() for i, line in enumerate(lines, start=1) if i not in docstring_lines)
    return "\n\n".join(text for text in prose if text), code


def _docstrings(node: ast.AST) -> Iterator[ast.Constant]:
    """Yield the docstrings of a module and of all classes and functions in it, in the order of the source."""
    body = getattr(node, "body", [])
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
        value = getattr(body[0], "value", None)
        if isinstance(body[0], ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value
    for block in ("body", "handlers", "orelse", "finalbody"):  # statements only: no docstring is in an expression
        children = getattr(node, block, [])
        for child in children if isinstance(children, list) else []:
            yield from _docstrings(child)


def _dedent(docstring: str) -> str:
    """Like inspect.cleandoc, whose result differs between Python versions."""
    first, *rest = docstring.expandtabs().splitlines() or [""]
    indent = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
    return "\n".join([first.strip()] + [line[indent:].rstrip() for line in rest]).strip()


def _without_doctests(text: str) -> str:
    """Drop each '>>>' line and all that follows it up to the next blank line, which are input and output."""
    kept, inside = [], False
    for line in text.splitlines():
        inside = line.lstrip().startswith(">>>") or (inside and bool(line.strip()))
        if not inside:
            kept.append(line)
    return "\n".join(kept).strip()


def _without_repeated_paragraphs(text: str, seen: set[str]) -> str:
    kept = []
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())
        if key and key not in seen:
            kept.append(paragraph.strip("\n"))
        if len(key) >= 40:  # shorter ones are 'return self' and the like
            seen.add(key)
    return "\n\n".join(kept)


def _without_known_lines(text: str, known: set[str]) -> str:
    kept = [line for line in text.splitlines() if len(line.strip()) < 25 or line.strip() not in known]
    return "\n".join(kept)
