"""The growing model: what it trains, what its scoreboard prints, and that what was recorded is what would be now."""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from minids.book import growing
from minids.book.build import MEASURED
from minids.book.experiments import growing as experiment
from minids.book.growing import BASELINE, RECIPE, STAGES, Written, grow, held_out, scoreboard
from minids.book.recorded import load
from minids.cost.cache import kv_cache_bytes
from minids.cost.parameters import count_parameters
from minids.model.config import ModelConfig
from minids.text.corpus import load_corpus


def test_the_recorded_rows_are_of_the_stages_the_recipe_and_the_text_as_they_are_now():
    recorded = load("growing")
    assert {name: ModelConfig.from_hf(arm["model"]) for name, arm in recorded["arms"].items()} == STAGES
    assert recorded["train"] == json.loads(json.dumps(asdict(RECIPE)))
    assert recorded["corpus_sha256"] == load_corpus().sha256
    assert [(run["arm"], run["seed"]) for run in recorded["runs"]] == [
        (stage, seed) for seed in experiment.SEEDS for stage in STAGES
    ]


def test_the_scoreboard_has_a_row_for_each_stage_so_far(capsys):
    scoreboard("+ MLA", SimpleNamespace(bits_per_byte=2.5, seconds=12.3))
    said = capsys.readouterr().out
    for name, config in STAGES.items():
        bits = [run["bits_per_byte"] for run in load("growing")["runs"] if run["arm"] == name]
        (row,) = [line for line in said.splitlines() if line.startswith(name)]
        count, mean = count_parameters(config), sum(bits) / len(bits)
        numbers = f"{count.total:,} {count.active:,} {kv_cache_bytes(config):,}".split()
        assert row.removeprefix(name).split()[:3] == numbers
        assert f"{mean:.3f} ({min(bits):.3f}–{max(bits):.3f})" in row
        assert ("≈ 2.500 (measured)" in row) == (name == "+ MLA")
    assert "≈ 12 s (measured)" in said
    scoreboard("baseline", SimpleNamespace(bits_per_byte=2.5, seconds=1))
    assert "MLA" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="stage='MTP' is not possible: it must be one of baseline"):
        scoreboard("MTP", None)


def test_a_stage_trains_on_prose_is_scored_on_other_prose_and_writes(monkeypatch):
    few = replace(RECIPE, steps=4, batch_size=2)
    monkeypatch.setattr(growing, "ROWS", 4)
    tiny = replace(BASELINE, hidden_size=32, num_hidden_layers=1, intermediate_size=32, num_attention_heads=1,
                   num_key_value_heads=1)  # fmt: skip
    one, same, other = (grow(tiny, seed, few) for seed in (0, 0, 1))
    assert len(one.history) == 4
    assert not one.model.training
    assert one.seconds > 0
    assert one.bits_per_byte == same.bits_per_byte != other.bits_per_byte
    assert str(one.write("Return the")) == str(same.write("Return the"))
    tokens = torch.from_numpy(held_out()["prose"]).long()
    assert tokens.shape == (4, RECIPE.sequence_length + 1)
    sizes = torch.tensor([len(piece) for piece in one.tokenizer.token_bytes()])
    with torch.no_grad():
        losses = one.model.token_losses(tokens).nats[0][:, 63:]  # of the second halves
    scored = sizes[tokens[:, 64:]]  # without the end-of-text tokens, which have no bytes
    assert one.bits_per_byte == pytest.approx((losses[scored > 0].sum() / scored.sum()).item() / math.log(2), rel=1e-4)


def test_every_line_that_a_live_model_writes_is_masked():
    said = "\n".join(("before", repr(Written("a\n\nb ≈ 3")), "after"))
    assert MEASURED.sub("", said) == "before\n\nafter"
    assert re.fullmatch(r"(│ .*\n?)+", repr(Written("x\n\n")))


def test_other_seeds_are_kept_in_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(experiment, "grow", lambda config, seed: SimpleNamespace(bits_per_byte=2.0 + seed, seconds=1.0))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    path = experiment.record(tmp_path / "new", seeds=(7,))
    assert path == tmp_path / "new" / "growing.json"
    assert [(run["arm"], run["bits_per_byte"]) for run in json.loads(path.read_text())["runs"]] == [
        (stage, 9.0) for stage in STAGES
    ]
