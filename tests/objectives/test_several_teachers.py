"""Losses of a student with several teachers: one a state, or a mixture."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from continuous_parts import actor as gaussian_actor
from continuous_parts import deterministic, observations, reference_kl
from objective_parts import actor, gradients, independent_forward_kl, make, transitions, with_teacher_values
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import Delta, IndependentNormal, QValueActor, TanhDelta, TanhNormal
from torchrl.objectives import DQNLoss, SoftUpdate

from torchrl_rtpd.networks import TeacherByKey, TeacherMixture
from torchrl_rtpd.objectives import (
    ContinuousDistillationLoss,
    DistillationLoss,
    StudentDQNLoss,
    TeacherDQNLoss,
)
from torchrl_rtpd.schedules import LinearSchedule, RunState, apply_schedules
from torchrl_rtpd.trainers import Kickstarting, RealTimeDistillTrainer

IDS = [1, 0, 0, 1, 1]


def batch(ids: list[int] = IDS, **entries: Any) -> TensorDict:
    """Random transitions with the ids of both of their states, as environments of one game each write them."""
    data = transitions(len(ids))
    data["teacher_id"] = torch.tensor(ids)
    data["next", "teacher_id"] = torch.tensor(ids)
    return data.update(TensorDict(entries, [len(ids)]))


def values_by_loop(networks: list[nn.Module], data: TensorDictBase) -> torch.Tensor:
    """Values of each state by a network of its own, one by one."""
    return torch.stack(
        [networks[int(i)](TensorDict({"observation": seen}, []))["action_value"] for i, seen in
         zip(data["teacher_id"], data["observation"], strict=True)]
    ).detach()  # fmt: skip


# By key


def test_the_divergence_is_to_the_teacher_of_each_state() -> None:
    """Against torch.distributions, on values from a loop."""
    teachers, student, data = [actor(), actor()], actor(), batch()
    loss = DistillationLoss(student, TeacherByKey(teachers), teacher_temperature=0.5, reduction="none")
    expected = independent_forward_kl(
        values_by_loop(teachers, data), student(data.copy())["action_value"].detach(), (0.5, 1.0)
    )
    torch.testing.assert_close(loss(data)["loss_distill"].detach(), expected)


@pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
def test_teachers_by_key_are_as_good_as_their_stored_values(loss_class: type[DistillationLoss]) -> None:
    """Loss and gradient; the TD target's next action is that of the state's own teacher as well."""
    teachers, student, data = [actor(), actor()], actor(), batch()
    stored = data.copy()
    stored["teacher", "action_value"] = values_by_loop(teachers, data)
    stored["next", "teacher", "action_value"] = values_by_loop(teachers, data["next"])
    found = []
    for teacher_network, samples in ((TeacherByKey(teachers), data), (None, stored)):
        torch.manual_seed(0)
        loss = make(loss_class, copy.deepcopy(student), teacher_network)
        out = loss(samples)
        sum(value for name, value in out.items() if name.startswith("loss")).backward()
        found.append((out.detach(), gradients(loss)))
    torch.testing.assert_close(dict(found[0][0].items()), dict(found[1][0].items()))
    torch.testing.assert_close(found[0][1], found[1][1])


def test_frozen_teachers_stay_theirs() -> None:
    """Not among the parameters or the state, and a copy of the loss asks the same ones."""
    teachers = TeacherByKey([actor(), actor()])
    loss = DistillationLoss(actor(), teachers)
    assert len(list(loss.parameters())) == 2
    assert not any("teachers" in name for name in loss.state_dict())
    assert copy.deepcopy(loss).teacher_network is teachers
    loss(batch())["loss_distill"].backward()
    assert all(parameter.grad is None for parameter in teachers.parameters())
    assert DistillationLoss(actor(), teachers).in_keys == ["observation", "teacher_id"]


def test_a_batch_without_ids_is_refused_by_name() -> None:
    loss = DistillationLoss(actor(), TeacherByKey([actor(), actor()]))
    with pytest.raises(KeyError, match=r"the teacher reads \['teacher_id'\], which the batch lacks"):
        loss(transitions())
    with pytest.raises(ValueError, match=r"'teacher_id' must be the id of a teacher, 0 to 1: got 7"):
        loss(batch([0, 7, 0, 1, 1]))


@pytest.mark.parametrize("loss_class", [StudentDQNLoss, TeacherDQNLoss, DQNLoss])
def test_next_states_without_ids_are_refused_as_such(loss_class: type) -> None:
    """TorchRL's own loss shows a network the next state alone, so that it names both."""
    teachers, data = TeacherByKey([actor(), actor()]), batch()
    del data["next", "teacher_id"]
    if loss_class is StudentDQNLoss:
        loss = loss_class(actor(), teachers)
        SoftUpdate(loss, tau=0.1)
    else:
        loss = loss_class(QValueActor(teachers, spec=Categorical(3)), action_space="categorical", delay_value=False)
    place = "batch, or its next," if loss_class is DQNLoss else "batch's next"
    with pytest.raises(KeyError, match=rf"reads \['teacher_id'\], which the {place} lacks"):
        loss(data)


