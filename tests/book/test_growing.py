"""The growing model: what it trains, what its scoreboard prints, and what is recorded of it."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minids.book import growing
from minids.book.build import MEASURED
from minids.book.experiments import growing as experiment
from minids.book.experiments.pool import jobs
from minids.book.growing import BASELINE, CHANGES, RECIPE, STAGES, Grown, Written, grow, held_out, scoreboard, write
from minids.book.recorded import load
from minids.cost.cache import kv_cache_bytes
from minids.cost.parameters import count_parameters
from minids.hub.reference import reference
from minids.training.run import start_run


def test_the_scoreboard_has_a_row_for_each_stage_so_far(capsys):
    *_, last = STAGES
    scoreboard(last, SimpleNamespace(bits_per_byte=2.5, seconds=12.3))
    said = capsys.readouterr().out
    for name, config in STAGES.items():
        runs = [run for run in load("growing")["runs"] if run["arm"] == name]
        bits = [run["bits_per_byte"] for run in runs]
        (row,) = [line for line in said.splitlines() if line.startswith(name)]
        count, mean = count_parameters(config), sum(bits) / len(bits)
        numbers = f"{count.total:,} {count.active:,} {kv_cache_bytes(config):,}".split()
        assert row.removeprefix(name).split()[:3] == numbers
        if config.uses_moe:
            assert row.removeprefix(name).split()[4] == f"{np.mean([run['max_violation'] for run in runs]):.2f}"
        if config.num_nextn_predict_layers:
            assert row.removeprefix(name).split()[5] == f"{np.mean([run['acceptance'] for run in runs]):.0%}"
        assert f"{mean:.3f} ({min(bits):.3f}–{max(bits):.3f})" in row
        assert ("≈ 2.500 (measured)" in row) == (name == last)
    assert "≈ 12 s (measured)" in said
    assert f"module's {count.mtp:,} parameters are not counted" in said
    assert max(map(len, said.splitlines())) <= 100
    scoreboard(last)
    without = capsys.readouterr().out
    assert not any(word in without for word in ("(measured)", "here"))
    scoreboard("baseline", SimpleNamespace(bits_per_byte=2.5, seconds=1))
    assert not any(word in capsys.readouterr().out for word in ("MLA", "MaxVio", "drafts"))
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
    assert one.max_violation is None
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
    assert re.fullmatch(r"(│ .*\n?)+", repr(Written("x\n\n", 40, 27)))
    assert repr(Written("x\n", 40, 27)) == "│ x\n│ [40 tokens in 27 steps]"
    assert repr(Written("x\n", 40, 40)) == "│ x"


def test_a_model_writes_the_same_in_fewer_steps_with_its_mtp_module():
    model, tokenizer = reference().model, reference().tokenizer
    plain = write(model, tokenizer, "Return the", 20, temperature=0)
    drafted = write(model, tokenizer, "Return the", 20, temperature=0, speculative=True)
    assert (plain.text, plain.tokens, plain.steps) == (drafted.text, 20, 20)
    assert drafted.tokens == 20 > drafted.steps
    grown = Grown(model, tokenizer, [], 0, 0)
    sampled = grown.write("Return the", 20, speculative=True)
    assert (sampled.tokens, sampled == grown.write("Return the", 20)) == (20, False)


def test_max_violation_is_the_mean_over_layers_and_the_last_20_steps(monkeypatch):
    runs, few = [], replace(RECIPE, steps=22, batch_size=1, sequence_length=16)
    monkeypatch.setattr(growing, "ROWS", 1)
    monkeypatch.setattr(growing, "start_run", lambda *a, **named: runs.append(start_run(*a, **named)) or runs[0])
    grown = grow(STAGES["+ bias"], 0, few)
    last = [record["max_violation"] for record in runs[0].trainer.records[2:]]
    assert grown.max_violation == pytest.approx(np.mean(last))


def test_acceptance_is_how_often_the_main_head_and_the_mtp_module_have_one_likeliest_token(monkeypatch):
    monkeypatch.setattr(growing, "ROWS", 3)
    grown = grow(replace(STAGES["+ MTP"], num_hidden_layers=1), 0, replace(RECIPE, steps=3, batch_size=2))
    model, tokens = grown.model, torch.from_numpy(held_out()["prose"]).long()[:, :-1]
    with torch.no_grad():
        main, _ = model.hidden_states(tokens)
        ((draft, _),) = model.mtp_hidden_states(tokens, main)
        agree = model.lm_head(main)[:, 1:].argmax(-1) == model.lm_head(draft).argmax(-1)
    assert grown.acceptance == pytest.approx(agree.double().mean().item())
    assert 0 < grown.acceptance < 1
    assert grow(BASELINE, 0, replace(RECIPE, steps=1, batch_size=1)).acceptance is None


def test_what_is_recorded_are_the_stages_trained_as_in_the_chapters(monkeypatch):
    asked = []
    dense, routed, drafting = (
        SimpleNamespace(bits_per_byte=2.5, seconds=1.26, max_violation=violation, acceptance=acceptance)
        for violation, acceptance in ((None, None), (0.12345, None), (0.12345, 0.56789))
    )
    answers = iter((dense, routed, drafting, drafting))
    monkeypatch.setattr(experiment, "grow", lambda *given: asked.append(given) or next(answers))
    assert experiment.run("+ MLA", 7, 7) == {"bits_per_byte": 2.5, "seconds": 1.3}
    assert experiment.run("+ MoE", 8, 8) == {"bits_per_byte": 2.5, "seconds": 1.3, "max_violation": 0.123}
    for stage in ("+ MTP", "+ FP8"):
        assert experiment.run(stage, 9, 9) == {
            "bits_per_byte": 2.5, "seconds": 1.3, "max_violation": 0.123, "acceptance": 0.568
        }  # fmt: skip
    in_fp8 = replace(RECIPE, dtype="fp8", fp8_block=32)
    assert asked == [
        (STAGES["+ MLA"], 7, RECIPE), (STAGES["+ MoE"], 8, RECIPE), (STAGES["+ MTP"], 9, RECIPE),
        (STAGES["+ FP8"], 9, in_fp8),
    ]  # fmt: skip
    recorded = experiment.EXPERIMENT
    assert {name: (arm.model, arm.train) for name, arm in recorded.arms.items()} == {
        n: (c, CHANGES.get(n, {})) for n, c in STAGES.items()
    }
    assert recorded.train == RECIPE
    assert {(weights, data) for _, weights, data in jobs(recorded)} == {(seed, seed) for seed in range(5)}
