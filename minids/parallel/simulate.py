"""When does each action of a schedule run? A simulator of pipelines, exact if its durations are.

An action starts as soon as its rank is free and what it needs is there:

    F of stage s        needs   F of stage s - 1, of the same micro-batch
    B or I of stage s   needs   B or I of stage s + 1, and F of stage s
    W of stage s        needs   I of stage s

What comes from another rank takes `link` longer. A pair starts when both of its parts can. Nothing else is assumed, so
a schedule's length is that of its *critical path*: the longest chain of actions in which each waits for the one before.
The rest of each rank's time is idle, the *pipeline bubble*.

A rank must keep the activations of a micro-batch from its F until its B or W, which read them: the most that are kept
at once are its *peak activations*, in units of one stage and one micro-batch.

**Formulas and proofs.** For a given path, the length is a sum of durations, so it is linear in them. The length of the
schedule is the maximum over all paths. If one path is the longest at every corner of a region (a cone, such as all
F, I, W >= 0 with I >= W), it is the longest in the whole region: the maximum of linear functions is convex, so between
the corners it is at most the weighted mean of its values there, and this path is just as long. `idle_form` proves
formulas in this way, for all durations at once, from a few simulations with whole numbers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from numbers import Real

from minids.parallel.schedules import Action, Pair, Schedule
from minids.validation import require


@dataclass(frozen=True)
class Times:
    """Durations of a stage's actions, in any unit. Integers and fractions are computed with exactly.

    With interleaved stages, ZBV and DualPipeV, a model is cut into more stages than there are ranks. To compare them
    with other schedules for the same model, make F, I, W and pair shorter by `schedule.chunks`.

    `pair` is that of an overlapped forward and backward: F + I + W without any gain, the larger of F and I + W if the
    shorter one disappears behind the other. `link` is the time between the end of an action and the arrival of its
    result at another rank, during which the sender computes on.
    """

    F: Real = 1
    I: Real = 1
    W: Real = 1
    pair: Real | None = None  # F + I + W if None
    link: Real = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is not None:
                require(name, value, isinstance(value, Real) and 0 <= value < float("inf"), "a number of at least 0")

    @property
    def B(self) -> Real:
        """A full backward."""
        return self.I + self.W

    def of(self, action: Action | Pair) -> Real:
        """Return the duration of an action."""
        if isinstance(action, Pair):
            return self.F + self.B if self.pair is None else self.pair
        return getattr(self, action.kind)


class IllegalSchedule(ValueError):
    """A schedule that no pipeline can run: an action is missing, done twice, before what it needs, or waits forever."""


@dataclass(frozen=True)
class Span:
    """An action in time. `cause` is the span at whose end, plus the link if it is on another rank, it could start."""

    rank: int
    action: Action | Pair
    start: Real
    end: Real
    cause: Span | None


class Timeline:
    """The spans of every rank, in order."""

    def __init__(self, spans: list[list[Span]]):
        self.spans = spans

    @property
    def length(self) -> Real:
        """The time at which the last rank ends."""
        return max((spans[-1].end for spans in self.spans if spans), default=0)

    @property
    def idle(self) -> list[Real]:
        """The time that each rank does nothing, from 0 to the end of the last rank."""
        return [self.length - sum(span.end - span.start for span in spans) for spans in self.spans]

    @property
    def bubble(self) -> float:
        """The idle share of the time of all ranks."""
        return float(sum(self.idle) / (self.length * len(self.spans))) if self.length else 0.0

    def critical_path(self) -> list[Span]:
        """Return a longest chain of spans in which each waits for the one before; its last one ends last."""
        span = max((spans[-1] for spans in self.spans if spans), key=lambda span: span.end)
        path = [span]
        while span.cause is not None:
            span = span.cause
            path.append(span)
        return path[::-1]


def simulate(schedule: Schedule, times: Times = Times()) -> Timeline:
    """Return when each action runs. Raises IllegalSchedule, with the reason in one sentence."""
    require_complete(schedule)
    ranks_of = schedule.ranks_of()
    ends: dict[tuple, Span] = {}  # by what it made
    spans: list[list[Span]] = [[] for _ in schedule]
    progress = True
    while progress:
        progress = False
        for rank, actions in enumerate(schedule):
            while len(spans[rank]) < len(actions):
                action = actions[len(spans[rank])]
                needs = [need for part in action.parts for need in _needs(schedule, rank, part)]
                if not all(need in ends for need in needs):
                    break
                start, cause = 0, None
                for span in [ends[need] for need in needs] + spans[rank][-1:]:
                    ready = span.end + (times.link if span.rank != rank else 0)
                    if cause is None or ready > start or (ready == start and span.rank == rank):
                        start, cause = ready, span
                span = Span(rank, action, start, start + times.of(action), cause)
                spans[rank].append(span)
                ends |= {_makes(schedule, rank, part): span for part in action.parts}
                progress = True
    stuck = [rank for rank, actions in enumerate(schedule) if len(spans[rank]) < len(actions)]
    if stuck:
        reasons = []
        for rank in stuck:
            action = schedule[rank][len(spans[rank])]
            need = next(n for part in action.parts for n in _needs(schedule, rank, part) if n not in ends)
            reasons.append(f"rank {rank} waits before {action} for {_name(schedule, need)} of rank {ranks_of[need[1]]}")
        raise IllegalSchedule("a deadlock: " + ", ".join(reasons) + ".")
    return Timeline(spans)


def require_complete(schedule: Schedule) -> None:
    """Raise IllegalSchedule unless every chunk does every F once and every B, or I and then W, once and after its F."""
    for rank, actions in enumerate(schedule):
        done = Counter()
        for action in actions:
            if isinstance(action, Pair) and (action.forward.kind, action.backward.kind) != ("F", "B"):
                raise IllegalSchedule(f"rank {rank}: {action} is not possible: a pair is an F and a B.")
            for part in action.parts:
                where = f"rank {rank}: {part}"
                valid = 0 <= part.chunk < schedule.chunks and 0 <= part.micro_batch < schedule.per_pipe
                if part.kind not in {"F", "B", "I", "W"} or not valid:
                    numbers = f"chunks 0 to {schedule.chunks - 1} and micro-batches 0 to {schedule.per_pipe - 1}"
                    raise IllegalSchedule(f"{where} does not exist: there are F, B, I, W of {numbers}.")
                before = {"F": "", "B": "F", "I": "F", "W": "I"}[part.kind]
                if before and not done[part._replace(kind=before)]:
                    raise IllegalSchedule(f"{where} comes before {part._replace(kind=before)}, which it needs.")
            for part in action.parts:  # only now: neither part of a pair can need the other
                done[part] += 1
                both = part.kind in "BIW" and done[part._replace(kind="B")] + done[part._replace(kind="I")] > 1
                if done[part] > 1 or both:
                    raise IllegalSchedule(f"rank {rank}: {part} is done twice.")
        for chunk in range(schedule.chunks):
            for micro_batch in range(schedule.per_pipe):
                f, b, w = (Action(kind, chunk, micro_batch) for kind in "FBW")
                if not done[f]:
                    raise IllegalSchedule(f"rank {rank}: {f} is missing.")
                if not done[b] and not done[w]:
                    missing = w if done[b._replace(kind="I")] else f"{b}, or I and W,"
                    raise IllegalSchedule(f"rank {rank}: {missing} is missing.")


def peak_activations(schedule: Schedule) -> list[int]:
    """Return for each rank the most micro-batches whose activations a chunk keeps at once, summed over its chunks."""
    peaks = []
    for actions in schedule:
        held = peak = 0
        for action in actions:
            for part in action.parts:
                held += {"F": 1, "B": -1, "I": 0, "W": -1}[part.kind]
                peak = max(peak, held)
        peaks.append(peak)
    return peaks


def idle_form(schedule: Schedule, corners: list[Times]) -> list[Counter] | None:
    """Return each rank's idle time as numbers of F, I, W, pair and link, where it is one formula between the corners.

    `corners` are the corners of a cone of durations; `pair` must be given in them. None if no path is the longest at
    all corners, so that there are several formulas.
    """
    total = Times(*(sum(getattr(corner, name) for corner in corners) for name in Times.__dataclass_fields__))
    path = simulate(schedule, total).critical_path()
    form = _durations([span.action for span in path])
    form["link"] = sum(1 for span in path if span.cause is not None and span.cause.rank != span.rank)
    for corner in corners:
        if simulate(schedule, corner).length != sum(n * getattr(corner, name) for name, n in form.items()):
            return None
    idle = []
    for actions in schedule:
        rest = Counter(form)
        rest.subtract(_durations(actions))
        idle.append(Counter({name: n for name, n in rest.items() if n}))
    return idle


def _durations(actions: list[Action | Pair]) -> Counter:
    """Return how often each duration of `Times` occurs."""
    names = Counter()
    for action in actions:
        names.update(["pair"] if isinstance(action, Pair) else {"B": "IW"}.get(action.kind, action.kind))
    return names


def _makes(schedule: Schedule, rank: int, part: Action) -> tuple:
    """Return what an action makes: an output, a gradient of the input, or one of the weights."""
    return "B" if part.kind == "I" else part.kind, schedule.place(rank, part.chunk), part.micro_batch


def _needs(schedule: Schedule, rank: int, part: Action) -> list[tuple]:
    """Return what an action needs of others; the order on its own rank is checked before."""
    place = schedule.place(rank, part.chunk)
    if part.kind == "F" and place.stage > 0:
        return [("F", place._replace(stage=place.stage - 1), part.micro_batch)]
    if part.kind in "BI" and place.stage < schedule.stages - 1:
        return [("B", place._replace(stage=place.stage + 1), part.micro_batch)]
    return []


def _name(schedule: Schedule, need: tuple) -> str:
    """Return the action that makes what is needed."""
    kind, place, micro_batch = need
    rank = schedule.ranks_of()[place]
    chunk = next(chunk for chunk in range(schedule.chunks) if schedule.place(rank, chunk) == place)
    split = Action("I", chunk, micro_batch)
    has_split = any(split in action.parts for action in schedule[rank])
    return str(split if kind == "B" and has_split else Action(kind, chunk, micro_batch))
