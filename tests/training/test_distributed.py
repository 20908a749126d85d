"""The same run on several processes: every record and weight, checkpoints that others resume, and deaths."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers_distributed import make_run, not_finite, other_machine, report_of_first, train
from helpers_training import assert_bitwise_equal, without_seconds

from minids.parallel.launch import RankFailed, launch
from minids.parallel.zero import Zero1
from minids.training.checkpoint import find_checkpoint
from minids.training.log import read_log
from minids.training.run import load_run
from minids.training.sharded import load_state


def together(flags: dict | None, folder: Path, **settings) -> list[tuple]:
    return launch(partial(train, **settings), (flags or dict(ranks=1))["ranks"], flags, folder)


TWO_NODES = dict(ranks=4, ep=4, node=2)
CASES = {
    "data": (dict(ranks=2), {}),
    "data, fewer experts than ranks": (dict(ranks=4), dict(model=dict(n_routed_experts=2, n_group=1, topk_group=1))),
    "data, Muon, micro-batches": (dict(ranks=2), dict(optimizer="muon", micro_batch_size=2)),
    "data, FP8": (dict(ranks=2), dict(dtype="fp8", fp8_block=32, steps=1)),
    "data, a mask": (dict(ranks=2), dict(masked=True)),
    "data, another loss": (dict(ranks=2), dict(last_token=True)),
    "experts on two nodes": (TWO_NODES, {}),
    "experts, two copies": (dict(ranks=4, ep=2), {}),
    "experts, two copies, Muon": (dict(ranks=4, ep=2), dict(optimizer="muon")),
    "experts, no bias, no MTP": (dict(ranks=2, ep=2), dict(bias_speed=0.0, model=dict(num_nextn_predict_layers=0))),
    "pipeline": (dict(ranks=2, pp=2, schedule="ZB1P"), dict(optimizer="muon")),
    "pipelines": (dict(ranks=4, pp=2), dict(masked=True)),
    "pipelines and experts, DualPipe": (dict(ranks=4, pp=2, ep=2, schedule="DualPipe"), {}),
    "pipelines and experts, FP8": (dict(ranks=4, pp=2, ep=2), dict(dtype="fp8", fp8_block=32, steps=1)),
}  # fmt: skip


@pytest.mark.kills("each process balances its own load", case="data")
@pytest.mark.kills("gradients are averaged over processes", case="data")
@pytest.mark.parametrize("case", CASES)
def test_all_records_and_weights_are_those_of_one_process(case, tmp_path):
    flags, settings = CASES[case]
    rounds = settings.get("dtype") == "fp8"  # in tiles of an expert's tokens, which are others here
    one = make_run(**settings)
    start = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    one.trainer.run()
    records, *others = (records for records, _ in together(flags, tmp_path, **settings))
    assert all(without_seconds(other) == without_seconds(records) for other in others)
    assert without_seconds(read_log(tmp_path / "log.jsonl")) == without_seconds(records)
    for ours, theirs in zip(records, one.trainer.records, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["load"] == theirs["load"]
        for name in ("loss", "gradient_norm", "learning_rate", "bits_per_byte"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3 if rounds else 1e-5), name
    model, _ = load_run(tmp_path)
    for name, weight in one.model.named_parameters():
        moved = (weight - start[name]).norm()
        assert (model.get_parameter(name) - weight).norm() <= (0.2 if rounds else 2e-3) * moved, name
    for ours, theirs in zip(model.gates, one.model.gates, strict=True):
        assert torch.equal(ours.expert_bias, theirs.expert_bias)


def final_state(folder: Path) -> tuple[dict, list]:
    return load_state(find_checkpoint(folder)).tensors, without_seconds(read_log(folder / "log.jsonl"))


def test_all_processes_know_a_weight_that_is_not_finite_and_blocks_are_sharded_one_by_one():
    found = launch(not_finite, 2, dict(ranks=2, ep=2))
    # The model, its two blocks and the MTP module, and the experts of two of them.
    assert found == [("layers.1.mlp.gate.weight", 6)] * 2


def test_zero_1_gives_each_rank_about_as_much(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    sizes = [50, 7, 7, 6, 5, 3, 2, 2, 1]
    parameters = [(f"{i}", torch.nn.Parameter(torch.zeros(size))) for i, size in enumerate(sizes)]
    zero = Zero1(parameters, {name: (0, 1, 2) for name, _ in parameters}, {})
    parts = {rank: sum(p.numel() for _, p in part) for (_, rank), part in zero.parts.items()}
    assert sorted(parts.values()) == [16, 17, 50]
    assert sum(p.numel() for p in zero.mine.values()) == parts[1]


def test_other_settings_are_refused_when_processes_resume(tmp_path):
    together(dict(ranks=2), tmp_path, stop_after=1)
    with pytest.raises(RankFailed, match=r"checkpoint was made with train\.seed=0, not 1: resume with the same"):
        together(dict(ranks=2), tmp_path, resume=True, seed=1)


def test_one_of_several_processes_can_make_the_report_which_names_who_trained(tmp_path):
    assert launch(report_of_first, 2, tmp_path, timeout=30) == ["2 (pp=1, dp=2, ep=1)", None]
    assert make_run(tmp_path, resume=True, steps=1).report()["processes"] == "2 (pp=1, dp=2, ep=1)"


def test_a_folder_that_one_machine_does_not_see_is_refused_by_all(tmp_path):
    for name in ("run", "elsewhere"):
        make_run(tmp_path / name, steps=1).trainer.run()
    for folder in (tmp_path / "run", tmp_path / "new"):
        said = launch(other_machine, 2, folder)
        assert said == ["is not the same on all machines: a run of several needs one that all of them see."] * 2


SHARDED, PIPELINE, ONE = dict(ranks=4, ep=2), dict(ranks=2, pp=2), None
LAYOUTS = {"sharded": SHARDED, "two": dict(ranks=2), "pipeline": PIPELINE, "one": ONE}


@pytest.mark.parametrize("first", ["sharded", "pipeline", "one"])
def test_a_stop_asked_of_one_process_stops_all_and_the_run_goes_on_bitwise_or_in_another_layout(first, tmp_path):
    together(LAYOUTS[first], tmp_path / "straight")
    tensors, records = final_state(tmp_path / "straight")
    make_run(tmp_path / "other", steps=1, seed=1).trainer.run()
    other = tmp_path / "other" / "checkpoint.safetensors"
    for then in LAYOUTS:
        folder = tmp_path / then
        stopped = together(LAYOUTS[first], folder, stop_after=1)
        assert {said for _, said in stopped} == {"stopped after step 1 of 4"}
        for i in range(6):  # somebody's backups, in whatever order the system lists them
            shutil.copy(other, folder / f"{i}.safetensors")
        resumed = together(LAYOUTS[then], folder, resume=True)
        differences = resumed[0][1]
        assert {len(records) for records, _ in resumed} == {4}
        found, found_records = final_state(folder)
        assert find_checkpoint(folder).name == ("checkpoint" if LAYOUTS[then] else "checkpoint.safetensors")
        assert len(list(folder.glob("checkpoint*"))) == 1
        if then == first:
            assert differences == ()
            assert_bitwise_equal(found, tensors)
            assert found_records == records
        else:
            (difference,) = differences
            assert difference.startswith(f"processes was {(LAYOUTS[first] or dict(ranks=1))['ranks']}")
            assert [r["loss"] for r in found_records] == pytest.approx([r["loss"] for r in records], rel=1e-5)
