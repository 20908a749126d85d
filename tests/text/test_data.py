"""The corpus and the batches: brute force on small inputs, and promises checked on the whole corpus."""

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import networkx
import numpy as np
import pytest
import sympy
from configurations import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from minids.text import data
from minids.text.data import Batches, Corpus, encode_split, pack, read_texts, separate
from minids.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def corpus():
    return data.load_corpus()


# ---------------------------------------------------------------------------------------------------
# Prose and code


def test_docstrings_become_prose_and_all_else_code():
    source = inspect.cleandoc(
        '''
        """About the module.

        It has two paragraphs.
        """
        import os  # a comment

        class A:
            """About A."""
            x = "no docstring"

            async def f(self):
                r"""About \\alpha.

                    indented
                and back
                """
                """Not the first statement."""
                return 1
        '''
    )
    prose, code = separate(source)
    assert prose.split("\n\n") == [
        "About the module.",
        "It has two paragraphs.",
        "About A.",
        "About \\alpha.",
        "    indented\nand back",
    ]
    assert code == inspect.cleandoc(
        '''
        import os  # a comment

        class A:
            x = "no docstring"

            async def f(self):
                """Not the first statement."""
                return 1
        '''
    )


def test_docstrings_are_found_inside_every_kind_of_block():
    source = inspect.cleandoc(
        '''
        if a:
            def f():
                """In if."""
        else:
            def g():
                """In else."""
        try:
            class C:
                """In try."""
        except E:
            def h():
                """In except."""
        finally:
            for _ in range(3):
                def i():
                    """In finally and for."""
        '''
    )
    assert separate(source)[0].split("\n\n") == ["In if.", "In else.", "In try.", "In except.", "In finally and for."]


def test_doctests_are_dropped_with_their_output_up_to_the_blank_line():
    source = '"""Before.\n\n>>> 1 + 1\n2\n>>> for i in a:\n...     b\nout\n\nBetween.\n    >>> x\nAfter.\n\nEnd."""\n'
    assert separate(source)[0] == "Before.\n\nBetween.\n\nEnd."


@pytest.mark.parametrize("line", ["=====", "-----", "~~~", "^^^^", "  ----"])
def test_headings_are_dropped_with_their_underline(line):
    assert separate(f'"""First.\n\nExamples\n{line}\n\nLast."""\n')[0] == "First.\n\nLast."


def test_a_dash_in_a_sentence_is_no_heading():
    text = "One - two -- three.\nAnother --- line."
    assert separate(f'"""{text}"""\n')[0] == text


def test_a_source_without_docstrings_is_all_code():
    source = "x = 1\n\ndef f():\n    return 'a string'"
    assert separate(source) == ("", source)


# ---------------------------------------------------------------------------------------------------
# The corpus


def test_every_domain_is_there_in_both_splits(corpus):
    for split in (corpus.train, corpus.validation):
        assert set(split) == {"prose", "code", "arithmetic"} == set(corpus.mixture)
        for documents in split.values():
            assert documents
            assert all(text.strip() for text in documents)


def test_validation_is_neither_scarce_nor_half_of_the_text(corpus):
    for domain in ("prose", "code"):
        train, validation = (sum(map(len, split[domain])) for split in (corpus.train, corpus.validation))
        assert 0.05 < validation / train < 0.2
        assert validation > 300_000


