"""The answer to a prediction is folded until there is a guess; an error is not."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from minids.book import reveal

CELLS = (
    "from minids.book import reveal",
    "with reveal(...):\n    print('a < b')\n    print('│ text')",
    "with reveal('<half>'):\n    print('more')",
    "with reveal(...):\n    pass",
    "with reveal(...):\n    print('so far')\n    1 / 0",
)


@pytest.fixture(scope="module")
def outputs():
    notebook = new_notebook(cells=[new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    return [cell.outputs for cell in nbformat.from_dict(notebook).cells]


def test_without_a_guess_the_answer_is_folded(outputs):
    (output,) = outputs[1]
    assert output.data["text/plain"] == "a < b\n│ text"
    assert output.data["text/html"].startswith("<details><summary>")
    assert output.data["text/html"].endswith("<pre>\na &lt; b\n│ text\n</pre></details>")  # lines that tests can mask


def test_with_a_guess_it_is_open_and_says_what_was_guessed(outputs):
    (output,) = outputs[2]
    opening, _, answer = output.data["text/html"].partition("</summary>")
    assert opening == "<details open><summary>You guessed <b>&lt;half&gt;</b>. The answer:"
    assert "more" in answer


def test_nothing_printed_shows_nothing_and_an_error_is_raised_after_what_was_printed(outputs):
    assert outputs[3] == []
    printed, error = outputs[4]
    assert (printed.text, error.ename) == ("so far\n", "ZeroDivisionError")


def test_outside_a_notebook_the_text_is_printed(capsys):
    with reveal("half"):
        print("a < b")
        assert capsys.readouterr().out == ""
    assert capsys.readouterr().out == "a < b\n"
