"""One palette with fixed meanings and one matplotlib style.

A colour means the same thing on every page. The colours are Okabe and Ito's, which colour-blind readers can tell
apart. Some are alike in grey, so no picture relies on colour alone: lines are labelled at their ends, areas in place.
"""

import base64
import io

import matplotlib.style
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from minids.book.notebook import style_page

INK = "#222222"
MUTED = "#6B6F76"
PAPER = "#FFFFFF"
PALE = "#E4E6EA"  # present but not used
PT_PER_INCH = 72

# The parts of the model.
PARTS = {
    "embedding": "#B9A3D0",
    "attention": "#56B4E9",
    "latent": "#0072B2",
    "rope": "#D55E00",
    "dense": "#8C8C8C",
    "router": "#F0E442",
    "shared": "#E69F00",
    "routed": "#009E73",
    "norm": "#C9CCD1",
    "head": "#CC79A7",
    "mtp": "#CC79A7",
}
VERDICTS = {"right": "#009E73", "imprecise": "#E69F00", "wrong": "#D55E00"}
VERDICT_MARKS = {"right": "✓", "imprecise": "≈", "wrong": "✗"}
DOMAINS = {"prose": "#0072B2", "code": "#D55E00", "arithmetic": "#009E73", "text": "#0072B2"}
LAYERS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8A6D00")

STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 2,
}


WIDTH = 9  # inches, of every picture
SHARPNESS = 1.5  # pixels drawn for each one shown, for fine screens
HIGHEST = 940  # pixels that a projected page has room for
_size = 1.0  # of pictures in a notebook; projector() changes it
# JupyterLab's sizes for projector(): 20 pixels are 15 points, as the last row of a room needs.
ENLARGED = """.jp-Notebook {
  --jp-code-font-size: 20px; --jp-content-font-size1: 20px; --jp-ui-font-size1: 20px;
  --jp-widgets-font-size: 20px; --jp-widgets-inline-height: 40px; --jp-cell-prompt-width: 90px;
}
.jp-Notebook .widget-readout { min-width: 5em; }
.jp-Notebook input[type="checkbox"] { transform: scale(1.6); margin: 8px; }"""


class Picture(Figure):
    """A figure that a notebook shows together with its text, `alt`: the numbers that can be read off it."""

    alt = ""

    def title(self, finding: str, y: float = 0.92) -> None:
        """Write the finding at the top left."""
        self.text(0.02, y, finding, size=14)

    def note(self, x: float, y: float, text: str, **how) -> None:
        """Write a small grey text: what is measured, a key, a footnote."""
        self.text(x, y, text, **{"size": 11, "color": MUTED, **how})

    def savefig(self, *args, **options) -> None:
        """Save the picture as it looks in the book, whatever the reader's own settings of matplotlib are."""
        with styled():
            super().savefig(*args, **options)

    def png(self, sharpness: float = SHARPNESS) -> bytes:
        """Return the picture as a PNG file of at most 256 colours, the same bytes each time."""
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=self.dpi * sharpness)
        file = io.BytesIO()
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        return file.getvalue()

    def quick_png(self) -> bytes:
        """Return the picture as a PNG that is quick to make, for sliders: as many pixels as are shown."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=self.dpi * _size, pil_kwargs={"compress_level": 1})
        return file.getvalue()

    def __repr__(self) -> str:
        return self.alt or super().__repr__()

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        data = {"text/plain": repr(self), "image/png": base64.b64encode(self.png(SHARPNESS * _size)).decode()}
        return data, {"image/png": {"width": self.shown_width()}}

    def shown_width(self) -> int:
        """Return how wide the picture is shown, in pixels of the page: never so large that it needs scrolling."""
        width, height = self.get_size_inches() * self.dpi
        return int(min(width * _size, HIGHEST * width / height))


def new_figure(height: float = 5) -> Picture:
    """Return an empty figure in the book's style, in inches."""
    with styled():
        return Picture(figsize=(WIDTH, height))


def projector(on: bool = True) -> None:
    """Enlarge text, code, printed outputs and sliders of the notebook, and all pictures drawn from now on.

    Pictures that are already there change when their cells are run again. `projector(False)` undoes it.
    """
    global _size
    _size = 1.6 if on else 1.0
    style_page(ENLARGED if on else "")


def styled():
    """Return the style as a context to draw in; `@styled()` before a function makes its whole body one.

    It starts from matplotlib's defaults, because a reader's matplotlibrc may set LaTeX or other fonts.
    """
    return matplotlib.style.context(["default", STYLE])


def tint(color: str, share: float) -> str:
    """Return a color mixed with white."""
    return to_hex([1 - share * (1 - part) for part in to_rgb(color)])


def readable_on(color: str) -> str:
    """Return black or white, whichever stands out more on `color` (contrast as WCAG 2 defines it)."""

    def luminance(rgb: tuple[float, float, float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = luminance(to_rgb(color)) + 0.05
    return "black" if ground / 0.05 > 1.05 / ground else "white"
