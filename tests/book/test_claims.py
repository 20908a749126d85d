"""Verdicts follow from the numbers, and everything a claim says of them is computed."""

import json
import re
from collections import Counter
from decimal import Decimal

import pytest
from configurations import examples
from hypothesis import given
from hypothesis import strategies as st

from minids.book.claims import ARTICLES, FILE, KINDS, UNITS, Claim, Claims, all_claims, claims, judge, read
from minids.book.claims import verdict_of_number as verdict
from minids.book.plots.style import VERDICTS
from minids.book.quantities import Quantities, computed, quantities, quoted
from minids.cost.published import PRICES, R1_PRICE

VALUES = Quantities(layers=61, scoring="sigmoid", prices=[(0.14, 0.28)], least=60)


@examples(100)
@given(st.floats(1, 1e4), st.integers(0, 3), st.sampled_from(["", *UNITS]))
def test_a_number_is_right_if_the_computed_one_rounds_to_it(found, digits, unit):
    stated, computed = Decimal(f"{found:.{digits}f}"), found * UNITS.get(unit, 1)
    assert verdict(f"{stated} {unit}".strip(), computed) == "right"
    for off in (2, -2):  # in units of the last digit
        near = stated + off * Decimal(10) ** -digits
        allowed = "imprecise" if abs(float(near) - found) <= 0.05 * found else "wrong"
        assert verdict(f"{near} {unit}".strip(), computed) == allowed


def test_trailing_zeros_count_and_within_5_percent_is_imprecise():
    assert [verdict(stated, 90.2) for stated in ("90", "90.0", "9e1")] == ["right", "imprecise", "right"]
    assert [verdict(stated, 100) for stated in ("95", "94.9", "105", "106")] == ["imprecise", "wrong"] * 2


def test_percentages_follow_the_same_rule_also_near_100():
    assert [verdict("98 %", found) for found in (0.977, 0.972, 0.944, 0.93)] == [
        "right",
        "imprecise",
        "imprecise",
        "wrong",
    ]
    by_quote = {claim.quote: claim.verdict for claim in all_claims() if "%" in claim.quote}
    assert by_quote == {
        "reduces the KV cache size by nearly 93%": "wrong", "reduces memory usage … by 40%": "wrong",  # of 98.2%
        "reduce their AI costs by 98%": "imprecise", "MATH benchmark: 91.2%": "imprecise", "HumanEval: 93.1%": "wrong",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("holds", "partly", "expected"),
    [
        ("layers == 61 and layers > least", None, "right"), ("scoring == 'sigmoid'", "layers < 0", "right"),
        ("prices has (0.14, 0.28)", None, "right"), ("layers <= 60", "layers >= 61", "imprecise"),
        ("layers == 61 and prices has (1, 2)", "layers > 61", "wrong"), ("layers < least", None, "wrong"),
    ],
)  # fmt: skip
def test_a_statement_is_right_partly_right_or_wrong(holds, partly, expected):
    claim = {"article": "gap", "quote": "?", "holds": holds, "because": "{layers} layers."}
    assert judge(claim | ({"partly": partly} if partly else {}), VALUES).verdict == expected


@pytest.mark.parametrize(
    ("decided_by", "told"),
    [
        ({"stated": "61"}, "fields are"), ({"holds": "layers > 1", "verdict": "right"}, "fields are .*verdict"),
        ({"stated": "many", "compared": "layers"}, "'many'"), ({"stated": "61", "compared": "scoring"}, "str"),
        ({"stated": "61 dozen", "compared": "layers"}, "dozen"), ({"stated": "61", "compared": "lairs"}, "lairs"),
        ({"holds": "layers > 1", "partly": "lairs > 1"}, "lairs"), ({"holds": "layers < 1 and lairs > 1"}, "lairs"),
        ({"holds": "layers = 61"}, "quantity, sign and value"), ({"holds": "layers > 1 and"}, "invalid syntax"),
        ({"holds": "layers > 1", "because": "{lairs}"}, "lairs"),
        ({"holds": "layers > 1", "because": "{scoring:f}"}, "'f'"),
    ],
)  # fmt: skip
def test_a_malformed_claim_is_refused_by_its_quote(decided_by, told):
    with pytest.raises(ValueError, match=f"'61 layers' cannot be judged: .*{told}"):
        judge({"article": "gap", "quote": "61 layers", "because": "?", **decided_by}, VALUES)


