"""The linear layer: every projection of the model is a `Linear`, except the gate and the experts' stacked matrices.

    y = x W^T        W: (out, in), as in the released weights; no layer of the family has a bias

The attribute `product` is the function of x and the stored weight that computes the product. The default is torch's,
which runs in bfloat16 under autocast. Other kinds of products are set there, layer by layer: `layer.product =
fp8_product`, or a product whose backward pass defers the weight's gradient, as pipeline schedules need it. A layer with
another storage format, such as 4 bits, is a subclass in which `weight` is a property and whose `__init__` begins by
calling nn.Module's.

`Experts` (moe.py) has the same attribute for its grouped products. The gate (moe.py) has none, because it must compute
in float32; the embedding has none, because it is a look-up. MLA's absorbed form (mla.py) reads the weight of
`kv_b_proj` directly.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """A matrix without bias: (..., in_features) -> (..., out_features). Initialised as torch's nn.Linear."""

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)  # of x (..., X) and weight (Y, X)

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)
