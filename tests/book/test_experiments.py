"""The recorded results against the library of today and against what README says of them."""

import json
import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minids.book import ablation
from minids.book.experiments import costs, miniature
from minids.book.experiments.__main__ import EXPERIMENTS, POOLED
from minids.book.experiments.ablation import FASTER
from minids.book.experiments.attention import MODELS, RANKS, cut_to_ranks, without_parts
from minids.book.experiments.pool import Arm, jobs
from minids.book.experiments.runner import SEEDS, changed_arms
from minids.book.probes.attention import keys_and_values_svd, project_keys_and_values, silence
from minids.book.recorded import cached_per_layer, load, reports_of
from minids.cost.parameters import count_parameters
from minids.model.deepseek import DeepSeek
from minids.text.corpus import CORPUS_SHA256
from minids.training.config import MINIATURE, TrainConfig

ROOT = Path(__file__).parents[2]


def settings_of_today(train: TrainConfig, recorded: dict) -> dict:
    """The settings that a record names. Later came the block, which does nothing without FP8, and other optimizers."""
    of_today = json.loads(json.dumps(asdict(train)))
    assert of_today.keys() - recorded.keys() <= {"fp8_block", "optimizer"}
    assert "optimizer" in recorded or train.optimizer == "adamw"
    return {name: of_today[name] for name in recorded}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_was_of_an_arm_and_of_the_corpus_of_today(name):
    experiment, data = EXPERIMENTS[name], load(name)
    assert changed_arms(data, experiment) == []
    assert data["seeds"] == list(SEEDS)
    assert [(r["arm"], r["seed"]) for r in data["runs"]] == [(arm, seed) for seed in SEEDS for arm in experiment.arms]
    for row in data["runs"]:
        report, arm = row["report"], experiment.arms[row["arm"]]
        count = count_parameters(arm.model)
        assert report["parameters"] == {"total": count.total, "active": count.active, "mtp": count.mtp}
        assert report["corpus_sha256"] == CORPUS_SHA256
        of_today = settings_of_today(arm.train, report["train"])
        assert report["train"] == of_today | {"seed": row["seed"], "dtype": report["dtype"]}
    assert data["minutes"] == round(sum(row["report"]["seconds"] for row in data["runs"]) / 60, 1)


@pytest.mark.parametrize("name", POOLED)
def test_every_short_run_was_of_an_arm_and_of_the_corpus_of_today(name):
    experiment, data = POOLED[name], load(name)
    arms = {arm: settings.settings() for arm, settings in experiment.arms.items()}
    of_today = {"train": settings_of_today(experiment.train, data["train"]), "arms": arms, "seeds": experiment.seeds}
    assert {key: data[key] for key in of_today} == json.loads(json.dumps(of_today))
    assert data["corpus_sha256"] == CORPUS_SHA256
    assert [(row["arm"], row["weights"], row["data"]) for row in data["runs"]] == jobs(experiment)
    assert data["minutes"] == round(sum(row["seconds"] for row in data["runs"]) / 60, 1)


# ---------------------------------------------------------------------------------------------------
# mini and its dense twin


def test_the_table_in_readme_is_that_of_the_recorded_runs_with_medians_of_the_seeds():
    table = miniature.table(load("miniature"))
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
    reports = reports_of(load("miniature"), "dense, equal time")
    prose = statistics.median(report["bits_per_byte"]["prose"] for report in reports)
    (line,) = (line for line in table.splitlines() if line.startswith("| prose,"))
    assert line.split("|")[5].strip().startswith(f"{prose:.3f} (")


def test_the_ablation_in_readme_is_that_of_the_recorded_runs():
    assert ablation.table(ablation.recorded_rows()) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_at_equal_time_an_arm_has_as_many_more_steps_as_its_step_was_measured_to_be_faster():
    recorded = load("costs")["arms"]
    assert recorded.keys() == costs.MODELS.keys()
    for name, faster in FASTER.items():
        step = recorded[name]["step"]
        assert step["lowest"] < 1 / faster < step["highest"]
        arm = POOLED["ablation"].arms[f"{name.removesuffix(', active')}, equal time"]
        assert arm == Arm(costs.MODELS[name].model, {"steps": round(POOLED["ablation"].train.steps * faster)})


def test_the_log_covers_every_step_of_the_run():
    assert [record["step"] for record in load("miniature")["log"]] == list(range(MINIATURE.steps))


# ---------------------------------------------------------------------------------------------------
# Kinds of attention


def test_all_arms_have_the_same_parameters_and_caches_as_named():
    totals = {arm: count_parameters(config).total for arm, config in MODELS.items()}
    assert max(totals.values()) / min(totals.values()) < 1.001
    data = {"arms": {arm: {"model": config.to_hf()} for arm, config in MODELS.items()}}
    assert [cached_per_layer(data, arm) for arm in MODELS] == [384, 128, 64, 128, 128, 64, 64]


def small(arm: str) -> tuple[DeepSeek, Tensor, Callable[[DeepSeek], float]]:
    """A small model with the attention of an arm, tokens, and a score that every change of a weight changes."""
    config = replace(MODELS[arm], vocab_size=50, hidden_size=12, num_hidden_layers=2, initializer_range=0.3)
    tokens_BT = torch.randint(50, (4, 20))

    @torch.no_grad()
    def score(changed: DeepSeek) -> float:
        return changed(tokens_BT).square().mean().item()

    return DeepSeek(config).eval(), tokens_BT, score


def test_each_rank_is_cut_from_the_whole_model(monkeypatch):
    monkeypatch.setattr("minids.book.experiments.attention.RANKS", (3, 12, 7))
    model, tokens_BT, score = small("MHA")
    decompositions = keys_and_values_svd(model, tokens_BT.numpy())
    whole, scores, alone = score(model), cut_to_ranks(model, decompositions, score), deepcopy(model)
    for layer, (_, directions) in zip(alone.layers, decompositions, strict=True):
        project_keys_and_values(layer.self_attn, directions[:, :7])
    assert scores["12"] == pytest.approx(whole, rel=1e-4), "all the rank that inputs of width 12 have"
    assert scores["7"] == pytest.approx(score(alone), rel=1e-6)
    assert len({whole, scores["7"], scores["3"]}) == 3
    assert score(model) == whole


def test_each_part_is_taken_from_the_whole_model():
    model, _, score = small("MLA 48 + 16")
    whole, scores = score(model), without_parts(model, score)
    for part in ("content", "rotated"):
        alone = deepcopy(model)
        for layer in alone.layers:
            silence(layer.self_attn, part)
        assert scores[f"without the {part} part"] == score(alone) != whole
    assert score(model) == whole


def test_ranks_and_parts_are_measured_where_they_should_be():
    for row in load("attention")["runs"]:
        measured = row.get("measured", {}).get("bits_per_byte")
        if row["arm"] == "MHA":
            assert measured.keys() == {"as trained", *map(str, RANKS)}
            assert measured["192"] == pytest.approx(measured["as trained"], abs=1e-4)  # all the rank there is
        elif row["arm"].startswith("MLA"):
            assert measured.keys() == {"as trained", "without the content part", "without the rotated part"}
        else:
            assert measured is None
