"""Chapter 6's measurements: drafts judged while decoding against a full pass, and what the titles may say."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_training import small_model
from pictures import title

from minids.book.plots.c06_acceptance import draw_acceptance_is_overlap
from minids.book.plots.c06_training import AFTERWARDS, NONE, draw_mtp_ablation, draw_mtp_published
from minids.book.probes.drafts import drafts, judged
from minids.cost.published import MTP_ABLATION

SEEDS = [(weights, data) for weights in (0, 1) for data in (0, 1)]
FOUR = (1.80, 1.83, 1.81, 1.84)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_drafts_are_accepted_as_a_pass_over_the_finished_text_computes(depth):
    """Greedy: exactly where the likeliest tokens agree. Sampled: as often as 1 - TV says, also in its halves."""
    model = small_model(initializer_range=0.2, vocab_size=4, num_nextn_predict_layers=depth).double()
    prompts = torch.randint(4, (9, 3), generator=torch.Generator().manual_seed(0))
    computed, accepted = judged(model, prompts, 40, temperature=0)
    assert torch.equal(computed == 1, accepted)
    assert 0.1 < accepted.double().mean() < 0.9
    computed, accepted = judged(model, prompts.repeat(8, 1), 50, temperature=0.2)
    for half in (computed < computed.median(), computed >= computed.median()):
        chance, found = computed[half], accepted[half].double()
        error = (chance * (1 - chance)).sum().sqrt() / len(chance)
        assert abs(found.mean() - chance.mean()) < 4 * error < 0.1


def test_the_entropy_is_that_of_the_model():
    model, rows = small_model(num_nextn_predict_layers=2).eval(), np.arange(12).reshape(2, 6)
    with torch.no_grad():
        nats = torch.distributions.Categorical(logits=model(torch.from_numpy(rows[:, :-1])).double()).entropy()
    for k, depth in enumerate(drafts(model, rows), start=1):
        torch.testing.assert_close(depth.entropy, nats[:, k:] / math.log(2))


@pytest.mark.parametrize("rows", [torch.arange(8), torch.zeros(2, 3, dtype=torch.long)])
def test_texts_too_short_for_a_draft_of_each_depth_are_refused(rows):
    model = small_model(num_nextn_predict_layers=2)
    with pytest.raises(ValueError, match=r"rows=\(.*\) is not possible: it must be \(B, T\) with T at least 4"):
        drafts(model, rows)
    with pytest.raises(ValueError, match="new_tokens=2 is not possible: it must be a whole number of at least 3"):
        judged(model, rows, 2)
    assert len(judged(model, [3], 3)[0])  # one prompt of one token


def made_up(**added: tuple[float, ...]) -> dict:
    """Results of four runs an arm, of FOUR bits a byte and as many more as `added` says, in no order of the seeds."""
    plain = small_model().config
    names = {"three": "λ = 0.3", "one": "λ = 1", "falling": "0.3, then 0.1", "two": "two modules"}
    arms = {NONE: 0} | {names[name]: 2 if name == "two" else 1 for name in added} | {AFTERWARDS: 1}
    shares = [{"prose": 0.70, "code": 0.74}, {"prose": 0.60, "code": 0.61}]
    runs = [
        {"arm": arm, "weights": weights, "data": data, "bits_per_byte": {"prose_and_code": bits + more}}
        | {name: shares[:depth] for name in ("acceptance", "agreement") if depth}
        for (arm, depth), extra in zip(arms.items(), [(0,) * 4, *added.values(), (0,) * 4], strict=True)
        for (weights, data), bits, more in zip(SEEDS, FOUR, extra, strict=True)
    ]
    models = {arm: replace(plain, num_nextn_predict_layers=depth).to_hf() for arm, depth in arms.items()}
    return {"seeds": [0, 1], "arms": {arm: {"model": model} for arm, model in models.items()}, "runs": runs[::-1]}


LESS, MORE, SAME = (-0.01, -0.012, -0.01, -0.008), (0.02, 0.02, 0.03, 0.03), (0.02, -0.001, 0.02, 0.02)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"three": SAME, "two": SAME}, "not separated in “λ = 0.3” and “two modules”"),
        ({"three": LESS, "two": SAME}, "0.010 lower in “λ = 0.3”, not separated in “two modules”"),
        (
            {"three": LESS, "one": MORE, "falling": LESS, "two": SAME},
            "0.010 lower in 2 of 4 arms, 0.025 higher in 1 of 4 arms, not separated in 1 of 4 arms",
        ),
    ],
)
def test_a_main_loss_is_called_lower_or_higher_only_where_it_is_separated(added, said):
    finding = title(draw_mtp_ablation(made_up(**added)))
    assert finding.startswith(f"Main loss, against “none”: {said} Accepted at temperature 1: 0.720, 0.605 at depth 2")


def test_the_published_ablation_is_counted():
    finding = title(draw_mtp_published())
    assert "16 of 18 benchmark scores rise, MMLU at 228.7B and NaturalQuestions at 15.7B fall" in finding
    assert "at most 0.001: 0.729 → 0.729 and 0.658 → 0.657" in finding
    assert len({tuple(table) for table in MTP_ABLATION.values()}) == 1


def test_acceptance_that_is_not_1_minus_tv_is_seen():
    """The same mean, but accepted without regard to the distributions."""
    computed = torch.linspace(0.02, 0.98, 2000)
    lucky = torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.5
    (finding,) = [
        text.get_text() for text in draw_acceptance_is_overlap(computed, lucky).texts if "apart" in text.get_text()
    ]
    total, in_a_bin = (float(number) for number in re.findall(r"\d+\.\d", finding))
    assert total < 3 < 10 < in_a_bin
