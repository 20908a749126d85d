"""Draw every static figure of the book, the gallery and README's tables, from data: `make figures`."""

import re
from pathlib import Path

from minids.book import plots
from minids.book.ablation import recorded_rows
from minids.book.ablation import table as ablation_table
from minids.book.bench.table import table as bench_table
from minids.book.claims import ARTICLES, all_claims
from minids.book.experiments import miniature
from minids.book.plots.style import Picture
from minids.book.recorded import load
from minids.cost.cache import kv_cache_bytes
from minids.cost.flops import decoding_flops_per_token
from minids.cost.parameters import count_parameters
from minids.cost.published import REPORTS
from minids.model.config import ModelConfig
from minids.parallel.layout import Layout

HERE = Path(__file__).parent
README, GALLERY = HERE.parent / "README.md", HERE / "README.md"


def main() -> None:
    drawn = figures()
    for name, figure in drawn.items():
        (HERE / f"{name}.png").write_bytes(figure.png())
        print(f"figures/{name}.png: {figure.alt}")
    GALLERY.write_text(gallery(drawn), encoding="utf-8")
    tables = {
        "miniature": miniature.table(load("miniature")),
        "ablation": ablation_table(recorded_rows()),
        "bench": bench_table(load("bench")),
    }
    README.write_text(with_tables(README.read_text(encoding="utf-8"), tables), encoding="utf-8")


def figures() -> dict[str, Picture]:
    """Return every picture by the name of its file, in the order of the book."""
    v3 = ModelConfig.preset("deepseek-v3")
    parts = (
        the_bill(v3),
        attention(v3),
        experts(),
        balance(),
        multi_token_prediction(),
        fp8(v3),
        pipelines(),
        expert_parallelism(v3),
        training(),
    )
    return {name: figure for part in parts for name, figure in part.items()}


def the_bill(v3: ModelConfig) -> dict[str, Picture]:
    """Chapters 0 and 1."""
    return {
        "architecture": plots.draw_architecture(),
        "parameters": plots.draw_parameters(v3),
        "conventions": plots.draw_conventions(["deepseek-moe-16b", "deepseek-v2-lite", "deepseek-v2", "deepseek-v3"]),
        "gpu_hours": plots.draw_hours(REPORTS["deepseek-v3"]),
        "models": plots.draw_models(list(REPORTS)),
        "claims": plots.draw_claims(all_claims(), ARTICLES),
    }


def attention(v3: ModelConfig) -> dict[str, Picture]:
    """Chapters 2 and 3."""
    return {
        "rope": plots.draw_rope(ModelConfig.preset("deepseek-llm-7b")),
        "caches": plots.draw_caches(["deepseek-llm-7b", "deepseek-llm-67b", "deepseek-moe-16b"]),
        "wall": plots.draw_wall(batch=8),
        "roofline": plots.draw_roofline(decoding_intensities(["deepseek-llm-7b", "deepseek-llm-67b"], 8, 2**15)),
        "low_rank": plots.draw_low_rank(load("attention")),
        "attention_kinds": plots.draw_kinds(),
        "decoding_step_expanded": plots.draw_step("MLA, expanded"),
        "decoding_step_absorbed": plots.draw_step("MLA, absorbed"),
        "brackets": plots.draw_brackets(),
        "latents": plots.draw_latent_flow(v3),
        "latents_absorbed": plots.draw_latent_flow(v3, absorbed=True),
        "cache_by_kind": plots.draw_cache_kinds(list(REPORTS)),
        "absorption": plots.draw_absorption(v3),
        "attention_ablation": plots.draw_attention_ablation(load("attention")),
    }


def experts() -> dict[str, Picture]:
    """Chapter 4."""
    return {
        "experts_split": plots.draw_split(),
        "routing": plots.draw_routing(),
        "gates": plots.draw_gates(),
        "dispatch": plots.draw_dispatch(),
        "experts_ablation": plots.draw_experts_ablation(load("experts")),
        "experts_published": plots.draw_published_experts(),
        "experts_left_out": plots.draw_without(load("experts")),
    }


def balance() -> dict[str, Picture]:
    """Chapter 5."""
    return {
        "load_map": plots.draw_load_map(load("balance")),
        "load_maps": plots.draw_two_load_maps(load("balance")),
        "balance_tradeoff": plots.draw_tradeoff(load("balance")),
        "balance_assignment": plots.draw_assignment(),
        "balance_controller": plots.draw_controller(),
        "balance_speeds": plots.draw_speeds(load("balance")),
        "loss_free": plots.draw_headline(load("balance")),
        "bias_drift": plots.draw_drift(load("balance")),
        "balance_scopes": plots.draw_scopes(load("balance")),
        "domain_load": plots.draw_domain_load(load("balance")),
        "node_choice": plots.draw_node_choice(),
        "node_limit": plots.draw_nodes(load("balance")),
        "token_dropping": plots.draw_dropping(),
    }


