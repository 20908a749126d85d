"""What the recorded experiment on experts separates, and how its runs are compared."""

import numpy as np
import pytest

from minids.book.experiments.experts import MODELS
from minids.book.plots.c04_ablation import PUBLISHED, added, compare, draw_experts_ablation, noise
from minids.cost.published import DEEPSEEKMOE_2B


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
    assert "Of 3 mixtures, 1 is ahead of dense at equal active size, 1 behind, 1 not separated" in texts
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
    assert [model for model in PUBLISHED if model in ours] == [arm for arm in ours if arm in DEEPSEEKMOE_2B]
    assert DEEPSEEKMOE_2B.keys() >= set(PUBLISHED)