def test_the_corpus_is_the_same_every_time_and_everywhere(corpus):
    """Extracted anew, under another hash seed and another locale, against what load_corpus gave."""
    script = (
        "from minids.text import data; d = data.extract_documents();"
        "print(data.Corpus(d['train'], d['validation'], data.MIXTURE).sha256)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "LC_ALL": "C", "PYTHONUTF8": "0"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == corpus.sha256


def test_the_corpus_is_the_one_of_the_book(corpus):
    assert corpus.sha256 == data.CORPUS_SHA256


def test_the_hash_sees_every_change():
    train, validation = {"a": ["x", "y"]}, {"a": ["z"]}
    others = [
        ({"a": ["y", "x"]}, validation),
        ({"a": ["xy"]}, validation),
        ({"b": ["x", "y"]}, validation),
        (validation, train),
        ({"a": ["x", "y"]}, {"a": []}),
    ]
    hashes = {Corpus(t, v, {"a": 1}).sha256 for t, v in [(train, validation), *others]}
    assert len(hashes) == 6
    assert Corpus(dict(train), dict(validation), {"a": 2}).sha256 in hashes, "the mixture is no text"


WINDOW = 50
BYTE_VALUES = np.random.default_rng(0).integers(2**64, size=256, dtype=np.uint64)


def window_hashes(text: str) -> np.ndarray:
    """A hash of each 50-byte window: sum of value(byte) · r^position modulo 2^64, shifted back by 1 / r^start."""
    values = BYTE_VALUES[np.frombuffer(text.encode(), dtype=np.uint8)]
    ratio = 0x9E3779B97F4A7C15
    powers, inverses = (
        np.cumprod(np.full(len(values), r, dtype=np.uint64)) for r in (ratio, pow(ratio, -1, 2**64))
    )  # fmt: skip
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values * powers)])
    starts = max(0, len(values) - WINDOW + 1)
    return (sums[WINDOW:] - sums[:starts]) * inverses[:starts]


def share_known(validation: list[str], train: list[str]) -> float:
    known = np.sort(np.concatenate([window_hashes(text) for text in train]))
    asked = np.sort(np.concatenate([window_hashes(text) for text in validation]))
    found = known[np.minimum(np.searchsorted(known, asked), len(known) - 1)] == asked
    return found.mean()


def test_the_leak_detector_finds_what_brute_force_finds():
    rng = np.random.default_rng(0)
    train = ["".join(rng.choice(list("ab\n"), 300)) for _ in range(3)]
    validation = [train[0][20:120] + "new" + train[2][:60], "γ" + train[1][:49], "short"]
    windows = lambda text: [text.encode()[i : i + WINDOW] for i in range(len(text.encode()) - WINDOW + 1)]
    known = {window for text in train for window in windows(text)}
    asked = [window for text in validation for window in windows(text)]
    assert share_known(validation, train) == sum(window in known for window in asked) / len(asked) > 0.3


def test_at_most_one_window_in_a_hundred_of_validation_was_seen_in_training(corpus):
    train = [*corpus.train["prose"], *corpus.train["code"]]
    for domain in ("prose", "code"):
        assert share_known(corpus.validation[domain], train) <= 0.01


def test_all_text_of_one_file_falls_on_one_side(corpus):
    """Each code document is found, line by line, in a file of its own side, in the order of the files."""
    files = {"train": [], "validation": []}
    for package in (sympy, networkx):
        root = Path(package.__file__).parent
        for path in root.rglob("*.py"):
            name = path.relative_to(root.parent).as_posix()
            held_out = any(name.startswith(f"{folder}/") for folder in data.HELD_OUT)
            files["validation" if held_out else "train"].append((name, path))
    for split, documents in (("train", corpus.train["code"]), ("validation", corpus.validation["code"])):
        candidates = iter(sorted(files[split]))
        for text in documents:
            lines = set(text.splitlines())
            assert any(
                lines <= {line.rstrip() for line in [*path.read_text(encoding="utf-8").splitlines(), ""]}
                for _, path in candidates
            )


def test_tests_and_benchmarks_of_the_sources_are_left_out():
    names = [name for name, _ in data._source_files()]
    assert len(names) > 1000
    assert not any(re.search(r"/(tests|benchmarks)/", name) for name in names)


def test_prose_holds_neither_doctests_nor_headings(corpus):
    for text in [*corpus.train["prose"], *corpus.validation["prose"]]:
        assert not re.search(r"(?m)^\s*>>>", text)
        assert not re.search(r"(?m)^.*\w.*\n[ \t]*([-=~^])\1{2,}[ \t]*$", text)


def test_no_long_paragraph_of_training_comes_twice(corpus):
    for domain in ("prose", "code"):
        paragraphs = Counter(
            " ".join(paragraph.split()) for text in corpus.train[domain] for paragraph in text.split("\n\n")
        )
        assert not [paragraph for paragraph, count in paragraphs.items() if count > 1 and len(paragraph) >= 40]