@pytest.mark.parametrize("articles", [[], {"gap": {"writer": "?", "description": "?"}}, {}])
def test_a_malformed_file_is_refused(tmp_path, articles):
    claim = {"article": "times", "quote": "?", "holds": "layers > 1", "because": "?"}
    (tmp_path / "claims.json").write_text(json.dumps({"articles": articles, "claims": [claim]}))
    with pytest.raises(ValueError, match=r"claims\.json"):
        read(tmp_path / "claims.json")


def test_every_quantity_is_used():
    named = set(re.findall(r"\w+", FILE.read_text(encoding="utf-8")))
    assert not quantities().keys() - named


def test_quantities_are_those_worked_out_by_hand():
    by_hand = dict(
        saved=0.982421875, saved_by_v2=0.9334, full_heads_in_gib=488, cache_in_gib=8.578, total_over_active=18.32,
        dollars=5_576_000, r1_dollars=294_672, gpt4o_over_launch=17.86, gpt4o_over_second=9.26, o1_over_r1=27.27,
        claude_over_cached=107.1, claude_over_latest=10.71, turbo_over_latest=35.71, saved_on_input=0.944,
        saved_on_output=0.972, released_in_gib=641.28, four_bit_in_gib=351.53, choices=4.097e14,
    )  # fmt: skip
    assert {name: quantities()[name] for name in by_hand} == pytest.approx(by_hand, rel=5e-4)


def test_the_verdicts_are_those_that_the_chapter_counts():
    counts = Counter((claim.article, claim.kind, claim.verdict) for claim in all_claims())
    found = {
        kind: {article: [counts[article, kind, verdict] for verdict in VERDICTS] for article in ARTICLES}
        for kind in KINDS
    }
    assert found == {
        "computed": {"gap": [5, 0, 4], "script": [2, 5, 3], "mac": [4, 0, 0], "history": [2, 4, 0], "what": [2, 0, 1]},
        "quoted": {"gap": [1, 3, 1], "script": [0, 0, 3], "mac": [1, 0, 0], "history": [0, 1, 1], "what": [0, 1, 2]},
    }
    for (article, kind, judged), count in counts.items():
        assert len(claims(article, judged, kind)) == count
    assert len({claim.quote for claim in all_claims()}) == len(claims()) == 46
    with pytest.raises(ValueError, match="no verdict 'true': there are right, imprecise, wrong"):
        claims(verdict="true")
    with pytest.raises(ValueError, match="no article 'times': there are gap"):
        claims(article="times")
    with pytest.raises(ValueError, match="no kind 'guessed': there are computed, quoted"):
        claims(kind="guessed")


def test_prices_and_benchmark_scores_are_quoted_and_nothing_else_is():
    about = r"price|pricing|\$0\.|cheaper|costs|dollar par|less than o1|MATH|MMLU|HumanEval|LiveCodeBench"
    assert {c.quote for c in claims(kind="quoted")} == {c.quote for c in all_claims() if re.search(about, c.quote)}
    assert not computed().keys() & quoted().keys()


def test_the_table_has_a_row_for_each_claim_and_no_bare_angle():
    found = Claims(
        [*claims("script"), Claim(article="gap", quote="<b> & co", kind="quoted", because="1 < 2.", verdict="right")]
    )
    html = found._repr_html_()
    assert html.count("<tr>") == len(found) + 1 == repr(found).count("\n") + 2
    assert "&lt;b&gt; &amp; co" in html
    assert "1 &lt; 2." in html


def test_the_price_lists_are_those_of_their_days():
    """Quotes have no other proof than to be typed twice: dollars per million tokens, cached input, input, output."""
    assert [(p.cached_input, p.input, p.output) for p in (*PRICES, R1_PRICE)] == [
        (0.014, 0.14, 0.28), (0.07, 0.27, 1.10), (0.07, 0.56, 1.68), (0.028, 0.28, 0.42), (0.14, 0.55, 2.19),
    ]  # fmt: skip
