"""The killed run of chapter 10: its account is that of the files, its verdict sees one bit, its picture adds up."""

from itertools import pairwise

import pytest
import torch
from helpers_training import small_trainer
from legibility import assert_legible

from minids.book.plots.c10_kills import draw_kills
from minids.book.probes.kills import CONFIG, Kill, KilledRun, Life, _live, digest_of, killed_run


def test_a_killed_run_goes_on_from_its_checkpoints_and_ends_like_an_undisturbed_one():
    run = killed_run(kills=5, seed=4)
    assert [life.killed for life in run.lives] == [True] * 5 + [False]
    lost = []
    for life, following in pairwise(run.lives):
        assert life.start <= following.start <= life.end
        assert following.start % run.save_every == 0
        lost.append(life.end - following.start)
    assert (run.lives[0].start, run.lives[-1].end) == (0, CONFIG.steps)
    assert max(lost) <= run.save_every
    assert run.repeated == sum(lost)
    assert run.same


def test_the_verdict_sees_one_bit_of_weights_moments_and_log_but_no_seconds(tmp_path):
    trainer = small_trainer(tmp_path, steps=1)
    trainer.run()
    digest = digest_of(tmp_path)
    log = trainer.log.path.read_text()
    seconds = f'"seconds": {trainer.records[0]["seconds"]}'
    assert seconds in log
    trainer.log.path.write_text(log.replace(seconds, '"seconds": 7'))
    assert digest_of(tmp_path) == digest
    trainer.log.path.write_text(log.replace('"loss": ', '"loss": 1'))
    assert digest_of(tmp_path) != digest
    trainer.log.path.write_text(log)
    weight = trainer.model.norm.weight
    for tensor in (weight, trainer.optimizer.state[weight]["exp_avg"]):
        with torch.no_grad():
            tensor.view(torch.int32)[0] ^= 1
        trainer.save()
        assert digest_of(tmp_path) != digest
        with torch.no_grad():
            tensor.view(torch.int32)[0] ^= 1
    trainer.save()
    assert digest_of(tmp_path) == digest


@pytest.mark.parametrize("kill", [None, Kill(None, 60), Kill(5, 0)])
def test_a_process_that_fails_by_itself_is_not_taken_for_a_killed_one(tmp_path, kill):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        _live(tmp_path / "file", kill)


@pytest.mark.parametrize(("kills", "seed"), [(0, 0), (1.5, 0), (1, -1)])
def test_a_run_is_killed_once_or_more(kills, seed):
    with pytest.raises(ValueError, match="is not possible: it must be a whole number"):
        killed_run(kills, seed)


@pytest.mark.parametrize("kills", [1, 4, 60])
def test_the_bars_are_the_steps_of_the_run_and_those_done_again_and_the_text_is_the_same_everywhere(kills):
    first = Life(0, 5, killed=True)
    lives = [first, *(Life(3, 3 + i % 4, killed=True, saving=i % 4 == 3) for i in range(kills - 1))]
    run = KilledRun((*lives, Life(3, 12)), 12, 3, "a", "a")
    assert run.repeated == 2 + sum(i % 4 for i in range(kills - 1))
    fig = draw_kills(run)
    assert_legible(fig)
    kept = [bar.get_width() for bar in fig.axes[0].patches if not bar.get_hatch()]
    again = [bar.get_width() for bar in fig.axes[0].patches if bar.get_hatch()]
    assert (sum(kept), sum(again)) == (12, run.repeated)
    marks = [line.get_marker() for line in fig.axes[0].lines]
    assert (marks.count("x") + marks.count("D"), marks.count("D")) == (kills, sum(life.saving for life in lives))
    (title,) = (text.get_text() for text in fig.texts if "done again, " in text.get_text())
    assert title == f"{kills} kill{'s' * (kills > 1)}, {run.repeated} steps done again, not one bit different"
    others = KilledRun((*[Life(0, 1, killed=True)] * kills, Life(0, 12)), 12, 3, "b", "b")
    assert draw_kills(others).alt == fig.alt
    assert "are those of an undisturbed run, bit for bit" in fig.alt
    assert "differ from those" in draw_kills(KilledRun(run.lives, 12, 3, "a", "b")).alt