def test_the_corpus_survives_the_tokenizer(corpus):
    """No lone surrogate, nothing normalised away."""
    tokenizer = Tokenizer.train(corpus.validation["prose"][:5], 300)
    for text in corpus.validation["prose"] + corpus.train["prose"][:20]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_cache_is_written_once_and_read_afterwards(tmp_path, monkeypatch):
    calls = []
    splits = {"train": {"prose": ["p"]}, "validation": {"prose": ["深"]}}
    monkeypatch.setenv("MINIDS_CACHE", str(tmp_path / "new" / "folder"))
    monkeypatch.setattr(data, "extract_documents", lambda: calls.append(1) or splits)
    first, second = data.load_corpus(), data.load_corpus()
    assert calls == [1]
    assert first == second
    assert (first.train, first.validation) == (splits["train"], splits["validation"])


@pytest.mark.parametrize("damage", [b"", b'{"train": {"pro', b"\xff\xfe\0"])
def test_a_damaged_cache_is_replaced(tmp_path, monkeypatch, damage):
    splits = {"train": {"prose": ["p"]}, "validation": {"prose": ["q"]}}
    monkeypatch.setenv("MINIDS_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "extract_documents", lambda: splits)
    data.load_corpus()
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert data.load_corpus().train == splits["train"]
    assert json.loads(path.read_text()) == splits


def test_a_cache_that_cannot_be_written_stops_nobody(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINIDS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(data, "extract_documents", lambda: {"train": {"a": ["p"]}, "validation": {"a": ["q"]}})
    assert data.load_corpus().train == {"a": ["p"]}


def test_another_version_of_a_source_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setitem(data.SOURCES, "networkx", "1.0")
    with pytest.raises(ValueError, match=r"networkx .* is installed: the corpus needs networkx==1\.0"):
        data.load_corpus()


# ---------------------------------------------------------------------------------------------------
# Arithmetic


def problems(documents: list[str]) -> list[tuple[str, str, str, str]]:
    lines = [line for text in documents for line in text.splitlines()]
    return [re.fullmatch(r"(\d{1,3})([-+*])(\d{1,3})=(\d+)", line).groups() for line in lines]


def test_every_generated_answer_is_right(corpus):
    for documents in (corpus.train["arithmetic"], corpus.validation["arithmetic"]):
        for a, operator, b, answer in problems(documents):
            assert str(eval(f"{a}{operator}{b}")) == answer


def test_no_problem_is_in_both_splits_not_even_commuted(corpus):
    train = {(a, operator, b) for a, operator, b, _ in problems(corpus.train["arithmetic"])}
    for a, operator, b, _ in problems(corpus.validation["arithmetic"]):
        assert (a, operator, b) not in train
        assert operator == "-" or (b, operator, a) not in train


def test_a_problem_and_its_mirror_image_fall_on_one_side():
    for a, b in itertools.product(range(60), range(60)):
        for operator in "+*":
            assert data.arithmetic_split(a, operator, b) == data.arithmetic_split(b, operator, a)


def test_about_a_fifth_of_all_problems_is_held_out():
    sides = Counter(data.arithmetic_split(a, op, b) for a in range(100) for b in range(a + 1) for op in "+-*")
    assert 0.18 < sides["validation"] / sides.total() < 0.22


def test_all_operators_and_lengths_occur(corpus):
    found = problems(corpus.train["arithmetic"])
    operators = Counter(operator for _, operator, _, _ in found)
    assert set(operators) == set("+-*")
    assert min(operators.values()) > 0.3 * len(found)
    assert {len(a) for a, _, _, _ in found} == {1, 2, 3}
    assert {len(b) for _, operator, b, _ in found if operator == "*"} == {1}


def test_arithmetic_documents_have_one_problem_a_line(corpus):
    assert len(corpus.train["arithmetic"]) == data.ARITHMETIC_DOCUMENTS["train"]
    assert len(corpus.validation["arithmetic"]) == data.ARITHMETIC_DOCUMENTS["validation"]
    for text in corpus.validation["arithmetic"]:
        assert text.endswith("\n")
        assert text.count("\n") == text.count("=") == data.PROBLEMS_PER_DOCUMENT


def test_more_documents_begin_with_the_same_ones():
    assert data.arithmetic_documents("validation", 7)[:3] == data.arithmetic_documents("validation", 3)


# ---------------------------------------------------------------------------------------------------
# The reader's own text


def test_a_folder_holds_out_its_last_files(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"document {i}\n")
    corpus = read_texts(tmp_path)
    assert corpus.train["text"] == [f"document {i}\n" for i in range(18)]
    assert corpus.validation["text"] == ["document 18\n", "document 19\n"]
    assert corpus.mixture == {"text": 1}


def test_subfolders_are_read_and_hidden_and_repeated_files_are_not(tmp_path):
    (tmp_path / "b").mkdir()
    for i in range(12):
        (tmp_path / "b" / f"{i:02}.md").write_text(f"document {i}")
    (tmp_path / "b" / "copy.md").write_text("document 3")
    (tmp_path / ".DS_Store").write_bytes(b"\0\xff")
    corpus = read_texts(tmp_path)
    assert corpus.train["text"] + corpus.validation["text"] == [f"document {i}" for i in range(12)]


@pytest.mark.parametrize("lines", [2, 3, 10, 100])
def test_a_single_file_holds_out_its_last_lines(tmp_path, lines):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i}\n" for i in range(lines)))
    corpus = read_texts(path)
    (train,), (validation,) = corpus.train["text"], corpus.validation["text"]
    assert train + validation == path.read_text()
    assert validation.endswith(f"line {lines - 1}\n"[-len(validation) :])
    assert len(validation) <= len(train)
    assert lines < 10 or validation.startswith("line")


def test_a_text_of_one_line_is_split_too(tmp_path):
    """A novel on one line is a text like any other: both sides need some of it."""
    path = tmp_path / "a.txt"
    path.write_text("a word and another word " * 200)
    corpus = read_texts(path)
    assert "".join(corpus.train["text"] + corpus.validation["text"]) == path.read_text()
    assert corpus.train["text"]
    assert corpus.validation["text"]


@examples(50)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=10, max_size=200))
def test_any_text_falls_into_two_parts_and_loses_nothing(tmp_path_factory, text):
    assume(text.strip())
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    corpus = read_texts(path)
    (train,), (validation,) = corpus.train["text"], corpus.validation["text"]
    assert train + validation == text
    assert 0 < len(validation) <= len(train)