def multi_token_prediction() -> dict[str, Picture]:
    """Chapter 6."""
    return {
        "mtp_alignment": plots.draw_mtp_alignment(depth=2),
        "mtp_ablation": plots.draw_mtp_ablation(load("mtp")),
        "mtp_published": plots.draw_mtp_published(),
        "acceptance_rule": plots.draw_acceptance_rule(),
        "speculation_speedup": plots.draw_speculation_speedup(),
    }


def fp8(v3: ModelConfig) -> dict[str, Picture]:
    """Chapter 7."""
    return {
        "number_lines": plots.draw_number_lines(),
        "outlier": plots.draw_outlier(),
        "tile_width": plots.draw_tile_width(),
        "fp8_products": plots.draw_fp8_products(),
        "cut_products": plots.draw_cut_products(),
        "fp8_loss": plots.draw_fp8_loss(load("fp8")),
        "fp8_arms": plots.draw_fp8_arms(load("fp8")),
        "fp8_bytes": plots.draw_bytes(v3, ModelConfig.preset("mini")),
    }


def pipelines() -> dict[str, Picture]:
    """Chapter 8."""
    return {
        "pipeline_stages": plots.draw_stages(),
        "pipeline_bubble": plots.draw_schedule("GPipe", 4, 4),
        "pipeline_gap": plots.draw_gap(),
        "split_backward": plots.draw_halves(),
        "smaller_stages": plots.draw_smaller_stages(),
        "overlapped_pair": plots.draw_overlap(),
        "dualpipe": plots.draw_steps(),
        "dualpipe_step_4": plots.draw_steps(4),
        "dualpipe_v": plots.draw_fold(),
        "dualpipe_waits": plots.draw_waits(),
        "bubble_share": plots.draw_bubble_share(),
        "peak_activations": plots.draw_peak_memory(),
    }


def expert_parallelism(v3: ModelConfig) -> dict[str, Picture]:
    """Chapter 9."""
    chosen = [[[5, 6], [4, 2]], [[3, 0], [4, 5]], [[3, 2], [0, 3]], [[0, 1], [7, 0]]]  # on four ranks
    power_law = [round(1000 / (1 + rank)) for rank in (7 * expert % 32 for expert in range(32))]
    return {
        "one_hop": plots.draw_journey(chosen),
        "two_hops": plots.draw_journey(chosen, hops=2),
        "dispatch_bytes": plots.draw_dispatch_bytes(v3),
        "free_experts": plots.draw_free_experts(v3),
        "waves": plots.draw_waves(),
        "packing_by_hand": plots.draw_packing_by_hand(),
        "placement": plots.draw_placement(power_law, 40, 8, 2, 8),
        "cluster": plots.draw_cluster(),
        "serving_units": plots.draw_serving_units(),
        "layout": plots.draw_grid(Layout(8, pp=2, ep=2)),
    }


def training() -> dict[str, Picture]:
    """Chapter 10, and the README."""
    mini = load("miniature")
    return {
        "dashboard": plots.draw_dashboard(
            mini["log"], mini["runs"][0]["report"], layer_names=ModelConfig.preset("mini").moe_layer_names()
        ),
        "schedules": plots.draw_schedules(),
        "ablation": plots.draw_ablation(recorded_rows()),
        "scaling": plots.draw_scaling(load("scaling")),
        "growth": plots.draw_growth(load("bench")["growth"]),
    }


def decoding_intensities(names: list[str], batch: int, context: int) -> dict[str, float]:
    """Return the operations per byte read, of weights and caches, by the last token of so many texts of this length."""
    found = {}
    for name in names:
        config = ModelConfig.preset(name)
        read = 2 * count_parameters(config).total + batch * context * kv_cache_bytes(config)
        found[f"{REPORTS[name].name}, decoding"] = batch * decoding_flops_per_token(config, context) / read
    return found


def gallery(drawn: dict[str, Picture]) -> str:
    """Return the page that shows all figures, each with its text."""
    page = [
        "# All pictures",
        "For a slide or a poster. Each is drawn by code, from data; `make figures` draws them again.",
    ]
    for name, figure in drawn.items():
        page += [f"## {name.replace('_', ' ').capitalize()}", f"![{figure.alt}]({name}.png)", figure.alt]
    return "\n\n".join(page) + "\n"


def with_tables(readme: str, tables: dict[str, str]) -> str:
    """Return the text with each table between its two markers replaced."""
    for name, table in tables.items():
        readme = re.sub(rf"(?s)(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", lambda _, new=table: new, readme)
    return readme


if __name__ == "__main__":
    main()
