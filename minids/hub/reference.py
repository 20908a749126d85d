"""The trained miniature that is bundled with the package.

Chapters and tests do not train `mini`: they load this checkpoint, which was trained with the default settings.
`make reference` trains it again (minids/book/experiments/reference.py).
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

    The report is that of `minids train` (report.py), measured with the saved weights. Its `quick_bits_per_byte` is
    measured on only twelve rows of each domain, so that a test can repeat it.
    """

    model: DeepSeek
    tokenizer: Tokenizer
    report: dict


def reference() -> Reference:
    """Load the trained `mini`."""
    return Reference(load_pretrained(REFERENCE), Tokenizer.load(REFERENCE), read_json(REFERENCE / "report.json"))
