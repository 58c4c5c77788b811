"""Actions of several choices are distilled as such: side by side, in dimensions of their own, of several agents."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.nn import TensorDictSequential as Sequence
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence
from torch.distributions import Categorical as Distribution
from torchrl.data import (
    Binary,
    Categorical,
    Composite,
    LazyTensorStorage,
    MultiCategorical,
    MultiOneHot,
    OneHot,
    PrioritizedSampler,
    TensorDictReplayBuffer,
)
from torchrl.modules import QValueModule
from torchrl.objectives import DQNLoss, SoftUpdate

from torchrl_rtpd.networks.choices import declared_actions, declared_var_nums
from torchrl_rtpd.objectives import DistillationLoss, StudentDQNLoss, TeacherDQNLoss
from torchrl_rtpd.objectives.discrete import DIVERGENCES

VAR_NUMS = [5, 3]


class Table(nn.Module):
    """Values that are what is observed, moved by a parameter for each action."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift.clone())

    def forward(self, observation: Tensor) -> Tensor:
        return observation + self.shift


def table(shift: Tensor | None = None, key: Any = "action_value", in_key: Any = "observation") -> TensorDictModule:
    return TensorDictModule(Table(torch.zeros(8) if shift is None else shift), in_keys=[in_key], out_keys=[key])


def two_choices(shift: Tensor | None = None, var_nums: Any = VAR_NUMS, **kwargs: Any) -> Sequence:
    """An actor over choices of 5 and 3 actions, as TorchRL's DQN trains it."""
    return Sequence(table(shift), QValueModule(action_space="mult_one_hot", var_nums=var_nums, **kwargs))


def second_choice_moved() -> Tensor:
    return torch.cat([torch.zeros(5), torch.full((3,), 4.0)])


def states(size: int = 6, seed: int = 0) -> TensorDict:
    """Values of each state are its observation."""
    values = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))
    return TensorDict({"observation": values, ("teacher", "action_value"): values.clone()}, [size])


def transitions(size: int = 6, seed: int = 0, one_hot: bool = False) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    choices = [torch.randint(num, (size,), generator=generator) for num in VAR_NUMS]
    action = torch.stack(choices, -1)
    if one_hot:
        action = torch.cat([nn.functional.one_hot(c, num) for c, num in zip(choices, VAR_NUMS, strict=True)], -1)
    following = states(size, seed + 1)
    following.update({"reward": torch.randn(size, 1, generator=generator)})
    following.update(dict.fromkeys(("done", "terminated"), (torch.arange(size) % 3 == 2).unsqueeze(-1)))
    return states(size, seed).update({"action": action, "next": following})


