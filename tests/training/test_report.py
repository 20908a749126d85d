"""The report of a run against loops over what the run consumed and what it was asked afterwards."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from configurations import examples
from helpers_training import assert_bitwise_equal, small_corpus, small_model, small_train_config, state
from hypothesis import given
from hypothesis import strategies as st

from minids.text.backend import END_OF_TEXT
from minids.text.batches import Batches, encode_split
from minids.text.corpus import Corpus
from minids.text.identifiers import Followers
from minids.text.ngram import END, ByteNGram
from minids.text.tokenizer import Tokenizer
from minids.training.baseline import baseline_scores, best_constant, code_followers
from minids.training.evaluate import context_tokens, mtp_agreement, row_scores, solved_problems
from minids.training.identifiers import identifier_answers, identifier_shares
from minids.training.intervals import ratio_interval, wilson_interval
from minids.training.report import (
    ROWS_PER_DOMAIN,
    accuracy_by_digits,
    format_report,
    make_report,
    printable,
    validation_rows,
)

CONFIG = small_train_config(steps=3)
CORPUS = small_corpus()
RECORDS = [
    {"max_violation": [0.5 + step, 1.5 + step], "load": [[step, 0, 4], [3, 2, step]], "seconds": 0.5 * (step + 1)}
    for step in range(3)
]


def batches_of(tokenizer: Tokenizer, corpus: Corpus) -> Batches:
    return Batches(encode_split(tokenizer, corpus.train), corpus.mixture, CONFIG.sequence_length, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for texts in CORPUS.train.values() for text in texts], 300)


@pytest.fixture(scope="module")
def batches(tokenizer):
    return batches_of(tokenizer, CORPUS)


@pytest.fixture(scope="module")
def held_out(tokenizer):
    return validation_rows(encode_split(tokenizer, CORPUS.validation), CONFIG.sequence_length)


@pytest.fixture(scope="module")
def report(tokenizer, batches):
    model = small_model(initializer_range=0.3)
    before = state(model)
    report = make_report(model, tokenizer, CORPUS, batches, CONFIG, RECORDS)
    assert_bitwise_equal(state(model), before)
    return report


# ---------------------------------------------------------------------------------------------------
# The baseline


def symbols_of(row: np.ndarray, tokenizer: Tokenizer) -> list[int]:
    """END, then the bytes of every token, end of text being END."""
    pieces = tokenizer.token_bytes()
    return [END, *(symbol for token in row for symbol in (pieces[token] or [END]))]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_baseline_learns_exactly_the_rows_that_the_run_consumed(tokenizer, batches, held_out, steps):
    rows = [row for step in range(steps) for row in batches.batch(step, 4)["tokens"]]
    ngram = ByteNGram(np.array([symbol for row in rows for symbol in symbols_of(row, tokenizer)]))
    found = baseline_scores(batches, replace(CONFIG, steps=steps), held_out, tokenizer.token_bytes())
    for domain, rows in held_out.items():
        texts = [symbols_of(row, tokenizer) for row in rows]
        bits = iter(ngram.bits(np.array([symbol for text in texts for symbol in text])))
        for row, text, *row_found in zip(rows, texts, *found[domain], strict=True):
            first_half = len(symbols_of(row[: CONFIG.sequence_length // 2], tokenizer))
            costs = [(next(bits), symbol) for symbol in text]
            scored = [cost for cost, symbol in costs[first_half:] if symbol != END]
            assert row_found == [pytest.approx(sum(scored)), len(scored)]


@pytest.mark.parametrize("width", [2, 3, 10, 17])
def test_model_and_baseline_are_asked_for_the_same_bytes(tokenizer, batches, held_out, width):
    lengths = torch.tensor([len(piece) for piece in tokenizer.token_bytes()])
    held_out = {domain: rows[:, :width] for domain, rows in held_out.items()}
    baseline = baseline_scores(batches, CONFIG, held_out, tokenizer.token_bytes())
    for domain, rows in held_out.items():
        assert (row_scores(small_model(), rows, lengths, context_tokens(rows))[1] == baseline[domain][1]).all()


# ---------------------------------------------------------------------------------------------------
# Held-out rows


@examples(100)
@given(st.integers(1, 9), st.integers(2, 3000))
def test_validation_rows_do_not_overlap_and_are_spread_over_the_text(length, tokens):
    rows = validation_rows({"a": np.arange(tokens)}, length)["a"]
    whole = (tokens - 1) // length
    if whole == 0:
        assert rows.tolist() == [list(range(tokens))], "a short text is one short row"
        return
    predicted = rows[:, 1:].flatten().tolist()
    assert len(set(predicted)) == len(predicted)
    assert (np.diff(rows) == 1).all()
    assert len(rows) == min(whole, ROWS_PER_DOMAIN)
    assert (rows[0, 0], rows[-1, -1]) == (0, whole * length if len(rows) > 1 else length)
    gaps = np.diff(rows[:, 0])
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= length


# ---------------------------------------------------------------------------------------------------
# The report


def test_the_report_holds_what_the_single_measures_say(report, tokenizer, held_out):
    lengths = torch.tensor([len(piece) for piece in tokenizer.token_bytes()])
    model = small_model(initializer_range=0.3)  # with it the MTP module agrees more in some domains than in others
    scores = {d: [part.sum() for part in row_scores(model, rows, lengths, context=8)] for d, rows in held_out.items()}
    together = {"prose_and_code": ["prose", "code"], "all": list(scores)} | {domain: [domain] for domain in scores}
    sums = {name: [sum(scores[d][i] for d in domains) for i in (0, 1)] for name, domains in together.items()}
    assert report["bits_per_byte"] == {name: pytest.approx(bits / n) for name, (bits, n) in sums.items()}
    solved = [right for _, right in solved_problems(model, tokenizer, CORPUS.validation["arithmetic"])]
    assert report["arithmetic_accuracy"] == sum(solved) / len(solved)
    assert report["arithmetic_problems"]["all"] == len(solved) == sum(report["arithmetic_problems"].values()) / 2
    assert report["mtp_agreement"] == pytest.approx(mtp_agreement(model, np.concatenate(list(held_out.values()))))
    for domain, sample in report["samples"].items():
        assert sample["prompt"].replace(END_OF_TEXT, "") in "".join(CORPUS.validation[domain])
        assert sample["continuation"]
    parameters = sum(p.numel() for p in model.parameters()) + sum(gate.expert_bias.numel() for gate in model.gates)
    assert report["parameters"]["total"] + report["parameters"]["mtp"] == parameters


def test_the_report_counts_tokens_and_time_and_is_json(report):
    tokens, seconds = 3 * 4 * 16, 1.5
    expected = {
        "tokens": tokens, "training_seconds": seconds, "tokens_per_second": tokens / seconds,
        "max_violation": {"first_20_steps": 1.0, "last_20_steps": 3.0},  # of 3 steps, the first and the last
        "load": [[2, 0, 4], [3, 2, 2]], "dead_experts": [1, 0],
        "corpus_sha256": CORPUS.sha256, "torch": torch.__version__,
    }  # fmt: skip
    again = json.loads(json.dumps(report, default=float))
    assert {name: again[name] for name in expected} == expected
    assert again["train"]["steps"] == 3


def test_names_are_asked_in_the_second_halves_and_the_rule_learns_from_the_run_s_rows_of_code(tokenizer):
    train = CORPUS.train | {"code": ["alpha = 1\nbeta = alpha\n" * 9]}
    validation = CORPUS.validation | {"code": ["gamma = alpha\nbeta = alpha\n" * 9]}
    corpus = Corpus(train, validation, CORPUS.mixture)
    model, batches, pieces = small_model(), batches_of(tokenizer, corpus), tokenizer.token_bytes()
    report = make_report(model, tokenizer, corpus, batches, CONFIG, RECORDS)
    seen = [batches.row(i) for i in range(3 * 4) if batches.domain(i) == "code"]
    rows = validation_rows(encode_split(tokenizer, corpus.validation), CONFIG.sequence_length)["code"]
    followers = Followers(b"".join(pieces[token] or b"\n" for token in row) for row in seen)
    assert followers.commonest in (b"alpha", b"beta")
    expected = identifier_shares(identifier_answers(model, rows, pieces, followers, context=8), len(rows))
    assert report["identifiers"] == expected
    assert code_followers(batches, CONFIG, pieces).after == followers.after


def test_every_score_of_the_report_lies_in_its_interval_which_counts_rows_and_problems(report, tokenizer, held_out):
    lengths = torch.tensor([len(piece) for piece in tokenizer.token_bytes()])
    scores, base = report["bits_per_byte"], report["baseline_bits_per_byte"]
    for name, interval in report["intervals"]["bits_per_byte"].items():
        low, high = report["intervals"]["below_baseline"][name]
        assert sum(interval) / 2 == pytest.approx(scores[name])
        assert (low + high) / 2 == pytest.approx(1 - scores[name] / base[name])
    bits, size = row_scores(small_model(initializer_range=0.3), held_out["prose"], lengths, context=8)
    assert report["intervals"]["bits_per_byte"]["prose"] == pytest.approx(ratio_interval((bits, size)), rel=1e-5)
    accuracy = report["intervals"]["arithmetic_accuracy"]
    assert accuracy.keys() == report["arithmetic_problems"].keys()
    count = report["arithmetic_problems"]["all"]
    assert accuracy["all"] == wilson_interval(round(report["arithmetic_accuracy"] * count), count)


@pytest.mark.parametrize("held_out", ["x", "def", "return 1\n", "def f(x):\n    return x"])
def test_a_held_out_text_shorter_than_a_row_is_scored_all_the_same(tokenizer, held_out):
    """A small text of the reader's own holds out less still."""
    corpus = Corpus({"text": CORPUS.train["code"]}, {"text": [held_out]}, {"text": 1})
    report = make_report(small_model(), tokenizer, corpus, batches_of(tokenizer, corpus), CONFIG, RECORDS)
    assert report["bits_per_byte"]["text"] > 0
    assert report["baseline_bits_per_byte"]["text"] > 0


