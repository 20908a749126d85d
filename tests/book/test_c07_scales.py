"""Scales: what the pictures say against loops over tiles and torch's casts."""

import re

import pytest
import torch
from legibility import assert_legible
from pictures import title

from minids.book.plots.c07_scales import (
    SIDE,
    TILINGS,
    WIDTHS,
    draw_outlier,
    draw_tile_width,
    draw_tilings,
    width_errors,
)
from minids.quantization.formats import E2M1, E4M3

pytestmark = pytest.mark.xdist_group("pictures")  # in one process, as other pictures


def in_tiles(x, rows, columns):
    """x after a cast to E4M3, tile by tile."""
    out = torch.empty_like(x)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            here = (slice(i, i + rows), slice(j, j + columns))
            scale = x[here].abs().max().clamp(min=1e-4) / 448
            out[here] = (x[here] * (1 / scale)).to(torch.float8_e4m3fn).float() * scale
    return out


def shares(text):
    return [float(number) / 100 for number in re.findall(r"([\d.]+)%", text)]


@pytest.mark.parametrize(("size", "row", "column"), [(100_000, 200, 300), (1_000_000, 0, 383), (1, 383, 0)])
def test_zeros_and_errors_beside_an_outlier_are_those_of_a_loop_over_tiles(size, row, column):
    fig = draw_outlier(size, row, column)
    x = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    x[row, column] = size
    others = torch.arange(SIDE * SIDE).view(SIDE, SIDE) != row * SIDE + column
    found = [in_tiles(x, *tile) for tile in ((SIDE, SIDE), (128, 128), (1, 128))]
    lost = [(result == 0)[others].float().mean().item() for result in found]
    errors = [((result - x)[others].norm() / x[others].norm()).item() for result in found]
    assert shares(title(fig)) == pytest.approx(lost, rel=0.051, abs=1e-6)
    norm = torch.nn.functional.lp_pool2d
    for ax, result, *said in zip(fig.axes[:3], found, lost, errors, strict=True):
        assert shares(ax.get_title(loc="left")) == pytest.approx(said, rel=0.051, abs=1e-6)
        error, there = (norm((t * others)[None], 2, (4, 8))[0] for t in (result - x, x))
        torch.testing.assert_close(torch.tensor(ax.images[0].get_array()), error / there)
        (cross,) = [line for line in ax.lines if line.get_marker() == "X"]
        assert cross.get_xydata().tolist() == [[column + 0.5, row + 0.5]]
    (frame,) = fig.axes[1].patches
    assert frame.get_xy() == (column // 128 * 128, row // 128 * 128)
    assert shares(fig.alt)[1::2] == pytest.approx(errors, rel=0.051)
    assert {(*ax.get_xlim(), *ax.get_ylim()) for ax in fig.axes[:3]} == {(0, SIDE, SIDE, 0)}  # marks widen none
    assert_legible(fig)


def test_zeros_and_errors_of_each_tiling_are_those_of_a_loop_over_tiles():
    x = torch.randn(140, 200, generator=torch.Generator().manual_seed(0)) ** 5
    made = x.clone()
    made[:, 7] *= 10_000
    small = x / x.abs().clamp(min=1) ** 0.5
    fig = draw_tilings({"own\ntensor": x, "smaller": small, "made": made})
    said = shares(fig.alt)
    written = [shares(text.get_text())[0] for text in fig.axes[0].texts[:-1]]
    assert written == pytest.approx(said, rel=0.051, abs=0.0006)
    for place, tensor in enumerate((x, small, made)):
        for i, (name, tile) in enumerate(TILINGS.items()):
            result = in_tiles(tensor, *(tile or tensor.shape))
            error = ((result - tensor).norm(dim=0) / tensor.norm(dim=0)).median().item()
            lost = (result == 0).float().mean().item()
            at = 2 * (len(TILINGS) * place + i)
            assert said[at : at + 2] == pytest.approx([lost, error], abs=0.00051), name
    of_tensor = said[:: 2 * len(TILINGS)]
    assert of_tensor[1] < of_tensor[0]
    assert shares(title(fig)) == pytest.approx([of_tensor[0], of_tensor[2]], abs=0.005)
    assert_legible(fig)
    with pytest.raises(ValueError, match="must be at least two"):
        draw_tilings({"one": x})


def test_the_curves_are_errors_of_casts_and_powers_of_two_make_them_flat():
    x = torch.randn(128, WIDTHS[-1], generator=torch.Generator().manual_seed(0))
    for width in (128, WIDTHS[-1]):
        error = (in_tiles(x, 1, width) - x).norm() / x.norm()
        assert width_errors(E4M3, False)[WIDTHS.index(width)] == pytest.approx(error.item(), rel=1e-4)
    powers = width_errors(E4M3, False, True)
    assert max(powers) == pytest.approx(min(powers), rel=1e-5)
    large = torch.randperm(WIDTHS[-1], generator=torch.Generator().manual_seed(0))[: WIDTHS[-1] // 100]
    others = torch.ones(WIDTHS[-1], dtype=torch.bool)
    others[large] = False
    beside = x.clone()
    beside[:, large] *= 100
    error = ((in_tiles(beside, 1, 128) - beside)[:, others]).norm() / x[:, others].norm()
    assert width_errors(E4M3, True)[WIDTHS.index(128)] == pytest.approx(error.item(), rel=1e-4)
    fig = draw_tile_width()
    for ax, format in zip(fig.axes, (E4M3, E2M1), strict=True):
        curves = [width_errors(format, False), width_errors(format, True)] + [powers] * (format is E4M3)
        assert [list(line.get_ydata()) for line in ax.lines if len(line.get_ydata()) == len(WIDTHS)] == curves
        fig.canvas.draw()
        labels = [tick.get_text() for tick in ax.get_xticklabels()]
        assert labels == ["16\n2 bits", "128\n0.25", "1024\n0.03"]
        even, large = (curve[WIDTHS.index(16)] for curve in curves[:2])
        said = shares(re.search(rf"{format.name}: tiles of 16 (.*?), tiles", fig.alt)[1])
        assert said == pytest.approx([even, large], rel=0.051)
    at = [WIDTHS.index(128), WIDTHS.index(16)]
    expected = [width_errors(format, True)[i] for format in (E4M3, E2M1) for i in at]
    assert shares(title(fig)) == pytest.approx(expected, rel=0.051)
    assert_legible(fig)


def test_an_outlier_outside_of_the_matrix_is_refused():
    with pytest.raises(ValueError, match="column=384 is not possible"):
        draw_outlier(column=SIDE)
    with pytest.raises(ValueError, match="size=0 is not possible: it must be at least 1"):
        draw_outlier(0)
