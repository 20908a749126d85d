"""Where the tokens of speculative decoding come from, against plain decoding, and how the text is drawn."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from helpers_training import small_model
from legibility import assert_legible
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from minids.book.plots.c06_text import ACCEPTED, BONUS, FIRST, GREEN, OWN, draw_drafted_text, emitted
from minids.book.plots.tokens import CELL, lay_out
from minids.hub.reference import reference
from minids.inference.generate import Generation, generate
from minids.inference.speculative import Verdict

SETTINGS = list(itertools.product((0, 1), (None, [2]), (1, 17)))  # temperature, ends of a text, new tokens


@pytest.fixture(scope="module", params=[1, 2, 3])
def written(request):
    """A random model of four tokens, five prompts, and what it writes after them, greedily and sampled."""
    model = small_model(initializer_range=0.2, vocab_size=4, num_nextn_predict_layers=request.param).double()
    prompts = torch.randint(4, (5, 6), generator=torch.Generator().manual_seed(0))
    return model, [
        generate(model, prompts, new, temperature=temperature, seed=1, end_of_text=ends, speculative=True)
        for temperature, ends, new in SETTINGS
    ]


def test_the_tokens_of_all_steps_are_the_text_and_every_step_ends_with_one_that_was_not_drafted(written):
    model, generations = written
    for (out, (_, ends, _)), row in itertools.product(zip(generations, SETTINGS, strict=True), range(5)):
        found, text = emitted(out, row), out.new_tokens[row].tolist()
        length = text.index(2) + 1 if ends and 2 in text else len(text)  # without the filling behind the end of a text
        assert [one.token for one in found] == text[:length]
        steps = [[one.kind for one in group] for _, group in itertools.groupby(found, lambda one: one.step)]
        assert [one.step for one in found] == sorted(one.step for one in found)
        assert len(steps) == 1 + sum(bool(verdict.new_B[row]) for verdict in out.verdicts) <= out.steps
        assert steps[0] == [FIRST]
        for i, kinds in enumerate(steps[1:], start=2):
            full = [ACCEPTED] * len(model.mtp) + [BONUS], *([ACCEPTED] * n + [OWN] for n in range(len(model.mtp)))
            assert kinds in full or (i == len(steps) and any(kinds == each[: len(kinds)] for each in full))


def test_a_greedy_draft_is_accepted_where_it_is_what_plain_decoding_writes(written):
    model, generations = written
    out = generations[1]
    plain = generate(model, out.tokens[:, : out.prompt_length], 17).new_tokens
    for row in range(5):
        found = emitted(out, row)
        assert [one.token for one in found] == plain[row].tolist()
        assert all((one.rejected is not None) == (one.kind == OWN) for one in found)
        assert all(one.rejected != one.token for one in found)
    assert {FIRST, ACCEPTED, OWN} <= {one.kind for row in range(5) for one in emitted(out, row)}


def test_the_picture_has_a_box_for_each_token_and_a_green_one_for_each_accepted_draft():
    model, tokenizer = reference().model, reference().tokenizer
    out = generate(model, tokenizer.encode("Return the"), 40, speculative=True)
    fig, found = draw_drafted_text(out, tokenizer), emitted(out)
    assert_legible(fig)
    boxes = [box for box in fig.axes[0].get_children() if isinstance(box, Rectangle) and box.get_height() == 15]
    green = sum(box.get_width() for box in boxes if to_hex(box.get_facecolor()) == GREEN)
    accepted = [tokenizer.token_bytes()[one.token].decode() for one in found if one.kind == ACCEPTED]
    expected = [CELL * len(text) - 0.8 for text in [*accepted, "token"]]  # the last is that of the key
    assert green == pytest.approx(sum(expected))
    assert f"40 tokens in {out.steps} steps, {40 / out.steps:.2f} per step: " in fig.alt
    accepted = sum(int(verdict.accepted_B) for verdict in out.verdicts)
    assert f"{accepted} of {len(out.verdicts)} drafts accepted" in fig.alt
    assert out.acceptance.item() == pytest.approx(accepted / len(out.verdicts))


def test_an_accepted_draft_that_equals_the_filling_behind_the_end_is_no_part_of_the_text():
    step = Verdict(torch.tensor([[2, 2]]), torch.tensor([2]), torch.tensor([3]), torch.tensor([1]))
    out = Generation(torch.tensor([[0, 1, 2, 2]]), 1, 2, [step], drafts_per_step=2)
    assert [(one.token, one.kind) for one in emitted(out)] == [(1, FIRST), (2, ACCEPTED)]


@pytest.mark.parametrize("row", range(5))
def test_drafts_accepted_behind_the_last_token_are_not_counted(written, row):
    model, generations = written
    tokenizer = SimpleNamespace(token_bytes=lambda: [b"a", b"b", b"c", b"d"])
    for out in generations[1::2]:
        kinds = [one.kind for one in emitted(out, row)]
        drafts = sum(bool(verdict.new_B[row]) for verdict in out.verdicts) * len(model.mtp)
        assert f": {kinds.count(ACCEPTED)} of {drafts} drafts accepted" in draw_drafted_text(out, tokenizer, row).alt


def test_text_without_verdicts_and_rows_that_are_not_there_are_refused():
    model = small_model(num_nextn_predict_layers=1)
    with pytest.raises(ValueError, match="speculative=False is not possible: it must be True in `generate`"):
        emitted(generate(model, [1, 2], 3))
    with pytest.raises(ValueError, match="row=1 is not possible: it must be 0 to 0"):
        emitted(generate(model, [1, 2], 3, speculative=True), row=1)


@pytest.mark.parametrize(
    ("broken", "lines"),
    [(True, ["ab c↵↵", "def↵", "   xyz", "longer than it"]), (False, ["ab c↵↵", "def↵ x", "   y", "longer than it"])],
)
def test_laid_out_tokens_wrap_at_the_width_and_where_asked_at_newlines(broken, lines):
    """An empty line's mark stands at the end of the line before, and only a token longer than a line leaves it."""
    texts = [
        "ab",
        " c",
        "\n",
        "\n",
        "def",
        "\n   x" if broken else "\n x",
        "yz" if broken else "   y",
        "longer than it",
    ]
    pieces = list(lay_out(texts, 7, broken))
    drawn = [[" "] * 20 for _ in lines]
    for piece in pieces:
        drawn[piece.line][piece.column : piece.column + len(piece.text)] = piece.text
    assert ["".join(line).rstrip() for line in drawn] == lines
    together = ["".join(part.text for part in pieces if part.index == i) for i in range(len(texts))]
    assert together == [text.replace("\n", "↵") for text in texts]
