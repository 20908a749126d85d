"""A healthy run has no defect; each defect, planted into it, is found, and only that one; a near miss is none."""

from copy import deepcopy
from dataclasses import replace

import pytest
from pictures import run

from minids.book.health import judge
from minids.training.config import TrainConfig

CONFIG = TrainConfig(steps=200)
HEALTHY = run(200, layers=2)[0]
FINE = dict.fromkeys(["loss", "experts", "mtp", "gradient", "speed"], "")


def rise(records):
    for i, record in enumerate(records[150:]):
        record["next_token"] += 0.02 * i


def die(records):
    for record in records[-20:]:
        record["load"][1][3] = 0


def die_twice(records):
    for record in records[-20:]:
        record["load"][0][0] = record["load"][1][3] = 0


def leak(records):
    for record in records:
        record["mtp"] = 0.7 * record["next_token"]


def explode(records):
    for record in records[60:]:
        record["gradient_norm"] = 1.5


def slow_down(records):
    """And the machine slept for a while, early in the run."""
    for record in records[20:]:
        record["seconds"] += 500
    for i, record in enumerate(records[150:]):
        record["seconds"] += 0.7 * i


def rise_a_little(records):
    for record in records[150:]:
        record["next_token"] *= 1.05


def be_slow_once(records):
    records[-1]["seconds"] += 10


def explode_in_the_warm_up(records):
    """Its config has 80 steps of warm-up, of 100 so far."""
    for record in records[:80]:
        record["gradient_norm"] = 1.5
    del records[100:]


@pytest.mark.parametrize(
    ("plant", "name", "words"),
    [
        (rise, "loss", "above its lowest"), (die, "experts", "1 of 64 experts gets no token"),
        (die_twice, "experts", "2 of 64 experts get no token"),
        (leak, "mtp", "MTP’s loss is 70% of the next token’s"), (explode, "gradient", "of the steps are clipped"),
        (slow_down, "speed", "steps take 3.3 times as long"),
    ],
)  # fmt: skip
def test_a_planted_defect_is_found_and_no_other(plant, name, words):
    records = deepcopy(HEALTHY)
    assert judge(records, CONFIG) == FINE
    plant(records)
    found = judge(records, CONFIG)
    assert found == FINE | {name: found[name]}
    assert words in found[name]


@pytest.mark.parametrize("near_miss", [rise_a_little, be_slow_once, explode_in_the_warm_up])
def test_a_near_miss_is_no_defect(near_miss):
    records = deepcopy(HEALTHY)
    near_miss(records)
    assert judge(records, replace(CONFIG, warmup_fraction=0.4)) == FINE


@pytest.mark.parametrize(
    ("steps", "judged"),
    [
        (1, ""), (19, ""), (20, "experts mtp"), (25, "experts mtp"), (26, "experts mtp gradient"),
        (39, "experts mtp gradient"), (40, "loss experts mtp gradient speed"),
    ],
)  # fmt: skip
def test_a_rule_judges_only_from_enough_steps(steps, judged):
    """The gradient's begins after a warm-up of 6 steps."""
    said = judge([record | {"gradient_norm": 0.5} for record in HEALTHY[:steps]], CONFIG)
    assert said == dict.fromkeys(FINE) | dict.fromkeys(judged.split(), "")


def test_an_expert_that_is_served_once_and_a_layer_that_is_not_trained_are_not_dead():
    records = deepcopy(HEALTHY)
    die(records)
    records[-20]["load"][1][3] = 1
    for record in records:
        record["load"].append([0] * 32)
    assert judge(records, CONFIG) == FINE


def test_a_dense_model_without_mtp_and_a_log_without_norms_and_times_are_judged_by_what_is_there():
    records = [{"step": step, "loss": 3.0, "load": [], "max_violation": [], "mtp": 0.0} for step in range(200)]
    assert judge(records, CONFIG) == dict.fromkeys(FINE) | {"loss": ""}
    for record in records[100:]:
        record["loss"] = 4.0
    assert judge(records, CONFIG) == dict.fromkeys(FINE) | {"loss": "the loss is 33% above its lowest"}
