"""A picture redrawn in place: once shown, then updated, not too often, and at the end in full."""

import pytest

from minids.book import live as module
from minids.book.live import Pace, live
from minids.book.plots.style import new_figure
from minids.training.step import TrainingDiverged


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Handle:
    def __init__(self, shown):
        self.shown = shown

    def update(self, data, metadata, raw):
        self.shown.append(("updated", data, metadata))


@pytest.fixture
def notebook(monkeypatch):
    """What a notebook is shown, and its clock."""
    shown, clock = [], Clock()

    def display(data, metadata, raw, display_id):
        shown.append(("displayed", data, metadata))
        return Handle(shown)

    monkeypatch.setattr(module, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(module, "Pace", lambda: Pace(0.1, 2, clock))
    return shown, clock


def picture():
    fig = new_figure(height=2)
    fig.alt = "a run"
    return fig


def test_drawing_takes_its_share_of_the_time_and_no_more():
    clock = Clock()
    pace = Pace(clock=clock)
    spent = 0.0
    for _ in range(9000):
        clock.now += 0.3  # a step
        if pace.due():
            with pace:
                clock.now += 0.5
                spent += 0.5
    assert 0.015 < spent / clock.now <= 0.02
    quick = Pace(clock=clock)
    with quick:
        pass
    assert not quick.due()
    clock.now += 2
    assert quick.due()


def test_one_output_is_shown_at_the_first_step_updated_and_at_the_end_drawn_sharply(notebook):
    shown, clock = notebook
    with live(picture) as on_step:
        assert not shown
        for _ in range(9):
            on_step({})
            clock.now += 1
    assert [kind for kind, *_ in shown] == ["displayed"] + ["updated"] * 5
    assert {data["text/plain"] for _, data, _ in shown} == {"a run"}
    assert {metadata["image/png"]["width"] for *_, metadata in shown} == {900}
    assert shown[-1][1] == picture()._repr_mimebundle_()[0] != shown[-2][1]


def test_after_an_interrupt_the_last_picture_is_drawn_and_without_a_step_none(notebook):
    shown, _ = notebook

    def train() -> None:
        with live(picture) as on_step:
            on_step({})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert [kind for kind, *_ in shown] == ["displayed", "updated"]
    with live(lambda: 1 / 0):
        pass
    assert len(shown) == 2


@pytest.mark.parametrize("reason", [None, TrainingDiverged("step 2")])
def test_an_error_of_the_picture_ends_no_training_and_hides_no_exception(notebook, reason):
    steps = []

    def train() -> None:
        with live(lambda: 1 / 0) as on_step:
            for step in range(3):
                on_step({})
                steps.append(step)
            if reason:
                raise reason

    with pytest.raises(type(reason) if reason else ZeroDivisionError):
        train()
    assert steps == [0, 1, 2]


def test_an_error_of_the_last_picture_hides_no_exception(notebook):
    pictures = iter([picture()])

    def train() -> None:
        with live(lambda: next(pictures)) as on_step:
            on_step({})
            raise TrainingDiverged("step 1")

    with pytest.raises(TrainingDiverged):
        train()


def test_where_no_notebook_runs_nothing_is_drawn():
    with live(lambda: 1 / 0) as on_step:
        on_step({})
