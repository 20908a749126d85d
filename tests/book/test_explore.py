"""One output: the picture, its text and the sliders; a moved slider draws anew."""

import base64
import io
import sys

import pytest
from PIL import Image

from minids.book.explore import VIEW, explore
from minids.book.plots.style import new_figure, projector


def picture(size=2, share=0.5, kind="a", lit=False):
    if size == 5:
        raise ValueError("Five is not allowed.")
    fig = new_figure(height=2)
    fig.text(0.1, 0.5, f"{size} {share} {kind} {lit}", size=30)
    fig.alt = f"size {size}, share {share}, kind {kind}, lit {lit}"
    return fig


SLIDERS = dict(size=range(1, 10), share=(0.0, 1.0, 0.25), kind=["a", "b"], lit=True)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, and the panel of widgets behind it."""
    seen: dict = {}
    explore_module = sys.modules["minids.book.explore"]
    monkeypatch.setattr(explore_module, "display", lambda data, **how: seen.update(data=data, how=how))
    real = explore_module.widgets.VBox

    def panel(children):
        seen["panel"] = real(children)
        return seen["panel"]

    monkeypatch.setattr(explore_module.widgets, "VBox", panel)
    return seen


def test_one_output_holds_picture_text_and_sliders(shown):
    explore(picture, **SLIDERS)
    data = shown["data"]
    assert data["text/plain"] == "size 2, share 0.5, kind a, lit False"
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).format == "PNG"
    assert data[VIEW]["model_id"] == shown["panel"].model_id
    assert shown["panel"].children[-2].width == "900"
    assert [type(w).__name__ for w in shown["panel"].children] == [
        "IntSlider", "FloatSlider", "SelectionSlider", "Checkbox", "Image", "HTML",
    ]  # fmt: skip


@pytest.mark.parametrize(("number", "value"), [(0, 7), (1, 0.25), (2, "b"), (3, True)])
def test_a_moved_slider_changes_the_picture_and_back_restores_it(shown, number, value):
    explore(picture, **SLIDERS)
    *controls, image, _ = shown["panel"].children
    controls[number].value, first = value, controls[number].value
    moved = image.value
    controls[number].value = first
    back = image.value
    assert back != moved
    controls[number].value = value
    controls[number].value = first
    assert image.value == back


def test_a_combination_that_is_refused_says_why_and_keeps_the_picture(shown):
    explore(picture, **SLIDERS)
    size, *_, image, said = shown["panel"].children
    size.value = 4
    before = image.value
    size.value = 5
    assert (image.value, "Five is not allowed." in said.value) == (before, True)
    size.value = 6
    assert (image.value != before, said.value) == (True, "size 6, share 0.5, kind a, lit False")


@pytest.mark.parametrize(
    ("sliders", "message"),
    [
        ({"width": range(3)}, "no parameter 'width'"),
        ({"size": range(4, 9)}, "starts at 2"),
        ({"size": 5}, "no slider"),
        ({"size": "123"}, "no slider"),
        ({"share": (0, 1)}, "no slider"),
        ({"size": range(0)}, "no slider"),
        ({"kind": ["b"]}, "'a'"),
    ],
)
def test_a_slider_that_does_not_fit_is_refused(sliders, message):
    with pytest.raises(ValueError, match=message):
        explore(picture, **sliders)


def test_the_projector_makes_pictures_wider(shown):
    explore(picture, size=range(9))
    desk = shown["how"]["metadata"]["image/png"]["width"]
    projector()
    try:
        explore(picture, size=range(9))
    finally:
        projector(False)
    assert shown["how"]["metadata"]["image/png"]["width"] == 1.6 * desk == 1440
