"""All settings of a training run except the architecture, in one frozen dataclass.

They follow DeepSeek-V3's recipe (report §4.2), scaled to a run of minutes:

    AdamW, β = (0.9, 0.95), weight decay 0.1, gradient norm clipped at 1.0, α = 1e-4: the same
                     here                                        DeepSeek-V3
    learning rate    warm-up, constant, linear decay over the    warm-up, constant for 10T of 14.8T tokens,
                     last 60% of the steps                       cosine decay, two short plateaus at the end
    λ (MTP)          0.3, then 0.1 from the start of the decay   the same
    γ (bias)         0.005, then 0 for the last 3.4%             0.001, then 0 for the last 3.4%
    batch            constant                                    grows fivefold over the first 3%
    dtype            float32 or bfloat16; fp8 is V3's recipe     fp8

`MINIATURE` is what `minids train` uses. In the same time this recipe gets further than the defaults on the book's
miniature (figures/data/miniature.json has both): Muon updates the matrices (muon.py), AdamW's β2 is 0.99, a step has
twice as many tokens and there are half as many steps, and the learning rate is higher and falls to 0. The chapters and
most recorded experiments stay with AdamW, as V3.

A run is a number of steps, not a time, so that it can be repeated. Every field is an option of `minids train`, with the
help text given here. A checkpoint from before a field existed can be resumed as if it had the default, so the default
of a new field must train as before.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from minids.validation import is_number, require, require_fields, require_whole_fields

DTYPES = ("float32", "bfloat16", "fp8")
OPTIMIZERS = ("adamw", "muon")


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a run. Raises ValueError, one sentence, for values that are not possible."""

    steps: int = _field(1800, "Optimizer steps.")
    batch_size: int = _field(4, "Sequences per optimizer step.")
    micro_batch_size: int | None = _field(
        None, "Sequences per forward pass: less memory, same step. Default: all of a process; in a pipeline, one."
    )
    sequence_length: int = _field(256, "Tokens per sequence.")
    optimizer: str = _field("adamw", "muon, for the matrices; or adamw for all, as V3.")
    learning_rate: float = _field(1.8e-3, "Peak learning rate.")
    final_learning_rate_fraction: float = _field(0.05, "Learning rate at the end, as a fraction of the peak.")
    warmup_fraction: float = _field(0.03, "Fraction of the steps in which the learning rate rises.")
    decay_fraction: float = _field(0.6, "Fraction of the steps, at the end, in which the learning rate falls.")
    weight_decay: float = _field(0.1, "Weight decay, on matrices only.")
    betas: tuple[float, float] = _field((0.9, 0.95), "AdamW's β1 and β2.")
    clip_norm: float = _field(1.0, "Largest norm of the gradient.")
    mtp_weight: float = _field(0.3, "λ, weight of the MTP loss until the learning rate falls.")
    final_mtp_weight: float = _field(0.1, "λ from then on.")
    balance_weight: float = _field(1e-4, "α, weight of the sequence-wise balance loss.")
    bias_speed: float = _field(5e-3, "γ, update speed of the gates' biases; 0: no balancing by bias.")
    frozen_bias_fraction: float = _field(0.034, "Fraction of the steps, at the end, in which the biases are frozen.")
    save_every: int = _field(200, "Steps between checkpoints.")
    seed: int = _field(0, "Decides the initial weights and the order of the text.")
    dtype: str = _field(
        "float32",
        "float32, bfloat16 or fp8, for the matrix products. `minids train` uses bfloat16 where it is fast; fp8 is "
        "simulated on a CPU, and slower.",
    )
    fp8_block: int = _field(
        128, "Numbers of a tile, and side of a block, that share a scale. No effect unless dtype is fp8."
    )

    def __post_init__(self):
        require_whole_fields(self, "steps", "batch_size", "sequence_length", "save_every", "fp8_block")
        require_whole_fields(self, "seed", at_least=0)
        for name in ("learning_rate", "clip_norm"):
            require_fields(self, "a finite number above 0", lambda value: is_number(value) and value > 0, name)
        for name in ("weight_decay", "mtp_weight", "final_mtp_weight", "balance_weight", "bias_speed"):
            require_fields(self, "a finite number of at least 0", lambda value: is_number(value) and value >= 0, name)
        for name in ("warmup_fraction", "decay_fraction", "final_learning_rate_fraction", "frozen_bias_fraction"):
            require_fields(self, "a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1, name)
        together = self.warmup_fraction + self.decay_fraction
        allowed = f"at most {1 - self.warmup_fraction:g} with warmup_fraction={self.warmup_fraction}"
        require("decay_fraction", self.decay_fraction, together <= 1, allowed)
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        between = pair and all(is_number(beta) and 0 <= beta < 1 for beta in self.betas)
        require("betas", self.betas, between, "two numbers from 0 to below 1")
        size, micro = self.batch_size, self.micro_batch_size
        whole = isinstance(micro, int) and not isinstance(micro, bool)
        require("micro_batch_size", micro, micro is None or (whole and 1 <= micro <= size), f"1 to batch_size={size}")
        require("dtype", self.dtype, self.dtype in DTYPES, "float32, bfloat16 or fp8")
        require("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, "adamw or muon")

    @property
    def warmup_steps(self) -> int:
        """How many steps at the beginning the learning rate rises for."""
        return round(self.warmup_fraction * self.steps)

    @property
    def frozen_start(self) -> int:
        """The first step in which the biases are frozen."""
        return self.steps - round(self.frozen_bias_fraction * self.steps)

    @property
    def decay_start(self) -> int:
        """The first step in which the learning rate falls."""
        return self.steps - round(self.decay_fraction * self.steps)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: linear warm-up, plateau, linear decay."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return self.learning_rate
        done = (step - self.decay_start + 1) / (self.steps - self.decay_start)
        return self.learning_rate * (1 - done * (1 - self.final_learning_rate_fraction))

    def mtp_weight_at(self, step: int) -> float:
        """Return λ of a step."""
        return self.mtp_weight if step < self.decay_start else self.final_mtp_weight

    def bias_speed_at(self, step: int) -> float:
        """Return γ of a step."""
        return 0.0 if step >= self.frozen_start else self.bias_speed


MINIATURE = TrainConfig(
    optimizer="muon", steps=900, batch_size=8, learning_rate=5e-3, final_learning_rate_fraction=0, betas=(0.9, 0.99),
    save_every=100,
)  # fmt: skip
