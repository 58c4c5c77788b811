"""Actions of several choices: sums over them, and nothing else, against a loop over whole actions."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchrl_rtpd import functional as RF
from torchrl_rtpd.functional.choices import split_choices


def draw(var_nums: list[int], batch: list[int], seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Values of teacher and student, and a mask that leaves each choice at least one action."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, sum(var_nums))
    teacher, student = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    masks = []
    for num in var_nums:
        mask = torch.rand((*batch, num), generator=generator) < 0.6
        masks.append(mask | (torch.arange(num) == torch.randint(num, (*batch, 1), generator=generator)))
    return teacher, student, torch.cat(masks, -1)


def joint(values: Tensor, var_nums: list[int], allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``[prod(var_nums)]`` of all whole actions of one state, by a loop, and which are allowed."""
    starts = [sum(var_nums[:place]) for place in range(len(var_nums))]
    whole, possible = [], []
    for action in itertools.product(*(range(num) for num in var_nums)):
        places = [start + choice for start, choice in zip(starts, action, strict=True)]
        whole.append(sum(values[place] for place in places))
        possible.append(all(allowed[place] for place in places))
    return torch.stack(whole), torch.tensor(possible)


SETTINGS = settings(deadline=None, max_examples=40)
VAR_NUMS = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@SETTINGS
@given(var_nums=VAR_NUMS, seed=st.integers(0, 10**6), masked=st.booleans())
def test_independent_choices_are_the_policy_over_whole_actions(var_nums: list[int], seed: int, masked: bool) -> None:
    """Values that add up make the softmax over whole actions the product of those over each choice.

    Divergences, entropy, agreement, regret and target are then those of an ordinary policy over all combinations.
    """
    teacher, student, mask = draw(var_nums, [], seed)
    mask = mask if masked else torch.ones_like(mask)
    (whole_teacher, allowed), (whole_student, _) = (joint(values, var_nums, mask) for values in (teacher, student))
    log_probs = [RF.policy_log_probs(values, 0.7, mask, var_nums) for values in (teacher, student)]
    whole_log_probs = [RF.policy_log_probs(values, 0.7, allowed) for values in (whole_teacher, whole_student)]
    for divergence in (RF.forward_kl, RF.reverse_kl):
        torch.testing.assert_close(divergence(*log_probs), divergence(*whole_log_probs))
    torch.testing.assert_close(RF.entropy(log_probs[0]), RF.entropy(whole_log_probs[0]))
    torch.testing.assert_close(
        RF.greedy_nll(teacher, log_probs[1], var_nums), RF.greedy_nll(whole_teacher, whole_log_probs[1])
    )
    for function in (RF.greedy_agreement, RF.imitation_value):
        expected = function(whole_teacher, whole_student, allowed)
        torch.testing.assert_close(function(teacher, student, mask, var_nums), expected)
    torch.testing.assert_close(
        RF.teacher_regret(teacher, student, mask, var_nums), RF.teacher_regret(whole_teacher, whole_student, allowed)
    )


