"""The layouts are consistent: GPUs, experts and places add up."""

from dataclasses import replace

import pytest

from minids.cost.cluster import DAY_6, REPORT, V3_TRAINING, V3_UNITS, Training
from minids.model.config import ModelConfig

V3 = ModelConfig.preset("deepseek-v3")


def test_the_training_cluster_is_as_the_report_says():
    t = V3_TRAINING
    assert (t.nodes, t.gpus_per_stage, t.nodes_per_set, t.sets) == (256, 128, 8, 2)
    assert t.stages * t.sets * t.expert_gpus == t.gpus == 2048
    assert t.nodes_per_set == V3.n_group  # a group of experts is a node
    held = [expert for gpu in range(t.expert_gpus) for expert in t.experts_of_gpu(V3, gpu)]
    assert held == list(range(256))
    assert t.experts_of_gpu(V3, 9) == range(36, 40)


def test_the_units_are_as_published():
    units = {(unit.phase, unit.source): unit for unit in V3_UNITS}
    assert {key: (unit.nodes, unit.gpus, unit.attention_groups, unit.each) for key, unit in units.items()} == {
        ("prefill", REPORT): (4, 32, 8, 9), ("prefill", DAY_6): (4, 32, 32, 9),
        ("decoding", REPORT): (40, 320, 80, 1), ("decoding", DAY_6): (18, 144, 144, 2),
    }  # fmt: skip
    assert 32 * 9 == 144 * 2 == 256 + 32
    assert 320 * 1 == 256 + 64


def test_what_does_not_add_up_is_refused():
    with pytest.raises(ValueError, match=r"^others=64 is not possible: it must be 288 places - 256 routed experts\.$"):
        replace(V3_UNITS[0], others=64)
    with pytest.raises(ValueError, match=r"^gpus=2000 .* a multiple of stages · expert_gpus, 1024"):
        Training(gpus=2000)
    with pytest.raises(ValueError, match=r"^expert_gpus=4 .* a multiple of gpus_per_node=8"):
        Training(expert_gpus=4)
    with pytest.raises(ValueError, match=r"^expert_gpus=64 .* a divisor of n_routed_experts=160"):
        V3_TRAINING.experts_of_gpu(ModelConfig.preset("deepseek-v2"), 0)
    with pytest.raises(ValueError, match=r"^gpu=64 .* from 0 to 63"):
        V3_TRAINING.experts_of_gpu(V3, 64)
