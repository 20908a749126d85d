"""The diagrams of mixtures of experts show what the toy layer computes, by formulas written out here."""

import numpy as np
import pytest
from matplotlib.patches import PathPatch

from minids.book.plots import c04_dispatch as dispatch
from minids.book.plots import c04_experts as experts
from minids.book.plots import c04_gates as gates
from minids.book.toy import WORDS, toy_input, toy_moe

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, as other pictures

X = toy_input().numpy().astype(float)
LAYER = {name: weight.numpy().astype(float) for name, weight in toy_moe().state_dict().items()}
TOKENS = range(1, len(WORDS) + 1)


def swiglu(x, gate, up, down):
    z = gate @ x
    return down @ (z / (1 + np.exp(-z)) * (up @ x))


def expert(i: int, x):
    gate, up = np.split(LAYER["experts.gate_up_proj"][i], 2)
    return swiglu(x, gate, up, LAYER["experts.down_proj"][i])


def shared(x):
    return swiglu(x, *(LAYER[f"shared_experts.{name}_proj.weight"] for name in ("gate", "up", "down")))


def gate(x, kind="sigmoid", scale=1.0):
    """Return the scores and the weights g by expert, highest first."""
    logits = scale * LAYER["gate.weight"] @ x
    scores = 1 / (1 + np.exp(-logits)) if kind == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    best = [int(i) for i in np.argsort(-scores)[:2]]
    total = scores[best].sum() if kind == "sigmoid" else 1
    return scores, {i: scores[i] / total for i in best}


def texts(fig):
    return "|".join(text.get_text() for ax in fig.axes for text in ax.texts)


def row(numbers, decimals):
    return "|".join(
        f"{number:.{decimals}f}".replace("-0." + decimals * "0", "0." + decimals * "0") for number in numbers
    )


@pytest.mark.parametrize("token", TOKENS)
def test_the_split_shows_the_outputs_of_four_layers_and_what_they_cost(token):
    x, fig = X[token - 1], experts.draw_split(token)
    _, g = gate(x)
    dense, routed = sum(expert(i, x) for i in range(4)), sum(g[i] * expert(i, x) for i in g)
    shown = texts(fig)
    assert shown.count(row(dense, 1)) == 2  # dense and in slices
    assert row(routed, 1) in shown
    assert row(routed + shared(x), 1) in shown
    one, router = 3 * 6 * 2, 4 * 6
    for parameters, used in (
        (4 * one, 4 * one),
        (4 * one + router, 2 * one + router),
        (5 * one + router, 3 * one + router),
    ):
        assert f"{parameters} parameters|{used} multiplications" in shown
    assert f"{2 * one} of {4 * one} multiplications, and {router} to choose them" in shown


@pytest.mark.parametrize("token", TOKENS)
def test_the_route_shows_the_scores_weights_and_terms_of_the_sum(token):
    x, fig = X[token - 1], experts.draw_routing(token)
    shown = texts(fig)
    for other in X:
        scores, g = gate(other)
        assert "|".join([row(other, 1), row(scores, 2), row([g[i] for i in sorted(g)], 2)]) in shown
    _, g = gate(x)
    for i in g:
        assert f"{g[i]:.2f}|× expert {i}|{row(expert(i, x), 2)}" in shown
    out = sum(g[i] * expert(i, x) for i in g) + shared(x)
    assert f"shared expert|{row(shared(x), 2)}|= output|{row(out, 2)}" in shown


