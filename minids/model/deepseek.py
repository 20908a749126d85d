"""The whole model: embedding, blocks, final norm, output head, and the MTP modules, with their losses.

    code            released weight
    embed_tokens    model.embed_tokens.weight
    layers          model.layers.N.…                (block.py)
    norm            model.norm.weight
    lm_head         lm_head.weight
    mtp             model.layers.{l+k-1}.…          (mtp.py)

Training minimises (V3 report eq. 17, 24, 25)

    total = next-token cross-entropy  +  λ · mean over MTP depths of their cross-entropy
                                      +  α · sum over MoE layers, MTP's too, of the sequence-wise balance loss

All losses start from `token_losses`: what each token cost at each depth. A mask says which tokens count. After each
optimizer step, `update_expert_bias` moves the bias of every gate by γ.
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
    """What each token cost. Depth 0 is the main head, depth k the k-th MTP module.

    `nats[k][:, i]` is the cross-entropy of predicting token i + k + 1, and 0 where that token does not count.
    """

    nats: list[Tensor]  # (B, T - k - 1) for each depth k
    balance: Tensor  # sum over the MoE layers, mean over the sequences


@dataclass(frozen=True)
class LossTerms:
    """`total` is what to minimise; `mtp` and `balance` come without their weights λ and α. Cross-entropy is in nats."""

    total: Tensor
    next_token: Tensor
    mtp: Tensor
    balance: Tensor
    nats_B: Tensor  # without gradient: the sum over each sequence of the main head's cross-entropies


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
        if not self.lm_head.weight.is_meta:  # a model without memory has nothing to draw
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every matrix from N(0, initializer_range²) (V3 report §4.2); norms start at 1, biases at 0.

        With embedding_initializer_range the embedding has a deviation of its own. An embedding as small as the other
        weights is much smaller than what the first layers add to it at the start.
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
        """Return next-token logits (B, T, vocab_size). With a cache, `tokens_BT` continue what it holds."""
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

    def rope(self, start: int, length: int) -> Tensor:
        """Return RoPE's rotation at positions start ... start + length - 1, complex (length, rope_dim / 2)."""
        # Not a buffer: model.to(torch.bfloat16) would round the angles away.
        positions = torch.arange(start, start + length, device=self.lm_head.weight.device)
        return rope_rotation(self.config, positions)

    def mtp_hidden_states(self, tokens_BT: Tensor, hidden_BTD: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return, for each depth k, its hidden states (B, T - k, hidden) and its balance loss.

        Position i of depth k has seen tokens 0 ... i+k, so the head predicts token i+k+1 from it.
        """
        out = []
        for k, module in enumerate(self.mtp, start=1):
            embedding_BTD = self.embed_tokens(tokens_BT[:, k:])
            rotation = self.rope(0, embedding_BTD.shape[1])
            hidden_BTD, module_balance = module(hidden_BTD[:, :-1], embedding_BTD, rotation)
            out.append((hidden_BTD, module_balance))
        return out

    def token_losses(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> TokenLosses:
        """Return what each of the tokens (B, T) cost to predict, at every depth.

        `mask_BT` says which tokens count as targets, at every depth alike; without it all do. (Token 0 is never
        predicted, and depth k predicts no token before k + 1.) The mask is about targets alone. Every token is read and
        counts for the loads of the gates and the balance loss, so rows are to be packed, not padded. In training mode
        the gates count their load meanwhile; in evaluation mode the balance loss is 0. Raises ValueError for rows too
        short to predict anything.
        """
        shortest = 2 + len(self.mtp)
        if tokens_BT.ndim != 2 or tokens_BT.shape[1] < shortest:
            raise ValueError(f"tokens have shape {tuple(tokens_BT.shape)}: (B, T) with T of at least {shortest}.")
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
        """Return the training loss on tokens (B, T): means over the tokens that `mask_BT` lets count, or over all.

        Where these rows are a micro-batch, `whole_mask_BT` is the mask of the whole batch, and every term is the
        share of these rows in the mean over the whole: the terms of all parts add up to those of the batch, however
        unequal the parts are. Modes and errors are those of `token_losses`.

        (The report divides the sum of every depth by the same length; dividing by the number of its terms gives λ the
        same weight at every length.)
        """
        losses = self.token_losses(tokens_BT, mask_BT)
        own_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if mask_BT is None else mask_BT
        whole_BT = own_BT if whole_mask_BT is None else whole_mask_BT
        counts = [whole_BT[:, k + 1 :].sum() for k in range(len(losses.nats))]
        # Where no token counts there is nothing to learn: 0, not 0 / 0.
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
    def gates(self) -> list[Gate]:
        """The routers, from the first MoE layer to the MTP modules."""
        return [module for module in self.modules() if isinstance(module, Gate)]

    def update_expert_bias(self, speed: float) -> list[Tensor]:
        """Balance every gate by the tokens it routed since the last call, and return those loads.

        Call once per optimizer step, after all its micro-batches: forward passes in training mode
        add up in `gate.load`, and this consumes it. `speed` is γ; 0 leaves the biases alone.
        """
        loads = []
        for gate in self.gates:
            loads.append(gate.load.clone())
            if gate.expert_bias is not None:
                update_expert_bias(gate.expert_bias, gate.load, speed)
            gate.load.zero_()
        return loads