def test_a_plain_model_on_text_of_ones_own_is_reported_without_what_it_has_not(tokenizer):
    corpus = Corpus({"text": CORPUS.train["code"]}, {"text": CORPUS.validation["code"]}, {"text": 1})
    model = small_model(n_routed_experts=None, num_nextn_predict_layers=0)
    records = [{"max_violation": [], "load": [], "seconds": 1.0}] * 3
    report = make_report(model, tokenizer, corpus, batches_of(tokenizer, corpus), CONFIG, records)
    absent = ("arithmetic_accuracy", "mtp_agreement", "max_violation", "load", "dead_experts", "identifiers")
    assert [report[name] for name in absent] == [None] * 6
    assert set(report["bits_per_byte"]) == {"text", "all"}
    text = format_report(report)
    assert not any(word in text for word in ("arithmetic", "MTP", "MaxVio", "dead", "None", "nan"))


def test_a_gate_that_routed_nothing_is_no_even_one(tokenizer):
    # Of a loss that leaves the MTP module out. Of four steps, the last two count.
    records = [{"max_violation": [0.5, None], "load": [[n, 0, 2], [0, 0, 0]], "seconds": 1.0} for n in range(4)]
    report = make_report(small_model(), tokenizer, CORPUS, batches_of(tokenizer, CORPUS), CONFIG, records)
    assert report["max_violation"] == {"first_20_steps": 0.5, "last_20_steps": 0.5}
    assert (report["load"], report["dead_experts"]) == ([[5, 0, 4], [0, 0, 0]], [1, None])
    lines = [" ".join(line.split()) for line in format_report(report).splitlines()]
    assert "load of an expert over the average, at last 0.00 to 1.67" in lines
    assert "experts without a token, at last (dead) 1 of 3" in lines


