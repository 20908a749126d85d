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

from minids.book.bench import decoding, experts, fp8, growth, measure, peer, speculation, training
from minids.book.bench.__main__ import TARGET, environment
from minids.book.bench.measure import Sample, alternate, ratio, sample_between, summary
from minids.book.bench.peak import peak_of
from minids.book.bench.table import table
from minids.cost.parameters import count_parameters
from minids.hub.reference import reference
from minids.hub.save import save_pretrained
from minids.inference.generate import generate
from minids.model.config import ModelConfig

SMALL = replace(ModelConfig.preset("tiny"), num_hidden_layers=3, num_nextn_predict_layers=0)


@pytest.fixture
def small(monkeypatch):
    """All benchmarks on a very small model, with samples of a single call."""
    monkeypatch.setitem(peer.CONFIGS, "16 experts", SMALL)
    monkeypatch.setitem(peer.BATCH, "16 experts", 2)
    monkeypatch.setattr(growth, "BASE", SMALL)
    monkeypatch.setattr(experts, "TOKENS", 64)
    monkeypatch.setattr(fp8, "TOKENS", 256)
    monkeypatch.setattr(measure, "LEAST_SECONDS", 0.0)
    for module in (training, growth):
        monkeypatch.setattr(module, "LENGTH", 16)
    for name, value in {"PROMPT": 8, "NEW": 4, "ROWS": 1}.items():
        monkeypatch.setattr(speculation, name, value)


# ---------------------------------------------------------------------------------------------------
# Taking times


def test_sides_take_turns_and_every_second_round_runs_in_reverse(small):
    calls = []
    alternate({name: lambda n=name: calls.append(n) for name in "ab"}, rounds=3)
    assert "".join(calls) == "abab" + "ab" + "ba" + "ab"  # the first four to warm up


def test_what_is_fast_runs_until_a_sample_is_long_enough(monkeypatch):
    assert [measure.calls_per_sample(seconds) for seconds in (2.0, 0.3, 0.1, 0.001)] == [1, 1, 3, 300]
    monkeypatch.setattr(measure, "calls_per_sample", lambda seconds: 5)
    calls = []
    alternate({"a": lambda: calls.append(1)}, rounds=3)
    assert len(calls) == 2 + 3 * 5


def test_ratios_and_times_are_of_quiet_rounds_while_three_remain():
    slow, fast = ([Sample(seconds, 0.0) for seconds in side] for side in ((4.0, 9.0, 10.0), (2.0, 3.0, 1.0)))
    assert ratio(slow, fast) == {"median": 3.0, "lowest": 2.0, "highest": 10.0, "rounds": 3, "disturbed": 0}
    ones = [Sample(1.0, None)] * 5
    for quiet, median, slowest in ((3, 2, 2), (2, 50, 50)):
        samples = [Sample(2.0, 0.0)] * quiet + [Sample(50.0, 0.5)] * (5 - quiet)
        found = ratio(samples, ones)
        assert (found["median"], found["highest"], found["disturbed"]) == (median, slowest, 5 - quiet)
        times = {"median_ms": median * 1e3, "fastest_ms": 2e3, "slowest_ms": slowest * 1e3}
        assert summary(samples) == times | {"samples": 5, "disturbed": 5 - quiet}


def test_others_are_what_was_busy_beyond_this_process(tmp_path):
    (tmp_path / "stat").write_text(
        "cpu  " + " ".join(str(n * os.sysconf("SC_CLK_TCK")) for n in (1, 2, 4, 800, 800, 8, 16, 32))
    )
    assert (measure.busy_seconds(tmp_path / "stat"), measure.busy_seconds(tmp_path / "none")) == (63, None)
    for busy, others, disturbed in ((7.0, 0.3, True), (4.5, 0.05, False)):  # core seconds in ten, four of them ours
        sample = sample_between((0.0, 100.0, 0.0), (10.0, 104.0, busy), calls=2)
        assert (sample, sample.disturbed) == (Sample(5.0, others), disturbed)
    unknown = sample_between((0.0, 100.0, None), (10.0, 104.0, None), calls=2)
    assert (unknown, unknown.disturbed) == (Sample(5.0, None), False)


# ---------------------------------------------------------------------------------------------------
# The two sides


@pytest.mark.parametrize("setting", peer.SETTINGS, ids=" ".join)
def test_the_peer_has_our_weights_in_every_setting(setting):
    ours = peer.make_ours(SMALL)
    theirs = peer.make_peer(ours, setting)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    assert (theirs.config._attn_implementation, theirs.config._experts_implementation) == setting


def test_as_it_comes_is_what_transformers_does_by_default(tmp_path):
    save_pretrained(peer.make_ours(SMALL), tmp_path / "model")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "model").config
    assert (config._attn_implementation, config._experts_implementation) == peer.AS_IT_COMES


def test_sides_that_differ_are_not_compared():
    ours = peer.make_ours(SMALL)
    theirs = peer.make_peer(ours)
    ours.layers[2].mlp.experts.down_proj.data[5] *= 1.5
    with pytest.raises(AssertionError):
        peer.assert_equal_logits(ours, theirs)


def test_the_fastest_setting_is_the_one_that_takes_least(small):
    waits = {("eager", "eager"): 0.02, ("sdpa", "grouped_mm"): 0.001}
    best, times = peer.fastest(lambda setting: lambda: time.sleep(waits[setting]), list(waits))
    assert best == ("sdpa", "grouped_mm")
    assert times["eager eager"] > 10 > times["sdpa grouped_mm"] > 0.5