def test_teachers_that_choose_no_action_are_no_network_of_a_dqn_loss() -> None:
    """The loss, or the hook that is attached to TorchRL's."""
    teachers = TeacherByKey([actor(), actor()])
    message = (
        r"chooses an action: got TeacherByKey, which writes \['action_value'\]; wrap it, QValueActor\(TeacherByKey"
    )
    with pytest.raises(ValueError, match=message):
        TeacherDQNLoss(teachers, action_space="categorical")
    trainer = SimpleNamespace(loss_module=DQNLoss(teachers, action_space="categorical"), optimizer=None)
    hook = RealTimeDistillTrainer(DistillationLoss(actor()), optimizer=partial(torch.optim.Adam))
    with pytest.raises(ValueError, match=message):
        hook.attach(trainer)
    with pytest.raises(ValueError, match=message):
        Kickstarting(DistillationLoss(teachers, actor(), student_temperature=None)).attach(trainer.loss_module)


def test_actions_that_a_game_has_not_are_masked_for_teacher_and_student() -> None:
    """The third action of the second game: the divergence is that over the two others."""
    teachers, student, data = [actor(), actor()], actor(), batch([1, 1, 1])
    mask = torch.tensor([True, True, False]).expand(3, 3)
    loss = DistillationLoss(student, TeacherByKey(teachers), teacher_temperature=1.0, reduction="none")
    expected = independent_forward_kl(
        values_by_loop(teachers, data)[:, :2], student(data.copy())["action_value"].detach()[:, :2]
    )
    torch.testing.assert_close(loss(data.set("action_mask", mask))["loss_distill"].detach(), expected)


# Live


def value_loss(loss_class: type[DQNLoss], teachers: list[QValueActor], **kwargs: Any) -> DQNLoss:
    network = QValueActor(TeacherByKey(teachers), spec=Categorical(3))
    loss = loss_class(network, action_space="categorical", delay_value=True, **kwargs)
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.1)
    return loss


@pytest.mark.parametrize("double_dqn", [False, True])
@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_a_live_teacher_has_the_gradient_of_its_own_states_over_the_whole_batch(
    loss_class: type[DQNLoss], double_dqn: bool
) -> None:
    """The same loss on a plain network and its own states, times their share, 2 and 3 of 5."""
    teachers = [actor(), actor()]
    loss, data = value_loss(loss_class, teachers, double_dqn=double_dqn), batch()
    loss(data)["loss"].backward()
    for number, teacher in enumerate(teachers):
        own = data["teacher_id"] == number
        alone = copy.deepcopy(teacher)
        single = loss_class(alone, action_space="categorical", delay_value=True, double_dqn=double_dqn)
        single.make_value_estimator(gamma=0.9)
        SoftUpdate(single, tau=0.1)
        (single(batch()[own])["loss"] * own.float().mean()).backward()
        torch.testing.assert_close(
            [parameter.grad for parameter in teacher.parameters()],
            [parameter.grad for parameter in alone.parameters()],
        )


