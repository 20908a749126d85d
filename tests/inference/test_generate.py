"""Generation against full forward passes without a cache, and sampling against the softmax it claims to follow."""

import numpy as np
import pytest
import torch
from helpers_training import assert_bitwise_equal, small_config, small_model, state
from torch import nn
from torch.testing import assert_close

from minids.inference.generate import generate
from minids.inference.sampling import draw, probabilities
from minids.model.cache import Cache

both_ways = pytest.mark.parametrize("speculative", [False, True])


@pytest.fixture(scope="module")
def model():
    return small_model(initializer_range=0.2).eval()


class Script(nn.Module):
    """Stands for a model: always finds the given next tokens the likeliest, and notes what it was fed."""

    def __init__(self, *rows: list[int], vocab_size: int = 10):
        super().__init__()
        self.rows, self.config = torch.tensor(rows), small_config(vocab_size=vocab_size)
        self.embed_tokens, self.lm_head = nn.Embedding(vocab_size, 1), nn.Identity()
        self.fed = []

    def new_cache(self, batch_size: int, max_length: int) -> list:
        return []

    def hidden_states(self, tokens_BT, cache):
        self.fed.append(tokens_BT.tolist())
        logits = torch.zeros(*tokens_BT.shape, self.config.vocab_size)
        logits[:, -1] = nn.functional.one_hot(self.rows[:, len(self.fed) - 1], self.config.vocab_size)
        return logits, []


@pytest.mark.parametrize("changes", [{}, {"kv_lora_rank": None}, {"n_routed_experts": None}, {"q_lora_rank": None}])
@pytest.mark.parametrize("prompt", [[7], [1, 2, 3, 4, 5]])
@torch.no_grad()
def test_greedy_is_the_argmax_of_a_full_forward_pass(changes, prompt):
    model = small_model(initializer_range=0.2, **changes).eval()
    tokens = list(prompt)
    for _ in range(12):
        tokens.append(model(torch.tensor([tokens]))[0, -1].argmax().item())
    assert generate(model, prompt, 12).tokens.tolist() == tokens


def test_a_batch_writes_what_each_prompt_alone_would(model):
    prompts = torch.tensor([[1, 2, 3], [400, 5, 6], [1, 2, 4]])
    together = generate(model, prompts, 10)
    assert together.tokens.shape == (3, 13)
    assert torch.equal(together.tokens[:, :3], prompts)
    for prompt, new in zip(prompts, together.new_tokens, strict=True):
        assert generate(model, prompt, 10).new_tokens.tolist() == new.tolist()


def test_the_prompt_goes_in_at_once_and_then_one_token_at_a_time_and_new_tokens_are_what_follows_it():
    script = Script([5, 6, 7])
    out = generate(script, torch.tensor([1, 2]), 3)
    assert script.fed == [[[1, 2]], [[5]], [[6]]]
    assert (out.tokens.tolist(), out.prompt_length, out.new_tokens.tolist()) == ([1, 2, 5, 6, 7], 2, [5, 6, 7])


@pytest.mark.parametrize(
    ("rows", "prompt", "end", "new"),
    [
        # Stops when every row has ended, and fills up the finished ones.
        ([[5, 0, 7, 7], [6, 6, 0, 8]], [[1, 2], [3, 4]], 0, [[5, 0, 0], [6, 6, 0]]),
        ([[5, 0, 7, 7]], [0, 1, 0], 0, [5, 0]),  # in the prompt it finishes nothing
        ([[5, 0, 7, 7]], [1], None, [5, 0, 7, 7]),  # without a name it is a token like any other
        # Each of several ends a row, and the first of them fills it up.
        ([[5, 7, 3, 3], [6, 6, 0, 8]], [[1, 2], [3, 4]], (0, 7), [[5, 7, 0], [6, 6, 0]]),
    ],
)
def test_generation_ends_with_the_end_of_text_that_it_writes(rows, prompt, end, new):
    assert generate(Script(*rows), prompt, 4, end_of_text=end).new_tokens.tolist() == new


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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 1e30, 10**30])  # the last two are uniform
@pytest.mark.parametrize("top_k", [None, 3])
def test_probabilities_are_the_softmax_at_the_temperature_of_the_likeliest_tokens(temperature, top_k):
    logits = torch.tensor([2.0, -1.0, 0.5, 1.5, 0.0, -0.5])
    kept = logits.topk(top_k or 6).indices
    weights = torch.zeros(6).double().index_copy(0, kept, (logits[kept].double() / float(temperature)).exp())
    found = probabilities(logits.expand(2, 3, -1), temperature, top_k)
    assert_close(found, (weights / weights.sum()).expand(2, 3, -1), rtol=1e-6, atol=0)


def test_draws_follow_their_probabilities_which_need_not_add_up_to_1():
    weights = torch.tensor([0.1, 0.0, 0.25, 0.05, 0.0])
    drawn = draw(weights.expand(20_000, -1), torch.Generator().manual_seed(0))
    assert_drawn_from(drawn.bincount(minlength=5), weights / weights.sum())


def test_the_whole_way_through_a_model_follows_its_softmax(model):
    prompt = torch.tensor([3, 1, 4])
    out = generate(model, prompt.expand(4000, -1), 1, temperature=1.5, top_k=8, seed=1)
    with torch.no_grad():
        best = model(prompt[None])[0, -1].topk(8)
    weights = torch.zeros(512).index_copy(0, best.indices, (best.values / 1.5).softmax(0))
    assert_drawn_from(out.new_tokens[:, 0].bincount(minlength=512), weights)


