"""The trained miniature in the package: what it says of itself is true, here and in transformers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hf_oracle import load_mtp, load_twin
from safetensors import safe_open
from transformers import AutoTokenizer

from minids import ModelConfig, generate, reference
from minids.book.experiments.reference import quick_scores
from minids.hub.reference import REFERENCE
from minids.text.corpus import CORPUS_SHA256, load_corpus
from minids.training.config import MINIATURE
from minids.training.report import spread


@pytest.fixture(scope="module")
def book():
    return reference()


def test_the_folder_holds_the_released_layout_in_at_most_12_megabytes():
    files = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "report.json"}
    assert {path.name for path in REFERENCE.iterdir()} == files
    assert sum(path.stat().st_size for path in REFERENCE.iterdir()) <= 12_000_000


def test_matrices_are_stored_in_bfloat16_and_the_biases_in_float32():
    with safe_open(REFERENCE / "model.safetensors", framework="pt") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, no mapping
    biases = {name for name in dtypes if name.endswith("e_score_correction_bias")}
    assert len(biases) == 4
    assert {dtypes[name] for name in biases} == {"F32"}
    assert {dtypes[name] for name in dtypes.keys() - biases} == {"BF16"}


def test_it_is_the_preset_trained_by_the_default_recipe(book):
    assert book.model.config == ModelConfig.preset("mini")
    assert book.tokenizer.vocab_size == book.model.config.vocab_size
    trained = book.report["train"]
    assert trained == json.loads(json.dumps(vars(replace(MINIATURE, dtype=trained["dtype"]))))
    assert book.report["corpus_sha256"] == CORPUS_SHA256


def test_its_bits_per_byte_are_the_recorded_ones(book):
    corpus = load_corpus()
    if corpus.sha256 != CORPUS_SHA256:
        pytest.skip("the corpus on this machine is another one")
    measured = quick_scores(book.model, book.tokenizer, corpus)
    recorded = book.report["quick_bits_per_byte"]
    assert measured.keys() == recorded.keys() == {"prose", "code", "arithmetic"}
    for domain, bits in recorded.items():
        assert measured[domain] == pytest.approx(bits, rel=1e-3)
        # The sample is small; it may differ from the whole, though not by much.
        assert bits == pytest.approx(book.report["bits_per_byte"][domain], rel=0.2)


@pytest.mark.parametrize("there", [1, 5, 12, 13, 23, 256])
def test_the_rows_of_a_quick_score_are_different_and_reach_from_the_first_to_the_last(there):
    rows = np.arange(there * 3).reshape(there, 3)
    chosen = spread(rows, 12)
    assert len(chosen) == len(np.unique(chosen, axis=0)) == min(there, 12)
    assert (chosen[[0, -1]] == rows[[0, -1]]).all()


def test_it_learned_something_in_every_domain(book):
    for domain, bits in book.report["bits_per_byte"].items():
        assert bits < book.report["baseline_bits_per_byte"][domain]
    assert book.report["arithmetic_accuracy"] > book.report["arithmetic_accuracy_by_digits"]["best_constant"]
    assert book.report["mtp_agreement"] > 0.5
    assert book.report["max_violation"]["last_20_steps"] < 0.6


def test_transformers_writes_the_same_text_from_it(book):
    """Its own tokenizer, its own model, and then its own speculative decoding, drafted by the MTP module."""
    twin, their_tokenizer = load_twin(REFERENCE), AutoTokenizer.from_pretrained(REFERENCE)
    load_mtp(twin)
    for text in ("Return the", "def ", "12+7="):
        prompt = their_tokenizer(text, return_tensors="pt")
        assert prompt.input_ids[0].tolist() == [book.tokenizer.end_of_text, *book.tokenizer.encode(text)]
        ours = generate(book.model, prompt.input_ids, 40).tokens
        assert torch.equal(generate(book.model, prompt.input_ids, 40, speculative=True).tokens, ours)
        for use_mtp in (False, True):
            settings = dict(max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0, use_mtp=use_mtp)
            assert torch.equal(twin.generate(**prompt, **settings), ours)


def test_loading_it_touches_no_random_state_and_gives_separate_models(book):
    state = torch.get_rng_state()
    other = reference()
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        other.model.lm_head.weight.zero_()
    assert book.model.lm_head.weight.any()
