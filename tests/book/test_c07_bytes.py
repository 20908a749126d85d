"""The picture of bytes: lengths are the bytes, in the colours of their formats."""

import pytest
from legibility import assert_legible
from matplotlib.colors import to_hex
from pictures import title

from minids.book.plots.c07_bytes import draw_bytes
from minids.book.plots.c07_formats import COLORS
from minids.cost.precision import activation_bytes, communication_bytes, file_bytes, state_bytes, total
from minids.model.config import ModelConfig
from minids.units import short

V3, MINI, TINY = (ModelConfig.preset(name) for name in ("deepseek-v3", "mini", "tiny"))


@pytest.mark.parametrize("small", [MINI, TINY])
def test_the_lengths_are_the_bytes(small):
    fig = draw_bytes(V3, small)
    assert_legible(fig)
    assert title(fig) == "Of 18 bytes for each weight in training, FP8 saves 1 and BF16 moments 4"
    assert "BF16 moments 4: 13.0 remain." in fig.alt
    assert all(words in fig.alt for words in ("8.88 TB in FP8 (72%)", "689 GB in FP8 (50%)"))
    for ax, config in zip(fig.axes, (V3, small), strict=True):
        layers = range(config.num_hidden_layers)
        kept = total(part for layer in layers for part in activation_bytes(config, layer).values())
        state, sent = state_bytes(config), communication_bytes(config)
        sizes = {0: total(state.values()), 1: kept, 2: total(sent.values()), 3: file_bytes(config)}
        of_kind = {name: total(part for i in layers for key, part in activation_bytes(config, i).items() if key == name)
                   for name in ("o_proj", "SwiGLU")}  # fmt: skip
        colored = {(0, "E4M3"): state["copy of the matrices"], (1, "E5M6"): of_kind["o_proj"],
                   (1, "BF16"): of_kind["SwiGLU"], (2, "E4M3"): sent["dispatch"]}  # fmt: skip
        for (row, format), size in colored.items():
            bars = [bar for bar in ax.patches if abs(bar.get_y() + bar.get_height() / 2 - row - 0.19) < 0.01]
            widths = [bar.get_width() for bar in bars if to_hex(bar.get_facecolor()).upper() == COLORS[format]]
            assert sum(widths) == pytest.approx(size.fp8 / sizes[row].bf16)
        units = (" B", " KB", " MB", " GB", " TB")
        said = [f"{short(size.fp8, units)}  {size.fp8 / size.bf16:.0%}" for size in sizes.values()]
        assert set(said) <= {text.get_text() for text in ax.texts}
        for row, size in sizes.items():
            for below, expected in ((False, 1), (True, size.fp8 / size.bf16)):
                place = row + (0.19 if below else -0.19)
                bars = [bar for bar in ax.patches if abs(bar.get_y() + bar.get_height() / 2 - place) < 0.01]
                assert sum(bar.get_width() for bar in bars) == pytest.approx(expected)
        of_state = [bar for bar in ax.patches if bar.get_y() < 0.4]
        full = [bar.get_width() for bar in of_state if to_hex(bar.get_facecolor()).upper() == COLORS["FP32"]]
        assert sum(full) == pytest.approx((4 + 4 + 8 + 4 + 4) / 18)
