"""Ways to run a layer's experts are equal and timed; what the recorded experiment separates."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minids.book import products
from minids.book.experiments.experts import MODELS
from minids.book.plots.c04_ablation import (
    PUBLISHED,
    added,
    compare,
    draw_experts_ablation,
    draw_products,
    noise,
)
from minids.book.products import CHOSEN, ROUTINGS, WAYS, Routed, make, measure
from minids.cost.published import DEEPSEEKMOE_2B


def brute_force(experts, tokens: Routed) -> torch.Tensor:
    """One token and one expert at a time, in float64."""
    out = torch.zeros_like(tokens.x_ND, dtype=torch.float64)
    for n, (x, weights, chosen) in enumerate(
        zip(tokens.x_ND.double(), tokens.weights_NK, tokens.experts_NK, strict=True)
    ):
        for g, expert in zip(weights, chosen, strict=True):
            gate, up = (experts.gate_up_proj[expert].double() @ x).chunk(2)
            out[n] += g * (experts.down_proj[expert].double() @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize("routing", [*ROUTINGS, "one expert", "last is empty"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_computes_the_mixture(way, routing):
    experts, tokens = make(5, 40, ROUTINGS.get(routing, 0))
    if routing == "one expert":
        tokens.experts_NK.fill_(3)
    if routing == "last is empty":
        tokens.experts_NK.remainder_(4)
    out = WAYS[way](experts, tokens)
    torch.testing.assert_close(out.double(), brute_force(experts, tokens), rtol=1e-4, atol=1e-5)


def test_skew_makes_some_experts_busier_and_no_token_chooses_one_twice():
    loads = {}
    for routing, skew in ROUTINGS.items():
        chosen = make(16, 4096, skew)[1].experts_NK
        assert (chosen[:, 0] != chosen[:, 1]).all()
        loads[routing] = chosen.flatten().bincount(minlength=16) / (4096 / 16)
    assert loads["even"].max() < 1.3
    assert loads["skewed"].max() > 1.8
    assert loads["skewed"].argmax() == 0


def test_all_ways_are_measured_on_one_thread_with_equal_work_and_a_wrong_one_is_refused(monkeypatch):
    threads = torch.get_num_threads()
    measured = measure((4, 8), rows=64, rounds=3)
    assert torch.get_num_threads() == threads
    assert [(row["routing"], row["experts"]) for row in measured] == [(r, n) for r in ROUTINGS for n in (4, 8)]
    for row in measured:
        assert row["milliseconds"].keys() == WAYS.keys()
        assert all(len(times) == 3 for times in row["milliseconds"].values())
        assert 1 <= row["busiest"] <= row["experts"] / CHOSEN
    monkeypatch.setitem(products.WAYS, "padded", lambda experts, tokens: WAYS["masks"](experts, tokens) * 1.01)
    with pytest.raises(AssertionError, match="not close"):
        measure((4,), rows=64, rounds=1)


def test_the_picture_shows_medians_of_ratios_in_equal_rounds():
    times = {"masks": [2.0, 30.0, 4.0], "padded": [5.0, 50.0, 5.0], "sorted": [1.0, 10.0, 2.0]}
    rows = [
        {"experts": n, "routing": routing, "busiest": 2.0, "milliseconds": times}
        for routing in ROUTINGS
        for n in (8, 16)
    ]
    fig = draw_products(rows)
    lines = [line.get_ydata().tolist() for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert lines == [[2.0, 2.0], [5.0, 5.0]]
    assert "masks take 2.0 times the time of sorted rows, padding 5.0 or, skewed, 5.0" in fig.texts[-1].get_text()


# ---------------------------------------------------------------------------------------------------
# The recorded experiment


def result(**scores: list[float]) -> dict:
    """Runs with these scores for the seeds (0, 0), (0, 1), (1, 0), (1, 1) of weights and data."""
    names = {"dense": "dense, active", "total": "dense, total", "coarse": "0 + 2 of 16", "fine": "0 + 8 of 64",
             "hero": "1 + 7 of 63"}  # fmt: skip
    runs = [
        {"arm": names[arm], "weights": i // 2, "data": i % 2, "seconds": 60.0 + 10 * i,
         "bits_per_byte": {"prose": 2 * bits, "code": bits, "prose_and_code": bits, "all": bits}}
        for arm, values in scores.items() for i, bits in enumerate(values)
    ]  # fmt: skip
    arms = {names[arm]: {"model": MODELS[names[arm]].to_hf(), "train": {}} for arm in scores}
    return {"seeds": [0, 1], "arms": arms, "runs": runs[::-1]}


FOUR = [1.80, 1.83, 1.81, 1.84]


def below(by: float, *others: float) -> list[float]:
    return [bits - less for bits, less in zip(FOUR, [by, *others] if others else [by] * 4, strict=True)]


def test_an_arm_is_ahead_only_if_it_is_with_all_equal_seeds():
    """The ranges of these arms overlap; it is the pairs that separate them."""
    found = result(dense=FOUR, coarse=below(0.01), fine=below(0.01, 0.02, -0.003, 0.01), hero=below(-0.002))
    assert compare(found, "0 + 2 of 16", "dense, active") == "ahead of"
    assert compare(found, "dense, active", "0 + 2 of 16") == "behind"
    assert compare(found, "0 + 8 of 64", "dense, active") == "not separated from"
    texts = [text.get_text() for text in draw_experts_ablation(found).texts]
    assert "Of 3 mixtures, 1 are ahead of dense at equal active size, 1 behind, 1 not separated" in texts
    assert "1 + 7 of 63 is behind 0 + 2 of 16 and not separated from 0 + 8 of 64" in texts


def test_noise_is_told_apart_by_seed():
    found = noise(result(dense=FOUR, hero=[1.70, 1.74, 1.72, 1.76]))
    assert found == pytest.approx({"weights": (0.01 + 0.02) / 2, "data": (0.03 + 0.04) / 2})


def test_what_is_added_is_added_run_by_run():
    found = result(hero=FOUR)
    for run in found["runs"]:
        bits = run["bits_per_byte"]
        more = {name: value + 0.1 * (1 + run["weights"]) for name, value in bits.items()}
        run["without"] = {"as trained": bits, "best 1": more}
    np.testing.assert_allclose(sorted(added(found, "1 + 7 of 63", "best 1", "code")), [0.1, 0.1, 0.2, 0.2])


def test_published_models_stand_in_the_order_of_our_arms():
    ours = [arm for arm in MODELS if "," not in arm]  # neither dense nor a control
    assert [model for model in PUBLISHED if model in ours] == ours
    assert set(PUBLISHED) - DEEPSEEKMOE_2B.keys() == {"1 + 1 of 15", "1 + 3 of 31", "0 + 8 of 64"}
