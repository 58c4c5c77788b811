"""The hook inside running TorchRL trainers: the teacher never notices, and students learn from its very minibatches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hook_parts import (
    FAST,
    Students,
    Watching,
    actor,
    atari_students,
    atari_trainer,
    cartpole_trainer,
    content,
    dead,
    filled,
    fleet,
    minibatches,
    student_loss,
    student_state,
    teacher_state,
    trained,
    update,
)
from tensordict import TensorDictBase
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_rtpd.envs import AtariVecEnv
from torchrl_rtpd.networks import make_actor, pixels
from torchrl_rtpd.networks.recycling import UnitRecycler
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss
from torchrl_rtpd.schedules import LinearSchedule
from torchrl_rtpd.trainers._torchrl import hooks_of
from torchrl_rtpd.trainers.checks import DormancyCheck, RecyclingCheck
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.teacher_copies import AverageTeacher


def test_a_minibatch_is_scaled_once_for_the_teacher_and_all_of_its_students(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tensors of pixels an update, states and next states, for a teacher and two students with targets."""
    scaled = []
    original = pixels._scaled
    monkeypatch.setattr(pixels, "_scaled", lambda stacks: scaled.append(stacks.shape) or original(stacks))
    spec = AtariVecEnv("pong", 1).action_spec
    students = {name: StudentDQNLoss(make_actor("net17", spec, seed=seed)) for seed, name in enumerate("ab")}
    hook = trained(atari_trainer(loss_class=TeacherDQNLoss), students, checks=[])
    assert hook.updates == 12
    assert sum(shape == (8, 4, 84, 84) for shape in scaled) == 2 * 12


@pytest.mark.parametrize("double_dqn", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_the_teacher_is_bit_identical_with_and_without_students(count: int, double_dqn: bool) -> None:
    """On CartPole with a stock buffer: parameters, targets, optimiser and random stream."""
    alone = cartpole_trainer(double_dqn=double_dqn)
    start = teacher_state(alone)
    trained(alone, None)
    without = teacher_state(alone)
    watched = cartpole_trainer(double_dqn=double_dqn)
    hook = trained(watched, fleet(count), clip_norm=10.0, checks=[DormancyCheck(5)])
    assert teacher_state(watched) == without
    assert without["updates"] == hook.updates == 18
    for part in ("loss", "network", "optimizer", "target", "random"):
        assert without[part] != start[part], part


@pytest.mark.parametrize("count", [1, 3])
def test_the_atari_teacher_is_bit_identical_with_and_without_students(count: int) -> None:
    """With our environment, over several games, and our frame storage, written more often than it holds."""
    alone = atari_trainer()
    trained(alone, None)
    without = teacher_state(alone)
    watched = atari_trainer()
    hook = trained(watched, atari_students(count), updates_per_step=2, checks=[DormancyCheck(5, warning=1.0)])
    assert teacher_state(watched) == without
    assert without["updates"] == hook.updates == 12
    assert watched.replay_buffer.write_count == 96


def test_a_students_gradient_reaches_neither_the_teacher_nor_another_student() -> None:
    """No parameter but the student's own ever receives a gradient."""
    trainer = filled(cartpole_trainer())
    teacher = trainer.loss_module.value_network
    losses = {name: student_loss(seed=seed, teacher_network=teacher) for seed, name in enumerate(("first", "second"))}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST)
    hook.register(trainer)
    received: list[str] = []
    for name, network in (("teacher", trainer.loss_module), *losses.items()):
        for parameter in network.parameters():
            parameter.register_hook(lambda gradient, name=name: received.append(name))
    (batch,) = minibatches(trainer, 1)
    hook.learners["first"].learn(batch)
    assert set(received) == {"first"}
    hook.step(batch)
    assert set(received) == {"first", "second"}
    assert all(parameter.grad is None for parameter in trainer.loss_module.parameters())


