"""Text for the miniature, without a download, and batches that are a pure function of seed and step.

The corpus is read from two pure-Python packages that come with torch, sympy and networkx, pinned to
exact versions, so every machine has the same bytes. Three labelled domains:

    prose        the docstrings, without their doctest examples
    code         the sources, with docstrings cut out
    arithmetic   generated sums, differences and products, every answer checkable

The labels show later which expert learned what; the checkable answers can serve as rewards. Whole
sub-packages are held out for validation, all text of one file falls on one side, and held-out
arithmetic shares no problem with training, not even as b + a for a + b.

Documents are packed end to end with an end-of-text token between them. Nothing masks attention
across documents, as in DeepSeek-V3 (report §4.1); unlike there, no fill-in-the-middle.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minids.files import write_atomically
from minids.text.tokenizer import Tokenizer

SOURCES = {"sympy": "1.14.0", "networkx": "3.6.1"}
CORPUS_SHA256 = "58f4a04b46e9327d250934bd89c5f303eb897a00365ce3f16e08c9ab86f0b00b"
# Sub-packages whose files are for validation only.
HELD_OUT = (
    "sympy/geometry", "sympy/series", "sympy/sets", "sympy/logic", "sympy/vector",
    "networkx/linalg", "networkx/utils", "networkx/algorithms/community", "networkx/algorithms/connectivity",
)  # fmt: skip
# Tests and benchmarks repeat themselves, and what a parser generator wrote is neither prose nor code.
LEFT_OUT = {"tests", "benchmarks", "_antlr", "autolev"}
# A heading in a docstring: a line, and a line of dashes or the like below it.
HEADING = re.compile(r"(?m)^.*\n[ \t]*[-=~^]{3,}[ \t]*$\n*")
# Rows of each domain out of 20.
MIXTURE = {"prose": 9, "code": 6, "arithmetic": 5}
ARITHMETIC_DOCUMENTS = {"train": 10_000, "validation": 200}
PROBLEMS_PER_DOCUMENT = 10


@dataclass(frozen=True)
class Corpus:
    """Documents by split and domain: `train["prose"]` is a list of texts. `mixture` gives rows per domain."""

    train: Mapping[str, list[str]]
    validation: Mapping[str, list[str]]
    mixture: Mapping[str, int]

    @cached_property
    def sha256(self) -> str:
        """The hash of all documents, splits and domains."""
        content = json.dumps([self.train, self.validation], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


def load_corpus() -> Corpus:
    """Return the book's corpus, extracted once and cached.

    The cache is `$MINIDS_CACHE`, else `~/.cache/minids`; where it cannot be written the corpus is
    extracted anew each time. Raises ValueError when a source package has another version.
    """
    for package, version in SOURCES.items():
        found = importlib.metadata.version(package)
        if found != version:
            raise ValueError(f"{package} {found} is installed: the corpus needs {package}=={version} exactly.")
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = Path(os.environ.get("MINIDS_CACHE") or Path.home() / ".cache" / "minids")
    path = folder / f"corpus-{recipe}.json"
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        splits = extract_documents()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for outdated in folder.glob("corpus-*.json"):
                outdated.unlink()
            write_atomically(path, json.dumps(splits))
        except OSError:
            pass  # a read-only home is no reason to stop
    return Corpus(splits["train"], splits["validation"], MIXTURE)


# ---------------------------------------------------------------------------------------------------
# Extraction


def extract_documents() -> dict[str, dict[str, list[str]]]:
    """Read the installed sources and return documents by split and domain, in sorted order.

    A paragraph (text between blank lines) that was seen before is dropped: what one package repeats
    a hundred times would otherwise be learned by heart. Validation also loses every longer line
    that training has, so that it measures what was understood and not what was remembered.
    """
    splits = {split: {"prose": [], "code": []} for split in ("train", "validation")}
    paragraphs: set[str] = set()
    lines: set[str] = set()
    files = _source_files()
    in_order = [file for split in ("train", "validation") for file in files if _split_of(file[0]) == split]
    for relative, path in in_order:  # all of training first: validation must not repeat it
        split = _split_of(relative)
        prose, code = separate(path.read_text(encoding="utf-8"))
        for domain, text in (("prose", prose), ("code", code)):
            text = _without_repeated_paragraphs(text, paragraphs)
            if split == "train":
                lines.update(line.strip() for line in text.splitlines())
            else:
                text = _without_known_lines(text, lines)
            if len(text) >= 200:  # what is left of a file of imports teaches nothing
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
    """Split a Python source into its prose (docstrings, without doctests and headings) and its code (all else)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # sources with odd escapes are still sources
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
    for block in ("body", "handlers", "orelse", "finalbody"):  # statements only: expressions hold none
        children = getattr(node, block, [])
        for child in children if isinstance(children, list) else []:
            yield from _docstrings(child)


def _dedent(docstring: str) -> str:
    """Like inspect.cleandoc, whose result differs between Python versions."""
    first, *rest = docstring.expandtabs().splitlines() or [""]
    indent = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
    return "\n".join([first.strip()] + [line[indent:].rstrip() for line in rest]).strip()


def _without_doctests(text: str) -> str:
    """Drop each '>>>' line and all that follows it up to the next blank line: input and output."""
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


