"""Draw every static figure of the book from the data in figures/data: `make figures`."""

import json
from pathlib import Path

from minids.config import ModelConfig
from minids.plots import draw_expert_load, draw_loss, moe_layer_names

HERE = Path(__file__).parent


def main() -> None:
    data = json.loads((HERE / "data" / "miniature.json").read_text())
    report = next(run["report"] for run in data["runs"] if run["arm"] == "mini")
    figures = {
        "training_loss": draw_loss(data["log"], report),
        "expert_load": draw_expert_load(data["log"], moe_layer_names(ModelConfig.preset("mini"))),
    }
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.png", dpi=100, metadata={"Software": None})
        print(f"figures/{name}.png: {figure.alt}")


if __name__ == "__main__":
    main()
