"""The recorded results against the library of today and against what README says of them."""

import json
import statistics
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minids.book.experiments import miniature
from minids.book.experiments.__main__ import EXPERIMENTS
from minids.book.experiments.attention import (
    MODELS,
    RANKS,
    cut_to_ranks,
    keys_and_values_svd,
    project_keys_and_values,
    silence,
    without_parts,
)
from minids.book.experiments.recorded import SEEDS, changed_arms, load, reports_of
from minids.book.plots.c03_ablation import cached_per_layer
from minids.cost.accounting import count_parameters
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.model.mla import MLA
from minids.model.rope import rope_rotation
from minids.text.data import CORPUS_SHA256

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=EXPERIMENTS)
def recorded(request):
    return EXPERIMENTS[request.param], load(request.param)


def test_every_arm_ran_with_every_seed(recorded):
    experiment, data = recorded
    assert data["seeds"] == list(SEEDS)
    runs = [(row["arm"], row["seed"]) for row in data["runs"]]
    assert runs == [(arm, seed) for seed in SEEDS for arm in experiment.arms]


def test_the_recorded_settings_are_those_of_today(recorded):
    experiment, data = recorded
    assert changed_arms(data, experiment) == []


def test_every_run_was_of_its_arm_and_of_the_corpus_of_today(recorded):
    experiment, data = recorded
    for row in data["runs"]:
        report, arm = row["report"], experiment.arms[row["arm"]]
        count = count_parameters(arm.model)
        assert report["parameters"] == {"total": count.total, "active": count.active, "mtp": count.mtp}
        assert report["corpus_sha256"] == CORPUS_SHA256
        of_today = json.loads(json.dumps(asdict(arm.train)))
        assert report["train"] == of_today | {"seed": row["seed"], "dtype": report["dtype"]}


def test_the_minutes_are_those_of_the_runs(recorded):
    _, data = recorded
    assert data["minutes"] == round(sum(row["report"]["seconds"] for row in data["runs"]) / 60, 1)


# ---------------------------------------------------------------------------------------------------
# mini and its dense twin


@pytest.fixture(scope="module")
def data():
    return load("miniature")


def test_the_table_in_readme_is_that_of_the_recorded_runs(data):
    assert miniature.table(data) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_shows_medians_of_the_seeds(data):
    prose = statistics.median(report["bits_per_byte"]["prose"] for report in reports_of(data, "dense, equal time"))
    line = next(line for line in miniature.table(data).splitlines() if line.startswith("| prose,"))
    assert line.split("|")[4].strip().startswith(f"{prose:.3f} (")


def test_the_log_covers_every_step_of_the_run(data):
    assert [record["step"] for record in data["log"]] == list(range(miniature.STEPS))


# ---------------------------------------------------------------------------------------------------
# Kinds of attention


def test_all_arms_have_the_same_parameters_and_caches_as_named():
    totals = {arm: count_parameters(config).total for arm, config in MODELS.items()}
    assert max(totals.values()) / min(totals.values()) < 1.001
    data = {"arms": {arm: {"model": config.to_hf()} for arm, config in MODELS.items()}}
    assert [cached_per_layer(data, arm) for arm in MODELS] == [384, 128, 64, 128, 128, 64, 64]


def small_mha() -> tuple[DeepSeek, np.ndarray]:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, intermediate_size=16, num_attention_heads=3, head_dim=6,
        initializer_range=0.3,
    )  # fmt: skip
    return DeepSeek(config).eval(), np.random.default_rng(0).integers(50, size=(4, 20))


def test_keys_and_values_have_no_more_rank_than_what_they_are_made_of():
    model, rows = small_mha()
    for values, directions in keys_and_values_svd(model, rows):
        assert directions.shape == (36, 36)
        assert (values[:12] > 1e-3 * values[0]).all()
        assert (values[12:] < 1e-5 * values[0]).all()


def test_the_decomposition_is_of_the_projections_outputs_before_rope():
    model, rows = small_mha()
    values, directions = keys_and_values_svd(model, rows)[0]
    with torch.no_grad():
        u = model.layers[0].input_layernorm(model.embed_tokens(torch.from_numpy(rows[:, :-1])))
        a = model.layers[0].self_attn
        stacked = torch.cat([a.k_proj(u), a.v_proj(u)], dim=-1).flatten(0, 1)
    torch.testing.assert_close((stacked @ directions).norm(dim=0), values, rtol=1e-4, atol=1e-4)


def test_a_projection_on_all_directions_changes_nothing_and_one_on_few_leaves_their_rank():
    model, rows = small_mha()
    tokens = torch.from_numpy(rows)
    with torch.no_grad():
        before = model(tokens)
        decompositions = keys_and_values_svd(model, rows)
        for rank in (12, 5):
            for layer, (_, directions) in zip(model.layers, decompositions, strict=True):
                project_keys_and_values(layer.self_attn, directions[:, :rank])
            if rank == 12:
                torch.testing.assert_close(model(tokens), before, rtol=1e-3, atol=1e-4)
    for layer in model.layers:
        stacked = torch.cat([layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight])
        assert torch.linalg.matrix_rank(stacked) == 5
    assert not torch.allclose(model(tokens), before, atol=1e-2)


@pytest.mark.parametrize("q_lora_rank", [None, 5])
def test_a_silenced_part_leaves_the_scores_of_the_other(q_lora_rank):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=8, hidden_size=12, num_hidden_layers=1, intermediate_size=8, num_attention_heads=2,
        q_lora_rank=q_lora_rank, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4,
    )  # fmt: skip
    x, rotation = torch.randn(1, 7, 12), rope_rotation(config, torch.arange(7))
    for part in ("content", "rotated"):
        layer = MLA(config)
        before = layer.queries(x, rotation)
        silence(layer, part)
        after = layer.queries(x, rotation)
        gone, left = (0, 1) if part == "content" else (1, 0)
        assert not after[gone].any()
        assert torch.equal(after[left], before[left])


def test_each_rank_is_cut_from_the_whole_model(monkeypatch):
    model, rows = small_mha()
    tokens = torch.from_numpy(rows)
    monkeypatch.setattr("minids.book.experiments.attention.RANKS", (3, 12, 7))
    decompositions = keys_and_values_svd(model, rows)

    @torch.no_grad()
    def score(changed):
        return changed(tokens).square().mean().item()

    whole = score(model)
    scores = cut_to_ranks(model, decompositions, score)
    assert scores["12"] == pytest.approx(whole, rel=1e-4)
    alone = deepcopy(model)
    for layer, (_, directions) in zip(alone.layers, decompositions, strict=True):
        project_keys_and_values(layer.self_attn, directions[:, :7])
    assert scores["7"] == pytest.approx(score(alone), rel=1e-6)
    assert len({whole, scores["7"], scores["3"]}) == 3
    assert score(model) == whole


def test_each_part_is_taken_from_the_whole_model():
    torch.manual_seed(0)
    config = replace(MODELS["MLA 48 + 16"], vocab_size=50, hidden_size=24, num_hidden_layers=2, intermediate_size=16)
    model, tokens = DeepSeek(config).eval(), torch.randint(50, (2, 9))

    @torch.no_grad()
    def score(changed):
        return changed(tokens).square().mean().item()

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
