"""A hook that is saved and restored."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hook_parts import (
    FAST,
    atari_students,
    atari_trainer,
    cartpole_trainer,
    content,
    fleet,
    minibatches,
    student_state,
    teacher_state,
    trained,
    update,
)
from torchrl.checkpoint import Checkpoint

from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer


def test_a_hook_restored_in_the_middle_of_a_run_goes_on_identically() -> None:
    """Students, targets and their counters, automatic temperatures, optimisers; before or after registering."""
    trainer = trained_trainer = cartpole_trainer()
    first = trained(trained_trainer, fleet(3))
    state = copy.deepcopy(first.state_dict())
    batches = minibatches(trainer, 7)
    teacher = trainer.loss_module.value_network
    for batch in batches:
        batch.set(("teacher", "action_value"), teacher(batch.select("observation"))["action_value"].detach())
        following = batch["next"].select("observation")
        batch.set(("next", "teacher", "action_value"), teacher(following)["action_value"].detach())
    restored = []
    for early in (False, True):
        others = fleet(3)
        for loss in others.values():  # other weights, so that only the state can make them equal
            loss.student_network_params.apply_(lambda parameter: parameter.mul_(0.5))
        hook = RealTimeDistillTrainer(others, optimizer=FAST)
        if early:
            hook.load_state_dict(state)
        hook.register(cartpole_trainer(loss_class=TeacherDQNLoss))
        if not early:
            hook.load_state_dict(state)
        restored.append(hook)
    for hook in (first, *restored):
        for batch in batches:
            hook.step(batch)
    for hook in restored:
        assert hook.updates == first.updates == 18 + 7
        for name in fleet(3):
            assert student_state(hook, name) == student_state(first, name)
    assert student_state(first, "small")["students"] != content(state["students"]["small"])


def test_a_state_of_other_students_is_refused() -> None:
    state = RealTimeDistillTrainer(fleet(2), optimizer=FAST).state_dict()
    with pytest.raises(ValueError, match=r"those of this hook, \['small'\]: got \['pure', 'small'\]; build the hook"):
        RealTimeDistillTrainer(fleet(1), optimizer=FAST).load_state_dict(state)


def test_torchrls_checkpoint_holds_the_students(tmp_path: Path) -> None:
    """Saved through the trainer, loaded through another one with other weights; both go on identically."""
    arguments = {"save_trainer_file": tmp_path / "run", "save_trainer_interval": 10_000}
    first = cartpole_trainer(**arguments, checkpoint=Checkpoint())
    first_hook = trained(first, fleet(3))  # train() saves at its end
    assert Checkpoint.is_checkpoint(tmp_path / "run")
    second = cartpole_trainer(seed=1, checkpoint=Checkpoint())
    second_hook = RealTimeDistillTrainer(fleet(3), optimizer=FAST)
    second_hook.register(second)
    second.load_from_file(tmp_path / "run")
    assert second_hook.updates == 18
    assert second._optim_count == 18
    batches = minibatches(first, 6)
    for trainer, hook in ((first, first_hook), (second, second_hook)):
        for batch in batches:
            update(trainer, hook, batch.clone())
        trainer.collector.shutdown()
    states = [teacher_state(trainer) for trainer in (first, second)]
    assert states[0] == states[1]
    for name in fleet(3):
        assert student_state(first_hook, name) == student_state(second_hook, name)


def test_torchrls_checkpoint_holds_students_beside_our_frame_storage(tmp_path: Path) -> None:
    """One call saves teacher, students and frames of an Atari run."""
    first = atari_trainer()
    first.checkpoint, first.save_trainer_file = Checkpoint(), tmp_path / "run"
    first_hook = trained(first, atari_students(2), checks=[])
    second = atari_trainer()
    second_hook = RealTimeDistillTrainer(atari_students(2), optimizer=FAST, checks=[])
    second_hook.register(second)
    second.load_from_file(tmp_path / "run")
    second.collector.shutdown()
    for name in atari_students(2):
        assert student_state(second_hook, name) == student_state(first_hook, name)
    assert (second.replay_buffer.storage[:] == first.replay_buffer.storage[:]).all()
    assert len(second.replay_buffer) == 64
