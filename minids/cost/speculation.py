"""What speculative decoding saves: tokens per step, and the speed-up for given costs of drafting and verifying.

The unit of cost is a plain decoding step. The formulas assume that every draft is accepted with the same probability,
whatever came before it (Leviathan et al. 2023, eq. 1 and theorem 3.8).
"""

from __future__ import annotations

from minids.validation import is_number, require, require_whole


def tokens_per_step(acceptance: float, drafts: int) -> float:
    """Return the expected tokens of a step that verifies so many drafts, each accepted with this probability.

    The k-th draft comes out if it and all before it are accepted, and the step adds one token of its own, so this is
    1 + a + a² + ... + a^K = (1 - a^(K+1)) / (1 - a).
    """
    require("acceptance", acceptance, is_number(acceptance) and 0 <= acceptance <= 1, "from 0 to 1")
    require_whole("drafts", drafts, at_least=0)
    return sum(acceptance**k for k in range(drafts + 1))


def speed_up(acceptance: float, drafts: int, draft_cost: float, verify_cost: float) -> float:
    """Return how many times as fast as plain decoding this is; a step costs `drafts` times a draft and one verify."""
    require("draft_cost", draft_cost, is_number(draft_cost) and draft_cost >= 0, "0 or more")
    require("verify_cost", verify_cost, is_number(verify_cost) and verify_cost > 0, "above 0")
    return tokens_per_step(acceptance, drafts) / (verify_cost + drafts * draft_cost)


def break_even(drafts: int, draft_cost: float, verify_cost: float) -> float | None:
    """Return the acceptance from which speculative decoding is as fast as plain decoding; None if no acceptance is."""
    low, high = 0.0, 1.0
    if speed_up(low, drafts, draft_cost, verify_cost) >= 1:
        return low
    if speed_up(high, drafts, draft_cost, verify_cost) < 1:
        return None
    for _ in range(50):  # halves the interval, as the speed-up rises with acceptance
        middle = (low + high) / 2
        low, high = (low, middle) if speed_up(middle, drafts, draft_cost, verify_cost) >= 1 else (middle, high)
    return high
