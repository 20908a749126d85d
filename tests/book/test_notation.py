"""The tables of names agree with the library: parts, names and shapes."""

import sys
from dataclasses import replace

import pytest
import torch

from minids import DeepSeek, ModelConfig
from minids.book.notation import ACTIVATIONS, ROWS, notation, shape_in
from minids.model import mla, moe


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return DeepSeek(replace(ModelConfig.preset("deepseek-v3"), num_hidden_layers=4))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[3])
def test_the_library_has_a_part_of_that_name_and_as_many_rows_as_the_released_tensor(model, row):
    part = model
    for name in row[2].split("."):
        part = part[int(name)] if name.isdigit() else getattr(part, name)
    weight = part.weight if isinstance(part, torch.nn.Module) else part
    (shape,) = [shape for *_, name, shape in notation().rows if name == row[3]]
    if "mlp.experts." in row[2]:  # all experts in one tensor, gate above up
        assert tuple(weight.shape) == (256, shape[0] * (2 if "gate_up" in row[2] else 1), shape[1])
    else:
        assert tuple(weight.shape) == shape


def test_activations_have_the_names_and_shapes_of_the_variables_in_the_library():
    config = replace(ModelConfig.preset("tiny"), q_lora_rank=20, qk_rope_head_dim=6, v_head_dim=7)
    tensors, files = {}, (mla.__file__, moe.__file__)

    def record(frame, event, _):
        if event == "return" and frame.f_code.co_filename in files:
            for name, value in frame.f_locals.items():
                if isinstance(value, torch.Tensor):
                    tensors.setdefault(name, value)

    tiny = DeepSeek(config)
    sys.setprofile(record)
    try:
        tiny(torch.arange(5)[None])
    finally:
        sys.setprofile(None)
    tensors["MLA.forward(…)"] = tensors["x_BTD"]
    for *_, name, widths in ACTIVATIONS:
        shape = tensors[name].shape
        assert shape_in(config, widths) == ((shape[1], shape[3]) if len(shape) == 4 else shape[-1:]), name


def test_the_tables_show_every_row():
    tables = notation()._repr_markdown_()
    assert all(f"${row[0]}$" in tables for row in ROWS)
    assert "| 576 × 7,168 |" in tables
    assert (
        r"| $c_t^{KV}$ | $c_{\text{kv}}$ | latent of keys and values, normalised; **cached** | `c_kv` | 512 |" in tables
    )
