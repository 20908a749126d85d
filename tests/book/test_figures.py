"""The committed pictures are those that the code draws now: their text exactly, their pixels nearly."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from minids.book.plots.style import projector

FOLDER = Path(__file__).parents[2] / "figures"
RMS = 1.0  # of 255: another version of the font library may move an edge by a fraction of a pixel


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(draw):
    return draw.figures()


def difference(a: bytes, b: bytes) -> float:
    """Root mean square over pixels; infinite where the sizes differ."""
    first, second = (np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=float) for file in (a, b))
    return float(np.sqrt(((first - second) ** 2).mean())) if first.shape == second.shape else float("inf")


def test_every_picture_is_drawn_again_as_it_is(drawn):
    for name, figure in drawn.items():
        assert difference(figure.png(), (FOLDER / f"{name}.png").read_bytes()) < RMS, name


def test_the_gallery_shows_every_picture_with_its_text(draw, drawn):
    assert (FOLDER / "README.md").read_text() == draw.gallery(drawn)
    assert {path.stem for path in FOLDER.glob("*.png")} == drawn.keys()


def test_no_picture_is_large(drawn):
    assert all((FOLDER / f"{name}.png").stat().st_size <= 100_000 for name in drawn)


def test_another_picture_is_told_apart(drawn):
    from minids.book.plots import draw_architecture, draw_parameters
    from minids.model.config import ModelConfig

    assert difference(draw_architecture(3).png(), drawn["architecture"].png()) > RMS
    assert difference(draw_parameters(ModelConfig.preset("deepseek-v2")).png(), drawn["parameters"].png()) > RMS
    assert difference(drawn["growth"].png(), drawn["claims"].png()) == float("inf")


def test_projected_no_picture_needs_scrolling_and_no_type_is_smaller_than_14_points(drawn):
    projector()
    try:
        for name, figure in drawn.items():
            scale = figure.shown_width() / figure.get_size_inches()[0]  # pixels of the page for an inch
            assert scale * figure.get_size_inches()[1] <= 940, name
            texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
            assert min(text.get_size() / 72 * scale / 96 * 72 for text in texts) >= 13.9, name
    finally:
        projector(False)
