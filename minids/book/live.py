"""A picture that is redrawn in place while a cell trains:

    with live(lambda: draw_dashboard(trainer.records, config=trainer.config)) as on_step:
        trainer.run(on_step)

In the stored notebook the output is one picture, the last. Every version of it must have the same `alt`: a test
compares the text of the first one, before anything was trained, with that of the last one stored.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from minids.book.notebook import in_notebook
from minids.book.plots.style import Picture

SHARE = 0.02  # of the time, at most, that is spent on drawing; the last picture comes on top
SECONDS = 2  # between two pictures, at least


class Pace:
    """Decides when something slow may be done again, so that it takes at most a `share` of the time.

    `with pace:` measures it; `pace.due()` is whether enough time has passed since.
    """

    def __init__(self, share: float = SHARE, seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter):
        self.share, self.seconds, self.clock = share, seconds, clock
        self.next = clock()

    def due(self) -> bool:
        return self.clock() >= self.next

    def __enter__(self) -> None:
        self.began = self.clock()

    def __exit__(self, *error) -> None:
        took = self.clock() - self.began
        self.next = self.clock() + max(self.seconds, took * (1 / self.share - 1))


@contextmanager
def live(draw: Callable[[], Picture]) -> Iterator[Callable[[dict], None]]:
    """Yield a function for `Trainer.run` that shows `draw()` after the first step and renews it now and then.

    At the end, also after an interrupt, the picture is drawn once more, as sharp as all others. Where no notebook runs
    nothing is shown. `draw` is called only after a step. An error of it does not end the training: it is raised at the
    end, unless another exception is.
    """
    if not in_notebook():
        yield lambda record: None
        return
    from IPython.display import display

    pace, shown, error = Pace(), None, None

    def on_step(record: dict) -> None:
        nonlocal error
        if error is None and pace.due():
            try:
                with pace:
                    show()
            except Exception as reason:
                error = reason

    def show() -> None:
        nonlocal shown
        figure = draw()
        data = {"text/plain": repr(figure), "image/png": base64.b64encode(figure.quick_png()).decode()}
        metadata = {"image/png": {"width": figure.shown_width()}}
        if shown is None:
            shown = display(data, metadata=metadata, raw=True, display_id=True)
        else:
            shown.update(data, metadata=metadata, raw=True)

    def show_last() -> None:
        if error is not None:
            raise error
        if shown is not None:
            data, metadata = draw()._repr_mimebundle_()
            shown.update(data, metadata=metadata, raw=True)

    try:
        yield on_step
    except BaseException:
        with suppress(Exception):  # of the picture: it would hide why the training ended
            show_last()
        raise
    show_last()
