"""The book's pictures: `draw_*` takes data and returns a figure; `fig.alt` says in words what it shows."""

# ruff: noqa: F401  (what is imported here is for the chapters)

from minids.book.plots.architecture import draw_architecture
from minids.book.plots.c01_bill import draw_claims, draw_conventions, draw_hours, draw_models, draw_parameters
from minids.book.plots.c02_baseline import (
    draw_attention,
    draw_caches,
    draw_live_loss,
    draw_roofline,
    draw_rope,
    draw_wall,
)
from minids.book.plots.c03_ablation import draw_attention_ablation, draw_low_rank
from minids.book.plots.c03_absorption import draw_absorption, draw_crossing, draw_decoding
from minids.book.plots.c03_brackets import draw_brackets
from minids.book.plots.c03_flow import draw_latent_flow
from minids.book.plots.c03_latent import draw_cache_kinds, draw_score_parts
from minids.book.plots.c03_sequence import draw_kinds, draw_step
from minids.book.plots.c04_ablation import draw_experts_ablation, draw_published_experts, draw_without
from minids.book.plots.c04_dispatch import draw_dispatch, draw_dropping
from minids.book.plots.c04_domains import draw_digits, draw_expert_domains
from minids.book.plots.c04_experts import draw_routing, draw_split
from minids.book.plots.c04_gates import draw_gates
from minids.book.plots.c04_pairs import draw_pairs
from minids.book.plots.c04_products import draw_products
from minids.book.plots.c04_text import draw_coloured_text, draw_expert_tokens
from minids.book.plots.c05_balance import draw_headline, draw_scopes, draw_speeds, draw_tradeoff
from minids.book.plots.c05_controller import draw_assignment, draw_controller, draw_drift
from minids.book.plots.c05_load import draw_domain_load, draw_load_map, draw_two_load_maps
from minids.book.plots.c05_nodes import draw_node_choice, draw_nodes
from minids.book.plots.c06_acceptance import draw_acceptance_by_domain, draw_acceptance_is_overlap
from minids.book.plots.c06_alignment import draw_mtp_alignment
from minids.book.plots.c06_rule import draw_acceptance_rule
from minids.book.plots.c06_speed import draw_speculation_speedup
from minids.book.plots.c06_text import draw_drafted_text
from minids.book.plots.c06_training import draw_mtp_ablation, draw_mtp_published
from minids.book.plots.c07_accumulate import draw_accumulation_error, draw_cut_products
from minids.book.plots.c07_bytes import draw_bytes
from minids.book.plots.c07_formats import draw_code, draw_magnitudes, draw_number_lines
from minids.book.plots.c07_products import draw_fp8_layer, draw_fp8_products
from minids.book.plots.c07_scales import draw_outlier, draw_tile_width, draw_tilings
from minids.book.plots.c07_training import draw_fp8_arms, draw_fp8_loss, draw_outlier_loss
from minids.book.plots.c08_backward import draw_halves, draw_smaller_stages
from minids.book.plots.c08_compare import draw_bubble_share, draw_peak_memory, draw_waits
from minids.book.plots.c08_dualpipe import draw_fold, draw_steps
from minids.book.plots.c08_gaps import draw_gap, draw_stages
from minids.book.plots.c08_measured import draw_measured
from minids.book.plots.c08_overlap import draw_overlap
from minids.book.plots.c08_timeline import draw_schedule
from minids.book.plots.c09_bytes import draw_dispatch_bytes, draw_free_experts
from minids.book.plots.c09_cluster import draw_cluster, draw_serving_units
from minids.book.plots.c09_journey import draw_journey
from minids.book.plots.c09_layouts import draw_grid, draw_kept
from minids.book.plots.c09_packing import draw_packing_by_hand
from minids.book.plots.c09_placement import draw_placement
from minids.book.plots.c09_traffic import draw_traffic
from minids.book.plots.c09_waves import draw_waves
from minids.book.plots.c10_ablation import draw_ablation
from minids.book.plots.c10_dashboard import draw_dashboard
from minids.book.plots.c10_kills import draw_kills
from minids.book.plots.c10_scaling import draw_scaling
from minids.book.plots.c10_schedules import draw_schedules
from minids.book.plots.growth import draw_growth
