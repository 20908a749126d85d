"""The dashboard: what stands in its panels against the records, what it says, and for which runs it is drawn."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from legibility import assert_legible
from pictures import ARGUMENTS, DOMAINS, part, picture, run, sick, title

from minids.book.plots.c10_dashboard import draw_dashboard
from minids.training.config import TrainConfig

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, as other pictures
HEADERS = ("bits per byte", "MaxVio", "load", "loss", "gradient norm", "learning rate", "tokens per second")
VARIANTS = [name for name in ARGUMENTS["dashboard"] if not name.startswith("recorded")]


def panels(fig) -> dict:
    """The axes by the first words of the header above them."""
    headers = [text for text in fig.texts if text.get_size() == 11 and text.get_color() == "#222222"]
    axes = [ax for ax in fig.axes if ax.get_position().width > 0.05]  # without the colour bar
    return {named(text): ax for text, ax in zip(headers, axes, strict=True)}


def named(text) -> str:
    return next(header for header in HEADERS if text.get_text().startswith(header))


def curve(ax, i=0):
    return ax.lines[i].get_xdata(), ax.lines[i].get_ydata()


def test_lines_are_running_means_and_no_gap_of_a_domain_is_filled():
    records, report = run(steps=240)
    rng = np.random.default_rng(1)
    for record in records:
        record["bits_per_byte"] = {d: rng.random() for d in DOMAINS if rng.random() < 0.5}
    drawn = panels(draw_dashboard(records, report))
    served = [(r["step"], r["bits_per_byte"]["prose"]) for r in records if "prose" in r["bits_per_byte"]]
    for ax, points in (
        (drawn["bits per byte"], served),
        (drawn["loss"], [(r["step"], r["next_token"]) for r in records]),
    ):
        half = max(1, len(points) // 60)
        means = [np.mean([y for _, y in points[max(0, i - half) : i + half + 1]]) for i in range(len(points))]
        x, y = curve(ax)
        np.testing.assert_allclose(y, means)
        np.testing.assert_allclose(x, [(step + 1) * 1024 / 1e3 for step, _ in points])


def test_load_and_speed_are_those_of_the_records_and_the_least_even_layer_is_shown():
    records, report = run(steps=60, layers=3)
    for record in records[-20:]:
        record["load"][1][5] = 0
    fig = draw_dashboard(records, report, layer_names=("layer 2", "layer 3", "MTP"))
    drawn = panels(fig)
    expected = [[load / np.mean(r["load"][1]) for load in r["load"][1]] for r in records]
    np.testing.assert_allclose(drawn["load"].images[0].get_array(), np.array(expected).T)
    assert "load / average of layer 3, the least even" in [text.get_text() for text in fig.texts]
    np.testing.assert_allclose(curve(drawn["tokens per second"])[1], 1024 / 0.31)
    assert title(fig) == "Look here: 1 of 96 experts gets no token"


def test_no_spike_of_the_gradient_is_lost_and_a_long_run_is_thinned():
    records, _ = run(steps=5000, layers=1, experts=4)
    records[3333]["gradient_norm"] = 77.0
    fig = draw_dashboard(records, None, TrainConfig(steps=100_000))
    drawn = panels(fig)
    band = drawn["gradient norm"].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == 77.0
    assert max(len(line.get_xdata()) for ax in fig.axes for line in ax.lines) <= 400
    assert drawn["gradient norm"].get_xlim()[1] == 100_000 * 1024 / 1e6


def test_the_learning_rate_is_the_configuration_s_and_says_when_lambda_and_gamma_change():
    config = TrainConfig(steps=200)
    fig = draw_dashboard(run(200)[0][:120], None, config)
    drawn = panels(fig)["learning rate"]
    (x, done), (_, planned) = curve(drawn, 1), curve(drawn, 0)
    assert list(planned) == [config.learning_rate_at(step) for step in range(200)]
    assert list(done) == list(planned[:120])
    np.testing.assert_allclose(x[-1], 120 * 1024 / 1e3)
    changes = [line.get_xdata()[0] / 1.024 for line in drawn.lines[2:]]
    first = [next(s for s in range(200) if at(s) != at(0)) for at in (config.mtp_weight_at, config.bias_speed_at)]
    assert changes == pytest.approx(first)
    assert any(text.get_text() == "learning rate  ┊ λ → 0.1  ┊ γ → 0" for text in fig.texts)


@pytest.mark.parametrize(
    ("variant", "absent"),
    [
        ("usual", set()), ("dense", {"MaxVio", "load"}), ("another loss", {"bits per byte"}),
        ("recorded", set()),
    ],
)  # fmt: skip
def test_a_panel_is_drawn_for_what_was_recorded(variant, absent):
    assert panels(picture(f"dashboard: {variant}")).keys() == set(HEADERS) - absent


def test_without_mtp_there_is_one_loss_and_no_change_of_lambda():
    for variant, losses in (("usual", 2), ("without MTP", 1)):
        fig = picture(f"dashboard: {variant}")
        assert len(panels(fig)["loss"].lines) == losses
        assert ("λ" in fig.alt, "MTP" in fig.alt) == (losses == 2,) * 2


def test_held_out_scores_and_the_5_gram_s_stand_beside_the_lines_and_in_the_title():
    records, report = run()
    report["bits_per_byte"]["all"], report["baseline_bits_per_byte"]["all"] = 1.81, 2.24
    fig = draw_dashboard(records, report)
    ax = panels(fig)["bits per byte"]
    assert "held-out 1.81 bits per byte, a 5-gram 2.24" in title(fig)
    said = {text.get_text().split()[0]: re.findall(r"\d\.\d\d", text.get_text()) for text in ax.texts}
    assert said == {
        d: [f"{report[name][d]:.2f}" for name in ("bits_per_byte", "baseline_bits_per_byte")] for d in DOMAINS
    }
    dots = {float(line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"}
    assert dots == {report["bits_per_byte"][d] for d in DOMAINS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_text_is_the_same_from_the_first_step_to_the_report_and_holds_no_trained_number(variant):
    records, _, *rest = ARGUMENTS["dashboard"][variant]
    config = rest[0] if rest else TrainConfig(steps=len(records))
    first = draw_dashboard(records[:1], None, config).alt
    assert first == picture(f"dashboard: {variant}").alt
    other = [record | {"gradient_norm": 3.21, "next_token": 9.87} for record in records]
    assert draw_dashboard(other, None, config).alt == first
    assert f"{config.steps:,} steps" in first


@pytest.mark.parametrize(
    ("arguments", "verdict", "marked"),
    [
        (part(1, 1800), "Too early to judge: 1 of 1,800 steps, bits per byte ", ""),
        (part(25, 800), "Too early to judge: 25 of 800 steps, bits per byte ", "✓ MaxVio"),
        (part(10, 10), "Too short to judge: 10 steps, bits per byte ", ""),
        (run(1), "Too short to judge: 1 step, held-out ", ""),
        (run(39), "Too short to judge: 39 steps, held-out ", "✓ MaxVio, ✓ gradient norm"),
        (run(40), "Healthy: ", "✓ bits per byte, ✓ MaxVio, ✓ loss, ✓ gradient norm, ✓ tokens per second"),
        (part(50, 99, mtp=False, bits_per_byte={}), "Healthy: loss ",
         "✓ MaxVio, ✓ loss, ✓ gradient norm, ✓ tokens per second"),
        (sick(), "Look here: the loss is ",
         "✗ bits per byte, ✗ MaxVio, ✗ loss, ✗ gradient norm, ✗ tokens per second"),
    ],
)  # fmt: skip
def test_only_what_was_judged_is_marked_and_a_run_is_healthy_only_if_its_loss_was(arguments, verdict, marked):
    fig = draw_dashboard(*arguments)
    assert title(fig).startswith(verdict)
    marks = [(text, header) for text, header in pairwise(fig.texts) if text.get_text() in "✓✗"]
    beside = [f"{mark.get_text()} {named(header)}" for mark, header in marks if mark.get_size() == 12]
    assert ", ".join(beside) == marked
    overall = [mark.get_text() for mark, _ in marks if mark.get_size() == 15]
    assert overall == {"Too": [], "Healthy:": ["✓"], "Look": ["✗"]}[verdict.split()[0]]


@pytest.mark.parametrize("steps", [5, 77, 1799])
@pytest.mark.parametrize("schedule", [(0.0, 0.0, 0.0), (0.03, 0.97, 0.5), (0.5, 0.04, 0.05)])
def test_it_is_legible_at_any_time_of_any_schedule(steps, schedule):
    names = ("warmup_fraction", "decay_fraction", "frozen_bias_fraction")
    records, _, config = part(steps, 1800, layers=2, experts=8)
    assert_legible(draw_dashboard(records, None, replace(config, **dict(zip(names, schedule, strict=True)))))


def test_without_records_or_configuration_it_says_what_is_missing():
    with pytest.raises(ValueError, match="no records"):
        draw_dashboard([], None, TrainConfig())
    with pytest.raises(ValueError, match="config is missing"):
        draw_dashboard(run(5)[0])
