"""The recorded results against the library of today and against what README says of them."""

import json
import statistics
from pathlib import Path

import pytest

from minids.accounting import count_parameters
from minids.config import ModelConfig
from minids.data import CORPUS_SHA256
from minids.experiments import miniature
from minids.train import TrainConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data():
    return json.loads(miniature.TARGET.read_text())


def test_every_arm_ran_with_every_seed(data):
    runs = [(row["arm"], row["seed"]) for row in data["runs"]]
    assert sorted(runs) == sorted((arm, seed) for arm in miniature.ARMS for seed in miniature.SEEDS)


def test_the_recorded_runs_are_of_the_presets_schedule_and_corpus_of_today(data):
    for row in data["runs"]:
        preset, steps = miniature.ARMS[row["arm"]]
        report, count = row["report"], count_parameters(ModelConfig.preset(preset))
        assert report["preset"] == preset
        assert report["parameters"] == {"total": count.total, "active": count.active, "mtp": count.mtp}
        assert report["corpus_sha256"] == CORPUS_SHA256
        today = TrainConfig(steps=steps, seed=row["seed"], dtype=report["dtype"])
        recorded = TrainConfig(**{**report["train"], "betas": tuple(report["train"]["betas"])})
        assert recorded == today


def test_the_table_in_readme_is_that_of_the_recorded_runs(data):
    assert miniature.table(data) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_shows_medians_of_the_seeds(data):
    prose = statistics.median(
        row["report"]["bits_per_byte"]["prose"] for row in data["runs"] if row["arm"] == "dense, equal time"
    )
    line = next(line for line in miniature.table(data).splitlines() if line.startswith("| prose,"))
    assert line.split("|")[4].strip().startswith(f"{prose:.3f} (")


def test_the_log_covers_every_step_of_the_run(data):
    assert [record["step"] for record in data["log"]] == list(range(miniature.STEPS))