class TestSideBySide:
    """Values of several choices in one row."""

    @pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
    def test_a_choice_moved_as_a_whole_is_the_same_policy(self, divergence: str) -> None:
        """The second group is shifted by 4: loss 0, agreement 1, regret 0."""
        loss = DistillationLoss(two_choices(second_choice_moved()), two_choices(), divergence=divergence)
        for temperature in (0.01, 1.0):
            loss.teacher_temperature = loss.student_temperature = temperature
            losses = loss(states().exclude("teacher"))
            assert losses["loss_distill"].item() == pytest.approx(0.0, abs=1e-5)
            assert (losses["agreement"].item(), losses["teacher_regret"].item()) == (1.0, 0.0)

    def test_the_divergence_is_the_sum_over_the_choices(self) -> None:
        """Against torch.distributions, one choice at a time; entropies likewise."""
        student_shift = torch.randn(8, generator=torch.Generator().manual_seed(3))
        loss = DistillationLoss(two_choices(student_shift), teacher_temperature=0.5, student_temperature=0.5)
        batch = states()
        teacher, student = batch["observation"] / 0.5, (batch["observation"] + student_shift) / 0.5
        policies = [[Distribution(logits=part) for part in values.split(VAR_NUMS, -1)] for values in (teacher, student)]
        expected = sum(kl_divergence(*pair) for pair in zip(*policies, strict=True))
        losses = loss(batch)
        torch.testing.assert_close(losses["loss_distill"], expected.mean())
        for role, policy in zip(("teacher", "student"), policies, strict=True):
            entropy = sum(part.entropy() for part in policy).mean()
            torch.testing.assert_close(losses[f"{role}_entropy"], entropy)

    def test_actions_agree_if_all_choices_do(self) -> None:
        """The first choice agrees everywhere, the second nowhere."""
        loss = DistillationLoss(two_choices())
        batch = states()
        first, second = batch["observation"].split(VAR_NUMS, -1)
        batch["teacher", "action_value"] = torch.cat([first, -second], -1)
        assert loss(batch)["agreement"].item() == 0.0

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_every_divergence_has_one_number_a_sample(self, loss_class: type, divergence: str) -> None:
        loss = loss_class(two_choices(second_choice_moved()), divergence=divergence, reduction="none")
        if loss_class is StudentDQNLoss:
            SoftUpdate(loss, tau=0.1)
        losses = loss(transitions())
        assert all(value.shape == (6,) for value in losses.values())
        assert all(value.isfinite().all() for value in losses.values())

    def test_the_automatic_temperature_is_the_mean_spread_of_the_choices(self) -> None:
        """2 and 1 are 1.5, of which a hundredth is added to 99 hundredths of 0.1; the level of a choice is nothing."""
        values = torch.tensor([[2.0, -2.0, 11.0, 9.0]])
        batch = TensorDict({"observation": values, ("teacher", "action_value"): values}, [1])
        loss = DistillationLoss(table(torch.zeros(4)), teacher_temperature="auto", var_nums=[2, 2])
        loss(batch)
        assert loss.teacher_temperature.item() == pytest.approx(0.99 * 0.1 + 0.01 * 1.5)

    def test_masks_forbid_within_each_choice(self) -> None:
        """The best action of each choice is forbidden to both; what is left is compared."""
        loss = DistillationLoss(two_choices(second_choice_moved()), teacher_temperature=1.0)
        batch = states()
        best = torch.cat([part == part.amax(-1, keepdim=True) for part in batch["observation"].split(VAR_NUMS, -1)], -1)
        batch["teacher", "action_value"] = batch["observation"] + 100.0 * best  # would dominate if it took part
        batch["action_mask"] = ~best
        losses = loss(batch)
        assert losses["loss_distill"].item() == pytest.approx(0.0, abs=1e-6)
        assert losses["agreement"].item() == 1.0

    def test_priorities_are_those_of_whole_actions_and_taken_by_the_buffer(self) -> None:
        batch = transitions()
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(6), sampler=PrioritizedSampler(6, 0.9, 0.5), batch_size=4, priority_key="priority"
        )
        buffer.extend(batch)
        loss = DistillationLoss(two_choices(torch.randn(8, generator=torch.Generator().manual_seed(3))))
        loss.set_keys(priority="priority")
        sample = buffer.sample()
        loss(sample)
        assert sample["priority"].shape == (4, 1)
        buffer.update_tensordict_priority(sample)


