"""Refusing bad input in one sentence: which value it is, and what is allowed.

Configurations and functions check their arguments before anything is computed, all in the same words:

    n_group=3 is not possible: it must be a divisor of n_routed_experts=256.
"""

import sys
from collections.abc import Callable
from typing import Any


def require(name: str, value: Any, condition: bool, allowed: str) -> None:
    """Raise ValueError, naming the value and what is `allowed`, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}={value!r} is not possible: it must be {allowed}.")


def require_whole(name: str, value: Any, at_least: int = 1) -> None:
    """Raise ValueError unless the value is an int (True and False are none) of at least `at_least`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(name, value, whole and value >= at_least, f"a whole number of at least {at_least}")


def is_number(value: Any) -> bool:
    """Return whether the value is an int or a float that is finite as a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def require_fields(config: Any, allowed: str, condition: Callable[[Any], bool], *names: str) -> None:
    """Raise ValueError unless the condition holds for each of these fields of a configuration."""
    for name in names:
        require(name, getattr(config, name), condition(getattr(config, name)), allowed)


def require_whole_fields(config: Any, *names: str, at_least: int = 1) -> None:
    """Raise ValueError unless each of these fields is a whole number of at least `at_least`."""
    for name in names:
        require_whole(name, getattr(config, name), at_least)