def test_a_few_small_files_are_split_by_lines(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"first {i}\nsecond {i}\n" * 5)
    corpus = read_texts(tmp_path)
    words = "".join(corpus.train["text"] + corpus.validation["text"]).split()
    assert words == "".join((tmp_path / f"{i}.txt").read_text() for i in range(3)).split()
    assert corpus.validation["text"]


def test_text_is_taken_as_it_stands(tmp_path):
    content = "a\r\nb\tc\u2028深 \n\n"
    (tmp_path / "a.txt").write_bytes(content.encode() * 12)
    corpus = read_texts(tmp_path)
    assert "".join(corpus.train["text"] + corpus.validation["text"]) == content * 12


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.txt", None, "does not exist"),
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\t\n", "holds no text"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8 text"),
        ("binary.dat", b"ab\0cd", "is a binary file"),
        ("latin1.txt", "Größe".encode("latin-1"), "is not UTF-8 text"),
        ("utf16.txt", "text".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_text_is_told_in_one_sentence(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        read_texts(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_one_bad_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8 text"):
        read_texts(tmp_path)


def test_an_empty_folder_is_told_in_one_sentence(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="holds no text"):
        read_texts(tmp_path)


# ---------------------------------------------------------------------------------------------------
# Packing and batches


@examples(150)
@given(st.integers(1, 20), st.integers(2, 80))
def test_every_token_but_the_first_is_predicted_once_and_again_only_where_the_last_row_reaches_back(length, tokens):
    assume(tokens > length)
    stream = np.arange(tokens) + 1000
    rows = pack(stream, length)
    assert rows.shape[1] == length + 1
    assert (np.diff(rows) == 1).all(), "each row is a stretch of the stream"
    reached_back = rows[:, 1:].size - (tokens - 1)
    assert 0 <= reached_back < length
    again = rows[-1, 1 : 1 + reached_back]
    assert Counter(rows[:, 1:].flatten().tolist()) == Counter([*stream[1:].tolist(), *again.tolist()])


@pytest.mark.parametrize("tokens", [0, 1, 8])
def test_a_text_shorter_than_a_row_is_told_in_one_sentence(tokens):
    with pytest.raises(ValueError, match=f"the text has {tokens} tokens: at least 9 are needed"):
        pack(np.arange(tokens), 8)


STREAMS = {"prose": np.arange(61), "code": np.arange(1000, 1100), "arithmetic": np.arange(2000, 2021)}


def some_batches(seed: int = 3, mixture=data.MIXTURE) -> Batches:
    return Batches(STREAMS, mixture, 4, seed)


@st.composite
def recipes(draw) -> dict:
    """What `Batches` can be made from: any mixture, any lengths, and no token twice."""
    length = draw(st.integers(1, 6))
    mixture = draw(st.dictionaries(st.sampled_from(list(STREAMS)), st.integers(1, 9), min_size=1))
    streams = {domain: STREAMS[domain][: draw(st.integers(length + 1, 20))] for domain in mixture}
    return dict(streams=streams, mixture=mixture, sequence_length=length, seed=draw(st.integers(0, 2**32)))


@examples(50)
@given(recipes(), st.lists(st.integers(0, 200), min_size=1, max_size=8), st.integers(1, 7))
def test_a_batch_depends_on_seed_and_step_alone(recipe, steps, batch_size):
    asked = Batches(**recipe)
    for step in steps:
        np.testing.assert_array_equal(asked.batch(step, batch_size), Batches(**recipe).batch(step, batch_size))


@examples(50)
@given(recipes())
def test_within_a_domain_every_row_comes_once_an_epoch(recipe):
    batches = Batches(**recipe)
    for domain, rows in batches.rows.items():
        indices = (i for i in itertools.count() if batches.domain(i) == domain)
        for _ in range(3):
            epoch = [tuple(batches.row(i)) for i in itertools.islice(indices, len(rows))]
            assert sorted(epoch) == sorted(map(tuple, rows))


@examples(20)
@given(st.integers(0, 50), st.sampled_from([1, 2, 3, 5, 10]))
def test_the_rows_do_not_depend_on_how_they_are_batched(step, batch_size):
    batches = some_batches()
    small = np.concatenate([batches.batch(step * batch_size + i, 1) for i in range(batch_size)])
    np.testing.assert_array_equal(small, batches.batch(step, batch_size))


def test_another_seed_is_another_order_of_the_same_rows():
    one, other = (some_batches(seed) for seed in (3, 4))
    assert not np.array_equal(one.batch(0, 40), other.batch(0, 40))
    for domain in STREAMS:
        np.testing.assert_array_equal(one.rows[domain], other.rows[domain])


@pytest.mark.parametrize("domain", STREAMS)
def test_each_epoch_has_another_order(domain):
    batches = some_batches()
    served = [tuple(batches.row(i)) for i in range(1000) if batches.domain(i) == domain]
    length = len(batches.rows[domain])
    epochs = [tuple(served[i : i + length]) for i in range(0, len(served) - length, length)]
    assert len(epochs) >= 10
    assert len(set(epochs)) > len(epochs) // 2  # of few rows there are few orders


def test_rows_come_from_the_domain_they_are_said_to_come_from():
    batches = some_batches()
    for index in range(100):
        assert batches.row(index)[0] in STREAMS[batches.domain(index)]


@examples(50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 5))
def test_the_mixture_is_exact_over_every_cycle_and_even_within(weights, cycle):
    mixture = dict(zip(STREAMS, weights, strict=False))
    batches, total = some_batches(mixture=mixture), sum(weights)
    served = [batches.domain(cycle * total + i) for i in range(total)]
    assert Counter(served) == mixture
    for domain, weight in mixture.items():
        for i in range(1, total + 1):
            assert abs(Fraction(weight * i, total) - served[:i].count(domain)) < len(mixture)


def test_batches_are_whole_numbers_for_the_embedding():
    batch = some_batches().batch(0, 6)
    assert (batch.shape, batch.dtype) == ((6, 5), np.int64)


def test_encode_split_gives_one_stream_a_domain():
    tokenizer = Tokenizer.train([], 257)
    streams = encode_split(tokenizer, {"a": ["x", "y"], "b": ["z"]})
    x, y, z = (tokenizer.encode(letter)[0] for letter in "xyz")
    assert {domain: stream.tolist() for domain, stream in streams.items()} == {"a": [0, x, 0, y, 0], "b": [0, z, 0]}
