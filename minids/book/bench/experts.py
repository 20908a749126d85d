"""The expert layer alone, forward and backward in float32: its speed as a share of that of one large matrix product.

The yardstick is a dense product timed in the same run, 4096×256×1024 with both its gradients: the rate at which
this machine multiplies when nothing has to be sorted. The layer always does the same multiplications,
4,096 tokens through 8 experts of width 64 each; only the number of experts that they are spread over varies.
The routing changes from call to call.
"""

import torch
from torch import Tensor

from minids.book.bench.measure import alternate, ratio, summary
from minids.model.moe import Experts, combine, dispatch

TOKENS, HIDDEN, WIDTH, CHOSEN = 4096, 256, 64, 8
GEMM = "one matrix product"
FLOPS = 3 * 2 * TOKENS * CHOSEN * 3 * HIDDEN * WIDTH  # forward and two gradients, three matrices
GEMM_FLOPS = 3 * 2 * TOKENS * HIDDEN * 1024


def measure(threads: list[int], rounds: int) -> list[dict]:
    """Return, for each number of threads, the share of the yardstick's rate, and the growth from 8 to 256 experts."""
    layers = {f"{n} experts": Layer(n) for n in (8, 64, 256)} | {"64 experts, skewed": Layer(64, skew=0.15)}
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        samples = alternate({GEMM: Gemm(), **layers}, rounds)
        best = GEMM_FLOPS / min(sample.seconds for sample in samples[GEMM])
        sides = {name: summary(taken) for name, taken in samples.items()}
        rows.append({
            "threads": count, "gemm_gflops": best / 1e9, "sides": sides,
            "share": {name: FLOPS / (sides[name]["median_ms"] / 1e3) / best for name in layers},
            "growth": ratio(samples["256 experts"], samples["8 experts"]),
            "max_over_mean_load": {name: layer.imbalance() for name, layer in layers.items()},
        })  # fmt: skip
    return rows


class Gemm:
    """The yardstick: a product and its two gradients."""

    def __init__(self):
        self.x, self.w, self.dy = torch.randn(TOKENS, HIDDEN), torch.randn(1024, HIDDEN), torch.randn(TOKENS, 1024)

    def __call__(self) -> None:
        torch.mm(self.x, self.w.T)
        torch.mm(self.dy, self.w)
        torch.mm(self.dy.T, self.x)


class Layer:
    """minids' experts, forward and backward, under a dozen routings in turn."""

    def __init__(self, n_experts: int, skew: float = 0.01):
        torch.manual_seed(0)
        self.experts = Experts(n_experts, HIDDEN, WIDTH)
        for weight in self.experts.parameters():
            weight.data.normal_(std=0.06)
        self.x = torch.randn(TOKENS, HIDDEN, requires_grad=True)
        self.dy = torch.randn(TOKENS, HIDDEN)
        favour = skew * torch.randn(n_experts)  # some experts are preferred by all tokens
        self.routings = [(torch.rand(TOKENS, n_experts) + favour).topk(CHOSEN) for _ in range(12)]
        self.calls = 0

    def __call__(self) -> None:
        weights_NK, experts_NK = self.routings[self.calls % len(self.routings)]
        self.calls += 1
        n_experts = len(self.experts.down_proj)
        rows_RD, route = dispatch(self.x, weights_NK.detach().requires_grad_(), experts_NK, n_experts)
        combine(self.experts(rows_RD, route.weight_R, route.counts_E), route, TOKENS).backward(self.dy)
        self.x.grad = self.experts.gate_up_proj.grad = self.experts.down_proj.grad = None

    def imbalance(self) -> float:
        """Return the busiest expert's load over the mean."""
        load_E: Tensor = self.routings[0].indices.flatten().bincount(minlength=len(self.experts.down_proj)).float()
        return (load_E.max() / load_E.mean()).item()
