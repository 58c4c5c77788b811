"""Ranges of numbers and sets of names, checked before anything is built from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchrl_rtpd.functional.checks import check_within

__all__ = ["check_choices", "check_ranges"]


def check_ranges(config: Any, ranges: Mapping[str, str]) -> None:
    """Refuse numbers that lie outside their range.

    Args:
        config: an object or mapping with the keys as attributes or items. None is allowed wherever it is found.
        ranges: keys, separated by blanks, by the interval they must lie in, such as ``"(0, 1]"`` or ``"[1, inf)"``.

    Raises:
        ValueError: a value outside its interval, or one that is no number.

    Examples:
        >>> check_ranges({"gamma": 0.99, "threads": 2}, {"[0, 1]": "gamma", "[1, inf)": "threads"})
        >>> check_ranges({"gamma": 1.5}, {"[0, 1]": "gamma"})
        Traceback (most recent call last):
        ValueError: gamma must lie in [0, 1]: got 1.5.
    """
    for interval, keys in ranges.items():
        for key in keys.split():
            value = config[key] if isinstance(config, Mapping) else getattr(config, key)
            check_within(interval, **{key: value})


def check_choices(config: Any, **choices: Sequence[str]) -> None:
    """Refuse names that are not among those a key may have.

    Args:
        config: an object with the keys as attributes.
        choices: names by key.

    Raises:
        ValueError: another name.
    """
    for key, names in choices.items():
        value = getattr(config, key)
        if value not in names:
            raise ValueError(f"{key} must be one of {', '.join(names)}: got {value!r}.")
