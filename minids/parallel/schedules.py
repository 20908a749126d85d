"""Pipeline schedules as words: what each rank does, in which order.

Pipeline parallelism cuts the model into *stages*, one after the other, and a batch into *micro-batches*. Each process
(*rank*) holds one stage or several. A schedule is a list of actions for each rank:

    F    forward of a stage, for one micro-batch
    B    its full backward: the gradients of input and weights
    I    the input's gradient alone, for which the stage before is waiting
    W    the weights' gradient alone, for which only the optimizer is waiting
    F&B  a forward and a backward of different micro-batches, overlapped: one computes while the other communicates

`F0.3` is the forward of chunk 0 for micro-batch 3. A *chunk* is the stage's number on its rank: most schedules have one
chunk per rank, interleaved ones have several. DualPipe has two, one for each direction in which micro-batches travel.

Each function below writes one word per rank, such as "F0 F0 B0 F0 B0 B0", in which the loops of the schedule are
visible. Micro-batches are numbered afterwards (`spell`): in every chunk, forwards and backwards take them in order. A
W belongs to the oldest I without one.

What each schedule removes:

    GPipe          (Huang et al. 2019)       all forwards, then all backwards
    1F1B           (Narayanan et al. 2019)   backward as early as possible: fewer activations in memory, same idle time
    interleaved    (Narayanan et al. 2021)   smaller stages, several per rank: less waiting for the first micro-batch
    ZB1P           (Qi et al. 2023, ZB-H1)   B split into I and W, and W postponed into the gaps
    ZBV            (Qi et al. 2024, ZB-V)    the same on a V: a rank holds an early and a late stage
    DualPipe       (DeepSeek-V3, §3.2.1)     micro-batches from both ends, forward and backward overlapped
    DualPipeV      (DeepSeek, 2025)          DualPipe cut in half: the second half of the ranks folded onto the first

Pipelines in both directions are an idea of Chimera (Li and Hoefler 2021), and the cut of DualPipe is one of Sea AI Lab
(2025).

`place` says which stage each chunk of each rank is. How long an action takes is given in simulate.py, and
what it computes in execute.py.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

from minids.validation import require, require_whole


class Action(NamedTuple):
    """One piece of work: `kind` is F, B, I or W."""

    kind: str
    chunk: int
    micro_batch: int

    @property
    def parts(self) -> tuple[Action, ...]:
        return (self,)

    def __str__(self) -> str:
        return f"{self.kind}{self.chunk}.{self.micro_batch}"


class Pair(NamedTuple):
    """An overlapped forward and backward."""

    forward: Action
    backward: Action

    @property
    def parts(self) -> tuple[Action, ...]:
        return tuple(self)

    def __str__(self) -> str:
        return f"{self.forward}&{self.backward}"


class Place(NamedTuple):
    """A stage of a pipeline. There is one pipeline, or with DualPipe two, one for each direction."""

    pipe: int
    stage: int


# Where chunk c of rank r is, of n ranks.
PLACEMENTS: dict[str, Callable[[int, int, int], Place]] = {
    "loop": lambda r, c, n: Place(0, c * n + r),  # with one chunk per rank, simply stage r
    "V": lambda r, c, n: Place(0, r if c == 0 else 2 * n - 1 - r),
    "both ways": lambda r, c, n: Place(c, r if c == 0 else n - 1 - r),
}


class Schedule(list):
    """One list of actions per rank, and where the stages are.

    `micro_batches` is their number in the whole step, in both directions together. `chunks` is that of a rank. Raises
    ValueError for numbers that do not fit the placement, and for what is no action.
    """

    def __init__(self, actions: Iterable[list[Action | Pair]], placement: str, chunks: int, micro_batches: int):
        require("placement", placement, placement in PLACEMENTS, " or ".join(PLACEMENTS))
        require_whole("chunks", chunks)
        require("chunks", chunks, placement == "loop" or chunks == 2, f"2 for {placement!r}")
        require_whole("micro_batches", micro_batches)
        even = placement != "both ways" or micro_batches % 2 == 0
        require("micro_batches", micro_batches, even, "even, so that half of them travel in each direction")
        super().__init__(actions)
        for action in chain.from_iterable(self):
            require("action", action, isinstance(action, (Action, Pair)), "an Action or a Pair: `spell` reads a word")
        self.placement, self.chunks, self.micro_batches = placement, chunks, micro_batches

    @property
    def pipes(self) -> int:
        """The number of pipelines through the ranks: two if micro-batches enter at both ends."""
        return 2 if self.placement == "both ways" else 1

    @property
    def stages(self) -> int:
        """The number of stages into which the model is cut."""
        return len(self) * self.chunks // self.pipes

    @property
    def per_pipe(self) -> int:
        """The number of micro-batches that go through each pipeline, numbered from 0."""
        return self.micro_batches // self.pipes

    def place(self, rank: int, chunk: int) -> Place:
        """Return the pipeline and the stage of a rank's chunk."""
        return PLACEMENTS[self.placement](rank, chunk, len(self))

    def ranks_of(self) -> dict[Place, int]:
        """Return the rank of every stage."""
        return {self.place(rank, chunk): rank for rank in range(len(self)) for chunk in range(self.chunks)}

    def __str__(self) -> str:
        return "\n".join(f"{rank}: " + " ".join(map(str, actions)) for rank, actions in enumerate(self))


