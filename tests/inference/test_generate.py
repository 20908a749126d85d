"""Generation against full forward passes without a cache, and sampling against the softmax it claims to follow."""

from types import SimpleNamespace

import pytest
import torch
from helpers_training import small_model, state
from torch import nn

from minids.inference.generate import Generation, generate, sample


@pytest.fixture(scope="module")
def model():
    return small_model(initializer_range=0.2).eval()


class Script(nn.Module):
    """Stands for a model: always finds the given next tokens the likeliest, and notes what it was fed."""

    def __init__(self, *rows: list[int], vocab_size: int = 10):
        super().__init__()
        self.rows, self.config = torch.tensor(rows), SimpleNamespace(vocab_size=vocab_size)
        self.embed_tokens = nn.Embedding(vocab_size, 1)
        self.fed = []

    def new_cache(self, batch_size: int, max_length: int) -> list:
        return []

    def forward(self, tokens_BT, cache):
        self.fed.append(tokens_BT.tolist())
        logits = torch.zeros(*tokens_BT.shape, self.config.vocab_size)
        logits[:, -1] = nn.functional.one_hot(self.rows[:, len(self.fed) - 1], self.config.vocab_size)
        return logits


def greedy_without_cache(model, prompt: list[int], new: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    return tokens


@pytest.mark.parametrize("changes", [{}, {"kv_lora_rank": None}, {"n_routed_experts": None}, {"q_lora_rank": None}])
@pytest.mark.parametrize("prompt", [[7], [1, 2, 3, 4, 5]])
def test_greedy_is_the_argmax_of_a_full_forward_pass(changes, prompt):
    model = small_model(initializer_range=0.2, **changes).eval()
    out = generate(model, prompt, 12)
    assert out.tokens.tolist() == greedy_without_cache(model, prompt, 12)


def test_a_batch_writes_what_each_prompt_alone_would(model):
    prompts = torch.tensor([[1, 2, 3], [400, 5, 6], [1, 2, 4]])
    together = generate(model, prompts, 10)
    assert together.tokens.shape == (3, 13)
    for prompt, tokens in zip(prompts, together.tokens, strict=True):
        assert generate(model, prompt, 10).tokens.tolist() == tokens.tolist()


def test_the_prompt_goes_in_at_once_and_then_one_token_at_a_time():
    script = Script([5, 6, 7])
    generate(script, [1, 2, 3], 3)
    assert script.fed == [[[1, 2, 3]], [[5]], [[6]]]


@pytest.mark.parametrize("prompt", [[1, 2], torch.tensor([1, 2])])
def test_one_prompt_gives_one_row_and_new_tokens_are_what_follows_it(prompt):
    out = generate(Script([5, 6, 7]), prompt, 3)
    assert out.tokens.tolist() == [1, 2, 5, 6, 7]
    assert out.prompt_length == 2
    assert out.new_tokens.tolist() == [5, 6, 7]


def test_new_tokens_of_a_batch():
    assert Generation(torch.tensor([[1, 2, 3], [4, 5, 6]]), 1).new_tokens.tolist() == [[2, 3], [5, 6]]


# ---------------------------------------------------------------------------------------------------
# End of text


def test_generation_stops_when_every_row_has_ended_and_fills_up_the_finished_ones():
    out = generate(Script([5, 0, 7, 7], [6, 6, 0, 8]), [[1, 2], [3, 4]], 4, end_of_text=0)
    assert out.tokens.tolist() == [[1, 2, 5, 0, 0], [3, 4, 6, 6, 0]]


def test_an_end_of_text_in_the_prompt_finishes_nothing():
    assert generate(Script([5, 0, 7]), [0, 1, 0], 3, end_of_text=0).new_tokens.tolist() == [5, 0]


def test_without_a_named_end_of_text_the_token_is_like_any_other():
    assert generate(Script([5, 0, 7]), [1], 3).new_tokens.tolist() == [5, 0, 7]


# ---------------------------------------------------------------------------------------------------
# Sampling


def assert_drawn_from(counts: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Pearson's chi-square, five standard deviations above its mean at most; nothing drawn that has no probability."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = counts.sum() * probabilities[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum().item()
    freedom = possible.sum().item() - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 3])
