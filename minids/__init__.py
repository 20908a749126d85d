"""minids: DeepSeek-V3, rebuilt in miniature.

The names below are loaded when they are first used, so that `minids count` need not wait for torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Between two operations torch's threads (of GNU's OpenMP) wait for each other. They spin, which is fast on a quiet
# machine and slow where another program wants the core, and then they sleep, from which they wake up slowly. Torch's
# default spins for long; this is a compromise (minids/device.py has the times). It is read when torch is loaded.
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
