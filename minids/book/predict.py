"""Predictions: the answer is folded until the reader has written a guess."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from html import escape
from typing import Any

from minids.book.notebook import show_html

FOLDED = "The answer: fill in <code>guess</code> above and run this cell again, or click here."


@contextlib.contextmanager
def reveal(guess: Any = ...) -> Iterator[None]:
    """Collect what is printed in a `with` block and show it folded: open, after the guess, once there is one.

    Outside a notebook the text is printed. Where the block raises an error, the text so far is printed, and the
    error goes on.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except BaseException:
        print(printed.getvalue(), end="")
        raise
    if text := printed.getvalue().rstrip("\n"):
        show_html(text, folded(text, guess))


def folded(text: str, guess: Any) -> str:
    """Return the HTML. Each line of the text is a line of its own, so that tests can mask it."""
    guessed = guess is not ...
    summary = f"You guessed <b>{escape(str(guess))}</b>. The answer:" if guessed else FOLDED
    opened = " open" if guessed else ""
    return f"<details{opened}><summary>{summary}</summary><pre>\n{escape(text, quote=False)}\n</pre></details>"