def test_students_see_the_very_minibatch_of_the_teacher_which_stays_as_it_is() -> None:
    """The same tensors, once an update; the hook adds nothing to the batch and changes nothing in it."""
    trainer = cartpole_trainer()
    loss = Watching(actor(8, seed=1))
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    seen: list[tuple[TensorDictBase, TensorDictBase]] = []
    trainer.register_op("post_optim_log", lambda batch: seen.append((batch, batch.clone())))
    hook.register(trainer)
    trainer.register_op("post_optim_log", lambda batch: seen.append((batch, batch.clone())))
    trainer.train()
    before, after = seen[::2], seen[1::2]
    assert len(before) == len(after) == len(loss.batches) == 18
    for (batch, old), (same, new), given in zip(before, after, loss.batches, strict=True):
        assert batch is same
        assert set(old.keys(True, True)) == set(new.keys(True, True))
        assert (old == new).all()
        for key in old.keys(True, True):
            assert given[key] is batch[key]


def test_each_student_ends_up_bit_identical_alone_and_in_a_fleet() -> None:
    together = trained(cartpole_trainer(), fleet(3), clip_norm=1.0)
    for name in fleet(3):
        alone = trained(cartpole_trainer(), {name: fleet(3)[name]}, clip_norm=1.0)
        assert student_state(alone, name) == student_state(together, name)


@pytest.mark.parametrize("updates_per_step", [1, 3])
def test_updates_are_counted_exactly(updates_per_step: int) -> None:
    """Six batches of 20 steps with 3 updates each, one of them in the warm-up: 15 minibatches."""
    trainer = cartpole_trainer(warmup_steps=40)
    hook = trained(trainer, fleet(2), updates_per_step=updates_per_step)
    assert trainer._optim_count == hook.updates == 15
    for optimizer in hook.optimizers.values():
        steps = {int(state["step"]) for state in optimizer.state.values()}
        assert steps == {15 * updates_per_step}
    assert hook.target_updaters["small"].counter == 15 * updates_per_step % 5  # copies at every fifth step
    assert list(hook.target_updaters) == ["small"]  # the other one has no target


def test_several_updates_a_step_equal_several_steps_on_one_minibatch() -> None:
    trainer = filled(cartpole_trainer(loss_class=TeacherDQNLoss))
    thrice, once = (
        RealTimeDistillTrainer({f"by{n}": student_loss()}, optimizer=FAST, updates_per_step=n) for n in (3, 1)
    )
    for hook in (thrice, once):
        hook.register(trainer, f"hook{hook.updates_per_step}")
    (batch,) = minibatches(trainer, 1)
    batch.set(("teacher", "action_value"), torch.randn(8, 2))
    batch.set(("next", "teacher", "action_value"), torch.randn(8, 2))
    thrice.step(batch)
    for _ in range(3):
        once.step(batch)
    assert student_state(thrice, "by3") == student_state(once, "by1")
    assert (thrice.updates, once.updates) == (1, 3)


def test_two_hooks_share_nothing() -> None:
    """Stepping one changes neither the other's students nor its counters nor its metrics."""
    trainer = filled(cartpole_trainer())
    students = {f"again {name}": loss for name, loss in fleet(3).items()}
    hooks = [RealTimeDistillTrainer(losses, optimizer=FAST) for losses in (fleet(3), students)]
    for name, hook in zip("ab", hooks, strict=True):
        hook.register(trainer, name)
    before = content(hooks[1].state_dict())
    update(trainer, hooks[0], *minibatches(trainer, 1))
    assert content(hooks[1].state_dict()) == before
    assert content(hooks[0].state_dict()) != before
    assert hooks[1].log() is None
    assert (hooks[0].updates, hooks[1].updates) == (1, 0)


@pytest.mark.parametrize("backend", ["ray"])
def test_the_ray_backend_is_refused_with_the_remedy(backend: str) -> None:
    trainer = cartpole_trainer()
    trainer.learner_backend = backend
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    with pytest.raises(RuntimeError, match=r"learner_backend='ray' .* pass RealTimeDistillStepper as the trainer's"):
        hook.register(trainer)


