"""What experts have specialised in, on planted specialists, against brute force, and on the trained miniature."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from minids.book.plots.c04_domains import _digits_finding
from minids.book.plots.c04_pairs import _strongest, draw_pairs
from minids.book.plots.tokens import spoken, visible
from minids.book.probes.routing import moe_layers
from minids.book.probes.specialists import (
    LEAST,
    Observed,
    bits_about_digits,
    bits_about_domain,
    bits_about_token,
    digits,
    digits_control,
    expected_pairs,
    first_experts,
    observe,
    pairs,
    pairs_of_group_limit,
    parts_of_digits,
    places,
    preferred_tokens,
    relative_shares,
    same_first_expert,
    typical_of_pair,
    typical_tokens,
    weights_of,
    within_groups,
)
from minids.hub.reference import reference
from minids.model.config import ModelConfig
from minids.text.corpus import load_corpus

DOMAINS = ["prose", "code", "arithmetic"]
SPELLED = ["", "\n", *"0123456789", "+", "-", "=", " of", ")", "    "]
MINI = ModelConfig.preset("mini")


def observed(rows: int = 8, seed: int = 0, tokens: np.ndarray | None = None) -> Observed:
    """Random text, whose experts are random, too, and some of them more frequent."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(len(SPELLED), size=(3 * rows, 64)) if tokens is None else tokens
    experts = (rng.random((2, *tokens.shape, 24)) + rng.random(24)).argsort(axis=-1)[..., :4]
    return Observed(MINI, SPELLED, DOMAINS, tokens, experts, rng.random(experts.shape) + 0.1)


def test_the_trained_model_is_observed_with_the_weights_that_its_gates_compute():
    model, tokenizer = reference().model, reference().tokenizer
    found = observe(model, tokenizer, load_corpus(), rows=2)
    assert found.tokens.shape == (6, 256)
    inputs = []
    hooks = [
        moe.gate.register_forward_hook(lambda gate, args, out: inputs.append(args[0])) for moe in moe_layers(model)
    ]
    with torch.no_grad():
        model.hidden_states(torch.from_numpy(found.tokens))
    for hook in hooks:
        hook.remove()
    for layer, (moe, x) in enumerate(zip(moe_layers(model), inputs, strict=True)):
        scores = (x.float() @ moe.gate.weight.float().T).sigmoid().view(6, 256, 24)
        s = scores.gather(-1, torch.from_numpy(found.experts[layer]))
        g = 2.5 * s / s.sum(-1, keepdim=True)
        torch.testing.assert_close(torch.from_numpy(found.weights[layer]), g, rtol=1e-3, atol=1e-3)
    text = "".join(found.spelled[token] for token in found.tokens[found.rows("arithmetic")][0])
    assert set(text) <= set("0123456789+-*=\n")


@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_or_expert_that_is_not_there_is_refused(layer):
    with pytest.raises(ValueError, match=f"layer={layer}"):
        relative_shares(observed(), layer)
    with pytest.raises(ValueError, match="expert=24"):
        preferred_tokens(observed(), 1, 24)


# ---------------------------------------------------------------------------------------------------
# Domains and tokens


def test_planted_specialists_are_found():
    """In the first layer a token's experts are a function of the token, in the second of the domain."""
    whole = observed()
    by_token = whole.tokens[..., None] + np.array([0, 0, 0, 0])
    by_domain = np.repeat(np.arange(3), 8)[:, None, None] + np.zeros_like(by_token)
    whole = replace(whole, experts=np.stack([by_token, by_domain]))
    (token, shuffled), (about_domain, _) = bits_about_token(whole)
    share = np.bincount(whole.tokens.ravel()) / whole.tokens.size
    assert token == pytest.approx(-(share * np.log2(share)).sum())
    assert shuffled < 0.2
    assert about_domain < 0.1
    (_, _), (domain, rows_shuffled) = bits_about_domain(whole)
    assert domain == pytest.approx(np.log2(3))
    assert rows_shuffled < 0.5
    assert bits_about_domain(whole, "prose", "code")[1][0] == pytest.approx(1)
    np.testing.assert_allclose(relative_shares(whole, 2)[:, :3], 24 * np.eye(3))
    assert same_first_expert(whole, 1)[0] == 1


def test_even_shares_are_one():
    np.testing.assert_allclose(relative_shares(observed(), 1).mean(axis=1), 1)


