"""The formulas of speculative decoding against drafts that are judged, one by one."""

import pytest
import torch

from minids.cost.published import MTP_ACCEPTANCE, MTP_SPEED_UP
from minids.cost.speculation import break_even, speed_up, tokens_per_step
from minids.inference.speculative import judge


@pytest.mark.parametrize("drafts", [1, 2, 4])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.85, 1.0])
def test_tokens_per_step_are_what_judging_gives(acceptance, drafts):
    """Drafts are always token 0, and the model draws it with the probability of acceptance."""
    steps = 40_000
    q, p = torch.tensor([1.0, 0.0]).double(), torch.tensor([acceptance, 1 - acceptance]).double()
    draws = torch.zeros(steps, drafts, dtype=torch.long)
    accepted, _ = judge(
        draws, q.expand(steps, drafts, 2), p.expand(steps, drafts + 1, 2), torch.Generator().manual_seed(0)
    )
    tokens = 1 + accepted.double()
    error = 4 * tokens.std().item() / steps**0.5
    assert tokens_per_step(acceptance, drafts) == pytest.approx(tokens.mean().item(), abs=error + 1e-9)


def test_the_published_speed_up_implies_a_step_hardly_dearer_than_a_plain_one():
    low, high = MTP_ACCEPTANCE
    assert tokens_per_step(low, 1) / MTP_SPEED_UP == pytest.approx(1.85 / 1.8)
    assert tokens_per_step(high, 1) / MTP_SPEED_UP == pytest.approx(1.9 / 1.8)
    assert speed_up(low, 1, draft_cost=0.02, verify_cost=1.85 / 1.8 - 0.02) == pytest.approx(MTP_SPEED_UP)
    assert speed_up(0.5, 0, draft_cost=7, verify_cost=1) == 1


@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_at_break_even_a_step_gives_as_many_tokens_as_it_costs(drafts):
    acceptance = break_even(drafts, draft_cost=0.1, verify_cost=1.3)
    assert tokens_per_step(acceptance, drafts) == pytest.approx(1.3 + 0.1 * drafts)
    assert break_even(drafts, draft_cost=1, verify_cost=1.01) is None
    assert break_even(drafts, draft_cost=0, verify_cost=1) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"acceptance": 1.2}, r"acceptance=1\.2 is not possible: it must be from 0 to 1"),
        ({"acceptance": "a"}, "acceptance='a' is not possible: it must be from 0 to 1"),
        ({"drafts": -1}, "drafts=-1 is not possible: it must be a whole number of at least 0"),
        ({"drafts": 1.5}, r"drafts=1\.5 is not possible: it must be a whole number of at least 0"),
        ({"draft_cost": -0.1}, r"draft_cost=-0\.1 is not possible: it must be 0 or more"),
        ({"draft_cost": 0, "verify_cost": 0}, "verify_cost=0 is not possible: it must be above 0"),
        ({"verify_cost": None}, "verify_cost=None is not possible: it must be above 0"),
    ],
)
def test_impossible_numbers_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        speed_up(**({"acceptance": 0.8, "drafts": 1, "draft_cost": 0.1, "verify_cost": 1.1} | given))
