"""The one linear layer: every weight matrix of the model, but for the experts' stacked ones, is a `Linear`.

    y = x W^T        W: (out, in), as it is released; no layer of the family has a bias

How the product is computed is one attribute, `product`. The default is torch's, which runs in bfloat16 under
autocast. Whatever multiplies differently replaces it there and nowhere else: products in FP8, or a backward pass that
leaves the weight's gradient for later, as pipeline schedules want it. A layer whose weights are stored in another
form, such as 4 bits, is a subclass with a `weight` of its own. `Experts` (moe.py) has the same attribute for its
grouped products. Two matrices are multiplied without it: the gate's (moe.py), which must decide in float32, and
`kv_b_proj` in MLA's absorbed form (mla.py), which applies the two parts of the weight separately.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A matrix without bias: (..., in_features) -> (..., out_features)."""

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)  # of x (..., X) and weight (Y, X)

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)
