"""The three products in FP8, against a loop over experts and tiles that rounds each tile by itself."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from configurations import examples, random_model
from helpers_training import small_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from minids.hub.names import is_fp8_matrix, released_name, released_tensors
from minids.model.linear import Linear
from minids.model.moe import Experts
from minids.quantization import products
from minids.quantization.accumulate import Register, accumulate
from minids.quantization.formats import E2M1, E4M3, E5M2, E5M6, Format, round_to
from minids.quantization.fp8 import dequantize, quantize
from minids.quantization.products import Recipe, forward, grouped_linear, input_grad, linear, use_fp8, weight_grad

FP8, EIGHT = torch.float8_e4m3fn, Recipe.of_block(8)
EXACT = Register(bits=10, promote=32, cut="products")  # the sum of its terms is exact in float32, in any order
# What each field is for: the results among y, dx and dW that it changes.
CHANGES = {
    "inputs": ((8, 8), "y dw"),
    "weights": ((1, 8), "y dx"),
    "gradients": ((8, 8), "dx"),
    "over_tokens": ((1, 8), "dw"),
    "format": (E5M2, "y dx dw"),
    "gradient_format": (E2M1, "dx dw"),
    "gradient_floor": (1e3, "dx dw"),
    "kept": (E5M6, "dw"),  # an argument of its own
    "power_of_two_scales": (True, "y dx dw"),
    "register": (EXACT, "y dx dw"),
}


def rounded(x: Tensor, tile: tuple[int, int] | None, **options) -> Tensor:
    """Each tile rounded by itself."""
    out, (down, across) = x.clone(), tile or x.shape
    for i in range(0, x.shape[0], down):
        for j in range(0, x.shape[1], across):
            here = (slice(i, i + down), slice(j, j + across))
            q = quantize(x[here], None, **options)
            out[here] = q.values.float() * q.scales
    return out


def by_hand(x: Tensor, weight: Tensor, dy: Tensor, counts: list[int], r: Recipe, kept: Format | None = None):
    """y, dx and dW, each with how far rounding in float32 may take its numbers."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        exact = a.double() @ b.double() if r.register is None else accumulate(a, b, r.register).double()
        return torch.stack([exact, a.abs().double() @ b.abs().double() * 2.0**-20])

    forth = partial(rounded, power_of_two_scales=r.power_of_two_scales, format=r.format)
    back = partial(forth, format=r.gradient_format, floor=r.gradient_floor)
    results = [[], [], []]
    for w, x_, dy_ in zip(weight, x.split(counts), dy.split(counts), strict=True):
        in_fprop, w = forth(x_, r.inputs), forth(w, r.weights)
        in_wgrad = rounded(x_, r.inputs, format=kept, power_of_two_scales=True) if kept else in_fprop
        results[0].append(product(in_fprop, w.T))
        results[1].append(product(back(dy_, r.gradients), w))
        results[2].append(product(back(dy_, r.over_tokens).T, forth(in_wgrad, r.over_tokens)))
    return [join(part, dim=1) for join, part in zip((torch.cat, torch.cat, torch.stack), results, strict=True)]


