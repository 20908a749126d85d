"""The growing model: one small transformer that gains a part in every chapter, trains, writes text, and is scored.

All stages train on the same prose, with the same tokenizer, recipe and seeds. Only the configuration changes, in one
stage the number format, and in the last the number of steps:

    grown = grow(STAGES["baseline"])        # trains, about 20 seconds
    grown.write("Return the")               # shows what it writes
    scoreboard("baseline", grown)           # its row, below those of the stages before

The rows of other stages were recorded by `make experiments NAME=growing`, which calls `grow` for each stage with five
seeds. Their range is the noise floor: two stages whose ranges overlap are not separated by this experiment.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from minids.book.probes.drafts import drafts
from minids.book.recorded import load
from minids.cost.cache import kv_cache_bytes
from minids.cost.flops import training_flops_per_token
from minids.cost.parameters import count_parameters
from minids.hub.reference import reference
from minids.inference.generate import generate
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.text.batches import encode_split
from minids.text.corpus import Corpus, load_corpus
from minids.text.tokenizer import Tokenizer
from minids.training.config import TrainConfig
from minids.training.report import per_byte, score_held_out, spread, validation_rows
from minids.training.run import start_run
from minids.validation import require

DOMAIN, ROWS = "prose", 128  # what is trained on, and how many held-out rows of it are scored
RECIPE = TrainConfig(
    steps=200, batch_size=8, sequence_length=128, learning_rate=6e-3, warmup_fraction=0.1, decay_fraction=0.9,
    final_learning_rate_fraction=0,
)  # fmt: skip
BASELINE = ModelConfig(
    vocab_size=2048, hidden_size=128, num_hidden_layers=3, intermediate_size=384, num_attention_heads=4,
    num_key_value_heads=4, head_dim=32, initializer_range=0.04, embedding_initializer_range=1.0,
    max_position_embeddings=512, eos_token_id=0,
)  # fmt: skip
_MLA = replace(
    BASELINE, num_key_value_heads=None, head_dim=None, kv_lora_rank=48, qk_nope_head_dim=32, qk_rope_head_dim=16,
    v_head_dim=32,
)  # fmt: skip
_MOE = replace(  # after the first layer, and with the baseline's width active: 1 + 5 of 32 experts of a sixth of it
    _MLA, first_k_dense_replace=1, moe_intermediate_size=64, n_routed_experts=32, n_shared_experts=1,
    num_experts_per_tok=5, routed_scaling_factor=2.24, topk_method="greedy",
)  # fmt: skip
_BIASED = replace(_MOE, topk_method="noaux_tc")
STAGES = {
    "baseline": BASELINE,
    "+ MLA": _MLA,
    "+ MoE": _MOE,  # without a bias: nothing balances the experts but the recipe's loss of α = 1e-4
    "+ bias": _BIASED,
    "+ MTP": replace(_BIASED, num_nextn_predict_layers=1),  # the last block of four predicts one more token
    "+ FP8": replace(_BIASED, num_nextn_predict_layers=1),  # the same model, trained and scored in FP8
    "longer": replace(_BIASED, num_nextn_predict_layers=1),  # the same in float32, four times as many steps
}
CHANGES = {  # of the recipe, by stage
    "+ FP8": {"dtype": "fp8", "fp8_block": 32},  # four tiles for 128 channels
    "longer": {"steps": 4 * RECIPE.steps},
}


@dataclass(frozen=True)
class Grown:
    """A trained stage: bits per byte of each training step (`history`) and on held-out prose, and seconds.

    `max_violation` is the MaxVio of the last 20 steps, mean over the MoE layers; None without experts. `acceptance` is
    how often the MTP module's likeliest token is the main head's, on held-out prose; None without MTP.
    """

    model: DeepSeek
    tokenizer: Tokenizer
    history: list[float]
    bits_per_byte: float
    seconds: float
    max_violation: float | None = None
    acceptance: float | None = None

    def write(
        self, prompt: str, new_tokens: int = 40, temperature: float = 0.7, seed: int = 0, speculative: bool = False
    ) -> Written:
        """Return the prompt and a continuation sampled from the model."""
        return write(self.model, self.tokenizer, prompt, new_tokens, temperature, seed, speculative)


@dataclass(frozen=True)
class Written:
    """Text written by a model, and how many tokens it generated in how many steps.

    A notebook shows the text in lines that begin with a bar, because another processor rounds differently and then
    writes another text: what follows a bar is not compared by the tests. Where steps were fewer than tokens, a last
    line says so.
    """

    text: str
    tokens: int = 0
    steps: int = 0

    def __repr__(self) -> str:
        lines = self.text.rstrip("\n").split("\n")
        if self.steps < self.tokens:
            lines.append(f"[{self.tokens} tokens in {self.steps} steps]")
        return "\n".join(f"│ {line}" for line in lines)


def write(
    model: DeepSeek, tokenizer: Tokenizer, prompt: str, new_tokens: int = 40, temperature: float = 0.7, seed: int = 0,
    speculative: bool = False,
) -> Written:  # fmt: skip
    """Return the prompt and its continuation by a model, sampled at a temperature; 0 is greedy.

    With `speculative` the model's MTP modules draft.
    """
    tokens, end = [tokenizer.end_of_text, *tokenizer.encode(prompt)], tokenizer.end_of_text
    out = generate(
        model, tokens, new_tokens, temperature=temperature, seed=seed, end_of_text=end, speculative=speculative
    )  # fmt: skip
    text = tokenizer.decode([token for token in out.tokens[1:].tolist() if token != end])
    return Written(text, len(out.new_tokens), out.steps)


def recipe_of(stage: str) -> TrainConfig:
    """Return the settings that a stage is trained with."""
    return replace(RECIPE, **CHANGES.get(stage, {}))


def grow(config: ModelConfig, seed: int = 0, recipe: TrainConfig = RECIPE) -> Grown:
    """Train a model of this configuration by the recipe, from fresh weights, and score it on held-out prose."""
    (prose, tokenizer), rows = _text(), held_out()
    run = start_run(config, replace(recipe, seed=seed), prose, tokenizer=tokenizer)
    records = run.trainer.run()
    history = [record["bits_per_byte"][DOMAIN] for record in records]
    violations = [record["max_violation"] for record in records[-20:]]
    violation = float(np.mean(violations)) if config.uses_moe else None
    score = per_byte(score_held_out(run.model, tokenizer, rows))[DOMAIN]
    model = run.model.eval()
    accepted = drafts(model, rows[DOMAIN], temperature=0)[0].acceptance.mean().item() if model.mtp else None
    return Grown(model, tokenizer, history, score, records[-1]["seconds"], violation, accepted)


def recorded(*stages: str) -> dict[str, list[float]]:
    """Return the held-out bits per byte of each recorded run of these stages, in the order of the seeds."""
    runs = load("growing")["runs"]
    return {stage: [run["bits_per_byte"] for run in runs if run["arm"] == stage] for stage in stages}


def held_out() -> dict[str, np.ndarray]:
    """Return the held-out rows that score every stage: their second halves, after a first half of context."""
    prose, tokenizer = _text()
    rows = validation_rows(encode_split(tokenizer, prose.validation), RECIPE.sequence_length)
    return {DOMAIN: spread(rows[DOMAIN], ROWS)}


@cache
def _text() -> tuple[Corpus, Tokenizer]:
    return load_corpus().only(DOMAIN), reference().tokenizer


def scoreboard(stage: str, grown: Grown | None = None) -> None:
    """Print the rows of all stages up to this one: sizes, and bits per byte on held-out prose, here and as recorded.

    Without `grown` only as recorded. Where a stage has experts there is a column for MaxVio, too, and where one has MTP
    one for the greedy drafts that are accepted: means of the recorded runs.
    """
    require("stage", stage, stage in STAGES, f"one of {', '.join(STAGES)}")
    stages, data = list(STAGES)[: list(STAGES).index(stage) + 1], load("growing")
    here = "here" if grown else ""
    table = [["", "parameters", "active", "cache", "MFLOP", "MaxVio", "drafts", "recorded (range)", here]]
    for name, bits in recorded(*stages).items():
        config = STAGES[name]
        count = count_parameters(config)
        flops = training_flops_per_token(config, RECIPE.sequence_length) / 1e6
        table.append([
            name, f"{count.total:,}", f"{count.active:,}", f"{kv_cache_bytes(config):,}", f"{flops:.1f}",
            _recorded_mean(name, "max_violation", ".2f"), _recorded_mean(name, "acceptance", ".0%"),
            f"{statistics.mean(bits):.3f} ({min(bits):.3f}–{max(bits):.3f})",
            f"≈ {grown.bits_per_byte:.3f} (measured)" if grown and name == stage else "",
        ])  # fmt: skip
    columns = [column for column in zip(*table, strict=True) if any(column[1:])]  # those that have numbers
    widths = [max(map(len, column)) for column in columns[:-1]]
    for name, *cells, here in zip(*columns, strict=True):
        cells = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([f"{name:{widths[0]}}", *cells, here]).rstrip())
    print("cache: BF16 bytes per token; MFLOP: training, per token; bits per byte of held-out prose")
    if mtp := count_parameters(STAGES[stage]).mtp:
        print(f"drafts: greedy drafts that are accepted; the MTP module's {mtp:,} parameters are not counted")
    seeds = f"seeds {data['seeds'][0]} to {data['seeds'][-1]}: ranges that overlap are not separated"
    print(f"recorded with {seeds}" + (f"; ≈ {grown.seconds:.0f} s (measured) here" if grown else ""))


def _recorded_mean(stage: str, what: str, form: str) -> str:
    values = [run[what] for run in load("growing")["runs"] if run["arm"] == stage and what in run]
    return f"{statistics.mean(values):{form}}" if values else ""