def test_preferred_and_typical_tokens_are_those_of_brute_force():
    whole = observed(rows=30)
    for expert in (0, 5):
        hit = (whole.layer(2) == expert).any(-1)
        share = {t: hit[whole.tokens == t].mean() for t in range(len(SPELLED))}
        seen = {t: (whole.tokens == t).sum() for t in share}
        better = [t for t in share if share[t] > hit.mean() and seen[t] >= LEAST]
        found = preferred_tokens(whole, 2, expert)
        assert [one.token for one in found] == sorted(better, key=lambda t: -share[t])
        assert [one.lift for one in found] == pytest.approx([share[one.token] / hit.mean() for one in found])
        told = {t: seen[t] * share[t] * np.log(share[t] / hit.mean()) for t in better}
        best = max(told, key=told.get)
        assert typical_tokens(whole, 2, expert, 1)[0].token == best
        row, position = places(whole, 2, expert, best)[-1]
        assert whole.tokens[row, position] == best
        assert hit[row, position]


def test_a_rare_token_is_not_called_preferred():
    whole = observed(tokens=np.zeros((24, 64), dtype=int))
    whole.tokens[0, : LEAST - 1] = 5
    assert {one.token for expert in range(24) for one in preferred_tokens(whole, 1, expert)} <= {0}


def test_first_experts_have_the_largest_weight_and_shares_of_weights_sum_to_one():
    whole = observed()
    shares = np.stack([weights_of(whole, 1, expert) for expert in range(24)])
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    np.testing.assert_array_equal(shares.argmax(axis=0), first_experts(whole, 1))


def test_equal_first_experts_are_counted_in_pairs():
    whole = observed(rows=1, tokens=np.arange(36).reshape(3, 12) % 5)
    first, tokens = first_experts(whole, 1).ravel(), whole.tokens.ravel()
    alike = {t: [first[i] == first[j] for i, j in combinations(np.flatnonzero(tokens == t), 2)] for t in range(5)}
    equal = np.average([np.mean(alike[t]) for t in alike], weights=[(tokens == t).sum() for t in alike])
    everyone = np.mean([a == b for a, b in combinations(first, 2)])
    assert same_first_expert(whole, 1) == pytest.approx((equal, everyone))


# ---------------------------------------------------------------------------------------------------
# Digits


def test_digits_know_their_part_of_the_problem():
    text = "4=1\n12+30=42\n5-7=-2"
    row = [SPELLED.index(sign) for sign in text] + [0, SPELLED.index("8")]
    whole = observed(tokens=np.array([row] * 3))
    rows, positions, values, parts = digits(whole)
    assert "".join(map(str, values)) == "1230425728"
    assert "".join(map(str, parts)) == "0011220120"
    assert set(rows) == {2}
    assert [text[position] for position in positions[:-1]] == list("123042572")


def test_what_an_expert_tells_about_digits():
    signs = [SPELLED.index(sign) for sign in "\n12+34=56\n"]
    whole = observed(tokens=np.array([signs * 6] * 24))
    parts = np.zeros(len(signs), dtype=int)
    parts[4:6], parts[7:9] = 1, 2
    experts = np.tile(np.repeat(parts[:, None], 4, axis=1) + np.array([0, 3, 6, 9]), (6, 1))
    whole = replace(whole, experts=np.broadcast_to(experts, (2, 24, 60, 4)), weights=np.ones((2, 24, 60, 4)))
    of_value, of_part = bits_about_digits(whole, 1)
    assert (of_value, of_part) == pytest.approx((np.log2(3), np.log2(3)))  # here the value tells the part
    np.testing.assert_array_equal(parts_of_digits(whole, 1)[:, [0, 1, 2]], np.eye(3))


def test_experts_that_know_nothing_of_digits_tell_as_much_as_shuffled_ones():
    """More about ten values than about three parts; no title is made of that."""
    digit = np.random.default_rng(1).integers(2, 12, size=(24, 64))
    digit[:, ::8], digit[:, 3::8], digit[:, 6::8] = (SPELLED.index(sign) for sign in "\n+=")
    whole = observed(tokens=digit)
    (value, part), control = bits_about_digits(whole, 1), digits_control(whole, 1)
    assert value > part + 0.1
    assert (value, part) == pytest.approx(control, abs=0.05)
    excess = np.subtract((value, part), control)[:, None]
    assert _digits_finding(excess) == "A digit’s first expert tells little about its value or part in layers 1 and 1"


