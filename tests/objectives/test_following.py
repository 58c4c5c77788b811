"""A student's loss takes over what the teacher's loss knows, unless its user said otherwise."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import DistributionalQValueActor, QValueActor, QValueModule
from torchrl.objectives import DistributionalDQNLoss, DQNLoss, PPOLoss, SoftUpdate, ValueEstimators

from torchrl_rtpd.objectives import ContinuousDistillationLoss, DistillationLoss, StudentDQNLoss, TeacherDQNLoss


def actor(**kwargs: Any) -> QValueActor:
    return QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3), **kwargs)


def teacher_loss(kind: type = DQNLoss, gamma: float | None = 0.9, **keys: Any) -> DQNLoss:
    loss = kind(actor(), action_space="categorical", loss_function="smooth_l1")
    if gamma is not None:
        loss.make_value_estimator(gamma=gamma)
    loss.set_keys(**keys)
    return loss


def gamma_of(loss: StudentDQNLoss) -> float:
    return round(loss.value_estimator.gamma.item(), 6)


@pytest.mark.parametrize("kind", [DQNLoss, TeacherDQNLoss])
def test_discount_keys_and_loss_function_are_taken_over(kind: type) -> None:
    """The example of a teacher with a discount of 0.9 that ends at lost lives."""
    loss = StudentDQNLoss(actor())
    assert loss.follow(teacher_loss(kind, terminated="end_of_life", reward="clipped")) == {}
    assert (gamma_of(loss), loss.tensor_keys.terminated, loss.loss_function) == (0.9, "end_of_life", "smooth_l1")
    assert ("next", "end_of_life") in loss.in_keys and ("next", "clipped") in loss.in_keys
    assert loss.value_estimator.tensor_keys.terminated == "end_of_life"


def test_the_target_is_that_of_the_followed_settings() -> None:
    """Reward 1, discount 0.9, next value 10: 10.0; with ``end_of_life`` true 1.0. Its own defaults would give 10.9."""
    student = QValueActor(nn.Linear(1, 2, bias=False), in_keys=["observation"], spec=Categorical(2))
    nn.init.zeros_(student.module[0].module.weight)
    loss = StudentDQNLoss(student, imitation=False, distill_coeff=0.0)
    SoftUpdate(loss, tau=0.1)
    loss.follow(teacher_loss(terminated="end_of_life", reward="clipped"))
    loss.target_student_network_params.apply_(lambda tensor: tensor.fill_(10.0))
    for ended, target in ((False, 10.0), (True, 1.0)):
        flag = torch.tensor([[ended]])
        batch = TensorDict(
            {
                "observation": torch.ones(1, 1),
                ("teacher", "action_value"): torch.zeros(1, 2),
                "action": torch.zeros(1, dtype=torch.long),
                "next": {"observation": torch.ones(1, 1), "clipped": torch.ones(1, 1), "end_of_life": flag},
            },
            [1],
        )
        assert loss(batch)["loss_td"].item() == pytest.approx(target - 0.5)  # smooth L1 beyond 1


@pytest.mark.parametrize(
    ("tell", "own"),
    [
        (lambda loss: loss.set_keys(terminated="game_over"), {"terminated": ("game_over", "end_of_life")}),
        (lambda loss: loss.set_keys(terminated="terminated"), {"terminated": ("terminated", "end_of_life")}),
        (lambda loss: loss.make_value_estimator(gamma=0.5), {"gamma": (0.5, pytest.approx(0.9))}),
    ],
)
def test_settings_made_by_the_user_are_kept_and_named(tell: Any, own: dict[str, Any]) -> None:
    """Also where the user said what the default is."""
    loss = StudentDQNLoss(actor())
    tell(loss)
    assert loss.follow(teacher_loss(terminated="end_of_life")) == own
    assert loss.loss_function == "smooth_l1"  # the others are followed all the same


def test_a_loss_function_given_at_construction_is_kept_and_named() -> None:
    loss = StudentDQNLoss(actor(), loss_function="l1")
    assert loss.follow(teacher_loss()) == {"loss_function": ("l1", "smooth_l1")}
    assert loss.loss_function == "l1"


def test_settings_that_agree_are_not_named() -> None:
    loss = StudentDQNLoss(actor(), loss_function="smooth_l1")
    loss.set_keys(reward="clipped")
    loss.make_value_estimator(gamma=0.9)
    assert loss.follow(teacher_loss(reward="clipped")) == {}


def test_a_key_given_back_its_default_follows_again() -> None:
    loss = StudentDQNLoss(actor())
    loss.set_keys(reward="mine")
    loss.set_keys(reward=None)
    assert loss.follow(teacher_loss(reward="clipped")) == {}
    assert loss.tensor_keys.reward == "clipped"


def test_following_twice_follows_the_second_teacher() -> None:
    """What was taken over is not taken for the user's word."""
    loss = StudentDQNLoss(actor())
    loss.follow(teacher_loss(reward="first"))
    assert loss.follow(teacher_loss(gamma=0.5, reward="second")) == {}
    assert (loss.tensor_keys.reward, gamma_of(loss)) == ("second", 0.5)


