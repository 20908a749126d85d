"""The table of names names what is there."""

from dataclasses import replace

import pytest
import torch

from minids import DeepSeek, ModelConfig
from minids.book.notation import ROWS, notation


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


def test_the_table_shows_every_row():
    table = notation()._repr_markdown_()
    assert all(f"${row[0]}$" in table for row in ROWS)
    assert "| 576 × 7,168 |" in table
