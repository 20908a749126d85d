"""How DeepSeek lays V3 out on its GPUs: the cluster that trained it, and the units that serve it.

**Training** (V3 report §3.2): the layers are cut into 16 stages. Each stage is on 128 GPUs, which compute different
tokens: data parallelism. Of a layer's experts each GPU has 1/64, so that 64
GPUs, 8 nodes, have all of them, and the 128 GPUs have them twice. No matrix is cut (no tensor parallelism). DualPipe
gives each GPU a second stage, so there is another copy of all weights (cost/pipeline.py), which is not counted here.

**Serving** separates prefill and decoding. Each *unit* has a copy of the whole model. In it, experts with much load
have further copies (*redundant* experts, parallel/eplb.py). The units changed between the report of
December 2024 and the overview of February 2025 (open-infra-index, "Day 6"), where attention is not cut any more and
each GPU has the shared expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from minids.cost.published import CLUSTER, NODE_LINKS
from minids.model.config import ModelConfig
from minids.validation import require


@dataclass(frozen=True, kw_only=True)
class Training:
    """GPUs of a training run. Raises ValueError if they cannot be divided so."""

    gpus: int = CLUSTER
    gpus_per_node: int = NODE_LINKS
    stages: int = 16
    expert_gpus: int = 64  # that have a layer's experts together

    def __post_init__(self):
        parts = self.stages * self.expert_gpus
        require("gpus", self.gpus, self.gpus % parts == 0, f"a multiple of stages · expert_gpus, {parts}")
        whole = self.expert_gpus % self.gpus_per_node == 0
        require("expert_gpus", self.expert_gpus, whole, f"a multiple of gpus_per_node={self.gpus_per_node}")

    @property
    def nodes(self) -> int:
        return self.gpus // self.gpus_per_node

    @property
    def gpus_per_stage(self) -> int:
        """How many compute different tokens with the same layers."""
        return self.gpus // self.stages

    @property
    def nodes_per_set(self) -> int:
        """How many nodes have a layer's experts together."""
        return self.expert_gpus // self.gpus_per_node

    @property
    def sets(self) -> int:
        """How often a stage has its experts."""
        return self.gpus_per_stage // self.expert_gpus

    def experts_of_gpu(self, config: ModelConfig, gpu: int) -> range:
        """Return which experts of each layer a GPU of a set has, from 0 to `expert_gpus` - 1."""
        each, rest = divmod(config.n_routed_experts, self.expert_gpus)
        require("expert_gpus", self.expert_gpus, not rest, f"a divisor of n_routed_experts={config.n_routed_experts}")
        require("gpu", gpu, gpu in range(self.expert_gpus), f"from 0 to {self.expert_gpus - 1}")
        return range(gpu * each, (gpu + 1) * each)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A group of GPUs that serves the model in one phase. `each` is the number of expert places of a GPU.

    Raises ValueError unless the places are those of the routed experts of V3 and of `others`.
    """

    phase: str
    source: str
    gpus: int
    each: int
    others: int  # places besides one for each routed expert
    what: str  # these are
    shared_beside: bool | None = None  # whether each GPU also has the shared expert; None: not said
    attention: int = 1  # GPUs over which attention is cut

    def __post_init__(self):
        places, routed = self.gpus * self.each, ModelConfig.preset("deepseek-v3").n_routed_experts
        require("others", self.others, places == routed + self.others, f"{places} places - {routed} routed experts")

    @property
    def nodes(self) -> int:
        return self.gpus // NODE_LINKS

    @property
    def attention_groups(self) -> int:
        """How many groups of GPUs have requests of their own in attention (data parallelism)."""
        return self.gpus // self.attention


V3_TRAINING = Training()
REPORT, DAY_6 = "December 2024, V3 report §3.4", "February 2025, Day 6"
V3_UNITS = (
    Unit(phase="prefill", source=REPORT, gpus=32, each=9, others=32, what="redundant", attention=4),
    Unit(phase="prefill", source=DAY_6, gpus=32, each=9, others=32, what="redundant", shared_beside=True),
    Unit(
        phase="decoding", source=REPORT, gpus=320, each=1, others=64, what="redundant, shared",
        shared_beside=False, attention=4,
    ),
    Unit(phase="decoding", source=DAY_6, gpus=144, each=2, others=32, what="redundant", shared_beside=True),
)  # fmt: skip
