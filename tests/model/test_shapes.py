"""One legend of shape letters: the whole library uses its letters, all of them, and no others."""

import re
from pathlib import Path

import minids.model

LEGEND = re.findall(r" ([A-Z](?:, [A-Z])*)  (?=\S)", minids.model.__doc__)
IN_NAMES = r"\b[a-z]\w*_([A-Za-z]*[A-Z][A-Za-z]*)\b"  # q_JQtC
IN_BRACKETS = r"\(((?:[A-Z], ?)+[A-Z]?)\)"  # (B, T, D), (N,)


def test_the_legend_has_every_letter_that_a_shape_uses_and_no_other():
    legend = "".join(LEGEND).replace(", ", "")
    assert len(legend) == len(set(legend)) > 15, "no letter has two meanings"
    source = "\n".join(path.read_text(encoding="utf-8") for path in Path(minids.__file__).parent.rglob("*.py"))
    shapes = re.findall(IN_NAMES, source) + re.findall(IN_BRACKETS, source)
    assert set("".join(shapes).upper()) - {",", " "} == set(legend)
