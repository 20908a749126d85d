"""Saving: the folder is complete or not there, others can read it, and only an export is ever replaced, on request."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from configurations import configurations, examples, random_model
from helpers_hub import BIAS, COPIES, EXPERT, FLOATS, SMALL, assert_same, contents, refusal, stored
from helpers_training import file_size_limit
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from minids.hub.load import load_pretrained
from minids.hub.names import released_tensors
from minids.hub.save import save_pretrained
from minids.text.backend import END_OF_TEXT
from minids.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Die Größe der Größen: 127 + 12 = 139.\n" * 5], 290)


# ---------------------------------------------------------------------------------------------------
# Weights


@examples(15)
@given(configurations(), st.integers(500, 20_000))
def test_shards_hold_every_tensor_once_and_the_index_says_where(tmp_path_factory, config, max_shard_bytes):
    model, folder = random_model(config), tmp_path_factory.mktemp("hub") / "model"
    save_pretrained(model, folder, max_shard_bytes=max_shard_bytes)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    sizes = {name: tensor.nbytes for name, tensor in stored(folder).items()}
    if sum(sizes.values()) <= max_shard_bytes:
        assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    else:
        assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        inside = {file: load_file(folder / file).keys() for file in files}
        assert index["weight_map"] == {name: file for file in files for name in inside[file]}
        assert index["metadata"] == {"total_size": sum(sizes.values())}
        filled = {file: sum(sizes[name] for name in inside[file]) for file in files}
        assert all(len(inside[file]) == 1 or 0 < filled[file] <= max_shard_bytes for file in files)
        assert all(one + other > max_shard_bytes for one, other in pairwise(filled.values())), "no file without need"
    assert_same(load_pretrained(folder).state_dict(), model.state_dict())


def test_what_just_fits_is_one_file(model, tmp_path):
    size = sum(tensor.nbytes for tensor in released_tensors(model).values())
    for room, files in ((size, 1), (size - 1, 2)):
        save_pretrained(model, tmp_path / str(room), max_shard_bytes=room, mtp_copies=False)
        assert len(list((tmp_path / str(room)).glob("*.safetensors"))) == files


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_weights_are_stored_in_the_dtype_asked_for_and_the_bias_in_float32(model, tmp_path, dtype):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_pretrained(model, tmp_path / "model", dtype=dtype)
    assert_same(model.state_dict(), before)
    tensors = stored(tmp_path / "model")
    assert {t.dtype for name, t in tensors.items() if name.endswith("e_score_correction_bias")} == {torch.float32}
    assert {t.dtype for name, t in tensors.items() if not name.endswith("e_score_correction_bias")} == {dtype}
    assert json.loads((tmp_path / "model/config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    rounded = {n: t if n.endswith("expert_bias") else t.to(dtype).float() for n, t in before.items()}
    assert_same(load_pretrained(tmp_path / "model").state_dict(), rounded)


def test_a_model_is_stored_in_its_own_dtype_if_that_can_be_stored(folder, other, tmp_path):
    loaded = load_pretrained(folder, dtype=torch.bfloat16)
    save_pretrained(loaded, tmp_path / "again")
    assert stored(tmp_path / "again")[EXPERT].dtype == torch.bfloat16
    assert stored(tmp_path / "again")[BIAS].dtype == torch.float32
    assert_same(load_pretrained(tmp_path / "again", dtype=torch.bfloat16).state_dict(), loaded.state_dict())
    double = random_model(SMALL, seed=1).double()
    message = refusal(partial(save_pretrained, double), tmp_path / "double")
    assert message.startswith("dtype=torch.float64 is not possible: it must be torch.float32, ")
    save_pretrained(double, tmp_path / "double", dtype=torch.float32)
    assert_same(load_pretrained(tmp_path / "double").state_dict(), other.state_dict())


def test_the_copies_can_be_left_out(model, tmp_path):
    save_pretrained(model, tmp_path / "model", mtp_copies=False)
    assert not stored(tmp_path / "model").keys() & set(COPIES)
    assert_same(load_pretrained(tmp_path / "model").state_dict(), model.state_dict())


def test_weights_that_lie_transposed_in_memory_are_saved(tmp_path):
    model = random_model(SMALL)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.T.contiguous().T)
    save_pretrained(model, tmp_path / "model")
    assert_same(load_pretrained(tmp_path / "model").state_dict(), model.state_dict())


def test_the_files_say_that_torch_wrote_them(folder):
    """transformers 4 refuses weights without this mark."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


