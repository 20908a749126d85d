"""The model cut into stages, each with the modules of its layers and nothing else.

    first stage    embed_tokens, layers
    middle         layers
    last stage     layers, norm, lm_head, MTP modules; embed_tokens, too, if MTP or a tied head needs it

Names are those of the whole model, such as layers.3.mlp.gate.weight, so gradients, weights and checkpoints of stages
are parts of the model's. Stages send to one another the residual stream and the sum of the balance losses so far, one
number per micro-batch. The gradients of both travel back.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from minids.model.cache import Cache
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.validation import require


def layers_of(config: ModelConfig, stages: int) -> list[range]:
    """Return each stage's layers: consecutive, and as even as possible, the later stages with one more.

    Raises ValueError for more stages than layers.
    """
    count = config.num_hidden_layers
    require("stages", stages, 1 <= stages <= count, f"from 1 to the model's {count} layers")
    ends = [stage * count // stages for stage in range(stages + 1)]
    return [range(*pair) for pair in pairwise(ends)]


class Stage(DeepSeek):
    """Stage `index` of `stages`. It takes the modules of a whole model, which it shares.

    For a loss function, the last stage is a model: `token_losses` and `loss` give what those of the whole model give,
    for the micro-batch whose activations have been received last, and for no other tokens. Its parameters are those of
    the stage.
    """

    def __init__(self, model: DeepSeek, index: int, stages: int):
        nn.Module.__init__(self)  # not DeepSeek's, which makes all layers
        c = self.config = model.config
        self.is_first, self.is_last = index == 0, index == stages - 1
        if self.is_first or (self.is_last and (len(model.mtp) or c.tie_word_embeddings)):
            self.embed_tokens = model.embed_tokens
        self.layers = nn.ModuleDict({str(i): model.layers[i] for i in layers_of(c, stages)[index]})
        if self.is_last:
            self.norm, self.lm_head = model.norm, model.lm_head
        self.mtp = model.mtp if self.is_last else nn.ModuleList()

    def start(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the first stage works on: the embedded tokens, and no balance loss yet."""
        return self.embed_tokens(tokens_BT[:, :-1]), self.embed_tokens.weight.new_zeros(1)

    def forward(self, x_BTD: Tensor, balance_1: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residual stream after this stage's layers, and the sum of the balance losses up to there."""
        rotation = self.rope(0, x_BTD.shape[1])
        for layer in self.layers.values():
            x_BTD, balance = layer(x_BTD, rotation)
            if balance is not None:
                balance_1 = balance_1 + balance
        return x_BTD, balance_1

    def receive(self, tokens_BT: Tensor, x_BTD: Tensor, balance_1: Tensor) -> None:
        """Give the last stage what its losses are computed from: tokens, and what the stage before sent for them."""
        self.received = tokens_BT, x_BTD, balance_1

    def hidden_states(self, tokens_BT: Tensor, cache: list[Cache] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the whole model's hidden states after the final norm, from what was received.

        Raises ValueError for other tokens than those, because only the whole model could process them, and for a cache.
        """
        received_BT, *sent = self.received
        if cache is not None or not torch.equal(tokens_BT, received_BT[:, :-1]):
            raise ValueError("the loss of a pipeline can use the tokens of its micro-batch only, and no cache.")
        x_BTD, balance_1 = self(*sent)
        return self.norm(x_BTD), [balance_1.squeeze()]


def load(stages: list[Stage], tensors: dict[str, Tensor], device: torch.device) -> None:
    """Give the stages of one rank memory on the device, and copy their weights from a dict of the model's, or more."""
    nn.ModuleList(stages).to_empty(device=device)
    for stage in stages:
        if stage.is_last and stage.config.tie_word_embeddings:  # to_empty unties them
            stage.lm_head.weight = stage.embed_tokens.weight
        with torch.no_grad():
            for name, tensor in stage.state_dict(keep_vars=True).items():
                tensor.copy_(tensors[name])
        for gate in stage.gates:
            gate.load.zero_()
