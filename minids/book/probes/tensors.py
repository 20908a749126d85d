"""Collects what the FP8 products of a model read: weights, their inputs x and the gradients dy of their outputs.

One forward and one backward pass of a copy of the model, as in a training step, with every product of a linear layer
and of the experts observed. They are the `fp8_layers` (quantization/products.py): not the output head and the
projection of MTP modules."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minids.model.deepseek import DeepSeek
from minids.quantization.products import fp8_layers, leave_fp8
from minids.text.batches import Batches, encode_split
from minids.text.corpus import load_corpus
from minids.text.tokenizer import Tokenizer

DOCUMENTS = 40  # of each domain, from which rows are packed: all of them would take seconds to encode
KINDS = {"weights W": "weight", "activations x": "x", "gradients dy": "dy"}
SAMPLE = 1_000_000


@dataclass(frozen=True)
class Operands:
    """The operands of one product y = x W^T and of its backward pass; of the experts, all their rows together."""

    weight: Tensor  # (Y, X), or (experts, Y, X)
    x: Tensor  # (rows, X)
    dy: Tensor  # (rows, Y): the gradient of the loss with respect to y


def operands(model: DeepSeek, tokens: np.ndarray | Tensor) -> dict[str, Operands]:
    """Return the operands of each product that V3 computes in FP8, by the name of its weight, in float32.

    The loss is that of training on these rows of tokens (B, T + 1): a mean over them, so dy is smaller for more tokens.
    """
    model = deepcopy(model).float().train()  # a gate counts tokens in training mode
    leave_fp8(model)
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def observed(name: str, module: torch.nn.Module, product: Callable) -> Callable:
        def multiply(x: Tensor, weight: Tensor, *counts) -> Tensor:
            last = next(last for last, known in module.named_parameters() if known is weight)
            y = product(x, weight, *counts)
            inputs[f"{name}.{last}"] = x.detach().flatten(0, -2)
            y.register_hook(lambda dy: gradients.update({f"{name}.{last}": dy.flatten(0, -2)}))
            return y

        return multiply

    for name, module in fp8_layers(model).items():
        module.product = observed(name, module, module.product)
    model.loss(torch.as_tensor(tokens).long()).total.backward()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return {name: Operands(weights[name], x, gradients[name]) for name, x in inputs.items()}


def kinds(found: dict[str, Operands], count: int = SAMPLE) -> dict[str, Tensor]:
    """Return so many numbers of each kind of tensor, (count,), drawn at random from all of its numbers."""
    dice, out = torch.Generator().manual_seed(0), {}
    for kind, name in KINDS.items():
        numbers = torch.cat([getattr(one, name).flatten() for one in found.values()])
        out[kind] = numbers[torch.randint(len(numbers), (count,), generator=dice)]
    return out


def training_rows(tokenizer: Tokenizer, rows: int = 4, length: int = 256) -> Tensor:
    """Return rows of training text, (rows, length + 1): by default half as many tokens as a step of `mini`'s has.

    They are packed from the first documents of each domain only.
    """
    corpus = load_corpus()
    some = {domain: documents[:DOCUMENTS] for domain, documents in corpus.train.items()}
    batches = Batches(encode_split(tokenizer, some), corpus.mixture, length, seed=0)
    return torch.as_tensor(batches.batch(0, rows)["tokens"])