class TestWhereTheChoicesComeFrom:
    """Of the networks, or of the user."""

    @pytest.mark.parametrize(
        ("declare", "var_nums"),
        [
            (lambda net: Sequence(net, QValueModule(action_space="mult_one_hot", var_nums=[5, 3])), (5, 3)),
            (lambda net: Sequence(net, QValueModule(action_space="mult_one_hot", var_nums=4)), 4),
            (lambda net: with_spec(net, MultiOneHot([5, 3])), (5, 3)),
            (lambda net: with_spec(net, MultiCategorical([5, 3])), (5, 3)),
            (lambda net: with_spec(net, MultiCategorical([5, 3], shape=(7, 2))), (5, 3)),
            (lambda net: with_spec(net, Composite(action=MultiOneHot([5, 3]))), (5, 3)),
            (lambda net: with_spec(net, Composite(robot=Composite(action=MultiCategorical([4, 4])))), (4, 4)),
            (lambda net: with_spec(net, Categorical(8)), None),
            (lambda net: with_spec(net, OneHot(8)), None),
            (lambda net: with_spec(net, Composite(action=None)), None),
            (lambda net: net, None),
        ],
    )
    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_either_network_may_declare_them(self, role: str, declare: Any, var_nums: Any) -> None:
        networks = {"student": table(second_choice_moved()), "teacher": table()}
        networks[role] = declare(networks[role])
        assert declared_var_nums(networks[role]) == var_nums
        loss = DistillationLoss(networks["student"], networks["teacher"], teacher_temperature=1.0)
        kl = loss(states().exclude("teacher"))["loss_distill"].item()
        assert (kl < 1e-5) == (var_nums == (5, 3))

    def test_the_user_may_say_it_for_plain_modules(self) -> None:
        loss = DistillationLoss(Table(second_choice_moved()), var_nums=[5, 3], teacher_temperature=1.0)
        assert loss(states())["loss_distill"].item() == pytest.approx(0.0, abs=1e-5)

    def test_networks_that_disagree_are_refused(self) -> None:
        with pytest.raises(ValueError, match=re.escape("disagree on the choices of an action: (4, 4) and (5, 3)")):
            DistillationLoss(two_choices(), two_choices(var_nums=[4, 4]))

    @pytest.mark.parametrize("declared", [4, [4, 4]])
    @pytest.mark.parametrize("given", [None, 4, [4, 4]])
    def test_one_number_for_all_choices_is_that_of_each(self, declared: Any, given: Any) -> None:
        """As TorchRL's QValueModule takes it, beside a network that names each, and from the user."""
        shift = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0])
        loss = DistillationLoss(two_choices(shift, [4, 4]), two_choices(var_nums=declared), var_nums=given)
        each = DistillationLoss(two_choices(shift, [4, 4]), two_choices(var_nums=[4, 4]))
        batch = states().exclude("teacher")
        assert loss.var_nums(torch.zeros(1, 8)) == (4, 4)
        assert loss(batch)["loss_distill"].item() == each(batch)["loss_distill"].item() > 0

    @pytest.mark.parametrize("numbers", [(4, 2), ([5, 3], 4), (4, [2] * 4)])
    def test_one_number_beside_others_is_refused(self, numbers: Any) -> None:
        with pytest.raises(ValueError, match="disagree on the choices of an action"):
            DistillationLoss(*(two_choices(var_nums=each) for each in numbers))

    @pytest.mark.parametrize(
        ("var_nums", "message"),
        [
            (0, "var_nums must be an integer of at least 1: got 0; the actions of each choice"),
            ([], "one a choice: got none"),
            ([5, 0], "var_nums[1] must be an integer of at least 1: got 0"),
            ([-1, 9], "var_nums[0] must be an integer of at least 1: got -1"),
            ([5.0, 3.0], "var_nums[0] must be an integer of at least 1: got 5.0"),
        ],
    )
    def test_numbers_of_actions_must_be_positive(self, var_nums: Any, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            DistillationLoss(table(), var_nums=var_nums)

    def test_choices_that_do_not_add_up_to_the_values_are_refused_at_a_call(self) -> None:
        with pytest.raises(ValueError, match=re.escape("got var_nums=[5, 4], in all 9, for 8 values")):
            DistillationLoss(table(), var_nums=[5, 4])(states())

    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_yes_or_no_choices_are_refused(self, role: str) -> None:
        """One value each says how probable a yes is, over which no softmax goes."""
        sampler = ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=Bernoulli)
        for network in (
            with_spec(table(), Binary(8)),
            ProbabilisticTensorDictSequential(table(key="logits"), sampler),
        ):
            networks = {"student": table(), "teacher": table(), role: network}
            with pytest.raises(ValueError, match=r"yes-or-no choices .* var_nums="):
                DistillationLoss(networks["student"], networks["teacher"])

    def test_a_single_choice_counts_its_actions(self) -> None:
        assert declared_actions(with_spec(table(), Composite(action=OneHot(8)))) == 8
        assert declared_actions(table()) is None


