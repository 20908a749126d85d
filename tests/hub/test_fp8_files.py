"""A model in FP8 on disk: what is stored in which form, and what it stands for here and in transformers.

The oracles: V3's own census of numbers, one multiplication by the scales written out, and transformers' loading.
"""

import json
import re
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configurations import random_model, random_tokens
from helpers_hub import BIAS, EXPERT, SCALE, SMALL, assert_same, change_tensors, contents, refusal, stored
from helpers_training import small_config
from hf_oracle import hf_config, hf_mtp_name, hf_name, load_mtp, load_twin, random_twin
from torch import Tensor
from transformers import AutoModelForCausalLM

from minids.cost.parameters import released_bytes, released_numbers
from minids.hub.load import load_pretrained
from minids.hub.names import released_tensors
from minids.hub.save import save_pretrained, transformers_reads
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek

FP8, BLOCKS = torch.float8_e4m3fn, (128, 128)
# Of these DeepSeek-V3 stores the matrices in FP8.
FP8_LAYERS = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\..*_proj(_with_mqa)?\.weight")
# Matrices of 130 rows and of 160 columns: a block of 128, and a rest.
EDGES = small_config(vocab_size=40, hidden_size=160, moe_intermediate_size=130, n_routed_experts=4, n_group=2)
EDGES = replace(EDGES, topk_group=1)
ORDINARY = ModelConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, intermediate_size=24,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
NAMES = {"F8_E4M3": FP8, "BF16": torch.bfloat16, "F32": torch.float32}


def save_fp8(model: DeepSeek, folder: Path, block: tuple[int, int] = BLOCKS, **options) -> dict[str, Tensor]:
    """Save in FP8; return what is stored."""
    save_pretrained(model, folder, dtype=FP8, weight_block_size=block, **options)
    return stored(folder)


def spread(scales: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """The scale of every number."""
    rows = scales.float().repeat_interleave(min(block[0], shape[0]), dim=0)
    return rows.repeat_interleave(min(block[1], shape[1]), dim=1)[: shape[0], : shape[1]]


def bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.view(torch.uint8) for name, tensor in tensors.items()}


# ---------------------------------------------------------------------------------------------------
# What is stored


