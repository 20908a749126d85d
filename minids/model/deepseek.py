"""The whole model: embedding, blocks, final norm, output head and MTP modules, with the training losses.

    code            released weight
    embed_tokens    model.embed_tokens.weight
    layers          model.layers.N.…                (block.py)
    norm            model.norm.weight
    lm_head         lm_head.weight
    mtp             model.layers.{l+k-1}.…          (mtp.py)

Training minimises (V3 report eq. 17, 24, 25)

    total = next-token cross-entropy  +  λ · mean of the cross-entropies of the MTP depths
                                      +  α · sum of the sequence-wise balance losses of all MoE layers, also MTP's

All losses are computed from `token_losses`, the cross-entropy of each token at each depth. A mask selects the tokens
that count. After each optimizer step, `update_expert_bias` changes the biases of all gates by γ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minids.model.balance import update_expert_bias
from minids.model.block import Block
from minids.model.cache import Cache
from minids.model.config import ModelConfig
from minids.model.kernels import cross_entropy
from minids.model.layers import RMSNorm
from minids.model.linear import Linear
from minids.model.moe import Experts, Gate
from minids.model.mtp import MTPModule
from minids.model.rope import rope_rotation


@dataclass(frozen=True)
class TokenLosses:
    """The loss of each token. Depth 0 is the main head, depth k the k-th MTP module.

    `nats[k][:, i]` is the cross-entropy of predicting token i + k + 1, or 0 if the mask excludes that token.
    """

    nats: list[Tensor]  # (B, T - k - 1) for each depth k
    balance: Tensor  # summed over the MoE layers, averaged over the sequences


@dataclass(frozen=True)
class LossTerms:
    """`total` is the loss to minimise; `mtp` and `balance` are without the weights λ and α. Unit: nats."""

    total: Tensor
    next_token: Tensor
    mtp: Tensor
    balance: Tensor
    nats_B: Tensor  # the main head's cross-entropies, summed over each sequence, without gradient


class DeepSeek(nn.Module):
    """A model of the DeepSeek family: tokens (B, T) -> logits of the next token (B, T, vocab_size)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = Linear(c.hidden_size, c.vocab_size)
        if c.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.mtp = nn.ModuleList(MTPModule(c, c.num_hidden_layers + k) for k in range(c.num_nextn_predict_layers))
        if not self.lm_head.weight.is_meta:  # a model on the meta device has no memory to initialise
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every matrix from N(0, initializer_range²) (V3 report §4.2); norms start at 1, biases at 0.

        `embedding_initializer_range` sets another standard deviation for the embedding. With that of the other weights,
        the embedding is much smaller than the outputs that the first layers add to it at the start of training.
        """
        for module in self.modules():
            if isinstance(module, (Linear, nn.Embedding, Gate)):
                module.weight.normal_(std=self.config.initializer_range)
            if isinstance(module, Gate):
                module.reset_balance()
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            if isinstance(module, Experts):
                module.gate_up_proj.normal_(std=self.config.initializer_range)
                module.down_proj.normal_(std=self.config.initializer_range)
        if self.config.embedding_initializer_range is not None:
            self.embed_tokens.weight.normal_(std=self.config.embedding_initializer_range)

    def new_cache(self, batch_size: int, max_length: int) -> list[Cache]:
        """Return one empty cache per layer, for `max_length` positions."""
        return [layer.self_attn.new_cache(batch_size, max_length) for layer in self.layers]

    def forward(self, tokens_BT: Tensor, cache: list[Cache] | None = None) -> Tensor:
        """Return next-token logits (B, T, vocab_size). With a cache, `tokens_BT` follow the cached tokens."""
        hidden_BTD, _ = self.hidden_states(tokens_BT, cache)
        return self.lm_head(hidden_BTD)

    def hidden_states(self, tokens_BT: Tensor, cache: list[Cache] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the hidden states after the final norm (B, T, hidden), and each MoE layer's balance loss."""
        start = 0 if cache is None else cache[0].length
        rotation = self.rope(start, tokens_BT.shape[1])
        x_BTD, balances = self.embed_tokens(tokens_BT), []
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            x_BTD, layer_balance = layer(x_BTD, rotation, layer_cache)
            balances.append(layer_balance)
        return self.norm(x_BTD), [b for b in balances if b is not None]

    def rope(self, start: int | Tensor, length: int) -> Tensor:
        """Return RoPE's rotation at positions start ... start + length - 1, complex (length, rope_dim / 2).

        If sequences start at different positions (B,), it is (B, 1, length, rope_dim / 2), the same for all heads.
        """
        # Not a buffer, because model.to(torch.bfloat16) would round the angles.
        start = start[:, None, None] if isinstance(start, Tensor) else start
        return rope_rotation(self.config, start + torch.arange(length, device=self.device))

    def mtp_hidden_states(self, tokens_BT: Tensor, hidden_BTD: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return the hidden states (B, T - k, hidden) and the balance loss of each depth k.

        Position i of depth k depends on tokens 0 ... i+k, and the head predicts token i+k+1 from it.
        """
        out = []
        for k, module in enumerate(self.mtp, start=1):
            embedding_BTD = self.embed_tokens(tokens_BT[:, k:])
            rotation = self.rope(0, embedding_BTD.shape[1])
            hidden_BTD, module_balance = module(hidden_BTD[:, :-1], embedding_BTD, rotation)
            out.append((hidden_BTD, module_balance))
        return out

    def token_losses(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> TokenLosses:
        """Return the cross-entropy of each token of (B, T), at every depth.

        `mask_BT` selects the tokens that count as targets, the same at every depth; by default all do. (Token 0 is
        never predicted, and depth k predicts no token before k + 1.) The mask applies to targets only: all tokens are
        inputs, and count in the gates' load and the balance loss, so pack the rows, do not pad them. In training mode
        the gates count their load; in evaluation mode the balance loss is 0. Raises ValueError if the rows are too
        short for the deepest prediction.
        """
        shortest = 2 + len(self.mtp)
        if tokens_BT.ndim != 2 or tokens_BT.shape[1] < shortest:
            raise ValueError(f"tokens have shape {tuple(tokens_BT.shape)}: use (B, T) with T at least {shortest}.")
        inputs = tokens_BT[:, :-1]
        hidden_BTD, balances = self.hidden_states(inputs)
        nats = [self._cross_entropy(hidden_BTD, tokens_BT[:, 1:])]
        for k, (depth_BTD, balance) in enumerate(self.mtp_hidden_states(inputs, hidden_BTD), start=1):
            nats.append(self._cross_entropy(depth_BTD, tokens_BT[:, k + 1 :]))
            balances += [balance] if balance is not None else []
        if mask_BT is not None:
            nats = [depth_nats * mask_BT[:, k + 1 :] for k, depth_nats in enumerate(nats)]
        return TokenLosses(nats, torch.stack(balances).sum() if balances else nats[0].new_zeros(()))

    def loss(
        self, tokens_BT: Tensor, mask_BT: Tensor | None = None, *, mtp_weight: float = 0.3,
        balance_weight: float = 1e-4, whole_mask_BT: Tensor | None = None,
    ) -> LossTerms:  # fmt: skip
        """Return the training loss on tokens (B, T): means over the tokens that `mask_BT` selects, by default all.

        If the rows are a micro-batch, `whole_mask_BT` is the mask of the whole batch. Each term is then this
        micro-batch's share of the mean over the batch, so the terms of all micro-batches sum to those of the batch,
        whatever their sizes. For modes and errors see `token_losses`.

        (The report divides the sum at every depth by the same length T. Here each sum is divided by its number of
        terms, so that λ has the same weight at every length.)
        """
        losses = self.token_losses(tokens_BT, mask_BT)
        own_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if mask_BT is None else mask_BT
        whole_BT = own_BT if whole_mask_BT is None else whole_mask_BT
        counts = [whole_BT[:, k + 1 :].sum() for k in range(len(losses.nats))]
        # If no token counts, the loss is 0, not 0 / 0.
        means = [nats.sum() / count.where(count > 0, 1) for nats, count in zip(losses.nats, counts, strict=True)]
        next_token, *depths = means
        mtp = torch.stack(depths).mean() if depths else next_token.new_zeros(())
        balance = losses.balance * (len(tokens_BT) / len(whole_BT))
        total = next_token + mtp_weight * mtp + balance_weight * balance
        return LossTerms(total, next_token, mtp, balance, losses.nats[0].detach().sum(dim=1))

    def _cross_entropy(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTV = self.lm_head(hidden_BTD)
        return cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()).view_as(targets_BT)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def gates(self) -> list[Gate]:
        """The gates of all MoE layers in order, the MTP modules' last."""
        return [module for module in self.modules() if isinstance(module, Gate)]

    def update_expert_bias(self, speed: float) -> list[Tensor]:
        """Update the bias of every gate from the tokens routed since the last call, and return those loads.

        Call it once per optimizer step, after all micro-batches: forward passes in training mode add to `gate.load`,
        and this resets it. `speed` is γ; 0 leaves the biases unchanged.
        """
        loads = []
        for gate in self.gates:
            loads.append(gate.load.clone())
            if gate.expert_bias is not None:
                update_expert_bias(gate.expert_bias, gate.load, speed)
            gate.load.zero_()
        return loads