def with_spec(network: nn.Module, spec: Any) -> nn.Module:
    network.spec = spec
    return network


class TestTargets:
    """Values of choices add up, as in TorchRL's DQN."""

    @pytest.mark.parametrize("one_hot", [True, False])
    @pytest.mark.parametrize("loss_function", ["l1", "l2", "smooth_l1"])
    def test_without_imitation_the_error_is_torchrls(self, one_hot: bool, loss_function: str) -> None:
        shift = torch.randn(8, generator=torch.Generator().manual_seed(4))
        stock = DQNLoss(two_choices(shift), action_space="mult_one_hot", loss_function=loss_function, delay_value=True)
        stock.make_value_estimator(gamma=0.9)
        SoftUpdate(stock, tau=0.1)
        loss = StudentDQNLoss(two_choices(shift), imitation=False, loss_function=loss_function)
        loss.make_value_estimator(gamma=0.9)
        SoftUpdate(loss, tau=0.1)
        expected = stock(transitions(one_hot=True))["loss"]
        torch.testing.assert_close(loss(transitions(one_hot=one_hot))["loss_td"], expected)

    def test_with_imitation_the_teacher_chooses_each_choice(self) -> None:
        """The student's values 1 .. 8 at the teacher's actions 2 of 5 and 0 of 3: 3 + 6."""
        student = torch.arange(1.0, 9.0)
        batch = TensorDict(
            {
                "observation": torch.zeros(1, 8),
                "action": torch.tensor([[0, 2]]),
                ("teacher", "action_value"): torch.zeros(1, 8),
                "next": {
                    "observation": torch.zeros(1, 8),
                    ("teacher", "action_value"): torch.tensor([[0.0, 0, 9, 0, 0, 9, 0, 0]]),
                    "reward": torch.tensor([[1.0]]),
                    "terminated": torch.tensor([[False]]),
                },
            },
            [1],
        )
        loss = StudentDQNLoss(two_choices(student), distill_coeff=0.0, loss_function="l1")
        loss.make_value_estimator(gamma=0.5)
        SoftUpdate(loss, tau=0.1)
        # chosen: 1 + 8; target: 1 + 0.5 * (3 + 6)
        assert loss(batch)["loss_td"].item() == pytest.approx(9.0 - 5.5)

    @pytest.mark.parametrize(
        ("action", "shown"),
        [(torch.zeros(6, dtype=torch.long), "[6]"), (torch.zeros(6, 3, dtype=torch.long), "[6, 3]")],
    )
    def test_actions_of_another_number_of_choices_are_refused(self, action: Tensor, shown: str) -> None:
        loss = StudentDQNLoss(two_choices(), imitation=False)
        SoftUpdate(loss, tau=0.1)
        message = re.escape(f"categorical integers [6, 2] or one-hot [6, 8]: 'action' is torch.int64 {shown}")
        with pytest.raises(ValueError, match=message):
            loss(transitions().set("action", action))

    def test_the_teachers_own_loss_leaves_several_choices_to_torchrl(self) -> None:
        """Loss as ``DQNLoss``, bit for bit; nothing is shared, so that a hook captures it."""
        losses = []
        for kind in (DQNLoss, TeacherDQNLoss):
            loss = kind(two_choices(), action_space="mult_one_hot")
            loss.make_value_estimator(gamma=0.9)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no target updater
                losses.append(loss(transitions(one_hot=True))["loss"])
        assert torch.equal(*losses) and not loss.shares_values