@pytest.mark.parametrize("config", [SMALL, EDGES, replace(EDGES, num_nextn_predict_layers=2, n_shared_experts=2)])
def test_the_numbers_of_each_dtype_are_those_of_v3s_release(tmp_path, config):
    tensors, count = save_fp8(random_model(config), tmp_path / "model"), Counter()
    for name, tensor in tensors.items():
        stem = name.removesuffix("_scale_inv")
        expected = torch.bfloat16
        if name != stem or name.endswith("e_score_correction_bias"):
            expected = torch.float32
        elif FP8_LAYERS.fullmatch(name):
            expected = FP8
        assert tensor.dtype == expected, name
        assert (stem + "_scale_inv" in tensors) == bool(FP8_LAYERS.fullmatch(stem))
        if name != stem:
            assert tensor.shape == tuple(-(-n // 128) for n in tensors[stem].shape), name
        count[tensor.dtype] += tensor.numel()
    assert count == {NAMES[name]: numbers for name, numbers in released_numbers(config).items()}
    assert sum(tensor.nbytes for tensor in tensors.values()) == released_bytes(config)


@pytest.mark.parametrize(("power_of_two_scales", "more"), [(False, {}), (True, {"scale_fmt": "ue8m0"})])
def test_the_configuration_has_v3s_entry_or_that_of_v3_1_with_powers_of_two(model, tmp_path, power_of_two_scales, more):
    tensors = save_fp8(model, tmp_path / "model", (16, 8), power_of_two_scales=power_of_two_scales)
    entries = json.loads((tmp_path / "model" / "config.json").read_text())
    v3 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [16, 8]}
    assert (entries["quantization_config"], entries["torch_dtype"]) == (v3 | more, "bfloat16")
    scales = torch.cat([tensor.flatten() for name, tensor in tensors.items() if name.endswith("_scale_inv")])
    assert (scales.frexp().mantissa == 0.5).all() == power_of_two_scales
    save_pretrained(model, tmp_path / "model", overwrite=True)
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert not any(name.endswith("_scale_inv") for name in stored(tmp_path / "model"))


def test_a_model_in_several_files_has_every_scale_in_the_index_beside_its_matrix(tmp_path):
    model, folder = random_model(EDGES), tmp_path / "model"
    whole = save_fp8(model, tmp_path / "whole")
    assert_same(bits(save_fp8(model, folder, max_shard_bytes=60_000)), bits(whole))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    places = index["weight_map"]
    assert len(set(places.values())) > 5
    assert places.keys() == whole.keys()
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in whole.values())}
    assert all(places[name] == places[name.removesuffix("_scale_inv")] for name in places)
    assert_same(load_pretrained(folder).state_dict(), load_pretrained(tmp_path / "whole").state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_16_bits_is_quantised_as_the_same_numbers_in_float32(tmp_path, dtype):
    model = random_model(SMALL).to(dtype)
    half = save_fp8(model, tmp_path / "16")
    assert_same(bits(save_fp8(model.float(), tmp_path / "32")), bits(half))


# ---------------------------------------------------------------------------------------------------
# What it stands for


@pytest.mark.kills("block size guessed from shapes", power_of_two_scales=False)
@pytest.mark.parametrize("power_of_two_scales", [False, True])
def test_what_is_loaded_is_value_times_scale_and_near_what_was_saved(tmp_path, power_of_two_scales):
    """In 130 rows with 2 scales, row 65 is still in the first block."""
    model, original = random_model(EDGES), {}
    for name, piece in released_tensors(model).items():
        if FP8_LAYERS.fullmatch(name):
            piece[: len(piece) // 2 + 1] *= 100
        original[name] = piece.clone()
    tensors = save_fp8(model, tmp_path / "model", power_of_two_scales=power_of_two_scales)
    for name, piece in released_tensors(load_pretrained(tmp_path / "model")).items():
        if name + "_scale_inv" in tensors:
            scales = spread(tensors[name + "_scale_inv"], piece.shape, BLOCKS)
            assert torch.equal(piece, tensors[name].float() * scales), name
            assert ((piece - original[name]).abs() <= original[name].abs() / 16 + scales / 1024).all(), (
                "3 bits, or 2^-10"
            )
        else:
            assert torch.equal(piece, original[name].to(tensors[name].dtype).float())


def test_a_matrix_that_is_a_hundred_thousand_times_larger_costs_no_other_any_precision(tmp_path):
    """Each expert is quantised on its own, and so are its gate and up matrices, which share a tensor in memory."""
    model = random_model(EDGES)
    pieces = released_tensors(model)
    large = [f"model.layers.1.mlp.experts.2.{part}.weight" for part in ("gate_proj", "down_proj")]
    ordinary = save_fp8(model, tmp_path / "ordinary")
    for name in large:
        pieces[name] *= 1e5
    tensors = save_fp8(model, tmp_path / "model")
    changed = {name for name, values in bits(tensors).items() if not torch.equal(values, bits(ordinary)[name])}
    assert (
        {f"{name}_scale_inv" for name in large} <= changed <= {f"{n}{end}" for n in large for end in ("", "_scale_inv")}
    )


@pytest.mark.kills("amax of zero")
def test_a_matrix_of_zeros_is_stored_as_zeros_with_a_finite_scale(tmp_path):
    model = random_model(SMALL)
    released_tensors(model)[EXPERT].zero_()
    tensors = save_fp8(model, tmp_path / "model")
    assert not tensors[EXPERT].float().any()
    assert tensors[SCALE].item() == torch.tensor(1e-4) / 448
    assert not released_tensors(load_pretrained(tmp_path / "model"))[EXPERT].any()


def test_saved_again_a_loaded_model_keeps_every_bit(tmp_path):
    """A block's largest value is 448, and 448 times its scale is divided by 448 again.

    This gives the same scale because the scale is itself a quotient by 448: not every number comes back.

    With powers of two it may be 224. Then the scale is halved and the values double: the same numbers.
    """
    model = random_model(EDGES)
    for i, piece in enumerate(released_tensors(model).values()):
        piece *= 10.0 ** (i % 9 - 6)  # also below the least amax
    first = save_fp8(model, tmp_path / "1", (16, 16))
    again = save_fp8(load_pretrained(tmp_path / "1"), tmp_path / "2", (16, 16))
    assert_same(bits(again), bits(first))
    powers = [save_fp8(model, tmp_path / "3", (16, 16), power_of_two_scales=True)]
    for before, after in ("34", "45"):
        loaded = load_pretrained(tmp_path / before)
        powers.append(save_fp8(loaded, tmp_path / after, (16, 16), power_of_two_scales=True))
        assert_same(load_pretrained(tmp_path / after).state_dict(), loaded.state_dict())
    scales = torch.cat([(a / b).flatten() for (n, a), b in zip(powers[1].items(), powers[0].values(), strict=True)
                        if n.endswith("_scale_inv")])  # fmt: skip
    assert set(scales.tolist()) == {0.5, 1.0}
    assert_same(bits(powers[2]), bits(powers[1]))


# ---------------------------------------------------------------------------------------------------
# Powers of two as a dtype: F8_E8M0


def test_scales_stored_as_powers_of_two_are_read(model, tmp_path):
    names = [
        name
        for name in save_fp8(model, tmp_path / "model", (16, 8), power_of_two_scales=True)
        if name.endswith("_scale_inv")
    ]
    as_floats = load_pretrained(tmp_path / "model").state_dict()
    change_tensors(tmp_path / "model", lambda t: t.update({n: t[n].to(torch.float8_e8m0fnu) for n in names}))
    assert {stored(tmp_path / "model")[name].element_size() for name in names} == {1}
    assert_same(load_pretrained(tmp_path / "model").state_dict(), as_floats)
    change_tensors(tmp_path / "model", lambda t: t[names[3]].view(torch.uint8)[0, 0].fill_(255))  # NaN
    assert "is NaN or infinite in places" in refusal(load_pretrained, tmp_path / "model")


@pytest.mark.kills("powers of two count as floats", name=EXPERT)
@pytest.mark.parametrize("name", [EXPERT, BIAS, "model.norm.weight", "model.embed_tokens.weight"])
def test_a_weight_stored_as_powers_of_two_is_refused(tmp_path, name):
    """torch calls them floats, and the cast turns -2 into 2, 0.3 into 0.25 and 0 into 6e-39."""
    save_pretrained(random_model(SMALL), tmp_path / "model")
    change_tensors(tmp_path / "model", lambda t: t.update({name: t[name].to(torch.float8_e8m0fnu)}))
    try:
        load_pretrained(tmp_path / "model")
    except ValueError as error:
        told = str(error)
    else:
        told = "loaded"
    assert told.startswith(f"{name} is stored as F8_E8M0 in {tmp_path / 'model'}/model.safetensors: it must be F32, ")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.float64, torch.float8_e5m2])
