"""Ways to run a layer's experts are equal and timed."""

import pytest
import torch
import torch.nn.functional as F

from minids.book.plots.c04_products import draw_products
from minids.book.probes.expert_products import CHOSEN, ROUTINGS, WAYS, Routed, make, measure


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
    monkeypatch.setitem(WAYS, "padded", lambda experts, tokens: WAYS["masks"](experts, tokens) * 1.01)
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
    said = "At 16 experts (even / skewed) masks take 2.0 / 2.0 × sorting’s time, padding 5.0 / 5.0"
    assert said in [text.get_text() for text in fig.texts]
