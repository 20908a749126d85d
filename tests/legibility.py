"""Whether a picture can be read: no text on top of another, and none off the canvas, by their boxes."""

import itertools
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def drawn_texts(fig: Figure) -> list[tuple[str, object]]:
    """Every text that is really drawn, with its box in pixels, a pixel smaller on each side."""
    canvas, seen = FigureCanvasAgg(fig), []
    draw = Text.draw
    with mock.patch.object(Text, "draw", lambda self, renderer, **_: (seen.append(self), draw(self, renderer))):
        canvas.draw()
    texts = {id(text): text for text in seen if text.get_visible() and text.get_text().strip()}
    extent = Text.get_window_extent  # an annotation's own would take in its arrow
    return [(text.get_text(), extent(text, canvas.get_renderer()).padded(-1)) for text in texts.values()]


def assert_legible(fig: Figure) -> None:
    """Fail where a text overlaps another or leaves the canvas."""
    texts = drawn_texts(fig)
    assert len(texts) > 4
    for text, box in texts:
        inside = fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 and fig.bbox.y0 <= box.y0 and box.y1 <= fig.bbox.y1
        assert inside, f"{text!r} leaves the canvas"
    for (one, box), (other, other_box) in itertools.combinations(texts, 2):
        assert not box.overlaps(other_box), f"{one!r} overlaps {other!r}"
