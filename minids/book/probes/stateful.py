"""A small trainer with more state than that of minids: what must a checkpoint of it hold? (exercise 10.5)

In `Trainer` (minids/training/trainer.py) a batch is a function of the step. Here, as in many trainers, the rows are
shuffled with a generator that dropout uses as well, and the run keeps some running means.
"""

from __future__ import annotations

import torch

STEPS, PER_EPOCH, BATCH = 40, 8, 8  # steps of a run, and of an epoch; rows of a batch


class StatefulTrainer:
    """Trains a linear classifier: `train_step()`, 40 times. Its results are `weights` and `average`."""

    def __init__(self):
        data = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(PER_EPOCH * BATCH, 16, generator=data)
        self.labels = (self.inputs[:, 0] > 0).float()
        self.generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(16, generator=self.generator)
        self.average = self.weights
        self.momentum = self.gradient = torch.zeros(16)
        self.order = torch.arange(len(self.inputs))
        self.step, self.rate, self.usual_norm = 0, 0.0, 1.0
        self.losses = []

    def train_step(self) -> None:
        """Take one step of SGD with momentum and clipping, and append its loss to `losses`."""
        place = self.step % PER_EPOCH
        if place == 0:
            self.order = torch.randperm(len(self.inputs), generator=self.generator)
        rows = self.order[place * BATCH : (place + 1) * BATCH]
        kept = torch.rand(BATCH, 16, generator=self.generator) < 0.9  # dropout
        inputs = self.inputs[rows] * kept
        chance = (inputs @ self.weights).sigmoid()
        self.losses.append(torch.nn.functional.binary_cross_entropy(chance, self.labels[rows]).item())
        self.gradient = inputs.T @ (chance - self.labels[rows]) / BATCH
        norm = self.gradient.norm().item()
        self.usual_norm = 0.9 * self.usual_norm + 0.1 * norm
        clipped = self.gradient * min(1.0, self.usual_norm / norm)
        self.momentum = 0.9 * self.momentum + clipped
        self.rate = 0.3 * (1 - self.step / STEPS)
        self.weights = self.weights - self.rate * self.momentum
        self.average = 0.9 * self.average + 0.1 * self.weights
        self.step += 1
