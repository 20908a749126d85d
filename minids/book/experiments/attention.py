"""MHA, GQA, MQA and MLA: what a smaller cache costs, in held-out bits per byte (V2 report, appendix D, in miniature).

Dense models with six heads of 32, alike but for their attention, trained on the same text for the same number of
steps. GQA caches 128 numbers per token and layer, MQA 64, and MLA comes at both sizes, each split in two ways into
latent + rotated key. What an arm saves or spends on attention it gets back in the width of its feed-forward layers,
so that all have the same number of parameters to within 0.1%. Embeddings start at a standard deviation of 1, as
torch's own do. In a first try with one seed they started as small as the other weights. Then all five arms tried
were worse, by 0.02 to 0.12 bits per byte, and stood in another order; why, was not found out.

Two more things are measured on the trained models, in held-out bits per byte:

- MHA: keys and values, before their rotation, projected on their best subspace of r dimensions in each layer (a
  singular value decomposition). It tells "keys and values have low rank anyway" from "MLA learned to do with less".
- MLA: the loss without the content part of the scores, q_nope · k_nope, and without the rotated part, q_rope · k_rope.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minids.book.experiments.recorded import Arm, Experiment
from minids.cost.accounting import attention_parameters
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.model.mla import MLA
from minids.text.data import Batches, encode_split, load_corpus
from minids.text.tokenizer import Tokenizer
from minids.training.checkpoint import load_checkpoint
from minids.training.evaluate import score_rows
from minids.training.report import context_tokens, spread, validation_rows
from minids.training.trainer import TrainConfig

TRAIN = TrainConfig()
DOMAINS = ("prose", "code")
RANKS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192)
ROWS = 64  # of each domain, to find the subspaces on, and as many held-out ones to measure on

_MHA = ModelConfig(
    vocab_size=2048, hidden_size=192, num_hidden_layers=4, intermediate_size=448, initializer_range=0.04,
    embedding_initializer_range=1.0, eos_token_id=0, num_attention_heads=6, num_key_value_heads=6, head_dim=32,
)  # fmt: skip


def _with_equal_parameters(**changes) -> ModelConfig:
    """Return the MHA model with another attention, and feed-forward layers that make up for it."""
    config = replace(_MHA, **changes)
    saved = attention_parameters(_MHA) - attention_parameters(config)
    return replace(config, intermediate_size=_MHA.intermediate_size + round(saved / (3 * config.hidden_size)))


def _mla(latent: int, rope: int) -> ModelConfig:
    return _with_equal_parameters(
        num_key_value_heads=None, head_dim=None, kv_lora_rank=latent, qk_nope_head_dim=32, qk_rope_head_dim=rope,
        v_head_dim=32,
    )  # fmt: skip


MODELS = {
    "MHA": _MHA,
    "GQA": _with_equal_parameters(num_key_value_heads=2),
    "MQA": _with_equal_parameters(num_key_value_heads=1),
    "MLA 112 + 16": _mla(112, 16),
    "MLA 96 + 32": _mla(96, 32),
    "MLA 48 + 16": _mla(48, 16),
    "MLA 32 + 32": _mla(32, 32),
}


def measure(arm: str, run: Path) -> dict | None:
    """Return what is measured on a trained MHA or MLA model, as above; None for the others.

    Bits per byte "as trained" are those of the same rows, fewer than the report's.
    """
    config = MODELS[arm]
    if not (arm == "MHA" or config.uses_mla):
        return None
    model = DeepSeek(config)
    load_checkpoint(run / "checkpoint.safetensors").restore(model)
    tokenizer, corpus = Tokenizer.load(run), load_corpus()
    bytes_per_token = torch.tensor([len(b) for b in tokenizer.token_bytes()])
    held_out = validation_rows(
        encode_split(tokenizer, {d: corpus.validation[d] for d in DOMAINS}), TRAIN.sequence_length
    )
    rows = np.concatenate([spread(rows, ROWS) for rows in held_out.values()])

    def score(changed: DeepSeek) -> float:
        bits, text_bytes = score_rows(changed, rows, bytes_per_token, context_tokens(rows))
        return bits / text_bytes

    if config.uses_mla:
        return {"bits_per_byte": {"as trained": score(model)} | without_parts(model, score)}
    streams = encode_split(tokenizer, {d: corpus.train[d] for d in DOMAINS})
    batches = Batches(streams, dict.fromkeys(DOMAINS, 1), TRAIN.sequence_length, TRAIN.seed)
    decompositions = keys_and_values_svd(model, batches.batch(0, 2 * ROWS))
    singular_values = [[round(value, 2) for value in values.tolist()] for values, _ in decompositions]
    scores = {"as trained": score(model)} | cut_to_ranks(model, decompositions, score)
    return {"singular_values": singular_values, "bits_per_byte": scores}


def without_parts(model: DeepSeek, score: Callable[[DeepSeek], float]) -> dict[str, float]:
    """Return the scores of an MLA model without the content part, and without the rotated part, of its scores."""
    scores = {}
    for part in ("content", "rotated"):
        silenced = copy.deepcopy(model)
        for layer in silenced.layers:
            silence(layer.self_attn, part)
        scores[f"without the {part} part"] = score(silenced)
    return scores


def cut_to_ranks(
    model: DeepSeek, decompositions: list[tuple[Tensor, Tensor]], score: Callable[[DeepSeek], float]
) -> dict[str, float]:
    """Return the scores of an MHA model whose keys and values are cut to each of RANKS in every layer."""
    scores = {}
    for rank in RANKS:
        cut = copy.deepcopy(model)
        for layer, (_, directions) in zip(cut.layers, decompositions, strict=True):
            project_keys_and_values(layer.self_attn, directions[:, :rank])
        scores[str(rank)] = score(cut)
    return scores


@torch.no_grad()
def keys_and_values_svd(model: DeepSeek, rows: np.ndarray) -> list[tuple[Tensor, Tensor]]:
    """Return, for each layer, the singular values of its stacked keys and values before RoPE, and their directions.

    Directions are the columns of a matrix (width of keys and values, as many as there are values), largest first.
    """
    collected: list[list[Tensor]] = [[] for _ in model.layers]
    hooks = [
        projection.register_forward_hook(lambda _module, _args, out, to=to: to.append(out.flatten(0, 1)))
        for layer, to in zip(model.layers, collected, strict=True)
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj)
    ]
    model.eval()
    model(torch.from_numpy(rows[:, :-1].astype(np.int64)))
    for hook in hooks:
        hook.remove()
    stacked = (torch.cat(keys_values, dim=1) for keys_values in collected)
    return [
        (values, directions.T) for _, values, directions in (torch.linalg.svd(x, full_matrices=False) for x in stacked)
    ]


@torch.no_grad()
def project_keys_and_values(attention: torch.nn.Module, basis: Tensor) -> None:
    """Make a layer's keys and values, before RoPE, lie in the span of orthonormal columns: change its weights."""
    stacked = torch.cat([attention.k_proj.weight, attention.v_proj.weight])
    keys, values = (basis @ (basis.T @ stacked)).chunk(2)
    attention.k_proj.weight.copy_(keys)
    attention.v_proj.weight.copy_(values)


@torch.no_grad()
def silence(attention: MLA, part: str) -> None:
    """Take one part of an MLA layer's scores away, "content" or "rotated": its queries become zero."""
    projection = attention.q_proj if hasattr(attention, "q_proj") else attention.q_b_proj
    rows = projection.weight.unflatten(0, (attention.heads, -1))
    content, rotated = rows.split_with_sizes([attention.nope_dim, attention.rope_dim], dim=1)
    (content if part == "content" else rotated).zero_()


EXPERIMENT = Experiment(
    name="attention", arms={name: Arm(config, TRAIN) for name, config in MODELS.items()}, measure=measure
)
