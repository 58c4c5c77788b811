"""The hook as an optimisation step."""

from __future__ import annotations

import copy

import pytest
from hook_parts import (
    FAST,
    base_trainer,
    cartpole_trainer,
    filled,
    fleet,
    minibatches,
    student_state,
    teacher_state,
    trained,
)
from torchrl.trainers import DefaultOptimizationStepper
from torchrl.trainers._execution import _Learner

from torchrl_rtpd.trainers.checks import DormancyCheck
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.stepper import RealTimeDistillStepper


def test_the_stepper_gives_the_same_students_as_the_hook_on_a_base_trainer() -> None:
    runs = []
    for stepper in (False, True):
        trainer, hook = base_trainer(fleet(3), stepper=stepper)
        trainer.train()
        runs.append((teacher_state(trainer), [student_state(hook, name) for name in fleet(3)], hook.updates))
        logged = trainer._log_dict["distill/small/kl_to_teacher"]
        runs[-1] += (pytest.approx([float(value) for value in logged], rel=1e-5),)
    assert runs[0][:3] == runs[1][:3]
    assert runs[0][3].expected == runs[1][3]
    assert runs[0][2] == 18


def test_the_stepper_gives_the_same_students_as_the_hook_on_a_dqn_trainer() -> None:
    """Set after construction, since DQNTrainer takes no stepper."""
    with_hook = cartpole_trainer()
    hook = trained(with_hook, fleet(3))
    expected = teacher_state(with_hook)
    with_stepper = cartpole_trainer()
    inner = RealTimeDistillTrainer(fleet(3), optimizer=FAST)
    with_stepper.optimization_stepper = RealTimeDistillStepper(inner)
    with_stepper.optimization_stepper.register(with_stepper)
    with_stepper.train()
    assert teacher_state(with_stepper) == expected
    for name in fleet(3):
        assert student_state(inner, name) == student_state(hook, name)


def test_the_stepper_returns_detached_metrics_the_same_at_every_update() -> None:
    """The trainer averages them over a batch and would stumble over one that appears on the way."""
    trainer = filled(cartpole_trainer())
    stepper = RealTimeDistillStepper(RealTimeDistillTrainer(fleet(2), optimizer=FAST, checks=[DormancyCheck(2)]))
    results = [stepper.step(trainer, batch) for batch in minibatches(trainer, 4)]
    assert len({frozenset(result.keys()) for result in results}) == 1
    assert {"loss", "grad_norm", "distill/small/dormant", "distill/pure/loss"} <= set(results[0].keys())
    assert not any(value.requires_grad for result in results for value in result.values())


def test_the_stepper_updates_the_priorities_once() -> None:
    """TorchRL leaves that to a stepper."""
    trainer, _ = base_trainer(fleet(1), stepper=True, prioritized=True)
    calls = []
    original = trainer.replay_buffer.update_tensordict_priority
    trainer.replay_buffer.update_tensordict_priority = lambda batch: (calls.append(1), original(batch))
    trainer.train()
    assert len(calls) == 18
    batch = trainer.replay_buffer.sample()
    assert len(set(batch["priority_weight"].tolist())) > 1

    class UpdatesItself(DefaultOptimizationStepper):
        updates_replay_priority = True

    stepper = RealTimeDistillStepper(RealTimeDistillTrainer(fleet(1), optimizer=FAST), UpdatesItself())
    stepper.step(trainer, batch)
    assert len(calls) == 18


def test_the_stepper_saves_and_restores_the_hook() -> None:
    """Also before its first step, where the students' target updaters are still to be built."""
    trainer = filled(cartpole_trainer())
    first, second = (RealTimeDistillStepper(RealTimeDistillTrainer(fleet(3), optimizer=FAST)) for _ in range(2))
    batches = minibatches(trainer, 6)
    for batch in batches[:3]:
        first.step(trainer, batch)
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    teacher = copy.deepcopy((trainer.loss_module.state_dict(), trainer.optimizer.state_dict()))
    for stepper in (first, second):
        trainer.loss_module.load_state_dict(teacher[0])
        trainer.optimizer.load_state_dict(copy.deepcopy(teacher[1]))
        for batch in batches[3:]:
            stepper.step(trainer, batch.clone())
    assert second.hook.updates == 6
    for name in fleet(3):
        assert student_state(second.hook, name) == student_state(first.hook, name)
    assert first.hook.target_updaters["small"].counter == 1  # 6 steps, copied at the fifth


def test_the_stepper_runs_on_what_a_remote_learner_is_made_of() -> None:
    """TorchRL's own learner of a Ray rank, here in this process, with a state that goes round."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer(fleet(2), optimizer=FAST)
    learner = _Learner(
        loss_module=trainer.loss_module,
        replay_buffer=trainer.replay_buffer,
        local_batch_size=8,
        optimizer=trainer.optimizer,
        optimization_stepper=RealTimeDistillStepper(hook),
        target_net_updater=trainer.target_net_updater,
        update_replay_priority=False,
    ).initialize()
    result = learner.step(4, round_id=1)
    assert hook.updates == 4
    assert result.metrics["distill/small/agreement"].shape == ()
    state = learner.state_dict()["optimization_stepper"]["hook"]
    assert state["updates"] == 4