# ---------------------------------------------------------------------------------------------------
# The folder


@pytest.mark.parametrize("earlier", [True, False])
def test_a_save_that_breaks_off_leaves_what_was_there(model, other, tmp_path, earlier):
    if earlier:
        save_pretrained(model, tmp_path / "model")
    before = contents(tmp_path)
    report = {"path": Path("no JSON")}  # comes last, when all weights are written
    with pytest.raises(TypeError, match="JSON"):
        save_pretrained(other, tmp_path / "model", overwrite=True, max_shard_bytes=200_000, report=report)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("room", [0, 50_000])  # bytes that a file may have: the configuration does not fit, or a shard
def test_on_a_full_disk_the_system_says_so_and_the_earlier_export_stays(folder, other, room):
    before = contents(folder.parent)
    with file_size_limit(room), pytest.raises(OSError, match="File too large"):
        save_pretrained(other, folder, overwrite=True)
    assert contents(folder.parent) == before


def test_a_tokenizer_that_stays_must_be_of_a_model_with_the_same_vocabulary(tmp_path, tokenizer):
    small, large = (random_model(replace(SMALL, vocab_size=tokenizer.vocab_size + more)) for more in (0, 8))
    save_pretrained(large, tmp_path / "model", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="has a tokenizer for another vocabulary"):
        save_pretrained(small, tmp_path / "model", overwrite=True)
    save_pretrained(small, tmp_path / "model", tokenizer=tokenizer, overwrite=True)


def test_an_export_that_lost_its_name_in_a_crash_keeps_its_tokenizer(model, other, tokenizer, tmp_path):
    workplace = tmp_path / ".model.l_0mbpck.tmp"
    save_pretrained(model, workplace / "earlier", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="holds a saved model"):
        save_pretrained(other, tmp_path / "model")
    save_pretrained(other, tmp_path / "model", overwrite=True)
    assert load_pretrained(tmp_path / "model").config.eos_token_id == tokenizer.end_of_text
    assert (tmp_path / "model" / "tokenizer.json").exists()
    assert os.listdir(tmp_path) == ["model"]


def test_saving_again_replaces_all_weights_that_were_there(model, other, tmp_path):
    folder = tmp_path / "model"
    save_pretrained(model, folder, max_shard_bytes=200_000, overwrite=True)
    assert len(list(folder.iterdir())) > 5
    (folder / ".DS_Store").touch()  # macOS puts it into every folder that it shows
    save_pretrained(other, folder, overwrite=True)
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert_same(load_pretrained(folder).state_dict(), other.state_dict())
    assert os.listdir(tmp_path) == ["model"]


def put(name: str) -> Callable:
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("somebody's")

    return change