LATER = {  # entries that a report did not always have, and what begins the lines that show them
    ("load", "dead_experts"): ("load of", "experts without"),
    ("identifiers",): ("code, n", "  what followed"),
    ("contamination",): (*(f"{domain}, 50-byte" for domain in CORPUS.train), "  bits per byte without"),
    ("arithmetic_problems", "intervals"): ("  95% interval",),
}


@pytest.mark.parametrize("names", LATER, ids=" ".join)
def test_a_report_from_before_some_entries_existed_is_printed_without_them(report, names):
    older = {name: value for name, value in report.items() if name not in names}
    shown, now = format_report(older).splitlines(), format_report(report).splitlines()
    kept = [line for line in now if not line.startswith(LATER[names])]
    assert len(kept) < len(now)
    assert len(shown) == len(kept)
    assert all(new.startswith(old) for old, new in zip(shown, kept, strict=True)), "intervals end a line"


def test_accuracy_is_split_by_the_digits_of_the_longer_number_and_held_against_the_commonest_answer():
    solved = [("1+2", True), ("12+3", True), ("3*45", False), ("100-7", False), ("9-9", False), ("999-111", True)]
    assert accuracy_by_digits(solved) == {"1": 1 / 2, "2": 1 / 2, "3": 1 / 2, "all": 3 / 6}
    assert best_constant(["1+2", "5-2", "3*1", "12+7", "9-9"]) == 3 / 5