@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_a_batch_of_one_game_leaves_the_other_teacher_untouched(loss_class: type[DQNLoss]) -> None:
    teachers = [actor(), actor()]
    loss = value_loss(loss_class, teachers)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for ids in (IDS, [1] * 5, [1] * 5):
        before = [copy.deepcopy(list(teacher.parameters())) for teacher in teachers]
        loss(batch(ids))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = [
            any(not torch.equal(a, b) for a, b in zip(old, teacher.parameters(), strict=True))
            for old, teacher in zip(before, teachers, strict=True)
        ]
        assert moved == [0 in ids, True]


def test_live_teachers_leave_their_values_for_students() -> None:
    """Those of each state's own, and of the target network at the next state."""
    teachers, data = [actor(), actor()], batch()
    loss = value_loss(TeacherDQNLoss, teachers)
    assert loss.shares_values
    loss(data)
    torch.testing.assert_close(data["teacher", "action_value"], values_by_loop(teachers, data))
    torch.testing.assert_close(data["next", "teacher", "action_value"], values_by_loop(teachers, data["next"]))


def test_targets_never_take_an_action_that_the_game_has_not() -> None:
    """Discount 0.9 and no reward: the value of the best allowed action of the next state, which is never the third."""
    network = QValueActor(TeacherByKey([actor(), actor()]), spec=Categorical(3), action_mask_key="action_mask")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
            if parameter.ndim == 1:
                parameter.copy_(torch.tensor([1.0, 2.0, 50.0]))
    data = batch([1, 1])
    for states in (data, data["next"]):
        states["action_mask"] = torch.tensor([[True, True, False], [True, True, True]])
    data["action"] = torch.zeros(2, dtype=torch.long)
    data["next", "reward"] = torch.zeros(2, 1)
    loss = DQNLoss(network, action_space="categorical", delay_value=True, loss_function="l1", reduction="none")
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.1)
    torch.testing.assert_close(loss(data)["loss"].detach(), torch.tensor([0.8, 44.0]))  # 0.9 * 2 - 1, 0.9 * 50 - 1


# Continuous


@pytest.mark.parametrize("kind", [IndependentNormal, TanhNormal])
def test_continuous_teachers_are_asked_by_key(kind: type) -> None:
    """KL of torch's Gaussians, state by state; nothing is drawn."""
    teachers, student = [gaussian_actor(kind), gaussian_actor(kind)], gaussian_actor(kind)
    data = observations(4)
    data["teacher_id"] = torch.tensor([1, 0, 0, 1])
    loss = ContinuousDistillationLoss(student, TeacherByKey(teachers), reduction="none")
    before = torch.get_rng_state()
    found = loss(data)["loss_distill"].detach()
    assert torch.equal(torch.get_rng_state(), before)
    both = torch.stack([reference_kl(teacher, student, observations(4)) for teacher in teachers]).detach()
    torch.testing.assert_close(found, both.gather(0, data["teacher_id"][None])[0])


@pytest.mark.parametrize("kind", [None, Delta, TanhDelta])
def test_deterministic_teachers_are_asked_by_key(kind: type | None) -> None:
    """The squared distance of the actions, by each teacher alone."""
    teachers, student = [deterministic(kind), deterministic(kind)], deterministic(kind)
    data = observations(4)
    data["teacher_id"] = torch.tensor([1, 0, 0, 1])
    loss = ContinuousDistillationLoss(student, TeacherByKey(teachers), divergence="mse", reduction="none")
    actions = torch.stack([network(observations(4))["action"] for network in (*teachers, student)]).detach()
    own = torch.where(data["teacher_id"][:, None] == 1, actions[1], actions[0])
    torch.testing.assert_close(loss(data)["loss_distill"].detach(), (own - actions[2]).square().sum(-1))


# A mixture


