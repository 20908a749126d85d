"""The picture of a token's way through latent attention: legible for every model, and to scale."""

import numpy as np
import pytest
from legibility import assert_legible

from minids.book.plots import draw_latent_flow
from minids.model.config import ModelConfig

V3 = ModelConfig.preset("deepseek-v3")
LATENT = ("deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "mini")


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("absorbed", [False, True])
def test_the_flow_is_legible_for_every_model_with_latents(name, absorbed):
    assert_legible(draw_latent_flow(ModelConfig.preset(name), absorbed))


def test_the_flow_says_what_is_cached_and_what_is_made_of_it():
    alt = draw_latent_flow(V3).alt
    assert "c_kv (512) and k_rope (64), 576 together" in alt
    assert "expand to 40,960" in alt
    assert "become 73,728 wide" in draw_latent_flow(V3, absorbed=True).alt
    assert "directly from h" in draw_latent_flow(ModelConfig.preset("deepseek-v2-lite")).alt


def test_widths_are_to_scale_and_both_forms_have_one_scale():
    def widths(fig):
        bars = [p for p in fig.axes[0].patches if p.__class__.__name__ == "Rectangle" and p.get_height() == 17]
        return [bar.get_width() for bar in bars]

    expanded, absorbed = (widths(draw_latent_flow(V3, form)) for form in (False, True))
    numbers = [7168, 1536, 16384, 8192, 512, 64, 16384, 16384, 8192, 16384, 7168]
    np.testing.assert_allclose(np.array(expanded) / expanded[0], np.array(numbers) / 7168)
    assert absorbed[0] == pytest.approx(expanded[0])
    assert max(absorbed) / absorbed[0] == pytest.approx(128 * 512 / 7168)


def test_a_model_without_latents_has_no_flow():
    with pytest.raises(ValueError, match="no latents"):
        draw_latent_flow(ModelConfig.preset("deepseek-llm-7b"))


def test_what_is_cached_is_outlined_in_dashes_around_the_latent():
    for absorbed in (False, True):
        patches = draw_latent_flow(V3, absorbed).axes[0].patches
        rectangles = [patch for patch in patches if patch.__class__.__name__ == "Rectangle"]
        (outline,) = [patch for patch in rectangles if not patch.get_fill() or patch.get_facecolor()[3] == 0]
        assert outline.get_linestyle() == "--" or outline.get_linestyle()[1]
        latent = [patch for patch in rectangles if patch.get_height() == 17][4]
        assert outline.get_x() < latent.get_x() < outline.get_x() + outline.get_width()
