"""minids: DeepSeek-V3, rebuilt in miniature."""

from minids.accounting import count_parameters
from minids.config import ModelConfig
from minids.generate import generate
from minids.hub import load_pretrained, save_pretrained
from minids.model import DeepSeek
from minids.tokenizer import Tokenizer
from minids.trained import reference

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
