"""The pictures: one palette and style (`style.py`), and functions `draw_*(data) -> Figure`.

Each figure carries `fig.alt`: the numbers it shows, in words.
"""

from minids.plots.growth import draw_growth
from minids.plots.training import draw_expert_load, draw_loss, moe_layer_names

__all__ = ["draw_expert_load", "draw_growth", "draw_loss", "moe_layer_names"]
