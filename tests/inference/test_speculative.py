"""Speculative decoding against plain decoding, against exact distributions, and against full forward passes."""

import itertools
import math
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from configurations import Float64, random_model
from helpers_training import small_config
from torch.testing import assert_close

from minids.hub.reference import reference
from minids.inference import speculative
from minids.inference.generate import Generation, generate
from minids.inference.sampling import draw, probabilities
from minids.inference.speculative import Drafter, Verdict, judge
from minids.text.corpus import load_corpus

VOCABULARY = 4
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def few_tokens(depth: int, **changes):
    """A random model of so few tokens that a draft is often right by chance, in float64."""
    return random_model(small_config(vocab_size=VOCABULARY, num_nextn_predict_layers=depth, **changes)).double()


def random_prompts(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------
# Greedy: the same tokens


@contextmanager
def half_of_the_drafts_right(texts_BT: torch.Tensor):
    """Replace drafts at random by what plain decoding wrote, so that all kinds of steps occur."""
    draft, generator, longest = Drafter.draft, torch.Generator().manual_seed(0), texts_BT.shape[1]

    def lucky(self, tokens_BS, last_B, *rest):
        drafts_BK, q_BKV = draft(self, tokens_BS, last_B, *rest)
        place_BK = last_B[:, None] + torch.arange(1, 1 + drafts_BK.shape[1])
        known_BK = (torch.rand(drafts_BK.shape, generator=generator) < 0.5) & (place_BK < longest)
        drafts_BK = torch.where(known_BK, texts_BT.gather(1, place_BK.clamp(max=longest - 1)), drafts_BK)
        tokens_BS.scatter_(1, place_BK, drafts_BK)
        return drafts_BK, torch.zeros_like(q_BKV).scatter_(2, drafts_BK[..., None], 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafter, "draft", lucky)
        yield


@pytest.mark.kills("rejected drafts stay in the cache", depth=1, changes={}, ends=None)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"kv_lora_rank": None}, {"n_routed_experts": None}])
@pytest.mark.parametrize("ends", [None, [0], [1, 3]])
def test_greedy_text_is_that_of_plain_decoding_whatever_the_drafts_are(depth, changes, ends):
    model, kinds = few_tokens(depth, **changes), set()
    for length in (1, 2, 7):
        prompts = random_prompts(9, length, seed=length)
        plain = generate(model, prompts, 17, end_of_text=ends).tokens
        with half_of_the_drafts_right(plain):
            out = generate(model, prompts, 17, end_of_text=ends, speculative=True)
        assert torch.equal(out.tokens, plain)
        kinds |= {n for verdict in out.verdicts for n in verdict.accepted_B[verdict.new_B > 0].tolist()}
    if ends is None:
        assert kinds == set(range(depth + 1)), "of the drafts of a step, none are accepted, some, or all"


@pytest.mark.parametrize("domain", ["prose", "code", "arithmetic"])
def test_the_trained_miniature_writes_the_same_text_with_more_than_half_of_its_drafts(domain):
    book, text = reference(), "\n".join(load_corpus().validation[domain])
    model, prompts = book.model.double(), torch.tensor(book.tokenizer.encode(text[:15_000]))[:1200].view(100, 12)
    with Float64():
        out, plain = (generate(model, prompts, 20, speculative=choice) for choice in (True, False))
    assert torch.equal(out.tokens, plain.tokens)
    assert out.acceptance.mean() > 0.5


@pytest.mark.parametrize("options", [{}, dict(temperature=1.0, top_k=1)])
def test_a_prompt_alone_is_continued_as_in_a_batch_by_any_number_of_tokens(options):
    model, prompts = few_tokens(2), random_prompts(3, 5)
    for n in (1, 2, 3, 4, 9):
        plain = generate(model, prompts, n).tokens
        assert torch.equal(generate(model, prompts, n, speculative=True, **options).tokens, plain)
        for prompt, row in zip(prompts, plain, strict=True):
            assert torch.equal(generate(model, prompt, n, speculative=True, **options).tokens, row)


# ---------------------------------------------------------------------------------------------------
# Sampling: the same distribution


def total_variation(p: torch.Tensor, q: torch.Tensor) -> float:
    return (p - q).abs().sum(dim=-1).item() / 2


def assert_drawn_from(counts: torch.Tensor, exact: torch.Tensor) -> None:
    """As near in total variation as the worst of twenty honest samples of the same size, and a fifth."""
    generator, n = torch.Generator().manual_seed(0), int(counts.sum())
    honest = [
        torch.multinomial(exact, n, replacement=True, generator=generator).bincount(minlength=len(exact)) / n
        for _ in range(20)
    ]
    assert total_variation(counts / n, exact) < 1.2 * max(total_variation(sample, exact) for sample in honest)


