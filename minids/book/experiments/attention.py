"""MHA, GQA, MQA and MLA: what a smaller cache costs, in held-out bits per byte (V2 report, appendix D, in miniature).

Dense models with six heads of 32, alike but for their attention, trained on the same text for the same number of
steps. GQA caches 128 numbers per token and layer, MQA 64, and MLA comes at both sizes, each split in two ways into
latent + rotated key. The parameters that an arm saves or adds in attention are balanced by the width of its
feed-forward layers, so that all have the same number of parameters to within 0.1%. Embeddings start at a standard
deviation of 1, as torch's own do. In a first try with one seed they started as small as the other weights; all five
arms tried were then worse, by 0.02 to 0.12 bits per byte, and ranked differently. We did not find out why.

Two more things are measured on the trained models, in held-out bits per byte:

- MHA: keys and values, before their rotation, projected onto their best subspace of r dimensions in each layer (a
  singular value decomposition). It tells "keys and values have low rank anyway" from "MLA learned to need less".
- MLA: the loss without the content part of the scores, q_nope · k_nope, and without the rotated part, q_rope · k_rope.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from minids.book.experiments.runner import Arm, Experiment
from minids.book.probes.attention import keys_and_values_svd, project_keys_and_values, silence
from minids.cost.parameters import attention_parameters
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.batches import Batches, encode_split
from minids.text.corpus import load_corpus
from minids.training.config import TrainConfig
from minids.training.report import per_byte, score_held_out, spread, validation_rows
from minids.training.run import load_run

TRAIN = TrainConfig()  # AdamW
DOMAINS = ("prose", "code")
RANKS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192)
ROWS = 64  # of each domain, to find the subspaces on, and as many held-out ones to measure on

_MHA = ModelConfig(
    vocab_size=2048, hidden_size=192, num_hidden_layers=4, intermediate_size=448, initializer_range=0.04,
    embedding_initializer_range=1.0, eos_token_id=0, num_attention_heads=6, num_key_value_heads=6, head_dim=32,
)  # fmt: skip


def _with_equal_parameters(**changes) -> ModelConfig:
    """Return the MHA model with another attention, and feed-forward layers that balance the parameters."""
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
    (model, tokenizer), corpus = load_run(run), load_corpus().only(*DOMAINS)
    held_out = validation_rows(encode_split(tokenizer, corpus.validation), TRAIN.sequence_length)
    few = {domain: spread(rows, ROWS) for domain, rows in held_out.items()}

    def score(changed: DeepSeek) -> float:
        return per_byte(score_held_out(changed, tokenizer, few))["all"]

    if config.uses_mla:
        return {"bits_per_byte": {"as trained": score(model)} | without_parts(model, score)}
    batches = Batches(encode_split(tokenizer, corpus.train), corpus.mixture, TRAIN.sequence_length, TRAIN.seed)
    decompositions = keys_and_values_svd(model, batches.batch(0, 2 * ROWS)["tokens"])
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


EXPERIMENT = Experiment(
    name="attention", arms={name: Arm(config, TRAIN) for name, config in MODELS.items()}, measure=measure
)
