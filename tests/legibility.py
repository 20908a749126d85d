"""Whether a picture can be read: no text on top of another, none off the canvas, and each apart from its ground."""

import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def drawn_texts(fig: Figure) -> list[tuple[Text, Bbox]]:
    """Every text that is really drawn, with its box in pixels, a pixel smaller on each side."""
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw_without_rendering()
    unseen = set()
    for axis in (axis for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-6 * (high - low)
        for tick in axis.get_major_ticks():
            if not axis.axes.axison or not low - slack <= tick.get_loc() <= high + slack:
                unseen |= {tick.label1, tick.label2}
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    extent = Text.get_window_extent  # an annotation's own would take in its arrow
    return [(text, extent(text, renderer).padded(-1)) for text in texts if text not in unseen]


def assert_legible(fig: Figure) -> None:
    """Fail where a text overlaps another or leaves the canvas."""
    texts = [(text.get_text(), box) for text, box in drawn_texts(fig)]
    assert len(texts) > 4
    for text, box in texts:
        inside = fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 and fig.bbox.y0 <= box.y0 and box.y1 <= fig.bbox.y1
        assert inside, f"{text!r} leaves the canvas"
    for (one, box), (other, other_box) in itertools.combinations(texts, 2):
        assert not box.overlaps(other_box), f"{one!r} overlaps {other!r}"


def contrasts(fig: Figure) -> list[tuple[Text, float]]:
    """Every text with its contrast to the colour that fills most of its box."""
    texts, canvas, found = drawn_texts(fig), FigureCanvasAgg(fig), []
    for text, _ in texts:
        text.set_visible(False)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]  # from the bottom up, as boxes are
    for text, box in texts:
        text.set_visible(True)
        x0, y0, x1, y1 = (int(edge) for edge in box.extents)
        colors, counts = np.unique(pixels[y0 : y1 + 1, x0 : x1 + 1].reshape(-1, 3), axis=0, return_counts=True)
        found.append((text, contrast(text.get_color(), colors[counts.argmax()] / 255)))
    return found


def contrast(one, other) -> float:
    """WCAG 2's contrast ratio, from 1 to 21; it compares luminances, so it holds in grey as well."""
    rgb = np.array([to_rgb(one), to_rgb(other)])
    luminance = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    return float((luminance.max() + 0.05) / (luminance.min() + 0.05))
