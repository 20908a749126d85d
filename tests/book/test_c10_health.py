"""A healthy run has no defect; each defect, planted into it, is found, and only that one."""

from copy import deepcopy

import pytest
from pictures import run

from minids.book.health import defects
from minids.training.config import TrainConfig

CONFIG = TrainConfig(steps=200)
HEALTHY = run(200, layers=2)[0]


def rise(records):
    for i, record in enumerate(records[150:]):
        record["next_token"] += 0.02 * i


def die(records):
    for record in records[-20:]:
        record["load"][1][3] = 0


def leak(records):
    for record in records:
        record["mtp"] = 0.7 * record["next_token"]


def explode(records):
    for record in records[60:]:
        record["gradient_norm"] = 1.5


def slow_down(records):
    for i, record in enumerate(records[150:]):
        record["seconds"] += 0.7 * i


@pytest.mark.parametrize(
    ("plant", "name", "words"),
    [
        (rise, "loss", "above its lowest"), (die, "experts", "1 of 64 experts gets no token"),
        (leak, "mtp", "MTP’s loss is 70% of the next token’s"), (explode, "gradient", "of the steps are clipped"),
        (slow_down, "speed", "steps take 3.3 times as long"),
    ],
)  # fmt: skip
def test_a_planted_defect_is_found_and_no_other(plant, name, words):
    records = deepcopy(HEALTHY)
    assert defects(records, CONFIG) == {}
    plant(records)
    found = defects(records, CONFIG)
    assert found.keys() == {name}
    assert words in found[name]


@pytest.mark.parametrize("plant", [rise, die, leak, explode, slow_down])
def test_a_defect_is_not_claimed_from_a_few_steps(plant):
    records = deepcopy(HEALTHY)
    plant(records)
    for record in records[:19]:
        record["load"][0][0] = 0
    assert defects(records[:19], CONFIG) == {}


def test_an_expert_that_is_served_once_and_a_layer_that_is_not_trained_are_not_dead():
    records = deepcopy(HEALTHY)
    die(records)
    records[-20]["load"][1][3] = 1
    for record in records:
        record["load"].append([0] * 32)
    assert defects(records, CONFIG) == {}


def test_a_dense_model_without_mtp_and_a_log_without_norms_and_times_are_judged_by_what_is_there():
    records = [{"step": step, "loss": 3.0, "load": [], "max_violation": [], "mtp": 0.0} for step in range(200)]
    assert defects(records, CONFIG) == {}
    for record in records[100:]:
        record["loss"] = 4.0
    assert defects(records, CONFIG).keys() == {"loss"}
