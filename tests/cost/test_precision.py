"""Bytes against what real models, optimizers and files hold, and the published sizes."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from minids import DeepSeek, ModelConfig, save_pretrained
from minids.cost.precision import (
    Bytes,
    activation_bytes,
    communication_bytes,
    file_bytes,
    most_copies,
    state_bytes,
    total,
    trained_weights,
)
from minids.model.linear import Linear
from minids.model.moe import Experts, Gate
from minids.quantization.fp8 import quantize, scale_shape
from minids.quantization.products import Recipe, use_fp8
from minids.training.config import TrainConfig
from minids.training.optimizer import make_optimizer

V3, TINY = ModelConfig.preset("deepseek-v3"), ModelConfig.preset("tiny")
TOKENS, TILE = 20, 24  # no width of `tiny` is a multiple of this tile


def test_a_weight_of_v3_takes_18_bytes_in_bf16_and_13_in_the_recipe():
    state, weights = state_bytes(V3), trained_weights(V3)
    assert total(state.values()).bf16 == 18 * weights
    assert total(state.values()).fp8 / weights == pytest.approx(13, abs=0.01)
    assert file_bytes(V3).fp8 == 688_574_839_360


def test_an_activation_of_v3_takes_less_than_half():
    """The layer of the report's figure 6, added up by hand; 56, 12, 4, … are tiles."""
    kept = activation_bytes(V3, 3)
    inputs = 7168 + 1536 + 512 + 16384 + (8 + 1) * 7168
    assert total(kept.values()).bf16 == 2 * inputs + 2 * 9 * 3 * 2048
    scales = 56 + 12 + 4 + 128 + 9 * 56 + 9 * 2 * 16
    assert total(kept.values()).fp8 == inputs + 16384 / 2 + 9 * 2 * 2048 + 4 * scales
    assert most_copies(V3) == {"between nodes": 4, "within nodes": 8}


def test_other_families_keep_one_input_of_q_k_and_v_and_send_to_every_node():
    lite, dense = (activation_bytes(ModelConfig.preset(f"deepseek-{name}"), 0) for name in ("v2-lite", "llm-7b"))
    assert (lite["kv_b_proj"], lite["o_proj"].bf16) == (Bytes(2 * 512, 512 + 4 * 4), 2 * 16 * 128)
    assert (dense["q_proj, k_proj, v_proj"], dense["o_proj"].bf16) == (Bytes(2 * 4096, 4096 + 4 * 32), 2 * 4096)
    assert most_copies(ModelConfig.preset("deepseek-v2-lite")) == {"between nodes": 6, "within nodes": 6}
    assert most_copies(replace(V3, num_experts_per_tok=2)) == {"between nodes": 2, "within nodes": 2}


@pytest.mark.parametrize("name", ["deepseek-v3", "mini", "tiny"])
def test_what_use_fp8_sets_is_what_is_counted_in_fp8(name):
    config = ModelConfig.preset(name)
    with torch.device("meta"):
        model = DeepSeek(config)
    use_fp8(model)
    matrices, scales = 0, 0
    for module in model.modules():
        if "product" in vars(module):
            weights = [module.weight] if isinstance(module, Linear) else [*module.gate_up_proj.chunk(2, dim=1)]
            weights += [module.down_proj] if isinstance(module, Experts) else []
            for weight in weights:
                rows, columns = scale_shape(weight.shape[-2:], (128, 128))
                matrices += weight.numel()
                scales += rows * columns * weight.shape[:-2].numel()
    weights = sum(p.numel() for p in model.parameters())
    state = state_bytes(config)
    assert trained_weights(config) == weights
    assert state["copy of the matrices"] == Bytes(2 * matrices, matrices + 4 * scales)
    assert state["copy of the others"] == Bytes(2 * (weights - matrices), 2 * (weights - matrices))