@SETTINGS
@given(
    var_nums=VAR_NUMS,
    batch=st.lists(st.integers(1, 3), max_size=2),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_one_choice_moved_up_or_down_is_the_same_policy(
    var_nums: list[int], batch: list[int], seed: int, dtype: torch.dtype
) -> None:
    """Nothing is lost, and all agree, whatever constant is added to the values of a choice."""
    teacher, _, mask = draw(var_nums, batch, seed, dtype)
    moved = torch.cat([part + 4 * place for place, (part,) in enumerate(split_choices(var_nums, teacher))], -1)
    # Rounding may make two actions equal in half precision.
    rounding = torch.finfo(dtype).eps * 64
    log_probs = [RF.policy_log_probs(values, 1.0, mask, var_nums) for values in (teacher, moved)]
    assert RF.forward_kl(*log_probs).abs().max() <= rounding
    if dtype.itemsize > 2:
        assert RF.greedy_agreement(teacher, moved, mask, var_nums).eq(1.0).all()
        assert RF.teacher_regret(teacher, moved, mask, var_nums).eq(0.0).all()


@SETTINGS
@given(num_actions=st.integers(1, 5), batch=st.lists(st.integers(1, 3), max_size=2), seed=st.integers(0, 10**6))
def test_a_single_choice_is_no_choice_of_several(num_actions: int, batch: list[int], seed: int) -> None:
    """Bit for bit."""
    teacher, student, mask = draw([num_actions], batch, seed)
    for function in (RF.greedy_agreement, RF.imitation_value, RF.teacher_regret):
        assert torch.equal(function(teacher, student, mask), function(teacher, student, mask, [num_actions]))
    assert torch.equal(RF.value_spread(teacher, mask), RF.value_spread(teacher, mask, [num_actions]))
    policies = [RF.policy_log_probs(teacher, 0.5, mask, choices) for choices in (None, [num_actions])]
    assert torch.equal(*policies)


def test_regret_by_hand() -> None:
    """Deviation 1: the best is 3, the student takes 1, then 3; without a preference nothing can be lost."""
    teacher = torch.tensor([[1.0, 3.0], [1.0, 3.0], [2.0, 2.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert RF.teacher_regret(teacher, student).tolist() == [2.0, 0.0, 0.0]


def test_regret_of_two_choices_by_hand() -> None:
    """Whole actions are worth 2, 4, 4, 6 and deviate by the root of 2; the student's first choice costs 2."""
    teacher, student = torch.tensor([1.0, 3.0, 1.0, 3.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert RF.teacher_regret(teacher, student, var_nums=(2, 2)).item() == pytest.approx(2 / 2**0.5)


def test_regret_grows_neither_with_scale_nor_with_level_of_the_values() -> None:
    teacher, student = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = RF.teacher_regret(teacher, student)
    torch.testing.assert_close(RF.teacher_regret(1000 * teacher - 7, student), expected)


def test_regret_of_an_action_that_the_teacher_forbids_is_that_of_its_worst() -> None:
    """Policies forbid by minus infinity, which must not become an infinite mean: 2 by the deviation of 1, 3 and 1."""
    teacher = torch.tensor([1.0, 3.0, -float("inf")])
    for student in (torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])):
        assert RF.teacher_regret(teacher, student).item() == pytest.approx(2 / (8 / 9) ** 0.5)
    assert RF.teacher_regret(torch.full((3,), -float("inf")), torch.zeros(3)).item() == 0.0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), num_actions=st.integers(1, 6))
def test_regret_is_never_negative_and_zero_where_both_agree(seed: int, num_actions: int) -> None:
    teacher, student, mask = draw([num_actions], [7], seed)
    regret, agrees = RF.teacher_regret(teacher, student, mask), RF.greedy_agreement(teacher, student, mask)
    assert (regret >= 0).all() and (regret[agrees == 1] == 0).all()
    assume((agrees == 0).any())
    assert (regret[agrees == 0] > 0).all()  # values drawn from a continuum are never equal


@pytest.mark.parametrize("var_nums", [(5, 2), (5, 3, 1), ()])
def test_choices_that_do_not_add_up_are_refused(var_nums: tuple[int, ...]) -> None:
    message = re.escape(f"got var_nums={list(var_nums)}, in all {sum(var_nums)}, for 8 values")
    with pytest.raises(ValueError, match=message):
        RF.policy_log_probs(torch.zeros(2, 8), 1.0, var_nums=var_nums)


@pytest.mark.parametrize("by_mask", [True, False])
def test_regret_of_a_choice_without_possible_actions_is_that_of_the_others(by_mask: bool) -> None:
    """Two and a deviation of 1 in the first choice; the second is wholly forbidden, by a mask or by the teacher."""
    forbidden = 0.0 if by_mask else -float("inf")
    teacher, student = torch.tensor([1.0, 3.0, forbidden, forbidden]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    mask = torch.tensor([True, True, False, False]) if by_mask else None
    assert RF.teacher_regret(teacher, student, mask, (2, 2)).item() == 2.0


@pytest.mark.parametrize(("var_nums", "told"), [(0, [0]), (-2, [-2]), (7, [7]), (4, [4]), ([4, 1], [4, 1])])
def test_choices_that_do_not_fit_are_told_as_they_were_given(var_nums: int | list[int], told: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"must add up to its values: got var_nums={re.escape(str(told))}"):
        split_choices(var_nums, torch.zeros(2, 6))
