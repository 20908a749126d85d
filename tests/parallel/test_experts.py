"""A layer whose experts are on four ranks, against the same layer in one process, and the messages against counts."""

from dataclasses import replace

import pytest
import torch
from helpers_distributed import collected_gradient
from torch import Tensor

from minids.book.probes.experts import forward_backward, spread_layer
from minids.model.config import ModelConfig
from minids.model.moe import MoE
from minids.parallel.experts import AS_COMPUTED, Formats, from_bytes, to_bytes
from minids.parallel.launch import launch
from minids.quantization.fp8 import dequantize, quantize

RANKS, D = 4, 64
CONFIG = replace(ModelConfig.preset("tiny"), num_experts_per_tok=3, n_group=4, topk_group=2)
IN_FP8 = Formats(dispatch=32, combine=torch.bfloat16)
SEQUENCES = [2, 1, 0, 3]  # of each rank: one has none


def some_weights(config: ModelConfig) -> dict[str, Tensor]:
    layer = MoE(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    layer.gate.expert_bias.normal_(std=0.05)
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def some_tokens() -> tuple[list[Tensor], list[Tensor]]:
    x = [torch.randn(rows, 5, D) for rows in SEQUENCES]
    return x, [torch.randn_like(part) for part in x]


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def make_layer(config: ModelConfig, weights: dict[str, Tensor]) -> MoE:
    layer = MoE(config)
    layer.load_state_dict(weights)
    return layer.train()


def run(weights, nodes, formats=AS_COMPUTED, dtype="float32", config=CONFIG):
    """What the ranks give, the same in one process (outputs, gradients of tokens and weights), and all tokens."""
    x, out_grad = some_tokens()
    ranks = spread_layer(make_layer(config, weights), x, out_grad, nodes=nodes, formats=formats, dtype=dtype)
    whole = make_layer(config, weights)
    out, x_grad = forward_backward(whole, torch.cat(x), torch.cat(out_grad), dtype)
    assert torch.equal(ranks.load, whole.gate.load)
    return ranks, (out, x_grad, {name: p.grad for name, p in whole.named_parameters()}), torch.cat(x)


@pytest.mark.kills("the router's gradient stays behind", nodes=1, dtype="float32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_outputs_and_all_gradients_are_those_of_one_process(nodes, dtype):
    ranks, (out, x_grad, grads), _ = run(some_weights(CONFIG), nodes, dtype=dtype)
    tolerance = 2e-6 if dtype == "float32" else 2e-2
    assert_near(torch.cat(ranks.out), out, tolerance)
    assert_near(torch.cat(ranks.x_grad), x_grad, tolerance)
    for name, grad in grads.items():
        assert_near(ranks.grads[name], grad, tolerance)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_rank_whose_experts_nobody_chooses_gets_gradients_of_zero(nodes):
    weights = some_weights(replace(CONFIG, n_group=1, topk_group=1))
    weights["gate.expert_bias"][:4] = 1e3  # those of ranks 0 and 1
    ranks, (out, _, grads), _ = run(weights, nodes, config=replace(CONFIG, n_group=1, topk_group=1))
    assert_near(torch.cat(ranks.out), out, 2e-6)
    assert_near(ranks.grads["gate.weight"], grads["gate.weight"], 2e-6)
    assert not ranks.grads["experts.gate_up_proj"][4:].any()


def test_in_fp8_two_hops_change_nothing_more_and_the_error_is_that_of_three_bits():
    """After the first hop a row is in its tiles' numbers, so the second rounds nothing; sums are rounded to BF16."""
    weights = some_weights(CONFIG)
    torch.manual_seed(1)
    one, expected, x = run(weights, 1, IN_FP8)
    torch.manual_seed(1)
    two, *_ = run(weights, 2, IN_FP8)
    for in_one, in_two, exact in zip((one.out, one.x_grad), (two.out, two.x_grad), expected, strict=False):
        in_one, in_two = torch.cat(in_one), torch.cat(in_two)
        assert (in_one - in_two).norm() <= 2**-8 * in_one.norm()
        assert 0.005 < (in_one - exact).norm() / exact.norm() < 0.04
    # Rounded in one process, as they would arrive, the same tokens give the same sums.
    rounded = dequantize(quantize(x.flatten(0, 1), (1, 32), power_of_two_scales=True)).view_as(x)
    assert (x - rounded).norm() / x.norm() == pytest.approx(0.026, abs=0.002)


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_the_gradient_of_what_comes_back_in_bf16_is_sent_in_fp8_however_small_it_is(scale):
    for grad, sent in launch(collected_gradient, 2, IN_FP8, scale):
        rounded = dequantize(quantize(sent, (1, 32), power_of_two_scales=True, floor=1e-30))
        assert torch.equal(grad, rounded)
        assert (rounded - sent).norm() < 0.04 * sent.norm()


def test_a_message_in_fp8_holds_codes_and_scales_exactly():
    x = torch.randn(7, 96) * 10.0 ** torch.randint(-6, 6, (7, 1))
    x[3] = 0
    for tile in (32, 128):
        rounded = quantize(x, (1, tile), power_of_two_scales=True)
        message = to_bytes(rounded)
        assert message.dtype == torch.uint8
        assert message.shape == (7, 96 + -(-96 // tile))
        assert torch.equal(dequantize(from_bytes(message, 96, tile)), dequantize(rounded))


@pytest.mark.parametrize("formats", [AS_COMPUTED, IN_FP8])
def test_rows_and_bytes_are_the_counted_ones(formats):
    weights = some_weights(CONFIG)
    torch.manual_seed(2)
    flat, _, x = run(weights, 1, formats)
    torch.manual_seed(2)
    two, *_ = run(weights, 2, formats)
    chosen = make_layer(CONFIG, weights).gate(x.flatten(0, 1))[1].split([5 * rows for rows in SEQUENCES])
    for rank, experts_NK in enumerate(chosen):
        ranks_of = [{expert // 2 for expert in row} for row in experts_NK.tolist()]  # 8 experts on 4 ranks
        nodes_of = [{r // 2 for r in ranks} for ranks in ranks_of]
        assert flat.rows[0][rank] == [sum(r in ranks for ranks in ranks_of) for r in range(RANKS)]
        assert two.rows[0][rank] == [sum(n in nodes for nodes in nodes_of) for n in range(2)]
        # Two groups of two experts are kept, so at most two ranks; they may be on one node.
        assert all(len(ranks) <= 2 for ranks in ranks_of)
    for node in range(2):  # inside a node arrive the same rows as in one hop, by another way
        for place in range(2):
            flat_rows = sum(row[2 * node + place] for row in flat.rows[0])
            assert sum(two.rows[1][2 * node + i][place] for i in range(2)) == flat_rows
    own = 3 * (4 + 8)  # weights and numbers of the three choices
    there, back = (D + D // 32, 2 * D) if formats.dispatch else (4 * D, 4 * D)
    assert flat.row_bytes == two.row_bytes == (there + own, back)
