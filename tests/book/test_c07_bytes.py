"""The picture of bytes: lengths are the bytes, in the colours of their formats."""

import pytest
from legibility import assert_legible
from matplotlib.colors import to_hex
from pictures import title

from minids.book.plots.c07_bytes import draw_bytes
from minids.book.plots.c07_formats import COLORS
from minids.cost.precision import activation_bytes, file_bytes, state_bytes, total
from minids.model.config import ModelConfig

V3, MINI, TINY = (ModelConfig.preset(name) for name in ("deepseek-v3", "mini", "tiny"))


@pytest.mark.parametrize("small", [MINI, TINY])
def test_the_lengths_are_the_bytes(small):
    fig = draw_bytes(V3, small)
    assert_legible(fig)
    assert title(fig) == "Of 18 bytes for each weight in training, FP8 saves 1 and BF16 moments 4"
    assert all(words in fig.alt for words in ("8.88 TB in FP8 (72%)", "689 GB in FP8 (50%)"))
    for ax, config in zip(fig.axes, (V3, small), strict=True):
        layers = range(config.num_hidden_layers)
        kept = total(part for layer in layers for part in activation_bytes(config, layer).values())
        sizes = {0: total(state_bytes(config).values()), 1: kept, 3: file_bytes(config)}
        for row, size in sizes.items():
            for below, expected in ((False, 1), (True, size.fp8 / size.bf16)):
                place = row + (0.19 if below else -0.19)
                bars = [bar for bar in ax.patches if abs(bar.get_y() + bar.get_height() / 2 - place) < 0.01]
                assert sum(bar.get_width() for bar in bars) == pytest.approx(expected)
        of_state = [bar for bar in ax.patches if bar.get_y() < 0.4]
        full = [bar.get_width() for bar in of_state if to_hex(bar.get_facecolor()).upper() == COLORS["FP32"]]
        assert sum(full) == pytest.approx((4 + 4 + 8 + 4 + 4) / 18)