def test_priorities_stay_with_the_loss_that_writes_them() -> None:
    """The teacher's ``td_error`` must not be overwritten by a student."""
    loss = StudentDQNLoss(actor())
    loss.follow(teacher_loss(priority="error", priority_weight="weight"))
    assert (loss.tensor_keys.priority, loss.tensor_keys.priority_weight) == (None, "weight")


def test_values_are_read_where_the_teachers_loss_writes_them() -> None:
    loss = DistillationLoss(actor())
    assert loss.follow(teacher_loss(TeacherDQNLoss, teacher_action_value=("expert", "q"))) == {}
    assert loss.tensor_keys.teacher_action_value == ("expert", "q")


def test_another_place_to_read_the_teacher_from_is_no_difference_of_the_data() -> None:
    loss = DistillationLoss(actor())
    loss.set_keys(teacher_action_value=("recorded", "q"))
    assert loss.follow(teacher_loss(TeacherDQNLoss)) == {}
    assert loss.tensor_keys.teacher_action_value == ("recorded", "q")


def test_the_action_mask_of_the_teachers_network_is_read() -> None:
    loss = DistillationLoss(actor())
    masked = DQNLoss(actor(action_mask_key="legal"), action_space="categorical")
    assert loss.follow(masked) == {}
    assert loss.tensor_keys.action_mask == "legal"


@pytest.mark.parametrize("value_type", [ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda])
def test_every_estimator_tells_its_discount(value_type: ValueEstimators) -> None:
    teacher = teacher_loss(gamma=None)
    teacher.make_value_estimator(value_type, gamma=0.7)
    loss = StudentDQNLoss(actor())
    loss.follow(teacher)
    assert gamma_of(loss) == 0.7


def test_averaged_rewards_are_followed() -> None:
    teacher = teacher_loss(gamma=None)
    teacher.make_value_estimator(gamma=0.8, average_rewards=True)
    loss = StudentDQNLoss(actor())
    loss.make_value_estimator(gamma=0.8)
    loss.follow(teacher)
    assert loss.value_estimator.average_rewards and gamma_of(loss) == 0.8


def test_an_estimator_that_is_not_made_yet_is_not_made_here() -> None:
    """Its state must not change between a run and its checkpoint; its discount will be TorchRL's default, 0.99."""
    teacher = teacher_loss(gamma=None)
    loss = StudentDQNLoss(actor())
    loss.make_value_estimator(gamma=0.5)
    assert loss.follow(teacher) == {"gamma": (0.5, pytest.approx(0.99))}
    assert not any("_value_estimator" in name for name in teacher.state_dict())


def test_a_distributional_teacher_tells_its_discount() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(-1, (2, 3)))
    support = torch.tensor([0.0, 1.0])
    distributional = DistributionalQValueActor(network, in_keys=["observation"], spec=Categorical(3), support=support)
    loss = StudentDQNLoss(actor())
    loss.follow(DistributionalDQNLoss(distributional, gamma=0.7))
    assert gamma_of(loss) == 0.7


def test_a_loss_whose_advantages_come_from_elsewhere_tells_no_discount() -> None:
    """PPO's discount lies in the module that estimates its advantages."""
    policy = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["logits"])

    sampler = ProbabilisticTensorDictModule(
        in_keys=["logits"], out_keys=["action"], distribution_class=torch.distributions.Categorical
    )
    critic = TensorDictModule(nn.Linear(4, 1), in_keys=["observation"], out_keys=["state_value"])
    loss = StudentDQNLoss(actor())
    loss.make_value_estimator(gamma=0.5)
    assert loss.follow(PPOLoss(ProbabilisticTensorDictSequential(policy, sampler), critic)) == {}


def test_a_continuous_loss_follows_the_weights_alone() -> None:
    policy = TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["action"])
    loss = ContinuousDistillationLoss(policy, divergence="mse")
    before = vars(copy.deepcopy(loss.tensor_keys))
    assert loss.follow(teacher_loss(priority_weight="weight", reward="clipped")) == {}
    assert vars(loss.tensor_keys) == {**before, "priority_weight": "weight"}