def test_samples_follow_the_softmax_at_the_temperature(temperature, top_k):
    logits = torch.tensor([2.0, -1.0, 0.5, 1.5, 0.0, -0.5])
    drawn = sample(logits.expand(20_000, -1), temperature, top_k, torch.Generator().manual_seed(0))
    kept = logits.topk(top_k or 6).indices
    weights = torch.zeros(6).index_copy(0, kept, (logits[kept] / temperature).exp())
    assert_drawn_from(drawn.bincount(minlength=6), weights / weights.sum())


def test_the_whole_way_through_a_model_follows_its_softmax(model):
    prompt = torch.tensor([3, 1, 4])
    out = generate(model, prompt.expand(4000, -1), 1, temperature=1.5, top_k=8, seed=1)
    with torch.no_grad():
        logits = model(prompt[None])[0, -1]
    best = logits.topk(8)
    weights = torch.zeros(512).index_copy(0, best.indices, (best.values / 1.5).softmax(0))
    assert_drawn_from(out.new_tokens[:, 0].bincount(minlength=512), weights)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model):
    texts = [generate(model, [1, 2], 20, temperature=1.0, seed=seed).tokens.tolist() for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_neither_reads_nor_moves_the_global_random_state(model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = generate(model, [1, 2], 20, temperature=1.0).tokens
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(generate(model, [1, 2], 20, temperature=1.0).tokens, first)


def test_the_likeliest_one_is_the_greedy_choice(model):
    greedy = generate(model, [1, 2], 10).tokens.tolist()
    assert generate(model, [1, 2], 10, temperature=3.0, top_k=1).tokens.tolist() == greedy


def test_a_top_k_of_the_whole_vocabulary_changes_nothing(model):
    texts = [generate(model, [1, 2], 10, temperature=1.0, top_k=k).tokens.tolist() for k in (None, 512)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-37])
@pytest.mark.parametrize("logits", [[1.0, 3.0, 2.0], [-1e4, 1e4, 0.0], [-3e30, -1e30, -2e30]])
def test_a_small_temperature_is_greedy_and_overflows_nothing(logits, temperature):
    assert sample(torch.tensor([logits]), temperature, None, torch.Generator()).item() == 1


@pytest.mark.parametrize("temperature", [1e-40, 1e-46, 1e-60, 5e-324])
def test_a_temperature_too_small_for_float32_is_greedy_too(temperature):
    assert sample(torch.tensor([[1.0, 3.0, 2.0]]), temperature, None, torch.Generator()).item() == 1


def test_a_huge_temperature_is_uniform():
    logits = torch.tensor([5.0, 0.0, -5.0]).expand(3000, -1)
    drawn = sample(logits, 1e30, None, torch.Generator().manual_seed(0))
    assert_drawn_from(drawn.bincount(minlength=3), torch.full((3,), 1 / 3))


# ---------------------------------------------------------------------------------------------------
# Care


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ([], {}, "at least one token"),
        ([[]], {}, "at least one token"),
        (5, {}, r"\(T,\) or \(B, T\)"),
        ([[[1]]], {}, r"\(T,\) or \(B, T\)"),
        ([1, 512], {}, "token 512: tokens are 0 to 511"),
        ([1, -1], {}, "token -1: tokens are 0 to 511"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([1], {"temperature": -0.1}, "temperature=-0.1"),
        ([1], {"temperature": float("nan")}, "temperature=nan"),
        ([1], {"top_k": 0}, "top_k=0"),
        ([1], {"top_k": 513}, "top_k=513"),
    ],
)
def test_bad_input_is_told_in_one_sentence(model, prompt, options, says):
    with pytest.raises(ValueError, match=says) as error:
        generate(model, prompt, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = small_model().train(training)
    before = state(model)
    generate(model, [1, 2, 3], 5)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items()), "weights, biases, loads"


def test_the_mode_is_restored_after_an_error_too():
    script = Script([5]).train()
    with pytest.raises(IndexError):
        generate(script, [1], 3)  # the script has one token only
    assert script.training
