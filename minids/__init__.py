"""minids: DeepSeek-V3, rebuilt in miniature."""

from minids.cost.accounting import count_parameters
from minids.hub.hub import load_pretrained, save_pretrained
from minids.hub.reference import reference
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
