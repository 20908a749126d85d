"""The benchmarks: that they time what they say, compare what is equal, and count what disturbs."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from minids.book.bench import decoding, experts, growth, measure, peer, training
from minids.book.bench.__main__ import TARGET, environment
from minids.book.bench.measure import Sample, alternate, ratio, summary
from minids.book.bench.peak import peak_of
from minids.book.bench.table import table
from minids.cost import accounting
from minids.hub.hub import save_pretrained
from minids.model.config import ModelConfig

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def data():
    return json.loads(TARGET.read_text())


@pytest.fixture
def tiny(monkeypatch):
    """All benchmarks on the smallest model, and a sample after a single call."""
    small = replace(ModelConfig.preset("tiny"), num_nextn_predict_layers=0)
    monkeypatch.setitem(peer.CONFIGS, "16 experts", small)
    monkeypatch.setitem(peer.BATCH, "16 experts", 2)
    monkeypatch.setattr(training, "LENGTH", 16)
    monkeypatch.setattr(growth, "BASE", small)
    monkeypatch.setattr(growth, "LENGTH", 16)
    monkeypatch.setattr(measure, "LEAST_SECONDS", 0.0)


# ---------------------------------------------------------------------------------------------------
# Taking times


def test_sides_take_turns_and_every_second_round_runs_in_reverse():
    calls = []
    alternate({name: lambda n=name: calls.append(n) for name in "ab"}, rounds=3, warmup=1, least_seconds=0)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"


def test_what_is_fast_runs_until_a_sample_is_long_enough(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    calls = []
    samples = alternate({"a": lambda: calls.append(1)}, rounds=1, warmup=1, least_seconds=5)
    assert len(calls) == 1 + 5  # one second a call, says this clock
    assert samples["a"][0].seconds == 1 / 5


def test_a_ratio_is_the_median_of_the_rounds():
    slow = [Sample(seconds, 0.0) for seconds in (4.0, 9.0, 10.0)]
    fast = [Sample(seconds, 0.0) for seconds in (2.0, 3.0, 1.0)]
    assert ratio(slow, fast) == {"median": 3.0, "lowest": 2.0, "highest": 10.0, "rounds": 3, "disturbed": 0}


def test_disturbed_rounds_are_left_out_while_three_remain_and_counted_in_any_case():
    quiet, disturbed = Sample(2.0, 0.0), Sample(50.0, 0.5)
    ones = [Sample(1.0, None)] * 5
    assert ratio([quiet] * 3 + [disturbed] * 2, ones)["median"] == 2
    assert ratio([quiet] * 2 + [disturbed] * 3, ones)["median"] == 50
    assert ratio([quiet] * 3 + [disturbed] * 2, ones)["disturbed"] == 2
    assert summary([quiet, disturbed, quiet])["disturbed"] == 1


@pytest.mark.skipif(not measure.CPU_TIMES.exists(), reason="the system does not say who was busy")
def test_others_are_what_was_busy_beyond_this_process(monkeypatch, tmp_path):
    times = tmp_path / "stat"
    tick = os.sysconf("SC_CLK_TCK")

    def busy(seconds):
        times.write_text(f"cpu  {seconds * tick} 0 0 999 999 0 0 0 0 0\n")

    monkeypatch.setattr(measure, "CPU_TIMES", times)
    clock, own = iter((0.0, 10.0)), iter((100.0, 104.0))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(measure.time, "process_time", lambda: next(own))
    busy(50)
    sample = measure._sample(lambda: busy(57), repeats=1)
    assert sample == Sample(10.0, 0.3)  # seven core seconds in ten, four of them ours
    assert sample.disturbed


def test_where_the_system_does_not_say_who_was_busy_nothing_counts_as_disturbed(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "CPU_TIMES", tmp_path / "nothing")
    (sample,) = alternate({"a": lambda: None}, rounds=1, least_seconds=0)["a"]
    assert sample.others is None
    assert not sample.disturbed


# ---------------------------------------------------------------------------------------------------
# The two sides


@pytest.mark.parametrize("setting", peer.SETTINGS, ids=" ".join)
def test_the_peer_has_our_weights_in_every_setting(tiny, setting):
    ours = peer.make_ours(peer.CONFIGS["16 experts"])
    theirs = peer.make_peer(ours, setting)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    assert (theirs.config._attn_implementation, theirs.config._experts_implementation) == setting


def test_as_it_comes_is_what_transformers_does_untold(tiny, tmp_path):
    save_pretrained(peer.make_ours(peer.CONFIGS["16 experts"]), tmp_path / "model")
    untold = AutoModelForCausalLM.from_pretrained(tmp_path / "model").config
    assert (untold._attn_implementation, untold._experts_implementation) == peer.AS_IT_COMES


def test_sides_that_differ_are_not_compared(tiny):
    ours = peer.make_ours(peer.CONFIGS["16 experts"])
    theirs = peer.make_peer(ours)
    ours.layers[3].mlp.experts.down_proj.data[5] *= 1.5
    with pytest.raises(AssertionError):
        peer.assert_equal_logits(ours, theirs)


def test_the_fastest_setting_is_the_one_that_takes_least(monkeypatch):
    monkeypatch.setattr(measure, "LEAST_SECONDS", 0.0)
    waits = {("eager", "eager"): 0.02, ("sdpa", "grouped_mm"): 0.001}
    best, times = peer.fastest(lambda setting: lambda: time.sleep(waits[setting]), list(waits))
    assert best == ("sdpa", "grouped_mm")
    assert times["eager eager"] > 10 > times["sdpa grouped_mm"] > 0.5


@pytest.mark.parametrize("side", [peer.DEFAULT, peer.FASTEST])
def test_both_sides_train_on_the_same_tokens_and_lose_alike(tiny, side):
    losses = {}
    for name in (peer.OURS, side):
        step = training.make_step(name, "16 experts", ("eager", "eager"))
        step.dtype, step.length = "float32", 63
        original, losses[name] = step.loss, []
        step.loss = lambda tokens, f=original, seen=losses[name]: (out := f(tokens), seen.append(out.item()))[0]
        for _ in range(8):
            step()
    # The peer's loss has one prediction fewer a row, ours a balance term of 1e-4.
    torch.testing.assert_close(*(torch.tensor(values) for values in losses.values()), rtol=0.02, atol=0)
    assert losses[peer.OURS][-1] < losses[peer.OURS][0]


@torch.no_grad()
def test_a_decoding_step_leaves_the_context_as_it_was(tiny):
    ours = peer.make_ours(peer.CONFIGS["16 experts"])
    tokens = torch.randint(512, (2, 30))
    step = decoding.OurStep(ours, tokens, new=2)
    first = step()
    assert [cache.length for cache in step.cache] == [30] * 8
    assert first.shape == (2, 2, 512)
    again = decoding.OurStep(ours, tokens, new=2)
    for _ in range(3):
        again()
    again.generator.manual_seed(0)
    torch.testing.assert_close(again(), first)


# ---------------------------------------------------------------------------------------------------
# What is measured


def test_every_benchmark_runs_from_end_to_end_on_the_smallest_model(tiny):
    rows = {
        "training": training.measure(["16 experts"], [1], rounds=1, with_memory=False),
        "decoding": decoding.measure("16 experts", [(1, 8), (2, 8)], [1], rounds=1),
        "experts": experts.measure([1], rounds=1),
        "environment": environment(),
    }
    assert "training step, 16 experts, 32 tokens | 1 |" in table(rows)
    (row,) = rows["training"]
    theirs, ours = (row["sides"][side]["median_ms"] for side in (training.FASTEST, training.OURS))
    assert row["speedup"]["fastest"]["median"] == pytest.approx(theirs / ours)
    of_experts = rows["experts"][0]
    seconds = of_experts["sides"]["64 experts"]["median_ms"] / 1e3
    share = experts.FLOPS / seconds / (of_experts["gemm_gflops"] * 1e9)
    assert of_experts["share"]["64 experts"] == pytest.approx(share)


def test_the_expert_layer_does_the_multiplications_that_its_share_is_reckoned_with():
    layer = experts.Layer(8)
    with FlopCounterMode(display=False) as counter:
        layer()
    assert counter.get_total_flops() == experts.FLOPS


def test_the_skewed_layer_is_skewed():
    assert experts.Layer(64, skew=0.15).imbalance() > 4 > 1.5 > experts.Layer(64).imbalance()


def test_peak_memory_is_that_of_a_process_of_its_own():
    """Weights, gradients and moments are in it; what this process has ever held is not."""
    held = torch.ones(2**30 // 4)
    small, large = (peak_of("growth", "layers", layers) for layers in ("2", "8"))
    assert 16 * parameters(2) < small < 16 * parameters(2) + 800_000_000
    assert large - small > 16 * (parameters(8) - parameters(2))
    assert len(held)


@torch.no_grad()
def test_a_curve_s_decoding_step_keeps_no_graph(tiny):
    step = growth.CURVES["context"].step(8)
    assert not step.cache[0].buffer.requires_grad
    assert not step().requires_grad


def test_every_curve_is_measured_from_end_to_end(tiny, monkeypatch):
    monkeypatch.setattr(growth, "peak_of", lambda *arguments: 10**8)
    small = {"experts": (8, 16), "context": (8, 16), "batch": (1, 2), "layers": (2, 4)}
    curves = [replace(curve, values=small[name], anchor=small[name][0]) for name, curve in growth.CURVES.items()]
    monkeypatch.setattr(growth, "CURVES", {curve.name: curve for curve in curves})
    for row in growth.measure(1, rounds=1):
        first, last = row["points"]
        assert first["predicted_ms"] == pytest.approx(first["time"]["median_ms"])
        assert last["predicted_ms"] > 0.99 * first["predicted_ms"]
        assert last["predicted_bytes"] > first["predicted_bytes"]


def parameters(layers: int) -> int:
    return accounting.count_parameters(growth.CURVES["layers"].config(layers)).total


@pytest.mark.parametrize("curve", growth.CURVES.values(), ids=lambda curve: curve.name)
def test_a_prediction_passes_through_its_anchor(curve):
    assert curve.anchor in curve.values
    if not curve.decodes:
        assert growth._predicted_memory(curve, curve.anchor, 10**9) == pytest.approx(10**9)


def test_a_cache_takes_the_bytes_that_are_predicted():
    curve = growth.CURVES["context"]
    assert growth._memory(curve, 512) == growth._predicted_memory(curve, 512, 0)


# ---------------------------------------------------------------------------------------------------
# What was recorded


def test_the_table_in_readme_is_that_of_the_recorded_bench(data):
    assert table(data) in README.read_text(encoding="utf-8")


def test_all_that_can_be_measured_is_recorded(data):
    assert [row["curve"] for row in data["growth"]] == list(growth.CURVES)
    assert {row["config"] for row in data["training"]} == peer.CONFIGS.keys()
    assert all(row["peak_bytes"] for row in data["training"])
