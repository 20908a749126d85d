"""Draw every static figure of the book, and README's table, from the data in figures/data: `make figures`."""

import json
import re
from pathlib import Path

from minids.config import ModelConfig
from minids.experiments import miniature
from minids.plots import draw_expert_load, draw_loss, moe_layer_names

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
TABLE = re.compile(r"(?<=<!-- miniature -->\n).*?(?=\n<!-- /miniature -->)", re.DOTALL)


def main() -> None:
    data = json.loads((HERE / "data" / "miniature.json").read_text())
    report = data["runs"][0]["report"]
    figures = {
        "training_loss": draw_loss(data["log"], report),
        "expert_load": draw_expert_load(data["log"], moe_layer_names(ModelConfig.preset("mini"))),
    }
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.png", dpi=100, metadata={"Software": None})
        print(f"figures/{name}.png: {figure.alt}")
    README.write_text(with_table(README.read_text(), data))


def with_table(readme: str, data: dict) -> str:
    """Return the text with the table between its two marks renewed."""
    return TABLE.sub(lambda _: miniature.table(data), readme)


if __name__ == "__main__":
    main()
