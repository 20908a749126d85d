"""Plants a mistake in the library: a few lines of its current source are changed, until a block ends.

    wrong = WrongVariant("no scale", "Attention is too sharp.", ((attend, "q_BHTC * scale", "q_BHTC"),))
    print(wrong.diff())        # the lines that change
    with wrong.planted():      # inside the block, the whole library computes with the mistake
        ...

Processes that `launch` starts inside the block compute with the mistake, too.

Memory that is read before it is written usually holds zeros or old numbers, and nothing fails. `poisoned_memory` makes
such a mistake visible.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType

import torch

from minids.parallel import launch

PLANTED = "<wrong "  # begins the file name of a planted function
launch.PRELOADED.append(__name__)  # saves each new process the time to import it


@dataclass(frozen=True)
class WrongVariant:
    """A mistake: its name, what it does to a model, and the edits that make it."""

    name: str
    effect: str
    edits: tuple[tuple[Callable, str, str], ...]  # function, text in its source, replacement

    def __post_init__(self):
        for function, _, _ in self.edits:
            _source(function)  # now, because a function with a planted mistake has no source

    def diff(self) -> str:
        """Return the lines that change, under the name of their function, with one line of context."""
        out = []
        for function, (before, after) in self._sources().items():
            lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1))[2:]
            out.append(f"{function.__module__}.{function.__qualname__}")
            out += ["  …" if line.startswith("@@") else line for line in lines]
        return "\n".join(out)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant the mistake in the whole library until the block ends.

        The functions stay the same objects and only their code is replaced, so modules that imported one use the
        wrong code, too. If an edit touches `__init__`, build the model inside the block. Raises ValueError where a
        mistake is planted already.
        """
        sources = {inspect.unwrap(function): after for function, (_, after) in self._sources().items()}
        for function in sources:
            if function.__code__.co_filename.startswith(PLANTED):
                raise ValueError(f"{function.__qualname__} has a mistake planted already: end that block first.")
        wrong = {function: _compile(function, source) for function, source in sources.items()}
        right = {function: function.__code__ for function in wrong}
        for function, code in wrong.items():
            function.__code__ = code
        work, launch._work = launch._work, _Work((*getattr(launch._work, "mistakes", ()), self))
        try:
            yield
        finally:
            launch._work = work
            for function, code in right.items():
                function.__code__ = code

    def _sources(self) -> dict[Callable, tuple[str, str]]:
        """The source of each edited function, before and after; ValueError where an edit does not fit exactly once."""
        sources: dict[Callable, tuple[str, str]] = {}
        for function, right, wrong in self.edits:
            original = _source(function)
            before, after = sources.get(function, (original, original))
            if after.count(right) != 1:
                raise ValueError(
                    f"{right!r} occurs {after.count(right)} times in {function.__qualname__}: it must occur once."
                )
            sources[function] = before, after.replace(right, wrong)
        return sources


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Until the block ends, torch fills the memory of every new floating-point tensor with NaN before it is written.

    This is a part of torch's deterministic mode, in which some operations raise an error instead.
    """
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


@dataclass(frozen=True)
class _Work:
    """What a new process does while mistakes are planted in the process that starts it: plant them, then its work."""

    mistakes: tuple[WrongVariant, ...]

    def __call__(self, *parts: object) -> None:
        work = launch._work  # this process's own
        with ExitStack() as planted:
            for mistake in self.mistakes:
                planted.enter_context(mistake.planted())
            work(*parts)


@functools.cache
def _source(function: Callable) -> str:
    return textwrap.dedent(inspect.getsource(inspect.unwrap(function)))


def _compile(function: Callable, source: str) -> CodeType:
    """Return the code of `source`, made to fit the function's own globals and closure."""
    definition = textwrap.indent(source[source.index("def ") :], "    ")  # without decorators
    free = "".join(f"    {name} = None\n" for name in function.__code__.co_freevars)  # __class__, where super() is used
    factory = f"def factory():\n{free}{definition}\n    return {function.__name__}"
    namespace = dict(function.__globals__)  # defaults may name anything there
    exec(compile(factory, f"{PLANTED}{function.__qualname__}>", "exec"), namespace)
    return namespace["factory"]().__code__
