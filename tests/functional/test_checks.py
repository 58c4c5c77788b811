"""Numbers are refused one by one, with their interval and what was given."""

from __future__ import annotations

import math
from typing import Any

import pytest

from torchrl_rtpd.functional.checks import check_within


@pytest.mark.parametrize(
    ("interval", "number"),
    [
        ("[0, 1]", 0),
        ("[0, 1]", 1.0),
        ("(0, 1)", 0.5),
        ("[1, inf)", 10**30),
        ("(-inf, inf)", -3.5),
        ("(0, inf]", math.inf),
    ],
)
def test_numbers_within_pass(interval: str, number: float) -> None:
    check_within(interval, number=number)


@pytest.mark.parametrize(
    ("interval", "number"),
    [
        ("(0, 1]", 0.0),
        ("[0, 1)", 1),
        ("[0, 1]", -1e-9),
        ("[0, inf)", math.inf),
        ("(-inf, inf)", math.nan),
        ("(-inf, inf)", -math.inf),
        ("[0, 1]", True),
        ("[0, 1]", "0.5"),
    ],
)
def test_numbers_outside_and_other_things_are_refused(interval: str, number: Any) -> None:
    with pytest.raises(ValueError, match="number must lie in") as caught:
        check_within(interval, "take another", other=None, number=number)
    assert str(caught.value) == f"number must lie in {interval}: got {number!r}; take another."


def test_the_first_of_several_is_named() -> None:
    with pytest.raises(ValueError, match=r"^second must lie in \[1, inf\): got 0\.$"):
        check_within("[1, inf)", first=1, second=0, third=-1)
