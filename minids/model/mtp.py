"""Multi-token prediction (V3 report §2.2): one more block predicts one more token ahead.

Each position then has two targets instead of one, and its hidden state must hold information about the token after the
next. The report's reasons are a denser training signal and representations that plan ahead.

The main model predicts token i+1 from its hidden state at position i. Module k takes the hidden state of depth k-1 and
the embedding of token i+k, and predicts token i+k+1 (eq. 21-23):

    h'_i^k = M_k [norm(h_i^{k-1}) ; norm(Emb(t_{i+k}))]      h^k = TRM_k(h'^k)      P_{i+k+1} = OutHead(h_i^k)

Embedding and output head are shared with the main model. Each prediction depends only on earlier tokens: to predict
token i+2, module 1 gets token i+1 as input. The modules can be dropped after training, or used for speculative
decoding. deepseek.py calls them and aligns hidden states, embeddings and targets.

    paper     code          released weight (model.layers.{l+k-1}.…, after the main model's l layers)
    M_k       eh_proj       eh_proj.weight           (hidden, 2 hidden), BF16 in the FP8 release
    norm      enorm         enorm.weight             on the embedding
    norm      hnorm         hnorm.weight             on the hidden state
    TRM_k     block         self_attn.…, mlp.…, the block's norms
    –         norm          shared_head.norm.weight  before the shared head
    Emb       –             embed_tokens.weight      stored again, equal to the main model's
    OutHead   –             shared_head.head.weight  stored again, equal to the main model's

Where the equations leave details open or differ, this follows the released weights and Hugging Face's MtpModel. The
weights expect [embedding ; hidden], the other order. h^k is normalised before the head, and module k+1 receives the
normalised h^k. h^0, in the report "the representation given by the main model", is taken after the final norm.
"""

import torch
from torch import Tensor, nn

from minids.model.block import Block
from minids.model.cache import Cache
from minids.model.config import ModelConfig
from minids.model.layers import RMSNorm
from minids.model.linear import Linear


class MTPModule(nn.Module):
    """Module k: hidden states of depth k-1 -> normalised hidden states of depth k, the head's input."""

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

        `hidden_BTD[:, i]` depends on tokens up to i+k-1; `embedding_BTD[:, i]` is the embedding of token i+k.
        """
        joined = torch.cat([self.enorm(embedding_BTD), self.hnorm(hidden_BTD)], dim=-1)
        x_BTD, balance = self.block(self.eh_proj(joined), rotation, cache)
        return self.norm(x_BTD), balance