def test_a_copied_loss_remembers_what_its_user_said() -> None:
    loss = StudentDQNLoss(actor())
    loss.set_keys(reward="mine")
    assert copy.deepcopy(loss).follow(teacher_loss()) == {"reward": ("mine", "reward")}


def test_a_loss_that_agrees_is_left_as_it_is() -> None:
    """The very estimator, so that runs that were set right give the same numbers as before."""
    loss = StudentDQNLoss(actor(), loss_function="smooth_l1")
    loss.make_value_estimator(gamma=0.9)
    estimator = loss.value_estimator
    loss.follow(teacher_loss())
    assert loss.value_estimator is estimator


@pytest.mark.parametrize("kind", [DistillationLoss, partial(StudentDQNLoss, imitation=False)])
def test_metrics_can_be_left_out_and_change_no_loss(kind: Any) -> None:
    loss = kind(actor())
    if isinstance(loss, StudentDQNLoss):
        SoftUpdate(loss, tau=0.1)
    flag = torch.zeros(5, 1, dtype=torch.bool)
    following = {"observation": torch.ones(5, 4), "reward": torch.ones(5, 1), "terminated": flag}
    batch = TensorDict({"observation": torch.ones(5, 4), "action": torch.zeros(5, dtype=torch.long)}, [5])
    batch.update(TensorDict({("teacher", "action_value"): torch.eye(5, 3), "next": following}, [5]))
    everything, loss_alone = loss.evaluate(batch), loss.evaluate(batch, metrics=False)
    assert set(loss_alone.keys()) == {key for key in everything.keys() if key.startswith("loss")}
    assert set(everything.keys()) == set(loss.out_keys)
    for key, value in loss_alone.items():
        assert torch.equal(value, everything[key])
    assert torch.equal(loss(batch)["agreement"], everything["agreement"])


def test_evaluate_runs_forward_hooks_and_keeps_selected_keys() -> None:
    loss = DistillationLoss(actor())
    loss.select_out_keys("loss_distill")
    batch = TensorDict({"observation": torch.ones(5, 4), ("teacher", "action_value"): torch.eye(5, 3)}, [5])
    assert list(loss.evaluate(batch).keys()) == ["loss_distill"]


class Doubled(DistillationLoss):
    """A user's loss with TorchRL's own signature of forward."""

    def forward(self, tensordict: TensorDict) -> TensorDict:
        losses = super().forward(tensordict)
        return losses.set("loss_distill", 2 * losses["loss_distill"])


class DoubledAgain(Doubled):
    pass


@pytest.mark.parametrize("kind", [Doubled, DoubledAgain])
def test_a_forward_of_a_users_own_is_called_and_always_measures(kind: type) -> None:
    network = actor()
    batch = TensorDict({"observation": torch.ones(5, 4), ("teacher", "action_value"): torch.eye(5, 3)}, [5])
    expected = 2 * DistillationLoss(network).evaluate(batch)["loss_distill"]
    losses = kind(network).evaluate(batch, metrics=False)
    assert losses["loss_distill"].item() == pytest.approx(expected.item()) and "agreement" in losses.keys()


def teacher_of_two_choices() -> TensorDictSequential:
    values = TensorDictModule(nn.Linear(4, 8), in_keys=["observation"], out_keys=["action_value"])
    return TensorDictSequential(values, QValueModule(action_space="mult_one_hot", var_nums=[5, 3]))


@pytest.mark.parametrize("kind", [DistillationLoss, StudentDQNLoss])
def test_the_choices_of_an_action_are_taken_over(kind: type) -> None:
    """A student whose second group of values is shifted is the same policy, though it declares no choices itself."""
    teacher = teacher_of_two_choices()
    student = QValueActor(copy.deepcopy(teacher[0].module), in_keys=["observation"], spec=Categorical(8))
    student.module[0].module.bias.data[5:] += 4.0
    loss = kind(student)
    loss.follow(DQNLoss(teacher, action_space="mult_one_hot", delay_value=True))
    assert loss.var_nums(torch.zeros(2, 8)) == (5, 3)


def test_other_choices_than_the_teachers_are_a_difference() -> None:
    teacher = teacher_of_two_choices()
    loss = DistillationLoss(QValueActor(nn.Linear(4, 8), in_keys=["observation"], spec=Categorical(8)), var_nums=[4, 4])
    assert loss.follow(DQNLoss(teacher, action_space="mult_one_hot")) == {"var_nums": ((4, 4), (5, 3))}
