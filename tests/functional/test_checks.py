"""Numbers are refused one by one, with their interval and what was given."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from torchrl_rtpd.functional.checks import check_name, check_within


@pytest.mark.parametrize(
    ("interval", "number"),
    [
        ("[0, 1]", 0),
        ("[0, 1]", 1.0),
        ("(0, 1)", 0.5),
        ("[1, inf)", 10**30),
        ("(-inf, inf)", -3.5),
        ("(0, inf]", math.inf),
        ("[0, 1]", np.float32(0.5)),
        ("[0, 1]", np.array(0.5)),
        ("[0, 1]", np.int64(1)),
        ("[0, 1]", torch.tensor(0.5, dtype=torch.bfloat16)),
        ("(0, 1)", Fraction(1, 3)),
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
        ("[0, 1]", np.bool_(True)),
        ("[0, 1]", torch.tensor(True)),
        ("[0, 1]", torch.tensor([0.5])),
        ("[0, 1]", np.float32(2.0)),
        ("[0, 1]", 0.5 + 0j),
    ],
)
def test_numbers_outside_and_other_things_are_refused(interval: str, number: Any) -> None:
    with pytest.raises(ValueError, match="number must lie in") as caught:
        check_within(interval, "take another", other=None, number=number)
    assert str(caught.value) == f"number must lie in {interval}: got {number!r}; take another."


def test_the_first_of_several_is_named() -> None:
    with pytest.raises(ValueError, match=r"^second must lie in \[1, inf\): got 0\.$"):
        check_within("[1, inf)", first=1, second=0, third=-1)


@pytest.mark.parametrize(
    ("name", "proposed"),
    [("a, b", "a_b"), ("two\nlines", "two_lines"), ("a/b", "a_b"), ("bell\a", "bell"), ("", "small"), (7, "7")],
)
def test_names_that_spoil_tables_are_refused(name: object, proposed: str) -> None:
    """With a name that does not."""
    with pytest.raises(ValueError, match=re.escape(f"'/' and ',': got {name!r}; call it '{proposed}' or the like.")):
        check_name("a name", name)


@pytest.mark.parametrize("name", ["net17", "net 17 (small)", "Schüler", "a.b", "Ünï"])
def test_other_names_pass(name: str) -> None:
    check_name("a name", name)
