"""The press, checked: what five articles wrote about DeepSeek, and what configurations and reports say.

The articles and their claims are data, in figures/data/claims.json. A claim has

    article, quote      which article, and a few of its words
    stated, compared    a number as printed, with its unit, and the name of the quantity that it is compared with; or
    holds               a condition on quantities, such as `layers > 60 and prices has (0.14, 0.28)`
    partly              optionally, a weaker condition
    because             what explains the verdict, with quantities filled in by name: {dollars:,.0f}

A number is right if the quantity rounds to it, imprecise if the two are within 5%, else wrong; a percentage is a number
like any other. A statement is right if `holds` is true, imprecise if only `partly` is, else wrong. A claim is quoted if
it is compared with a price or a benchmark score, which no code can compute, and else computed (quantities.py). The file
contains no verdict and no computed number.
"""

from __future__ import annotations

import json
import operator
import re
from ast import literal_eval
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from html import escape
from pathlib import Path

from minids.book.plots.style import VERDICT_MARKS, VERDICTS, readable_on
from minids.book.quantities import Quantities, quantities, quoted
from minids.units import GIB

FILE = Path(__file__).parents[2] / "figures" / "data" / "claims.json"
NEARLY = 0.05
KINDS = ("computed", "quoted")
UNITS = {"%": 0.01, "million": 1e6, "億": 1e8, "billion": 1e9, "trillion": 1e12, "GiB": GIB}
SIGNS = {
    "<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge, ">": operator.gt,
    "has": operator.contains,
}  # fmt: skip
FIELDS = [{"article", "quote", "because", *own} for own in (("stated", "compared"), ("holds",), ("holds", "partly"))]


@dataclass(frozen=True, kw_only=True)
class Article:
    """An article, with what it shows of its origin. It is printed as its description."""

    description: str
    author: str | None = None
    title: str | None = None
    site: str | None = None
    date: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return self.description


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an `article` says (`quote`), whether it is right, imprecise or wrong (`verdict`), and why.

    Its `kind` says what the verdict rests on: on a computed number, or on a quoted one.
    """

    article: str
    quote: str
    kind: str
    verdict: str
    because: str


def judge(claim: dict[str, str], values: Quantities) -> Claim:
    """Return an entry of the file with its verdict. Raises ValueError if it is malformed."""
    try:
        if claim.keys() not in FIELDS:
            raise ValueError(f"its fields are {', '.join(claim)}, not those that claims.py explains")
        if "stated" in claim:
            verdict = verdict_of_number(claim["stated"], values[claim["compared"]])
        else:
            wholly, partly = is_true(claim["holds"], values), "partly" in claim and is_true(claim["partly"], values)
            verdict = "right" if wholly else "imprecise" if partly else "wrong"
        because, kind = claim["because"].format_map(values), kind_of(claim)
        return Claim(article=claim["article"], quote=claim["quote"], kind=kind, verdict=verdict, because=because)
    except (ValueError, TypeError, SyntaxError, AttributeError) as error:
        raise ValueError(f"The claim {claim.get('quote')!r} cannot be judged: {error}.") from None


def kind_of(claim: dict[str, str]) -> str:
    """Return "quoted" if an entry of the file is compared with a price or a benchmark score, else "computed"."""
    compared = " ".join(claim.get(field, "") for field in ("compared", "holds", "partly"))
    return "quoted" if quoted().keys() & set(re.findall(r"\w+", compared)) else "computed"


def verdict_of_number(stated: str, found: float) -> str:
    """Return right, imprecise or wrong. The last digit of `stated`, "5.57 million", tells how exact it means to be."""
    digits, _, unit = stated.partition(" ")
    if unit and unit not in UNITS:
        raise ValueError(f"the unit {unit!r} is none of {', '.join(UNITS)}")
    number, last_digit = float(digits), 10.0 ** Decimal(digits).as_tuple().exponent
    found /= UNITS[unit] if unit else 1
    if abs(found - number) <= last_digit / 2 * (1 + 1e-9):
        return "right"
    return "imprecise" if abs(found - number) <= NEARLY * abs(found) else "wrong"


def is_true(condition: str, values: Quantities) -> bool:
    """Return whether every `quantity sign value` is true, joined by "and"; the value is a literal or a quantity."""
    parts = [re.fullmatch(r"(\w+) (<|<=|==|>=|>|has) (.+)", part) for part in condition.split(" and ")]
    if None in parts:
        raise ValueError(f"{condition!r} does not read as quantity, sign and value, joined by 'and'")
    found = []
    for name, sign, value in (part.groups() for part in parts):
        found.append(SIGNS[sign](values[name], values[value] if value.isidentifier() else literal_eval(value)))
    return all(found)


@cache
def read(file: Path = FILE) -> tuple[dict[str, Article], list[Claim]]:
    """Return the articles by their short names, and every claim judged. Raises ValueError for a malformed file."""
    data = json.loads(file.read_text(encoding="utf-8"))
    try:
        articles = {key: Article(**shown) for key, shown in data["articles"].items()}
        values = quantities()
        found = [judge(claim, values) for claim in data["claims"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not of the form that claims.py explains: {error}.") from None
    if strangers := {claim.article for claim in found} - articles.keys():
        raise ValueError(f"Claims name articles that {file} does not list: {', '.join(sorted(strangers))}.")
    return articles, found


def __getattr__(name: str) -> dict[str, Article]:
    """Read ARTICLES when it is first asked for, so that this module can be imported where the file is missing."""
    if name != "ARTICLES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return read()[0]


def all_claims() -> list[Claim]:
    """Return every claim, in the order of the articles."""
    return list(read()[1])


def claims(article: str | None = None, verdict: str | None = None, kind: str | None = None) -> Claims:
    """Return the claims for a notebook to show: all of them, or those of an article, with a verdict or of a kind.

    Raises ValueError for an article, a verdict or a kind that does not exist.
    """
    asked, known = (article, verdict, kind), {"article": read()[0], "verdict": VERDICTS, "kind": KINDS}
    for (field, values), value in zip(known.items(), asked, strict=True):
        if value is not None and value not in values:
            raise ValueError(f"There is no {field} {value!r}: there are {', '.join(values)}.")
    wanted = {field: value for field, value in zip(known, asked, strict=True) if value is not None}
    return Claims(c for c in all_claims() if all(getattr(c, field) == value for field, value in wanted.items()))


class Claims(list[Claim]):
    """Claims as a table, coloured by verdict."""

    def __init__(self, found: Iterable[Claim]):
        super().__init__(found)

    def __repr__(self) -> str:
        return "\n".join(
            f"{VERDICT_MARKS[c.verdict]} {c.verdict:<9}  {c.kind:<8}  {c.quote}  |  {c.because}" for c in self
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left;background:{VERDICTS[c.verdict]};color:{readable_on(VERDICTS[c.verdict])};'
            f'white-space:nowrap">{VERDICT_MARKS[c.verdict]} {c.verdict}</td><td>{c.kind}</td>'
            f'<td style="text-align:left">“{escape(c.quote)}”</td><td style="text-align:left">{escape(c.because)}</td>'
            f'<td style="text-align:left">{c.article}</td></tr>'
            for c in self
        )
        names = ("verdict", "kind", "the words", "what the numbers say", "article")
        head = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