@pytest.mark.parametrize("by_data", [False, True])
def test_the_gradient_of_a_mixture_is_that_of_the_weighted_sum_of_divergences(by_data: bool) -> None:
    """Forward KL at temperature 0.3 against the losses of each teacher by itself, with weights 0.7, 0.2 and 0.1."""
    teachers, student, data = [actor(), actor(), actor()], actor(), transitions(6)
    weights = torch.tensor([0.7, 0.2, 0.1]).expand(6, 3)
    temperatures = {"teacher_temperature": 0.3, "student_temperature": 0.5}
    mixture = TeacherMixture(teachers, temperature=0.3, weights="weights" if by_data else weights[0])
    if by_data:
        weights = torch.rand(6, 3).softmax(-1)
        data["weights"] = weights
    together = DistillationLoss(copy.deepcopy(student), mixture, **temperatures)
    together(data)["loss_distill"].backward()
    apart = DistillationLoss(student, **temperatures, reduction="none")
    total = torch.zeros(())
    for number, teacher in enumerate(teachers):
        samples = data.copy()
        samples["teacher", "action_value"] = teacher(data.copy())["action_value"].detach()
        total = total + (apart(samples)["loss_distill"] * weights[:, number]).mean()
    total.backward()
    assert together(data)["loss_distill"] < total
    torch.testing.assert_close(gradients(together), gradients(apart))


def test_a_mixture_is_the_target_policy_itself() -> None:
    """Entropy and divergence by torch.distributions, on the mean of two softmaxes over allowed actions."""
    teachers, student, data = [actor(), actor()], actor(), transitions(4)
    mask = torch.tensor([True, False, True]).expand(4, 3)
    data["action_mask"] = mask
    mixture = TeacherMixture(teachers, temperature=0.3, action_mask_key="action_mask")
    loss = DistillationLoss(student, mixture, teacher_temperature=0.3, reduction="none")
    seen = data.select("observation")
    policies = [(teacher(seen.copy())["action_value"][:, ::2] / 0.3).softmax(-1) for teacher in teachers]
    target = torch.distributions.Categorical(probs=sum(policies).detach() / 2)
    own = torch.distributions.Categorical(logits=student(seen.copy())["action_value"][:, ::2].detach())
    out = loss(data)
    torch.testing.assert_close(out["loss_distill"].detach(), torch.distributions.kl_divergence(target, own))
    torch.testing.assert_close(out["teacher_entropy"], target.entropy())


@pytest.mark.parametrize("temperature", [0.01, "auto"])
@pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
def test_a_mixture_must_be_softened_once(loss_class: type[DistillationLoss], temperature: Any) -> None:
    mixture = TeacherMixture([actor(), actor()], temperature=0.3)
    with pytest.raises(ValueError, match=rf"must be that of the TeacherMixture, 0\.3: got {temperature!r}; pass both"):
        loss_class(actor(), mixture, teacher_temperature=temperature)
    loss_class(actor(), mixture, teacher_temperature=0.3)


def test_a_schedule_cannot_soften_a_mixture_a_second_time() -> None:
    mixture = TeacherMixture([actor(), actor()], temperature=0.3)
    loss = DistillationLoss(actor(), mixture, teacher_temperature=0.3)
    schedules = {"teacher_temperature": LinearSchedule(0.3, 0.1, end_updates=2)}
    for begin in (
        lambda: apply_schedules(loss, schedules, RunState(0)),
        lambda: RealTimeDistillTrainer(loss, optimizer=partial(torch.optim.Adam), schedules=schedules),
    ):
        with pytest.raises(ValueError, match="stay that of the TeacherMixture: got a schedule of it; leave it out"):
            begin()
    with pytest.raises(ValueError, match=r"the TeacherMixture, 0\.3: got 0\.2"):
        loss.teacher_temperature = 0.2
    apply_schedules(loss, {"student_temperature": LinearSchedule(0.3, 0.1, end_updates=2)}, RunState(1))
    assert loss.student_temperature.item() == pytest.approx(0.2)


def test_a_mixture_is_asked_although_the_batch_holds_the_trainers_teacher() -> None:
    """With the key set to what it writes; without, the stored values of another teacher are meant."""
    mixture = TeacherMixture([actor(), actor()], temperature=0.3)
    data = with_teacher_values(transitions())
    student = actor()
    losses = [DistillationLoss(copy.deepcopy(student), mixture, teacher_temperature=0.3) for _ in range(2)]
    losses[0].set_keys(teacher_action_value="logits")
    found = [loss(samples)["loss_distill"] for loss, samples in zip(losses, (data, data), strict=True)]
    expected = [losses[1](samples)["loss_distill"] for samples in (transitions(), data)]
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found[0], found[1])
