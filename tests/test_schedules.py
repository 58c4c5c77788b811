"""Schedules: their values at first, last and beyond, what they remember, and the buffers they set."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.objectives import HardUpdate

from torchrl_rtpd.functional.scores import normalised_gap
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.schedules import (
    ExponentialSchedule,
    GapSchedule,
    KLGate,
    LinearSchedule,
    PiecewiseSchedule,
    RunState,
    Schedule,
    apply_schedules,
    check_schedules,
)


def values(schedule: Schedule, *updates: int) -> list[float]:
    return [schedule(RunState(number)) for number in updates]


def evaluated(schedule: Schedule, updates: int, teacher: float | None, student: float | None) -> float:
    """The value with returns of an evaluation on Pong, where a random player loses by 21."""
    return schedule(RunState(updates, teacher, student, random_return=-21.0))


# Values of time


def test_a_line_runs_from_its_first_to_its_last_value_and_stays_there() -> None:
    schedule = LinearSchedule(1.0, 0.2, end_updates=300, begin_updates=100)
    expected = [1.0, 1.0, 0.8, 0.6, 0.2, 0.2]
    assert values(schedule, 0, 100, 150, 200, 300, 10**9) == pytest.approx(expected, abs=1e-15)


def test_a_line_may_rise() -> None:
    assert values(LinearSchedule(0.0, 2.0, end_updates=4), 0, 1, 2, 3, 4, 5) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_an_exponential_changes_by_an_equal_factor() -> None:
    schedule = ExponentialSchedule(0.01, 1.0, end_updates=20, begin_updates=10)
    expected = [0.01, 0.01, 0.1, 1.0, 1.0]
    assert values(schedule, 0, 10, 15, 20, 21) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [LinearSchedule, ExponentialSchedule])
def test_first_and_last_values_are_exact(kind: Callable[..., Schedule]) -> None:
    schedule = kind(0.1, 0.3, end_updates=7)
    assert values(schedule, 0, 7, 8) == [0.1, 0.3, 0.3]


def test_extreme_values_neither_overflow_nor_vanish() -> None:
    middle = ExponentialSchedule(1e-300, 1e300, end_updates=2)(RunState(1))
    assert middle == pytest.approx(1.0)
    assert math.isfinite(LinearSchedule(-1e308, 1e308, end_updates=2)(RunState(1)))


def test_pieces_are_joined_by_lines_or_kept() -> None:
    points = {10: 1.0, 20: 0.0, 40: 0.5}
    updates = (0, 10, 15, 20, 30, 40, 1_000)
    assert values(PiecewiseSchedule(points), *updates) == [1.0, 1.0, 0.5, 0.0, 0.25, 0.5, 0.5]
    assert values(PiecewiseSchedule(points, interpolate=False), *updates) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.5, 0.5]


def test_one_piece_is_a_constant() -> None:
    assert values(PiecewiseSchedule({0: 0.3}), 0, 1, 10**9) == [0.3] * 3


def test_pieces_do_not_follow_their_argument() -> None:
    points = {0: 1.0}
    schedule = PiecewiseSchedule(points)
    points[0] = 2.0
    assert values(schedule, 5) == [1.0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearSchedule(math.inf, 1.0, end_updates=1), r"initial must lie in \(-inf, inf\): got inf"),
        (lambda: LinearSchedule(1.0, math.nan, end_updates=1), r"final must lie in \(-inf, inf\): got nan"),
        (
            lambda: LinearSchedule(1.0, 0.0, end_updates=0),
            r"end_updates must .* \(0, inf\): got 0; .* begins",
        ),
        (
            lambda: LinearSchedule(1.0, 0.0, end_updates=5, begin_updates=9),
            r"end_updates must .* \(9, inf\): got 5",
        ),
        (
            lambda: LinearSchedule(1.0, 0.0, end_updates=5, begin_updates=-1),
            r"begin_updates .* \[0, inf\): got -1",
        ),
        (
            lambda: ExponentialSchedule(1.0, 0.0, end_updates=5),
            r"final must .* \(0, inf\): got 0.0; use Linear",
        ),
        (
            lambda: ExponentialSchedule(-1.0, 1.0, end_updates=5),
            r"initial must .* \(0, inf\): got -1.0; use",
        ),
        (lambda: PiecewiseSchedule({}), "at least one value: got none; write"),
        (lambda: PiecewiseSchedule({5: 1.0, 2: 0.0}), r"must ascend: got \[5, 2\]; write \{0: 1.0"),
        (lambda: PiecewiseSchedule({-1: 1.0}), r"the first number of updates must lie in \[0, inf\): got -1"),
        (
            lambda: PiecewiseSchedule({0: 1.0, 7: math.inf}),
            r"the value at 7 updates must .*, inf\): got inf",
        ),
        (lambda: GapSchedule(floor=1.5), r"floor must lie in \[0, 1\]: got 1.5"),
        (lambda: GapSchedule(initial=math.nan), r"initial must lie in \[0, 1\]: got nan"),
        (
            lambda: GapSchedule(hold_updates=-1),
            r"hold_updates must .* \[0, inf\): got -1; 0 follows every",
        ),
        (lambda: GapSchedule(scale=0.0), r"scale must lie in \(0, inf\): got 0.0"),
        (lambda: GapSchedule(scale=math.inf), r"scale must lie in \(0, inf\): got inf"),
        (lambda: KLGate(1), r"num_actions must lie in \[2, inf\): got 1; one action"),
        (lambda: KLGate(6, open_at=0.2, closed_at=0.2), r"open_at must lie in \(0.2, 1\]: got 0.2; a gate is closed"),
        (lambda: KLGate(6, open_at=1.2), r"open_at must lie in \(0.0, 1\]: got 1.2"),
        (lambda: KLGate(6, closed_at=-0.1), r"closed_at must lie in \[0, 1\]: got -0.1"),
        (lambda: KLGate(6, decay=1.0), r"decay must lie in \[0, 1\): got 1.0; 0 follows each batch"),
    ],
)
def test_what_makes_no_schedule_is_refused_when_it_is_built(build: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# The gap


@pytest.mark.parametrize(
    ("teacher", "student", "random", "gap"),
    [
        (10.0, 10.0, 0.0, 0.0),
        (10.0, 5.0, 0.0, 0.5),
        (10.0, 0.0, 0.0, 1.0),
        (10.0, -5.0, 0.0, 1.0),  # below the random player
        (10.0, 99.0, 0.0, 0.0),  # above the teacher
        (-5.0, -17.0, -21.0, 0.75),  # all negative: (-5 + 17) / (-5 + 21)
        (0.0, -10.5, -21.0, 0.5),  # a teacher's return of 0, where a quotient of returns has no value
        (-21.0, -20.0, -21.0, None),  # a teacher that is as good as random
        (-21.0, -21.0, -20.0, None),  # or worse
        (math.nan, 1.0, 0.0, None),
        (1.0, math.nan, 0.0, None),
        (1.0, 1.0, math.inf, None),
        (None, 1.0, 0.0, None),
        (1.0, None, 0.0, None),
        (1.0, 1.0, None, None),
    ],
)
def test_the_gap_is_the_share_of_the_teachers_lead(
    teacher: float | None, student: float | None, random: float | None, gap: float | None
) -> None:
    assert normalised_gap(teacher, student, random) == gap


def test_the_weight_is_finite_and_bounded_for_any_returns() -> None:
    """Trap 10: every triple of awkward numbers, in one schedule and in fresh ones."""
    numbers = (None, math.nan, math.inf, -math.inf, -1e308, -21.0, -1e-300, 0.0, 5e-324, 1.0, 1e308)
    lasting = GapSchedule(floor=0.05)
    for updates, returns in enumerate(itertools.product(numbers, repeat=3)):
        for schedule in (lasting, GapSchedule(floor=0.05)):
            assert 0.05 <= schedule(RunState(updates, *returns)) <= 1.0


def test_the_weight_follows_the_gap_down_to_its_floor() -> None:
    schedule = GapSchedule(floor=0.1)
    weights = [evaluated(schedule, 0, 0.0, student) for student in (-21.0, -10.5, -1.0, 0.0, 5.0)]
    assert weights == pytest.approx([1.0, 0.5, 0.1, 0.1, 0.1])


def test_the_weight_is_the_initial_one_until_a_gap_is_known() -> None:
    schedule = GapSchedule(initial=0.7, floor=0.1)
    assert schedule(RunState(0)) == 0.7
    assert evaluated(schedule, 10, -21.0, -20.0) == 0.7  # the teacher knows nothing yet
    assert evaluated(schedule, 20, 0.0, -10.5) == 0.5
    assert evaluated(schedule, 30, math.nan, -10.5) == 0.5


def test_a_change_is_held() -> None:
    """From 1 to 0.5 at update 100, so nothing moves before update 300."""
    schedule = GapSchedule(hold_updates=200)
    at_first = evaluated(schedule, 100, 0.0, -10.5)
    held = [evaluated(schedule, updates, 0.0, 0.0) for updates in (101, 299)]
    released = evaluated(schedule, 300, 0.0, 0.0)
    assert (at_first, *held, released) == (0.5, 0.5, 0.5, 0.0)


def test_an_evaluation_that_changes_nothing_does_not_prolong_the_hold() -> None:
    schedule = GapSchedule(hold_updates=200)
    evaluated(schedule, 100, 0.0, -10.5)
    evaluated(schedule, 299, 0.0, -10.5)
    assert evaluated(schedule, 300, 0.0, -21.0) == 1.0


def test_the_weight_rises_again_when_the_gap_opens() -> None:
    schedule = GapSchedule()
    assert [evaluated(schedule, 0, 0.0, student) for student in (0.0, -10.5)] == [0.0, 0.5]


def test_the_scale_multiplies_the_weight() -> None:
    assert evaluated(GapSchedule(scale=4.0, floor=0.25), 0, 0.0, -10.5) == 2.0
    assert evaluated(GapSchedule(scale=4.0, floor=0.25), 0, 0.0, 0.0) == 1.0


# The gate


def test_the_gate_is_closed_for_a_teacher_without_preferences_and_open_for_a_sharp_one() -> None:
    uniform, sharp = RunState(teacher_entropy=math.log(6)), RunState(teacher_entropy=0.0)
    assert (KLGate(6)(uniform), KLGate(6)(sharp)) == (0.0, 1.0)


def test_the_gate_is_a_smooth_step_between() -> None:
    """An entropy of 15/16 ln A is s = 1/4; x = 1/2 and 1/4 give x**2 (3 - 2 x) = 1/2 and 5/32."""
    entropy = 15 / 16 * math.log(4)
    assert KLGate(4, open_at=0.5)(RunState(teacher_entropy=entropy)) == pytest.approx(1 / 2)
    assert KLGate(4, open_at=1.0)(RunState(teacher_entropy=entropy)) == pytest.approx(5 / 32)
    assert KLGate(4, open_at=0.5, floor=0.2, scale=2.0)(RunState(teacher_entropy=entropy)) == pytest.approx(1.2)


def test_the_gate_opens_steadily_as_entropy_falls() -> None:
    weights = [KLGate(6)(RunState(teacher_entropy=share * math.log(6))) for share in torch.linspace(1, 0, 201).tolist()]
    steps = [after - before for before, after in itertools.pairwise(weights)]
    assert min(steps) >= 0
    assert max(steps) < 0.15  # the root in s is steepest where the gate is closed, and there the step is flat


def test_entropy_measures_the_spread_of_values_in_temperatures() -> None:
    """The formula of the docstring, against a softmax of 10,000 small random teachers."""
    spread, temperature = 0.01, 0.1
    q_values = torch.randn(10_000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q_values = spread * (q_values - q_values.mean(-1, keepdim=True)) / q_values.std(-1, correction=0, keepdim=True)
    entropy = torch.distributions.Categorical(logits=q_values / temperature).entropy().mean().item()
    sharpness = math.sqrt(1 - entropy / math.log(6))
    assert sharpness == pytest.approx(spread / (temperature * math.sqrt(2 * math.log(6))), rel=0.01)


def test_the_gate_averages_over_batches() -> None:
    """Entropies of ln 4 and 0 at a decay of 1/2 make 1/2 of ln 4: s = 0.5 ** 0.5."""
    gate = KLGate(4, open_at=1.0, decay=0.5)
    gate(RunState(teacher_entropy=math.log(4)))
    root = 0.5**0.5
    assert gate(RunState(teacher_entropy=0.0)) == pytest.approx(root**2 * (3 - 2 * root))


def test_the_gate_is_closed_before_the_first_entropy_and_skips_unknown_ones() -> None:
    gate = KLGate(6, floor=0.1, scale=2.0)
    assert gate(RunState()) == gate(RunState(teacher_entropy=math.nan)) == 0.2
    assert gate(RunState(teacher_entropy=0.0)) == 2.0
    assert gate(RunState()) == gate(RunState(teacher_entropy=math.nan)) == 2.0


def test_an_entropy_just_above_its_bound_keeps_the_gate_closed() -> None:
    assert KLGate(6)(RunState(teacher_entropy=math.log(6) + 1e-6)) == 0.0


# State


def used(schedule: Schedule, start: int, stop: int) -> list[float]:
    return [
        schedule(RunState(updates, 0.0, -21.0 + (updates * 7) % 20, -21.0, teacher_entropy=1.7 - updates / 100))
        for updates in range(start, stop)
    ]


@pytest.mark.parametrize(
    "build",
    [
        lambda: LinearSchedule(1.0, 0.0, end_updates=15),
        lambda: ExponentialSchedule(1.0, 0.1, end_updates=15),
        lambda: PiecewiseSchedule({0: 1.0, 15: 0.0}),
        lambda: GapSchedule(hold_updates=6),
        lambda: KLGate(6),
    ],
)
def test_a_restored_schedule_goes_on_as_the_saved_one(build: Callable[[], Schedule]) -> None:
    saved, restored = build(), build()
    used(saved, 0, 10)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))  # plain numbers
    assert used(restored, 10, 30) == used(saved, 10, 30)


def test_copies_share_nothing() -> None:
    schedule = GapSchedule()
    copied = copy.deepcopy(schedule)
    evaluated(schedule, 0, 0.0, 0.0)
    assert copied(RunState()) == 1.0


def test_a_state_of_another_schedule_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"GapSchedule saves \['changed_updates', 'weight'\]: got \['entropy'\]; build"
    ):
        GapSchedule().load_state_dict(KLGate(6).state_dict())
    with pytest.raises(ValueError, match=r"LinearSchedule saves \[\]: got \['entropy'\]"):
        LinearSchedule(1.0, 0.0, end_updates=1).load_state_dict(KLGate(6).state_dict())


# Buffers of a loss


def student_loss() -> StudentDQNLoss:
    return StudentDQNLoss(nn.Linear(4, 3))


def test_buffers_are_set_in_place_and_keep_their_kind() -> None:
    loss = student_loss()
    names = ("teacher_temperature", "td_coeff", "distill_coeff")
    before = {name: getattr(loss, name) for name in names}
    applied = apply_schedules(loss, {name: LinearSchedule(1.0, 0.5, end_updates=2) for name in names}, RunState(1))
    assert applied == dict.fromkeys(names, 0.75)
    for name, buffer in before.items():
        assert getattr(loss, name) is buffer
        assert (buffer.item(), buffer.dtype) == (0.75, torch.float32)
    assert loss.state_dict()["td_coeff"] == 0.75


def test_the_student_has_a_temperature_of_its_own_to_schedule() -> None:
    loss = DistillationLoss(nn.Linear(4, 3))
    apply_schedules(loss, {"student_temperature": ExponentialSchedule(1.0, 0.25, end_updates=2)}, RunState(1))
    assert loss.student_temperature == 0.5


def test_a_scheduled_coefficient_weighs_the_loss() -> None:
    loss = student_loss()
    following = {
        "observation": torch.ones(5, 4),
        "reward": torch.ones(5, 1),
        ("teacher", "action_value"): torch.ones(5, 3),
    }
    following |= {"done": torch.ones(5, 1, dtype=torch.bool), "terminated": torch.ones(5, 1, dtype=torch.bool)}
    batch = TensorDict(
        {
            "observation": torch.ones(5, 4),
            "action": torch.zeros(5, dtype=torch.long),
            ("teacher", "action_value"): torch.arange(15.0).reshape(5, 3),
            "next": TensorDict(following, [5]),
        },
        [5],
    )
    HardUpdate(loss, value_network_update_interval=1)  # without an updater TorchRL warns
    full = loss(batch)["loss_distill"].item()
    apply_schedules(loss, {"distill_coeff": PiecewiseSchedule({0: 0.25})}, RunState())
    assert loss(batch)["loss_distill"].item() == pytest.approx(0.25 * full)


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (
            lambda: DistillationLoss(nn.Linear(4, 3)),
            "distill_coeff",
            r"^DistillationLoss cannot schedule 'distill_coeff': it can schedule student_temperature, teacher_temp",
        ),
        (student_loss, "temperature", "StudentDQNLoss cannot schedule 'temperature': it can schedule .*distill_coeff"),
        (student_loss, "student_temperature", "cannot schedule 'student_temperature'.*not 'auto' or None"),
        (
            lambda: StudentDQNLoss(nn.Linear(4, 3), teacher_temperature="auto"),
            "teacher_temperature",
            "cannot schedule 'teacher_temperature'.*not 'auto' or None",
        ),
    ],
)
def test_what_a_loss_cannot_schedule_is_named(build: Callable[[], DistillationLoss], name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_schedules(build(), {name: PiecewiseSchedule({0: 1.0})})


def test_a_number_is_no_schedule() -> None:
    with pytest.raises(TypeError, match=r"schedule of 'td_coeff' must be a Schedule: got float; wrap a constant"):
        check_schedules(student_loss(), {"td_coeff": 0.5})


@pytest.mark.parametrize(("name", "value"), [("teacher_temperature", 0.0), ("teacher_temperature", -1.0)])
def test_a_temperature_that_is_not_positive_is_refused_before_anything_is_set(name: str, value: float) -> None:
    loss = student_loss()
    with pytest.raises(ValueError, match=rf"schedule of '{name}' gave {value} after 7 updates.*raise its floor"):
        apply_schedules(loss, {name: PiecewiseSchedule({0: value})}, RunState(7))
    assert getattr(loss, name) == pytest.approx(0.1)


def test_a_schedule_that_gives_no_number_is_refused() -> None:
    class Broken(Schedule):
        def __call__(self, state: RunState) -> float:
            return math.nan

    with pytest.raises(ValueError, match="schedule of 'td_coeff' gave nan after 0 updates"):
        apply_schedules(student_loss(), {"td_coeff": Broken()}, RunState())