def become_a_file(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.write_text("somebody's")


STRANGERS = [
    "notes.txt", "README.md", "readme.md", "model.pt", ".hidden", "config.json.bak", "tokenizer.model",
    "my-model.safetensors", "sub/x", "model_before_finetuning.safetensors", "model-00001-of-2.safetensors",
    "tokenizer.json/x", "a\nb",
]  # fmt: skip
NO_CHANGE = lambda folder: None
REFUSALS = [  # what is done to an export, options for saving there, the beginning of the sentence that answers
    (NO_CHANGE, dict(overwrite=False), "{folder} holds a saved model: choose another folder, or pass overwrite=True"),
    (put("notes.txt"), dict(overwrite=False), "{folder} holds 'notes.txt', which is not part of a saved model: "),
    *[(put(name), {}, f"{{folder}} holds {name.split('/')[0]!r}, which is not part of a saved model: ")
      for name in STRANGERS],
    (lambda folder: (folder / "config.json").unlink(), {}, "{folder} holds no config.json"),
    (become_a_file, {}, "{folder} is a file: "),
    *[(NO_CHANGE, dict(dtype=dtype), f"dtype={dtype!r} is not possible: it must be torch.float32, ")
      for dtype in (torch.int8, torch.float64, torch.float8_e8m0fnu, torch.float8_e5m2, "float32")],
    *[(NO_CHANGE, dict(dtype=dtype, **fp8), f"{words} unless dtype is torch.float8_e4m3fn.")
      for dtype in (None, torch.bfloat16) for fp8, words in (
          (dict(weight_block_size=(128, 128)), "weight_block_size=(128, 128) is not possible: it must be None"),
          (dict(power_of_two_scales=True), "power_of_two_scales=True is not possible: it must be False"))],
    (NO_CHANGE, dict(tokenizer=Tokenizer.train([Path(__file__).read_text()], 301)), "the tokenizer has 301 tokens: "),
]  # fmt: skip


@pytest.mark.parametrize(("change", "options", "says"), REFUSALS)
def test_what_must_not_be_replaced_is_left_alone(folder, other, change, options, says):
    change(folder)
    message = refusal(partial(save_pretrained, other), folder, **dict(overwrite=True) | options)
    assert message.startswith(says.format(folder=folder))


def test_the_working_directory_is_not_replaced(folder, other, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="is the working directory"):
        save_pretrained(other, ".", overwrite=True)


def test_the_folder_may_be_new_or_empty_and_its_name_relative(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for path in ("model", "empty", "a/b/model", Path("a/../c/model"), f"{tmp_path}/d/model/"):
        save_pretrained(model, path)
        assert_same(load_pretrained(path).state_dict(), model.state_dict())
    assert sorted(os.listdir(tmp_path)) == ["a", "c", "d", "empty", "model"]


# ---------------------------------------------------------------------------------------------------
# What lies beside the weights


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, moe_layer_freq=2)], ids=["deepseek_v3", "minids"])
@pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning")
def test_the_tokenizer_gives_the_same_ids_here_and_in_transformers(tokenizer, tmp_path, config):
    save_pretrained(random_model(config), tmp_path / "model", tokenizer=tokenizer)
    loaded, theirs = Tokenizer.load(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.to_json() == tokenizer.to_json()
    for text in ["", "Die Größe: 127", "  def f ( x ) :\n\treturn x , 深度求索 . 👩‍👩‍👧 do n't\r\n"]:
        ids = theirs(text)["input_ids"]
        assert ids == [tokenizer.end_of_text, *tokenizer.encode(text)]
        assert theirs.decode(ids[1:]) == text
    assert (theirs.bos_token, theirs.eos_token) == (END_OF_TEXT, END_OF_TEXT)
    assert theirs.model_max_length == config.max_position_embeddings


def test_saving_again_keeps_the_tokenizer_unless_given_anew_and_never_the_report(model, other, tokenizer, tmp_path):
    folder = tmp_path / "model"
    save_pretrained(model, folder, tokenizer=tokenizer, report={"loss": 1.0, "name": "深"})
    assert json.loads((folder / "report.json").read_text()) == {"loss": 1.0, "name": "深"}
    before = contents(folder)
    save_pretrained(other, folder, overwrite=True)
    after = contents(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert after[name] == before[name], name
    assert "report.json" not in after
    assert_same(load_pretrained(folder).state_dict(), other.state_dict())
    another = Tokenizer.train(["Another text."], 260)
    save_pretrained(other, folder, tokenizer=another, overwrite=True)
    assert (folder / "tokenizer.json").read_text() == another.to_json()


def test_the_configuration_names_the_end_of_text_of_the_tokenizer_beside_it(tokenizer, tmp_path):
    model, folder = random_model(replace(SMALL, bos_token_id=5, eos_token_id=7)), tmp_path / "model"
    save_pretrained(model, folder)
    assert load_pretrained(folder).config == model.config
    save_pretrained(model, folder, tokenizer=tokenizer, overwrite=True)
    end = tokenizer.end_of_text
    for _ in range(2):
        assert load_pretrained(folder).config == replace(model.config, bos_token_id=end, eos_token_id=end)
        save_pretrained(model, folder, overwrite=True)  # the tokenizer stays, and what is said of it
    several = random_model(replace(SMALL, eos_token_id=(7, end)))
    for options in (dict(tokenizer=tokenizer), {}):
        save_pretrained(several, folder, overwrite=True, **options)
        assert load_pretrained(folder).config.eos_token_id == (7, end)