def spell(word: str) -> list[Action | Pair]:
    """Return the actions of a word: "F0 F0 B0" becomes F0.0, F0.1, B0.0.

    Letters are F, B, I, W with a chunk, pairs like F0&B1, and W alone for the oldest I of any chunk. Raises ValueError
    for other letters, and for a W that no I is left for.
    """
    done, waiting = Counter(), defaultdict(deque)

    def action(letter: str) -> Action:
        kind, chunk = letter[0], letter[1:]
        if kind == "W":
            queue = waiting[chunk]
            require("letter", letter, queue, "after an I whose W has not been done")
            made = queue.popleft()
            waiting["" if chunk else str(made.chunk)].remove(made)
            return made
        direction = "forward" if kind == "F" else "backward"
        number = done[direction, chunk]
        done[direction, chunk] += 1
        if kind == "I":
            pending = Action("W", int(chunk), number)
            waiting[chunk].append(pending)
            waiting[""].append(pending)
        return Action(kind, int(chunk), number)

    actions = []
    for letter in word.split():
        fits = re.fullmatch(r"F\d+(&B\d+)?|[BI]\d+|W\d*", letter)
        require("letter", letter, fits, "F0, B0, I0, W0, F0&B1, or W")
        forward, pair, backward = letter.partition("&")
        actions.append(Pair(action(forward), action(backward)) if pair else action(letter))
    return actions


# ---------------------------------------------------------------------------------------------------
# One stage per rank. The last of n ranks can begin its backwards at once; rank r is n - 1 - r forwards ahead of them.


def gpipe(ranks: int, micro_batches: int) -> Schedule:
    """Return GPipe: all forwards, then all backwards. Any number of micro-batches."""
    m = _counts(ranks, micro_batches)
    return _schedule(lambda r: "F0 " * m + "B0 " * m, ranks, m)


def one_f_one_b(ranks: int, micro_batches: int) -> Schedule:
    """Return 1F1B: after the warm-up, each forward is followed by a backward. Any number of micro-batches."""
    m = _counts(ranks, micro_batches)

    def word(r: int) -> str:
        ahead = min(ranks - 1 - r, m)
        return "F0 " * ahead + "F0 B0 " * (m - ahead) + "B0 " * ahead

    return _schedule(word, ranks, m)


def zb1p(ranks: int, micro_batches: int) -> Schedule:
    """Return ZB1P: 1F1B in which rank r postpones r weight gradients. Any number of micro-batches.

    The later a rank begins, the more of them wait, so every rank holds as many activations as rank 0 of 1F1B.
    """
    m = _counts(ranks, micro_batches)

    def word(r: int) -> str:
        ahead = min(ranks - 1 - r, m)
        letters = "F0 " * ahead
        for j in range(m):
            letters += "F0 " * (j < m - ahead) + "I0 " + "W0 " * (j >= r)
        return letters + "W0 " * min(r, m)

    return _schedule(word, ranks, m)


# ---------------------------------------------------------------------------------------------------
# Several stages per rank


def interleaved(ranks: int, micro_batches: int, chunks: int = 2) -> Schedule:
    """Return interleaved 1F1B with `chunks` stages per rank; the micro-batches must be a multiple of the ranks.

    Groups of as many micro-batches as ranks go through chunk 0 of all ranks, then chunk 1, and so on.
    """
    m = _counts(ranks, micro_batches)
    require_whole("chunks", chunks, at_least=2)
    require("micro_batches", m, m % ranks == 0, f"a multiple of {ranks}, the number of ranks")
    forwards = [f"F{i // ranks % chunks} " for i in range(m * chunks)]
    backwards = [f"B{chunks - 1 - i // ranks % chunks} " for i in range(m * chunks)]

    def word(r: int) -> str:
        ahead = min((chunks - 1) * ranks + 2 * (ranks - 1 - r), m * chunks)
        steady = [f + b for f, b in zip(forwards[ahead:], backwards, strict=False)]
        return "".join(forwards[:ahead] + steady + backwards[len(steady) :])

    return _schedule(word, ranks, m, "loop", chunks)


