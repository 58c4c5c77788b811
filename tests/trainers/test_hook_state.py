"""A hook that is saved and restored."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
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
from torch import nn
from torch.optim import SGD
from torchrl.checkpoint import Checkpoint
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import HardUpdate

from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss
from torchrl_rtpd.schedules import GapSchedule
from torchrl_rtpd.trainers.checks import DormancyCheck, DriftCheck
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


# A state as version 0.1.0 saved it, before checks were parts of their own: the words are its own.
GROUP = {
    "lr": 0.5,
    "momentum": 0.5,
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": False,
    "maximize": False,
    "foreach": None,
    "differentiable": False,
    "fused": None,
    "params": [0, 1],
}
OLD_STATE = {
    "students": {
        "paper": {
            "temperature_floor": torch.tensor(0.1),
            "teacher_temperature": torch.tensor(0.10796),
            "td_coeff": torch.tensor(1.0),
            "distill_coeff": torch.tensor(0.5),
            "student_network_params.module.0.module.weight": torch.tensor([[2.44404292], [0.04095697]]),
            "student_network_params.module.0.module.bias": torch.tensor([2.44404292, 0.04095697]),
            "target_student_network_params.module.0.module.weight": torch.tensor([[0.5], [0.5]]),
            "target_student_network_params.module.0.module.bias": torch.tensor([0.5, 0.5]),
            "_value_estimator.gamma": torch.tensor(0.99),
        },
        "pure": {
            "teacher_temperature": torch.tensor(0.1),
            "student_temperature": torch.tensor(1.0),
            "student_network_params.module.0.module.weight": torch.tensor([[0.7594229], [-0.2594229]]),
            "student_network_params.module.0.module.bias": torch.tensor([0.7594229, -0.2594229]),
        },
    },
    "optimizers": {
        "paper": {
            "state": {
                0: {"momentum_buffer": torch.tensor([[1.90896559], [-2.89896488]])},
                1: {"momentum_buffer": torch.tensor([1.90896559, -2.89896488])},
            },
            "param_groups": [GROUP],
        },
        "pure": {
            "state": {
                0: {"momentum_buffer": torch.tensor([[-0.51889116], [0.51889116]])},
                1: {"momentum_buffer": torch.tensor([-0.51889116, 0.51889116])},
            },
            "param_groups": [GROUP],
        },
    },
    "target_updaters": {"paper": {"initialized": True, "counter": 2}},
    "schedules": {"paper": {"distill_coeff": {"weight": 0.5, "changed_updates": 1}}},
    "returns": {"teacher": 2.0, "random": 0.0, "students": {"paper": 1.0}},
    "teacher": {},
    "updates": 2,
    "measured": {
        "dormant": {"paper": 0.25},
        "drift": {"paper/agreement_on_teacher_states": 1.0, "pure/agreement_on_teacher_states": 1.0},
        "warned": ["paper"],
    },
}


def linear() -> QValueActor:
    return QValueActor(nn.Linear(1, 2), in_keys=["observation"], spec=Categorical(2))


@pytest.mark.parametrize("early", [True, False])
def test_a_state_that_an_earlier_version_saved_is_restored_to_the_last_bit(early: bool) -> None:
    """Restored before or after the hook is attached: what it saves is what was saved."""
    losses = {
        "paper": StudentDQNLoss(linear(), teacher_temperature="auto"),
        "pure": DistillationLoss(linear(), teacher_temperature=0.1),
    }
    hook = RealTimeDistillTrainer(
        losses,
        optimizer=partial(SGD, lr=0.5, momentum=0.5),
        target_updater=partial(HardUpdate, value_network_update_interval=3),
        schedules={"paper": {"distill_coeff": GapSchedule()}},
        checks=[DormancyCheck(), DriftCheck(1)],
    )
    saved = copy.deepcopy(OLD_STATE)
    trainer: Any = SimpleNamespace(loss_module=nn.Module())
    if early:
        hook.load_state_dict(saved)
    hook.attach(trainer)
    if not early:
        hook.load_state_dict(saved)
    found = hook.state_dict()
    assert found.keys() == OLD_STATE.keys()
    for part, value in OLD_STATE.items():
        own = {name: dict(state) for name, state in found[part].items()} if part == "students" else found[part]
        if part == "schedules":
            own = {name: state for name, state in own.items() if state}
        assert content(own) == content(value), part
    assert content(saved) == content(OLD_STATE)


def test_a_state_of_before_there_were_measurements_is_restored() -> None:
    old = {name: value for name, value in OLD_STATE.items() if name != "measured"}
    hook = RealTimeDistillTrainer(
        {"paper": StudentDQNLoss(linear(), teacher_temperature="auto"), "pure": DistillationLoss(linear())},
        optimizer=partial(SGD, lr=0.5, momentum=0.5),
    )
    hook.load_state_dict(copy.deepcopy(old))
    assert hook.updates == 2
    assert hook.state_dict()["measured"] == {"dormant": None, "warned": []}
