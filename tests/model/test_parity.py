"""The whole model against transformers' own classes, through the released files on disk, in both directions.

Same expert choices, same logits, and the same gradient of every parameter, on random small configurations of each
family; then the same text. `FULL=1 make test` takes 50 configurations per family and direction instead of 12.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import hf_oracle as hf
import pytest
import torch
from configurations import random_model, random_tokens
from families import FAMILIES, MSCALES, WITHOUT_MTP, draw, draw_ours, draw_theirs
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.modeling_layers import MtpModel

from minids.hub.load import load_pretrained
from minids.hub.save import save_pretrained
from minids.inference.generate import generate
from minids.model.deepseek import DeepSeek
from minids.text.tokenizer import Tokenizer

FULL = os.environ.get("FULL", "0") != "0"
SEEDS = range(321, 321 + (50 if FULL else 12))  # twelve from here have every case, as a test below says
LENGTH = 24

# ---------------------------------------------------------------------------------------------------
# The comparison


def our_logits(model: DeepSeek, tokens: Tensor) -> list[Tensor]:
    """Those of the main head, and of each MTP module."""
    hidden = model.hidden_states(tokens)[0]
    return [model.lm_head(h) for h in (hidden, *(h for h, _ in model.mtp_hidden_states(tokens, hidden)))]


def their_logits(twin: PreTrainedModel, mtp: MtpModel | None, tokens: Tensor) -> list[Tensor]:
    out = twin(tokens, output_hidden_states=True)
    logits, hidden = [out.logits], out.hidden_states[-1]
    for k in range(1, 1 + (0 if mtp is None else mtp.num_mtp_layers)):
        positions = torch.arange(k, tokens.shape[1])[None]
        hidden = mtp.forward_layer(k - 1, hidden[:, :-1], positions, None, input_ids=tokens[:, k:])
        logits.append(mtp.shared_head(hidden))
    return logits


def smallest_lead(model: DeepSeek, tokens: Tensor) -> float:
    """By how much any expert or group was chosen over another. What rounding can bridge says nothing."""
    records = hf.record_gates(model)
    with torch.no_grad():
        our_logits(model, tokens)
    leads = (hf.closest_call(gate, scores) for gate, (_, _, scores) in zip(model.gates, records, strict=True))
    return min(leads, default=float("inf"))


def decisive_tokens(model: DeepSeek, seed: int) -> Tensor:
    for attempt in range(50):
        tokens = random_tokens(model.config, batch_size=2, length=LENGTH, seed=1000 * attempt + seed)
        if smallest_lead(model, tokens) > 1e-4:
            return tokens
    raise AssertionError("every batch of tokens had a close call")


def assert_same_function(model: DeepSeek, twin: PreTrainedModel, mtp: MtpModel | None = None, seed: int = 0) -> None:
    # So that score plus bias is negative, whatever the score.
    assert all((gate.expert_bias <= -1).all() for gate in model.gates if gate.expert_bias is not None)
    tokens = decisive_tokens(model, seed)
    our_gates, their_gates = hf.record_gates(model), hf.record_hf_gates(*[m for m in (twin, mtp) if m is not None])
    ours, theirs = our_logits(model, tokens), their_logits(twin, mtp, tokens)
    for (_, our_choice, _), (_, _, their_choice) in zip(our_gates, their_gates, strict=True):
        assert torch.equal(our_choice.sort().values, their_choice.sort().values)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(logits.shape, generator=generator) for logits in ours]
    for side in (ours, theirs):
        sum((logits * direction).sum() for logits, direction in zip(side, directions, strict=True)).backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()}
    if mtp is not None:
        expected |= {f"mtp.{name}": p.grad for name, p in mtp.named_parameters() if name.startswith("layers.")}
    for name, parameter in model.named_parameters():
        name = f"mtp.{hf.hf_mtp_name(name[4:])}" if name.startswith("mtp.") else hf.hf_name(name)
        gradient = expected.pop(name)
        # 1e-5: the gate of one expert, renormalised, has no gradient but rounding.
        atol = max(1e-4 * gradient.abs().max().item(), 1e-5)
        assert_close(parameter.grad, gradient, rtol=1e-4, atol=atol, msg=name)
    assert not expected


# ---------------------------------------------------------------------------------------------------
# Both ways


@pytest.fixture
def folder(tmp_path):
    """One that is gone after the test: there are hundreds."""
    yield tmp_path / "model"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_save_is_the_same_function_in_transformers(family, seed, folder):
    model = random_model(draw_ours(family, seed), seed)
    # In one file and in several, with the modules' copies and without.
    save_pretrained(model, folder, mtp_copies=seed % 2 == 0, max_shard_bytes=40_000 if seed % 3 == 0 else 10**9)
    twin = hf.load_twin(folder)
    assert_same_function(model, twin, hf.load_mtp(twin), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_the_same_function_here(family, seed, folder):
    config = draw_theirs(family, seed)
    twin, mtp = hf.random_twin(config, seed), None
    if hf.mtp_layer_names(config):
        mtp = hf.randomize_twin(MtpModel(twin, config.num_nextn_predict_layers), seed)
        twin.save_pretrained(folder)
        with pytest.warns(UserWarning, match="nothing of the MTP modules"):
            main = load_pretrained(folder)
        tokens = decisive_tokens(main, seed)
        assert_close(main(tokens), twin(tokens).logits, rtol=1e-4, atol=1e-4)
        hf.add_mtp_modules(folder, twin, mtp)
    else:
        twin.save_pretrained(folder)
    assert_same_function(load_pretrained(folder), twin, mtp, seed)


@pytest.mark.parametrize("seed", SEEDS[::4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_folder_of_either_side_is_the_same_function_in_both(family, seed, folder):
    save_pretrained(random_model(draw_ours(family, seed), seed), folder, dtype=torch.bfloat16)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if name.endswith("_bias") else torch.bfloat16)
    twin = hf.load_twin(folder)
    assert_same_function(load_pretrained(folder), twin, hf.load_mtp(twin), seed)

    theirs = hf.random_twin(draw_theirs(family, seed), seed).to(torch.bfloat16)
    theirs.save_pretrained(folder.with_name("theirs"))
    model = load_pretrained(folder.with_name("theirs"), mtp=False)
    assert torch.equal(model.embed_tokens.weight, theirs.get_input_embeddings().weight.float())
    assert_same_function(model, hf.load_twin(folder.with_name("theirs")), seed=seed)


# ---------------------------------------------------------------------------------------------------
# Decoding


@pytest.mark.parametrize("seed", SEEDS[::4])
@pytest.mark.parametrize("family", WITHOUT_MTP)
@torch.no_grad()
def test_both_decode_the_same_from_their_caches(family, seed, folder):
    model = random_model(draw_ours(family, seed), seed)
    save_pretrained(model, folder)
    twin = hf.load_twin(folder)
    tokens = decisive_tokens(model, seed)
    our_cache, their_cache = model.new_cache(len(tokens), LENGTH), DynamicCache(config=twin.config)
    for step in tokens.split([9, 1, 1, 1, 4, 1, 7], dim=1):
        theirs = twin(step, past_key_values=their_cache, use_cache=True).logits
        assert_close(model(step, our_cache), theirs, rtol=1e-4, atol=1e-4)
    assert their_cache.get_seq_length() == our_cache[0].length == LENGTH


NEW_TOKENS = 30
TEXT = "Experts stand in groups, one per node. A token goes to few of them. "


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], 300)


def writer(family: str, depth: int = 0) -> DeepSeek:
    config = draw_ours(family, SEEDS[0])
    return random_model(replace(config, vocab_size=300, eos_token_id=0, num_nextn_predict_layers=depth))


def decisive_text(model: DeepSeek, folder: Path, tokenizer: Tokenizer) -> tuple[dict, Tensor]:
    """A prompt, read by the tokenizer in the folder, and the prompt with our greedy continuation."""
    for start in range(20):
        written = TEXT[start : start + 20]
        prompt = dict(AutoTokenizer.from_pretrained(folder)(written, return_tensors="pt"))
        assert prompt["input_ids"].tolist() == [[tokenizer.end_of_text, *tokenizer.encode(written)]]
        text = generate(model, prompt["input_ids"], NEW_TOKENS, end_of_text=tokenizer.end_of_text)
        whole = text.new_tokens.shape[1] == NEW_TOKENS
        with torch.no_grad():
            best, second = torch.cat(our_logits(model, text.tokens), dim=1).topk(2).values.unbind(dim=2)
        if whole and (best - second).min() > 1e-3 and smallest_lead(model, text.tokens) > 1e-4:
            return prompt, text.tokens
    raise AssertionError("every text had a close call or an early end")


def their_text(twin: PreTrainedModel, prompt: dict, **settings) -> Tensor:
    # The prompt has its mask: token 0 begins every text, and transformers would take it for padding.
    return twin.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False, **settings)


@pytest.mark.parametrize("family", WITHOUT_MTP)
def test_both_write_the_same_text(family, folder, tokenizer):
    model = writer(family)
    save_pretrained(model, folder, tokenizer=tokenizer)
    prompt, text = decisive_text(model, folder, tokenizer)
    assert torch.equal(their_text(hf.load_twin(folder), prompt), text)


@torch.no_grad()
def passes_with_drafts(model: DeepSeek, text: Tensor, prompt_length: int) -> int:
    """How often the main model must run, if each time our modules draft on and the right drafts are kept."""
    drafts = [logits[0].argmax(dim=-1).tolist() for logits in our_logits(model, text)[1:]]
    tokens, passes, written = text[0].tolist(), 1, prompt_length + 1
    while written < len(tokens):
        passes += 1
        read = written - 2  # the last position of the main model's hidden states
        for draft in drafts:
            if written == len(tokens) or draft[read] != tokens[written]:
                break
            written += 1
        written += 1
    return passes


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_both_write_the_same_text_when_our_modules_draft_it_for_transformers(trained, depth, folder, tokenizer):
    model = writer("deepseek_v3", depth)
    if trained:  # else no draft is right
        tokens = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(TEXT * 3)[:40]]])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            model.loss(tokens, mtp_weight=1.0).total.backward()
            optimizer.step()
    save_pretrained(model, folder, tokenizer=tokenizer)
    prompt, text = decisive_text(model, folder, tokenizer)
    expected = passes_with_drafts(model, text, prompt["input_ids"].shape[1])
    assert expected < NEW_TOKENS or not trained
    twin, passes = hf.load_twin(folder), []
    hf.load_mtp(twin)
    twin.model.register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(their_text(twin, prompt, use_mtp=True), text)
    assert len(passes) == expected


# ---------------------------------------------------------------------------------------------------
# What this covers


CASES = {
    "llama": dict(num_key_value_heads={1, 2, 3, 4, 6}, head_dim={None, 8, 10}),
    "deepseek": dict(moe_layer_freq={1, 2}),
    "deepseek_v2": dict(topk_method={"greedy", "group_limited_greedy"}, routed_scaling_factor={1.0, 2.5, 16.0}),
    "deepseek_v3": dict(
        n_group={1, 2, 4}, n_shared_experts={1, 2, 3}, first_k_dense_replace={0, 1, 2, 3}, q_lora_rank={None, 12},
        norm_topk_prob={False, True},
    ),
    "deepseek_v3+mtp": dict(num_nextn_predict_layers={1, 2}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configurations_have_every_case(family):
    drawn = [draw(family, seed) for seed in SEEDS]
    for entry, values in (CASES[family] | dict(tie_word_embeddings={False, True})).items():
        assert {entries[entry] for entries in drawn} == values
    if family == "deepseek":  # has no YaRN
        return
    yarns = [entries["rope_scaling"] for entries in drawn if entries["rope_scaling"]]
    assert 0 < len(yarns) < len(drawn)
    assert all(any(yarn.items() >= entry.items() for yarn in yarns) for entry in MSCALES)
    assert any("mscale" not in yarn for yarn in yarns)
    assert all(yarn["original_max_position_embeddings"] < LENGTH for yarn in yarns), "YaRN stretches every sequence"
