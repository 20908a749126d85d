"""Scores against closed forms (uniform logits), plain loops, and what `generate` really writes."""

import math
import re

import numpy as np
import pytest
import torch
from configurations import examples
from helpers_training import small_config, small_model, state
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from minids.inference.generate import generate
from minids.text.arithmetic import arithmetic_documents
from minids.text.batches import pack
from minids.text.tokenizer import Tokenizer
from minids.training.evaluate import mtp_agreement, row_scores, solved_problems

BYTES = torch.tensor([0, 1, 1, 2, 3, 5, 1, 4])
ROWS = np.random.default_rng(0).integers(8, size=(35, 7))  # three batches


@pytest.fixture(scope="module")
def model():
    return small_model(vocab_size=8, initializer_range=0.3)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([*arithmetic_documents("train", 5), "Return the sum of the two.\n" * 5], 280)


# ---------------------------------------------------------------------------------------------------
# Bits per byte


def test_uniform_logits_need_log2_of_the_vocabulary_per_token_and_end_of_text_costs_nothing():
    model = small_model(vocab_size=8)
    nn.init.zeros_(model.lm_head.weight)
    bits, text_bytes = row_scores(model, np.array([[3, 1, 2, 5, 7], [0, 0, 3, 0, 5]]), BYTES)
    assert bits == pytest.approx([4 * math.log2(8), 2 * math.log2(8)])
    assert text_bytes.tolist() == [1 + 1 + 5 + 4, 2 + 5]
    assert (bits.dtype, text_bytes.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize("context", [1, 3, 6])
def test_bits_equal_a_loop_over_single_predictions(model, context):
    """The first `context` tokens of a row are given."""
    expected = np.zeros(5)
    with torch.no_grad():
        model.eval()
        for n, row in enumerate(torch.from_numpy(ROWS[:5])):
            for i in range(context, len(row)):
                if row[i] != 0:
                    expected[n] -= model(row[None, :i])[0, -1].double().log_softmax(0)[row[i]].item() / math.log(2)
    bits, text_bytes = row_scores(model, ROWS[:5], BYTES, context)
    assert bits == pytest.approx(expected, rel=1e-5)
    assert text_bytes.tolist() == BYTES[ROWS[:5, context:]].sum(dim=1).tolist()


def test_rows_in_batches_score_what_they_score_one_by_one(model):
    single = [np.concatenate(part) for part in zip(*(row_scores(model, row[None], BYTES) for row in ROWS), strict=True)]
    for found, expected in zip(row_scores(model, ROWS, BYTES), single, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert mtp_agreement(model, ROWS) == pytest.approx(np.mean([mtp_agreement(model, row[None]) for row in ROWS]))


class ByteModel(nn.Module):
    """Stands for a model: it is told how many bytes each next token has, and how frequent each byte is.

    A token has the product of its bytes' probabilities, among the tokens of its length. What strings
    of that length have beyond those in the vocabulary goes to one id more, which is no token. So a
    text has the product of its bytes' probabilities, however it is cut.
    """

    def __init__(self, tokenizer: Tokenizer, rows: np.ndarray, frequencies: Tensor):
        super().__init__()
        token_bytes = tokenizer.token_bytes()
        self.embed_tokens = nn.Embedding(1, 1)
        self.probability = torch.stack([frequencies[list(piece)].prod() for piece in token_bytes])
        self.probability[tokenizer.end_of_text] = 0.5  # it costs something, which must not count
        self.length = torch.tensor([len(piece) for piece in token_bytes])
        self.lengths_ahead = iter(self.length[rows[:, 1:].astype(int)])

    def forward(self, tokens_BT: Tensor) -> Tensor:
        ahead_BT = torch.stack([next(self.lengths_ahead) for _ in tokens_BT])
        probability_BTV = torch.where(ahead_BT[..., None] == self.length, self.probability, 0.0)
        rest_BT1 = (1 - probability_BTV.sum(dim=-1, keepdim=True)).clamp(min=0)
        return torch.cat([probability_BTV, rest_BT1], dim=-1).log()


# Mostly few characters, so that there is something to merge; many of them of several bytes.
some_texts = st.lists(
    st.text(st.sampled_from("ab 1é深👩\n") | st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4
)
SIZES = (257, 262, 400)  # of the vocabulary: every character cut into bytes, some of them, hardly any


@examples(25)
@given(some_texts, st.integers(0, 1000))
@example(["深度求索 👩‍👩‍👧 12+7=19\n" * 3, "", "Größe, größer"], 0)
def test_bits_and_bytes_of_a_text_do_not_depend_on_the_tokenizer(texts, seed):
    frequencies = torch.rand(256, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    frequencies /= frequencies.sum()
    text_bytes = list("".join(texts).encode())
    for vocab_size in SIZES:
        tokenizer = Tokenizer.train(texts, vocab_size)
        stream = tokenizer.encode_documents(texts)
        rows = pack(stream, len(stream) - 1)  # one row: nothing is scored twice
        model = ByteModel(tokenizer, rows, frequencies)
        (bits,), (scored,) = row_scores(model, rows, model.length)
        assert scored == len(text_bytes)
        assert bits == pytest.approx(-frequencies[text_bytes].log2().sum().item(), rel=1e-5)


@examples(25)
@given(some_texts, st.integers(1, 9), st.sampled_from(SIZES))
def test_uniform_bytes_need_8_bits_each_under_any_tokenizer_and_in_rows_of_any_length(texts, length, vocab_size):
    tokenizer = Tokenizer.train(texts, vocab_size)
    stream = tokenizer.encode_documents(texts)
    assume(len(stream) > length)
    rows = pack(stream, length)
    model = ByteModel(tokenizer, rows, torch.full((256,), 1 / 256, dtype=torch.float64))
    bits, scored = row_scores(model, rows, model.length)
    assert bits == pytest.approx(8 * scored, rel=1e-5)


@pytest.mark.parametrize("measure", [lambda m: row_scores(m, ROWS, BYTES), lambda m: mtp_agreement(m, ROWS)])
def test_evaluation_changes_neither_weights_nor_biases_nor_loads(measure):
    model = small_model(vocab_size=8).train()
    before = state(model)
    measure(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


# ---------------------------------------------------------------------------------------------------
# MTP


def test_agreement_equals_a_loop_over_every_position(model):
    """The module that has seen tokens 0 ... i+1 and the main head that has seen the same: both predict token i+2."""
    agree = []
    with torch.no_grad():
        model.eval()
        for row in torch.from_numpy(ROWS[:6]):
            for seen in range(2, len(row) + 1):
                tokens = row[None, :seen]
                hidden, _ = model.hidden_states(tokens)
                (drafted, _), *_ = model.mtp_hidden_states(tokens, hidden)
                drafts, choice = model.lm_head(drafted[0, -1]).argmax(), model(tokens)[0, -1].argmax()
                agree.append((drafts == choice).item())
    assert 0 < sum(agree) < len(agree)
    assert mtp_agreement(model, ROWS[:6]) == pytest.approx(sum(agree) / len(agree))


def test_of_several_modules_the_first_counts_and_without_one_there_is_no_agreement():
    two = small_model(vocab_size=8, initializer_range=0.3, num_nextn_predict_layers=2)
    one = small_model(vocab_size=8, initializer_range=0.3)
    one.load_state_dict({name: tensor for name, tensor in two.state_dict().items() if not name.startswith("mtp.1")})
    assert mtp_agreement(two, ROWS) == mtp_agreement(one, ROWS)
    assert mtp_agreement(small_model(vocab_size=8, num_nextn_predict_layers=0), ROWS) is None


# ---------------------------------------------------------------------------------------------------
# Arithmetic


class Calculator(nn.Module):
    """Stands for a model: writes after each problem the answer it was told, character by character."""

    def __init__(self, tokenizer: Tokenizer, answers: dict[str, str]):
        super().__init__()
        self.tokenizer, self.answers = tokenizer, answers
        self.config = small_config(vocab_size=tokenizer.vocab_size)
        self.embed_tokens, self.lm_head = nn.Embedding(tokenizer.vocab_size, 1), nn.Identity()

    def new_cache(self, batch_size: int, max_length: int) -> list:
        return [torch.empty(batch_size, 0, dtype=torch.long)]

    def hidden_states(self, tokens_BT, cache=None):
        all_BS = torch.cat([cache[0], tokens_BT], dim=1) if cache else tokens_BT
        if cache:
            cache[0] = all_BS
        logits = torch.zeros(*all_BS.shape, self.config.vocab_size)
        for b, row in enumerate(all_BS.tolist()):
            for t in range(len(row)):
                logits[b, t, self.next_token(row[: t + 1])] = 1.0
        return logits[:, -tokens_BT.shape[1] :], []

    def forward(self, tokens_BT):
        return self.hidden_states(tokens_BT)[0]

    def next_token(self, tokens: list[int]) -> int:
        line = self.tokenizer.decode(tokens).rpartition("\n")[2].rpartition("<|end_of_text|>")[2]
        problem, equals, written = line.partition("=")
        answer = self.answers.get(problem, "") + "\n"
        character = answer[len(written)] if equals and len(written) < len(answer) else "?"
        return self.tokenizer.encode(character)[0]


def answered(model, tokenizer: Tokenizer, documents: list[str]) -> list[tuple[str, bool]]:
    """Every problem, and whether greedy decoding writes its answer and the line break after the text above it."""
    out = []
    for text in documents:
        for equals in re.finditer("=", text):
            wanted = tokenizer.encode(text[equals.end() : text.index("\n", equals.end()) + 1])
            prompt = [tokenizer.end_of_text, *tokenizer.encode(text[: equals.end()])]
            written = generate(model, prompt, len(wanted)).new_tokens.tolist()
            out.append((text[: equals.start()].rpartition("\n")[2], written == wanted))
    return out


SPOIL = [
    lambda answer: answer,
    lambda answer: "7" + answer[1:] if answer[0] != "7" else "8" + answer[1:],  # the first digit
    lambda answer: answer[:-1] + str((int(answer[-1]) + 1) % 10),  # the last digit
    lambda answer: answer + "0",  # no line break where it belongs
    lambda answer: answer[:-1],  # a line break too early
    lambda answer: answer,
]


def test_a_problem_is_solved_where_greedy_decoding_writes_its_answer(tokenizer):
    """All that are not written above, as they are or turned round."""
    documents = [text[: text.index("\n", 3 * i) + 1] for i, text in enumerate(arithmetic_documents("validation", 18))]
    answers = dict(line.split("=") for text in documents for line in text.splitlines())
    spoiled = {problem: SPOIL[i % 6](answer) for i, (problem, answer) in enumerate(answers.items())}
    model = Calculator(tokenizer, spoiled)
    all_answered = answered(model, tokenizer, documents)
    assert [right for _, right in all_answered] == [spoiled[problem] == answers[problem] for problem, _ in all_answered]
    expected = []
    for text in documents:
        above = []
        for _ in text.splitlines():
            problem, right = all_answered.pop(0)
            a, operator, b = re.split(r"(\D)", problem)
            expected += [(problem, right)] if not {problem, b + operator + a} & set(above) else []
            above.append(problem)
    assert solved_problems(model, tokenizer, documents) == expected
    assert {right for _, right in expected} == {True, False}


def test_a_problem_that_could_be_copied_from_above_is_left_out(tokenizer):
    documents = ["1+2=3\n2+1=3\n2-1=1\n1+2=3\n12*3=36\n3*12=36\n", "1+2=3\n"]
    solved = solved_problems(Calculator(tokenizer, {}), tokenizer, documents)
    assert [problem for problem, _ in solved] == ["1+2", "2-1", "12*3", "1+2"]
