"""Which version of the teacher students learn from."""

from __future__ import annotations

import pytest
import torch
from hook_parts import (
    FAST,
    Watching,
    actor,
    cartpole_trainer,
    content,
    filled,
    fleet,
    minibatches,
    student_loss,
    student_state,
    teacher_state,
    trained,
    update,
)
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.trainers.checks import DormancyCheck, DriftCheck
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.teacher_copies import AverageTeacher, BestTeacher, LaggingTeacher, TeacherCopy

CHOICES = {"average": lambda: AverageTeacher(0.9), "lagging": lambda: LaggingTeacher(3), "best": BestTeacher}


def hooked(teacher: TeacherCopy, loss: DistillationLoss | None = None) -> tuple[DQNTrainer, RealTimeDistillTrainer]:
    """A trainer with data, and a hook that teaches one student from this version of its teacher."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer(student_loss() if loss is None else loss, optimizer=FAST, teacher=teacher)
    hook.register(trainer)
    return trainer, hook


def weights(trainer: DQNTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.loss_module.value_network_params.data.flatten_keys().items()}


def copied(teacher: TeacherCopy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in teacher.weights.flatten_keys().items()}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_teacher_is_bit_identical_whichever_version_is_taught(choice: str) -> None:
    alone = cartpole_trainer()
    trained(alone, None)
    watched = cartpole_trainer()
    trained(watched, fleet(2), teacher=CHOICES[choice](), checks=[DormancyCheck(), DriftCheck(2)])
    assert teacher_state(watched) == teacher_state(alone)


def test_a_teacher_that_lags_by_nothing_is_the_latest() -> None:
    """Students are bit-identical to those given the captured values, but for the next states.

    There the target network's values are captured, and a copy has no target network.
    """
    states = []
    for teacher in ("latest", LaggingTeacher(1)):
        students = {name: loss for name, loss in fleet(3).items() if name != "small"}  # the one that imitates
        hook = trained(cartpole_trainer(), students, teacher=teacher)
        states.append([student_state(hook, name) for name in hook.students])
    assert states[0] == states[1]


def test_the_average_is_that_of_the_weights_after_each_update() -> None:
    """By hand: average = 0.9 average + 0.1 teacher, from the weights of the beginning."""
    teacher = AverageTeacher(0.9)
    trainer, hook = hooked(teacher)
    expected = weights(trainer)
    for batch in minibatches(trainer, 3):
        update(trainer, hook, batch)
        expected = {name: 0.9 * expected[name] + 0.1 * value for name, value in weights(trainer).items()}
    for name, value in copied(teacher).items():
        torch.testing.assert_close(value, expected[name])
    assert any(not torch.equal(value, weights(trainer)[name]) for name, value in copied(teacher).items())


def test_a_lagging_teacher_is_renewed_every_so_many_updates() -> None:
    teacher = LaggingTeacher(2)
    trainer, hook = hooked(teacher)
    history = [weights(trainer)]
    for number, batch in enumerate(minibatches(trainer, 5), 1):
        update(trainer, hook, batch)
        history.append(weights(trainer))
        assert content(copied(teacher)) == content(history[number - number % 2])


def test_the_best_teacher_is_kept_and_until_one_is_known_the_latest() -> None:
    teacher = BestTeacher()
    trainer, hook = hooked(teacher)
    history = []
    for batch, score in zip(minibatches(trainer, 4), (None, 5.0, 3.0, 7.0), strict=True):
        update(trainer, hook, batch)
        history.append(content(weights(trainer)))
        if score is not None:
            hook.report_returns({}, teacher_return=score, random_return=0.0)
        assert content(copied(teacher)) == history[{None: 0, 5.0: 1, 3.0: 1, 7.0: 3}[score]]
    assert hook.follows_returns


@pytest.mark.parametrize("imitation", [True, False])
def test_students_are_given_the_values_of_that_version(imitation: bool) -> None:
    """On the states, and on the next states where the TD target asks the teacher."""
    teacher, loss = LaggingTeacher(100), Watching(actor(8, seed=1), imitation=imitation)
    trainer, hook = hooked(teacher, loss)
    original = actor(seed=100)  # the trainer's teacher before it learned
    for batch in minibatches(trainer, 2):
        update(trainer, hook, batch)
    given = loss.batches[-1]
    expected = original(batch.select("observation"))["action_value"]
    torch.testing.assert_close(given["teacher", "action_value"], expected.detach())
    following = given.get(("next", "teacher", "action_value"), None)
    if imitation:
        torch.testing.assert_close(following, original(batch["next"].select("observation"))["action_value"].detach())
    else:
        assert following is None


@pytest.mark.parametrize("choice", CHOICES)
def test_a_restored_hook_goes_on_with_the_same_version(choice: str) -> None:
    """Restored before or after it is registered."""
    trainer, hook = hooked(CHOICES[choice]())
    update(trainer, hook, *minibatches(trainer, 1))
    hook.report_returns({}, teacher_return=1.0, random_return=0.0)
    state = hook.state_dict()
    for early in (True, False):
        other = RealTimeDistillTrainer(student_loss(seed=7), optimizer=FAST, teacher=CHOICES[choice]())
        if early:
            other.load_state_dict(state)
        other.register(cartpole_trainer(seed=5))
        if not early:
            other.load_state_dict(state)
        assert content(other.state_dict()["teacher"]) == content(state["teacher"])
        assert content(copied(other._copy)) == content(copied(hook._copy))


def test_a_version_of_a_teacher_without_action_values_is_refused() -> None:
    trainer = cartpole_trainer()
    trainer.loss_module.value_network.out_keys = ["action"]
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST, teacher=AverageTeacher())
    with pytest.raises(RuntimeError, match="teacher=AverageTeacher needs a trainer whose loss has a network that writ"):
        hook.register(trainer)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, 2.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"decay must be in \(0, 1\): got {decay}; 0.999 averages"):
        AverageTeacher(decay)


def test_other_wrong_versions_are_refused() -> None:
    for interval in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"every_updates must be an integer of at least 1: got {interval}; 1 is"):
            LaggingTeacher(interval)
    with pytest.raises(ValueError, match=r"teacher must be 'latest' or a TeacherCopy, such as AverageTeacher\(\): got"):
        RealTimeDistillTrainer(student_loss(), optimizer=FAST, teacher="newest")


def test_a_pure_student_that_asks_no_teacher_of_the_next_state_costs_one_pass() -> None:
    teacher = LaggingTeacher(100)
    trainer, hook = hooked(teacher, DistillationLoss(actor(8, seed=1), teacher_temperature=0.1))
    calls: list[int] = []
    forward, (batch,) = teacher.values, minibatches(trainer, 1)
    teacher.values = lambda tensordict: calls.append(1) or forward(tensordict)
    update(trainer, hook, batch)
    assert calls == [1]
