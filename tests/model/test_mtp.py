"""Multi-token prediction against the report's equations, written out in loops (transformers': test_parity.py)."""

from dataclasses import replace

import pytest
import torch
from configurations import random_model, random_tokens
from torch.testing import assert_close

from minids import DeepSeek, ModelConfig

TINY = replace(ModelConfig.preset("tiny"), num_hidden_layers=2)


def model_of_depth(depth: int) -> DeepSeek:
    return random_model(replace(TINY, num_nextn_predict_layers=depth))


@torch.no_grad()
def loss_by_the_equations(model: DeepSeek, row: list[int]) -> float:
    """Equations 21 to 25 for one row, each mean taken over its number of terms; no λ."""
    known = torch.tensor(row[:-1])
    hidden = model.hidden_states(known[None])[0][0]
    of_depths = []
    for k, module in enumerate(model.mtp, start=1):
        joined = [
            torch.cat([module.enorm(model.embed_tokens(known[i + k])), module.hnorm(hidden[i])])
            for i in range(len(known) - k)
        ]
        projected = torch.stack([module.eh_proj.weight @ x for x in joined])
        block_out, _ = module.block(projected[None], model.rope(0, len(joined)))
        hidden = module.norm(block_out[0])
        log_p = (hidden @ model.lm_head.weight.T).log_softmax(dim=1)
        losses = [-log_p[i, row[i + k + 1]].item() for i in range(len(joined))]
        of_depths.append(sum(losses) / len(losses))
    return sum(of_depths) / len(of_depths)


@pytest.mark.kills("MTP predicts what it was told", depth=1)
@pytest.mark.kills("MTP reads the token before", depth=1)
@pytest.mark.kills("MTP skips its block", depth=1)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_loss_is_that_of_the_equations(depth):
    model = model_of_depth(depth)
    tokens = random_tokens(TINY, batch_size=3, length=9)
    expected = sum(loss_by_the_equations(model, row) for row in tokens.tolist()) / 3
    assert model.loss(tokens).mtp.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.kills("MTP joins as the report prints it")
def test_the_projection_takes_the_embedding_first_and_the_hidden_state_second():
    module, seen = model_of_depth(1).mtp[0], []
    module.block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    hidden, embedding = torch.randn(2, 1, 5, 64)
    rotation = model_of_depth(1).rope(0, 5)
    with torch.no_grad():
        for half in (0, 1):
            module.eh_proj.weight.zero_()
            module.eh_proj.weight[:, 64 * half : 64 * (half + 1)] = torch.eye(64)
            module(hidden, embedding, rotation)
        assert_close(seen, [module.enorm(embedding), module.hnorm(hidden)])


def test_the_modules_share_embedding_and_head_with_the_main_model_and_their_loss_trains_all_of_it():
    model = model_of_depth(1)
    assert not [name for name, _ in model.mtp.named_parameters() if "embed" in name or "head" in name]
    model.loss(random_tokens(TINY, 2, 9)).mtp.backward()
    trained = [model.embed_tokens, model.layers[0].self_attn.o_proj, model.norm, model.lm_head, model.mtp[0].eh_proj]
    assert all(module.weight.grad.any() for module in trained)


@torch.no_grad()
def test_the_main_model_is_the_same_without_its_modules():
    model = model_of_depth(2)
    alone = DeepSeek(replace(TINY, num_nextn_predict_layers=0)).eval()
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mtp.")}, strict=True)
    tokens = random_tokens(TINY, 2, 9)
    assert torch.equal(model(tokens), alone(tokens))
    assert alone.loss(tokens).mtp == 0
    assert torch.equal(model.loss(tokens).next_token, alone.loss(tokens).next_token)


@torch.no_grad()
def test_a_module_decodes_with_a_cache_as_in_one_pass():
    model = model_of_depth(1)
    module, (hidden, embedding) = model.mtp[0], torch.randn(2, 2, 8, 64)
    whole, _ = module(hidden, embedding, model.rope(0, 8))
    cache = module.block.self_attn.new_cache(2, 8)
    parts = [
        module(hidden[:, a:b], embedding[:, a:b], model.rope(a, b - a), cache)[0] for a, b in ((0, 3), (3, 4), (4, 8))
    ]
    assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
