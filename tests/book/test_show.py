"""The source that a chapter shows is the source that runs."""

import inspect
import json

import pytest

from minids import count_parameters
from minids.book.show import show
from minids.model import balance
from minids.model.mla import MLA


def test_a_function_is_shown_with_the_name_of_its_file():
    shown = show(count_parameters)
    assert repr(shown) == f"# minids/cost/accounting.py\n{inspect.getsource(count_parameters).strip()}"
    assert shown._repr_markdown_().startswith("`minids/cost/accounting.py`\n```python\ndef count_parameters")


def test_a_method_is_shown_without_its_indent():
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