# ---------------------------------------------------------------------------------------------------
# In the terminal


def test_the_printed_report_has_the_numbers_and_acts_on_no_terminal(report):
    assert printable("a\tß\n\x1b[31m\x00") == "a\tß\n\\x1b[31m\\x00"
    numbers = dict(
        bits_per_byte={"prose": 1.5, "code": 1.25, "arithmetic": 2.0, "prose_and_code": 1.375, "all": 1.4},
        baseline_bits_per_byte={"prose": 2.0, "code": 2.5, "arithmetic": 1.0, "prose_and_code": 2.25, "all": 2.2},
        mtp_agreement=0.625,
        arithmetic_accuracy=0.125,
        arithmetic_accuracy_by_digits={"1": 0.25, "2": 0.0, "all": 0.125, "best_constant": 0.0625},
        tokens=1_310_720,
    )
    text = format_report({name: value for name, value in report.items() if name != "intervals"} | numbers)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in ("prose 1.500 2.000 25.0%", "code 1.250 2.500 50.0%", "arithmetic 2.000 1.000 -100.0%"):
        assert line in lines
    assert "prose and code 1.375 2.250 38.9%" in lines
    for number in ("12.5%", "25% with 1", "0% with 2", "62.5%", "1,310,720", f"{report['parameters']['total']:,}"):
        assert number in text
    for sample in report["samples"].values():
        assert printable(sample["prompt"] + "▸" + sample["continuation"]) in text
    bits, below = ({name: [share - 0.25, share + 0.25] for name in report["bits_per_byte"]} for share in (1.5, 0.5))
    intervals = {"bits_per_byte": bits, "below_baseline": below, "arithmetic_accuracy": {"all": [0.1, 0.15]}}
    names = {"asked": 8, "model": 0.125, "interval": [0.0625, 0.25], "rule": 0.375}
    more = {"intervals": intervals, "arithmetic_problems": {"all": 1234}, "identifiers": {"above": names, "new": names}}
    lines = [" ".join(line.split()) for line in format_report(report | numbers | more).splitlines()]
    for line in (
        "prose 1.500 2.000 25.0% 1.250 to 1.750, gain 25.0% to 75.0%", "what followed the same word before 37.5%",
        "95% interval, from 1,234 problems 10.0% to 15.0%", "code, new names, written exactly 12.5% (6.2% to 25.0%)",
    ):  # fmt: skip
        assert line in lines