def test_scales_of_another_dtype_are_refused(model, tmp_path, dtype):
    """Among them bytes that hold an exponent, as some MXFP8 files have."""
    save_fp8(model, tmp_path / "model")
    change_tensors(tmp_path / "model", lambda t: t.update({SCALE: t[SCALE].to(dtype)}))
    told = refusal(load_pretrained, tmp_path / "model")
    assert re.fullmatch(rf"{re.escape(SCALE)} is stored as \w+ in .*: it must be F32, BF16, F16, or F8_E8M0\.", told)


@pytest.mark.parametrize(
    "block", [128, [128, 128], "ab", (128,), (128, 128, 1), (0, 128), (128, -1), (128.0, 128), (True, 128)]
)
def test_blocks_of_impossible_size_are_not_saved(model, tmp_path, block):
    (tmp_path / "model").mkdir()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"^weight_block_size=[^\n]* is not possible: it must be [^\n]*\.$"):
        save_fp8(model, tmp_path / "model", block)
    assert contents(tmp_path) == before


# ---------------------------------------------------------------------------------------------------
# transformers


def their_weights(folder: Path) -> dict[str, Tensor]:
    twin = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation="eager")
    return twin.state_dict()


def our_weights(folder: Path) -> dict[str, Tensor]:
    loaded = load_pretrained(folder, dtype=torch.bfloat16, mtp=False).state_dict()
    return {hf_name(name): tensor for name, tensor in loaded.items()}


@pytest.mark.parametrize(("block", "power_of_two_scales"), [((8, 16), False), ((8, 8), True), ((32, 32), False)])
def test_where_the_blocks_divide_the_widths_transformers_reads_the_same_weights(tmp_path, block, power_of_two_scales):
    """A side that is smaller than the block has one block, of that side."""
    folder, model = tmp_path / "model", random_model(SMALL)
    save_fp8(model, folder, block, power_of_two_scales=power_of_two_scales)
    assert_same(our_weights(folder), their_weights(folder))
    loaded, twin = load_pretrained(folder), load_twin(folder).float()
    modules = load_mtp(twin).state_dict()
    for name, tensor in loaded.mtp.state_dict().items():
        assert torch.equal(modules[hf_mtp_name(name)], tensor), name
    tokens = random_tokens(SMALL, 2, 12)
    with torch.no_grad():
        ours, theirs = loaded(tokens), twin(tokens).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert (model(tokens) - theirs).norm() > 0.01 * theirs.norm(), "FP8 shows"
    plain = random_twin(
        hf_config(SMALL), seed=1
    )  # what was loaded from FP8 itself cannot be saved by transformers 5.23
    plain.load_state_dict(twin.state_dict())
    plain.save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they save no MTP modules
        again = load_pretrained(tmp_path / "theirs").state_dict()
    assert_same(again, {name: tensor for name, tensor in loaded.state_dict().items() if not name.startswith("mtp.")})


@pytest.mark.parametrize("config", [ORDINARY, replace(SMALL, q_lora_rank=None, tie_word_embeddings=True)])
def test_transformers_reads_other_families_in_fp8_too(tmp_path, config):
    save_fp8(random_model(config), tmp_path / "model", (8, 8))
    assert_same(our_weights(tmp_path / "model"), their_weights(tmp_path / "model"))


def test_where_they_do_not_transformers_takes_the_blocks_for_smaller_ones_and_we_do_not(tmp_path):
    """If this fails with a later transformers that reads the configuration, the docstring of save_pretrained can go."""
    tensors = save_fp8(random_model(SMALL), tmp_path / "model", (16, 16))  # 24 rows, of kv_a_proj, have 2 scales
    ours, theirs = our_weights(tmp_path / "model"), their_weights(tmp_path / "model")
    assert [transformers_reads(random_model(SMALL), block) for block in (8, 16, 32)] == [True, False, True]
    different = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert different == {f"model.layers.{i}.self_attn.kv_a_proj_with_mqa.weight" for i in (0, 1)}
    for name in different:
        values, scales = tensors[name], tensors[name + "_scale_inv"]
        for mine, block in ((ours, (16, 16)), (theirs, (12, 16))):
            assert torch.equal(mine[name], (values.float() * spread(scales, values.shape, block)).bfloat16())
