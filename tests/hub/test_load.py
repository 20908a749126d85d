"""Loading: every bit comes back, and every fault is answered with one sentence that names it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configurations import configurations, examples, random_model, random_tokens
from helpers_hub import (
    COPIES,
    FLOATS,
    SMALL,
    assert_same,
    change_json,
    change_tensors,
    held_open,
    quantize_folder,
    refusal,
    stored,
)
from hypothesis import given
from safetensors import safe_open

from minids.hub.load import load_pretrained
from minids.hub.names import released_tensors
from minids.hub.save import save_pretrained

# ---------------------------------------------------------------------------------------------------
# There and back


@examples(25)
@given(configurations())
def test_what_was_saved_comes_back_bit_for_bit(tmp_path_factory, config):
    model, folder = random_model(config), tmp_path_factory.mktemp("hub") / "model"
    random_state = torch.get_rng_state()
    save_pretrained(model, folder)
    loaded = load_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded.config == config
    assert_same(loaded.state_dict(), model.state_dict())
    assert (loaded.lm_head.weight is loaded.embed_tokens.weight) == config.tie_word_embeddings
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_model_is_loaded_in_the_dtype_asked_for_with_its_bias_in_float32(folder, model, dtype):
    expected = {n: t if n.endswith("expert_bias") else t.to(dtype) for n, t in model.state_dict().items()}
    assert_same(load_pretrained(folder, dtype=dtype).state_dict(), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_model_is_ready_to_evaluate_and_to_train(tmp_path, tied):
    model = random_model(replace(SMALL, tie_word_embeddings=tied))
    save_pretrained(model, tmp_path / "model")
    loaded, tokens = load_pretrained(tmp_path / "model"), random_tokens(SMALL, 2, 12)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(tokens), model(tokens))
    loaded.train()
    loaded.loss(tokens).total.backward()
    assert all(parameter.grad.any() for name, parameter in loaded.named_parameters() if "experts" not in name)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter -= 0.1 * parameter.grad
    loaded.update_expert_bias(0.1)
    assert torch.equal(loaded.lm_head.weight, loaded.embed_tokens.weight) == tied
    assert_same(load_pretrained(tmp_path / "model").state_dict(), model.state_dict())  # the file has not changed


def test_nothing_shows_of_what_was_in_the_memory_before(folder, model):
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN and the largest integer
    try:
        loaded = load_pretrained(folder)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(dict(loaded.named_buffers()), dict(model.named_buffers()))
    assert_same(loaded.state_dict(), model.state_dict())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to ask")
def test_a_loaded_model_holds_no_file_open(sharded):
    with safe_open(next(sharded.glob("*.safetensors")), framework="pt"):
        assert held_open(sharded), "held_open sees what is open"
    loaded = load_pretrained(sharded)
    assert not held_open(sharded)
    del loaded


# ---------------------------------------------------------------------------------------------------
# What is stored twice, and what may be left out


def test_a_copy_may_have_another_dtype_or_be_absent(model, tmp_path):
    folder = tmp_path / "model"
    save_pretrained(model, folder, dtype=torch.bfloat16)
    change_tensors(folder, lambda tensors: tensors.update({COPIES[0]: tensors[COPIES[0]].float()}))
    change_tensors(folder, lambda tensors: tensors.pop(COPIES[1]))
    load_pretrained(folder)
    change_tensors(folder, lambda tensors: tensors[COPIES[0]][7, 3].mul_(1.0001))
    assert f"{COPIES[0]} in {folder}/model.safetensors must equal model.embed" in refusal(load_pretrained, folder)


def test_a_tied_head_may_be_stored_if_it_equals_the_embedding(tmp_path):
    model, folder = random_model(replace(SMALL, tie_word_embeddings=True)), tmp_path / "model"
    save_pretrained(model, folder)
    change_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[COPIES[1]].clone()}))
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())
    change_tensors(folder, lambda tensors: tensors["lm_head.weight"][0, 0].add_(1))
    for mtp in (True, False):
        assert re.match(r"lm_head\.weight in .* must equal model\.embed", refusal(load_pretrained, folder, mtp=mtp))


@pytest.mark.parametrize("modules", [0, 1, 2])
def test_without_mtp_the_main_model_is_left_whatever_is_in_the_modules(tmp_path, modules):
    model, folder = random_model(replace(SMALL, num_nextn_predict_layers=modules)), tmp_path / "model"
    save_pretrained(model, folder)
    change_tensors(folder, lambda tensors: [t.fill_(torch.nan) for n, t in tensors.items() if ".layers.2." in n])
    loaded = load_pretrained(folder, mtp=False)
    assert loaded.config == replace(SMALL, num_nextn_predict_layers=0)
    main = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("mtp.")}
    assert_same(loaded.state_dict(), main)


def test_modules_that_transformers_dropped_are_left_out_with_a_warning(folder, model):
    change_tensors(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("model.layers.2.")])
    with pytest.warns(UserWarning, match=rf"^{folder} holds nothing of the MTP modules: .* without\.$"):
        loaded = load_pretrained(folder)
    assert loaded.config == replace(model.config, num_nextn_predict_layers=0)
    assert_same(load_pretrained(folder, mtp=False).state_dict(), loaded.state_dict())  # asked for, and no warning


@pytest.mark.parametrize("rest", ["model.layers.2.enorm.weight", "model.layers.3."])
def test_of_modules_some_are_not_enough(tmp_path, rest):
    save_pretrained(random_model(replace(SMALL, num_nextn_predict_layers=2)), tmp_path / "model")
    extra = ("model.layers.2.", "model.layers.3.")
    change_tensors(
        tmp_path / "model",
        lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith(extra) and not n.startswith(rest)],
    )
    assert re.match(r"model\.layers\.2\..* is missing", refusal(load_pretrained, tmp_path / "model"))


def test_a_layer_too_many_is_not_taken_for_a_module(tmp_path):
    """A configuration of fewer layers than the weights have must not load the lower part of a model."""
    save_pretrained(random_model(replace(SMALL, num_hidden_layers=3, num_nextn_predict_layers=0)), tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", num_hidden_layers=2, num_nextn_predict_layers=1)
    assert "model.layers.2.enorm.weight is missing" in refusal(load_pretrained, tmp_path / "model")
    assert "model.layers.2." in refusal(load_pretrained, tmp_path / "model", mtp=False)


def test_frequencies_in_old_files_are_passed_over(folder, model):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())


# ---------------------------------------------------------------------------------------------------
# FP8

# Of these DeepSeek-V3 stores the matrices in FP8.
FP8_LAYERS = r"model\.layers\.\d+\.(self_attn|mlp)\..*_proj(_with_mqa)?\.weight"
NARROW = replace(SMALL, vocab_size=40, hidden_size=24, intermediate_size=40, moe_intermediate_size=12, q_lora_rank=10)


@pytest.mark.parametrize("block", [(128, 128), (16, 10), (10, 16), (10, 2**62)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_fp8_release_is_read_as_value_times_scale(tmp_path, block, dtype):
    folder = tmp_path / "model"
    save_pretrained(random_model(NARROW), folder)
    as_before = stored(folder)
    meant = quantize_folder(folder, block, FP8_LAYERS)
    assert len(meant) == 3 * 5 + 3 + 2 * 9 * 3, "attention, dense layer, routed and shared experts"
    pieces = released_tensors(load_pretrained(folder, dtype=dtype))
    expected = {name: (as_before | meant)[name].to(dtype) for name in pieces}
    expected |= {name: as_before[name] for name in pieces if "e_score_correction_bias" in name}
    assert_same(pieces, expected)


def test_a_copy_may_be_fp8_like_its_original(folder):
    quantize_folder(folder, (128, 128), r"lm_head\.weight")
    head = "lm_head.weight"
    change_tensors(
        folder, lambda t: t.update({f"{COPIES[1]}{end}": t[f"{head}{end}"].clone() for end in ("", "_scale_inv")})
    )
    load_pretrained(folder)
    change_tensors(folder, lambda tensors: tensors[f"{COPIES[1]}_scale_inv"].mul_(2))
    assert refusal(load_pretrained, folder).startswith(f"{COPIES[1]} in ")
