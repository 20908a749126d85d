"""The model card, read by Hugging Face's own parser; its code is run, and its numbers are those of the report."""

import re
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import yaml
from configurations import configurations, examples, random_model
from helpers_hub import SMALL
from helpers_training import small_corpus, small_train_config
from huggingface_hub import ModelCard
from hypothesis import given

from minids.cost.parameters import count_parameters
from minids.hub.card import model_card
from minids.hub.reference import reference
from minids.hub.save import save_pretrained
from minids.text.batches import Batches, encode_split
from minids.text.corpus import CORPUS_SHA256
from minids.text.tokenizer import Tokenizer
from minids.training.report import make_report

LATER = {"intervals", "arithmetic_problems", "identifiers", "contamination"}
OLDER = {name: value for name, value in reference().report.items() if name not in LATER}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for texts in small_corpus().train.values() for text in texts], 300)


@pytest.fixture(scope="module")
def report(model, tokenizer):
    corpus, config = small_corpus(), small_train_config(steps=2)
    batches = Batches(encode_split(tokenizer, corpus.train), corpus.mixture, config.sequence_length, seed=0)
    records = [{"max_violation": [0.5], "load": [[1, 2]], "seconds": 1.0}] * 2
    return make_report(model, tokenizer, corpus, batches, config, records)


def card(model, folder, **options) -> ModelCard:
    save_pretrained(model, folder, **options)
    return ModelCard.load(folder / "README.md")


@examples(15)
@given(configurations())
def test_every_model_has_a_card_of_its_sizes_and_claims_no_more(tmp_path_factory, config):
    found = card(random_model(config), tmp_path_factory.mktemp("hub") / "model")
    count = count_parameters(config)
    assert f"| parameters | {count.total:,} |" in found.text
    assert f"{count.active:,} |" in found.text
    assert (f" | {count.mtp:,} |" in found.text) == (count.mtp > 0)
    assert re.findall("(?m)^## (.*)", found.text) == ["Sizes", "Loading"]
    data = found.data.to_dict()
    assert data.keys() == {"license", "library_name", "pipeline_tag", "tags"}
    family = config.to_hf()["model_type"]
    assert (data["library_name"], data["license"]) == ("minids" if family == "minids" else "transformers", "unknown")
    assert ("mixture-of-experts" in data["tags"], "mla" in data["tags"]) == (config.uses_moe, config.uses_mla)
    assert "None" not in found.content


def test_the_card_of_a_run_has_its_facts_and_its_scores_as_results(model, tokenizer, report, tmp_path):
    found = card(model, tmp_path / "my: #model", tokenizer=tokenizer, report=report)
    assert found.data.model_name == "my: #model"
    domains = ["prose", "code", "arithmetic"]
    bits = {
        result.dataset_config: result for result in found.data.eval_results if result.metric_type == "bits_per_byte"
    }
    assert {d: bits[d].metric_value for d in bits} == {d: round(report["bits_per_byte"][d], 4) for d in domains}
    assert {result.dataset_revision for result in bits.values()} == {report["corpus_sha256"]}
    (accuracy,) = (result for result in found.data.eval_results if result.metric_type == "accuracy")
    assert (accuracy.dataset_config, accuracy.metric_value) == ("arithmetic", report["arithmetic_accuracy"])
    for fact in ("sequences of 16 tokens", "the user's own text", "weights in float32"):
        assert fact in found.text, fact
    assert found.data.license == "unknown"


