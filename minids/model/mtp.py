"""Multi-token prediction (V3 report §2.2): one more block learns to predict one more token ahead.

Each position then teaches two tokens instead of one, and the hidden state has to hold what comes after
the next token: a denser signal, and planning ahead, are the report's reasons.

The main model's hidden state at position i predicts token i+1. Module k takes the hidden state of
depth k-1 and the embedding of token i+k, and predicts token i+k+1 (eq. 21-23):

    h'_i^k = M_k [norm(h_i^{k-1}) ; norm(Emb(t_{i+k}))]      h^k = TRM_k(h'^k)      P_{i+k+1} = OutHead(h_i^k)

Embedding and output head are the main model's own. The chain stays causal: to say what comes after the
next token, the module is told the next token. It can be dropped after training, or used to draft tokens.
deepseek.py calls the modules and aligns hidden states, embeddings and targets.

    paper     code          released weight (model.layers.{l+k-1}.…, l layers before)
    M_k       eh_proj       eh_proj.weight           (hidden, 2 hidden), BF16 in the FP8 release
    norm      enorm         enorm.weight             on the embedding
    norm      hnorm         hnorm.weight             on the hidden state
    TRM_k     block         self_attn.…, mlp.…, the block's norms
    –         norm          shared_head.norm.weight  before the shared head
    Emb       –             embed_tokens.weight      stored again, equal to the main model's
    OutHead   –             shared_head.head.weight  stored again, equal to the main model's

Where the released weights and Hugging Face's MtpModel go beyond the equations, we follow them: the
weights take [embedding ; hidden], the other way round; h^k is normalised before the head, and it is
the normalised h^k that module k+1 receives; and h^0, which the report does not define, is taken
after the main model's final norm.
"""

import torch
from torch import Tensor, nn

from minids.model.block import Block
from minids.model.cache import Cache
from minids.model.config import ModelConfig
from minids.model.layers import RMSNorm
from minids.model.linear import Linear


class MTPModule(nn.Module):
    """The k-th module: hidden states of depth k-1 -> hidden states of depth k, ready for the head."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(d, eps)
        self.hnorm = RMSNorm(d, eps)
        self.eh_proj = Linear(2 * d, d)
        self.block = Block(config, layer_index)
        self.norm = RMSNorm(d, eps)

    def forward(
        self, hidden_BTD: Tensor, embedding_BTD: Tensor, rotation: Tensor, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the normalised hidden state and the block's balance loss.

        `hidden_BTD[:, i]` knows tokens up to i+k-1, `embedding_BTD[:, i]` is that of token i+k.
        """
        joined = torch.cat([self.enorm(embedding_BTD), self.hnorm(hidden_BTD)], dim=-1)
        x_BTD, balance = self.block(self.eh_proj(joined), rotation, cache)
        return self.norm(x_BTD), balance
