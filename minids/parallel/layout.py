"""Who does what: the ranks of a training run as a grid of pipeline stages, copies of the experts, and their ranks.

V3 was trained with 16-way pipeline parallelism, 64-way expert parallelism and ZeRO-1 data parallelism on 2,048 GPUs
(V3 report §3.2). Three numbers describe such a layout:

    pp    ranks of a pipeline: each has some of the layers                                                        16
    dp    pipelines side by side: each has a part of every batch                                                 128
    ep    how many of those dp ranks share one set of a layer's experts; dp / ep such groups have copies          64

    ranks = pp · dp        rank = (stage · copies + copy) · ep + place

Expert parallelism needs no ranks of its own. It uses those of data parallelism, which have the same attention weights
and different tokens: instead of all experts, each of them keeps an ep-th, and the tokens travel (experts.py). Ranks
that follow each other are on the same node, so the many messages of the experts go the shortest way.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from minids.model.config import ModelConfig
from minids.parallel.launch import under_torchrun
from minids.parallel.schedules import SCHEDULES, Schedule
from minids.parallel.simulate import simulate
from minids.parallel.stages import layers_of
from minids.validation import BadValueError, require, require_whole


@dataclass(frozen=True)
class Layout:
    """How `ranks` processes share a training run. `dp` is ranks / pp unless given; `node` is the ranks of a machine, by
    default all. Raises ValueError, one sentence, for numbers that do not fit together."""

    ranks: int
    pp: int = 1
    dp: int | None = None
    ep: int = 1
    schedule: str | None = None  # of the pipeline; None: 1F1B
    node: int | None = None

    def __post_init__(self):
        for name in ("ranks", "pp", "ep"):
            require_whole(name, getattr(self, name))
        if self.node is not None:
            require_whole("node", self.node)
            require("node", self.node, self.ranks % self.node == 0, f"a divisor of the {self.ranks} ranks")
        several = f"there are {self.ranks} processes"
        processes = several if self.ranks > 1 else "there is one process (torchrun starts several)"
        require("pp", self.pp, self.ranks % self.pp == 0, f"a divisor of {self.ranks}, because {processes}")
        if self.dp is None:
            object.__setattr__(self, "dp", self.ranks // self.pp)
        require_whole("dp", self.dp)
        fits = self.pp * self.dp == self.ranks
        require("dp", self.dp, fits, f"{self.ranks // self.pp} with pp={self.pp}, because {processes}")
        require("ep", self.ep, self.dp % self.ep == 0, f"a divisor of dp={self.dp}, whose ranks share the experts")
        names = ", ".join(SCHEDULES)
        require("schedule", self.schedule, self.schedule in (None, *SCHEDULES), f"one of {names}")
        require("schedule", self.schedule, self.schedule is None or self.pp > 1, "left out without a pipeline (pp)")

    def __str__(self) -> str:
        schedule = f" with {self.schedule or '1F1B'}" if self.pp > 1 else ""
        nodes = f" on nodes of {self.node}" if self._two_hops else ""
        return f"pp={self.pp}{schedule}, dp={self.dp}, ep={self.ep}{nodes}"

    @property
    def _two_hops(self) -> bool:
        """Whether the ranks that share experts are evenly on several nodes."""
        return self.node is not None and self.ep > self.node and self.ep % self.node == 0

    @property
    def copies(self) -> int:
        """How many copies of each expert there are."""
        return self.dp // self.ep

    def coordinates(self, rank: int) -> tuple[int, int]:
        """Return a rank's place in the pipeline, and its place among the ranks that share a batch."""
        return divmod(rank, self.dp)

    def holders(self, stage_ranks: tuple[int, ...], rank: int, is_expert: bool) -> tuple[int, ...]:
        """Return the ranks that hold the same values of a parameter as `rank`, if these ranks of a pipeline hold it."""
        place = self.coordinates(rank)[1]
        step = self.ep if is_expert else 1
        return tuple(stage * self.dp + i for stage in stage_ranks for i in range(place % step, self.dp, step))

    def micro_batches(self, batch_size: int, micro_batch_size: int | None) -> int:
        """Return how many micro-batches a pipeline's step has: of a single sequence each unless their size is given.

        Raises ValueError if the batch cannot be divided so.
        """
        unit = self.dp * (micro_batch_size or 1)
        each = f" x micro_batch_size={micro_batch_size}" if micro_batch_size else ""
        require("batch_size", batch_size, batch_size % unit == 0, f"a multiple of dp={self.dp}{each}")
        return batch_size // unit

    def check(self, model: ModelConfig, batch_size: int, micro_batch_size: int | None) -> Schedule | None:
        """Return the pipeline's schedule, None without a pipeline. Raises ValueError, one sentence, for a model or
        batches that cannot be divided so, and for a schedule that cannot run."""
        experts = model.n_routed_experts
        if self.ep > 1:
            require("ep", self.ep, experts is not None, "1, because the model has no experts")
            require("ep", self.ep, experts % self.ep == 0, f"a divisor of the model's {experts} experts")
        if self.pp == 1:
            require("batch_size", batch_size, batch_size % self.dp == 0, f"a multiple of dp={self.dp}")
            return None
        micro_batches = self.micro_batches(batch_size, micro_batch_size)
        name = self.schedule or "1F1B"
        try:
            schedule = SCHEDULES[name](self.pp, micro_batches)
            layers_of(model, schedule.stages)
        except BadValueError as error:
            size = f"{batch_size} / ({self.dp} x {micro_batch_size or 1})"
            raise ValueError(
                f"schedule {name} with pp={self.pp}: {error} (A step has batch_size / (dp x micro_batch_size) "
                f"micro-batches, {size} here.)"
            ) from None
        simulate(schedule)
        return schedule

    def require_processes(self) -> None:
        """Raise ValueError unless this is one of as many processes as there are ranks."""
        if not dist.is_initialized():
            raise ValueError(f"{self} needs its processes: start them with torchrun, or with `launch` (launch.py).")
        there = dist.get_world_size()
        require("ranks", self.ranks, self.ranks == there, f"{there}, the number of processes")

    def grid(self, device: str) -> Grid:
        """Return the process groups of this rank. Raises ValueError if there are not as many processes as ranks."""
        self.require_processes()
        mesh = init_device_mesh(device, (self.pp, self.copies, self.ep), mesh_dim_names=("pp", "copies", "ep"))
        dp = init_device_mesh(device, (self.pp, self.dp), mesh_dim_names=("pp", "dp"))["dp"]
        groups = (mesh["ep"].get_group(),)
        if self._two_hops:
            sizes = (self.ranks // self.ep, self.ep // self.node, self.node)
            hops = init_device_mesh(device, sizes, mesh_dim_names=("set", "node", "gpu"))
            groups = hops["node"].get_group(), hops["gpu"].get_group()
        return Grid(mesh["pp"], mesh["copies"], mesh["ep"], dp, groups)


@dataclass(frozen=True)
class Grid:
    """The ranks in line with this one in each direction of the layout, and the groups between which tokens travel: all
    ranks that share experts, in one hop, or those with the same number on all nodes, and those of the node."""

    pp: DeviceMesh
    copies: DeviceMesh
    ep: DeviceMesh
    dp: DeviceMesh  # copies and ep together
    expert_groups: tuple[dist.ProcessGroup, ...]


def from_torchrun(**flags) -> Layout:
    """Return the layout of the processes that torchrun started, by its environment variables; else, of one process."""
    ranks, node = (int(os.environ[name]) if under_torchrun() else 1 for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return Layout(ranks, node=node, **flags)