def test_every_table_and_limit_of_a_card_says_what_report_and_configuration_say():
    book = reference()
    model, c, asked = book.model, book.model.config, book.report["identifiers"]
    train = book.report["train"] | {"optimizer": "muon", "dtype": "float16"}
    names = asked | {"new": {"asked": 0, "model": None}}
    report = book.report | {"train": train, "dtype": "float32", "identifiers": names}
    text = model_card(c, "mini", "bfloat16", report, tokenizer=True, transformers=True)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    found = {first: rest for first, *rest in lines if first not in ("", "---")}
    count, chosen = report["parameters"], c.num_experts_per_tok
    moe = [layer for layer in model.layers if hasattr(layer.mlp, "experts")]
    digits, train_row = report["arithmetic_accuracy_by_digits"], ("steps", "batch_size", "sequence_length")
    base, intervals, prose = report["baseline_bits_per_byte"], report["intervals"], report["contamination"]["prose"]
    bits, below = intervals["bits_per_byte"], intervals["below_baseline"]

    def measured(value, interval, form=".1%"):
        low, high = interval
        return f"{value:{form}} ({low:{form}} to {high:{form}})"

    assert found == {
        "parameters": [f"{count['total']:,}"],
        "active per token (body and head, without the embedding)": [f"{count['active']:,}"],
        "in MTP modules, on top of these": [f"{count['mtp']:,}"],
        "layers": [str(len(model.layers))], "width": [str(c.hidden_size)], "layers with experts": [str(len(moe))],
        "experts in each: routed, of these active, shared": [f"{c.n_routed_experts}, {chosen}, {c.n_shared_experts}"],
        "width of an expert": [str(c.moe_intermediate_size)], "MTP modules": [str(len(model.mtp))],
        "heads": [str(c.num_attention_heads)], "vocabulary": [f"{c.vocab_size:,}"], "weights stored in": ["bfloat16"],
        "cache per token in BF16": [f"{2 * len(model.layers) * (c.kv_lora_rank + c.qk_rope_head_dim)} bytes"],
        "tokens": [f"{report['tokens']:,}"], "optimizer": ["Muon for the matrices, AdamW for the rest"],
        "steps, sequences per step, tokens per sequence": [", ".join(str(train[name]) for name in train_row)],
        "peak learning rate": [str(train["learning_rate"])], "seed": [str(train["seed"])],
        "products computed in": ["float16"], "SHA-256 of the corpus": [f"`{CORPUS_SHA256}`"],
        "held-out text": ["bits per byte", "5-gram", "below the 5-gram"],
        **{
            name.replace("_", " "): [
                measured(ours, bits[name], ".3f"), f"{base[name]:.3f}", measured(1 - ours / base[name], below[name])
            ] for name, ours in report["bits_per_byte"].items()
        },
        "share that is exactly right": ["model", "for comparison"],
        "arithmetic, held-out problems": [
            measured(report["arithmetic_accuracy"], intervals["arithmetic_accuracy"]["all"]),
            f"always the commonest answer: {digits['best_constant']:.1%}",
        ],
        "names in code that occur above": [
            measured(asked["above"]["model"], asked["above"]["interval"]),
            f"what followed the same word before: {asked['above']['rule']:.1%}",
        ],
        "MTP's token, the main head's in its place": [f"{report['mtp_agreement']:.1%}", ""],
    }  # fmt: skip
    assert "computing in float32; these files store the weights in bfloat16" in text
    for limit in (
        f"{report['tokens'] / count['total']:.2g} tokens per parameter",
        f"numbers of 3 digits, it solves {digits['3']:.1%}",
        f"{prose['windows']:.1%} of the 50-byte windows of held-out prose occur",
        f"and {prose['repeated_rows']} of {prose['rows']} scored rows hold",
    ):  # fmt: skip
        assert limit in text, limit


def test_a_mistake_in_the_library_is_not_blamed_on_the_report(monkeypatch):
    monkeypatch.setattr("minids.hub.card.count_parameters", Mock(side_effect=KeyError("width")))
    with pytest.raises(KeyError, match="width"):
        model_card(SMALL, "model", "float32", OLDER, tokenizer=False, transformers=True)


def test_the_book_s_model_has_the_book_s_license_and_an_older_report_gives_a_card_without_intervals(model, tmp_path):
    assert OLDER["corpus_sha256"] == CORPUS_SHA256
    found = card(model, tmp_path / "model", report=OLDER)
    assert (found.data.license, found.data.language) == ("mit", ["en"])
    assert len(found.data.eval_results) == 4
    assert "95%" not in found.text
    assert f"| prose | {OLDER['bits_per_byte']['prose']:.3f} |" in found.text


@pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning")
def test_the_code_on_the_card_runs_beside_the_folder(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = random_model(replace(SMALL, vocab_size=tokenizer.vocab_size))
    for options in (dict(tokenizer=tokenizer), {}):
        found = card(model, tmp_path / f'a "model" {len(options)}', **options)
        ours, theirs = re.findall(r"```python\n(.*?)```", found.text, re.DOTALL)
        exec(ours, loaded := {})
        exec(theirs, loaded_there := {})
        tokens = torch.tensor([[5, 7, 9]])
        logits = loaded_there["model"](tokens).logits
        torch.testing.assert_close(loaded["model"](tokens), logits, rtol=1e-3, atol=1e-4)


def test_files_that_transformers_misreads_are_not_offered_to_it(model, tmp_path):
    fp8 = dict(dtype=torch.float8_e4m3fn)
    read, other = (
        card(model, tmp_path / str(i), **fp8, weight_block_size=block) for i, block in enumerate([(128, 128), (48, 48)])
    )
    assert "| weights stored in | float8_e4m3fn |" in read.text
    assert (read.data.library_name, other.data.library_name) == ("transformers", "minids")
    assert "transformers does not read these files" in other.text


def test_saving_again_replaces_the_card(model, report, tmp_path):
    first = card(model, tmp_path / "model", report=report)
    again = card(model, tmp_path / "model", overwrite=True)
    assert "Scores" in first.text
    assert "Scores" not in again.text


@pytest.mark.parametrize("entry", [{"bits_per_byte": 1.5}, {"tokens": "many", "train": 3}, {"intervals": 3}])
def test_a_report_of_another_form_is_refused_in_one_sentence(model, report, tmp_path, entry):
    with pytest.raises(ValueError, match=r"^report=.* is not possible: it must be the report of a run[^.]*\.$"):
        save_pretrained(model, tmp_path / "model", report=report | entry)
    assert not (tmp_path / "model").exists()


def test_the_front_matter_is_yaml_whatever_the_folder_is_called(model, report, tmp_path):
    for name in ("a: b", "# c", "- d", "'e", '"f"', "深 👩", "g\nh", "1e5", "null", "---", "i\x7f"):
        save_pretrained(model, tmp_path / name, report=report)
        entries = yaml.safe_load((tmp_path / name / "README.md").read_text().split("\n---\n")[0])
        assert entries["model-index"][0]["name"] == " ".join(name.split()).replace("\x7f", "?")
