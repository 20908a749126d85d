"""What the tests of the released layout share: random models, and folders with the first of them."""

from pathlib import Path

import pytest
from configurations import random_model
from helpers_hub import SMALL

from minids.hub.save import save_pretrained
from minids.model.deepseek import DeepSeek


@pytest.fixture(scope="session")
def model() -> DeepSeek:
    return random_model(SMALL)


@pytest.fixture(scope="session")
def other() -> DeepSeek:
    return random_model(SMALL, seed=1)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """The model in one file."""
    save_pretrained(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(model, tmp_path) -> Path:
    """The model in six files."""
    save_pretrained(model, tmp_path / "model", max_shard_bytes=200_000)
    return tmp_path / "model"
