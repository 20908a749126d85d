"""What the chapters call: the source that is shown is the source that runs, and no import needs a notebook."""

import inspect
import json
import subprocess
import sys

import pytest

from minids import count_parameters
from minids.book.show import show
from minids.model import balance
from minids.model.mla import MLA


def test_source_is_shown_with_the_name_of_its_file_and_without_indent():
    shown = show(count_parameters)
    assert repr(shown) == f"# minids/cost/parameters.py\n{inspect.getsource(count_parameters).strip()}"
    assert shown._repr_markdown_().startswith("`minids/cost/parameters.py`\n```python\ndef count_parameters")
    assert show(MLA.queries).text.startswith("def queries(self")


@pytest.mark.parametrize("thing", [count_parameters, MLA, MLA.queries, balance])
def test_without_its_docstring_the_code_is_the_same(thing):
    whole, bare = show(thing).text, show(thing, docstring=False).text
    assert (inspect.getdoc(thing) or "?").splitlines()[0] not in bare
    assert set(bare.splitlines()) < set(whole.splitlines())


@pytest.mark.parametrize("thing", [json.dumps, json, len, 3, "count_parameters"])
def test_what_is_not_the_library_s_is_refused(thing):
    with pytest.raises(ValueError, match=r"not a file of minids: show|has no source: show"):
        show(thing)


def test_pictures_and_functions_are_imported_without_any_package_for_notebooks():
    """As `minids train` does, in an installation without the extra [book]. Functions are no modules of their name."""
    code = """import sys
import minids.book.claims, minids.book.explore, minids.book.plots, minids.book.show
from minids.book import *
assert all(map(callable, (check, claims, exercise, explore, notation, projector, show, start)))
assert not sys.modules.keys() & {"IPython", "ipywidgets", "nbformat", "nbclient", "jupyter_client"}"""
    subprocess.run([sys.executable, "-c", code], check=True)