@pytest.mark.parametrize("side", [peer.DEFAULT, peer.FASTEST])
def test_both_sides_train_on_the_same_tokens_and_lose_alike(small, side):
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
def test_a_decoding_step_leaves_the_context_as_it_was_and_keeps_no_graph(small):
    ours, tokens = peer.make_ours(SMALL), torch.randint(512, (2, 30))
    step = decoding.OurStep(ours, tokens, new=2)
    first = step()
    assert ([cache.length for cache in step.cache], first.shape) == ([30] * 3, (2, 2, 512))
    step(), step.generator.manual_seed(0)
    torch.testing.assert_close(step(), first)
    of_curve = growth.CURVES["context"].step(8)
    assert not of_curve.cache[0].buffer.requires_grad
    assert not of_curve().requires_grad


# ---------------------------------------------------------------------------------------------------
# What is measured


def test_every_benchmark_runs_from_end_to_end_on_a_small_model(small):
    rows = {
        "training": training.measure(["16 experts"], [1], rounds=1, with_memory=False),
        "decoding": decoding.measure("16 experts", [(1, 8), (2, 8)], [1], rounds=1),
        "speculation": speculation.measure([1], rounds=1),
        "experts": experts.measure([1], rounds=1),
        "fp8": fp8.measure(rounds=1),
        "environment": environment(),
    }
    assert "training step, 16 experts, 32 tokens | 1 |" in table(rows)
    assert "linear layer, 256 → 1024, 256 tokens | 1 |" in table(rows)
    for of_layer in rows["fp8"]:
        full, plain = (of_layer["sides"][side]["median_ms"] for side in (fp8.FULL, fp8.PLAIN))
        assert of_layer["cost"][fp8.FULL]["median"] == pytest.approx(full / plain)
    (row,), (of_experts,) = rows["training"], rows["experts"]
    theirs, ours = (row["sides"][side]["median_ms"] for side in (training.FASTEST, training.OURS))
    assert row["speedup"]["fastest"]["median"] == pytest.approx(theirs / ours)
    seconds = of_experts["sides"]["64 experts"]["median_ms"] / 1e3
    share = experts.FLOPS / seconds / (of_experts["gemm_gflops"] * 1e9)
    assert of_experts["share"]["64 experts"] == pytest.approx(share)
    book = reference()
    for row in rows["speculation"]:
        (prompt,) = speculation.held_out_prompts(book.tokenizer, 8, 1)[row["domain"]]
        out = generate(book.model, prompt, 4, temperature=row["temperature"], speculative=True)
        assert row["tokens_per_step"] == 4 / out.steps


def test_the_expert_layer_does_the_multiplications_that_its_share_is_computed_with():
    """And the skewed layer is skewed."""
    assert experts.Layer(64, skew=0.15).imbalance() > 4 > 1.5 > experts.Layer(64).imbalance()
    layer = experts.Layer(8)
    with FlopCounterMode(display=False) as counter:
        layer()
    assert counter.get_total_flops() == experts.FLOPS


@pytest.mark.parametrize("shape", fp8.SHAPES)
def test_the_sides_of_the_fp8_layer_compute_the_same_products_up_to_rounding(small, shape):
    """Without re-tiling only the gradient of the weight differs from the full recipe."""
    layer = fp8.Layer(*shape)
    plain, once, full = layer.plain(), layer.without_retiling(), layer.full_recipe()
    assert [torch.equal(a, b) for a, b in zip(once, full, strict=True)] == [True, True, False]
    for exact, *rounded in zip(plain, once, full, strict=True):
        assert all(0.01 < (each - exact).norm() / exact.norm() < 0.05 for each in rounded)
    for promote in (128, None):
        assert 1e-6 < (layer.short_sums(promote) - layer.product()).norm() / plain[0].norm() < 2e-3


def test_peak_memory_is_that_of_a_process_of_its_own():
    """Weights, gradients and moments are in it; what this process has ever held is not."""
    held, state = torch.ones(2**30 // 4), 16 * count_parameters(growth.CURVES["batch"].config(1)).total
    assert state < peak_of("growth", "batch", "1") < state + 800_000_000
    assert len(held)


def test_every_curve_is_measured_from_end_to_end(small, monkeypatch):
    monkeypatch.setattr(growth, "peak_of", lambda *arguments: 10**8)
    values = {"experts": (8, 16), "context": (8, 16), "batch": (1, 2), "layers": (2, 4)}
    curves = {name: replace(growth.CURVES[name], values=two, anchor=two[0]) for name, two in values.items()}
    monkeypatch.setattr(growth, "CURVES", curves)
    for row in growth.measure(1, rounds=1):
        first, last = row["points"]
        assert first["predicted_ms"] == pytest.approx(first["time"]["median_ms"])
        assert last["predicted_ms"] > 0.99 * first["predicted_ms"]
        assert last["predicted_bytes"] > first["predicted_bytes"]


@pytest.mark.parametrize("curve", growth.CURVES.values(), ids=growth.CURVES)
def test_a_prediction_passes_through_its_anchor(curve):
    """And a cache takes the bytes that are predicted."""
    assert curve.anchor in curve.values
    at_anchor = growth._memory(curve, curve.anchor) if curve.decodes else 10**9
    assert growth._predicted_memory(curve, curve.anchor, 10**9) == pytest.approx(at_anchor)


# ---------------------------------------------------------------------------------------------------
# What was recorded


def test_all_that_can_be_measured_is_recorded_and_in_the_readme():
    data = json.loads(TARGET.read_text())
    assert table(data) in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert [row["curve"] for row in data["growth"]] == list(growth.CURVES)
    assert {row["config"] for row in data["training"]} == peer.CONFIGS.keys()
    assert all(row["peak_bytes"] for row in data["training"])
