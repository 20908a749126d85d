"""Small legal configurations, drawn by hypothesis, and weights that make every part of a model matter."""

from itertools import pairwise

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from minids.model.config import SCORING_FUNCTIONS, ModelConfig, YarnScaling
from minids.model.deepseek import DeepSeek

# The least that each kind of model needs.
DENSE = dict(vocab_size=100, hidden_size=64, num_hidden_layers=4, intermediate_size=128, num_attention_heads=4)
MLA = dict(DENSE, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
MOE = dict(DENSE, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32)
GROUPS = dict(MOE, n_group=4, topk_group=2)
YARN = dict(factor=40, original_max_position_embeddings=4096)


def examples(count: int) -> settings:
    """The same `count` examples on every run and machine."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


class Float64(TorchFunctionMode):
    """Where the library insists on float32, it computes in float64 inside: what differs is a mistake, not rounding.

    The weights are for the caller to convert.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **(kwargs or {}))


yarns = st.builds(
    YarnScaling,
    factor=st.floats(1, 64),
    original_max_position_embeddings=st.integers(8, 8192),
    beta_fast=st.floats(2, 64),
    beta_slow=st.floats(0.1, 2),
    mscale=st.floats(0.1, 2),
    mscale_all_dim=st.floats(0.1, 2),
)


@st.composite
def mixtures(draw) -> dict:
    """The entries of a mixture of experts: any gate, with and without groups and shared experts."""
    method = draw(st.sampled_from(["greedy", "group_limited_greedy", "noaux_tc"]))
    groups = draw(st.integers(1, 4))
    per_group = draw(st.integers(2 if method == "noaux_tc" and groups > 1 else 1, 4))
    topk_group = draw(st.integers(1, groups))
    reachable = per_group * (groups if method == "greedy" else topk_group)
    return dict(
        topk_method=method,
        scoring_func=draw(st.sampled_from(SCORING_FUNCTIONS)),
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.floats(0.5, 16)),
        n_routed_experts=groups * per_group,
        n_group=groups,
        topk_group=topk_group,
        num_experts_per_tok=draw(st.integers(1, reachable)),
        n_shared_experts=draw(st.sampled_from([None, 1, 2])),
        moe_intermediate_size=draw(st.integers(1, 12)),
        moe_layer_freq=draw(st.integers(1, 3)),
    )


@st.composite
def latent_attentions(draw) -> dict:
    widths = st.integers(1, 12)
    return dict(
        num_attention_heads=draw(st.integers(1, 4)),
        kv_lora_rank=draw(widths),
        q_lora_rank=draw(st.none() | widths),
        qk_nope_head_dim=draw(widths),
        qk_rope_head_dim=2 * draw(st.integers(1, 4)),
        v_head_dim=draw(widths),
    )


@st.composite
def ordinary_attentions(draw) -> dict:
    kv_heads, sharing = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim = 2 * draw(st.integers(1, 4))
    return dict(num_attention_heads=kv_heads * sharing, num_key_value_heads=kv_heads, head_dim=head_dim)


any_attention = latent_attentions() | ordinary_attentions()
any_feed_forward = st.none() | mixtures() | mixtures() | mixtures()  # most of the variety is there
any_mtp_depth = st.integers(0, 2)


@st.composite
def configurations(draw, attention=any_attention, mixture=any_feed_forward, mtp_depth=any_mtp_depth) -> ModelConfig:
    """Any mixture of attention and feed-forward kinds, with MTP, YaRN and tied embeddings."""
    layers = draw(st.integers(1, 4))
    mixture = draw(mixture)
    if mixture is not None:
        mixture["first_k_dense_replace"] = draw(st.integers(0, layers))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=draw(st.integers(1, 24)),
        num_hidden_layers=layers,
        intermediate_size=draw(st.integers(1, 24)),
        tie_word_embeddings=draw(st.booleans()),
        num_nextn_predict_layers=draw(mtp_depth),
        rope_theta=draw(st.floats(100, 1e6)),
        rope_scaling=draw(st.none() | yarns),
        **draw(attention),
        **(mixture or {}),
    )


def splits(length: int) -> st.SearchStrategy[list[int]]:
    """Where to cut `length` positions into a prefill and steps of decoding: [0, ..., length]."""
    return st.sets(st.integers(1, length - 1)).map(lambda inner: [0, *sorted(inner), length])


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Give matrices unit gain, norms different scales, and expert biases values that make s + b negative."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("expert_bias"):
            buffer.uniform_(-1.4, -1.0, generator=generator)


def random_model(config: ModelConfig, seed: int = 0) -> DeepSeek:
    model = DeepSeek(config).eval()
    randomize(model, seed)
    return model


def random_tokens(config: ModelConfig, batch_size: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch_size, length), generator=generator)


def logits_and_gradients(model: DeepSeek, tokens_BT: torch.Tensor, cuts: list[int] | None = None) -> list[torch.Tensor]:
    """The logits, and the gradient of every parameter: in one pass, or with a cache in the pieces between `cuts`."""
    if cuts is None:
        logits_BTV = model(tokens_BT)
    else:
        cache = model.new_cache(*tokens_BT.shape)
        logits_BTV = torch.cat([model(tokens_BT[:, a:b], cache) for a, b in pairwise(cuts)], dim=1)
    direction = torch.randn(logits_BTV.shape, generator=torch.Generator().manual_seed(0))
    return [logits_BTV, *torch.autograd.grad((logits_BTV * direction).sum(), list(model.parameters()))]
