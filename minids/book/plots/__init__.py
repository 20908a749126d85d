"""The book's pictures: `draw_*` takes data and returns a figure; `fig.alt` says in words what it shows."""

from minids.book.plots.architecture import draw_architecture
from minids.book.plots.c01_bill import draw_claims, draw_conventions, draw_hours, draw_models, draw_parameters
from minids.book.plots.c02_baseline import draw_attention, draw_caches, draw_live_loss, draw_rotation, draw_wall
from minids.book.plots.c03_ablation import draw_attention_ablation, draw_low_rank
from minids.book.plots.c03_absorption import draw_absorption, draw_crossing, draw_decoding
from minids.book.plots.c03_flow import draw_latent_flow
from minids.book.plots.c03_latent import draw_cache_kinds, draw_latent_budget, draw_score_parts
from minids.book.plots.c10_training import draw_expert_load, draw_loss, moe_layer_names
from minids.book.plots.growth import draw_growth

__all__ = [
    "draw_absorption",
    "draw_architecture",
    "draw_attention",
    "draw_attention_ablation",
    "draw_cache_kinds",
    "draw_caches",
    "draw_claims",
    "draw_conventions",
    "draw_crossing",
    "draw_decoding",
    "draw_expert_load",
    "draw_growth",
    "draw_hours",
    "draw_latent_budget",
    "draw_latent_flow",
    "draw_live_loss",
    "draw_loss",
    "draw_low_rank",
    "draw_models",
    "draw_parameters",
    "draw_rotation",
    "draw_score_parts",
    "draw_wall",
    "moe_layer_names",
]
