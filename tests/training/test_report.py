"""The report of a run against loops over what the run consumed and what it was asked afterwards."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from configurations import examples
from helpers_training import assert_bitwise_equal, small_model, small_train_config, state
from hypothesis import given
from hypothesis import strategies as st

from minids.text.data import Batches, Corpus, arithmetic_documents, encode_split
from minids.text.ngram import END, ByteNGram
from minids.text.tokenizer import END_OF_TEXT, Tokenizer
from minids.training.evaluate import mtp_agreement, score_rows, solved_problems
from minids.training.report import (
    ROWS_PER_DOMAIN,
    accuracy_by_digits,
    baseline_scores,
    best_constant,
    context_tokens,
    format_report,
    make_report,
    printable,
    validation_rows,
)

CONFIG = small_train_config(steps=3)
CORPUS = Corpus(
    {
        "prose": ["Return the sum of all the elements.\n" * 6, "The größte one comes first.\n" * 6],
        "code": ["def f(x):\n    return x + 1\n" * 10],
        "arithmetic": arithmetic_documents("train", 4),
    },
    {
        "prose": ["Return the product of both.\n" * 3],
        "code": ["def g(y):\n    return y\n" * 3],
        "arithmetic": arithmetic_documents("validation", 2),
    },
    {"prose": 2, "code": 1, "arithmetic": 1},
)
RECORDS = [{"max_violation": [0.5 + step, 1.5 + step], "seconds": 0.5 * (step + 1)} for step in range(3)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for texts in CORPUS.train.values() for text in texts], 300)


@pytest.fixture(scope="module")
def batches(tokenizer):
    return Batches(encode_split(tokenizer, CORPUS.train), CORPUS.mixture, CONFIG.sequence_length, seed=0)


@pytest.fixture(scope="module")
def held_out(tokenizer):
    return validation_rows(encode_split(tokenizer, CORPUS.validation), CONFIG.sequence_length)


@pytest.fixture(scope="module")
def report(tokenizer, batches):
    return make_report(small_model(), tokenizer, CORPUS, batches, CONFIG, RECORDS)


def symbols_of(row: np.ndarray, tokenizer: Tokenizer) -> list[int]:
    """END, then the bytes of every token, end of text being END."""
    pieces = tokenizer.token_bytes()
    return [END, *(symbol for token in row for symbol in (pieces[token] or [END]))]


# ---------------------------------------------------------------------------------------------------
# The baseline


@pytest.mark.parametrize("steps", [1, 3])
def test_the_baseline_learns_exactly_the_rows_that_the_run_consumed(tokenizer, batches, held_out, steps):
    seen = [symbol for step in range(steps) for row in batches.batch(step, 4) for symbol in symbols_of(row, tokenizer)]
    ngram = ByteNGram(np.array(seen))
    found = baseline_scores(batches, replace(CONFIG, steps=steps), held_out, tokenizer.token_bytes())
    for domain, rows in held_out.items():
        text, counted = [], []
        for row in rows:
            symbols = symbols_of(row, tokenizer)
            first_half = len(symbols_of(row[: CONFIG.sequence_length // 2], tokenizer))
            counted += [i >= first_half and symbol != END for i, symbol in enumerate(symbols)]
            text += symbols
        bits = ngram.bits(np.array(text))
        assert found[domain][0] == pytest.approx(sum(bits[i] for i, yes in enumerate(counted) if yes))
        assert found[domain][1] == sum(counted)


@pytest.mark.parametrize("width", [2, 3, 10, 17])
def test_model_and_baseline_are_asked_for_the_same_bytes(tokenizer, batches, held_out, width):
    lengths = torch.tensor([len(piece) for piece in tokenizer.token_bytes()])
    held_out = {domain: rows[:, :width] for domain, rows in held_out.items()}
    baseline = baseline_scores(batches, CONFIG, held_out, tokenizer.token_bytes())
    for domain, rows in held_out.items():
        assert score_rows(small_model(), rows, lengths, context_tokens(rows))[1] == baseline[domain][1]


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


def test_validation_rows_of_each_domain_are_its_own(tokenizer, held_out):
    for domain, rows in held_out.items():
        text = "".join(CORPUS.validation[domain])
        for row in rows:
            assert tokenizer.decode(row).replace(END_OF_TEXT, "") in text


# ---------------------------------------------------------------------------------------------------
# The report


def test_the_report_holds_what_the_single_measures_say(report, tokenizer, held_out):
    lengths = torch.tensor([len(piece) for piece in tokenizer.token_bytes()])
    model = small_model()
    scores = {domain: score_rows(model, rows, lengths, context=8) for domain, rows in held_out.items()}
    ours = report["bits_per_byte"]
    assert set(ours) == {"prose", "code", "arithmetic", "prose_and_code", "all"}
    for name, domains in {"prose_and_code": ["prose", "code"], "all": list(scores)}.items():
        bits, text_bytes = (sum(scores[domain][i] for domain in domains) for i in (0, 1))
        assert ours[name] == pytest.approx(bits / text_bytes)
    assert ours["code"] == pytest.approx(scores["code"][0] / scores["code"][1])
    solved = [right for _, right in solved_problems(model, tokenizer, CORPUS.validation["arithmetic"])]
    assert report["arithmetic_accuracy"] == sum(solved) / len(solved)
    assert report["mtp_agreement"] == pytest.approx(mtp_agreement(model, np.concatenate(list(held_out.values()))))


def test_the_report_counts_tokens_time_and_parameters(report):
    assert report["tokens"] == 3 * 4 * 16
    assert report["training_seconds"] == 1.5
    assert report["tokens_per_second"] == 192 / 1.5
    model = small_model()
    assert report["parameters"]["total"] + report["parameters"]["mtp"] == (
        sum(p.numel() for p in model.parameters()) + sum(gate.expert_bias.numel() for gate in model.gates)
    )
    assert report["max_violation"] == {"first_20_steps": 1.0, "last_20_steps": 3.0}, (
        "of 3 steps, the first and the last"
    )
    assert report["corpus_sha256"] == CORPUS.sha256
    assert report["torch"] == torch.__version__


def test_the_report_is_json(report):
    assert json.loads(json.dumps(report, default=float))["train"]["steps"] == 3


def test_samples_continue_a_held_out_prompt(report):
    assert set(report["samples"]) == {"prose", "code", "arithmetic"}
    for domain, sample in report["samples"].items():
        assert sample["prompt"].replace(END_OF_TEXT, "") in "".join(CORPUS.validation[domain])
        assert sample["continuation"]


def test_reporting_changes_nothing_in_the_model(tokenizer, batches):
    model = small_model()
    before = state(model)
    make_report(model, tokenizer, CORPUS, batches, CONFIG, RECORDS)
    assert_bitwise_equal(state(model), before)


@pytest.mark.parametrize("held_out", ["x", "def", "return 1\n", "def f(x):\n    return x"])
def test_a_held_out_text_shorter_than_a_row_is_scored_all_the_same(tokenizer, batches, held_out):
    """A small text of the reader's own holds out less still."""
    corpus = Corpus({"text": CORPUS.train["code"]}, {"text": [held_out]}, {"text": 1})
    own = Batches(encode_split(tokenizer, corpus.train), corpus.mixture, CONFIG.sequence_length, seed=0)
    report = make_report(small_model(), tokenizer, corpus, own, CONFIG, RECORDS)
    assert report["bits_per_byte"]["text"] > 0
    assert report["baseline_bits_per_byte"]["text"] > 0


