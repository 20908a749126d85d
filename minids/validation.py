"""Checks of arguments. The error message is one sentence that names the value and what is allowed.

Configurations and functions check their arguments before they compute anything, with messages of one form:

    n_group=3 is not possible: it must be a divisor of n_routed_experts=256.
"""

import sys
from collections.abc import Callable
from typing import Any

LARGEST_WHOLE = 2**63 - 1  # the largest int64
QUOTED = 80  # characters of a value that a message quotes


class BadValueError(ValueError):
    """A named value that is not allowed. A caller can put another name, such as an option's, before `sentence`."""

    def __init__(self, name: str, value: Any, allowed: str):
        self.name, self.sentence = name, f"{quoted(value)} is not possible: it must be {allowed}."
        super().__init__(f"{name}={self.sentence}")


def require(name: str, value: Any, condition: bool, allowed: str) -> None:
    """Raise BadValueError with the value and what is `allowed`, unless the condition holds."""
    if not condition:
        raise BadValueError(name, value, allowed)


def quoted(value: Any) -> str:
    """Return a value as a message quotes it: on one line, and cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        text = f"(a number of thousands of digits, in the {type(value).__name__})"
    text = " ".join(text.split())
    return text if len(text) <= QUOTED else text[: QUOTED - 2] + " …"


def require_whole(name: str, value: Any, at_least: int = 1, at_most: int = LARGEST_WHOLE) -> None:
    """Raise BadValueError unless the value is an int (not a bool) from `at_least` to `at_most`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    beyond = whole and value > at_most
    limit = f" and at most {at_most}" if beyond or at_most < LARGEST_WHOLE else ""
    require(name, value, whole and at_least <= value <= at_most, f"a whole number of at least {at_least}{limit}")


def is_number(value: Any) -> bool:
    """Return whether the value is an int or a float, not a bool, and finite as a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def require_fields(config: Any, allowed: str, condition: Callable[[Any], bool], *names: str) -> None:
    """Raise BadValueError unless the condition holds for each named field of a configuration."""
    for name in names:
        require(name, getattr(config, name), condition(getattr(config, name)), allowed)


def require_whole_fields(config: Any, *names: str, at_least: int = 1, at_most: int = LARGEST_WHOLE) -> None:
    """Raise BadValueError unless each named field is a whole number from `at_least` to `at_most`."""
    for name in names:
        require_whole(name, getattr(config, name), at_least, at_most)
