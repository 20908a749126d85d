"""The diagrams of chapter 6 show what the library does: its slices of tokens, and the rule that it judges drafts by."""

import re

import numpy as np
import pytest
import torch
from helpers_training import small_model
from legibility import assert_legible
from matplotlib.colors import to_rgb

from minids.book.plots.c06_alignment import draw_mtp_alignment
from minids.book.plots.c06_rule import FACES, P, draw_acceptance_rule
from minids.inference.speculative import judge

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, as other pictures

TOKENS = tuple("abcdefg")


def read_and_predicted(depth: int, monkeypatch) -> list[tuple[str, str]]:
    """What the library embeds and compares with at each depth, from a loss on the tokens 0, 1, 2, …"""
    model, rows = small_model(num_nextn_predict_layers=depth).eval(), []
    embed, compare = model.embed_tokens.forward, model._cross_entropy
    reads, targets = [], []
    monkeypatch.setattr(model.embed_tokens, "forward", lambda ids: (reads.append(ids), embed(ids))[1])
    monkeypatch.setattr(model, "_cross_entropy", lambda hidden, ids: (targets.append(ids), compare(hidden, ids))[1])
    model.loss(torch.arange(len(TOKENS))[None])
    for read, target in zip(reads, targets, strict=True):
        rows += ["".join(TOKENS[j] for j in ids[0]) for ids in (read, target)]
    return rows


@pytest.mark.parametrize("depth", [1, 2])
def test_every_row_shows_the_tokens_that_the_library_reads_and_predicts_at_that_depth(depth, monkeypatch):
    expected = read_and_predicted(depth, monkeypatch)
    for position in range(len(TOKENS) - 1):
        fig = draw_mtp_alignment(TOKENS, depth, position)
        lines = {}
        for text in fig.axes[0].texts:
            if text.get_text() in TOKENS:
                lines.setdefault(text.get_position()[1], []).append((text.get_position()[0], text.get_text()))
        assert ["".join(word for _, word in sorted(lines[y])) for y in sorted(lines)] == expected
        bold = [text.get_text() for text in fig.axes[0].texts if text.get_weight() == "bold"]
        assert f"i = {position}" in bold
        said = re.findall(r"“(\w)” \((\d)\)", fig.alt)
        assert all(TOKENS[int(j)] == word for word, j in said)
        column = [row[position : position + 1] for row in expected]
        assert "".join(word for word, _ in said) == "".join(column)
        assert all(int(target) == int(read) + 1 for (_, read), (_, target) in zip(said[::2], said[1::2], strict=True))
        assert_legible(fig)


def bars(ax) -> dict[str, np.ndarray]:
    """The widths of the bars of each kind, by token."""
    kinds, found = {to_rgb(face): kind for kind, face in FACES.items()}, {kind: np.zeros(5) for kind in FACES}
    for bar in ax.patches:
        y = bar.get_y() + bar.get_height() / 2
        if y > -0.5:  # not the key
            found[kinds[bar.get_facecolor()[:3]]][round(y)] += bar.get_width()
    return found


@pytest.mark.parametrize("closeness", [0, 0.3, 0.5, 0.9, 1])
def test_the_bars_are_the_probabilities_that_the_library_s_judge_gives(closeness):
    fig = draw_acceptance_rule(closeness)
    left, right = (bars(ax) for ax in fig.axes)
    q = left["accepted"] + left["rejected"]
    assert f"{1 - abs(P - q).sum() / 2:.0%} of the drafts" in "".join(text.get_text() for text in fig.texts)
    n, generator = 40_000, torch.Generator().manual_seed(0)
    q_BKV, p_BNV = torch.tensor(q).expand(n, 1, 5), torch.tensor(P).expand(n, 2, 5)
    drafts_B = torch.multinomial(q_BKV[0, 0], n, replacement=True, generator=generator)
    accepted_B, next_B = judge(drafts_B[:, None], q_BKV, p_BNV, generator)
    for shown, tokens in (
        (left["accepted"], drafts_B[accepted_B == 1]), (left["rejected"], drafts_B[accepted_B == 0]),
        (right["accepted"], drafts_B[accepted_B == 1]), (right["replacements"], next_B[accepted_B == 0]),
    ):  # fmt: skip
        np.testing.assert_allclose(shown, tokens.bincount(minlength=5) / n, atol=0.012)
    assert left["residual"].sum() == pytest.approx(left["rejected"].sum())
    np.testing.assert_allclose(left["accepted"] + left["residual"], np.maximum(P, left["accepted"]))
    np.testing.assert_allclose(right["accepted"] + right["replacements"], P)
    assert_legible(fig)