@pytest.mark.parametrize(
    ("excess", "said"),
    [
        ([[0.9, 0.3, 0.1], [0.2, 0.3, 0.8]], "most about its value in layer 1, about its part in layer 3"),
        ([[0.1, 0.9, 0.1], [0.2, 0.3, 0.8]], "most about its part in layers 1 and 3"),
        ([[0.01, 0.0, 0.1], [0.0, 0.0, 0.8]], "most about its part in layer 3"),
        ([[0.9, 0.9], [0.9, 0.9]], "as much about its value as its part in layers 1 and 2"),
    ],
)
def test_the_title_names_what_digits_experts_tell_most_about(excess, said):
    assert _digits_finding(np.array(excess)) == f"A digit’s first expert tells {said}"


# ---------------------------------------------------------------------------------------------------
# Pairs


def test_pairs_are_those_of_brute_force():
    whole = observed(rows=2)
    counts = np.zeros((24, 24))
    for chosen in whole.layer(1).reshape(-1, 4):
        for a, b in combinations(chosen, 2):
            counts[a, b] += 1
            counts[b, a] += 1
    np.testing.assert_array_equal(pairs(whole, 1), counts)
    pair = np.unravel_index(counts.argmax(), counts.shape)
    for token in typical_of_pair(whole, 1, pair, 3):
        both = [(whole.layer(1) == expert).any(-1) for expert in pair]
        assert (both[0] & both[1])[whole.tokens == token].mean() > (both[0] & both[1]).mean()


@pytest.mark.parametrize("groups", [1, 4])
def test_expected_pairs_keep_the_sums_that_are_given(groups):
    counts = pairs(observed(rows=16), 1)
    expected = expected_pairs(counts, groups)
    np.testing.assert_allclose(expected.sum(axis=1), counts.sum(axis=1))
    assert not np.diag(expected).any()
    if groups > 1:
        blocks = [table.reshape(4, 6, 4, 6).sum(axis=(1, 3)) for table in (expected, counts)]
        np.testing.assert_allclose(*blocks)


def test_the_limit_to_groups_alone_makes_pairs_and_the_second_expectation_takes_them_out():
    """Experts drawn at random within two random groups of four: no pair has learned anything."""
    rng = np.random.default_rng(0)
    kept = rng.random((3, 20_000, 4)).argsort(axis=-1)[..., :2]
    open_to = (np.arange(24) // 6 == kept[..., None]).any(axis=-2)
    experts = np.where(open_to, rng.random(open_to.shape), 2).argsort(axis=-1)[..., :4]
    whole = observed(tokens=np.zeros((3, 20_000), dtype=int))
    whole = replace(whole, experts=experts[None])
    counts = pairs(whole, 1)
    inside = within_groups(counts, 4)
    assert counts[inside].sum() / expected_pairs(counts)[inside].sum() == pytest.approx(
        pairs_of_group_limit(MINI), rel=0.01
    )
    ratios = counts / np.where(np.eye(24), 1, expected_pairs(counts, 4))
    assert np.abs(ratios[~np.eye(24, dtype=bool)] - 1).max() < 0.15
    assert pairs_of_group_limit(replace(MINI, n_group=1, topk_group=1)) == 1


def test_only_pairs_above_expectation_are_strong():
    counts = np.array([[0.0, 40, 30, 1], [40, 0, 10, 20], [30, 10, 0, 1], [1, 20, 1, 0]])
    expected = np.where(counts > 1, 20, 0.1) * (1 - np.eye(4))
    assert _strongest(counts, expected, 100) == {(0, 1): 2.0, (0, 2): 1.5}  # 10 times is too rare, 1 is no more
    assert "no frequent pair" in draw_pairs(replace(observed(), experts=np.tile(np.arange(4), (2, 24, 64, 1)))).alt


def test_pairs_of_one_group_are_drawn():
    whole = observed()
    assert draw_pairs(replace(whole, config=replace(MINI, n_group=1, topk_group=1))).alt


def test_an_expert_that_is_never_chosen_has_no_expected_pairs():
    counts = pairs(observed(), 1)
    counts[3], counts[:, 3] = 0, 0
    expected = expected_pairs(counts, 4)
    assert not expected[3].any()
    assert np.isfinite(expected).all()


# ---------------------------------------------------------------------------------------------------
# Texts


@pytest.mark.parametrize(
    ("text", "seen", "said"),
    [
        (" of", "·of", "of"), ("\n       ", "↵·7", "newline 7 spaces"), ("", "■", "end of a text"), (" ", "·", "space"),
        ("):", "):", "right parenthesis colon"), ("_x1", "_x1", "low line x1"), ("  ", "··", "2 spaces"),
    ],
)  # fmt: skip
def test_tokens_can_be_seen_and_read_aloud(text, seen, said):
    assert visible(text) == seen
    assert spoken(text) == said
