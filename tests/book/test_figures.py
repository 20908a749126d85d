"""The committed pictures are those that the code draws now: their text exactly, their pixels nearly."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from pictures import picture
from PIL import Image

from minids.book.plots.style import projector

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, so that each is drawn once

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


def committed(name: str) -> bytes:
    return (FOLDER / f"{name}.png").read_bytes()


def difference(a: bytes, b: bytes) -> float:
    """Root mean square over pixels; infinite where the sizes differ."""
    first, second = (np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=float) for file in (a, b))
    return float(np.sqrt(((first - second) ** 2).mean())) if first.shape == second.shape else float("inf")


def test_every_picture_is_drawn_again_as_it_is_and_none_is_large(drawn):
    for name, figure in drawn.items():
        assert difference(figure.png(), committed(name)) < RMS, name
        assert len(committed(name)) <= 100_000, name


def test_another_picture_is_told_apart():
    assert difference(picture("architecture: 3").png(), committed("architecture")) > RMS
    assert difference(picture("parameters: deepseek-v2, None").png(), committed("parameters")) > RMS
    assert difference(committed("growth"), committed("claims")) == float("inf")


def test_the_gallery_shows_every_picture_with_its_text(draw, drawn):
    assert (FOLDER / "README.md").read_text() == draw.gallery(drawn)
    assert {path.stem for path in FOLDER.glob("*.png")} == drawn.keys()


def test_a_picture_is_the_same_file_each_time(drawn):
    assert drawn["gpu_hours"].png() == picture("hours: V3").png()


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