@torch.no_grad()
def exact_distribution(model, prompt: list[int], length: int, distribution) -> torch.Tensor:
    """The probability of every continuation, in counting order, from full forward passes."""
    texts = torch.tensor([prompt + list(new) for new in itertools.product(range(VOCABULARY), repeat=length)])
    p_NTV = distribution(model(texts[:, :-1]))[:, -length:]
    return p_NTV.gather(2, texts[:, -length:, None]).prod(dim=1)[:, 0]


@pytest.mark.kills("every draft is accepted", depth=1, new=3, options={"temperature": 1.5, "top_k": 3})
@pytest.mark.kills("the residual is p", depth=1, new=3, options={"temperature": 1.5, "top_k": 3})
@pytest.mark.kills(
    "a greedy draft is judged as if it were sampled", depth=1, new=3, options={"temperature": 1.5, "top_k": 3}
)
@pytest.mark.parametrize(
    ("depth", "new", "options"),
    [(1, 3, dict(temperature=1.0)), (1, 3, dict(temperature=1.5, top_k=3)), (2, 4, dict(temperature=1.5, top_k=3))],
)
def test_every_continuation_has_the_probability_that_the_model_gives_it(depth, new, options):
    model, prompt, samples = few_tokens(depth), [0, 1, 2], 6000
    exact = exact_distribution(model, prompt, new, partial(probabilities, **options))
    prompts = torch.tensor(prompt).expand(samples, -1)  # the rows are independent
    out = generate(model, prompts, new, **options, speculative=True)
    place = VOCABULARY ** torch.arange(new - 1, -1, -1)
    assert_drawn_from((out.new_tokens * place).sum(dim=1).bincount(minlength=len(exact)), exact)


@pytest.mark.parametrize("seed", range(3))
def test_the_judge_s_tokens_follow_the_model_whatever_drafted_them(seed):
    """Two drafts of three tokens: what comes out is p_1, then p_2, then p_3, as far as it comes."""
    generator = torch.Generator().manual_seed(seed)
    p_NV, q_KV = (
        torch.randn(3, 3, generator=generator).mul(2).double().softmax(1),
        torch.randn(2, 3, generator=generator).double().softmax(1),
    )
    n = 20_000
    q_BKV = q_KV.expand(n, -1, -1)
    drafts_BK = torch.stack([draw(q_BV, generator) for q_BV in q_BKV.unbind(1)], dim=1)
    accepted_B, next_B = judge(drafts_BK, q_BKV, p_NV.expand(n, -1, -1), generator)
    written_BN = torch.cat([drafts_BK, drafts_BK[:, :1]], dim=1).scatter(1, accepted_B[:, None], next_B[:, None])
    for k in range(3):
        came_B = accepted_B >= k
        assert_drawn_from(written_BN[came_B, k].bincount(minlength=3), p_NV[k])
        if k < 2:
            assert (accepted_B[came_B] > k).double().mean() == pytest.approx(
                1 - total_variation(p_NV[k], q_KV[k]), abs=0.015
            )


@pytest.mark.kills("a draft counts as certain", p=P, q=P, due=1.0)
@pytest.mark.parametrize(
    ("p", "q", "due"),
    [
        (P, P, 1.0),
        (P, P.roll(1), 0.7),
        (P, torch.eye(3).double()[1], 0.3),  # a greedy draft
        (torch.eye(3).double()[1], P, 0.3),  # a greedy model
        (torch.eye(3).double()[0], torch.eye(3).double()[2], 0.0),
    ],
)
def test_a_draft_is_accepted_with_probability_1_minus_total_variation(p, q, due):
    generator = torch.Generator().manual_seed(0)
    q_BV, p_BV = q.expand(10_000, -1), p.expand(10_000, -1)
    accepted_B, next_B = judge(draw(q_BV, generator)[:, None], q_BV[:, None], torch.stack([p_BV, p_BV], 1), generator)
    assert due == pytest.approx(1 - total_variation(p, q))
    assert accepted_B.double().mean() == pytest.approx(due, abs=0.02 * (0 < due < 1))
    assert not (p == 0)[next_B].any()


# ---------------------------------------------------------------------------------------------------
# The cache and the states: what a full forward pass would compute