@pytest.mark.parametrize("scale", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("token", [2, 4])
def test_the_gates_are_softmax_as_it_is_and_sigmoid_normalised(token, scale):
    fig = gates.draw_gates(token, scale)
    for kind, (above, below) in {"softmax": fig.axes[:2], "sigmoid": fig.axes[2:]}.items():
        scores, _ = gate(X[token - 1], kind, scale)
        np.testing.assert_allclose([bar.get_height() for bar in above.patches], scores, atol=1e-6)
        weights = [value for x in X for value in gate(x, kind, scale)[1].values()]
        np.testing.assert_allclose([bar.get_width() for bar in below.patches], weights, atol=1e-6)
    sums = [sum(gate(x, "softmax", scale)[1].values()) for x in X]
    said = f"sum to {sums[token - 1]:.2f} with softmax (all words: {min(sums):.2f} to {max(sums):.2f}), to 1.00 with"
    assert said in fig.texts[-1].get_text()


def test_the_rows_are_those_of_a_loop_over_experts():
    rows, gates = dispatch.Rows.of_toy(), [gate(x)[1] for x in X]
    expected = [(t, i) for i in range(4) for t in range(len(WORDS)) if i in gates[t]]
    assert list(zip(rows.token, rows.expert, strict=True)) == expected
    np.testing.assert_allclose(rows.x, [X[t] for t, _ in expected], atol=1e-6)
    np.testing.assert_allclose(rows.g, [gates[t][i] for t, i in expected], atol=1e-6)
    np.testing.assert_allclose(rows.outs, [gates[t][i] * expert(i, X[t]) for t, i in expected], atol=1e-5)
    sums = [sum(g * expert(i, x) for i, g in gates[t].items()) for t, x in enumerate(X)]
    np.testing.assert_allclose(rows.sums, sums, atol=1e-5)


@pytest.mark.parametrize("token", TOKENS)
def test_lit_lines_lead_from_a_token_to_its_rows_and_back(token):
    fig = dispatch.draw_dispatch(token)
    lines = [(patch.get_path().vertices, patch.get_linewidth()) for patch in fig.findobj(PathPatch)]
    assert len(lines) == 4 * len(WORDS)
    lit = [ends for ends, width in lines if width > 2]
    bold = sorted(text.get_position() for text in fig.axes[0].texts if text.get_weight() == "bold" and
                  text.get_text() == WORDS[token - 1])  # fmt: skip
    home, table = bold[0][1], [y for _, y in bold[1:-1]]  # the token at the left, its rows, the token at the right
    assert sorted(ends[-1][1] for ends in lit[::2]) == pytest.approx(table)
    assert sorted(ends[0][1] for ends in lit[1::2]) == pytest.approx(table)
    assert [ends[-1][1] for ends in lit[1::2]] == pytest.approx([home] * 2)
    assert all(abs(ends[0][1] - home) < dispatch.PITCH for ends in lit[::2])
    assert (
        f"has rows {' and '.join(str(i + 1) for i, t in enumerate(dispatch.Rows.of_toy().token) if t == token - 1)}"
        in fig.alt
    )


@pytest.mark.parametrize("capacity", range(1, 6))
def test_beyond_capacity_the_rows_of_lowest_affinity_are_dropped(capacity):
    found = [gate(x, "softmax")[1] for x in X]
    lanes = [sorted(((-g[i], t) for t, g in enumerate(found) if i in g)) for i in range(4)]
    lost = {(t, i) for i, lane in enumerate(lanes) for _, t in lane[capacity:]}
    fig = dispatch.draw_dropping(capacity)
    for lane in lanes:
        assert "|".join(f"{WORDS[t]}|{-affinity:.2f}" for affinity, t in lane) in texts(fig)
    assert len(fig.axes[0].lines) == 1 + 4 * len(lost)  # the capacity, and a cross for each row, twice
    tokens = [t for t, _ in lost]
    assert texts(fig).count("loses one") == sum(tokens.count(t) == 1 for t in range(6))
    assert texts(fig).count("loses both") == sum(tokens.count(t) == 2 for t in range(6))
    assert {5: 0, 4: 1, 3: 2, 2: 5, 1: 8}[capacity] == len(lost)
    share = f"{len(lost)} of 12 rows ({len(lost) / 12:.0%}): {len(set(tokens))} of 6 tokens"
    assert (share if lost else "none of 12 rows, and leaves 8 of 20 slots empty") in fig.alt


@pytest.mark.parametrize("draw", [experts.draw_split, experts.draw_routing, gates.draw_gates, dispatch.draw_dispatch])
@pytest.mark.parametrize("token", [0, 7, 1.0, True])
def test_another_token_is_refused(draw, token):
    with pytest.raises(ValueError, match="a whole number of at least 1 and at most 6"):
        draw(token)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), "1"])
def test_another_scale_is_refused(scale):
    with pytest.raises(ValueError, match="must be a positive number"):
        gates.draw_gates(scale=scale)


@pytest.mark.parametrize("capacity", [0, 6, 2.5])
def test_another_capacity_is_refused(capacity):
    with pytest.raises(ValueError, match="a whole number of at least 1"):
        dispatch.draw_dropping(capacity)