@both_ways
def test_the_seed_alone_decides_the_text_and_the_global_random_state_is_neither_read_nor_moved(model, speculative):
    texts = []
    for seed, global_seed in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        texts.append(generate(model, [1, 2], 20, temperature=1.0, seed=seed, speculative=speculative).tokens)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_the_likeliest_one_is_the_greedy_choice_and_a_top_k_of_all_changes_nothing(model):
    def text(**options):
        return generate(model, [1, 2], 10, **options).tokens.tolist()

    assert text(temperature=3.0, top_k=1) == text()
    assert text(temperature=1.0, top_k=512) == text(temperature=1.0)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-37, 1e-40, 1e-46, 1e-60, 5e-324])
@pytest.mark.parametrize("logits", [[1.0, 3.0, 2.0], [-1e4, 1e4, 0.0], [-3e30, -1e30, -2e30]])
def test_a_small_temperature_is_greedy_and_overflows_nothing(logits, temperature):
    for tokens in (None, 3):
        assert probabilities(torch.tensor([logits]), temperature, tokens).tolist() == [[0.0, 1.0, 0.0]]


# ---------------------------------------------------------------------------------------------------
# Care


NO_PROMPTS = (
    [1.0], [1.5, 2], [[1, 2], [3]], [1, [2]], [True], ["1"], "ab", None, [None], [10**400], [2**64], {1: 2}, [1j],
)  # fmt: skip
NO_TEMPERATURES = (-0.1, float("nan"), float("inf"), 10**400, True, "1", None)


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        *((prompt, {}, "at least one token") for prompt in ([], [[]])),
        *((prompt, {}, r"\(T,\) or \(B, T\)") for prompt in (5, [[[1]]])),
        *(([1, token], {}, f"token {token}: tokens are 0 to 511") for token in (512, -1)),
        *((prompt, {}, "must be whole numbers") for prompt in NO_PROMPTS),
        *(([1], {"end_of_text": value}, "end_of_text .* must be whole numbers") for value in ("a", 1.0, True)),
        *(([1], {"end_of_text": value}, "end_of_text has token .*: tokens are 0 to 511") for value in (512, [3, -1])),
        *(([1], {"max_new_tokens": value}, f"max_new_tokens={value}") for value in (0, 2.0, True, 2**63)),
        *((prompt, {"max_new_tokens": 2**60}, "must be fewer, because") for prompt in ([1], [[1], [2]])),
        *(
            ([1], {"temperature": value}, "temperature=.* 0 \\(greedy\\) or more, and finite")
            for value in NO_TEMPERATURES
        ),
        *(([1], {"top_k": value}, f"top_k={value} .* at least 1 and at most 512") for value in (0, 513, 1.5, True)),
        *(([1], {"seed": value}, f"seed={value}") for value in (-1, 2**63, 0.5, True)),
    ],
)
def test_bad_input_is_refused_and_named(model, prompt, options, says):
    with pytest.raises(ValueError, match=says) as error:
        generate(model, prompt, **options)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_tokens_may_come_as_an_array_of_any_whole_numbers(model, dtype):
    expected = generate(model, [1, 2], 3).tokens.tolist()
    assert generate(model, np.array([1, 2], dtype=dtype), 3).tokens.tolist() == expected


@both_ways
def test_as_many_tokens_as_the_memory_can_cache_are_allowed_and_one_more_is_not(model, speculative, monkeypatch):
    allocated = []

    class Counted(Cache):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            allocated.append(self.buffer.nbytes)

    for module in ("model.mla", "inference.speculative"):
        monkeypatch.setattr(f"minids.{module}.Cache", Counted)
    prompts = [[1, 2], [3, 4]]
    generate(model, prompts, 8, speculative=speculative)
    room = sum(allocated)
    monkeypatch.setattr("minids.inference.request.total_memory", lambda device: room)
    assert generate(model, prompts, 8, speculative=speculative).tokens.shape == (2, 10)
    with pytest.raises(ValueError, match="max_new_tokens=9"):
        generate(model, prompts, 9, speculative=speculative)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@both_ways
def test_a_model_whose_logits_are_no_numbers_writes_nothing(value, temperature, speculative):
    broken = small_model().eval()
    with torch.no_grad():
        broken.lm_head.weight[7] = value
    with pytest.raises(ValueError, match="logits are not finite"):
        generate(broken, [1, 2], 3, temperature=temperature, speculative=speculative)


def test_without_mtp_modules_nothing_can_be_drafted():
    with pytest.raises(
        ValueError, match=r"^speculative=True is not possible: it must be False, because the model has no MTP modules"
    ):
        generate(small_model(num_nextn_predict_layers=0), [1, 2], speculative=True)


@pytest.mark.parametrize("training", [True, False])
@both_ways
def test_the_model_is_left_as_it_was_after_an_error_too(training, speculative):
    model, script = small_model().train(training), Script([5]).train(training)
    before = state(model)
    out = generate(model, [1, 2, 3], 5, speculative=speculative)
    with pytest.raises(IndexError):
        generate(script, [1], 3)  # the script has one token only
    assert all(module.training == training for module in (*model.modules(), script))
    assert_bitwise_equal(state(model), before)
    model.loss(out.tokens[None]).total.backward()  # nothing of it is kept from autograd
