"""Formats: the pictures against torch's casts, and the probe's tensors against gradients computed without it."""

import re

import numpy as np
import pytest
import torch
from configurations import MOE, random_model, random_tokens
from legibility import assert_legible
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from pictures import title

from minids.book.plots.c07_formats import (
    BF16,
    COLORS,
    FIELDS,
    LINES,
    draw_code,
    draw_magnitudes,
    draw_number_lines,
    positive_numbers,
)  # fmt: skip
from minids.book.plots.style import INK, PAPER
from minids.book.probes.tensors import KINDS, kinds, operands, training_rows
from minids.hub.reference import reference
from minids.model.config import ModelConfig
from minids.model.linear import Linear
from minids.quantization.formats import E4M3, E5M2

CODES = (0, 1, 69, 123, 124, 126, 127, 128, 201, 252, 255)


def assert_explained(fig, code, values, format):
    """The bits, their three numbers, the formula, the interval and the neighbours are those of the code."""
    texts, M, value = fig.axes[0].texts, format.mantissa_bits, values[code].item()
    assert "".join(text.get_text() for text in texts if text.get_size() == 16) == f"{code:08b}"
    exponent = code % 128 // 2**M
    parts = {f"$s = {code // 128}$", f"$e = {exponent}$", f"$m = {code % 2**M}$"}
    assert parts <= {text.get_text() for text in texts}
    cells = [to_hex(p.get_facecolor()).upper() for p in fig.axes[0].patches
             if isinstance(p, Rectangle) and p.get_height() == 22]  # fmt: skip
    assert [i for i, color in enumerate(cells) if color == FIELDS["exponent"].upper()] == [exponent]
    powers = [text.get_text() for text in texts if re.fullmatch(r"\$2\^{-?\d+}\$", text.get_text())]
    assert powers[0] == f"$2^{{{(1 if format is E4M3 else 5) - format.bias}}}$"
    same = values[code - code % 2**M :][: 2**M]
    if not same[0].isinf():
        known, spacing = re.search(
            r"one of (\d) numbers in it, equally spaced: (?:≈ )?(\S+) apart", texts[-1].get_text()
        ).groups()
        assert int(known) == same.isfinite().sum()
        assert float(spacing.replace("−", "-").replace(",", "")) == pytest.approx(
            (same[1] - same[0]).abs().item(), rel=5e-3
        )
    if np.isfinite(value):
        formula = re.search(r": (\(-1\).*) [=≈] ", fig.alt)[1]
        assert eval(formula.replace("^", "**").replace("·", "*")) == value
        tiny, special = torch.finfo(format.dtype), {0.0: "0, the subnormal"}
        special |= {tiny.max: "the number of largest magnitude", format.smallest: "subnormal number of the smallest"}
        kind = " a normal number" if abs(value) >= tiny.tiny else " a subnormal number"
        assert special.get(abs(value), kind) in title(fig)


@pytest.mark.parametrize("format", [E4M3, E5M2], ids=lambda format: format.name)
def test_a_code_has_torch_s_value_and_its_place_is_marked(format):
    values = torch.arange(256, dtype=torch.uint8).view(format.dtype).float()
    for code in CODES:
        fig, value = draw_code(code, format.name), values[code].item()
        said = re.search(r"is (?:about )?(\S+?)(?:,? |,?$)", title(fig))[1].replace("−", "-").replace(",", "")
        if np.isfinite(value):
            assert float(said) == pytest.approx(value, rel=5e-3)
        else:
            assert said == ("not" if np.isnan(value) else "infinity" if value > 0 else "-infinity")
        (marked,) = [line for line in fig.axes[0].lines if line.get_markersize() == 13]
        places = sorted(line.get_xdata()[0] for line in fig.axes[0].lines if line.get_marker() == "o")
        assert places.index(marked.get_xdata()[0]) == code % 2**format.mantissa_bits
        assert_explained(fig, code, values, format)
        assert_legible(fig)
    with pytest.raises(ValueError, match="format='E3M4' is not possible: it must be E4M3 or E5M2"):
        draw_code(0, "E3M4")


