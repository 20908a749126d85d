"""The one linear layer: every projection of the model is a `Linear`, except the gate and the experts' stacked matrices.

    y = x W^T        W: (out, in), as it is released; no layer of the family has a bias

How the product is computed is one attribute, `product`, a function of x and the weight as it is stored. The default is
torch's, which runs in bfloat16 under autocast. Whatever multiplies differently is set there, layer by layer, and
nowhere else: `layer.product = fp8_product`, or a product whose backward pass leaves the gradient of the weight for
later, as pipeline schedules need it. A layer that stores its weights in another form, such as 4 bits, is a subclass
whose `weight` is a property and whose `__init__` begins with that of nn.Module.

`Experts` (moe.py) has the same attribute for its grouped products. The gate (moe.py) has none, because it must decide
in float32, and the embedding multiplies nothing. MLA's absorbed form (mla.py) reads the weight of `kv_b_proj` itself.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """A matrix without bias: (..., in_features) -> (..., out_features). Its weight starts as in torch's own layer."""

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)  # of x (..., X) and weight (Y, X)

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)