class TestAgents:
    """Several agents, or choices of one size, in a dimension between the batch and the actions."""

    KEY = ("agents", "action_value")

    def agents(self, shift: Tensor | None = None) -> TensorDictModule:
        return table(shift, key=self.KEY, in_key=("agents", "observation"))

    def batch(self, seed: int = 0, **kwargs: Any) -> TensorDict:
        """Five samples of three agents."""
        values = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(seed))
        return TensorDict({"agents": TensorDict({"observation": values}, [5, 3]), **kwargs}, [5])

    def test_a_sample_has_the_sum_over_its_agents(self) -> None:
        """KL and entropies are sums, agreement is that of all agents, and a priority is one number a sample."""
        shift = torch.randn(8, generator=torch.Generator().manual_seed(3))
        loss = DistillationLoss(self.agents(shift), self.agents(), teacher_temperature=1.0, reduction="none")
        loss.set_keys(priority="priority")
        batch = self.batch()
        values = batch["agents", "observation"]
        teacher, student = Distribution(logits=values), Distribution(logits=values + shift)
        losses = loss(batch)
        torch.testing.assert_close(losses["loss_distill"], kl_divergence(teacher, student).sum(-1))
        torch.testing.assert_close(losses["teacher_entropy"], teacher.entropy().sum(-1))
        agrees = (values.argmax(-1) == (values + shift).argmax(-1)).all(-1)
        assert losses["agreement"].tolist() == agrees.float().tolist()
        assert batch["priority"].shape == (5, 1)

    def test_weights_of_samples_weight_their_agents(self) -> None:
        shift = torch.randn(8, generator=torch.Generator().manual_seed(3))
        weights = torch.arange(5.0)
        loss = DistillationLoss(self.agents(shift), self.agents(), teacher_temperature=1.0)
        values = self.batch()["agents", "observation"]
        kl = kl_divergence(Distribution(logits=values), Distribution(logits=values + shift)).sum(-1)
        expected = (kl * weights).sum() / weights.sum()
        torch.testing.assert_close(loss(self.batch(priority_weight=weights))["loss_distill"], expected)

    def test_agents_may_have_several_choices_each(self) -> None:
        networks = (self.agents(second_choice_moved()), self.agents())
        loss = DistillationLoss(*networks, var_nums=VAR_NUMS, teacher_temperature=1.0)
        losses = loss(self.batch())
        assert losses["loss_distill"].item() == pytest.approx(0.0, abs=1e-4)
        assert losses["agreement"].item() == 1.0

    @pytest.mark.parametrize("name_it", [False, True])
    def test_what_the_collector_stored_is_not_taken_for_the_teachers_values(self, name_it: bool) -> None:
        """The loss is the same with and without stored values, also where the key names what the teacher writes."""
        loss = DistillationLoss(self.agents(torch.randn(8)), self.agents())
        if name_it:
            loss.set_keys(teacher_action_value=self.KEY)
        with_values = self.batch()
        with_values.set(self.KEY, torch.randn(5, 3, 8))
        assert torch.equal(loss(with_values)["loss_distill"], loss(self.batch())["loss_distill"])

    def test_stored_values_of_a_group_without_a_teacher_network_are_warned_of_once(self) -> None:
        loss = DistillationLoss(self.agents())
        loss.set_keys(teacher_action_value=self.KEY)
        batch = self.batch().set(self.KEY, torch.randn(5, 3, 8))
        with pytest.warns(UserWarning, match=r"read from \('agents', 'action_value'\).* acting policy stored"):
            loss(batch)
        loss(batch)  # an error if it warned again

    def test_stored_values_under_a_key_of_their_own_are_not_warned_of(self) -> None:
        loss = DistillationLoss(self.agents())
        batch = self.batch().set(("teacher", "action_value"), torch.randn(5, 3, 8))
        assert loss(batch)["loss_distill"].isfinite()

    def test_without_values_of_a_teacher_nothing_is_taken_in_their_place(self) -> None:
        with pytest.raises(RuntimeError, match="no teacher values to distil"):
            DistillationLoss(self.agents())(self.batch().set(self.KEY, torch.randn(5, 3, 8)))

    def test_a_temporal_difference_error_of_agents_is_refused(self) -> None:
        batch = self.batch(action=torch.zeros(5, 3, dtype=torch.long), next=self.batch(1))
        loss = StudentDQNLoss(self.agents(), self.agents())
        SoftUpdate(loss, tau=0.1)
        message = re.escape("got values [5, 3, 8] for a batch [5], as of several agents; use DistillationLoss")
        with pytest.raises(ValueError, match=message):
            loss(batch)

    def test_time_within_the_batch_is_no_agent(self) -> None:
        """Batches ``[B, T]`` keep one number a step."""
        loss = DistillationLoss(table(), reduction="none")
        values = torch.randn(4, 3, 8)
        batch = TensorDict({"observation": values, ("teacher", "action_value"): values}, [4, 3])
        assert loss(batch)["loss_distill"].shape == (4, 3)


