"""The corpus: its extraction on small sources, and its promises on all of its text."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import networkx
import numpy as np
import pytest
import sympy

from minids.text import corpus as module
from minids.text.corpus import CORPUS_SHA256, HELD_OUT, MIXTURE, Corpus, load_corpus, separate
from minids.text.windows import repeated_windows


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


def test_docstrings_in_blocks_of_every_kind_become_prose_and_the_rest_code():
    source = inspect.cleandoc(
        '''
        """Doc of the module."""
        if a:
            class A:  # a comment
                """Doc in if."""
                class B: x = "no docstring"
        else:
            async def f(): r"""Doc \\else."""
        try:
            def g():
                """Doc in try."""
                """Not the first statement."""
        except E:
            def h(): """Doc in except."""
        finally:
            for _ in range(3):
                def i(): """Doc in finally and for."""
        '''
    )
    prose, code = separate(source)
    assert prose.split("\n\n") == re.findall('"""(Doc.*)"""', source)
    assert code.splitlines() == [line for line in source.splitlines() if "Doc" not in line]


@pytest.mark.parametrize(
    ("docstring", "prose"),
    [
        ("A.\n\n>>> 1 + 1\n2\n>>> for i in a:\n...     b\nout\n\nB.\n    >>> x\nC.\n\nD.", "A.\n\nB.\n\nD."),
        *[(f"First.\n\nExamples\n{line}\n\nLast.", "First.\n\nLast.") for line in ("===", "-----", "~~~", "  ^^^^")],
        ("One - two -- three.\nAnother --- line.", "One - two -- three.\nAnother --- line."),
        ("About it.\n\n        indented\n    and back\n    ", "About it.\n\n    indented\nand back"),
    ],
)
def test_doctests_with_their_output_and_headings_with_their_underline_are_dropped(docstring, prose):
    assert separate(f'def f():\n    """{docstring}"""\n    return "text"') == (prose, 'def f():\n    return "text"')


# ---------------------------------------------------------------------------------------------------
# The whole corpus


def test_a_fresh_extraction_anywhere_gives_the_recorded_corpus(corpus):
    """Under another hash seed and another locale. Who changes the extraction must record its new hash."""
    script = "from minids.text import corpus as c; print(c.Corpus(**c.extract_documents(), mixture={}).sha256)"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "LC_ALL": "C", "PYTHONUTF8": "0"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == CORPUS_SHA256 == corpus.sha256


def test_the_hash_sees_every_change_of_the_text_and_none_of_the_mixture():
    texts = [{"a": ["x", "y"]}, {"a": ["y", "x"]}, {"a": ["xy"]}, {"b": ["x", "y"]}, {"a": []}]
    corpora = [Corpus(train, validation, {"a": i}) for train in texts for validation in texts for i in (1, 2)]
    assert len({corpus.sha256 for corpus in corpora}) == len(texts) ** 2


def test_a_corpus_of_some_domains_has_equal_parts_of_their_text(corpus):
    part = corpus.only("code", "prose")
    for split, whole in ((part.train, corpus.train), (part.validation, corpus.validation)):
        assert split == {"code": whole["code"], "prose": whole["prose"]}
    assert part.mixture == {"code": 1, "prose": 1}
    with pytest.raises(ValueError, match="domain='poetry' is not possible"):
        corpus.only("poetry")


def test_every_domain_has_enough_text_in_both_splits(corpus):
    for split in (corpus.train, corpus.validation):
        assert split.keys() == corpus.mixture.keys() == MIXTURE.keys()
        assert all(documents and all(text.strip() for text in documents) for documents in split.values())
    for domain in ("prose", "code"):
        train, validation = (sum(map(len, split[domain])) for split in (corpus.train, corpus.validation))
        assert 0.05 < validation / train < 0.2
        assert validation > 300_000


def test_at_most_one_window_in_a_hundred_of_validation_was_seen_in_training(corpus):
    training = [text.encode() for domain in ("prose", "code") for text in corpus.train[domain]]
    for domain in ("prose", "code"):
        found = repeated_windows([text.encode() for text in corpus.validation[domain]], training)
        assert 0.001 < np.concatenate(found).mean() <= 0.01


def test_all_text_of_one_file_falls_on_one_side_and_none_is_from_tests(corpus):
    """Each code document is found, line by line, in a file of its own side, in the order of the files."""
    files = {"train": [], "validation": []}
    for root in (Path(package.__file__).parent for package in (networkx, sympy)):
        for path in sorted(root.rglob("*.py"), key=Path.as_posix):
            name = path.relative_to(root.parent)
            held_out = name.as_posix().startswith(tuple(f"{folder}/" for folder in HELD_OUT))
            if not {"tests", "benchmarks"} & set(name.parts):
                files["validation" if held_out else "train"].append(path)
    for split, documents in (("train", corpus.train["code"]), ("validation", corpus.validation["code"])):
        known = ({"", *map(str.rstrip, path.read_text(encoding="utf-8").splitlines())} for path in files[split])
        for text in documents:
            assert any(set(text.splitlines()) <= lines for lines in known)


def test_prose_holds_neither_doctests_nor_headings_and_no_long_paragraph_of_training_comes_twice(corpus):
    for text in [*corpus.train["prose"], *corpus.validation["prose"]]:
        assert not re.search(r"(?m)^\s*>>>|^.*\w.*\n[ \t]*([-=~^])\1{2,}[ \t]*$", text)
    texts = [*corpus.train["prose"], *corpus.train["code"]]
    paragraphs = [" ".join(paragraph.split()) for text in texts for paragraph in text.split("\n\n")]
    long = [paragraph for paragraph in paragraphs if len(paragraph) >= 40]
    assert len(long) == len(set(long)) > 0


# ---------------------------------------------------------------------------------------------------
# The cache

SPLITS = {split: {domain: [f"{split} {domain}", "深"] for domain in MIXTURE} for split in ("train", "validation")}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDS_CACHE", str(tmp_path / "new" / "folder"))
    monkeypatch.setattr(module, "extract_documents", Mock(return_value=SPLITS))
    monkeypatch.setattr(module, "CORPUS_SHA256", Corpus(*SPLITS.values(), MIXTURE).sha256)
    return tmp_path / "new" / "folder"


def test_each_extraction_is_cached_once_and_leaves_the_others_alone(cache, monkeypatch):
    first, again = load_corpus(), load_corpus()
    assert (first.train, first.validation) == (again.train, again.validation) == tuple(SPLITS.values())
    assert module.extract_documents.call_count == 1
    other = {split: {domain: ["another text"] for domain in MIXTURE} for split in SPLITS}
    with monkeypatch.context() as patch:  # another checkout, with another extraction
        patch.setattr(module, "extract_documents", Mock(return_value=other))
        patch.setattr(module, "CORPUS_SHA256", Corpus(*other.values(), MIXTURE).sha256)
        assert load_corpus().train == other["train"]
    assert load_corpus().train == SPLITS["train"]
    assert module.extract_documents.call_count == 1
    assert len(list(cache.iterdir())) == 2


def test_what_does_not_have_the_recorded_hash_is_neither_cached_nor_read_from_a_cache(cache, monkeypatch):
    load_corpus()
    (path,) = cache.iterdir()
    monkeypatch.setattr(module, "CORPUS_SHA256", "0" * 64)
    path.rename(cache / f"corpus-{'0' * 16}.json")
    for _ in range(2):
        assert load_corpus().train == SPLITS["train"]
    assert module.extract_documents.call_count == 3


@pytest.mark.parametrize(
    "damage",
    [
        b"", b'{"train": {"pro', b"\xff\xfe\0", b"[]", b"null", b"1", b"{}", b'{"train": {}, "validation": {}}',
        b'{"train": ' * 10**5, b'{"train": ' + b"9" * 5000 + b"}", b'{"train": NaN, "validation": 1e999}',
        json.dumps(SPLITS | {"train": SPLITS["train"] | {"code": "text"}}).encode(),
        json.dumps(SPLITS | {"validation": SPLITS["validation"] | {"prose": ["a", 1]}}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_cache_is_replaced(cache, damage):
    load_corpus()
    (path,) = cache.iterdir()
    path.write_bytes(damage)
    assert load_corpus().train == SPLITS["train"]
    assert json.loads(path.read_text()) == SPLITS


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo, lambda path: path.touch() or os.truncate(path, 1 << 30)])
def test_a_cache_that_is_no_file_of_its_size_is_not_read(cache, put):
    cache.mkdir(parents=True)
    put(cache / f"corpus-{module.CORPUS_SHA256[:16]}.json")
    assert load_corpus().train == SPLITS["train"]


def test_a_cache_that_cannot_be_written_stops_nobody(cache):
    cache.parent.write_text("in the way")
    assert load_corpus().train == SPLITS["train"]


def test_the_cache_s_folder_may_begin_with_a_tilde_and_a_user_without_a_home_has_none(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("~/x", "~nobody-has-this-name/x"):
        monkeypatch.setenv("MINIDS_CACHE", name)
        assert load_corpus().train == SPLITS["train"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert len(list((tmp_path / "home" / "x").iterdir())) == 1


def test_another_version_of_a_source_is_refused(monkeypatch):
    monkeypatch.setitem(module.SOURCES, "networkx", "1.0")
    with pytest.raises(ValueError, match=r"networkx .* is installed: the corpus needs networkx==1\.0"):
        load_corpus()
