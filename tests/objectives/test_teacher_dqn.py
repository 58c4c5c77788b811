"""The teacher's own loss: TorchRL's, bit for bit, and its values in the minibatch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hook_parts import (
    actor,
    atari_students,
    atari_trainer,
    cartpole_trainer,
    content,
    fleet,
    student_loss,
    student_state,
    teacher_state,
    trained,
)
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical, OneHot
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate, ValueEstimators

from torchrl_rtpd.networks.towers import Tower, make_actor
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss
from torchrl_rtpd.trainers.checks import DormancyCheck
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.teacher_copies import LaggingTeacher

WRITTEN = ("teacher", "action_value")


def minibatch(size: int = 16, *, steps: bool = False, weights: bool = False) -> TensorDict:
    """Random transitions of 4 features and 2 actions, a few of them the last of their game."""
    torch.manual_seed(0)
    ends = torch.rand(size, 1) < 0.3
    following = {"observation": torch.randn(size, 4), "reward": torch.randn(size, 1), "done": ends, "terminated": ends}
    batch = TensorDict(
        {"observation": torch.randn(size, 4), "action": torch.randint(2, (size,)), "next": following}, [size]
    )
    if steps:
        batch["steps_to_next_obs"] = torch.randint(1, 4, (size, 1))
    if weights:
        batch["priority_weight"] = torch.rand(size)
    return batch


def loss_of(loss_class: type[DQNLoss], network: QValueActor | None = None, **options: Any) -> DQNLoss:
    """A loss whose target network differs from its network, with its updater."""
    options.setdefault("action_space", "categorical")
    loss = loss_class(actor(seed=1) if network is None else network, **options)
    loss.make_value_estimator(gamma=0.9)
    updater = SoftUpdate(loss, tau=0.5) if loss.delay_value else None
    for parameter in loss.parameters():
        parameter.data.mul_(1.5)
    if updater is not None:
        updater.step()
    return loss


def learned(loss: DQNLoss, batch: TensorDict) -> Any:
    """What a batch gives: the loss, its gradients and the priorities, bit for bit."""
    batch = batch.clone()
    value = loss(batch)["loss"]
    value.sum().backward()
    gradients = [parameter.grad for parameter in loss.parameters()]
    assert any(gradient.any() for gradient in gradients)
    return content([value, gradients, batch["td_error"]])


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "huber": {"loss_function": "smooth_l1"},
    "double": {"double_dqn": True},
    "no_target_network": {"delay_value": False},
    "each": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "unweighted": {"use_prioritized_weights": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("entries", [{}, {"steps": True, "weights": True}], ids=["one_step", "n_step_weighted"])
def test_loss_gradient_and_priorities_are_those_of_torchrl_bit_for_bit(
    entries: dict[str, bool], options: dict[str, Any]
) -> None:
    batch = minibatch(**entries)
    found, wanted = (learned(loss_of(kind, **options), batch) for kind in (TeacherDQNLoss, DQNLoss))
    assert found == wanted


def test_they_are_for_frames_and_a_convolutional_network() -> None:
    batch = minibatch(4).exclude("observation", ("next", "observation"))
    for part in (batch, batch["next"]):
        part["pixels"] = torch.randint(256, (4, 4, 84, 84), dtype=torch.uint8)
    teachers = [make_actor(Tower((4, 4, 4), 16), Categorical(2), seed=1) for _ in range(2)]
    found, wanted = (
        learned(loss_of(kind, teacher), batch)
        for kind, teacher in zip((TeacherDQNLoss, DQNLoss), teachers, strict=True)
    )
    assert found == wanted


def test_they_are_with_rewards_less_their_average() -> None:
    results = []
    for kind in (TeacherDQNLoss, DQNLoss):
        loss = loss_of(kind)
        loss.make_value_estimator(gamma=0.9, average_rewards=True)
        results.append(learned(loss, minibatch()))
    assert results[0] == results[1]


def test_actions_may_have_a_dimension_of_their_own() -> None:
    batch = minibatch()
    wide = batch.clone()
    wide["action"] = wide["action"].unsqueeze(-1)
    loss = loss_of(TeacherDQNLoss)
    assert torch.equal(loss(wide)["loss"], loss(batch)["loss"])


def test_values_of_the_network_and_of_its_target_network_are_written_detached() -> None:
    loss, batch = loss_of(TeacherDQNLoss), minibatch()
    loss(batch)
    with loss.value_network_params.to_module(loss.value_network):
        assert torch.equal(batch[WRITTEN], loss.value_network(batch.clone())["action_value"])
    with loss.target_value_network_params.to_module(loss.value_network):
        assert torch.equal(batch["next"][WRITTEN], loss.value_network(batch["next"].clone())["action_value"])
    assert not batch[WRITTEN].requires_grad


def test_the_key_of_the_values_can_be_set() -> None:
    loss, batch = loss_of(TeacherDQNLoss), minibatch()
    loss.set_keys(teacher_action_value="values")
    loss(batch)
    assert batch["values"].shape == batch["next", "values"].shape == (16, 2)
    assert "teacher" not in batch.keys()


def test_it_is_a_loss_module_as_any() -> None:
    """States of DQNLoss load; it can be copied and pickled, and takes tensors by name."""
    loss, batch = loss_of(TeacherDQNLoss), minibatch()
    stock = loss_of(DQNLoss)
    assert loss.state_dict().keys() == stock.state_dict().keys()
    assert set(loss.in_keys) == set(stock.in_keys) and loss.out_keys == stock.out_keys
    loss.load_state_dict(stock.state_dict())
    value = loss(batch.clone())["loss"]
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(batch.clone())["loss"], value)
    names = {"_".join(key) if isinstance(key, tuple) else key: batch[key] for key in loss.in_keys}
    assert torch.equal(loss(**names), value)


def one_hot(batch: TensorDict) -> TensorDict:
    batch["action"] = nn.functional.one_hot(batch["action"], 2)
    return batch


def masked_actor() -> QValueActor:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return QValueActor(network, in_keys=["observation"], spec=Categorical(2), action_mask_key="action_mask")


def with_mask(batch: TensorDict) -> TensorDict:
    for part in (batch, batch["next"]):
        part["action_mask"] = torch.ones(len(batch), 2, dtype=torch.bool)
    return batch


def one_hot_actor() -> QValueActor:
    return QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=OneHot(2))


NEEDS_MORE: dict[str, tuple[Callable[[], QValueActor], str, Callable[[TensorDict], TensorDict]]] = {
    "one_hot": (one_hot_actor, "one-hot", one_hot),
    "mask": (masked_actor, "categorical", with_mask),
    "dropout": (lambda: actor(seed=1, layer=lambda: nn.Dropout(0.5)), "categorical", lambda batch: batch),
}


@pytest.mark.parametrize("case", NEEDS_MORE.values(), ids=NEEDS_MORE)
def test_what_needs_more_runs_as_torchrls_loss_and_writes_no_values(case: Any) -> None:
    make, action_space, change = case
    network, batch = make(), change(minibatch())
    results = []
    for kind in (TeacherDQNLoss, DQNLoss):
        loss = loss_of(kind, copy.deepcopy(network), action_space=action_space)
        torch.manual_seed(1)
        own = batch.clone()
        results.append(content(loss(own)["loss"]))
        assert "teacher" not in own.keys()
    assert results[0] == results[1]


def test_another_value_estimator_runs_as_torchrls_loss() -> None:
    loss, batch = loss_of(TeacherDQNLoss), minibatch()
    assert loss.shares_values
    loss.make_value_estimator(ValueEstimators.TD1, gamma=0.9)
    assert not loss.shares_values
    loss(batch.unsqueeze(0))
    assert "teacher" not in batch.keys()


@pytest.mark.parametrize("key", ["action", ("next", "reward"), ("next", "terminated"), "observation"])
def test_a_missing_entry_is_named(key: Any) -> None:
    with pytest.raises(KeyError, match=rf"the teacher.* reads \[.*{key[-1] if isinstance(key, tuple) else key}'"):
        loss_of(TeacherDQNLoss)(minibatch().exclude(key))


# In a trainer


@pytest.mark.parametrize("double_dqn", [False, True])
def test_teacher_and_students_learn_the_same_from_either_loss(double_dqn: bool) -> None:
    """Values that are overheard and values that are written are the same bits."""
    states = []
    for loss_class in (DQNLoss, TeacherDQNLoss):
        trainer = cartpole_trainer(loss_class=loss_class, double_dqn=double_dqn)
        hook = trained(trainer, fleet(3))
        assert hook is not None
        states.append([teacher_state(trainer), *(student_state(hook, name) for name in hook.students)])
    assert states[0] == states[1]


def test_they_do_on_atari_games() -> None:
    states = []
    for loss_class in (DQNLoss, TeacherDQNLoss):
        trainer = atari_trainer(loss_class=loss_class)
        hook = trained(trainer, atari_students(2), checks=[DormancyCheck(warning=1.0)])
        assert hook is not None
        states.append([teacher_state(trainer), *(student_state(hook, name) for name in hook.students)])
    assert states[0] == states[1]


def test_the_hook_leaves_its_network_alone() -> None:
    """There is nothing to overhear, and a network with forward hooks would have to run whole."""
    trainer = cartpole_trainer(loss_class=TeacherDQNLoss)
    RealTimeDistillTrainer(student_loss(), optimizer=torch.optim.Adam).register(trainer)
    assert not trainer.loss_module.value_network._forward_hooks


def test_a_copy_of_the_teacher_is_taught_where_one_was_asked_for() -> None:
    """Not the values of the latest teacher, which its loss writes."""
    states = []
    for loss_class in (DQNLoss, TeacherDQNLoss):
        trainer = cartpole_trainer(loss_class=loss_class)
        hook = trained(trainer, {"student": student_loss()}, teacher=LaggingTeacher(7))
        assert hook is not None
        states.append(student_state(hook, "student"))
    assert states[0] == states[1]
