"""The rows of the ablation table, from made-up results and from models that train in a second."""

import statistics
from dataclasses import replace

import pytest
from pictures import picture

from minids import ModelConfig
from minids.book import ablation
from minids.book.ablation import Row, ablate, recorded_rows, short_full
from minids.book.experiments import ablation as experiment
from minids.book.experiments.pool import Arm
from minids.book.recorded import Measured, bits_of, load, scores_of

TINY = replace(ModelConfig.preset("tiny"), vocab_size=2048, num_hidden_layers=1, first_k_dense_replace=0)
PAIRS = ((0, 0), (0, 1), (1, 0), (1, 1))


def result(arms: dict[str, Arm], bits: dict[str, tuple[float, ...]]) -> dict:
    """Return what an experiment would have recorded, with these bits per byte."""
    runs = [
        {"arm": arm, "weights": pair[0], "data": pair[1], "bits_per_byte": {"prose_and_code": value}}
        | {"max_violation": 0.25, "acceptance": [0.4, 0.6]}
        for arm, values in bits.items()
        for pair, value in reversed(list(zip(PAIRS, values, strict=True)))
    ]
    return {"arms": {name: arm.settings() for name, arm in arms.items()}, "seeds": [0, 1], "runs": runs}


@pytest.fixture
def recorded(monkeypatch):
    """The results of the other experiments are the recorded ones."""
    bits = dict.fromkeys(experiment.ARMS, (2.0, 2.1, 2.2, 2.3))
    bits |= {"MHA": (2.1, 2.2, 2.3, 2.4), ablation.QUICK: (3.0, 3.1, 3.2, 3.3)}
    costs = {"arms": {"MHA": {"step": {"median": 1.5}, "peak_bytes": 7}}}
    made = {"ablation": result(experiment.ARMS, bits), "costs": costs}
    monkeypatch.setattr(ablation, "load", lambda name: made.get(name) or load(name))
    recorded_rows.cache_clear()
    yield
    recorded_rows.cache_clear()


def test_recorded_rows_are_the_full_model_and_every_change_in_order(recorded):
    rows = recorded_rows()
    names = [name for name in experiment.ARMS if name != ablation.QUICK]
    assert [row.name for row in rows] == [*names[:-2], "no MTP", *names[-2:]]
    full, mha = rows[:2]
    assert full.differences == (0, 0, 0, 0)
    assert mha.differences == pytest.approx([0.1] * 4)
    assert (mha.verdict, mha.step, mha.peak_bytes, mha.max_violation, mha.acceptance) == ("worse", 1.5, 7, 0.25, 0.5)
    assert {row.name for row in rows if row.earlier is not None} == ablation.EARLIER.keys()
    bits = statistics.mean(scores_of(load("attention"), "MHA")) - statistics.mean(
        scores_of(load("attention"), "MLA 48 + 16")
    )
    assert mha.earlier == pytest.approx(bits)
    coarse = bits_of(load("experts"), "0 + 2 of 16") - bits_of(load("experts"), "1 + 7 of 63")
    assert rows[3].earlier == pytest.approx(coarse.mean())
    line = "| MHA | 2.250 | +0.100 (+0.100 to +0.100) | worse | 1,536 B | 0.25 | 50% | 1.50× | 0 MB |"
    assert line in ablation.table(rows)
    assert (rows[-3].model.num_nextn_predict_layers, len(rows[-3].differences)) == (0, 4)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [((1.9, 2.0), "better"), ((2.1, 2.2), "worse"), ((1.9, 2.2), "not separated"), ((1.9,), "one run")],
)
def test_a_verdict_is_from_the_differences_of_equal_seeds(ours, verdict):
    row = Row("", TINY, Measured(ours), Measured((2.0, 2.1)[: len(ours)]))
    assert row.verdict == verdict


def test_the_picture_has_a_dot_for_each_run_a_bar_for_the_mean_and_a_diamond_for_the_earlier_chapter():
    rows = recorded_rows()
    ax = picture("ablation: recorded").axes[0]
    drawn = {(line.get_marker(), tuple(line.get_xdata())) for line in ax.lines}
    for row in rows[1:]:
        assert {("o", row.differences), ("None", (row.difference, row.difference))} <= drawn
        assert row.earlier is None or ("D", (row.earlier,)) in drawn


@pytest.mark.parametrize(("steps", "full"), [({}, (3.0, 3.3)), ({"steps": experiment.TRAIN.steps}, (2.0, 2.3))])
def test_a_short_run_is_compared_with_short_ones(steps, full, recorded, monkeypatch):
    done = []
    one = {"bits_per_byte": {"prose_and_code": 2.5}}
    monkeypatch.setattr(ablation, "measure", lambda arm, *pair: done.append((arm.train, pair)) or one)
    row = ablate("mine", TINY, **steps, bias_speed=0.0)
    assert row.full.values == full
    assert (short_full().bits.values, short_full().difference) == ((3.0, 3.1, 3.2, 3.3), 0)
    assert done == [({"steps": steps.get("steps", 200), "bias_speed": 0.0}, pair) for pair in ((0, 0), (1, 1))]


def test_a_row_of_the_reader_is_compared_with_the_full_models_runs_of_the_same_seeds_and_steps(monkeypatch):
    """The full model itself, trained again, differs by exactly 0; a change of it does not, nor do other seeds."""
    train = replace(experiment.TRAIN, steps=3, batch_size=2, sequence_length=16)
    few_rows = {domain: rows[:2] for domain, rows in experiment.held_out().items()}
    score = experiment.scores
    monkeypatch.setattr(experiment, "held_out", lambda: few_rows)
    monkeypatch.setattr(experiment, "scores", lambda model: score(model, few_rows))
    for module in (experiment, ablation):
        monkeypatch.setattr(module, "TRAIN", train)
    runs = [
        {"arm": "full", "weights": weights, "data": data} | experiment.measure(Arm(TINY), weights, data)
        for weights, data in PAIRS[:2]
    ]
    monkeypatch.setattr(ablation, "load", lambda name: {"runs": runs})
    again = ablate("again", TINY, seeds=((0, 1), (0, 0)), steps=3)
    assert again.differences == (0, 0)
    assert again.full.values[0] != again.full.values[1]
    assert (again.recorded, again.step, again.earlier) == (False, None, None)
    changed = ablate("mine", replace(TINY, num_experts_per_tok=1), seeds=((0, 0),), steps=3)
    assert changed.difference != 0
    assert ablate("slow", TINY, seeds=((0, 0),), steps=3, learning_rate=1e-5).difference > 0
    twice = ((0, 0), (0, 0))
    for wrong in ({"steps": 4}, *({"seeds": s, "steps": 3} for s in (((1, 1),), (), twice)), {"seed": 3}, {"speed": 1}):
        with pytest.raises(ValueError, match="is not possible"):
            ablate("wrong", TINY, **wrong)
