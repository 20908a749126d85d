"""The three products in FP8, against a loop over experts and tiles that rounds each tile by itself."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from configurations import examples, random_model
from helpers_training import small_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from minids.hub.names import is_fp8_matrix, released_name, released_tensors
from minids.model.linear import Linear
from minids.model.moe import Experts
from minids.quantization import products
from minids.quantization.accumulate import Register, accumulate
from minids.quantization.formats import E2M1, E4M3, E5M2, E5M6, round_to
from minids.quantization.fp8 import dequantize, quantize
from minids.quantization.products import Recipe, forward, grouped_linear, input_grad, linear, use_fp8, weight_grad

FP8, EIGHT = torch.float8_e4m3fn, Recipe.of_block(8)
EXACT = Register(bits=10, promote=32, reading="products")  # the sum of its terms is exact in float32, in any order
# What each field is for: the results among y, dx and dW that it changes.
CHANGES = {
    "inputs": ((8, 8), "y dw"),
    "weights": ((1, 8), "y dx"),
    "gradients": ((8, 8), "dx"),
    "over_tokens": ((1, 8), "dw"),
    "format": (E5M2, "y dx dw"),
    "gradient_format": (E2M1, "dx dw"),
    "cached": (E5M6, "dw"),
    "power_of_two_scales": (True, "y dx dw"),
    "register": (EXACT, "y dx dw"),
}


def rounded(x: Tensor, tile: tuple[int, int] | None, recipe: Recipe, format=None, power=False) -> Tensor:
    """Each tile rounded by itself."""
    out, (down, across) = x.clone(), tile or x.shape
    for i in range(0, x.shape[0], down):
        for j in range(0, x.shape[1], across):
            here = (slice(i, i + down), slice(j, j + across))
            q = quantize(x[here], None, power_of_two_scales=recipe.power_of_two_scales or power, format=format)
            out[here] = q.values.float() * q.scales
    return out


def by_hand(x: Tensor, weight: Tensor, dy: Tensor, counts: list[int], r: Recipe) -> tuple[list[Tensor], list[Tensor]]:
    """y, dx and dW, and for each of their numbers how far rounding in float32 may take it."""

    def product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        exact = a.double() @ b.double() if r.register is None else accumulate(a.float(), b.float(), r.register).double()
        return exact, a.abs().double() @ b.abs().double() * 2.0**-20

    results = [[], [], []]
    for w, x_, dy_ in zip(weight, x.split(counts), dy.split(counts), strict=True):
        in_fprop, w = rounded(x_, r.inputs, r, r.format), rounded(w, r.weights, r, r.format)
        kept = rounded(x_, r.inputs, r, r.cached, power=True) if r.cached else in_fprop
        upright = rounded(dy_, r.over_tokens, r, r.gradient_format), rounded(kept, r.over_tokens, r, r.format)
        results[0].append(product(in_fprop, w.T))
        results[1].append(product(rounded(dy_, r.gradients, r, r.gradient_format), w))
        results[2].append(product(upright[0].T, upright[1]))
    join = (torch.cat, torch.cat, torch.stack)
    return tuple([f([pair[i] for pair in part]) for f, part in zip(join, results, strict=True)] for i in (0, 1))


def operands(counts: list[int], X: int, Y: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, matrices and gradients of very different size: by token, by channel and by expert."""
    torch.manual_seed(seed)
    R, E = sum(counts), len(counts)
    x, weight, dy = torch.randn(R, X), torch.randn(E, Y, X), torch.randn(R, Y)
    x, dy = (t * torch.exp2(4 * torch.randn(R, 1)) * torch.exp2(2 * torch.randn(t.shape[1])) for t in (x, dy))
    weight *= torch.tensor([1, 1e5, 1e-2, 1, 1])[:E, None, None]  # one is 1e5 times larger
    return x.requires_grad_(), weight.requires_grad_(), dy * (torch.arange(R) % 5 != 4)[:, None]


def assert_close(ours, theirs: tuple[list[Tensor], list[Tensor]]) -> None:
    for one, other, bound in zip(ours, *theirs, strict=True):
        assert one.shape == other.shape
        assert ((one - other).abs() <= bound).all()


def results(x: Tensor, weight: Tensor, dy: Tensor, counts: list[int], recipe: Recipe) -> list[Tensor]:
    y = grouped_linear(x, weight, counts, recipe)
    return [y, *torch.autograd.grad(y, (x, weight), dy)]


recipes = st.builds(
    partial(Recipe.of_block, 8),
    format=st.sampled_from([E4M3, E5M2]),
    gradient_format=st.sampled_from([E4M3, E5M2, E2M1]),
    cached=st.sampled_from([None, E5M6]),
    power_of_two_scales=st.booleans(),
    register=st.sampled_from([None, EXACT]),
)


@examples(30)
@given(recipes, st.lists(st.integers(0, 20), min_size=1, max_size=5), *[st.integers(1, 20)] * 2, st.integers(0, 99))
def test_all_three_products_of_all_experts_are_those_of_a_loop_over_their_tiles(recipe, counts, X, Y, seed):
    case = (*operands(counts, X, Y, seed), counts, recipe)
    assert_close(results(*case), by_hand(*(t.detach() for t in case[:3]), counts, recipe))


