"""The picture of the speed-up: its curves and points against the closed form, legible wherever the sliders stand."""

import itertools

import numpy as np
import pytest
from legibility import assert_legible
from pictures import title

from minids.book.plots.c06_speed import draw_speculation_speedup

MEASURED = [("prose", 0.755, 1.21), ("code", 0.749, 1.2), ("arithmetic", 0.9, 1.35)]


def closed_form(acceptance, drafts: int, draft_cost: float, verify_cost: float):
    return (1 - acceptance ** (drafts + 1)) / (1 - acceptance) / (verify_cost + drafts * draft_cost)


@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_curves_and_points_are_where_the_closed_form_puts_them(drafts):
    fig = draw_speculation_speedup(0.7, 0.1, 1.2, drafts)
    lines = fig.axes[0].lines
    curves = {line.get_linewidth(): line for line in lines if len(line.get_xdata()) > 2 and line.get_linestyle() == "-"}
    accepted = curves[3].get_xdata()[:-1]
    np.testing.assert_allclose(curves[3].get_ydata()[:-1], closed_form(accepted, drafts, 0.1, 1.2))
    even, chosen = (line.get_xydata()[0] for line in lines if line.get_marker() == "o")
    assert [closed_form(even[0], drafts, 0.1, 1.2), even[1]] == pytest.approx([1, 1])
    assert tuple(chosen) == pytest.approx((0.7, closed_form(0.7, drafts, 0.1, 1.2)))
    assert f"{closed_form(0.7, drafts, 0.1, 1.2):.2f} times as fast" in title(fig)
    assert f"faster from {even[0]:.0%} on" in fig.alt


def test_it_says_what_v3_reports_and_where_drafting_never_pays():
    usual, dear = draw_speculation_speedup(), draw_speculation_speedup(0.9, 0.5, 2.0, 1, MEASURED)
    assert "1.85 tokens per step, 1.68 times as fast" in title(usual)
    assert "1.8 times as fast, where 1.85 to 1.90 is ideal" in usual.alt
    assert any("costs 1.03 to 1.06 plain steps" in text.get_text() for text in usual.axes[0].texts)
    assert "only 0.76 times as fast" in title(dear)
    assert "never faster" in dear.alt
    assert "Measured, arithmetic: acceptance 90%, 1.35 times as fast" in dear.alt
    with pytest.raises(ValueError, match="drafts=3 is not possible: it must be 1, 2 or 4"):
        draw_speculation_speedup(drafts=3)


CORNERS = list(itertools.product((0, 0.85, 1), (0, 0.5), (1, 1.3, 2), (1, 2, 4), ((), MEASURED)))


@pytest.mark.parametrize("settings", CORNERS[::5])
def test_wherever_the_sliders_stand_it_is_legible(settings):
    assert_legible(draw_speculation_speedup(*settings))
