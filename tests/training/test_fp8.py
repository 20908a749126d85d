"""Training in FP8: its products, its optimizer against AdamW written out, and runs that stop and go on."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers_training import (
    assert_bitwise_equal,
    moments,
    small_config,
    small_corpus,
    small_train_config,
    small_trainer,
    state,
    without_seconds,
)
from torch import nn

from minids.device import autocast
from minids.hub.load import load_pretrained
from minids.hub.names import is_fp8_matrix, released_tensors
from minids.hub.save import save_pretrained
from minids.quantization.products import Recipe, use_fp8
from minids.training.checkpoint import load_checkpoint
from minids.training.config import TrainConfig
from minids.training.log import read_log
from minids.training.optimizer import keep_moments_in_bfloat16, make_optimizer
from minids.training.run import load_run, start_run
from minids.training.trainer import Trainer, TrainingInterrupted

FP8 = dict(dtype="fp8", fp8_block=16)


# ---------------------------------------------------------------------------------------------------
# The products


def test_the_next_trainer_decides_on_the_products_anew():
    model = small_trainer(**FP8).model
    model.layers[0].mlp.down_proj.product = kept = lambda x, weight: x @ weight.T
    Trainer(model, None, small_train_config())
    assert {name for name, module in model.named_modules() if "product" in vars(module)} == {"layers.0.mlp.down_proj"}
    assert model.layers[0].mlp.down_proj.product is kept


def test_on_mps_fp8_is_refused_before_anything_changes():
    weight = SimpleNamespace(device=torch.device("mps"))
    model = SimpleNamespace(config=small_config(), embed_tokens=SimpleNamespace(weight=weight))
    with pytest.raises(ValueError, match=r"^dtype='fp8' is not possible: it must be float32 or bfloat16 on mps"):
        Trainer(model, None, small_train_config(**FP8))


# ---------------------------------------------------------------------------------------------------
# The optimizer


def test_the_moments_are_those_of_adamw_rounded_to_bfloat16_after_each_step():
    """With such betas and gradients the moments are exact in float32, so only BF16 rounds."""
    config = TrainConfig(dtype="fp8", learning_rate=0.01, weight_decay=0.1, betas=(0.5, 0.5))
    layer, generator = nn.Linear(40, 50), torch.Generator().manual_seed(0)
    weights = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = make_optimizer(layer, config)
    first, second = ({name: torch.zeros_like(p).bfloat16() for name, p in weights.items()} for _ in range(2))
    for step in range(1, 9):
        for name, parameter in layer.named_parameters():
            g = parameter.grad = torch.randint(-99, 100, parameter.shape, generator=generator) / 16
            m = 0.5 * first[name].float() + 0.5 * g
            v = 0.5 * second[name].float() + 0.5 * g * g
            decay = 0.1 if parameter.ndim == 2 else 0.0
            update = (m / (1 - 0.5**step)) / ((v / (1 - 0.5**step)).sqrt() + 1e-8)
            weights[name] = weights[name] * (1 - 0.01 * decay) - 0.01 * update
            first[name], second[name] = m.bfloat16(), v.bfloat16()
        optimizer.step()
        for name, parameter in layer.named_parameters():
            kept = optimizer.state[parameter]
            for ours, expected in ((kept["exp_avg"], first[name]), (kept["exp_avg_sq"], second[name])):
                assert ours.dtype == torch.bfloat16
                assert torch.equal(ours, expected)
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("beta", "falls"), [(0.95, True), (0.999, False)])
def test_a_second_moment_in_bfloat16_can_fall_with_v3s_beta_but_not_with_the_usual_one(beta, falls):
    parameter = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, beta))
    keep_moments_in_bfloat16(optimizer)
    for gradient in [1.0] * 5 + [0.0] * 200:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        if gradient:
            before = optimizer.state[parameter]["exp_avg_sq"].item()
    assert (optimizer.state[parameter]["exp_avg_sq"] < 0.2 * before) == falls
    assert falls or optimizer.state[parameter]["exp_avg_sq"] == before


# ---------------------------------------------------------------------------------------------------
# A run


def test_a_step_in_fp8_is_the_step_of_a_model_told_to_compute_so_with_float32_for_the_rest():
    trainer, exact = small_trainer(**FP8, clip_norm=1e9), small_trainer(clip_norm=1e9)
    model = copy.deepcopy(exact.model).train()
    use_fp8(model, Recipe.of_block(16))
    tokens = torch.from_numpy(trainer.batches.batch(0, 4)["tokens"])
    terms = model.loss(tokens, mtp_weight=trainer.config.mtp_weight_at(0), balance_weight=trainer.config.balance_weight)
    terms.total.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    record, of_float32 = trainer.train_step(), exact.train_step()
    assert (record["loss"], record["gradient_norm"]) == (terms.total.item(), pytest.approx(norm))
    assert record["loss"] == pytest.approx(of_float32["loss"], rel=0.01)
    assert record["loss"] != of_float32["loss"]
    dtypes = {
        name.rpartition(".")[2]: tensor.dtype for name, tensor in {**state(trainer.model), **moments(trainer)}.items()
    }
    assert dtypes["exp_avg"] == dtypes["exp_avg_sq"] == torch.bfloat16
    assert dtypes["weight"] == dtypes["gate_up_proj"] == dtypes["expert_bias"] == torch.float32
    other = small_trainer(dtype="fp8", fp8_block=32).train_step()
    assert other["loss"] not in (record["loss"], of_float32["loss"]), "the size of the blocks counts"


def test_with_fp8_products_are_in_float32_also_within_another_autocast():
    x = torch.ones(2, 2)
    for dtype, expected in (("fp8", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16), autocast(torch.device("cpu"), dtype):
            assert (x @ x).dtype == expected


def test_a_run_in_micro_batches_is_that_in_whole_batches_but_for_the_tiles_over_tokens():
    records = [small_trainer(**FP8, micro_batch_size=size, clip_norm=1e9).run() for size in (None, 3, 1)]
    for record, *others in zip(*records, strict=True):
        for other in others:
            assert other["loss"] == pytest.approx(record["loss"], rel=2e-3)
            assert other["gradient_norm"] == pytest.approx(record["gradient_norm"], rel=0.03)
    for other in records[1:]:
        assert other[0]["next_token"] == pytest.approx(records[0][0]["next_token"], rel=1e-6), "tiles of one token"
        assert other[0]["load"] == records[0][0]["load"]


def test_a_stopped_run_goes_on_bit_for_bit_with_moments_in_bfloat16(tmp_path):
    options = dict(steps=5, save_every=2, micro_batch_size=3) | FP8
    straight = small_trainer(tmp_path / "straight", **options)
    straight.run()
    stopped, resumed = (small_trainer(tmp_path / "stopped", **options) for _ in range(2))

    def stop(record):
        if record["step"] == 3:
            raise TrainingInterrupted  # steps 2 and 3 are lost

    with pytest.raises(TrainingInterrupted):
        stopped.run(stop)
    assert resumed.resume() == []
    assert resumed.step == 2
    resumed.run()
    assert_bitwise_equal(state(resumed.model), state(straight.model))
    assert_bitwise_equal(moments(resumed), moments(straight))
    assert without_seconds(read_log(resumed.log.path)) == without_seconds(read_log(straight.log.path))
    saved = load_checkpoint(resumed.checkpoint_path).tensors
    of_moments = {n: t.dtype for n, t in saved.items() if n.startswith("optimizer.") and not n.endswith(".step")}
    assert set(of_moments.values()) == {torch.bfloat16}
    assert {t.dtype for n, t in saved.items() if n.startswith("model.")} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [({"fp8_block": 32}, "fp8_block=16, not 32"), ({"dtype": "float32"}, "dtype='fp8', not 'float32'")],
)
def test_a_run_in_fp8_is_not_resumed_in_another_arithmetic(tmp_path, changes, refused):
    small_trainer(tmp_path, **FP8, steps=1).run()
    with pytest.raises(ValueError, match=f"was made with train.{refused}"):
        small_trainer(tmp_path, **FP8 | changes, steps=1).resume()


@pytest.mark.parametrize(("now", "refused"), [({}, None), ({"fp8_block": 16}, "fp8_block=128, not 16")])
def test_a_checkpoint_from_before_a_setting_existed_counts_as_made_with_its_default(tmp_path, now, refused):
    straight, stopped = small_trainer(steps=2), small_trainer(tmp_path, steps=2, save_every=1)
    del stopped.settings["train"]["fp8_block"]
    with pytest.raises(TrainingInterrupted):
        stopped.run(lambda record: (_ for _ in ()).throw(TrainingInterrupted) if record["step"] else None)
    resumed = small_trainer(tmp_path, steps=2, save_every=1, **now)
    if refused:
        with pytest.raises(ValueError, match=f"was made with train.{refused}"):
            resumed.resume()
        return
    resumed.resume()
    assert resumed.step == 1
    assert without_seconds(resumed.run()) == without_seconds(straight.run())
    assert load_checkpoint(resumed.checkpoint_path).settings["train"]["fp8_block"] == 128


def test_a_run_in_fp8_is_reported_found_again_and_exported_as_v3_was(tmp_path):
    config = small_train_config(steps=2, **FP8)
    run = start_run(small_config(), config, small_corpus(), tmp_path / "run")
    run.trainer.run()
    report = run.report()
    assert (report["dtype"], report["train"]["fp8_block"]) == ("fp8", 16)
    model, tokenizer = load_run(tmp_path / "run")
    assert_bitwise_equal(state(model), state(run.model))
    tokens = torch.tensor([tokenizer.encode("Return the sum of all.")])
    in_float32, in_fp8 = model(tokens), run.model.eval()(tokens)
    assert not torch.equal(in_float32, in_fp8), "the weights are the master weights, and the products are plain again"
    save_pretrained(model, tmp_path / "model", dtype=torch.float8_e4m3fn, weight_block_size=(16, 16))
    exported = load_pretrained(tmp_path / "model")
    use_fp8(exported, Recipe.of_block(16))
    trained = released_tensors(model)
    for name, tensor in released_tensors(exported).items():
        if not is_fp8_matrix(name):
            tensor.copy_(trained[name])  # embedding, head, gates and norms, which the export rounds to BF16
    assert torch.equal(exported(tokens), in_fp8), "what is in FP8 in the files are the very numbers of the training"
