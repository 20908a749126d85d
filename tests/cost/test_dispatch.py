"""Expected rows against all sets of choices; bytes against real messages; bandwidths against published ones."""

from itertools import combinations

import numpy as np
import pytest
import torch

from minids.cost.dispatch import (
    Moved,
    algorithm_bandwidth,
    expected_groups,
    expected_rows,
    free_experts,
    most_rows,
    row_bytes,
    seconds,
)
from minids.cost.precision import communication_bytes, most_copies
from minids.cost.traffic import WAYS, rows_between_nodes, rows_inside_nodes, traffic
from minids.model.config import ModelConfig
from minids.parallel.experts import to_bytes
from minids.quantization.fp8 import quantize

V3 = ModelConfig.preset("deepseek-v3")
GIGA = 1e9


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("chosen", "nodes", "ranks_per_node"), [(1, 2, 2), (3, 2, 3), (4, 3, 2), (2, 1, 4), (5, 4, 1)])
def test_expected_rows_are_the_mean_over_all_sets_of_experts_and_all_senders(way, chosen, nodes, ranks_per_node):
    n_experts = 12
    sets = np.array(list(combinations(range(n_experts), chosen)))
    senders = nodes * ranks_per_node
    rows = traffic([sets] * senders, n_experts, ranks_per_node, way)
    counted = rows_between_nodes(rows, ranks_per_node), rows_inside_nodes(rows, ranks_per_node)
    expected = expected_rows(n_experts, chosen, nodes, ranks_per_node, way)
    assert expected == pytest.approx([count / (senders * len(sets)) for count in counted])


def test_a_row_has_the_bytes_of_its_message():
    sent = to_bytes(quantize(torch.randn(3, V3.hidden_size), (1, 128), power_of_two_scales=True))
    assert row_bytes(V3.hidden_size, fp8=True) == sent.shape[1] == 7168 + 56
    assert row_bytes(100, fp8=True) == 101
    sizes = communication_bytes(V3)  # with scales of 4 bytes
    assert (sizes["dispatch"].bf16, sizes["dispatch"].fp8) == (row_bytes(7168), row_bytes(7168, True, scale_bytes=4))


def test_13_experts_on_4_nodes_take_as_long_as_4():
    """The report's statement: 12.8, rounded."""
    size, nodes = row_bytes(V3.hidden_size, fp8=True), V3.topk_group
    assert free_experts(nodes) == pytest.approx(nodes * 3.2)
    assert round(free_experts(nodes)) == 13

    def time(chosen: int) -> float:
        return max(seconds(most_rows(chosen, nodes).times(size)))

    assert {time(chosen) for chosen in range(4, 13)} == {4 * size / (50 * GIGA)}
    assert time(3) < time(4) < time(13) < 1.016 * time(4)
    assert most_rows(V3.num_experts_per_tok, nodes) == tuple(most_copies(V3).values())
    assert seconds(Moved(100 * GIGA, 320 * GIGA)) == pytest.approx((2, 2))


# RDMA and NVLink bandwidths in GB/s that others measured with DeepEP's test, 8 of 256 experts on 8 GPUs a node; with
# 2 and 4 nodes there is no limit on nodes. From deepseek-ai/DeepEP, issues 51, 361 and 493.
LOGS = {2: [(43.24, 141.14), (44.00, 144.10), (44.37, 145.16), (45.35, 148.50)], 4: [(12.53, 25.05), (12.27, 24.51)]}


@pytest.mark.parametrize("nodes", LOGS)
def test_measured_bandwidths_are_in_the_ratio_of_the_expected_rows(nodes):
    """DeepEP counts a row for each node, and a row for each GPU that receives it."""
    by_gpu, by_node = (expected_groups(256, 8, groups) for groups in (8 * nodes, nodes))
    for between, inside in LOGS[nodes]:
        assert inside / between == pytest.approx(by_gpu / by_node, rel=0.01)


def test_a_benchmark_can_report_more_than_the_link_has():
    """DeepEP's README: 58 GB/s on 4 nodes with links of 50; DeepEP#285 finds 21.5 on the link where it says 43."""
    assert algorithm_bandwidth(43.5, rows=4, crossing=3) == 58
    assert algorithm_bandwidth(21.5, rows=2, crossing=1) == 43
    for nodes in (2, 4, 8):
        rows, crossing = expected_groups(256, 8, nodes), expected_rows(256, 8, nodes, 8, "two hops").between_nodes
        assert algorithm_bandwidth(50, rows, crossing) == pytest.approx(50 * nodes / (nodes - 1))
    with pytest.raises(ValueError, match=r"^crossing=0 is not possible: it must be above 0 and at most rows=2\.$"):
        algorithm_bandwidth(50, 2, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((12, 13, 2), "^chosen=13 .* at least 1 and at most 12"),
        ((12, 4, 5), "^groups=5 .* a divisor of the number of experts, 12"),
        ((12, 4, 0), "^groups=0 "),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        expected_groups(*arguments)
    with pytest.raises(ValueError, match=r"^way='by mail' is not possible: it must be per expert or per rank or two"):
        expected_rows(12, 4, 2, 2, "by mail")