@pytest.mark.kills("MTP reads the state before the norm", depth=1, changes={})
@pytest.mark.kills("rejected drafts stay in the cache", depth=2, changes={})
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"kv_lora_rank": None, "num_key_value_heads": 2}])
@torch.no_grad()
def test_drafts_and_judgements_come_from_the_distributions_of_a_full_forward_pass(depth, changes):
    """Of the text so far in the model, and of the text and the drafts before in the MTP modules."""
    model, seen, right = few_tokens(depth, **changes), [], Drafter.draft
    distribution = partial(probabilities, temperature=1.0)

    def draft(self, tokens_BS, last_B, *rest):
        drafts_BK, q_BKV = right(self, tokens_BS, last_B, *rest)
        seen.append((tokens_BS.clone(), last_B, q_BKV))
        return drafts_BK, q_BKV

    def judge_and_note(drafts_BK, q_BKV, p_BNV, generator):
        seen[-1] += (p_BNV,)
        return judge(drafts_BK, q_BKV, p_BNV, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafter, "draft", draft)
        patch.setattr(speculative, "judge", judge_and_note)
        out = generate(model, random_prompts(4, 3), 12, temperature=1.0, seed=1, speculative=True)
    assert any(len(set(last_B.tolist())) > 1 for _, last_B, _, _ in seen), "the rows differ in length"
    for step, (tokens_BS, last_B, q_BKV, p_BNV) in enumerate(seen):
        for b in out.verdicts[step].new_B.nonzero()[:, 0].tolist():
            text = tokens_BS[b : b + 1, : last_B[b] + depth + 1]
            assert_close(p_BNV[b], distribution(model(text)[0, -depth - 1 :]), rtol=1e-4, atol=1e-5)
            for k in range(1, depth + 1):
                before = text[:, : last_B[b] + k]
                hidden_BTD, _ = model.hidden_states(before)
                drafting_BTD, _ = model.mtp_hidden_states(before, hidden_BTD)[k - 1]
                q_V = distribution(model.lm_head(drafting_BTD[0, -1]))
                assert_close(q_BKV[b, k - 1], q_V, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_drafts_that_are_always_right_save_all_the_steps_that_they_can(depth, temperature):
    model = few_tokens(depth)
    model.lm_head.weight.detach().zero_()  # model and modules find all tokens equally likely
    for n in (1, 2, 3, 8, 13):
        out = generate(model, random_prompts(2, 3), n, temperature=temperature, speculative=True)
        assert out.steps == 1 + math.ceil((n - 1) / (depth + 1))
        if n > 1:
            assert out.acceptance.tolist() == [[1.0] * depth] * 2


# ---------------------------------------------------------------------------------------------------
# What a generation tells


def test_acceptance_is_accepted_drafts_over_drafts_of_each_row_and_place():
    def verdict(accepted: list[int], new: list[int]) -> Verdict:
        rows = torch.zeros(3, 2, dtype=torch.long)
        return Verdict(rows, torch.tensor(accepted), rows[:, 0], torch.tensor(new))

    verdicts = [verdict([2, 0, 1], [3, 1, 0]), verdict([1, 2, 2], [1, 0, 0])]
    out = Generation(torch.zeros(3, 9, dtype=torch.long), 2, 3, verdicts, 2)
    nan = math.nan
    assert_close(out.acceptance, torch.tensor([[1.0, 0.5], [0.0, 0.0], [nan, nan]]), equal_nan=True)
    assert Generation(out.tokens, 2, 7).acceptance is None


def test_acceptance_and_steps_agree_with_the_text():
    model = few_tokens(2)
    out = generate(model, [1, 2, 3], 40, temperature=1.0, speculative=True)
    drafts, accepted = len(out.verdicts), [int(verdict.accepted_B[0]) for verdict in out.verdicts]
    assert (out.steps, out.acceptance.shape) == (drafts + 1, (2,))
    assert_close(out.acceptance, torch.tensor([sum(n >= k for n in accepted) / drafts for k in (1, 2)]))
    assert 1 + sum(int(verdict.new_B[0]) for verdict in out.verdicts) == len(out.new_tokens)
    written = [out.new_tokens[0].item()]
    for verdict, n in zip(out.verdicts, accepted, strict=True):
        written += verdict.drafts_BK[0, :n].tolist() + verdict.next_B.tolist()
    assert written[:40] == out.new_tokens.tolist()


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3, 0]]])
def test_without_a_draft_there_is_no_acceptance_but_one_token(prompt):
    out = generate(few_tokens(2), prompt, 1, speculative=True)
    assert (out.steps, out.verdicts, out.acceptance.shape) == (1, [], (*out.tokens.shape[:-1], 2))
    assert out.acceptance.isnan().all()
