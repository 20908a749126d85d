"""Multi-token prediction against the report's indices, written out in loops, and transformers' MtpModel."""

from dataclasses import replace

import pytest
import torch
from configurations import random_model, random_tokens
from hf_oracle import hf_mtp_name, hf_twin
from torch.testing import assert_close
from transformers.modeling_layers import MtpModel

from minids import DeepSeek, ModelConfig

TINY = replace(ModelConfig.preset("tiny"), num_hidden_layers=2)
depths = pytest.mark.parametrize("depth", [1, 2, 3])


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


@depths
def test_the_loss_is_that_of_the_equations(depth):
    model = model_of_depth(depth)
    tokens = random_tokens(TINY, batch_size=3, length=9)
    expected = sum(loss_by_the_equations(model, row) for row in tokens.tolist()) / 3
    assert model.loss(tokens).mtp.item() == pytest.approx(expected, rel=1e-4)


@depths
def test_depth_k_at_position_i_has_seen_tokens_up_to_i_plus_k(depth):
    model, tokens = model_of_depth(depth), random_tokens(TINY, batch_size=1, length=7)

    def states(tokens):
        return [h for h, _ in model.mtp_hidden_states(tokens, model.hidden_states(tokens)[0])]

    with torch.no_grad():
        before = states(tokens)
        for j in range(7):
            other = tokens.clone()
            other[0, j] = (other[0, j] + 1) % TINY.vocab_size
            for k, (old, new) in enumerate(zip(before, states(other), strict=True), start=1):
                assert old.shape == (1, 7 - k, 64)
                changed = (old - new).abs().amax(dim=(0, 2)) > 1e-5
                assert changed.tolist() == [i + k >= j for i in range(7 - k)]


def test_a_model_of_depth_1_can_learn_to_read_off_the_token_after_the_next():
    """In 0 1 2 0 1 2 ... the answer at position i is token i + 2; a wrong shift would learn another one."""
    config = replace(TINY, vocab_size=3, n_routed_experts=None)
    torch.manual_seed(0)
    model = DeepSeek(config)
    tokens = torch.arange(24).remainder(3)[None]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(tokens, mtp_weight=1.0).total.backward()
        optimizer.step()
    [(hidden, _)] = model.mtp_hidden_states(tokens, model.hidden_states(tokens)[0])
    assert torch.equal(model.lm_head(hidden).argmax(dim=-1)[:, :-1], tokens[:, 2:])


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


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("q_lora_rank", [None, 16])
@torch.no_grad()
def test_equals_transformers(depth, q_lora_rank):
    config = replace(TINY, num_nextn_predict_layers=depth, q_lora_rank=q_lora_rank, rms_norm_eps=1e-3)
    model = random_model(config)
    main = hf_twin(model)
    theirs = MtpModel(main, depth).eval()
    state = {hf_mtp_name(name): tensor for name, tensor in model.mtp.state_dict().items()}
    assert theirs.load_state_dict(state, strict=False).unexpected_keys == []
    missing = set(theirs.state_dict()) - set(state)
    assert missing == {"embed_tokens.weight", "shared_head.weight"}

    tokens = random_tokens(config, batch_size=2, length=12)
    hidden = main.model(tokens).last_hidden_state
    ours = model.mtp_hidden_states(tokens, model.hidden_states(tokens)[0])
    for k, (our_hidden, _) in enumerate(ours, start=1):
        positions = torch.arange(k, 12)[None]
        hidden = theirs.forward_layer(k - 1, hidden[:, :-1], positions, None, input_ids=tokens[:, k:])
        assert_close(our_hidden, hidden, rtol=1e-4, atol=1e-4)
        assert_close(model.lm_head(our_hidden), theirs.shared_head(hidden), rtol=1e-4, atol=1e-4)


def test_the_modules_share_embedding_and_head_with_the_main_model():
    model = model_of_depth(1)
    assert not [name for name, _ in model.mtp.named_parameters() if "embed" in name or "head" in name]
    tokens = random_tokens(TINY, 2, 9)
    model.loss(tokens).mtp.backward()
    assert model.lm_head.weight.grad.any()
    assert model.embed_tokens.weight.grad.any()


def test_the_loss_of_the_modules_trains_the_main_model_too():
    model = model_of_depth(1)
    model.loss(random_tokens(TINY, 2, 9)).mtp.backward()
    assert all(parameter.grad is not None for parameter in model.layers[0].parameters())
    assert model.layers[0].self_attn.o_proj.weight.grad.any()


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