@pytest.mark.parametrize(("dtype", "side"), [("bfloat16", "bf16"), ("fp8", "fp8")])
def test_the_trainers_optimizer_holds_the_moments_that_are_counted(dtype, side):
    model = DeepSeek(TINY)
    optimizer = make_optimizer(model, TrainConfig(dtype=dtype))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert nbytes(moments) == getattr(state_bytes(TINY)["moments"], side)
    counted = state_bytes(TINY)
    assert nbytes(model.parameters()) == getattr(counted["master weights"], side)
    assert nbytes(p.grad for p in model.parameters()) == getattr(counted["gradients"], side)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_in_bf16_saves_what_is_counted(layer):
    """Matrices that are named together save one tensor."""
    saved = saved_by_part(DeepSeek(TINY).bfloat16(), layer)
    for parts, counted in activation_bytes(TINY, layer).items():
        owners, kind = owners_of(parts)
        sizes = [nbytes([t]) for t in {t.data_ptr(): t for owner in owners for t in saved[owner]}.values()]
        if kind == "SwiGLU" and "experts" not in owners:
            assert sizes.count(TOKENS * counted.bf16 / 2) >= 2  # of gate and up, which are tensors of their own
        elif owners == ["experts"]:
            assert TOKENS * counted.bf16 in sizes
        else:
            assert sizes == [TOKENS * counted.bf16]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_in_fp8_saves_what_is_counted(layer):
    """Each of the matrices saves values and scales; what the library leaves out of the recipe is quantised here."""
    model = DeepSeek(TINY)
    use_fp8(model, Recipe.of_block(TILE))
    saved, of_layer = saved_by_part(model, layer), activation_bytes(TINY, layer, TILE)
    for parts, counted in of_layer.items():
        owners, kind = owners_of(parts)
        for owner in owners if kind != "SwiGLU" else []:
            numbers = [t for t in saved[owner] if t.dtype in (torch.float8_e4m3fn, torch.float16) and t.ndim == 2]
            scales = [t for t in saved[owner] if t.dtype == torch.float32 and t.ndim == 2][: len(numbers)]
            bits = 12 if owner == "o_proj" else 8
            first = numbers[0].numel() * bits / 8 + scales[0].numel() * 4
            again = "down_proj" in parts and layer == 1
            assert TOKENS * counted.fp8 == (0 if again else first)
    if layer == 1:
        for kind, rows in (("routed", TOKENS * TINY.num_experts_per_tok), ("shared", TOKENS)):
            part = quantize(torch.randn(rows, TINY.moe_intermediate_size), (1, TILE))
            assert TOKENS * of_layer[f"{kind} SwiGLU"].fp8 == 2 * nbytes([part.values, part.scales])
    else:
        assert of_layer["SwiGLU"].fp8 == of_layer["SwiGLU"].bf16


def owners_of(parts: str) -> tuple[list[str], str]:
    """Return the modules that save these, and their kind: "routed SwiGLU" is of `experts`."""
    words = parts.replace("kv_a_proj", "kv_a_proj_with_mqa").split(", ")
    kind = words[0].split()[-1]
    if words[0].startswith("routed"):
        return ["experts"], kind
    if kind == "SwiGLU":
        return ["shared_experts" if "shared" in parts else "mlp"], kind
    return [word.split()[-1] for word in words], kind


def saved_by_part(model: DeepSeek, layer: int) -> dict[str, list[Tensor]]:
    """Return what autograd saves in a forward pass of a layer, without parameters, by the innermost named module."""
    names, saved = ["layer"], defaultdict(list)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            saved[names[-1]].append(t)
        return t

    block = model.layers[layer]
    for name, module in block.named_modules():
        if not name.endswith("norm"):
            module.register_forward_pre_hook(lambda *_, name=name: names.append(name.rpartition(".")[2]))
            module.register_forward_hook(lambda *_: names.pop() and None)
    x = torch.randn(1, TOKENS, TINY.hidden_size, dtype=model.norm.weight.dtype, requires_grad=True)
    with saved_tensors_hooks(pack, lambda t: t):
        block(x, model.rope(0, TOKENS))
    return saved


def test_a_token_takes_the_bytes_of_its_row_to_each_of_few_nodes():
    row, communicated = quantize(torch.randn(1, TINY.hidden_size), (1, TILE)), communication_bytes(TINY, TILE)
    assert communicated["dispatch"].fp8 == nbytes([row.values, row.scales])
    assert communicated["combine"].fp8 == communicated["dispatch"].bf16 == nbytes([torch.zeros(64).bfloat16()])
    _, experts_NK, _ = Gate(TINY).eval()(torch.randn(500, 64))
    nodes = [len(set(chosen)) for chosen in (experts_NK // 2).tolist()]  # 8 experts in 4 groups
    copies = most_copies(TINY)
    assert (max(nodes), experts_NK.shape[1]) == (copies["between nodes"], copies["within nodes"])
    with pytest.raises(ValueError, match="n_routed_experts"):
        communication_bytes(ModelConfig.preset("mini-dense"))


@pytest.mark.parametrize(("dtype", "side"), [(torch.bfloat16, "bf16"), (torch.float8_e4m3fn, "fp8")])
def test_files_are_as_large_as_those_that_are_written(tmp_path, dtype, side):
    save_pretrained(DeepSeek(TINY), tmp_path / "model", dtype=dtype)
    sizes = 0
    for file in (tmp_path / "model").glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            sizes += nbytes(tensors.get_tensor(name) for name in tensors.keys())  # noqa: SIM118
    assert sizes == getattr(file_bytes(TINY), side)


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
