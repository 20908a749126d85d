"""Muon against torch's own, matrix by matrix, and against the singular value decomposition."""

import pytest
import torch
from helpers_training import small_model, small_train_config, small_trainer

from minids.training.muon import is_muons, newton_schulz, orthogonalise
from minids.training.optimizer import make_optimizer


def test_every_step_is_that_of_torchs_muon_on_each_matrix_and_of_adamw_on_the_rest():
    config = small_train_config(optimizer="muon", dtype="bfloat16", weight_decay=0.1)  # torch's products are bfloat16
    ours, theirs = small_model(), small_model()
    optimizer = make_optimizer(ours, config)
    pieces, rest = {}, []  # theirs: single matrices, as torch's Muon wants them
    for name, parameter in theirs.named_parameters():
        if not is_muons(name, parameter):
            rest.append(parameter)
            continue
        halves = parameter.detach().unflatten(-2, (2, -1)) if name.endswith("gate_up_proj") else parameter.detach()
        pieces[name] = [torch.nn.Parameter(piece.clone()) for piece in halves.reshape(-1, *halves.shape[-2:])]
    muon = torch.optim.Muon(
        [piece for some in pieces.values() for piece in some], lr=config.learning_rate, weight_decay=0.1, momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    decayed, flat = ([p for p in rest if (p.ndim > 1) == matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    for step in range(3):
        torch.manual_seed(step)
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
            for piece, grad in zip(pieces.get(name, []), mine.grad.reshape(-1, *_shape(pieces, name)), strict=False):
                piece.grad = grad.clone()
        optimizer.step(), muon.step(), adamw.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if name in pieces:
            expected = torch.stack(pieces[name]).reshape(mine.shape)
            torch.testing.assert_close(mine, expected, rtol=0, atol=2e-4)  # bfloat16 sums in another order
        else:
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def _shape(pieces: dict, name: str) -> torch.Size:
    return pieces[name][0].shape if name in pieces else (1,)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_newton_schulz_keeps_the_singular_vectors_and_brings_the_values_near_1(shape):
    torch.manual_seed(0)
    U, _, V = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(0.02, 1, min(shape[1:]), dtype=torch.float64)
    out = newton_schulz(U @ (values[:, None] * V))
    between = U.mT @ out @ V.mT  # diagonal: the new singular values
    diagonal = between.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(between, torch.diag_embed(diagonal), rtol=0, atol=1e-9)
    assert 0.6 < diagonal.min() < diagonal.max() < 1.3
    assert (newton_schulz(torch.zeros(shape)) == 0).all(), "a gradient of zeros moves nothing"


def test_matrices_computed_together_are_those_computed_alone():
    torch.manual_seed(0)
    stacks = [torch.randn(shape) for shape in ((2, 8, 12), (1, 12, 8), (3, 8, 12))]
    for stack, together in zip(stacks, orthogonalise(stacks, torch.float32), strict=True):
        torch.testing.assert_close(together, newton_schulz(stack))


def test_muon_has_all_matrices_but_embedding_head_and_gates_and_both_learning_rates_are_the_runs():
    trainer = small_trainer(optimizer="muon", learning_rate=7e-3, warmup_fraction=0)
    left = {name for name, p in trainer.model.named_parameters() if p not in trainer.optimizer.matrices and p.ndim > 1}
    assert left == {"embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight", "mtp.0.block.mlp.gate.weight"}
    trainer.train_step()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {7e-3}
    assert all(p.grad is None for p in trainer.model.parameters())