# ---------------------------------------------------------------------------------------------------
# Arithmetic


def arithmetic_documents(split: str, count: int) -> list[str]:
    """Return `count` documents of solved problems, one a line: '12+7=19'. A pure function of its arguments."""
    documents, index = [], 0
    while len(documents) < count:
        lines = []
        while len(lines) < PROBLEMS_PER_DOCUMENT:
            a, operator, b = arithmetic_problem(index)
            index += 1
            if arithmetic_split(a, operator, b) == split:
                lines.append(f"{a}{operator}{b}={solve(a, operator, b)}")
        documents.append("\n".join(lines) + "\n")
    return documents


def arithmetic_problem(index: int) -> tuple[int, str, int]:
    """Return problem number `index` as (a, operator, b).

    Four in six have one-digit numbers, one in six up to two digits, one in six up to three; one
    factor of a product always has one digit. Taken from a hash, not from a random generator, so that
    it is the same under every library version.
    """
    digest = hashlib.sha256(f"problem {index}".encode()).digest()
    operator = "+-*"[digest[0] % 3]
    digits = (1, 1, 1, 1, 2, 3)[digest[1] % 6]
    a = int.from_bytes(digest[8:16]) % 10**digits
    b = int.from_bytes(digest[16:24]) % 10 ** (1 if operator == "*" else digits)
    return (max(a, b), operator, min(a, b)) if operator == "-" else (a, operator, b)


def arithmetic_split(a: int, operator: str, b: int) -> str:
    """Return 'train' or 'validation'; a+b and b+a, a*b and b*a, fall on the same side."""
    a, b = (a, b) if operator == "-" else sorted((a, b))
    digest = hashlib.sha256(f"{a}{operator}{b}".encode()).digest()
    return "validation" if digest[0] < 51 else "train"  # about a fifth


def solve(a: int, operator: str, b: int) -> int:
    """Return the answer: the rule that checks what a model writes."""
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


# ---------------------------------------------------------------------------------------------------
# The reader's own text


def read_texts(path: str | Path) -> Corpus:
    """Return a corpus of one domain, 'text', from a UTF-8 file or a folder of them.

    A tenth is held out: the last files of a folder in sorted order, or, of fewer than ten files, the
    last lines of all of them joined.
    Raises ValueError, one sentence, for a missing path, an empty one, or a file that is not text.
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
        cut = text.rfind("\n", len(text) // 2, tenth) + 1 or tenth  # after a line, where there are lines
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


# ---------------------------------------------------------------------------------------------------
# Packing and batches


def pack(stream: np.ndarray, sequence_length: int) -> np.ndarray:
    """Cut a token stream into rows of sequence_length + 1, each starting with its predecessor's last token.

    Every token but the first is predicted in some row; the last row reaches back as far as it must.
    Raises ValueError if the stream is shorter than one row.
    """
    rows = -(-(len(stream) - 1) // sequence_length)
    if len(stream) <= sequence_length:
        raise ValueError(
            f"the text has {len(stream)} tokens: at least {sequence_length + 1} are needed for one sequence."
        )
    starts = np.minimum(np.arange(rows) * sequence_length, len(stream) - sequence_length - 1)
    return stream[starts[:, None] + np.arange(sequence_length + 1)]


class Batches:
    """Training rows in a fixed order: `batch(step)` depends on seed and step, on nothing before.

    Domains alternate in the corpus's mixture; within a domain every row comes once per epoch, each
    epoch in another order.
    """

    def __init__(self, streams: Mapping[str, np.ndarray], mixture: Mapping[str, int], sequence_length: int, seed: int):
        self.rows = {domain: pack(streams[domain], sequence_length) for domain in mixture}
        self.seed = seed
        # Spread each domain evenly over one cycle: its j-th row belongs at (j + 1/2) / weight.
        places = [((j + 0.5) / weight, domain) for domain, weight in mixture.items() for j in range(weight)]
        self.cycle = [domain for _, domain in sorted(places)]
        self._permutations: dict[tuple[str, int], np.ndarray] = {}

    def domain(self, index: int) -> str:
        """Return the domain of the index-th row of training."""
        return self.cycle[index % len(self.cycle)]

    def row(self, index: int) -> np.ndarray:
        """Return the index-th row of training, (sequence_length + 1,)."""
        cycles, place = divmod(index, len(self.cycle))
        domain = self.cycle[place]
        served = cycles * self.cycle.count(domain) + self.cycle[:place].count(domain)
        epoch, position = divmod(served, len(self.rows[domain]))
        return self.rows[domain][self._permutation(domain, epoch)[position]]

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """Return the rows of one step, (batch_size, sequence_length + 1), int64."""
        rows = [self.row(index) for index in range(step * batch_size, (step + 1) * batch_size)]
        return np.stack(rows).astype(np.int64)

    def _permutation(self, domain: str, epoch: int) -> np.ndarray:
        key = (domain, epoch)
        if key not in self._permutations:
            entropy = [self.seed, epoch, *domain.encode()]
            self._permutations[key] = np.random.default_rng(entropy).permutation(len(self.rows[domain]))
        return self._permutations[key]


def encode_split(tokenizer: Tokenizer, documents: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Return each domain's documents as one token stream."""
    return {domain: tokenizer.encode_documents(texts) for domain, texts in documents.items()}
