"""Verdicts follow from the numbers, and everything a claim says of them is computed."""

import pytest

from minids.book.claims import ARTICLES, Claim, Claims, all_claims, claims
from minids.cost.published import PRICES, R1_PRICE


def number(stated: str, computed: float, unit: float = 1) -> str:
    return Claim(article="gap", quote="", because="", stated=stated, unit=unit, computed=computed).verdict


@pytest.mark.parametrize(
    ("stated", "computed", "verdict"),
    [
        ("671", 671.026, "right"), ("37", 36.63, "right"), ("37", 37.6, "imprecise"), ("5.6", 5.576, "right"),
        ("5.57", 5.576, "imprecise"), ("5.576", 5.576, "right"), ("40", 98.2, "wrong"), ("0.028", 0.27, "wrong"),
        ("100", 100.49, "right"), ("100", 104, "imprecise"), ("100", 106, "wrong"),
    ],
)  # fmt: skip
def test_a_number_is_right_if_the_computed_one_rounds_to_it(stated, computed, verdict):
    assert number(stated, computed) == verdict
    assert number(stated, computed * 1e9, unit=1e9) == verdict


@pytest.mark.parametrize(
    ("true", "partly", "verdict"),
    [(True, False, "right"), (True, True, "right"), (False, True, "imprecise"), (False, False, "wrong")],
)
def test_a_statement_is_right_partly_right_or_wrong(true, partly, verdict):
    assert Claim(article="gap", quote="", because="", true=true, partly=partly).verdict == verdict


# What a reader with the reports at hand found, not the code.
KNOWN = {
    "671-billion parameter": "right",
    "only activates 37 billion per token": "right",
    "reduces the KV cache size by nearly 93%": "wrong",
    "purely in FP8": "wrong",
    "small 1x16 tiles": "wrong",
    "finer slices (e.g., 64 routed experts)": "wrong",
    "$5.57 million": "imprecise",
    "API pricing is approximately $0.028": "wrong",
    "bias terms before the softmax": "wrong",
    "FFN layers are replaced with MoE layers": "imprecise",
    "107x cheaper than Claude Sonnet": "wrong",
    "671 億參數": "wrong",
    "taille de 641 Go": "right",
    "352 Go en 4 bits": "right",
    "R1 around 50 times less than o1": "wrong",
    "reduce their AI costs by 98%": "wrong",
    "R1 training ≈ 6 M USD": "imprecise",
    "nearly twenty times larger": "right",
    "MATH benchmark: 91.2%": "imprecise",
    "HumanEval: 93.1%": "wrong",
    "V3 at $0.50 / $1.50": "wrong",
    "256 total, 8 active … 14.8T": "right",
}


def test_the_verdicts_are_those_of_a_reader_of_the_reports():
    found = {claim.quote: claim.verdict for claim in all_claims()}
    assert {quote: found[quote] for quote in KNOWN} == KNOWN


def test_every_article_and_every_verdict_occurs():
    found = all_claims()
    assert len(found) >= 40
    assert {claim.article for claim in found} == set(ARTICLES)
    assert {claim.verdict for claim in found} == {"right", "imprecise", "wrong"}
    assert len({claim.quote for claim in found}) == len(found)


def test_every_claim_is_decided_in_one_way_and_explained():
    for claim in all_claims():
        assert (claim.stated is None) == (claim.computed is None) != (claim.true is None), claim.quote
        assert claim.because.endswith("."), claim.quote
        assert len(claim.quote.split()) <= 10, claim.quote


@pytest.mark.parametrize("article", ARTICLES)
@pytest.mark.parametrize("verdict", ["right", "wrong"])
def test_claims_are_filtered(article, verdict):
    assert {(c.article, c.verdict) for c in claims(article, verdict)} <= {(article, verdict)}
    assert sum(len(claims(article, kind)) for kind in ("right", "imprecise", "wrong")) == len(claims(article))


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="no verdict 'true': there are right, imprecise, wrong"):
        claims(verdict="true")
    with pytest.raises(ValueError, match="no article"):
        claims(article="times")


def test_the_table_has_a_row_for_each_claim_and_no_bare_angle():
    strange = Claim(article="gap", quote="<b> & co", because="1 < 2.", true=True)
    found = Claims([*claims("script"), strange])
    html = found._repr_html_()
    assert html.count("<tr>") == len(found) + 1
    assert "&lt;b&gt; &amp; co" in html
    assert "1 &lt; 2." in html
    assert repr(found).count("\n") + 1 == len(found)


def test_the_price_lists_are_those_of_their_days():
    """Quotes have no other proof than to be typed twice: dollars per million tokens, cached input, input, output."""
    assert [(p.cached_input, p.input, p.output) for p in (*PRICES, R1_PRICE)] == [
        (0.014, 0.14, 0.28), (0.07, 0.27, 1.10), (0.07, 0.56, 1.68), (0.028, 0.28, 0.42), (0.14, 0.55, 2.19),
    ]  # fmt: skip