@pytest.mark.parametrize(
    ("students", "arguments", "error", "message"),
    [
        ({}, {}, ValueError, "at least one loss: got none"),
        ({"net": nn.Linear(2, 2)}, {}, TypeError, "student 'net' must be a DistillationLoss or .*: got Linear"),
        (fleet(2), {"optimizer": {"small": FAST}}, ValueError, r"every student, \['pure', 'small'\]: got \['small'\]"),
        (fleet(1), {"optimizer": {"small": FAST, "x": FAST}}, ValueError, r"\['small'\]: got \['small', 'x'\]"),
        (fleet(1), {"clip_norm": 0.0}, ValueError, r"clip_norm must be positive or None: got 0\.0; None"),
        (
            fleet(1),
            {"updates_per_step": 0},
            ValueError,
            "updates_per_step must be an integer of at least 1: got 0",
        ),
        (
            fleet(1),
            {"metrics_every_updates": 0},
            ValueError,
            "metrics_every_updates must be an integer of at least 1",
        ),
        (
            {"raw": student_loss(reduction="none")},
            {},
            ValueError,
            "the loss of student 'raw' must be reduced: got reduction='none'; use 'mean'",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_construction(
    students: Students, arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RealTimeDistillTrainer(students, **{"optimizer": FAST, **arguments})


def test_a_single_loss_is_called_student() -> None:
    assert (
        repr(RealTimeDistillTrainer(student_loss(), optimizer=FAST)) == "RealTimeDistillTrainer(students=['student'])"
    )


@pytest.mark.parametrize("option", ["schedules", "checks"])
def test_the_teacher_is_bit_identical_with_options(option: str) -> None:
    """Neither schedules nor recycling touch the teacher or its random stream."""
    options = {
        "schedules": {"distill_coeff": LinearSchedule(1.0, 0.0, end_updates=12)},
        "checks": [RecyclingCheck(UnitRecycler(every_updates=1))],
    }
    states = []
    for students in (None, {"a": dead(student_loss(), 4)}):
        trainer = cartpole_trainer()
        trained(trainer, students, **({option: options[option]} if students else {}))
        states.append(teacher_state(trainer))
    assert states[0] == states[1]


# Networks and names that must not be shared


@pytest.mark.parametrize("name", ["teacher", "", "a/b", 7])
def test_a_name_that_others_bear_or_that_parts_metrics_is_refused(name: Any) -> None:
    """``distill/teacher/drift`` is the teacher's, and a slash separates student and metric."""
    with pytest.raises(ValueError, match=f"a student.* got .*{name}" if name != "teacher" else "be called 'teacher'"):
        RealTimeDistillTrainer({name: student_loss()}, optimizer=FAST)


def test_a_network_that_is_teacher_and_student_at_once_is_refused() -> None:
    """Also behind a wrapper of its own; nothing is attached to the trainer."""
    trainer = filled(cartpole_trainer())
    teacher = trainer.loss_module.value_network
    wrapped = QValueActor(teacher.module[0].module, in_keys=["observation"], spec=Categorical(2))
    for network in (teacher, wrapped):
        hook = RealTimeDistillTrainer({"same": StudentDQNLoss(network)}, optimizer=FAST)
        with pytest.raises(ValueError, match=r"the teacher and student 'same' train the same parameter, of shape \[16"):
            hook.register(trainer)
    assert not any(isinstance(part, RealTimeDistillTrainer) for part in hooks_of(trainer).values())
    assert not trainer._post_optim_log_ops
    assert not teacher._forward_hooks


@pytest.mark.parametrize("shared", ["network", "encoder"])
def test_two_losses_of_one_student_are_refused(shared: str) -> None:
    """And two students with a common part."""
    first = actor(8, seed=1)
    if shared == "network":
        second = first
    else:
        layers = first.module[0].module
        network = nn.Sequential(layers[0], nn.ReLU(), nn.Linear(8, 2))
        second = QValueActor(network, in_keys=["observation"], spec=Categorical(2))
    losses = {"kl": DistillationLoss(first), "paper": StudentDQNLoss(second)}
    with pytest.raises(
        ValueError, match=r"student 'kl' and student 'paper' train the same parameter, of shape \[8, 4\]"
    ):
        RealTimeDistillTrainer(losses, optimizer=FAST)


def test_a_frozen_part_may_be_shared() -> None:
    encoder = nn.Linear(4, 8).requires_grad_(False)
    networks = [nn.Sequential(encoder, nn.ReLU(), nn.Linear(8, 2)) for _ in range(2)]
    actors = [QValueActor(network, in_keys=["observation"], spec=Categorical(2)) for network in networks]
    losses = {name: DistillationLoss(network) for name, network in zip("ab", actors, strict=True)}
    before = encoder.weight.clone()
    hook = trained(cartpole_trainer(), losses, checks=[])
    assert hook.updates == 18
    assert torch.equal(encoder.weight, before)


def test_a_student_in_two_hooks_of_a_trainer_is_refused() -> None:
    trainer, network = cartpole_trainer(), actor(8, seed=1)
    RealTimeDistillTrainer({"a": DistillationLoss(network)}, optimizer=FAST).register(trainer)
    second = RealTimeDistillTrainer({"b": DistillationLoss(network)}, optimizer=FAST)
    with pytest.raises(ValueError, match=r"student 'b' and student 'a' of hook 1 before it train the same parameter"):
        second.register(trainer, "second")


def test_a_name_that_a_trainer_knows_already_is_refused_before_anything_is_attached() -> None:
    trainer = cartpole_trainer()
    hooks = [RealTimeDistillTrainer(student_loss(seed=seed), optimizer=FAST) for seed in (1, 2)]
    hooks[0].register(trainer)
    with pytest.raises(RuntimeError, match="has a part called 'real_time_distill' already; register under another"):
        hooks[1].register(trainer)
    trainer.train()
    assert (hooks[0].updates, hooks[1].updates) == (18, 0)


def test_a_student_of_the_teachers_own_size_learns_under_a_name_of_its_own() -> None:
    """The control of a study: the same architecture, weights of its own."""
    trainer = cartpole_trainer()
    loss = StudentDQNLoss(actor(16, seed=7))
    before = content(dict(loss.state_dict()))
    hook = trained(trainer, {"same_size": loss, "small": student_loss(4)})
    assert hook.updates == 18
    assert content(dict(loss.state_dict())) != before
    assert {"distill/same_size/agreement", "distill/small/agreement"} <= hook.metrics.keys()


def test_students_of_one_name_in_two_hooks_of_a_trainer_are_refused() -> None:
    """Their metrics would mix; the name of a single loss is one as well."""
    trainer = cartpole_trainer()
    RealTimeDistillTrainer(student_loss(seed=1), optimizer=FAST).register(trainer, "first")
    second = RealTimeDistillTrainer(student_loss(seed=2), optimizer=FAST)
    with pytest.raises(ValueError, match=r"must differ in name: got \['student'\] in two hooks"):
        second.register(trainer, "second")


@pytest.mark.parametrize("part", [DormancyCheck(), AverageTeacher()])
def test_a_part_with_a_state_serves_one_hook(part: Any) -> None:
    """A copy of the teacher would be averaged twice an update."""
    trainer = cartpole_trainer()
    shared: dict[str, Any] = {"teacher": part} if isinstance(part, AverageTeacher) else {"checks": [part]}
    RealTimeDistillTrainer({"a": student_loss(seed=1)}, optimizer=FAST, **shared).register(trainer, "first")
    second = RealTimeDistillTrainer({"b": student_loss(seed=2)}, optimizer=FAST, **shared)
    with pytest.raises(ValueError, match=f"a {type(part).__name__} serves one hook: got it in two"):
        second.register(trainer, "second")


def test_settings_made_after_the_hook_was_attached_are_followed_as_well() -> None:
    """Up to the first minibatch."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer({"tiny": student_loss()}, optimizer=FAST)
    hook.register(trainer)
    trainer.loss_module.make_value_estimator(gamma=0.5)
    update(trainer, hook, minibatches(trainer, 1)[0])
    assert hook.students["tiny"].value_estimator.gamma.item() == 0.5
