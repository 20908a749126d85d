"""Output that is HTML in a notebook, and text where there is none.

IPython is part of the extra [book]. It is imported only where it runs already, because `minids train` draws its
pictures without it.
"""

import sys

_style = None  # the handle of the output that restyles the page


def in_notebook() -> bool:
    """Whether IPython runs this code."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def show_html(text: str, html: str) -> None:
    """Display the HTML, which says the same as the text, or print the text where there is no notebook."""
    if not in_notebook():
        print(text)
        return
    from IPython.display import display

    display({"text/plain": text, "text/html": html}, raw=True)


def style_page(css: str) -> None:
    """Apply CSS to the page of the running notebook, in place of what an earlier call applied; "" applies none."""
    global _style
    if not in_notebook():
        return
    from IPython.display import display

    if _style:
        _style.update({"text/html": ""}, raw=True)
    _style = display({"text/html": f"<style>{css}</style>"}, raw=True, display_id=True) if css else None
