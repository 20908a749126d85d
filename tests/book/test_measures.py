"""What the recorded numbers of the pooled experiments are made of, on a small model and against counting."""

from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from minids.book.experiments import balance, experts, measures
from minids.book.experiments.measures import last_violation, routed
from minids.model.balance import sequence_balance_loss
from minids.model.deepseek import DeepSeek
from minids.model.moe import MoE

SMALL = replace(
    experts.MODELS["1 + 7 of 63"], vocab_size=64, hidden_size=16, num_hidden_layers=2, intermediate_size=16,
    moe_intermediate_size=4, n_routed_experts=16, num_experts_per_tok=4, initializer_range=0.3,
)  # fmt: skip


@pytest.fixture
def model(monkeypatch):
    torch.manual_seed(0)
    rows = {domain: np.random.default_rng(i).integers(64, size=(4, 17)) for i, domain in enumerate(("prose", "code"))}
    monkeypatch.setattr(measures, "held_out", lambda: rows)
    monkeypatch.setattr(experts, "held_out", lambda: rows)
    return DeepSeek(SMALL).eval()


def test_loads_are_counted_by_layer_domain_and_expert(model):
    found, counts = routed(model, 4), np.zeros((2, 2, 16), dtype=int)
    touched = []
    for domain, rows in enumerate(measures.held_out().values()):
        for layer, moe in enumerate(layer.mlp for layer in model.layers):
            with note(moe) as chosen:
                model.hidden_states(torch.from_numpy(rows[:, :-1]))
            for experts_of_token in chosen[0].tolist():
                counts[layer, domain, experts_of_token] += 1
                touched.append(len({expert // 4 for expert in experts_of_token}))
    assert found["load"] == counts.tolist()
    assert found["groups"] == pytest.approx(np.mean(touched), abs=1e-3)
    both = counts.sum(axis=1)
    np.testing.assert_allclose(found["max_violation_held_out"], both.max(axis=1) / both.mean(axis=1) - 1, atol=1e-3)


@contextmanager
def note(moe):
    chosen = []
    hook = moe.gate.register_forward_hook(lambda _, args, out: chosen.append(out[1]))
    yield chosen
    hook.remove()


def test_everything_is_left_out_that_a_name_says_and_nothing_stays_so(model, monkeypatch):
    monkeypatch.setattr(experts, "scores", lambda changed, rows: {"all": outputs(changed)})
    monkeypatch.setattr(experts, "WIDTH", 4)  # of a coarse expert: 1, 2 and 4 of 16 are left out
    found = experts.without(model)
    whole = found.pop("as trained")["all"]
    names = [f"{which} {share}" for share in (1, 2, 4) for which in ("best", "random")] + ["top 1", "top 2", "top 3"]
    assert list(found) == [*names, "no shared", "no shared, one more"]
    values = [scored["all"] for scored in found.values()]
    assert len({whole, *values}) == 1 + len(values), "each changes the outputs, and each otherwise"
    assert outputs(model) == whole


@torch.no_grad()
def outputs(model) -> float:
    return model(torch.arange(60).view(3, 20)).square().mean().item()


def test_the_scope_of_the_loss_is_the_batch_in_its_block_only(model):
    moe, scores = model.layers[0].mlp.train(), torch.rand(3, 5, 16)
    own = moe.balance_loss(scores)
    with suppress(KeyError), balance._scope("batch"):
        assert moe.balance_loss(scores) == sequence_balance_loss(scores.reshape(1, 15, 16), 4) != own
        raise KeyError
    with balance._scope("sequence"):
        assert MoE.balance_loss(moe, scores) == own == sequence_balance_loss(scores, 4)


def test_curves_have_the_loads_of_the_middle_layer_in_bins(monkeypatch):
    monkeypatch.setattr(balance, "BINS", 3)
    loads = np.random.default_rng(0).integers(9, size=(6, 3, 4))  # steps, layers, experts
    records = [{"load": load.tolist(), "max_violation": [1.0, 2.0, 6.0 + step]} for step, load in enumerate(loads)]
    biases = [[[step + layer / 10] * 4 for layer in range(3)] for step in range(6)]
    curve = balance._curve(records, biases)
    assert curve["load"] == loads[:, 1].reshape(3, 2, 4).sum(axis=1).tolist()
    assert curve["max_violation"] == [pytest.approx(3 + (0.5 + 2 * i) / 3, abs=1e-3) for i in range(3)]
    assert curve["bias"] == [[2 * i + 1.1] * 4 for i in range(3)]
    assert last_violation(records) == pytest.approx(3 + 2.5 / 3, abs=1e-3)
