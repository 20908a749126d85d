"""Draw every static figure of the book, and README's tables, from the data in figures/data: `make figures`."""

import json
import re
from pathlib import Path

from minids.bench.table import table as bench_table
from minids.config import ModelConfig
from minids.experiments import miniature
from minids.plots import draw_expert_load, draw_growth, draw_loss, moe_layer_names

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def main() -> None:
    data = {name: json.loads((HERE / "data" / f"{name}.json").read_text()) for name in ("miniature", "bench")}
    log, report = data["miniature"]["log"], data["miniature"]["runs"][0]["report"]
    figures = {
        "training_loss": draw_loss(log, report),
        "expert_load": draw_expert_load(log, moe_layer_names(ModelConfig.preset("mini"))),
        "growth": draw_growth(data["bench"]["growth"]),
    }
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.png", dpi=100, metadata={"Software": None})
        print(f"figures/{name}.png: {figure.alt}")
    tables = {"miniature": miniature.table(data["miniature"]), "bench": bench_table(data["bench"])}
    README.write_text(with_tables(README.read_text(), tables))


def with_tables(readme: str, tables: dict[str, str]) -> str:
    """Return the text with each table between its two marks renewed."""
    for name, table in tables.items():
        readme = re.sub(rf"(?s)(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", lambda _, new=table: new, readme)
    return readme


if __name__ == "__main__":
    main()