def zbv(ranks: int, micro_batches: int) -> Schedule:
    """Return ZB-V: two stages per rank on a V, B split everywhere; at least 2 · ranks - 1 micro-batches."""
    m = _counts(ranks, micro_batches)
    require("micro_batches", m, m >= 2 * ranks - 1, f"at least {2 * ranks - 1} for {ranks} ranks")

    def word(r: int) -> str:
        return (
            "F0 " * (2 * (ranks - r) - 1)
            + "F1 F0 " * r
            + "F1 I1 W1 " * (ranks - r)
            + "F0 I0 W0 F1 I1 W1 " * (m - 2 * ranks + 1 + r)
            + "I0 W0 F1 I1 W1 " * (ranks - 1 - r)  # no forward is left in chunk 0
            + "I0 I1 " * r
            + "I0 W0 " * (ranks - r)
            + "W1 " * r
            + "W0 " * r
        )

    return _schedule(word, ranks, m, "V", 2)


# ---------------------------------------------------------------------------------------------------
# DualPipe


def dualpipe_steps(h: int, H: int, m: int) -> list[str]:
    """Return the word of a rank in DualPipe's eight steps.

    `h` counts ranks from the nearer end, of `H` ranks from the end to the middle, and m micro-batches travel in each
    direction. Chunk 0 is the direction that comes from this end, chunk 1 the other one.
    """
    last = "B1 B0 " * (h + 1)
    half = len(last) // 2
    main = "F0&B1 F1&B0 " * (m - 2 * H + h + 1)
    if h == H - 1:
        main = main.replace("F0&B1", "F0 B1", 1)  # in the middle nothing would overlap with the first of them
    return [
        "F0 " * (2 * (H - h - 1)),  # 1  until the other direction arrives
        "F0 F1 " * (h + 1),  # 2  both directions; the middle ranks have been waiting longest
        "I1 W F1 " * (H - h - 1),  # 3  the first backwards arrive; W fills the gap before the next forward
        main,  # 4  the steady state: every forward overlaps with a backward of the other direction
        "B1 F1&B0 " * (H - h - 1),  # 5  no forward is left in direction 0
        last[:half] + last[half:].replace("B", "I"),  # 6  only backwards are left; in the second half, W is postponed
        "W I0 " * (H - h - 1),  # 7  and fills the gaps between the last ones
        "W " * (h + 1),  # 8
    ]


def dualpipe(ranks: int, micro_batches: int) -> Schedule:
    """Return DualPipe for an even number of ranks and an even number of at least 2 · ranks micro-batches.

    Half of the micro-batches travel from rank 0 to the last rank, and the other half from the last rank to rank 0.
    Rank r holds stage r of direction 0 and stage ranks - 1 - r of direction 1, and directions are the chunks.
    """
    _counts(ranks, micro_batches)
    require("ranks", ranks, ranks % 2 == 0, "an even number of ranks")
    fits = micro_batches % 2 == 0 and micro_batches >= 2 * ranks
    require("micro_batches", micro_batches, fits, f"an even number of at least {2 * ranks} for {ranks} ranks")

    def word(r: int) -> str:
        mirrored = r >= ranks // 2
        letters = "".join(dualpipe_steps(min(r, ranks - 1 - r), ranks // 2, micro_batches // 2))
        return letters.translate(str.maketrans("01", "10")) if mirrored else letters

    return _schedule(word, ranks, micro_batches, "both ways", 2)


def dualpipe_v(ranks: int, micro_batches: int) -> Schedule:
    """Return DualPipeV, with two stages per rank on a V; at least 2 · ranks micro-batches.

    It is the first half of the ranks of DualPipe. Instead of crossing the middle, a micro-batch turns round there and
    returns through the same ranks.
    """
    m = _counts(ranks, micro_batches)
    require("micro_batches", m, m >= 2 * ranks, f"at least {2 * ranks} for {ranks} ranks")
    return _schedule(lambda r: "".join(dualpipe_steps(r, ranks, m)), ranks, m, "V", 2)


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "GPipe": gpipe,
    "1F1B": one_f_one_b,
    "interleaved": interleaved,
    "ZB1P": zb1p,
    "ZBV": zbv,
    "DualPipe": dualpipe,
    "DualPipeV": dualpipe_v,
}


def _counts(ranks: int, micro_batches: int) -> int:
    """Return the number of micro-batches after checking both numbers."""
    require_whole("ranks", ranks)
    require_whole("micro_batches", micro_batches)
    return micro_batches


def _schedule(
    word: Callable[[int], str], ranks: int, micro_batches: int, placement: str = "loop", chunks: int = 1
) -> Schedule:
    return Schedule([spell(word(rank)) for rank in range(ranks)], placement, chunks, micro_batches)
