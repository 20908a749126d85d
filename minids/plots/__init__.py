"""The book's pictures: `draw_*` takes data and returns a figure; `fig.alt` says in words what it shows."""

from minids.plots.architecture import draw_architecture
from minids.plots.baseline import draw_attention, draw_caches, draw_live_loss, draw_rotation, draw_wall
from minids.plots.bill import draw_claims, draw_conventions, draw_hours, draw_models, draw_parameters
from minids.plots.growth import draw_growth
from minids.plots.training import draw_expert_load, draw_loss, moe_layer_names

__all__ = [
    "draw_architecture",
    "draw_attention",
    "draw_caches",
    "draw_claims",
    "draw_conventions",
    "draw_expert_load",
    "draw_growth",
    "draw_hours",
    "draw_live_loss",
    "draw_loss",
    "draw_models",
    "draw_parameters",
    "draw_rotation",
    "draw_wall",
    "moe_layer_names",
]
