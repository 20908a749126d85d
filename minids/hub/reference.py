"""The trained miniature that comes with the book.

Chapters and tests never train `mini`: they load this one, made once by the default recipe and kept in
the package. `make reference` trains it anew (minids/book/experiments/reference.py).
"""

from dataclasses import dataclass
from pathlib import Path

from minids.files import read_json
from minids.hub.load import load_pretrained
from minids.model.deepseek import DeepSeek
from minids.text.tokenizer import Tokenizer

REFERENCE = Path(__file__).parent / "checkpoints" / "mini"


@dataclass(frozen=True)
class Reference:
    """The model in evaluation mode and float32, its tokenizer, and the report of its training.

    The report is that of `minids train` (report.py), measured on the saved weights; `quick_bits_per_byte` is
    measured on twelve rows of each domain only, so that a test can repeat it.
    """

    model: DeepSeek
    tokenizer: Tokenizer
    report: dict


def reference() -> Reference:
    """Return the trained `mini`."""
    return Reference(load_pretrained(REFERENCE), Tokenizer.load(REFERENCE), read_json(REFERENCE / "report.json"))