@settings(deadline=None, max_examples=60)
@given(
    var_nums=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    declared=st.sampled_from(["module", "one-hot spec", "categorical spec", "user"]),
    batch_shape=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    agents=st.lists(st.integers(1, 3), max_size=1),
    dtypes=st.tuples(*[st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])] * 2),
    divergence=st.sampled_from(DIVERGENCES),
    masked=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_every_situation_is_the_sum_over_choices_and_agents(
    var_nums: list[int],
    declared: str,
    batch_shape: list[int],
    agents: list[int],
    dtypes: tuple[torch.dtype, torch.dtype],
    divergence: str,
    masked: bool,
    seed: int,
) -> None:
    """The loss of whole actions is the sum of losses each of which knows one choice of one agent."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch_shape, *agents)
    rows = [torch.randn(*shape, sum(var_nums), generator=generator) for _ in range(2)]
    teacher, student = (row.to(dtype) for row, dtype in zip(rows, dtypes, strict=True))
    entries = {"observation": student, ("teacher", "action_value"): teacher}
    if masked:
        parts = [torch.rand(*shape, num, generator=generator) < 0.7 for num in var_nums]
        entries["action_mask"] = torch.cat(parts, -1)
    batch = TensorDict(entries, batch_shape)
    network: nn.Module = TensorDictModule(Scaled(), in_keys=["observation"], out_keys=["action_value"])
    if declared == "module":
        network = Sequence(network, QValueModule(action_space="mult_one_hot", var_nums=var_nums))
    elif declared != "user":
        kind = MultiOneHot if declared == "one-hot spec" else MultiCategorical
        network = with_spec(network, kind(var_nums))
    options = {"divergence": divergence, "teacher_temperature": 0.5, "student_temperature": 0.5, "reduction": "none"}
    loss = DistillationLoss(network, var_nums=var_nums if declared == "user" else None, **options)
    single = DistillationLoss(TensorDictModule(Scaled(), in_keys=["observation"], out_keys=["action_value"]), **options)
    found = loss(batch)
    sums: dict[str, Any] = dict.fromkeys(("loss_distill", "kl_to_teacher", "teacher_entropy", "student_entropy"), 0.0)
    agreement = torch.ones(shape, dtype=found["agreement"].dtype)
    for place, num in enumerate(var_nums):
        start = sum(var_nums[:place])
        part = batch.apply(lambda tensor, start=start, num=num: tensor[..., start : start + num], batch_size=shape)
        losses = single(part)
        sums = {name: value + losses[name] for name, value in sums.items()}
        agreement = torch.minimum(agreement, losses["agreement"])
    for name, value in sums.items():
        expected = value.sum(-1) if agents else value
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert torch.equal(found["agreement"], agreement.amin(-1) if agents else agreement)
    assert (found["teacher_regret"] >= 0).all()
    assert found["teacher_regret"][found["agreement"] == 1].eq(0).all()


class Scaled(nn.Module):
    """One times the observation, in its precision."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, observation: Tensor) -> Tensor:
        return observation * self.factor.to(observation.dtype)
