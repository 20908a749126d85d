"""A gallery of mistakes: small changes that make the library wrong, of kinds that implementations have shipped.

With most of them the model still runs, trains and writes text; one even has by far the best loss. So each has a test
that fails on it, marked `kills` (see tests/book/test_mistakes.py).

A variant is an edit of the library's current source (planting.py), so it cannot become outdated:

    wrong = WRONG_VARIANTS["the bias weighs"]
    print(wrong.diff())        # the lines that change
    with wrong.planted():      # inside the block, the whole library computes with the mistake
        ...
"""

from minids.book.planting import WrongVariant
from minids.cost.cache import kv_cache_elements
from minids.hub.load import _check, _read
from minids.inference.speculative import Drafter, judge, speculate
from minids.model.attention import _attend_block
from minids.model.balance import sequence_balance_loss, update_expert_bias
from minids.model.deepseek import DeepSeek
from minids.model.grouped import nonempty
from minids.model.mla import MLA
from minids.model.moe import Gate, fill_up
from minids.model.mtp import MTPModule
from minids.model.rope import softmax_scale
from minids.parallel.deferred import _Product
from minids.parallel.execute import Pipeline, _Stage
from minids.parallel.experts import ExpertParallel
from minids.parallel.shard import shard
from minids.quantization.fp8 import Quantized, quantize
from minids.training.distributed import ShardedTrainer
from minids.training.step import language_model_loss

_ROTATED = "self.heads * self.rope_dim"
_SUM = "        together(lambda flat, group=group: dist.all_reduce(flat, group=group), [local(p.grad) for p in mine])\n"
_EXPANDED = "self.heads * (self.nope_dim + self.v_dim)"

