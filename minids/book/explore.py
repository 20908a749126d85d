"""One output with a picture, its text and live sliders.

On GitHub, on paper and in a test the output is only the picture, drawn with the function's defaults. In a running
notebook there are sliders above it, and each move redraws it.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Sequence

from minids.book.plots.style import Picture

VIEW = "application/vnd.jupyter.widget-view+json"


def explore(draw: Callable[..., Picture], **sliders: range | tuple[float, float, float] | Sequence | bool) -> None:
    """Show `draw()` and a slider for each named parameter, which starts at the parameter's default.

    A range gives a slider of integers, a tuple (low, high, step) one of numbers, a list one of its items, or buttons
    if they are texts, and True a check box. Below the picture are its text, for screen readers only, or the message of
    the error that `draw` raised.

    Raises ValueError where `draw` has no parameter of that name with a default, the values are none of these, or
    the default is not among them.
    """
    import ipywidgets as widgets  # part of the extra [book], without which the pictures must be importable
    from IPython.display import display

    controls = {name: _control(draw, name, values) for name, values in sliders.items()}
    first = draw()
    size = {"width": first.shown_width(), "layout": {"max_width": "100%"}}
    picture = widgets.Image(value=first.quick_png(), format="png", **size)
    said = widgets.HTML(value=_unseen(repr(first)))

    def redraw(_) -> None:
        try:
            figure = draw(**{name: control.value for name, control in controls.items()})
        except Exception as error:  # anything else would be lost in the server's log
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            said.value = f"<b>{html.escape(kind + str(error))}</b>"
            return
        picture.value, picture.width = figure.quick_png(), str(figure.shown_width())
        said.value = _unseen(repr(figure))

    for control in controls.values():
        control.observe(redraw, names="value")
    panel = widgets.VBox([*controls.values(), picture, said])
    data, metadata = first._repr_mimebundle_()
    display({**data, VIEW: panel._repr_mimebundle_()[VIEW]}, metadata=metadata, raw=True)


def _control(draw: Callable, name: str, values):
    """Return the widget for one parameter."""
    import ipywidgets as widgets

    parameters = inspect.signature(draw).parameters
    if name not in parameters or parameters[name].default is inspect.Parameter.empty:
        raise ValueError(f"{draw.__name__} has no parameter {name!r} with a default: it has {', '.join(parameters)}.")
    value = parameters[name].default
    look = {
        "description": name.replace("_", " "),
        "style": {"description_width": "11em"},
        "layout": {"width": "min(46em, 95%)"},
    }
    if values is True:
        return widgets.Checkbox(value=value, indent=False, **look)
    three = isinstance(values, tuple) and len(values) == 3
    if not (three or isinstance(values, range | list)) or not values or (isinstance(values, range) and values.step < 0):
        raise ValueError(f"{name}={values!r} is not possible: it must be a range, (low, high, step), a list, or True.")
    within = value in values if not isinstance(values, tuple) else values[0] <= value <= values[1]
    if not within:
        raise ValueError(f"{name}={values!r} is not possible: it must contain the default, {value!r}.")
    if isinstance(values, range):
        return widgets.IntSlider(value=value, min=values[0], max=values[-1], step=values.step, **look)
    if isinstance(values, tuple):
        low, high, step = values
        return widgets.FloatSlider(value=value, min=low, max=high, step=step, **look)
    if all(isinstance(item, str) for item in values):  # all to be seen at once
        look["style"] |= {"button_width": "max-content"}
        return widgets.ToggleButtons(value=value, options=list(values), **look)
    return widgets.SelectionSlider(value=value, options=list(values), **look)


def _unseen(text: str) -> str:
    """Return HTML that a screen reader speaks and nobody sees: what it says is in the picture."""
    return f'<span style="position:absolute; left:-10000px">{html.escape(text)}</span>'
