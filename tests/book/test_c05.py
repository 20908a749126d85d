"""Chapter 5's pictures on made-up results and settings: the choice of nodes, and what the titles may say."""

import random

import pytest
from pictures import title

from minids.book.plots import draw_controller, draw_headline, draw_nodes, draw_tradeoff
from minids.book.plots.c05_controller import _finding
from minids.book.plots.c05_nodes import CHOSEN, NODES, PER_NODE, choice
from minids.book.probes.simulated_router import run_router

NONE, LOSS, BIAS = "none", "loss 0.01", "bias 0.01"
VIOLATIONS = {NONE: 4.0, LOSS: 0.4, "bias 0.001": 0.1, BIAS: 0.2}
SEEDS = [(weights, data) for weights in (0, 1) for data in (0, 1)]
SAME = (0.02, -0.001, 0.02, 0.02)  # by run: not separated, whatever the mean


def made_up(**added) -> dict:
    """Results of four runs an arm, of 2 bits a byte and as many more as `added` says, in no order of the seeds."""
    added = {name.replace("_", " ").replace("p", "."): more for name, more in added.items()}
    violations = VIOLATIONS | {f"nodes {kept}": 0.05 * kept for kept in (4, 2, 1)}
    runs = [
        {
            "arm": arm, "weights": weights, "data": data, "max_violation": at, "max_violation_held_out": [at],
            "groups": 3 + at, "bits_per_byte": {"prose_and_code": 2 + (4 * weights + data) / 9 + more},
        }
        for arm, at in violations.items()
        for (weights, data), more in zip(SEEDS, added.get(arm, (0,) * 4), strict=True)
    ]  # fmt: skip
    random.Random(0).shuffle(runs)
    return {"arms": dict.fromkeys(violations), "runs": runs}


def by(more: float) -> tuple[float, ...]:
    """Four differences with this mean, that are separated unless it is 0."""
    return tuple(more * factor for factor in (0.8, 1, 1, 1.2))


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("kept", range(1, NODES + 1))
def test_a_token_gets_the_best_experts_of_the_nodes_with_the_highest_two(kept, shift):
    c = choice(kept, shift)
    values = c.values.tolist()
    nodes = sorted(range(NODES), key=lambda n: -sum(sorted(values[n])[-2:]))[:kept]
    best = sorted((values[n][i] for n in nodes for i in range(PER_NODE)), reverse=True)[:CHOSEN]
    assert c.kept.nonzero().flatten().tolist() == sorted(nodes)
    assert sorted(c.values[c.chosen].tolist(), reverse=True) == best
    assert not c.chosen[~c.kept].any()
    if shift:  # at 0 a node's own values may be below 0
        assert bool(c.zero_filled[~c.kept].any()) == (shift == -1 and kept < NODES)


@pytest.mark.parametrize("drift", [False, True])
def test_no_small_speed_is_called_too_large_and_no_large_one_too_slow(drift):
    grid = [float(f"{digit}e-{power}") for power in (4, 3, 2, 1) for digit in range(1, 10)]
    found = {speed: _finding(run_router(speed, drift=drift), drift) for speed in grid}
    assert not any("too large" in said for speed, said in found.items() if speed < 0.002)
    assert not any("too slow" in said for speed, said in found.items() if speed > 0.1)
    assert "too slow" in found[1e-4]
    assert "too large" in found[0.3]


def test_the_bias_has_settled_only_where_no_later_window_is_above():
    run = run_router(0.003)
    assert "settles after" in _finding(run, False)
    run.max_violation[180:200] = 3
    assert "settles after 2" in _finding(run, False)  # two hundred and more
    run.max_violation[230:250] = 3
    assert "settles" not in _finding(run, False)
    with pytest.raises(ValueError, match="speed=0 is not possible: it must be above 0"):
        draw_controller(0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (SAME, "bits per byte not separated"),
        (by(0.02), "0.020 bits a byte below the loss"),
        (by(-0.02), "0.020 bits a byte above the loss"),
    ],
)
def test_the_headline_says_what_is_separated(more, said):
    fig = draw_headline(made_up(loss_0p01=more), loss=LOSS, bias=BIAS)
    assert title(fig).endswith(f"0.40 → 0.20 here; {said}")
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["loss", "bias"]


@pytest.mark.parametrize(
    ("more", "cost", "compared"),
    [
        (SAME, "no cost separated", "not separated from the bias with"),
        (by(0.02), "costs 0.020 bits a byte", "0.020 bits a byte below the bias with"),
        (by(-0.02), "saves 0.020 bits a byte", "0.020 bits a byte above the bias with"),
    ],
)
def test_the_trade_off_says_what_is_separated(more, cost, compared):
    fig = draw_tradeoff(made_up(bias_0p01=more), BIAS)
    assert title(fig) == f"Bias, γ = 0.01: MaxVio 0.20, {cost}; at γ = 0.001: MaxVio 0.10"
    second = f"The most even sequence loss, α = 0.01: MaxVio 0.40, {compared} γ = 0.01"
    assert second in [text.get_text() for text in fig.texts]


@pytest.mark.parametrize(
    ("four", "two", "one", "said"),
    [
        (SAME, SAME, SAME, "4 of 8, 2 of 8, 1 of 8 nodes: bits per byte not separated"),
        (SAME, by(0.02), by(0.03), "2 of 8 nodes cost 0.020 bits a byte, 1 of 8 0.030; 4 of 8: not separated"),
        (by(-0.01), SAME, by(0.03), "1 of 8 nodes cost 0.030 bits a byte; 4 of 8 nodes save 0.010 bits a byte; "
                                    "2 of 8: not separated"),
    ],
)  # fmt: skip
def test_the_cost_of_a_limit_stands_beside_its_nodes(four, two, one, said):
    assert title(draw_nodes(made_up(nodes_4=four, nodes_2=two, nodes_1=one), BIAS)) == said