def operands(counts: list[int], X: int, Y: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, matrices and gradients of very different size: by token, by channel and by expert."""
    torch.manual_seed(seed)
    R, E = sum(counts), len(counts)
    x, weight, dy = torch.randn(R, X), torch.randn(E, Y, X), torch.randn(R, Y)
    x, dy = (t * torch.exp2(4 * torch.randn(R, 1)) * torch.exp2(2 * torch.randn(t.shape[1])) for t in (x, dy))
    weight *= torch.tensor([1, 1e5, 1e-2, 1, 1])[:E, None, None]  # one is 1e5 times larger
    return x.requires_grad_(), weight.requires_grad_(), dy * (torch.arange(R) % 5 != 4)[:, None]


def assert_close(ours, theirs) -> None:
    for one, (other, bound) in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert ((one - other).abs() <= bound).all()


def results(x: Tensor, weight: Tensor, dy: Tensor, *options) -> list[Tensor]:
    y = grouped_linear(x, weight, *options)
    return [y, *torch.autograd.grad(y, (x, weight), dy)]


recipes = st.builds(
    partial(Recipe.of_block, 8),
    format=st.sampled_from([E4M3, E5M2]),
    gradient_format=st.sampled_from([E4M3, E5M2, E2M1]),
    power_of_two_scales=st.booleans(),
    register=st.sampled_from([None, EXACT]),
)


@examples(30)
@given(
    recipes, st.sampled_from([None, E5M6]), st.lists(st.integers(0, 20), min_size=1, max_size=5),
    *[st.integers(1, 20)] * 2, st.integers(0, 99),
)  # fmt: skip
def test_all_three_products_of_all_experts_are_those_of_a_loop_over_their_tiles(recipe, kept, counts, X, Y, seed):
    case, options = operands(counts, X, Y, seed), (counts, recipe, kept)
    assert_close(results(*case, *options), by_hand(*(t.detach() for t in case), *options))


@examples(20)
@given(recipes, st.integers(0, 40))
def test_a_gradient_that_is_2_to_the_k_times_smaller_loses_no_precision(recipe, k):
    x, weight, dy = operands(counts := [5, 0, 14], 12, 10)
    for one, small in zip(*(results(x, weight, d, counts, recipe)[1:] for d in (dy, dy * 2.0**-k)), strict=True):
        assert torch.equal(one * 2.0**-k, small)


@pytest.mark.parametrize("field", CHANGES)
def test_each_field_of_the_recipe_changes_the_products_that_it_names_and_no_other(field):
    value, named = CHANGES[field]
    case = operands([24], 40, 24)
    options = ([24], EIGHT, value) if field == "kept" else ([24], replace(EIGHT, **{field: value}))
    before, after = results(*case, [24], EIGHT), results(*case, *options)
    changed = [name for name, a, b in zip(("y", "dx", "dw"), before, after, strict=True) if not torch.equal(a, b)]
    assert changed == named.split()
    assert_close(after, by_hand(*(t.detach() for t in case), *options))


@pytest.mark.parametrize("shape", [(2, 3), (5,), (), (0,), (2, 0, 3)])
def test_a_linear_layer_has_any_leading_dimensions_and_the_dtype_of_its_input(shape):
    x = torch.randn(*shape, 12, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(7, 12, requires_grad=True)
    y = linear(x, weight, EIGHT)
    with torch.no_grad():
        assert torch.equal(linear(x, weight, EIGHT), y)
    y.backward(dy := torch.randn_like(y))
    n = x.shape[:-1].numel()
    flat = [t.detach().float().view(n, t.shape[-1]).requires_grad_() for t in (x, dy)]
    theirs = results(flat[0], weight[None], flat[1], [n], EIGHT)
    assert (y.shape, y.dtype, x.grad.dtype, weight.grad.dtype) == ((*shape, 7), *[torch.bfloat16] * 2, torch.float32)
    for ours, other in zip((y, x.grad, weight.grad), theirs, strict=True):
        assert torch.equal(ours, other.to(ours.dtype).view_as(ours))


@pytest.mark.parametrize("options", [(EIGHT,), (replace(EIGHT, register=EXACT), E5M6)])
def test_the_backward_pass_can_be_split(options):
    x, weight, dy = operands(counts := [3, 0, 14], 16, 24)
    y, saved = forward(x.detach(), weight.detach(), counts, *options)
    later = [y, input_grad(dy, saved), weight_grad(dy, saved)]
    assert all(map(torch.equal, later, results(x, weight, dy, counts, *options)))


@pytest.mark.parametrize(("frozen", "spared"), [(0, "input_grad"), (1, "weight_grad")])
def test_no_gradient_is_computed_for_what_is_frozen(frozen, spared, monkeypatch):
    monkeypatch.setattr(products, spared, None)  # to call it is an error now
    *case, dy = operands([3], 4, 6)
    case[frozen].requires_grad_(False)
    grouped_linear(*case, [3], EIGHT).backward(dy)
    assert case[1 - frozen].grad is not None


def test_a_block_larger_than_everything_is_one_block_each_and_costs_no_memory():
    case = (*operands([3, 0, 14], 16, 24), [3, 0, 14])
    assert all(map(torch.equal, results(*case, Recipe.of_block(2**62)), results(*case, Recipe.of_block(16 * 1024))))
    huge = [quantize(torch.randn(shape), (2**62,) * 2) for shape in ((16, 272), (272, 16))]
    theirs = dequantize(huge[0]) @ dequantize(huge[1])
    torch.testing.assert_close(products.on_tensor_cores(*huge), theirs, rtol=1e-4, atol=1e-4)


def test_a_recipe_with_an_impossible_tile_and_a_model_without_products_are_refused():
    for field in ("inputs", "weights", "gradients", "over_tokens"):
        for tile in ((0, 1), (1.0, 1), [1, 128], 128):
            with pytest.raises(ValueError, match=rf"^{field}="):
                Recipe(**{field: tile})
    for act in (partial(Recipe.of_block, 0), partial(use_fp8, nn.Linear(2, 2))):
        with pytest.raises(ValueError, match=r"^inputs=0 |^Linear has no linear layer or experts of minids"):
            act()


# ---------------------------------------------------------------------------------------------------
# A model


def test_the_products_of_a_model_are_in_fp8_where_the_released_matrices_are():
    assert Recipe() == Recipe.of_block(128, format=E4M3, gradient_format=E4M3), "V3's"
    model = random_model(config := small_config(q_lora_rank=16))
    use_fp8(model)
    names, found = released_tensors(model), set()
    for name, module in model.named_modules():
        if isinstance(getattr(module, "product", None), partial):
            stem = released_name(f"{name}.", config)
            found |= {n for n in names if n.startswith(stem)}
            assert module.product.func is {Linear: linear, Experts: grouped_linear}[type(module)]
            kept = {"kept": E5M6 if name.endswith("o_proj") else None} if isinstance(module, Linear) else {}
            assert module.product.keywords == {"recipe": Recipe()} | kept
    assert found == {name for name in names if is_fp8_matrix(name)}
    use_fp8(model, Recipe(after_attention=None))
    assert model.layers[0].self_attn.o_proj.product.keywords["kept"] is None


def test_a_layer_keeps_its_input_for_wgrad_in_8_bits_and_the_one_after_attention_in_e5m6():
    model = random_model(small_config())
    use_fp8(model, Recipe.of_block(16))
    layer = model.layers[0]
    for part, number in ((layer.mlp.up_proj, FP8), (layer.self_attn.o_proj, torch.float16)):
        kept = []
        with saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            part(torch.randn(32, part.weight.shape[1], requires_grad=True))
        x, scales, weight, of_weight = kept
        assert (x.dtype, weight.dtype, scales.shape) == (number, FP8, (32, x.shape[1] // 16))
        assert of_weight.numel() == weight.numel() // 16**2
    assert torch.equal(round_to(x, E5M6), x.float()), "of a float16, 12 bits"
    assert (scales.frexp().mantissa == 0.5).all(), "powers of two"


# ---------------------------------------------------------------------------------------------------
# Tensor cores

ARMS = {  # and the number of products that they compute, of 3 experts and 3 products
    "V3": (Recipe.of_block(32), 9),
    "powers of two": (Recipe.of_block(16, power_of_two_scales=True), 9),
    "one scale for weights": (Recipe.of_block(32, weights=None), 3),
    "tiles across tokens": (Recipe.of_block(32, over_tokens=(1, 32)), 6),
    "blocks of gradients": (Recipe.of_block(32, gradients=(32, 32)), 6),
    "E5M2": (Recipe.of_block(32, gradient_format=E5M2), 3),
    "a tile higher than an expert": (Recipe.of_block(32, over_tokens=(2**20, 1)), 9),
    "tiles of 8": (Recipe.of_block(8), 0),
    "14 bits": (Recipe.of_block(32, register=Register()), 0),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("arm", ARMS)
def test_tensor_cores_compute_what_is_simulated_or_are_not_used(arm, device, monkeypatch):
    if device == "cuda" and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)):
        pytest.skip("no GPU with FP8")
    (recipe, expected), counts = ARMS[arm], [16, 0, 103]
    on_cores, used = products.on_tensor_cores, []
    case = [t.detach().to(device).requires_grad_() for t in operands(counts, 64, 48)]
    monkeypatch.setattr(products, "on_tensor_cores", lambda *a: used.append(a) or on_cores(*a))
    monkeypatch.setattr(products, "_has_fp8", lambda device: True)  # torch's product runs on CPUs, too
    ours = results(*case, counts, recipe)
    assert len(used) == expected
    monkeypatch.setattr(products, "_has_fp8", lambda device: False)
    theirs = results(*case, counts, recipe)
    room = 2.0**8 if device == "cuda" else 2.0  # a tensor core's register has 14 bits: 2^-12 of the sum of magnitudes
    bounds = (bound.to(device) * room for _, bound in by_hand(*(t.detach().cpu() for t in case), counts, recipe))
    assert_close(ours, zip(theirs, bounds, strict=True))
    assert len(used) == expected
