"""The norm and the gated feed-forward layer against transformers' own (their kernels: test_kernels.py)."""

import pytest
import torch
from hf_oracle import LlamaConfig
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from minids.model.layers import RMSNorm, SwiGLU

LLAMA_MLP = LlamaMLP(LlamaConfig(hidden_size=12, intermediate_size=20, num_attention_heads=1))


@pytest.mark.parametrize(
    ("ours", "theirs"), [(RMSNorm(12, eps=1e-2), LlamaRMSNorm(12, eps=1e-2)), (SwiGLU(12, 20), LLAMA_MLP)]
)
def test_equals_transformers_with_the_same_weight_names(ours, theirs):
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, 5, 12)
    assert_close(ours(x), theirs(x))
