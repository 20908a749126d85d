"""The two sides: minids, and transformers' DeepseekV3ForCausalLM with the same weights.

The weights are saved and loaded in the released layout. Before anything is timed the logits of both are
compared, in float32.

Which of the peer's settings is its fastest depends on the work and the machine, so the benchmarks try them
first (`SETTINGS`) and take the best. Under autocast its `grouped_mm` experts stay in float32, because
torch's grouped product is not among the operations that autocast converts; its `eager` experts run in
bfloat16. Nothing is compiled, on either side.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minids.book.bench.measure import alternate, summary
from minids.hub.save import save_pretrained
from minids.model.config import ModelConfig
from minids.model.deepseek import DeepSeek
from minids.training.config import TrainConfig
from minids.training.optimizer import make_optimizer
from minids.training.step import accumulate_gradients, update_weights

_BASE = ModelConfig(
    vocab_size=2048, hidden_size=256, num_hidden_layers=6, intermediate_size=1024, initializer_range=0.02,
    max_position_embeddings=8192, num_attention_heads=8, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32,
    qk_rope_head_dim=16, v_head_dim=32, first_k_dense_replace=1, moe_intermediate_size=128, n_routed_experts=16,
    n_shared_experts=1, num_experts_per_tok=4, n_group=4, topk_group=2, routed_scaling_factor=2.5,
)  # fmt: skip
CONFIGS = {
    "16 experts": _BASE,
    "64 experts": replace(_BASE, moe_intermediate_size=64, n_routed_experts=64, num_experts_per_tok=8),
    # transformers trains no MTP module, so here mini has none either.
    "mini": replace(ModelConfig.preset("mini"), num_nextn_predict_layers=0),
}
BATCH = {"16 experts": 16, "64 experts": 16, "mini": 4}  # rows of a training step
LENGTH = 256
OURS, FASTEST, DEFAULT = "minids", "transformers, fastest", "transformers, default"
AS_IT_COMES = ("sdpa", "grouped_mm")  # how transformers attends and runs its experts unless told otherwise
SETTINGS = [
    (attention, experts) for attention in ("eager", "sdpa") for experts in ("eager", "grouped_mm", "batched_mm")
]


def make_ours(config: ModelConfig, seed: int = 0) -> DeepSeek:
    """Return a freshly initialised model."""
    torch.manual_seed(seed)
    return DeepSeek(config)


def make_peer(model: DeepSeek, setting: tuple[str, str] = AS_IT_COMES) -> nn.Module:
    """Return transformers' model with the weights of ours; its logits have been compared.

    A setting names how it attends and how it runs its experts. Raises AssertionError if the logits differ.
    """
    import transformers  # a test dependency, which the library itself does not need

    transformers.logging.disable_progress_bar()
    attention, experts = setting
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, f"{folder}/model")
        peer = transformers.AutoModelForCausalLM.from_pretrained(
            f"{folder}/model", dtype=torch.float32, attn_implementation=attention, experts_implementation=experts
        )
    assert_equal_logits(model, peer)
    return peer


def set_peer(peer: nn.Module, setting: tuple[str, str]) -> None:
    """Let the peer attend and run its experts in another way."""
    attention, experts = setting
    peer.set_attn_implementation(attention)
    peer.set_experts_implementation(experts)


def fastest(make: Callable[[tuple[str, str]], Callable], settings: list[tuple[str, str]]) -> tuple[tuple, dict]:
    """Return the setting whose step is fastest, and what every one took in milliseconds, by its name."""
    samples = alternate({" ".join(setting): make(setting) for setting in settings}, rounds=3)
    times = {name: summary(taken)["median_ms"] for name, taken in samples.items()}
    return min(settings, key=lambda setting: times[" ".join(setting)]), times


@torch.no_grad()
def assert_equal_logits(model: DeepSeek, peer: nn.Module) -> None:
    """Raise AssertionError unless both give the same logits for the same tokens."""
    tokens_BT = torch.randint(model.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    model.eval()
    peer.eval()
    torch.testing.assert_close(model(tokens_BT), peer(tokens_BT).logits, rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class Total:
    """A loss in the form of the terms that a training step takes."""

    total: Tensor


@dataclass
class Training:
    """A training step, ready to be called: forward, backward, clipping, AdamW, on other tokens each time."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]  # of tokens (B, T + 1)
    batch: int
    length: int
    dtype: str
    after_step: Callable[[], object] = lambda: None

    def __post_init__(self):
        self.model.train()
        self.config = TrainConfig(learning_rate=1e-3)
        self.optimizer = make_optimizer(self.model, self.config)
        self.generator = torch.Generator().manual_seed(0)
        # Tokens are not equally frequent, as in text, so the router's inputs are not uniform.
        self.frequency = 1 / torch.arange(10.0, 10 + self.model.config.vocab_size)

    def __call__(self) -> None:
        shape = (self.batch, self.length + 1)
        tokens = torch.multinomial(self.frequency, shape[0] * shape[1], replacement=True, generator=self.generator)
        batch = {"tokens": tokens.view(shape)}
        parts = accumulate_gradients(lambda rows: Total(self.loss(rows["tokens"])), batch, self.dtype)
        update_weights(self.model, self.optimizer, parts, self.config.clip_norm)
        self.after_step()


def training_of_ours(model: DeepSeek, batch: int, length: int, dtype: str) -> Training:
    """Return minids' step: balance loss and bias update included, which the peer does not have."""
    update = lambda: model.update_expert_bias(1e-3)  # noqa: E731
    return Training(model, lambda tokens: model.loss(tokens).total, batch, length, dtype, update)


def training_of_peer(peer: nn.Module, batch: int, length: int, dtype: str) -> Training:
    """Return the peer's step, with its own loss, which makes one prediction fewer in each row."""

    def loss(tokens_BT: Tensor) -> Tensor:
        inputs_BT = tokens_BT[:, :-1]
        return peer(inputs_BT, labels=inputs_BT, use_cache=False).loss

    return Training(peer, loss, batch, length, dtype)
