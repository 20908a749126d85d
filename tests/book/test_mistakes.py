"""Each mistake planted in the library: the test that is marked to kill it passes without and fails with it.

Such a test has the marker `kills("name of the mistake")`; where it has parameters, the marker names their values.
"""

from collections import defaultdict
from contextlib import suppress
from inspect import signature
from pathlib import Path

import pytest
import torch

from minids import ModelConfig
from minids.book.mistakes import WRONG_VARIANTS
from minids.book.planting import WrongVariant, poisoned_memory
from minids.cost.cache import kv_cache_bytes, kv_cache_elements
from minids.model.mla import MLA
from minids.model.moe import Gate
from minids.model.rope import softmax_scale

TESTS = Path(__file__).parents[1]
variants = pytest.mark.parametrize("variant", WRONG_VARIANTS.values(), ids=WRONG_VARIANTS)


@pytest.fixture(scope="module")
def marked(request) -> dict[str, list]:
    """The marked tests of all files, and the arguments to call them with, by the mistake that they kill."""
    found = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        if "@pytest.mark.kills(" in path.read_text(encoding="utf-8"):
            module = pytest.Module.from_parent(request.session, path=path).obj  # imported as pytest imports it
            for test in vars(module).values():
                for mark in getattr(test, "pytestmark", []):
                    if mark.name == "kills":
                        found[mark.args[0]].append((test, mark.kwargs))
    return dict(found)


def test_every_mistake_has_a_test_that_is_marked_to_kill_it(marked):
    assert marked.keys() == WRONG_VARIANTS.keys()


@variants
def test_the_marked_test_passes_on_the_library_and_fails_on_the_mistake(variant, marked, tmp_path):
    def run(test, arguments: dict, folder: Path):
        torch.manual_seed(0)
        folder.mkdir(parents=True)
        test(**arguments, **({"tmp_path": folder} if "tmp_path" in signature(test).parameters else {}))

    for test, arguments in marked[variant.name]:
        run(test, arguments, tmp_path / test.__name__ / "right")
        with variant.planted(), pytest.raises(AssertionError):
            run(test, arguments, tmp_path / test.__name__ / "wrong")
        run(test, arguments, tmp_path / test.__name__ / "right again")


@variants
def test_a_mistake_is_a_few_lines_and_shows_them_also_while_it_is_planted(variant):
    before = variant.diff()
    lines = before.splitlines()
    changed = [line for line in lines if line.startswith(("+", "-"))]
    assert 2 <= len(changed) + (len(changed) == 1) <= 16
    assert all(any(right in line for line in lines) for _, right, _ in variant.edits if "\n" not in right)
    with variant.planted():
        assert variant.diff() == WrongVariant("the same", "?", variant.edits).diff() == before


def test_the_library_is_itself_again_after_an_error():
    code = MLA.attend_absorbed.__code__
    with suppress(KeyError), WRONG_VARIANTS["the scale of the latent"].planted():
        assert MLA.attend_absorbed.__code__ is not code
        raise KeyError
    assert MLA.attend_absorbed.__code__ is code


def test_two_mistakes_can_be_planted_at_once_unless_they_are_in_one_function():
    names = "the bias weighs", "no scaling factor", "half-split RoPE in MLA"
    bias_weighs, no_scaling, half_split = map(WRONG_VARIANTS.get, names)
    right = Gate.forward.__code__, MLA.queries.__code__
    with bias_weighs.planted():
        planted = Gate.forward.__code__
        with half_split.planted():
            assert MLA.queries.__code__ is not right[1]
        for again in (bias_weighs, no_scaling):
            with pytest.raises(ValueError, match=r"^Gate\.forward has a mistake planted already"), again.planted():
                pass
        assert (Gate.forward.__code__, MLA.queries.__code__) == (planted, right[1])
    assert (Gate.forward.__code__, MLA.queries.__code__) == right


def test_poisoned_memory_is_nan_until_it_is_written_also_in_a_block_within():
    with poisoned_memory():
        with poisoned_memory():
            pass
        assert torch.ones(2, 2).new_empty(3).isnan().all()
        assert torch.zeros(3).isfinite().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_edit_that_no_longer_fits_is_refused_before_anything_changes():
    code = MLA.queries.__code__
    variant = WrongVariant("?", "?", ((MLA.queries, "interleaved=True", "interleaved=False"), (MLA.latent, "gone", "")))
    with pytest.raises(ValueError, match=r"'gone' occurs 0 times in MLA\.latent"), variant.planted():
        pass
    assert MLA.queries.__code__ is code


def test_the_numbers_in_the_texts_are_right():
    v3, v2 = ModelConfig.preset("deepseek-v3"), ModelConfig.preset("deepseek-v2")
    per_layer, heads = kv_cache_elements(v3) // v3.num_hidden_layers, v3.num_attention_heads
    instead = f"are kept instead of {per_layer}"
    rotated = v3.kv_lora_rank + heads * v3.qk_rope_head_dim
    expanded = heads * (v3.qk_nope_head_dim + v3.v_head_dim) + v3.qk_rope_head_dim
    biases = torch.linspace(6.82, 7.06, 238)
    rounded = biases.bfloat16().unique().float()
    cast = torch.tensor([-2.0, 0.3, 0.0]).to(torch.float8_e8m0fnu).tolist()
    for name, text in {
        "the bias is kept in BF16": f"of {len(biases.unique())} between {biases[0]:.2f} and {biases[-1]:.2f}, "
        f"where BF16 numbers are 1/{1 / rounded.diff().max():.0f} apart, {len(rounded)} are left",
        "no YaRN temperature": f"{softmax_scale(v3) * v3.qk_head_dim**0.5:.2f} in V3",
        "a rotated key per head": f"from {per_layer} numbers per token and layer to {rotated:,}",
        "expanded keys and values are cached": f"{expanded:,} numbers per token and layer {instead}",
        "the latent counts twice": f"{kv_cache_bytes(v3):,} bytes",
        "a draft counts as certain": f"(0.5, 0.3, 0.2) the acceptance is {0.5**2 + 0.3**2 + 0.2**2:.2f} instead of 1",
        "powers of two count as floats": f"-2 as {cast[0]:g}, 0.3 as {cast[1]:g}, 0 as {cast[2]:.0e}",
        "no scaling factor": f"of {v3.routed_scaling_factor:g} in V3 and of {v2.routed_scaling_factor:g} in V2",
    }.items():
        assert text in WRONG_VARIANTS[name].effect


def test_with_expanded_keys_and_values_every_output_is_right():
    """As its text says: no test of outputs can find it."""
    config = ModelConfig.preset("tiny")
    layer, x = MLA(config), torch.randn(1, 5, config.hidden_size)
    rotation = torch.randn(5, config.qk_rope_head_dim // 2).mul(1j).exp()

    def in_two_parts():
        cache = layer.new_cache(1, 5)
        return torch.cat([layer(x[:, :3], rotation[:3], cache), layer(x[:, 3:], rotation[3:], cache)], dim=1)

    right = in_two_parts()
    with WRONG_VARIANTS["expanded keys and values are cached"].planted():
        torch.testing.assert_close(in_two_parts(), right)