def test_accuracy_is_split_by_the_digits_of_the_longer_number():
    solved = [("1+2", True), ("12+3", True), ("3*45", False), ("100-7", False), ("9-9", False), ("999-111", True)]
    assert accuracy_by_digits(solved) == {"1": 1 / 2, "2": 1 / 2, "3": 1 / 2, "all": 3 / 6}


# ---------------------------------------------------------------------------------------------------
# In the terminal


def test_the_best_constant_answer_is_the_commonest():
    assert best_constant(["1+2", "5-2", "3*1", "12+7", "9-9"]) == 3 / 5


def test_control_characters_are_written_out():
    assert printable("a\tß\n\x1b[31m\x00") == "a\tß\n\\x1b[31m\\x00"


def test_the_printed_report_has_the_numbers(report):
    numbers = dict(
        bits_per_byte={"prose": 1.5, "code": 1.25, "arithmetic": 2.0, "prose_and_code": 1.375, "all": 1.4},
        baseline_bits_per_byte={"prose": 2.0, "code": 2.5, "arithmetic": 1.0, "prose_and_code": 2.25, "all": 2.2},
        mtp_agreement=0.625,
        arithmetic_accuracy=0.125,
        arithmetic_accuracy_by_digits={"1": 0.25, "2": 0.0, "all": 0.125, "best_constant": 0.0625},
        tokens=1_310_720,
    )
    lines = format_report(report | numbers).splitlines()
    words = [line.split() for line in lines]
    assert ["prose", "1.500", "2.000", "25.0%"] in words
    assert ["code", "1.250", "2.500", "50.0%"] in words
    assert ["arithmetic", "2.000", "1.000", "-100.0%"] in words
    assert ["prose", "and", "code", "1.375", "2.250", "38.9%"] in words
    text = "\n".join(lines)
    for number in ("12.5%", "25% with 1", "0% with 2", "62.5%", "1,310,720", f"{report['parameters']['total']:,}"):
        assert number in text
    for sample in report["samples"].values():
        assert printable(sample["prompt"] + "▸" + sample["continuation"]) in text


def test_a_plain_model_on_the_reader_s_text_is_reported_too(tokenizer, batches):
    corpus = Corpus({"text": CORPUS.train["code"]}, {"text": CORPUS.validation["code"]}, {"text": 1})
    own = Batches(encode_split(tokenizer, corpus.train), corpus.mixture, CONFIG.sequence_length, seed=0)
    model = small_model(n_routed_experts=None, num_nextn_predict_layers=0)
    records = [{"max_violation": [], "seconds": 1.0}] * 3
    report = make_report(model, tokenizer, corpus, own, CONFIG, records)
    missing = ("arithmetic_accuracy", "mtp_agreement", "max_violation")
    assert [report[name] for name in missing] == [None] * 3
    assert set(report["bits_per_byte"]) == {"text", "all"}
    text = format_report(report)
    assert not any(word in text for word in ("arithmetic", "MTP", "MaxVio", "None", "nan"))