@pytest.mark.parametrize("field", CHANGES)
def test_each_field_of_the_recipe_changes_the_products_that_it_names_and_no_other(field):
    value, named = CHANGES[field]
    case, recipe = (*operands([24], 40, 24), [24]), replace(EIGHT, **{field: value})
    before, after = results(*case, EIGHT), results(*case, recipe)
    changed = [name for name, a, b in zip(("y", "dx", "dw"), before, after, strict=True) if not torch.equal(a, b)]
    assert changed == named.split()
    assert_close(after, by_hand(*(t.detach() for t in case[:3]), [24], recipe))


def test_a_register_of_24_bits_is_float32_up_to_the_order_of_the_sums():
    case = operands(counts := [30, 0, 50], 40, 24)
    recipe = replace(EIGHT, register=Register(bits=24, promote=32))
    assert_close(results(*case, counts, recipe), by_hand(*(t.detach() for t in case), counts, EIGHT))


@pytest.mark.parametrize("shape", [(2, 3), (5,), (), (0,), (2, 0, 3)])
def test_a_linear_layer_has_any_leading_dimensions_and_the_dtype_of_its_input(shape):
    x = torch.randn(*shape, 12, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(7, 12, requires_grad=True)
    y = linear(x, weight, EIGHT)
    y.backward(dy := torch.randn_like(y))
    n = x.shape[:-1].numel()
    flat = [t.detach().float().reshape(n, -1 if n else t.shape[-1]).requires_grad_() for t in (x, dy)]
    theirs = results(flat[0], weight[None], flat[1], [n], EIGHT)
    assert (y.shape, y.dtype, x.grad.dtype, weight.grad.dtype) == ((*shape, 7), *[torch.bfloat16] * 2, torch.float32)
    for ours, other in zip((y, x.grad, weight.grad), theirs, strict=True):
        assert torch.equal(ours, other.to(ours.dtype).view_as(ours))


@pytest.mark.parametrize("recipe", [EIGHT, replace(EIGHT, cached=E5M6, register=EXACT)])
def test_the_backward_pass_can_be_split(recipe):
    x, weight, dy = operands(counts := [3, 0, 14], 16, 24)
    y, saved = forward(x.detach(), weight.detach(), counts, recipe)
    later = [y, input_grad(dy, saved), weight_grad(dy, saved)]
    assert all(map(torch.equal, later, results(x, weight, dy, counts, recipe)))


@pytest.mark.parametrize(("frozen", "computed"), [(0, "weight_grad"), (1, "input_grad")])
def test_no_gradient_is_computed_for_what_is_frozen(frozen, computed, monkeypatch):
    called = []
    for name in ("input_grad", "weight_grad"):
        original = getattr(products, name)
        monkeypatch.setattr(products, name, lambda *a, n=name, f=original: called.append(n) or f(*a))
    *case, dy = operands([3], 4, 6)
    case[frozen].requires_grad_(False)
    grouped_linear(*case, [3], EIGHT).backward(dy)
    assert called == [computed]


def test_a_block_larger_than_everything_is_one_block_each_and_costs_no_memory():
    case = (*operands([3, 0, 14], 16, 24), [3, 0, 14])
    assert all(map(torch.equal, results(*case, Recipe.of_block(2**62)), results(*case, Recipe.of_block(16 * 1024))))
    huge = [quantize(torch.randn(16, 16), (2**62,) * 2) for _ in range(2)]
    torch.testing.assert_close(products.on_tensor_cores(*huge), dequantize(huge[0]) @ dequantize(huge[1]))


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
            assert module.product.keywords == {"recipe": Recipe(cached=E5M6 if name.endswith("o_proj") else None)}
    assert found == {name for name in names if is_fp8_matrix(name)}


def test_a_layer_keeps_its_input_for_wgrad_in_8_bits_and_the_one_after_attention_in_e5m6():
    model = random_model(small_config())
    use_fp8(model, Recipe.of_block(16))
    layer = model.layers[0]
    for part, number in ((layer.mlp.up_proj, FP8), (layer.self_attn.o_proj, torch.float16)):
        kept = []
        with saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            part(torch.randn(32, part.weight.shape[1], requires_grad=True))
        x, scales, weight, _ = kept
        assert (x.dtype, weight.dtype, scales.shape) == (number, FP8, (32, x.shape[1] // 16))
        assert sum(t.nbytes for t in kept) == x.nbytes + weight.numel() + 4 * (
            x.numel() // 16 + weight.numel() // 16**2
        )
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
    "tiles of 8": (Recipe.of_block(8), 0),
    "14 bits": (Recipe.of_block(32, register=Register()), 0),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("arm", ARMS)
def test_tensor_cores_compute_what_is_simulated_or_are_not_used(arm, device, monkeypatch):
    if device == "cuda" and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)):
        pytest.skip("no GPU with FP8")
    (recipe, expected), counts = ARMS[arm], [16, 0, 112]
    on_cores, used = products.on_tensor_cores, []
    case = [t.detach().to(device).requires_grad_() for t in operands(counts, 64, 48)]
    monkeypatch.setattr(products, "on_tensor_cores", lambda *a: used.append(a) or on_cores(*a))
    monkeypatch.setattr(products, "_has_fp8", lambda device: True)  # torch's product runs on CPUs, too
    ours = results(*case, counts, recipe)
    assert len(used) == expected
    monkeypatch.setattr(products, "_has_fp8", lambda device: False)
    theirs = results(*case, counts, recipe)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * other.abs().max().item())
    assert len(used) == expected
