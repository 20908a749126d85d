"""One output: the picture, its text and the sliders; a moved slider redraws."""

import base64
import io

import ipywidgets
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
    seen, real = {}, ipywidgets.VBox
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: seen.update(data=data, how=metadata))
    monkeypatch.setattr(ipywidgets, "VBox", lambda children: seen.setdefault("panel", real(children)))
    return seen


def test_one_output_holds_picture_text_and_sliders(shown):
    explore(picture, **SLIDERS)
    data, widgets = shown["data"], shown["panel"].children
    assert data["text/plain"] == "size 2, share 0.5, kind a, lit False"
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).format == "PNG"
    assert data[VIEW]["model_id"] == shown["panel"].model_id
    kinds = ["IntSlider", "FloatSlider", "ToggleButtons", "Checkbox", "Image", "HTML"]
    assert [type(widget).__name__ for widget in widgets] == kinds
    assert widgets[-2].width == "900"


def test_a_moved_slider_changes_the_picture_and_moved_back_restores_it(shown):
    explore(picture, **SLIDERS)
    *controls, image, said = shown["panel"].children
    seen = []
    for control, value in zip(controls, (7, 0.25, "b", True), strict=True):
        control.value, first = value, control.value
        moved, control.value = image.value, first
        seen.append((moved, image.value, said.value))
    assert len({moved for moved, _, _ in seen}) == 4
    assert {back for _, back, _ in seen} == {seen[0][1]}
    assert all(">size 2, share 0.5, kind a, lit False<" in text for _, _, text in seen)
    assert seen[0][1] not in {moved for moved, _, _ in seen}


def test_a_value_that_draw_refuses_says_why_and_keeps_the_picture(shown):
    explore(picture, size=SLIDERS["size"])
    size, image, said = shown["panel"].children
    before = image.value
    size.value = 5
    assert (image.value, said.value) == (before, "<b>Five is not allowed.</b>")
    size.value = 6
    assert image.value != before
    assert ">size 6, share 0.5, kind a, lit False<" in said.value


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("width", range(3), "no parameter 'width'"),
        ("size", range(4, 9), "contain the default, 2"),
        ("kind", ["b"], "contain the default, 'a'"),
        *[("size", values, "must be a range") for values in (5, "123", (0, 9), range(0), range(9, 0, -1))],
    ],
)
def test_a_slider_that_does_not_fit_is_refused(name, values, message):
    with pytest.raises(ValueError, match=message):
        explore(picture, **{name: values})


def test_the_projector_makes_pictures_wider(shown):
    widths = []
    for on in (False, True, False):
        projector(on)
        explore(picture, size=range(9))
        widths.append(shown["how"]["image/png"]["width"])
    assert widths == [900, 1440, 900]


def test_a_projected_picture_has_as_many_pixels_as_it_is_wide_and_a_high_one_is_narrower(shown):
    projector(True)
    try:
        explore(lambda inches=2: new_figure(height=inches), inches=[2, 12])
        inches, image, _ = shown["panel"].children
        for height, width in ((2, 1440), (12, 705)):
            inches.value = height
            assert (Image.open(io.BytesIO(image.value)).width, image.width) == (1440, str(width))
    finally:
        projector(False)
