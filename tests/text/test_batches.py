"""Packing and batches: brute force and properties, for any mixture and any lengths."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from configurations import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from minids.text.batches import Batches, pack

STREAMS = {"prose": range(61), "code": range(1000, 1100), "arithmetic": range(2000, 2021)}
STREAMS = {domain: np.array(tokens, dtype=np.uint16) for domain, tokens in STREAMS.items()}
MIXTURE = {"prose": 9, "code": 6, "arithmetic": 5}


def some_batches(seed: int = 3, mixture=MIXTURE) -> Batches:
    return Batches(STREAMS, mixture, 4, seed)


@st.composite
def recipes(draw) -> dict:
    """What `Batches` can be made from: any mixture, any lengths, and no token twice."""
    length = draw(st.integers(1, 6))
    mixture = draw(st.dictionaries(st.sampled_from(list(STREAMS)), st.integers(1, 9), min_size=1))
    streams = {domain: STREAMS[domain][: draw(st.integers(length + 1, 20))] for domain in mixture}
    return dict(streams=streams, mixture=mixture, sequence_length=length, seed=draw(st.integers(0, 2**32)))


@examples(150)
@given(st.integers(1, 20), st.integers(2, 80))
def test_every_token_but_the_first_is_predicted_once_and_again_only_where_the_last_row_reaches_back(length, tokens):
    assume(tokens > length)
    stream = np.arange(tokens) + 1000
    rows = pack(stream, length)
    assert rows.shape[1] == length + 1
    assert (np.diff(rows) == 1).all(), "each row is a stretch of the stream"
    reached_back = rows[:, 1:].size - (tokens - 1)
    assert 0 <= reached_back < length
    again = rows[-1, 1 : 1 + reached_back]
    assert Counter(rows[:, 1:].flatten().tolist()) == Counter([*stream[1:].tolist(), *again.tolist()])


@examples(50)
@given(recipes(), st.lists(st.integers(0, 200), min_size=1, max_size=8), st.integers(1, 7))
def test_a_batch_depends_on_seed_and_step_alone_and_holds_the_rows_in_their_order(recipe, steps, batch_size):
    asked = Batches(**recipe)
    for step in steps:
        batch = asked.batch(step, batch_size)
        tokens, other = batch.pop("tokens"), Batches(**recipe)
        assert (tokens.shape, tokens.dtype) == ((batch_size, recipe["sequence_length"] + 1), np.int64)
        np.testing.assert_array_equal(tokens, other.batch(step, batch_size)["tokens"])
        np.testing.assert_array_equal(tokens, [other.row(step * batch_size + i) for i in range(batch_size)])
        assert not batch


@examples(50)
@given(recipes())
def test_every_row_of_a_domain_comes_once_an_epoch(recipe):
    batches = Batches(**recipe)
    for domain in recipe["mixture"]:
        rows = pack(recipe["streams"][domain], recipe["sequence_length"])
        indices = (i for i in itertools.count() if batches.domain(i) == domain)
        for _ in range(3):
            epoch = [tuple(batches.row(i)) for i in itertools.islice(indices, len(rows))]
            assert sorted(epoch) == sorted(map(tuple, rows))


def test_a_batch_of_the_farthest_step_is_made_at_once():
    """Nothing is counted up to it: the order of each epoch comes from its number."""
    step, batches = 2**63 - 1, some_batches()
    tokens = batches.batch(step, 4)["tokens"]
    for i, row in enumerate(tokens, start=4 * step):
        domain, cycles = batches.domain(i), i // 20
        served = cycles * MIXTURE[domain] + [batches.domain(j) for j in range(20 * cycles, i)].count(domain)
        epoch, place = divmod(served, len(batches.rows[domain]))
        order = np.random.default_rng([3, epoch, *domain.encode()]).permutation(len(batches.rows[domain]))
        np.testing.assert_array_equal(row, batches.rows[domain][order[place]])


def test_each_epoch_and_each_seed_has_another_order():
    for domain, length in (("prose", 15), ("code", 25)):
        orders = set()
        for batches in (some_batches(seed) for seed in (3, 4)):
            served = [tuple(batches.row(i)) for i in range(1000) if batches.domain(i) == domain]
            orders |= {tuple(served[epoch * length : (epoch + 1) * length]) for epoch in range(10)}
        assert len(orders) == 2 * 10


@examples(50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 5))
def test_the_mixture_is_exact_over_every_cycle_and_even_within(weights, cycle):
    mixture = dict(zip(STREAMS, weights, strict=False))
    batches, total = some_batches(mixture=mixture), sum(weights)
    served = [batches.domain(cycle * total + i) for i in range(total)]
    assert Counter(served) == mixture
    for domain, weight in mixture.items():
        for i in range(1, total + 1):
            apart = abs(Fraction(weight * i, total) - served[:i].count(domain))
            assert apart <= Fraction(total + weight * len(mixture), 2 * total)  # half a row, and a share of all halves


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *[(lambda n=n: pack(np.arange(n), 8), f"has {n} tokens: at least 9 are needed") for n in (0, 1, 8)],
        (lambda: pack(np.arange(9), 0), "sequence_length=0"),
        (lambda: some_batches(mixture={}), "mixture={}"),
        (lambda: some_batches(mixture={"poetry": 1}), "domain='poetry' is not possible: it must be one of prose"),
        (lambda: some_batches(mixture={"prose": 0}), r"mixture\['prose'\]=0"),
        (lambda: some_batches().batch(-1, 4), "step=-1"),
        (lambda: some_batches().batch(0, 0), "batch_size=0"),
    ],
)
def test_what_gives_no_batch_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