# fmt: off
_GALLERY = (
    # The gate
    WrongVariant(
        "the bias weighs",
        "The bias that balances the load also scales the experts' outputs, so that balancing disturbs the model again.",
        ((Gate.forward, "scores_NE.gather(1, experts_NK)  # s, not s + b",
                        "(scores_NE + self.expert_bias).gather(1, experts_NK)"),),
    ),
    WrongVariant(
        "masked groups score zero",
        "An expert of a masked group scores 0 and beats every kept one whose s + b is negative: tokens leave the kept "
        "groups. While all biases are positive, as in the released V3, nothing changes.",
        ((Gate.choose, 'float("-inf")', "0.0"),),
    ),
    WrongVariant(
        "the weight is the biased score minus the bias",
        "Rounding loses the score: with a bias of 12, an affinity of 1e-8 comes back as 0. A token whose affinities "
        "are all so small gets no output, or 0/0 where the normalisation adds no small number to its denominator.",
        ((Gate.forward, "scores_NE.gather(1, experts_NK)  # s, not s + b",
                        "(scores_NE + self.expert_bias).gather(1, experts_NK) - self.expert_bias[experts_NK]"),),
    ),
    WrongVariant(
        "the bias is kept in BF16",
        "Casting the model to BF16 rounds the biases, too. Released ones are close together and far from 0: of 238 "
        "between 6.82 and 7.06, where BF16 numbers are 1/32 apart, 9 are left, and many tokens go to other experts.",
        ((Gate._apply, "    # The bias moves to the weights' device but stays float32 in a bfloat16 model, "
                       "as released.\n    bias = self.expert_bias\n", ""),
         (Gate._apply, "super()._apply(fn, recurse)\n"
                       "    if bias is not None:\n"
                       "        self.expert_bias = self.expert_bias.float() if bias.is_meta "
                       "else bias.to(self.weight.device)\n"
                       "    return self", "return super()._apply(fn, recurse)")),
    ),
    WrongVariant(
        "no scaling factor",
        "The routed experts' output in every layer is too small, by a factor of 2.5 in V3 and of 16 in V2.",
        ((Gate.forward, "weights_NK * c.routed_scaling_factor", "weights_NK"),),
    ),
    # The experts' products
    WrongVariant(
        "rows past the last group are left unwritten",
        "The padding of all experts is put at the end, where no expert multiplies it. That saves work, but nothing "
        "writes these rows of the result, and their weight of 0 comes before the last product: token 0 gets whatever "
        "the memory holds, often zeros.",
        ((fill_up, "    shift_E = (filled_E - counts_E).cumsum(0) - (filled_E - counts_E)  "
                   "# padding before each expert's rows\n", ""),
         (fill_up, " + shift_E.repeat_interleave(counts_E)", ""),
         (fill_up, "token, filled_E)", "token, counts_E)"),
         (nonempty, "return zip(", "a_RX, b_RY = a_RX[: sum(sizes)], b_RY[: sum(sizes)]\n    return zip(")),
    ),
    # Balance
    WrongVariant(
        "the bias moves the wrong way",
        "Overloaded experts receive even more tokens, until a few receive all of them.",
        ((update_expert_bias, "load_E.mean() - load_E", "load_E - load_E.mean()"),),
    ),
    WrongVariant(
        "evaluation counts",
        "Tokens routed during evaluation change the biases at the next training step.",
        ((Gate.forward, "if self.training:", "if True:"),),
    ),
    WrongVariant(
        "the bias moves per micro-batch",
        "With four micro-batches a step, the biases are updated four times instead of once. Gradient accumulation is "
        "no longer the same training.",
        ((language_model_loss, "return model.loss(",
                               "loads = model.update_expert_bias(config.bias_speed_at(step))\n"
                               "    for gate, load in zip(model.gates, loads):\n"
                               "        gate.load += load\n"
                               "    return model.loss("),),
    ),
    WrongVariant(
        "the balance loss averages the batch first",
        "The opposite imbalances of two sequences cancel, and neither is corrected.",
        ((sequence_balance_loss, "(f_BE * P_BE).sum(dim=-1).mean()",
                                 "(f_BE.mean(dim=0) * P_BE.mean(dim=0)).sum()"),),
    ),
    WrongVariant(
        "the balance loss is never added",
        "It is computed and logged, but contributes no gradient.",
        ((DeepSeek.loss, " + balance_weight * balance", ""),),
    ),
    # Attention
    WrongVariant(
        "no YaRN temperature",
        "Attention is flatter than the weights were trained for: scores lack the factor m², 1.87 in V3.",
        ((softmax_scale, "config.qk_head_dim**-0.5 * m * m", "config.qk_head_dim**-0.5"),),
    ),
    WrongVariant(
        "half-split RoPE in MLA",
        "Training from scratch works equally well. Released weights, whose pairs are adjacent, are read wrongly.",
        ((MLA.queries, "interleaved=True", "interleaved=False"),
         (MLA.latent, "interleaved=True", "interleaved=False")),
    ),
    WrongVariant(
        "a rotated key per head",
        "The cache grows with the number of heads: in V3 from 576 numbers per token and layer to 8,704.",
        ((MLA.__init__, "self.latent_dim + self.rope_dim)", f"self.latent_dim + {_ROTATED})"),
         (MLA.new_cache, "self.latent_dim + self.rope_dim", f"self.latent_dim + {_ROTATED}"),
         (MLA.latent, "[self.latent_dim, self.rope_dim], dim=-1)",
                      f'[self.latent_dim, {_ROTATED}], dim=-1)\n'
                      '    k_rope = rearrange(k_rope, "b t (h r) -> b h t r", h=self.heads)'),
         (MLA.latent, "k_rope = apply_rope(k_rope[:, None], rotation, interleaved=True).squeeze(1)  # of one head",
                      "k_rope = apply_rope(k_rope, rotation, interleaved=True)\n"
                      '    k_rope = rearrange(k_rope, "b h t r -> b t (h r)")'),
         (MLA.attend_expanded, "[self.latent_dim, self.rope_dim]", f"[self.latent_dim, {_ROTATED}]"),
         (MLA.attend_expanded, "k_rope[:, None].expand(-1, self.heads, -1, -1)  # one rotated key, shared by all heads",
                            'rearrange(k_rope, "b s (h r) -> b h s r", h=self.heads)')),
    ),
    WrongVariant(
        "the scale of the latent",
        "The absorbed form divides by the square root of the latent's width: decoding and training attend differently.",
        ((MLA.attend_absorbed, "c_kv[:, None], self.scale,",
                               "c_kv[:, None], (self.latent_dim + self.rope_dim) ** -0.5,"),),
    ),
    WrongVariant(
        "expanded keys and values are cached",
        "Every output is right, but the cache is not small: in V3 32,832 numbers per token and layer are kept instead "
        "of 576.",
        ((MLA.new_cache, "self.latent_dim + self.rope_dim", f"{_EXPANDED} + self.rope_dim"),
         (MLA.latent, "torch.cat([c_kv,", "torch.cat([self.kv_b_proj(c_kv),"),
         (MLA.attend_expanded, "[self.latent_dim, self.rope_dim]", f"[{_EXPANDED}, self.rope_dim]"),
         (MLA.attend_expanded, "self.kv_b_proj(c_kv)", "c_kv"),
         (MLA.forward, "self.attend_absorbed(q_nope, q_rope, rows_BSW, cache.differing_lengths)",
                       "self.attend_expanded(q_nope, q_rope, rows_BSW)")),
    ),
    WrongVariant(
        "the latent counts twice",
        "Keys and values come from the same latent. Counting it once for each gives twice the published 70,272 bytes.",
        ((kv_cache_elements, "c.kv_lora_rank + c.qk_rope_head_dim if",
                             "2 * (c.kv_lora_rank + c.qk_rope_head_dim) if"),),
    ),
    WrongVariant(
        "a query sees one token ahead",
        "The mask is off by one, and every token attends to the token that it should predict. The loss is far too low.",
        ((_attend_block, ".triu(S - t + 1)", ".triu(S - t + 2)"),),
    ),
    # Multi-token prediction
    WrongVariant(
        "MTP skips its block",
        "The head reads the hidden state before the module's block. The block learns nothing, and no error appears.",
        ((MTPModule.forward, "x_BTD, balance = self.block(self.eh_proj(joined), rotation, cache)",
                             "x_BTD = self.eh_proj(joined)\n    _, balance = self.block(x_BTD, rotation, cache)"),),
    ),
    WrongVariant(
        "MTP predicts what it was told",
        "With targets one token early, the module predicts the token whose embedding is its input. Its training "
        "loss is very low, and its drafts repeat the last token.",
        ((DeepSeek.token_losses, "tokens_BT[:, k + 1 :]", "tokens_BT[:, k:-1]"),),
    ),
    WrongVariant(
        "MTP joins as the report prints it",
        "Equation 21 has the hidden state first, the released weights have the embedding first. From scratch both "
        "work; released weights work one way only.",
        ((MTPModule.forward, "self.enorm(embedding_BTD), self.hnorm(hidden_BTD)",
                             "self.hnorm(hidden_BTD), self.enorm(embedding_BTD)"),),
    ),
    WrongVariant(
        "MTP reads the token before",
        "The module's embedding is one token early: a token that its hidden state has read anyway. It has to predict "
        "two tokens ahead, so its loss is too high and its drafts are bad. The main model is not affected.",
        ((DeepSeek.mtp_hidden_states, "tokens_BT[:, k:]", "tokens_BT[:, k - 1 : -1]"),
         (Drafter.draft, "first + k, longest", "first + k - 1, longest")),
    ),
    WrongVariant(
        "MTP reads the state before the norm",
        "Speculative decoding gives the module the hidden state before the final norm, which it was not trained on. No "
        "output changes, and no error appears. Where that norm's weights are unequal, fewer drafts are accepted.",
        ((Drafter.draft, "first, longest)\n    for",
                         "first, longest) / self.model.norm.weight  # as before the norm, up to its length\n    for"),),
    ),
    WrongVariant(
        "MTP moves the mask twice",
        "The mask is aligned with the targets already, and every depth shifts it once more. Of a span of tokens, the "
        "last is not learned and the one before the first is.",
        ((DeepSeek.token_losses, "mask_BT[:, k + 1 :]", "mask_BT.roll(-k, 1)[:, k + 1 :]"),),
    ),
    WrongVariant(
        "MTP ignores the mask",
        "The mask selects targets of the main head only. The module also learns to predict the prompts and whatever "
        "else is masked, and spends its capacity there.",
        ((DeepSeek.token_losses, "* mask_BT[:, k + 1 :]", "* (1 if k else mask_BT[:, 1:])"),),
    ),
    # FP8
    WrongVariant(
        "block size guessed from shapes",
        "130 rows with 2 rows of scales are read as two blocks of 65, not as one of 128 and one of 2: rows 65 to 127 "
        "are multiplied by the scale of another block. Where 128 divides the sides, nothing changes.",
        ((_read, "get_tensor(name + SCALE), block))",
                 "get_tensor(name + SCALE),\n"
                 "            tuple(n // s for n, s in zip(tensor.shape, stored[name + SCALE].shape))))"),),
    ),
    WrongVariant(
        "experts flattened before quantising",
        "A block spans several experts, which then share a scale. While their numbers are of similar size, that costs "
        "next to nothing. Beside an expert that is 1e5 times larger, the others are rounded coarsely or to zero.",
        ((quantize, "dim=(-3, -1)", "dim=(*range(x.ndim - 2), -3, -1)"),),
    ),
    WrongVariant(
        "amax of zero",
        "A tile of zeros, such as padding between the rows of two experts, has the scale 0, and 0/0 is NaN. The next "
        "sum over tokens makes the gradient NaN.",
        ((quantize, "amax.clamp(min=floor) / format.largest", "amax / format.largest"),),
    ),
    WrongVariant(
        "scale of the transpose",
        "The transposed values are multiplied by the scales as they lie: block (0, 1) by that of (1, 0). In a square "
        "grid of blocks nothing fails, and while all blocks are of similar size, the error is small.",
        ((Quantized.mT.fget, "self.scales.mT", "self.scales"),),
    ),
    WrongVariant(
        "powers of two count as floats",
        "torch calls E8M0, the dtype of scales, a floating-point dtype. It has no sign, no zero and no mantissa. A "
        "weight that was cast to it is loaded without an error: -2 as 2, 0.3 as 0.25, 0 as 6e-39.",
        ((_check, "tensor.dtype not in FLOATS and", "tensor.dtype not in (*FLOATS, POWERS) and"),),
    ),
    # Speculative decoding
    WrongVariant(
        "every draft is accepted",
        "Nothing is verified. The text comes in the fewest steps, and half of its tokens or more are the MTP module's "
        "choice, not the model's.",
        ((judge, "luck_BK < p_BK / q_BK", "luck_BK < 1"),),
    ),
    WrongVariant(
        "the residual is p",
        "The token after a rejected draft is drawn from all of the model's distribution. Tokens that the module finds "
        "likely come too often, because those accepted as drafts are counted twice.",
        ((judge, "(p_BNV[row_B, accepted_B] - q_BNV[row_B, accepted_B]).clamp(min=0)", "p_BNV[row_B, accepted_B]"),),
    ),
    WrongVariant(
        "a greedy draft is judged as if it were sampled",
        "The draft is the module's likeliest token, always, but is accepted with probability min(1, p / q), as if it "
        "had been drawn from q. The module's favourites come too often. At temperature 0 nothing changes.",
        ((Drafter.draft, "draw(q_B1V[:, 0], generator)", "q_B1V[:, 0].argmax(dim=-1)"),),
    ),
    WrongVariant(
        "a draft counts as certain",
        "The rule for a draft that q gives probability 1, used for sampled drafts: they are accepted with probability "
        "p. This is the same as sampling from the model, too, and accepting equal drafts only. Every output is right, "
        "but with p = q = (0.5, 0.3, 0.2) the acceptance is 0.38 instead of 1.",
        ((judge, "drafts_BK[..., None]\n",
                 "drafts_BK[..., None]\n    q_BKV = torch.zeros_like(q_BKV).scatter_(2, drafts_BK1, 1.0)\n"),),
    ),
    WrongVariant(
        "rejected drafts stay in the cache",
        "The model goes on attending to drafts that are not in the text. After the first rejected draft, the text is "
        "another one.",
        ((speculate, "model.new_cache(B, final + 1 + K)", "model.new_cache(B, final + 1 + K * max_new_tokens)"),
         (speculate, "for rolled_back in (*cache, drafter.states):", "for rolled_back in (drafter.states,):")),
    ),
    # Pipelines
    WrongVariant(
        "copies keep their own gradients",
        "A parameter that is on two ranks gets a gradient on each, from what that rank computed. Without the sum, the "
        "copies are trained on different things and drift apart.",
        ((Pipeline.sum_copies, _SUM, ""),),
    ),
    WrongVariant(
        "copies are summed twice",
        "Two parts of the code take care of the same copies. The second one sums what is a sum already, so for two "
        "copies the gradient is twice as large.",
        ((Pipeline.sum_copies, _SUM, 2 * _SUM),),
    ),
    WrongVariant(
        "copies count twice in the norm",
        "Every rank adds the squares of all gradients that it holds. The gradient is right, its norm is too large, and "
        "the gradient is clipped too much.",
        ((Pipeline.gradient_norm, " and self.owns(name)", ""),),
    ),
    WrongVariant(
        "each rank clips by its own norm",
        "Every rank clips its own stages as if they were the model. The parts of the gradient are scaled by different "
        "factors, so its direction changes.",
        ((Pipeline.gradient_norm, "    dist.all_reduce(square)\n", ""),),
    ),
    WrongVariant(
        "each copy balances its own load",
        "With DualPipe, half of the micro-batches go through each copy of a gate. Each copy changes its biases by the "
        "load of its own half, so the copies choose different experts for the same token.",
        ((Pipeline.sum_copies, "dist.all_reduce(gate.load, group=group)", "pass"),),
    ),
    WrongVariant(
        "the last micro-batch overwrites the gradient",
        "Weight gradients are stored instead of added. The loss is right, because it is summed elsewhere, and the "
        "model is trained on one micro-batch of each batch.",
        ((_Product.backward, "grad if weight.grad is None else weight.grad.add_(grad)", "grad"),),
    ),
    WrongVariant(
        "both directions take the first half",
        "Micro-batches are numbered from 0 in each direction. Without the offset of the second direction, the first "
        "half of the batch is used twice and the second half never.",
        ((_Stage.forward_maybe_with_nosync, "self.place.pipe * pipeline.schedule.per_pipe + self.number",
                                            "self.number"),),
    ),
    WrongVariant(
        "each micro-batch has its own mean",
        "The loss is the mean of the micro-batches' means. The fewer tokens of a micro-batch count, the more each of "
        "them weighs. Where all have the same number, nothing changes.",
        ((language_model_loss, 'whole["mask"] if "mask" in whole else',
                               'rows["mask"].repeat(len(whole["mask"]) // len(rows["mask"]), 1) '
                               'if "mask" in whole else'),),
    ),
    # Many processes
    WrongVariant(
        "the router's gradient stays behind",
        "The weights of a token's choices travel to its experts without autograd. Outputs and losses are right, but "
        "the router no longer learns from the language model's loss which expert to weight more.",
        ((ExpertParallel.dispatch, "hop.send(weights_NK)", "hop.send(weights_NK.detach())"),),
    ),
    WrongVariant(
        "each process balances its own load",
        "Every process moves the biases by the tokens of its own rows. The copies of a gate come apart, and a token's "
        "experts depend on the process that it happens to be on.",
        ((ShardedTrainer.accumulate, "    for gate in self.gates:\n        dist.all_reduce(gate.load)\n", ""),),
    ),
    WrongVariant(
        "gradients are averaged over processes",
        "Each process computes its share of the batch's mean loss already, and the engine divides by the number of "
        "processes once more, as is its default. The losses are right; the gradient is too small by that factor.",
        ((shard, "            module.set_gradient_divide_factor(1.0)\n", ""),),
    ),
)
# fmt: on
WRONG_VARIANTS = {variant.name: variant for variant in _GALLERY}