def test_one_stroke_for_each_number_and_the_curve_is_the_error_of_torch_s_cast_at_each_tie():
    fig = draw_number_lines()
    upper, lower = fig.axes
    strokes = [np.array([segment[0, 0] for segment in lines.get_segments()]) for lines in upper.collections]
    for format, drawn, curve in zip(LINES, strokes, lower.lines, strict=True):
        binades = np.floor(np.log2(drawn)).astype(int)
        assert (binades == 0).sum() == (binades == 8 - (format is E4M3)).sum() == 2**format.mantissa_bits
        if format not in (E4M3, E5M2, BF16):
            continue  # torch has no such cast
        numbers = positive_numbers(format)
        ties = (numbers[1:] + numbers[:-1])[numbers[1:] > 2.0**-100] / 2
        cast = torch.tensor(ties).float().to(format.dtype).double().numpy()
        x, error = np.log2(curve.get_xdata()), np.log2(curve.get_ydata())
        assert (np.diff(x) >= 0).all()
        np.testing.assert_allclose(2 ** np.interp(np.log2(ties), x, error), np.abs(cast - ties) / ties, rtol=1e-6)
    assert [(strokes[0] == 2.0**-9).sum(), (strokes[0] < 2.0**-6).sum(), strokes[0].max()] == [1, 7, 448]
    x, error = lower.lines[0].get_data()
    np.testing.assert_allclose(np.interp([2.0**-12, 896], x, error), [1, 0.5], rtol=1e-2)
    assert "E4M3: 8 numbers in each factor of two, from 2^-9 to 448" in fig.alt
    assert "8 numbers in each factor of two, fewer below $2^{-6}$; from $2^{-9}$ to 448" in [
        t.get_text() for t in upper.texts
    ]
    assert "E5M2 spans 32 factors of two and E4M3 only 18, but E4M3 rounds twice as finely" in title(fig)
    assert_legible(fig)


def test_bars_are_shares_of_binades_and_what_is_lost_is_said():
    tensors = {
        "weights W": torch.tensor([0.0, 2.0**-11, -(2.0**-7), 1.5]),
        "gradients dy": torch.tensor([2.0**-20, -(2.0**-20), 2.0**-3, 0.0]),
    }
    fig = draw_magnitudes(tensors, 12)
    shown = [{round(bar.get_x() - 0.07): round(bar.get_height(), 3) for bar in ax.patches} for ax in fig.axes]
    assert shown == [{1: 0.333, 5: 0.333, 11: 0.333}, {-8: 0.667, 9: 0.333}]  # 2^12 · 1.5 in the last bar
    assert "gradients dy: none become 0, 66.7% are subnormal, 33.3% saturate" in fig.alt
    assert f"33.3% of the gradients dy saturate in E4M3: error {(512 - 448) / 512:.1%}" in title(fig)
    plain = draw_magnitudes(tensors)
    assert "Without a scale, 66.7% of the gradients dy become 0 in E4M3: error 0.0%" in title(plain)
    assert "weights W: 33.3% become 0, 33.3% are subnormal, none saturate" in plain.alt
    for power in (-8, 26):
        assert_legible(draw_magnitudes(tensors, power))


def test_the_colour_of_a_bar_says_what_becomes_of_its_numbers():
    at_the_ends = torch.cat([torch.tensor([-11, -10, -9, -7, -6, 8, 9]).exp2(), torch.tensor([460.0])])
    fig = draw_magnitudes({"numbers": at_the_ends})
    zero, *subnormal, normal, higher, beyond = [to_hex(bar.get_facecolor()).upper() for bar in fig.axes[0].patches]
    assert (zero, normal, higher, beyond) == (PAPER, COLORS["E4M3"], COLORS["E4M3"], INK)
    assert len(set(subnormal)) == 1
    assert not set(subnormal) & {zero, normal, beyond}
    assert "25.0% become 0, 25.0% are subnormal, 25.0% saturate" in fig.alt  # 2^-10 is a tie


CONFIG = ModelConfig(**MOE, first_k_dense_replace=1, n_shared_experts=1, num_nextn_predict_layers=1)


def test_the_collected_x_and_dy_give_the_gradient_of_each_weight():
    model, tokens = random_model(CONFIG), random_tokens(CONFIG, 3, 17)
    found = operands(model, tokens)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("product" in vars(module) for module in model.modules())
    model.train().loss(tokens).total.backward()
    weights = dict(model.named_parameters())
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    left_out = {name for name in linear if name.split(".")[-2] in ("lm_head", "eh_proj")}
    assert found.keys() == linear - left_out | {name for name in weights if ".experts." in name}
    for name, one in found.items():
        assert one.weight is not weights[name]
        assert torch.equal(one.weight, weights[name])
        grad = weights[name].grad
        torch.testing.assert_close(one.dy.mT @ one.x, grad.sum(0) if grad.ndim == 3 else grad, rtol=1e-4, atol=1e-6)
    embedded = model.layers[0].input_layernorm(model.embed_tokens(tokens[:, :-1])).flatten(0, 1)
    assert torch.equal(found["layers.0.self_attn.q_proj.weight"].x, embedded)


def test_all_kinds_are_drawn_from_all_of_their_numbers_and_rows_are_of_all_domains():
    model = random_model(CONFIG)
    found = operands(model, random_tokens(CONFIG, 2, 9))
    drawn = kinds(found, 1000)
    for kind, name in KINDS.items():
        everything = torch.cat([getattr(one, name).flatten() for one in found.values()])
        assert drawn[kind].shape == (1000,)
        assert torch.isin(drawn[kind], everything).all()
        assert drawn[kind].std() == pytest.approx(everything.std().item(), rel=0.3)
    rows = training_rows(reference().tokenizer, rows=3, length=32)
    assert (tuple(rows.shape), rows.dtype) == ((3, 33), torch.int64)
