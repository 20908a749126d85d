"""Muon against torch's own, matrix by matrix, and against the singular value decomposition."""

from copy import deepcopy

import pytest
import torch
from helpers_training import assert_bitwise_equal, moments, small_model, small_train_config, small_trainer, state

from minids.training import muon
from minids.training.muon import is_muons, newton_schulz, orthogonalise
from minids.training.optimizer import make_optimizer

WIDE = {"moe_intermediate_size": 96}  # wider than the model, so the two halves of gate_up_proj are taller than wide


@pytest.mark.parametrize("decay", [0.1, 10.0])
def test_every_step_is_that_of_torchs_muon_on_each_matrix_and_of_adamw_on_the_rest(decay):
    config = small_train_config(optimizer="muon", dtype="bfloat16", weight_decay=decay)  # torch's products are bfloat16
    ours, theirs = small_model(**WIDE), small_model(**WIDE)
    optimizer = make_optimizer(ours, config)
    pieces, tables, flat = {}, [], []  # theirs: single matrices, as torch's Muon wants them
    for name, parameter in theirs.named_parameters():
        if is_muons(name, parameter):
            pieces[name] = [torch.nn.Parameter(piece.clone()) for piece in single(name, parameter.detach())]
        else:
            (tables if parameter.ndim > 1 else flat).append(parameter)
    torch_muon = torch.optim.Muon(
        [piece for some in pieces.values() for piece in some], lr=config.learning_rate, weight_decay=decay,
        momentum=0.95, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    groups = [{"params": tables, "weight_decay": decay}, {"params": flat, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    without = "layers.0.mlp.down_proj.weight"  # has no gradient in the second step
    for step in range(3):
        torch.manual_seed(step)
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            grad = torch.randn_like(mine)
            mine.grad = other.grad = None if (name, step) == (without, 1) else grad.clone()
            for piece, part in zip(pieces.get(name, []), single(name, grad), strict=False):
                piece.grad = None if mine.grad is None else part.clone()
        for each in (optimizer, torch_muon, adamw):
            each.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name in pieces:
            expected = torch.stack(pieces[name]).reshape(mine.shape)
            torch.testing.assert_close(mine, expected, rtol=0, atol=2e-4)  # bfloat16 sums in another order
        else:
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def single(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The matrices that a parameter holds: those of all experts, of gate and of up."""
    if name.endswith("gate_up_proj"):
        tensor = tensor.unflatten(-2, (2, -1))
    return tensor.reshape(-1, *tensor.shape[-2:]) if tensor.ndim > 1 else tensor[None]


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_newton_schulz_keeps_the_singular_vectors_and_brings_the_values_near_1(shape):
    torch.manual_seed(0)
    U, _, V = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(0.02, 1, min(shape[1:]), dtype=torch.float64)
    values[0] = 0.002 * values.norm()  # of the matrix: the smallest for which five steps are said to be enough
    out = newton_schulz(U @ (values[:, None] * V))
    between = U.mT @ out @ V.mT  # diagonal: the new singular values
    diagonal = between.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(between, torch.diag_embed(diagonal), rtol=0, atol=1e-9)
    assert 0.68 < diagonal.min() < diagonal.max() < 1.21
    assert (newton_schulz(torch.zeros(shape)) == 0).all(), "a gradient of zeros moves nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_computed_together_are_those_computed_alone_in_the_dtype_that_is_asked_for(dtype):
    torch.manual_seed(0)
    stacks = [torch.randn(shape) for shape in ((2, 8, 12), (1, 12, 8), (3, 8, 12))]
    for stack, together in zip(stacks, orthogonalise(stacks, dtype), strict=True):
        assert together.dtype == torch.float32
        torch.testing.assert_close(together, newton_schulz(stack.to(dtype)).float())


@pytest.mark.parametrize(
    ("dtype", "products", "kept"),
    [
        ("float32", torch.float32, torch.float32), ("bfloat16", torch.bfloat16, torch.float32),
        ("fp8", torch.float32, torch.bfloat16),
    ],
)  # fmt: skip
def test_muon_has_all_matrices_but_embedding_head_and_gates_and_computes_in_the_dtype_of_the_run(
    dtype, products, kept, monkeypatch
):
    used = set()
    monkeypatch.setattr(muon, "newton_schulz", lambda X: used.add(X.dtype) or newton_schulz(X))
    trainer = small_trainer(optimizer="muon", learning_rate=7e-3, warmup_fraction=0, dtype=dtype)
    trainer.train_step()
    optimizer = trainer.optimizer
    left = {name for name, p in trainer.model.named_parameters() if "momentum" not in optimizer.state[p] and p.ndim > 1}
    assert left == {"embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight", "mtp.0.block.mlp.gate.weight"}
    assert {group["lr"] for group in optimizer.param_groups} == {7e-3}
    assert (used, {values["momentum"].dtype for values in optimizer.state.values() if "momentum" in values}) == (
        {products}, {kept},
    )  # fmt: skip
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_loaded_state_goes_on_bitwise():
    one, loaded = small_trainer(optimizer="muon"), small_trainer(optimizer="muon", seed=1)
    one.train_step()
    loaded.model.load_state_dict(one.model.state_dict())
    loaded.optimizer.load_state_dict(deepcopy(one.optimizer.state_dict()))
    loaded.step, loaded.batches = one.step, one.batches
    for trainer in (one, loaded):
        trainer.train_step()
    assert_bitwise_equal(state(loaded.model), state(one.model))
    assert_bitwise_equal(moments(loaded), moments(one))
