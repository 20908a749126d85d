"""minids: DeepSeek-V3, rebuilt in miniature.

The names below are imported when they are first used, so that `minids count` runs without importing torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Torch's threads (GNU OpenMP) wait for each other between operations. They first spin, which is fast on a quiet machine
# but takes the core from other programs, and then sleep, from which waking up is slow. Torch's default spins for a long
# time; this is a compromise (times in minids/device.py). Torch reads the variable when it is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if TYPE_CHECKING:
    from minids.cost.parameters import count_parameters
    from minids.hub.load import load_pretrained
    from minids.hub.reference import reference
    from minids.hub.save import save_pretrained
    from minids.inference.generate import generate
    from minids.model.config import ModelConfig
    from minids.model.deepseek import DeepSeek
    from minids.text.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "DeepSeek",
    "ModelConfig",
    "Tokenizer",
    "count_parameters",
    "generate",
    "load_pretrained",
    "reference",
    "save_pretrained",
]
_HOMES = {
    "DeepSeek": "model.deepseek", "ModelConfig": "model.config", "Tokenizer": "text.tokenizer",
    "count_parameters": "cost.parameters", "generate": "inference.generate", "load_pretrained": "hub.load",
    "reference": "hub.reference", "save_pretrained": "hub.save",
}  # fmt: skip


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
