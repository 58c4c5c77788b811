"""What the losses are worth by hand, and that they behave as TorchRL's own."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical as Distribution
from torch.distributions import kl_divergence
from torchrl.data import (
    Bounded,
    Categorical,
    LazyTensorStorage,
    OneHot,
    PrioritizedSampler,
    TensorDictReplayBuffer,
)
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, HardUpdate, SoftUpdate, ValueEstimators

from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss

LN2, LN3 = math.log(2.0), math.log(3.0)

# Two states and two actions. At temperature 1 the teacher plays (3/4, 1/4) and (1/5, 4/5), the student (1/4, 3/4) and
# (2/5, 3/5): they disagree on the first state and agree on the second.
TEACHER_VALUES = [[LN3, 0.0], [0.0, math.log(4.0)]]
STUDENT_VALUES = [[0.0, LN3], [0.0, math.log(1.5)]]
PER_STATE = {
    "forward_kl": [0.549306, 0.091516],  # 1/2 ln 3; 1/5 ln 1/2 + 4/5 ln 4/3
    "reverse_kl": [0.549306, 0.104650],  # 1/2 ln 3; 2/5 ln 2 + 3/5 ln 3/4
    "jensen_shannon": [0.130812, 0.024157],  # 3/4 ln 3/2 + 1/4 ln 1/2; likewise with a middle of (3/10, 7/10)
    "mse": [2.413898, 0.962026],  # 2 (ln 3)^2; (ln 8/3)^2
    "huber": [1.197225, 0.481013],  # 2 (ln 3 - 1/2); (ln 8/3)^2 / 2
    "nll": [1.386294, 0.510826],  # ln 4; ln 5/3
}
FORWARD_KL = 0.320411  # the mean of 0.549306 and 0.091516


def actor(num_actions: int = 3, num_features: int = 4, **kwargs: Any) -> QValueActor:
    kwargs.setdefault("spec", Categorical(num_actions))
    return QValueActor(nn.Linear(num_features, num_actions), in_keys=["observation"], **kwargs)


def table_actor(values: list[list[float]], **kwargs: Any) -> QValueActor:
    """Action values ``[S, A]`` of ``S`` states, which are observed as one-hot rows."""
    network = nn.Linear(len(values), len(values[0]), bias=False)
    network.weight.data.copy_(torch.tensor(values).T)
    return QValueActor(network, in_keys=["observation"], spec=Categorical(len(values[0])), **kwargs)


def two_states(**kwargs: Any) -> TensorDict:
    """The two states of the table above with their teacher values, one after the other."""
    batch = TensorDict({"observation": torch.eye(2), ("teacher", "action_value"): torch.tensor(TEACHER_VALUES)}, [2])
    return batch.update(TensorDict(kwargs, [2]))


def transitions(size: int = 5, num_actions: int = 3, seed: int = 0) -> TensorDict:
    """Random transitions, every third of which ends an episode, without teacher values."""
    generator = torch.Generator().manual_seed(seed)
    terminated = (torch.arange(size) % 3 == 2).unsqueeze(-1)
    return TensorDict(
        {
            "observation": torch.randn(size, 4, generator=generator),
            "action": torch.randint(num_actions, (size,), generator=generator),
            "next": {
                "observation": torch.randn(size, 4, generator=generator),
                "reward": torch.randn(size, 1, generator=generator),
                "done": terminated.clone(),
                "terminated": terminated,
            },
        },
        [size],
    )


def with_teacher_values(batch: TensorDict, num_actions: int = 3) -> TensorDict:
    """The batch with teacher values drawn at random for both states of each transition."""
    generator = torch.Generator().manual_seed(9)
    for prefix in ((), ("next",)):
        values = torch.randn(*batch.batch_size, num_actions, generator=generator)
        batch.set((*prefix, "teacher", "action_value"), values)
    return batch


def make(loss_class: type[DistillationLoss], *args: Any, **kwargs: Any) -> DistillationLoss:
    """A loss, with a target updater if it has targets."""
    loss = loss_class(*args, **kwargs)
    if loss_class is StudentDQNLoss:
        SoftUpdate(loss, tau=0.1)
    return loss


def total(losses: TensorDict) -> Tensor:
    return sum(value for key, value in losses.items() if key.startswith("loss"))


def gradients(loss: DistillationLoss) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in loss.parameters()]
    for parameter in loss.parameters():
        parameter.grad = None
    return found


def independent_forward_kl(teacher: Tensor, student: Tensor, temperatures: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """KL(teacher || student) ``[*B]`` by torch.distributions."""
    return kl_divergence(Distribution(logits=teacher / temperatures[0]), Distribution(logits=student / temperatures[1]))


class Noisy(nn.Module):
    """A network whose training mode is random (Dropout) and changes its state (BatchNorm)."""

    def __init__(self, num_features: int = 4, num_actions: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(num_features, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(16, num_actions)

    def forward(self, observation: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(observation)).relu()))


def noisy_actor() -> QValueActor:
    return QValueActor(Noisy(), in_keys=["observation"], spec=Categorical(3))


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Weights are drawn from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class TestValues:
    """Numbers a reader can redo, and PyTorch's own distributions."""

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_loss_is_summed_over_actions_and_averaged_over_the_batch(self, divergence: str) -> None:
        """The mean of two numbers worked out by hand."""
        loss = DistillationLoss(
            table_actor(STUDENT_VALUES), divergence=divergence, teacher_temperature=1.0, student_temperature=1.0
        )
        expected = sum(PER_STATE[divergence]) / 2
        assert loss(two_states())["loss_distill"].item() == pytest.approx(expected, abs=2e-6)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_metrics_do_not_depend_on_the_divergence(self, divergence: str) -> None:
        """Forward KL in nats, one agreement out of two, and the entropies of the rows averaged, all detached."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), divergence=divergence, teacher_temperature=1.0)
        losses = loss(two_states())
        assert losses["kl_to_teacher"].item() == pytest.approx(FORWARD_KL, abs=2e-6)
        assert losses["agreement"].item() == 0.5
        assert losses["teacher_entropy"].item() == pytest.approx(0.531369, abs=2e-6)  # of 0.562335 and 0.500402
        assert losses["student_entropy"].item() == pytest.approx(0.617673, abs=2e-6)  # of 0.562335 and 0.673012
        assert [key for key, value in losses.items() if value.requires_grad] == ["loss_distill"]

    def test_each_temperature_reaches_its_own_network(self) -> None:
        """Halved, the teacher's odds of 3 to 1 become 9 to 1, or the student's."""
        values = {}
        for temperatures in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5)):
            loss = DistillationLoss(
                table_actor(STUDENT_VALUES), teacher_temperature=temperatures[0], student_temperature=temperatures[1]
            )
            values[temperatures] = loss(two_states()[:1])["loss_distill"].item()
        assert values[1.0, 1.0] == pytest.approx(0.549306, abs=2e-6)
        assert values[0.5, 1.0] == pytest.approx(0.9 * math.log(3.6) + 0.1 * math.log(0.1 / 0.75), abs=2e-6)
        assert values[1.0, 0.5] == pytest.approx(0.75 * math.log(7.5) + 0.25 * math.log(0.25 / 0.9), abs=2e-6)

    @pytest.mark.parametrize("divergence", ["mse", "huber"])
    def test_distances_of_values_know_no_temperature(self, divergence: str) -> None:
        """They compare the values themselves."""
        loss = DistillationLoss(
            table_actor(STUDENT_VALUES), divergence=divergence, teacher_temperature=0.01, student_temperature=7.0
        )
        assert loss(two_states())["loss_distill"].item() == pytest.approx(sum(PER_STATE[divergence]) / 2, abs=2e-6)

    def test_student_temperature_none_is_the_teachers(self) -> None:
        """Also after the teacher's has been changed."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=0.5, student_temperature=None)
        student, teacher = torch.tensor(STUDENT_VALUES), torch.tensor(TEACHER_VALUES)
        for temperature in (0.5, 2.0):
            loss.teacher_temperature = temperature
            expected = independent_forward_kl(teacher, student, (temperature, temperature)).mean()
            torch.testing.assert_close(loss(two_states())["loss_distill"], expected)

    def test_forbidden_actions_take_no_part(self) -> None:
        """Of three actions the best is forbidden; the other two are those of the table. A closed state counts 0."""
        student = table_actor([[*values, 9.0] for values in [*STUDENT_VALUES, [1.0, 2.0]]])
        teacher = torch.tensor([[*values, 7.0] for values in [*TEACHER_VALUES, [2.0, 1.0]]])
        mask = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
        batch = TensorDict(
            {"observation": torch.eye(3), "teacher": {"action_value": teacher}, "action_mask": mask}, [3]
        )
        loss = DistillationLoss(student, teacher_temperature=1.0, reduction="none")
        losses = loss(batch)
        expected = torch.tensor([*PER_STATE["forward_kl"], 0.0])
        torch.testing.assert_close(losses["loss_distill"], expected, atol=2e-6, rtol=0.0)
        assert losses["agreement"].tolist() == [0.0, 1.0, 0.0]
        losses["loss_distill"].sum().backward()
        assert all(gradient.isfinite().all() for gradient in gradients(loss))

    @pytest.mark.parametrize("batch_size", [[7], [2, 3], [1]])
    @pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "nll", "mse", "huber"])
    def test_loss_equals_pytorchs_own(self, divergence: str, batch_size: list[int]) -> None:
        """On random networks and batches of any shape, with Rusu's temperatures."""
        student = actor()
        observation, teacher_values = torch.randn(*batch_size, 4), torch.randn(*batch_size, 3)
        batch = TensorDict({"observation": observation, "teacher": {"action_value": teacher_values}}, batch_size)
        values = F.linear(observation, *[p.detach() for p in student.parameters()])
        teacher, student_policy = Distribution(logits=teacher_values / 0.01), Distribution(logits=values)
        expected = {
            "forward_kl": kl_divergence(teacher, student_policy),
            "reverse_kl": F.kl_div(
                teacher_values.div(0.01).log_softmax(-1), values.log_softmax(-1), log_target=True, reduction="none"
            ).sum(-1),
            "nll": -student_policy.log_prob(teacher_values.argmax(-1)),
            "mse": (teacher_values - values).square().sum(-1),
            "huber": F.smooth_l1_loss(values, teacher_values, reduction="none").sum(-1),
        }[divergence]
        loss = DistillationLoss(student, divergence=divergence)
        torch.testing.assert_close(loss(batch)["loss_distill"], expected.mean())

    def test_mixed_precision_gives_single_precision_losses(self) -> None:
        """Under autocast, with every part of the loss finite and trainable."""
        loss = make(StudentDQNLoss, actor(), actor(), teacher_temperature="auto")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = loss(transitions())
        assert {value.dtype for value in losses.values()} == {torch.float32}
        total(losses).backward()
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(loss))


class TestAutoTemperature:
    """The teacher's temperature follows the spread of its values."""

    def loss(self, **kwargs: Any) -> DistillationLoss:
        return DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature="auto", **kwargs)

    def batch(self, spread: float, **kwargs: Any) -> TensorDict:
        """Values ``spread`` on either side of a mean of 5."""
        values = torch.tensor([[5.0 - spread, 5.0 + spread], [5.0 + spread, 5.0 - spread]])
        return two_states(**kwargs).set(("teacher", "action_value"), values)

    def test_temperature_moves_a_hundredth_of_the_way_each_batch(self) -> None:
        """From its floor of 0.1 towards a spread of 1."""
        loss = self.loss()
        assert loss.teacher_temperature.item() == pytest.approx(0.1)
        loss(self.batch(1.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.109)  # 0.99 * 0.1 + 0.01 * 1
        loss(self.batch(1.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.11791)  # 0.99 * 0.109 + 0.01 * 1

    def test_targets_stay_as_sharp_when_values_grow_tenfold(self) -> None:
        """The temperature settles at each spread, and the teacher's policy is the same at both."""
        loss = self.loss()
        entropies = []
        for spread in (1.0, 10.0):
            for _ in range(500):
                losses = loss(self.batch(spread))
            assert loss.teacher_temperature.item() == pytest.approx(spread, rel=0.01)
            entropies.append(losses["teacher_entropy"].item())
        expected = 0.365334  # softmax of (-1, 1) is (0.119203, 0.880797)
        assert entropies == [pytest.approx(expected, rel=0.02)] * 2

    def test_student_follows_where_its_temperature_is_none(self) -> None:
        """Both divide by the temperature that the batch has just moved."""
        loss = self.loss(student_temperature=None)
        found = loss(self.batch(1.0))["loss_distill"]
        teacher = self.batch(1.0)["teacher", "action_value"]
        expected = independent_forward_kl(teacher, torch.tensor(STUDENT_VALUES), (0.109, 0.109)).mean()
        torch.testing.assert_close(found, expected)

    def test_temperature_never_falls_below_a_tenth(self) -> None:
        """A teacher that does not know yet has no spread."""
        loss = self.loss()
        for _ in range(5):
            loss(self.batch(0.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.1)
        loss.teacher_temperature = 0.1005
        for _ in range(5):
            loss(self.batch(0.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.1)

    def test_floor_can_be_set(self) -> None:
        """A buffer like the temperature itself, where the values of a game are smaller."""
        loss = self.loss()
        loss.temperature_floor = 0.001
        for _ in range(1000):
            loss(self.batch(0.01))
        assert loss.teacher_temperature.item() == pytest.approx(0.01, rel=0.01)

    def test_temperature_outlives_a_bad_batch(self) -> None:
        """A teacher's NaN would stay in the average for ever."""
        loss = self.loss()
        loss(self.batch(1.0))
        loss(self.batch(math.nan))
        assert loss.teacher_temperature.item() == pytest.approx(0.109)

    def test_evaluation_leaves_the_temperature_alone(self) -> None:
        """Only training moves it."""
        loss = self.loss().eval()
        loss(self.batch(1.0))
        assert loss.teacher_temperature.item() == pytest.approx(0.1)

    def test_forbidden_actions_do_not_count(self) -> None:
        """TorchRL's value modules give them the least float, whose spread is infinite."""
        batch = self.batch(1.0)
        forbidden = torch.full((2, 1), torch.finfo(torch.float32).min)
        batch["teacher", "action_value"] = torch.cat([batch["teacher", "action_value"], forbidden], -1)
        batch["action_mask"] = torch.tensor([[True, True, False]] * 2)
        loss = DistillationLoss(table_actor([[*values, 0.0] for values in STUDENT_VALUES]), teacher_temperature="auto")
        loss(batch)
        assert loss.teacher_temperature.item() == pytest.approx(0.109)

    def test_padding_does_not_count(self) -> None:
        """Positions that the loss mask excludes may hold anything."""
        batch = self.batch(1.0, valid=torch.tensor([True, False]))
        batch["teacher", "action_value"][1] = math.nan
        loss = self.loss()
        loss.loss_mask_key = "valid"
        losses = loss(batch)
        assert loss.teacher_temperature.item() == pytest.approx(0.109)
        assert all(value.isfinite() for value in losses.values())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_stored_values_may_have_another_precision(self, dtype: torch.dtype) -> None:
        """The buffer keeps its own."""
        batch = self.batch(1.0)
        batch["teacher", "action_value"] = batch["teacher", "action_value"].to(dtype)
        loss = self.loss()
        loss(batch)
        assert loss.teacher_temperature.dtype == torch.float32
        assert loss.teacher_temperature.item() == pytest.approx(0.109)

    def test_state_dict_carries_the_running_temperature(self) -> None:
        """A resumed run goes on where it stopped, not at the floor."""
        loss = self.loss()
        for _ in range(10):
            loss(self.batch(3.0))
        resumed = self.loss()
        resumed.load_state_dict(loss.state_dict())
        first, second = loss(self.batch(3.0)), resumed(self.batch(3.0))
        assert first["loss_distill"].item() == second["loss_distill"].item()
        assert loss.teacher_temperature.item() == resumed.teacher_temperature.item() > 0.1

    def test_several_batches_can_go_before_one_backward(self) -> None:
        """Each keeps the temperature it was computed with: the gradient is the sum of their own."""
        together, apart = self.loss(student_temperature=None), self.loss(student_temperature=None)
        apart.load_state_dict(together.state_dict())
        batches = [self.batch(spread) for spread in (1.0, 2.0, 3.0)]
        sum(together(batch)["loss_distill"] for batch in batches).backward()
        for batch in batches:
            apart(batch)["loss_distill"].backward()
        torch.testing.assert_close(gradients(together), gradients(apart))


class TestTeacher:
    """Where the teacher's values come from, and that the teacher is left alone."""

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_stored_values_and_the_network_that_wrote_them_give_the_same_loss(
        self, loss_class: type[DistillationLoss]
    ) -> None:
        """The trainer's hook hands over values that the teacher has computed anyway."""
        student, teacher = actor(), actor()
        batch, stored = transitions(), transitions()
        with torch.no_grad():
            stored["teacher"] = teacher(stored.select("observation")).select("action_value")
            stored["next", "teacher"] = teacher(stored["next"].select("observation")).select("action_value")
        computed = make(loss_class, student, teacher)(batch)
        given = make(loss_class, student)(stored)
        for key in computed.keys():
            torch.testing.assert_close(given[key], computed[key])

    def test_stored_values_come_first(self) -> None:
        """A loss with a teacher network does not run it for nothing."""
        teacher = table_actor([[0.0, 0.0], [0.0, 0.0]])
        calls = []
        teacher.register_forward_hook(lambda *_: calls.append(1))
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher, teacher_temperature=1.0)
        assert loss(two_states())["loss_distill"].item() == pytest.approx(FORWARD_KL, abs=2e-6)
        assert not calls

    @pytest.mark.parametrize("training", [True, False])
    def test_teacher_runs_in_eval_mode_and_gets_its_own_mode_back(self, training: bool) -> None:
        """Dropout and BatchNorm would make random targets, and BatchNorm would move its statistics."""
        teacher = noisy_actor().train(training)
        teacher[0].module.norm.eval()  # a mode of its own, which a plain train() would overwrite
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        modes = [module.training for module in teacher.modules()]
        loss = DistillationLoss(actor(), teacher)
        batch = transitions(64)
        first, second = loss(batch), loss(batch)
        assert first["loss_distill"].item() == second["loss_distill"].item()
        assert [module.training for module in teacher.modules()] == modes
        torch.testing.assert_close(dict(teacher.state_dict()), before, rtol=0.0, atol=0.0)
        with torch.no_grad():
            values = teacher.eval()(batch.select("observation"))["action_value"]
        given = loss(batch.copy().set(("teacher", "action_value"), values))
        assert first["loss_distill"].item() == given["loss_distill"].item()

    def test_mode_is_restored_when_the_teacher_fails(self) -> None:
        """The error is the user's to see, the mode stays theirs."""
        teacher = TensorDictModule(nn.Linear(9, 3), in_keys=["observation"], out_keys=["action_value"]).train()
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            DistillationLoss(actor(), teacher)(transitions())
        assert all(module.training for module in teacher.modules())

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_every_student_parameter_learns_and_no_teacher_parameter_does(
        self, loss_class: type[DistillationLoss], divergence: str
    ) -> None:
        """No gradient is lost on the way to the student, and none reaches the teacher."""
        student = QValueActor(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), in_keys=["observation"], spec=Categorical(3)
        )
        teacher = noisy_actor()
        loss = make(loss_class, student, teacher, divergence=divergence, teacher_temperature=1.0)
        total(loss(transitions(32))).backward()
        assert len(list(loss.parameters())) == 4
        for parameter in loss.parameters():
            assert parameter.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in teacher.parameters())
        if loss_class is StudentDQNLoss:
            assert all(value.grad is None for value in loss.target_student_network_params.values(True, True))

    def test_gradient_does_not_reach_stored_teacher_values(self) -> None:
        """They may still hang on the teacher's graph when the hook hands them over."""
        batch = two_states()
        values = batch["teacher", "action_value"].requires_grad_()
        DistillationLoss(table_actor(STUDENT_VALUES))(batch)["loss_distill"].backward()
        assert values.grad is None

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_teacher_is_no_part_of_the_loss(self, loss_class: type[DistillationLoss]) -> None:
        """Neither its parameters nor its state, and it is not moved, cast, reset or put in another mode with it."""
        student, teacher = actor(), noisy_actor()
        loss = make(loss_class, student, teacher)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        assert len(list(loss.parameters())) == len(list(student.parameters()))
        owned = {value.data_ptr() for value in (*loss.parameters(), *loss.buffers(), *loss.state_dict().values())}
        assert not owned & {value.data_ptr() for value in teacher.state_dict().values()}
        assert teacher not in set(loss.modules())
        loss.reset_parameters_recursive()
        loss.to(torch.float64).eval()
        assert all(module.training for module in teacher.modules())
        torch.testing.assert_close(dict(teacher.state_dict()), before, rtol=0.0, atol=0.0)

    def test_reset_changes_the_student(self) -> None:
        """As it does for every loss of TorchRL."""
        loss = make(StudentDQNLoss, actor(), actor())
        for params in (loss.student_network_params, loss.target_student_network_params):
            params.data.apply_(lambda value: value + 1000)
        loss.reset_parameters_recursive()
        for params in (loss.student_network_params, loss.target_student_network_params):
            assert all(value.abs().max() < 10 for value in params.values(True, True))

    def test_copies_of_a_loss_share_the_teacher_and_nothing_else(self) -> None:
        """The copy follows the same live teacher; stepping it leaves the original's student and temperature alone."""
        teacher, batch = actor(), transitions()
        loss = make(StudentDQNLoss, actor(), teacher, teacher_temperature="auto").eval()
        duplicate = copy.deepcopy(loss)
        before = loss(batch)["loss_distill"].item()
        assert duplicate(batch)["loss_distill"].item() == before
        with torch.no_grad():
            for parameter in duplicate.parameters():
                parameter.add_(torch.randn_like(parameter))
        duplicate.teacher_temperature = 5.0
        assert duplicate(batch)["loss_distill"].item() != before
        assert loss(batch)["loss_distill"].item() == before
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(3.0)
        after = copy.deepcopy(loss)(batch)["teacher_entropy"].item()
        assert loss(batch)["teacher_entropy"].item() == after
        duplicate.teacher_temperature = 0.1
        assert duplicate(batch)["teacher_entropy"].item() == after

    def test_plain_modules_read_observation_and_write_action_value(self) -> None:
        """Networks need not be TensorDictModules."""
        student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        batch = transitions()
        with torch.no_grad():
            expected = independent_forward_kl(
                teacher(batch["observation"]), student(batch["observation"]), (1.0, 1.0)
            ).mean()
        loss = DistillationLoss(student, teacher, teacher_temperature=1.0)
        torch.testing.assert_close(loss(batch)["loss_distill"], expected)

    @pytest.mark.parametrize("key", ["teacher_logits", ("teacher", "logits"), ("old", "values")])
    @pytest.mark.parametrize("out_key", ["action_value", "last part of the key"])
    def test_teacher_network_may_name_its_values_as_the_key_does_or_keep_the_usual_name(
        self, key: str | tuple[str, ...], out_key: str
    ) -> None:
        """Renaming where stored values lie does not break a network that computes them."""
        last = key if isinstance(key, str) else key[-1]
        out_keys = ["action_value" if out_key == "action_value" else last]
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=out_keys)
        loss = DistillationLoss(actor(), teacher)
        expected = loss(transitions()) if out_key == "action_value" else None
        loss.set_keys(teacher_action_value=key)
        found = loss(transitions())["loss_distill"]
        assert found.isfinite()
        if expected is not None:
            assert found.item() == expected["loss_distill"].item()


class TestBatch:
    """What the loss does to the batch, and what it does not."""

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    @pytest.mark.parametrize("locked", [False, True])
    def test_batch_is_not_changed(self, loss_class: type[DistillationLoss], locked: bool) -> None:
        """Same keys, same tensors, same numbers; a locked one is as good."""
        batch = with_teacher_values(transitions())
        batch["action_value"] = torch.full((5, 3), 7.0)  # left over from collection
        tensors = {key: (value, value.clone()) for key, value in batch.items(True, True)}
        if locked:
            batch.lock_()
        make(loss_class, actor(), actor())(batch)
        found = dict(batch.items(True, True))
        assert found.keys() == tensors.keys()
        for key, (tensor, values) in tensors.items():
            assert found[key] is tensor
            assert torch.equal(tensor, values)

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_stale_values_in_the_batch_are_not_read(self, loss_class: type[DistillationLoss]) -> None:
        """Samples of a replay buffer hold what the actor wrote when they were collected."""
        loss = make(loss_class, actor(), actor())
        fresh, stale = transitions(), transitions()
        for prefix in ((), ("next",)):
            stale.set((*prefix, "action_value"), torch.full((5, 3), math.nan))
            stale.set((*prefix, "chosen_action_value"), torch.full((5, 1), math.nan))
        for key, value in loss(fresh).items():
            assert loss(stale)[key].item() == value.item()

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_gradient_does_not_grow_with_the_batch(self, loss_class: type[DistillationLoss]) -> None:
        """A batch and the batch repeated three times give the same step."""
        loss = make(loss_class, actor(), actor())
        batch = transitions()
        total(loss(batch)).backward()
        once = gradients(loss)
        total(loss(torch.cat([batch] * 3))).backward()
        torch.testing.assert_close(gradients(loss), once)

    @pytest.mark.parametrize("reduction", [None, "none", "mean", "sum"])
    def test_reduction(self, reduction: str | None) -> None:
        """Per sample, their mean or their sum; the metrics are shares and means, not sums."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0, reduction=reduction)
        losses = loss(two_states())
        per_state = torch.tensor(PER_STATE["forward_kl"])
        expected = {"none": per_state, "sum": per_state.sum()}.get(reduction, per_state.mean())
        torch.testing.assert_close(losses["loss_distill"], expected, atol=2e-6, rtol=0.0)
        assert losses["agreement"].tolist() == ([0.0, 1.0] if reduction == "none" else 0.5)
        assert losses.batch_size == torch.Size([2] if reduction == "none" else [])

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_reduction_none_keeps_the_shape_of_the_batch(self, loss_class: type[DistillationLoss]) -> None:
        """Every entry of the result is ``[*B]``."""
        batch = torch.stack([with_teacher_values(transitions(5, seed=seed)) for seed in (0, 1)])
        losses = make(loss_class, actor(), reduction="none")(batch)
        assert losses.batch_size == (2, 5)
        assert {value.shape for value in losses.values()} == {torch.Size([2, 5])}

    @pytest.mark.parametrize("key", ["valid", ("masks", "valid"), ("collector", "mask")])
    def test_masked_positions_are_left_out(self, key: str | tuple[str, str]) -> None:
        """TorchRL's own mask is found by itself, another by loss_mask_key; the second state may hold anything."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0)
        if key != ("collector", "mask"):
            loss.loss_mask_key = key
        batch = two_states().set(key, torch.tensor([[True], [False]]))
        batch["teacher", "action_value"][1] = math.nan
        losses = loss(batch)
        assert losses["loss_distill"].item() == pytest.approx(0.549306, abs=2e-6)
        assert losses["agreement"].item() == 0.0
        losses["loss_distill"].backward()
        assert all(gradient.isfinite().all() for gradient in gradients(loss))


class TestPriorities:
    """Prioritised replay: weights read, priorities written."""

    def buffer(self, priority_key: str = "priority") -> TensorDictReplayBuffer:
        sampler = PrioritizedSampler(max_capacity=32, alpha=0.7, beta=0.5)
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(32), sampler=sampler, batch_size=16, priority_key=priority_key
        )
        data = with_teacher_values(transitions(32))
        data.set(priority_key, torch.linspace(0.1, 5.0, 32))
        buffer.extend(data)
        return buffer

    @pytest.mark.parametrize("key", ["priority_weight", "weights", ("replay", "weights")])
    @pytest.mark.parametrize("trailing", [False, True])
    def test_weights_of_a_real_sample_weight_the_mean(self, key: str | tuple[str, str], trailing: bool) -> None:
        """Sum of w * l over sum of w, both parts of the loss; torch.distributions and a hand-written target give l."""
        sample = self.buffer().sample()
        weights = sample.pop("priority_weight")
        assert weights.unique().numel() > 1
        sample.set(key, weights.unsqueeze(-1) if trailing else weights)
        student = actor()
        loss = make(StudentDQNLoss, student, teacher_temperature=1.0)
        loss.set_keys(priority_weight=key)
        loss.make_value_estimator(gamma=0.9)
        losses = loss(sample)

        with torch.no_grad():
            values, following = (
                student(part.select("observation"))["action_value"] for part in (sample, sample["next"])
            )
        divergence = independent_forward_kl(sample["teacher", "action_value"], values)
        chosen = sample["next", "teacher", "action_value"].argmax(-1)
        target = sample["next", "reward"].squeeze(-1)
        target = target + 0.9 * ~sample["next", "terminated"].squeeze(-1) * following[torch.arange(16), chosen]
        errors = (target - values[torch.arange(16), sample["action"]]) ** 2
        torch.testing.assert_close(losses["loss_distill"], (divergence * weights).sum() / weights.sum())
        torch.testing.assert_close(losses["loss_td"], (errors * weights).sum() / weights.sum())
        torch.testing.assert_close(losses["kl_to_teacher"], divergence.mean())

    @pytest.mark.parametrize(
        ("use_prioritized_weights", "expected"),
        [("auto", (3 * 0.549306 + 0.091516) / 4), (True, (3 * 0.549306 + 0.091516) / 4), (False, FORWARD_KL)],
    )
    def test_weights_can_be_switched_off(self, use_prioritized_weights: str | bool, expected: float) -> None:
        """Three parts of the first state to one of the second, or even parts."""
        batch = two_states(priority_weight=torch.tensor([0.75, 0.25]))
        loss = DistillationLoss(
            table_actor(STUDENT_VALUES), teacher_temperature=1.0, use_prioritized_weights=use_prioritized_weights
        )
        assert loss(batch)["loss_distill"].item() == pytest.approx(expected, abs=2e-6)

    @pytest.mark.parametrize(
        ("reduction", "expected"), [("none", [2 * 0.549306, 0.5 * 0.091516]), ("sum", 2 * 0.549306 + 0.5 * 0.091516)]
    )
    def test_weights_multiply_what_is_not_averaged(self, reduction: str, expected: float | list[float]) -> None:
        """As in TorchRL."""
        batch = two_states(priority_weight=torch.tensor([2.0, 0.5]))
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0, reduction=reduction)
        torch.testing.assert_close(loss(batch)["loss_distill"], torch.tensor(expected), atol=4e-6, rtol=0.0)

    def test_weights_that_are_asked_for_must_be_there(self) -> None:
        """True is a promise, "auto" is not."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), use_prioritized_weights=True)
        with pytest.raises(KeyError, match=r"needs 'priority_weight', which the batch lacks.*PrioritizedSampler"):
            loss(two_states())

    def test_no_priority_is_written_unless_a_key_is_set(self) -> None:
        """The trainer's teacher writes the priority of its own."""
        batch = two_states()
        DistillationLoss(table_actor(STUDENT_VALUES))(batch)
        assert set(batch.keys()) == {"observation", "teacher"}

    @pytest.mark.parametrize("key", ["priority", ("replay", "priority")])
    def test_priority_is_each_samples_own_divergence(self, key: str | tuple[str, str]) -> None:
        """Unweighted, detached, with the trailing dimension of TorchRL's priorities."""
        batch = two_states(priority_weight=torch.tensor([2.0, 0.5]))
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0)
        loss.set_keys(priority=key)
        loss(batch)
        expected = torch.tensor(PER_STATE["forward_kl"]).unsqueeze(-1)
        torch.testing.assert_close(batch[key], expected, atol=2e-6, rtol=0.0)
        assert not batch[key].requires_grad

    @pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
    def test_priorities_of_a_perfect_student_are_accepted(self, divergence: str) -> None:
        """Rounding makes half of its divergences slightly negative, which would break the buffer at the next sample."""
        buffer = self.buffer()
        sample = buffer.sample()
        student = actor()
        values = student(sample.select("observation"))["action_value"].detach()
        sample["teacher", "action_value"] = values + 1e-6 * torch.randn_like(values)
        loss = DistillationLoss(student, divergence=divergence, teacher_temperature=0.1, student_temperature=None)
        loss.set_keys(priority="priority")
        loss(sample)
        assert sample["priority"].min() >= 0
        buffer.update_tensordict_priority(sample)
        assert buffer.sample()["index"].numel() == 16

    @pytest.mark.parametrize(
        ("share", "expected"), [(0.0, [0.549306, 0.091516]), (0.25, [0.911980, 1.568637]), (1.0, [2.0, 6.0])]
    )
    def test_priority_can_be_mixed_with_the_td_error(self, share: float, expected: list[float]) -> None:
        """(1 - share) * divergence + share * |TD error|; the errors are 2 - 0 and -6 - 0 at the first action."""
        over = torch.ones(2, 1, dtype=torch.bool)
        following = {"observation": torch.eye(2), "reward": torch.tensor([[2.0], [-6.0]])}
        batch = two_states(action=torch.zeros(2, dtype=torch.long), priority_weight=torch.tensor([0.3, 0.6]))
        batch["next"] = TensorDict({**following, "done": over, "terminated": over.clone()}, [2])
        batch["next", "teacher", "action_value"] = torch.zeros(2, 2)
        loss = make(
            StudentDQNLoss, table_actor(STUDENT_VALUES), teacher_temperature=1.0, td_coeff=3.0, priority_td_share=share
        )
        loss.set_keys(priority=("replay", "priority"))
        loss(batch)
        torch.testing.assert_close(batch["replay", "priority"], torch.tensor(expected).unsqueeze(-1))
        assert not batch["replay", "priority"].requires_grad

    def test_mixed_priorities_are_taken_back_by_the_buffer(self) -> None:
        """A round trip: sampled, weighted, updated and sampled by the new priorities."""
        buffer = self.buffer()
        loss = make(StudentDQNLoss, actor(), teacher_temperature=1.0, priority_td_share=0.5)
        loss.set_keys(priority="priority")
        for _ in range(3):
            sample = buffer.sample()
            total(loss(sample)).backward()
            buffer.update_tensordict_priority(sample)
        indices = sample["index"].flatten()
        found = torch.as_tensor(buffer.sampler._sum_tree[indices.numpy()])
        torch.testing.assert_close(found, (sample["priority"].flatten() + 1e-8) ** 0.7)

    def test_what_the_student_has_not_learned_is_sampled_more_often(self) -> None:
        """One transition of 32 is far off, the others are perfect."""
        buffer = self.buffer()
        everything = buffer[:]
        everything["index"] = torch.arange(32)
        student = actor()
        values = student(everything.select("observation"))["action_value"].detach()
        values[7] = values[7].flip(-1) * 3
        everything["teacher", "action_value"] = values
        loss = DistillationLoss(student, teacher_temperature=1.0)
        loss.set_keys(priority="priority")
        loss(everything)
        buffer.update_tensordict_priority(everything)
        assert (buffer.sample()["index"] == 7).float().mean() > 0.9


class TestKeys:
    """in_keys, out_keys and set_keys, as TorchRL's users expect them."""

    def test_in_keys_come_in_a_fixed_order(self) -> None:
        """They are the positions of dispatched arguments."""
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["pixels"], out_keys=["action_value"])
        following = [("next", "reward"), ("next", "done"), ("next", "terminated"), ("next", "observation")]
        assert DistillationLoss(actor()).in_keys == ["observation", ("teacher", "action_value")]
        assert DistillationLoss(actor(), teacher).in_keys == ["observation", "pixels"]
        assert StudentDQNLoss(actor()).in_keys == [
            "observation",
            ("teacher", "action_value"),
            "action",
            *following,
            ("next", "teacher", "action_value"),
        ]
        assert StudentDQNLoss(actor(), actor()).in_keys == ["observation", "action", *following]
        assert StudentDQNLoss(actor(), teacher).in_keys == [
            "observation",
            "pixels",
            "action",
            *following,
            ("next", "pixels"),
        ]
        assert StudentDQNLoss(actor(), imitation=False).in_keys == [
            "observation",
            ("teacher", "action_value"),
            "action",
            *following,
        ]

    def test_in_keys_follow_set_keys_and_can_be_set(self) -> None:
        """Before and after they have first been read."""
        loss = StudentDQNLoss(actor())
        loss.set_keys(teacher_action_value=("t", "q"), terminated="end_of_life")
        assert ("t", "q") in loss.in_keys
        assert ("next", "end_of_life") in loss.in_keys
        loss.set_keys(teacher_action_value="q", action=("agent", "action"))
        assert "q" in loss.in_keys
        assert ("t", "q") not in loss.in_keys
        assert ("agent", "action") in loss.in_keys
        loss.in_keys = ("observation",)
        assert loss.in_keys == ["observation"]

    def test_renamed_and_nested_keys_keep_their_places(self) -> None:
        """Positions of dispatched arguments depend on neither names nor the order of set_keys nor the hash seed."""
        names = {
            "teacher_action_value": ("t", "values"),
            "action": ("agent", "a"),
            "reward": ("agent", "r"),
            "done": ("game", "over"),
            "terminated": "life_over",
        }
        for order in (list(names), list(names)[::-1]):
            loss = StudentDQNLoss(actor())
            for name in order:
                loss.set_keys(**{name: names[name]})
            assert loss.in_keys == [
                "observation",
                ("t", "values"),
                ("agent", "a"),
                ("next", "agent", "r"),
                ("next", "game", "over"),
                ("next", "life_over"),
                ("next", "observation"),
                ("next", "t", "values"),
            ]

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_out_keys_are_what_is_written(self, loss_class: type[DistillationLoss]) -> None:
        """In the order of dispatched results; a trainer sums what begins with "loss"."""
        metrics = ["loss_distill", "kl_to_teacher", "agreement", "teacher_regret", "teacher_entropy", "student_entropy"]
        loss = make(loss_class, actor(), actor())
        assert loss.out_keys == (metrics if loss_class is DistillationLoss else ["loss_td", *metrics])
        assert set(loss(transitions()).keys()) == set(loss.out_keys)

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_out_keys_can_be_selected(self, loss_class: type[DistillationLoss]) -> None:
        """For one loss, not for its class."""
        loss = make(loss_class, actor(), actor())
        loss.select_out_keys("loss_distill")
        assert list(loss(transitions()).keys()) == ["loss_distill"]
        assert len(make(loss_class, actor()).out_keys) > 1

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_unknown_keys_are_refused(self, loss_class: type[DistillationLoss]) -> None:
        """A typo does not pass."""
        with pytest.raises(ValueError, match="teacher_action_values is not an accepted tensordict key"):
            loss_class(actor()).set_keys(teacher_action_values="q")

    @pytest.mark.parametrize(
        ("name", "old", "new"),
        [
            ("teacher_action_value", ("teacher", "action_value"), "teacher_q"),
            ("teacher_action_value", ("teacher", "action_value"), ("stored", "teacher", "q")),
            ("action_mask", "action_mask", "allowed"),
            ("action_mask", "action_mask", ("masks", "allowed")),
            ("priority_weight", "priority_weight", "weights"),
            ("priority_weight", "priority_weight", ("replay", "weights")),
            ("action", "action", "act"),
            ("action", "action", ("agent", "action")),
            ("reward", "reward", ("agent", "reward")),
            ("done", "done", ("game", "over")),
            ("terminated", "terminated", "end_of_life"),
            ("terminated", "terminated", ("agent", "end")),
        ],
    )
    def test_each_key_read_can_be_renamed(
        self, name: str, old: str | tuple[str, ...], new: str | tuple[str, ...]
    ) -> None:
        """The renamed batch gives the loss of the original one."""
        loss = make(StudentDQNLoss, actor(), teacher_temperature=1.0)
        batch = with_teacher_values(transitions())
        mask = torch.tensor([[True, True, False]]).expand(5, 3).clone()
        batch.update({"action_mask": mask, "next": {"action_mask": mask.flip(-1)}})
        batch["priority_weight"] = torch.linspace(0.1, 1.0, 5)
        batch["next", "done"] = torch.zeros(5, 1, dtype=torch.bool)  # is not what ends bootstrapping
        expected = loss(batch)
        old_parts, new_parts = ((key,) if isinstance(key, str) else key for key in (old, new))
        for prefix in ((), ("next",)):
            if batch.get((*prefix, *old_parts), None) is not None:
                batch.set((*prefix, *new_parts), batch.get((*prefix, *old_parts)))
                del batch[(*prefix, *old_parts)]
        loss.set_keys(**{name: new})
        assert getattr(loss.tensor_keys, name) == new
        for key, value in loss(batch).items():
            assert value.item() == expected[key].item()
        loss.set_keys(**{name: None})
        assert getattr(loss.tensor_keys, name) == old

    @pytest.mark.parametrize("key", ["logits", ("student", "logits")])
    def test_student_may_write_its_values_anywhere(self, key: str | tuple[str, str]) -> None:
        """A network that is no QValueActor names its own output."""
        network = nn.Linear(2, 2, bias=False)
        network.weight.data.copy_(torch.tensor(STUDENT_VALUES).T)
        student = TensorDictModule(network, in_keys=["observation"], out_keys=[key])
        loss = DistillationLoss(student, teacher_temperature=1.0)
        loss.set_keys(student_action_value=key)
        assert loss(two_states())["loss_distill"].item() == pytest.approx(FORWARD_KL, abs=2e-6)

    def test_inputs_may_be_nested(self) -> None:
        """Student and teacher read what they like, each its own."""
        student = TensorDictModule(nn.Linear(4, 3), in_keys=[("small", "view")], out_keys=["action_value"])
        teacher = TensorDictModule(nn.Linear(6, 3), in_keys=[("large", "view")], out_keys=["action_value"])
        batch = transitions()
        for part in (batch, batch["next"]):
            part.update({"small": {"view": torch.randn(5, 4)}, "large": {"view": torch.randn(5, 6)}})
        loss = make(StudentDQNLoss, student, teacher)
        assert loss.in_keys[:2] == [("small", "view"), ("large", "view")]
        assert loss(batch)["loss_td"].isfinite()

    def test_student_may_read_the_action_mask_itself(self) -> None:
        """As TorchRL's QValueActor can; the least float it writes for forbidden actions costs nothing."""
        student = actor(action_mask_key="action_mask")
        batch = with_teacher_values(transitions())
        mask = torch.tensor([[True, True, False]]).expand(5, 3)
        batch.update({"action_mask": mask, "next": {"action_mask": mask}})
        for divergence in DIVERGENCES:
            loss = make(StudentDQNLoss, student, divergence=divergence, teacher_temperature="auto")
            batch["action"] = torch.zeros(5, dtype=torch.long)
            losses = loss(batch)
            total(losses).backward()
            assert all(value.isfinite() for value in losses.values())
            assert all(gradient.isfinite().all() for gradient in gradients(loss))


class TestDispatch:
    """Calls without a tensordict."""

    def test_distillation_loss_takes_keywords(self) -> None:
        """Keys joined by underscores in, a tuple in the order of out_keys out.

        The regret is 2, the whole gap of two values in deviations, where the student errs, and 0 in the other state.
        """
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0)
        found = loss(observation=torch.eye(2), teacher_action_value=torch.tensor(TEACHER_VALUES))
        assert [value.item() for value in found] == pytest.approx(
            [FORWARD_KL, FORWARD_KL, 0.5, 1.0, 0.531369, 0.617673], abs=2e-6
        )
        loss.select_out_keys("agreement")
        assert loss(observation=torch.eye(2), teacher_action_value=torch.tensor(TEACHER_VALUES)).item() == 0.5

    def test_samples_stay_apart_when_inputs_and_values_have_one_width(self) -> None:
        """Nothing but the last dimension of the values tells the batch from the actions."""
        loss = DistillationLoss(table_actor(STUDENT_VALUES), teacher_temperature=1.0, reduction="none")
        found = loss(observation=torch.eye(2), teacher_action_value=torch.tensor(TEACHER_VALUES))
        torch.testing.assert_close(found[0], torch.tensor(PER_STATE["forward_kl"]), atol=2e-6, rtol=0.0)

    @pytest.mark.parametrize("with_teacher", [False, True])
    def test_student_dqn_loss_takes_keywords(self, with_teacher: bool) -> None:
        """The same numbers as with the tensordict."""
        loss = make(StudentDQNLoss, actor(), actor() if with_teacher else None)
        batch = transitions() if with_teacher else with_teacher_values(transitions())
        keywords = {"_".join([key] if isinstance(key, str) else key): batch[key] for key in loss.in_keys}
        assert ("next_teacher_action_value" in keywords) is not with_teacher
        expected = loss(batch)
        assert [value.item() for value in loss(**keywords)] == [expected[key].item() for key in loss.out_keys]


class TestState:
    """Saving, copying, casting, scheduling."""

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    @pytest.mark.parametrize("called", [False, True])
    def test_state_dict_round_trip(self, loss_class: type[DistillationLoss], called: bool) -> None:
        """Into a fresh loss that has not run yet, from one that has or has not."""
        teacher = actor()
        loss = make(loss_class, actor(), teacher, teacher_temperature="auto")
        if called:
            loss(transitions())
        fresh = make(loss_class, actor(), teacher, teacher_temperature="auto")
        assert fresh.state_dict().keys() == loss.state_dict().keys()
        fresh.load_state_dict(loss.state_dict())
        expected = loss(transitions())
        for key, value in fresh(transitions()).items():
            assert value.item() == expected[key].item()

    def test_state_of_an_automatic_temperature_is_not_taken_for_a_fixed_one(self) -> None:
        """A run resumed with the other setting is told so."""
        automatic, fixed = (DistillationLoss(actor(), teacher_temperature=value) for value in ("auto", 0.1))
        with pytest.raises(RuntimeError, match=r'Unexpected key.*"temperature_floor"'):
            fixed.load_state_dict(automatic.state_dict())
        with pytest.raises(RuntimeError, match=r'Missing key.*"temperature_floor"'):
            automatic.load_state_dict(fixed.state_dict())

    def test_the_network_handed_over_is_the_one_that_learns(self) -> None:
        """Its caller goes on to evaluate and export it."""
        student = actor()
        loss = DistillationLoss(student, actor())
        optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
        before = [parameter.clone() for parameter in student.parameters()]
        loss(transitions())["loss_distill"].backward()
        optimizer.step()
        assert not any(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))

    def test_casting_reaches_the_student_and_the_temperatures(self) -> None:
        """As for every module; the teacher keeps its own precision."""
        teacher = actor()
        loss = make(StudentDQNLoss, actor(), teacher, teacher_temperature="auto").to(torch.float64)
        assert {value.dtype for value in loss.state_dict().values()} == {torch.float64}
        assert {value.dtype for value in teacher.state_dict().values()} == {torch.float32}
        stored = with_teacher_values(transitions())
        stored = stored.apply(lambda value: value.double() if value.is_floating_point() else value)
        assert loss(stored)["loss_td"].dtype == torch.float64

    def test_temperatures_and_coefficients_lie_where_the_student_does(self) -> None:
        """A loss of networks on another device need not be moved there."""
        student = actor().to("meta")
        loss = StudentDQNLoss(student, student_temperature=1.0)
        loss.make_value_estimator(gamma=0.9)
        assert {value.device.type for value in loss.state_dict().values()} == {"meta"}

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_losses_on_a_gpu_equal_those_on_the_cpu(self, loss_class: type[DistillationLoss]) -> None:
        """Networks and batch are moved, the loss is not."""
        student, teacher = actor(), actor()
        on_cpu = make(loss_class, student, teacher, teacher_temperature="auto")
        on_gpu = make(
            loss_class, copy.deepcopy(student).cuda(), copy.deepcopy(teacher).cuda(), teacher_temperature="auto"
        )
        expected, found = on_cpu(transitions()), on_gpu(transitions().cuda())
        total(found).backward()
        for key, value in expected.items():
            torch.testing.assert_close(found[key].cpu(), value, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["teacher_temperature", "student_temperature", "td_coeff", "distill_coeff"])
    @pytest.mark.parametrize("initial", [1, 1.0])
    def test_coefficients_can_be_scheduled_in_place(self, name: str, initial: float) -> None:
        """One buffer all along, in the state, also where a configuration file said 1 rather than 1.0."""
        loss = make(StudentDQNLoss, actor(), actor(), **{name: initial})
        before = loss(transitions())
        buffer = getattr(loss, name)
        setattr(loss, name, 0.25)
        assert getattr(loss, name) is buffer
        assert loss.state_dict()[name].item() == 0.25
        after = loss(transitions())
        assert any(before[key].item() != after[key].item() for key in ("loss_distill", "loss_td"))

    @pytest.mark.parametrize("name", ["teacher_temperature", "student_temperature", "temperature_floor"])
    @pytest.mark.parametrize("value", [0.0, -1, math.nan])
    def test_temperatures_cannot_be_scheduled_away(self, name: str, value: float) -> None:
        """Not to zero, and the old one stays."""
        loss = DistillationLoss(actor(), teacher_temperature="auto")
        before = getattr(loss, name).item()
        with pytest.raises(ValueError, match=f"{name} must be positive or left as it is: got {value}"):
            setattr(loss, name, value)
        assert getattr(loss, name).item() == before

    def test_two_losses_share_nothing(self) -> None:
        """Keys, temperatures and output keys of one leave the other alone."""
        first, second = DistillationLoss(actor(), actor()), DistillationLoss(actor(), actor())
        first.set_keys(priority="priority")
        first.teacher_temperature = 3.0
        first.select_out_keys("loss_distill")
        assert second.tensor_keys.priority is None
        assert second.teacher_temperature.item() == pytest.approx(0.01)
        assert len(second.out_keys) == 6


class TestStudentDQNLoss:
    """Eq. 3: the divergence and the student's own temporal-difference error."""

    # Two states, two actions; every transition goes from the first to the second.
    STUDENT = [[1.0, 2.0], [3.0, 5.0]]
    TARGET = [[0.0, 0.0], [7.0, 4.0]]  # the student's target network prefers action 0 in the second state
    TEACHER = [[0.0, 0.0], [2.0, 6.0]]  # the teacher prefers action 1 there

    def loss(self, **kwargs: Any) -> StudentDQNLoss:
        kwargs.setdefault("teacher_network", table_actor(self.TEACHER))
        loss = StudentDQNLoss(table_actor(self.STUDENT), **kwargs)
        SoftUpdate(loss, tau=0.5)
        self.target(loss).data.copy_(torch.tensor(self.TARGET).T)
        loss.make_value_estimator(gamma=0.5)
        return loss

    def target(self, loss: StudentDQNLoss) -> Tensor:
        """The target network's weight ``[A, S]``."""
        (weight,) = loss.target_student_network_params.values(True, True)
        return weight

    def batch(self, action: int = 1, reward: float = 10.0, terminated: bool = False, **kwargs: Any) -> TensorDict:
        following = {
            "observation": torch.eye(2)[1:],
            "reward": torch.tensor([[reward]]),
            "done": torch.tensor([[terminated]]),
            "terminated": torch.tensor([[terminated]]),
        }
        batch = {"observation": torch.eye(2)[:1], "action": torch.tensor([action]), "next": following}
        return TensorDict({**batch, **kwargs}, [1])

    @pytest.mark.parametrize(
        ("imitation", "action", "terminated", "expected"),
        [
            (True, 1, False, 100.0),  # 10 + 0.5 * 4 - 2 = 10: the teacher chooses, the student's target values (Eq. 5)
            (True, 0, False, 121.0),  # 10 + 0.5 * 4 - 1 = 11
            (False, 1, False, 132.25),  # 10 + 0.5 * 7 - 2 = 11.5: the student's target does both (Eq. 2)
            (False, 0, False, 156.25),  # 10 + 0.5 * 7 - 1 = 12.5
            (True, 1, True, 64.0),  # 10 - 2 = 8: nothing follows the end
            (False, 1, True, 64.0),
        ],
    )
    def test_temporal_difference_error_by_hand(
        self, imitation: bool, action: int, terminated: bool, expected: float
    ) -> None:
        """With gamma 0.5 and a reward of 10."""
        losses = self.loss(imitation=imitation)(self.batch(action, terminated=terminated))
        assert losses["loss_td"].item() == pytest.approx(expected)

    @pytest.mark.parametrize(("loss_function", "expected"), [("l2", 100.0), ("l1", 10.0), ("smooth_l1", 9.5)])
    def test_error_of_ten_under_each_loss_function(self, loss_function: str, expected: float) -> None:
        """Squared, absolute, and linear beyond 1."""
        assert self.loss(loss_function=loss_function)(self.batch())["loss_td"].item() == pytest.approx(expected)

    @pytest.mark.parametrize(("gamma", "expected"), [(0.0, 64.0), (0.9, 134.56), (1.0, 144.0)])
    def test_gamma_discounts_the_next_value(self, gamma: float, expected: float) -> None:
        """(10 + gamma * 4 - 2) ** 2."""
        loss = self.loss()
        loss.make_value_estimator(gamma=gamma)
        assert loss(self.batch())["loss_td"].item() == pytest.approx(expected, rel=1e-6)

    def test_gamma_is_the_papers_unless_told(self) -> None:
        """0.99: (10 + 3.96 - 2) ** 2."""
        loss = self.loss()
        loss.make_value_estimator()
        assert loss(self.batch())["loss_td"].item() == pytest.approx(143.0416, rel=1e-5)

    def test_n_step_replay_discounts_by_the_steps_between(self) -> None:
        """Three steps: (10 + 0.5 ** 3 * 4 - 2) ** 2 = 8.5 ** 2."""
        batch = self.batch(steps_to_next_obs=torch.tensor([[3]]))
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(72.25)

    def test_truncation_still_bootstraps(self) -> None:
        """Done without terminated is a cut, not an end."""
        batch = self.batch()
        batch["next", "done"] = torch.tensor([[True]])
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(100.0)

    def test_lost_life_can_end_bootstrapping(self) -> None:
        """As in Nature's DQN, while the game goes on."""
        batch = self.batch()
        batch["next", "end_of_life"] = torch.tensor([[True]])
        loss = self.loss()
        loss.set_keys(terminated="end_of_life")
        assert loss(batch)["loss_td"].item() == pytest.approx(64.0)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
    def test_actions_may_be_one_hot(self, dtype: torch.dtype) -> None:
        """The same error as for the categorical action 1."""
        batch = self.batch()
        batch["action"] = torch.tensor([[0, 1]]).to(dtype)
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(100.0)

    def test_categorical_actions_may_have_a_trailing_dimension(self) -> None:
        """``[B, 1]`` as well as ``[B]``."""
        batch = self.batch()
        batch["action"] = torch.tensor([[1]])
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(100.0)

    def test_stored_next_teacher_values_choose(self) -> None:
        """The hook stores those of the teacher's target network; here they prefer action 0: (10 + 0.5 * 7 - 2) ** 2."""
        batch = self.batch().set(("next", "teacher", "action_value"), torch.tensor([[9.0, 1.0]]))
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(132.25)
        stored = batch.set(("teacher", "action_value"), torch.tensor([[0.0, 0.0]]))
        assert self.loss(teacher_network=None)(stored)["loss_td"].item() == pytest.approx(132.25)

    def test_forbidden_next_actions_are_not_chosen(self) -> None:
        """The teacher's choice is forbidden; the other is worth 7."""
        batch = self.batch().set(("next", "action_mask"), torch.tensor([[True, False]]))
        assert self.loss()(batch)["loss_td"].item() == pytest.approx(132.25)

    def test_both_parts_and_their_weights(self) -> None:
        """Student odds of 1 to 2 for an even teacher, tenth of both: 3 parts of the one, a half of the other."""
        loss = self.loss(teacher_temperature=1.0, td_coeff=0.5, distill_coeff=3.0)
        probs = [1 / (1 + math.e), math.e / (1 + math.e)]  # softmax of (1, 2)
        divergence = 0.5 * math.log(0.5 / probs[0]) + 0.5 * math.log(0.5 / probs[1])
        losses = loss(self.batch())
        assert losses["loss_distill"].item() == pytest.approx(3.0 * divergence, rel=1e-5)
        assert losses["loss_td"].item() == pytest.approx(50.0)
        assert losses["kl_to_teacher"].item() == pytest.approx(divergence, rel=1e-5)

    def test_gradient_is_that_of_the_students_own_value(self) -> None:
        """Minus twice the error of 10 at the action taken, none at the other and none in the next state."""
        loss = self.loss(distill_coeff=0.0)
        total(loss(self.batch())).backward()
        (gradient,) = gradients(loss)
        assert gradient.T.tolist() == [[0.0, pytest.approx(-20.0)], [0.0, 0.0]]

    def test_temperatures_are_equal_by_default(self) -> None:
        """0.1 on both, so that the outputs stay action values."""
        student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.3]])
        batch = self.batch().set(("teacher", "action_value"), teacher)
        expected = independent_forward_kl(teacher, student, (0.1, 0.1)).mean()
        torch.testing.assert_close(self.loss()(batch)["loss_distill"], expected)

    @pytest.mark.parametrize("action_space", ["categorical", "one-hot"])
    @pytest.mark.parametrize("loss_function", ["l2", "smooth_l1"])
    def test_without_imitation_it_is_torchrls_dqn_loss(self, action_space: str, loss_function: str) -> None:
        """Value and gradient, with terminations, n-step returns and importance weights."""
        spec = Categorical(3) if action_space == "categorical" else OneHot(3)
        student = actor(spec=spec)
        native = DQNLoss(copy.deepcopy(student), loss_function=loss_function, action_space=spec)
        loss = StudentDQNLoss(student, imitation=False, loss_function=loss_function, distill_coeff=0.0)
        for module in (native, loss):
            SoftUpdate(module, tau=0.5)
            module.make_value_estimator(gamma=0.9)
        shift = torch.randn(3, 4), torch.randn(3)
        for params in (native.target_value_network_params, loss.target_student_network_params):
            for value, change in zip(sorted(params.values(True, True), key=Tensor.dim), shift[::-1], strict=True):
                value.data.add_(change)
        batch = with_teacher_values(transitions(20))
        batch["steps_to_next_obs"] = torch.randint(1, 4, (20, 1))
        batch["priority_weight"] = torch.rand(20)
        if action_space == "one-hot":
            batch["action"] = F.one_hot(batch["action"], 3)
        expected, found = native(batch.clone())["loss"], loss(batch)
        torch.testing.assert_close(found["loss_td"], expected)
        expected.backward()
        total(found).backward()
        torch.testing.assert_close(gradients(loss), [parameter.grad for parameter in native.parameters()])

    @pytest.mark.parametrize("tau", [0.5, 0.1])
    def test_soft_update_finds_the_targets(self, tau: float) -> None:
        """They move the given share of the way."""
        loss = self.loss()
        updater = SoftUpdate(loss, tau=tau)  # which begins by making them the student's
        self.target(loss).data.copy_(torch.tensor(self.TARGET).T)
        updater.step()
        expected = torch.lerp(torch.tensor(self.TARGET), torch.tensor(self.STUDENT), tau)
        torch.testing.assert_close(self.target(loss).T, expected)

    def test_hard_update_finds_the_targets(self) -> None:
        """They become the student's at the interval, not before."""
        loss = self.loss()
        updater = HardUpdate(loss, value_network_update_interval=3)
        self.target(loss).data.copy_(torch.tensor(self.TARGET).T)
        unmoved = []
        for _ in range(4):
            updater.step()
            unmoved.append(torch.equal(self.target(loss).T, torch.tensor(self.TARGET)))
        assert unmoved == [True, True, True, False]
        assert torch.equal(self.target(loss).T, torch.tensor(self.STUDENT))

    def test_optimising_leaves_the_targets_alone(self) -> None:
        """They are buffers, copies of what the student was."""
        loss = make(StudentDQNLoss, actor(), actor())
        before = loss.target_student_network_params.clone()
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        total(loss(transitions())).backward()
        optimizer.step()
        assert (before == loss.target_student_network_params).all()
        assert (loss.student_network_params.data != before).any()

    def test_a_linear_student_learns_both_the_policy_and_the_values(self) -> None:
        """A probe with a known answer: one state that ends, rewards 1 and 2 for its two actions."""
        loss = make(
            StudentDQNLoss, table_actor([[0.0, 0.0]]), table_actor([[1.0, 2.0]]), teacher_temperature=1.0, td_coeff=1.0
        )
        end = torch.ones(2, 1, dtype=torch.bool)
        batch = TensorDict(
            {
                "observation": torch.ones(2, 1),
                "action": torch.tensor([0, 1]),
                "next": {
                    "observation": torch.ones(2, 1),
                    "reward": torch.tensor([[1.0], [2.0]]),
                    "done": end,
                    "terminated": end,
                },
            },
            [2],
        )
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.3)
        for _ in range(200):
            losses = loss(batch)
            total(losses).backward()
            optimizer.step()
            optimizer.zero_grad()
        (weight,) = loss.parameters()
        torch.testing.assert_close(weight.detach(), torch.tensor([[1.0], [2.0]]), atol=1e-3, rtol=0.0)
        assert losses["agreement"].item() == 1.0
        assert total(losses).item() == pytest.approx(0.0, abs=1e-5)


class TestCompile:
    """The losses can be compiled whole."""

    # tensordict asks for a setting that this torch warns about, as an error in the middle of a trace.
    @pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules is deprecated:FutureWarning")
    @pytest.mark.parametrize(
        ("loss_class", "source", "temperature", "backend"),
        [
            (DistillationLoss, "batch", "auto", "eager"),
            (DistillationLoss, "network", 0.1, "aot_eager"),
            (StudentDQNLoss, "network", "auto", "eager"),
            (StudentDQNLoss, "batch", 0.1, "aot_eager"),
        ],
    )
    def test_compiled_loss_and_gradient_equal_the_eager_ones(
        self, loss_class: type[DistillationLoss], source: str, temperature: float | str, backend: str
    ) -> None:
        """Without a graph break, and with the teacher still in eval mode inside and in its own outside."""
        torch._dynamo.reset()
        teacher = noisy_actor().train() if source == "network" else None
        loss = make(loss_class, actor(), teacher, teacher_temperature=temperature)
        batch = transitions() if source == "network" else with_teacher_values(transitions())
        eager = copy.deepcopy(loss)
        compiled = torch.compile(loss, fullgraph=True, backend=backend)
        for _ in range(2):  # the second call runs what the first one compiled
            expected, found = eager(batch), compiled(batch)
            for key in expected.keys():
                torch.testing.assert_close(found[key], expected[key])
            total(expected).backward()
            total(found).backward()
            torch.testing.assert_close(gradients(loss), gradients(eager))
        assert loss.teacher_temperature.item() == pytest.approx(eager.teacher_temperature.item())
        if teacher is not None:
            assert all(module.training for module in teacher.modules())
            assert all(parameter.grad is None for parameter in teacher.parameters())

    @pytest.mark.filterwarnings("ignore:torch._dynamo.config.inline_inbuilt_nn_modules is deprecated:FutureWarning")
    def test_every_divergence_compiles_whole(self) -> None:
        """With masks and weights; one graph of them all, forward and backward, without a break."""
        torch._dynamo.reset()
        batch = with_teacher_values(transitions())
        mask = torch.tensor([[True, True, False]] * 4 + [[False] * 3])
        batch.update({"action_mask": mask, "priority_weight": torch.linspace(0.1, 1.0, 5)})
        losses = nn.ModuleList(DistillationLoss(actor(), divergence=name) for name in DIVERGENCES)
        compiled = torch.compile(
            lambda batch: [loss(batch)["loss_distill"] for loss in losses], fullgraph=True, backend="aot_eager"
        )
        eager = [loss(batch)["loss_distill"] for loss in losses]
        sum(eager).backward()
        expected = [gradients(loss) for loss in losses]
        found = compiled(batch)
        sum(found).backward()
        torch.testing.assert_close(found, eager)
        torch.testing.assert_close([gradients(loss) for loss in losses], expected)


class TestErrors:
    """Early where possible, with the rule, the value and the remedy."""

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"divergence": "kl"}, "divergence must be one of forward_kl, reverse_kl, .*: got 'kl'"),
            ({"teacher_temperature": 0.0}, "teacher_temperature must be positive or auto: got 0.0; about 0.1"),
            ({"teacher_temperature": -1.0}, "teacher_temperature must be positive or auto: got -1.0"),
            ({"teacher_temperature": math.nan}, "teacher_temperature must be positive or auto: got nan"),
            ({"teacher_temperature": "automatic"}, "teacher_temperature must be positive or auto: got 'automatic'"),
            ({"teacher_temperature": None}, "teacher_temperature must be positive or auto: got None"),
            ({"student_temperature": 0}, "student_temperature must be positive or None: got 0"),
            ({"student_temperature": "auto"}, "student_temperature must be positive or None: got 'auto'"),
            ({"reduction": "average"}, "reduction must be none, mean or sum: got 'average'"),
            ({"use_prioritized_weights": "yes"}, "use_prioritized_weights must be True, False or auto: got 'yes'"),
        ],
    )
    def test_bad_options_are_refused_at_construction(
        self, loss_class: type[DistillationLoss], arguments: dict[str, Any], message: str
    ) -> None:
        """With what would have been right."""
        with pytest.raises(ValueError, match=message):
            loss_class(actor(), **arguments)

    def test_unknown_loss_function_is_refused_at_construction(self) -> None:
        """Not at the first update."""
        with pytest.raises(ValueError, match="loss_function must be l1, l2 or smooth_l1: got 'huber'"):
            StudentDQNLoss(actor(), loss_function="huber")

    @pytest.mark.parametrize("build", [lambda: DistillationLoss(len), lambda: DistillationLoss(actor(), "teacher")])
    def test_networks_must_be_modules(self, build: Callable[[], DistillationLoss]) -> None:
        """A TypeError that names what was passed."""
        with pytest.raises(TypeError, match=r"must be a TensorDictModule or nn.Module: got (builtin_function|str)"):
            build()

    @pytest.mark.parametrize("teacher_spec", [Categorical(6), OneHot(6)])
    @pytest.mark.parametrize("student_spec", [Categorical(18), OneHot(18)])
    def test_different_numbers_of_actions_are_refused_at_construction(
        self, teacher_spec: Categorical | OneHot, student_spec: Categorical | OneHot
    ) -> None:
        """Where both networks declare them."""
        message = "disagree on the number of actions: 6 and 18; build both from the same action spec"
        with pytest.raises(ValueError, match=message):
            DistillationLoss(actor(18, spec=student_spec), actor(6, spec=teacher_spec))

    @pytest.mark.parametrize("spec", [None, Bounded(-1.0, 1.0, shape=()), Bounded(-1.0, 1.0, shape=(2,))])
    def test_specs_that_do_not_count_actions_are_no_reason_to_refuse(self, spec: Any) -> None:
        """The call finds out."""
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["action_value"])
        teacher.spec = spec
        assert DistillationLoss(actor(), teacher)(transitions())["loss_distill"].isfinite()

    def test_different_numbers_of_actions_are_refused_at_a_call(self) -> None:
        """Where no spec gave them away."""
        loss = DistillationLoss(actor(), nn.Linear(4, 6))
        with pytest.raises(ValueError, match=r"number of actions: \[5, 6\] and \[5, 3\]; build both"):
            loss(transitions())

    @pytest.mark.parametrize("loss_class", [DistillationLoss, StudentDQNLoss])
    def test_missing_teacher_values_name_both_remedies(self, loss_class: type[DistillationLoss]) -> None:
        """A network, or values under the key."""
        message = (
            r"the batch has no \('teacher', 'action_value'\).*pass teacher_network.*set_keys\(teacher_action_value"
        )
        with pytest.raises(RuntimeError, match=message):
            make(loss_class, actor())(transitions())

    def test_missing_next_teacher_values_are_said_to_be_those_of_the_next_state(self) -> None:
        """The batch does have values, of the state."""
        batch = with_teacher_values(transitions())
        del batch["next", "teacher"]
        with pytest.raises(RuntimeError, match=r"the batch's next has no \('teacher', 'action_value'\)"):
            make(StudentDQNLoss, actor())(batch)

    def test_student_that_writes_another_key_is_named(self) -> None:
        """With what it wrote and how to say so."""
        student = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["scores"])
        message = r"student network wrote no 'action_value': it wrote \['observation', 'scores'\]; .*set_keys\(student_"
        with pytest.raises(KeyError, match=message):
            DistillationLoss(student, actor())(transitions())

    def test_teacher_that_writes_another_key_is_named(self) -> None:
        """Likewise."""
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["scores"])
        message = r"teacher network wrote no 'action_value': it wrote \['observation', 'scores'\]; .*set_keys\(teacher_"
        with pytest.raises(KeyError, match=message):
            DistillationLoss(actor(), teacher)(transitions())

    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_missing_inputs_of_a_network_are_named(self, role: str) -> None:
        """With what the batch has."""
        other = TensorDictModule(nn.Linear(4, 3), in_keys=["pixels"], out_keys=["action_value"])
        loss = DistillationLoss(other, actor()) if role == "student" else DistillationLoss(actor(), other)
        with pytest.raises(
            KeyError, match=rf"the {role} reads \['pixels'\], which the batch lacks: it has .*'observation'"
        ):
            loss(transitions())

    def test_missing_next_inputs_of_the_teacher_are_named(self) -> None:
        """And said to be those of the next state."""
        teacher = TensorDictModule(nn.Linear(4, 3), in_keys=["pixels"], out_keys=["action_value"])
        batch = transitions()
        batch["pixels"] = batch["observation"]
        with pytest.raises(KeyError, match=r"the teacher reads \['pixels'\], which the batch's next lacks"):
            make(StudentDQNLoss, actor(), teacher)(batch)

    @pytest.mark.parametrize("key", ["action", ("next", "reward"), ("next", "terminated"), ("next", "observation")])
    def test_missing_keys_of_the_temporal_difference_error_are_named(self, key: str | tuple[str, str]) -> None:
        """Terminated too, in whose place TorchRL would take done and make every cut an end."""
        batch = transitions()
        del batch[key]
        reader, named, place = "temporal-difference error", repr(key), "batch"
        if key == ("next", "observation"):  # found out by the network that reads it
            reader, named, place = "student", "'observation'", "batch's next"
        with pytest.raises(KeyError, match=re.escape(f"the {reader} reads [{named}], which the {place} lacks")):
            make(StudentDQNLoss, actor(), actor())(batch)

    def test_other_value_estimators_are_refused(self) -> None:
        """Only TD(0) lets the teacher choose the next action."""
        with pytest.raises(NotImplementedError, match=r"not implemented for loss StudentDQNLoss.*TD0"):
            StudentDQNLoss(actor(), actor()).make_value_estimator(ValueEstimators.TDLambda)

    @pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
    def test_priority_share_must_be_a_share(self, share: float) -> None:
        """At construction."""
        with pytest.raises(ValueError, match=f"priority_td_share must be within 0 and 1: got {share}"):
            StudentDQNLoss(actor(), priority_td_share=share)

    def test_values_of_another_batch_are_refused(self) -> None:
        """They would broadcast, or be off by a transition."""
        batch = transitions().set(("teacher", "action_value"), torch.zeros(5, 1, 3))
        loss = DistillationLoss(actor(), teacher_temperature=1.0)
        with pytest.raises(ValueError, match=r"\[\*B, A\] as the student's: got \[5, 1, 3\] and \[5, 3\]"):
            loss(batch)
        with pytest.raises(
            ValueError, match=r"disagree on the batch: \[4, 3\] and \[5, 3\]; store .* one row a sample"
        ):
            loss(observation=torch.zeros(5, 4), teacher_action_value=torch.zeros(4, 3))

    @pytest.mark.parametrize("role", ["teacher", "student"])
    def test_values_must_be_floating_point(self, role: str) -> None:
        """Actions are no values."""
        batch = with_teacher_values(transitions())
        student = actor()
        if role == "teacher":
            batch["teacher", "action_value"] = torch.ones(5, 3, dtype=torch.long)
        else:
            student = TensorDictModule(lambda observation: observation[:, :3].long(), ["observation"], ["action_value"])
        with pytest.raises(
            TypeError, match=rf"the {role}'s values must be floating point: .*action_value.* torch.int64"
        ):
            DistillationLoss(student)(batch)

    @pytest.mark.parametrize(
        ("mask", "error", "message"),
        [
            (torch.ones(5, 3), TypeError, r"'action_mask' is torch.float32 \[5, 3\]"),
            (torch.ones(5, 2, dtype=torch.bool), ValueError, r"'action_mask' is torch.bool \[5, 2\]"),
            (
                torch.ones(5, dtype=torch.bool),
                ValueError,
                r"'action_mask' is torch.bool \[5\]; .*set_keys\(action_mask",
            ),
        ],
    )
    def test_bad_masks_are_named(self, mask: Tensor, error: type[Exception], message: str) -> None:
        """Type and shape."""
        batch = with_teacher_values(transitions()).set("action_mask", mask)
        with pytest.raises(error, match=r"action mask must be bool \[5, 3\], True where allowed: " + message):
            DistillationLoss(actor())(batch)

    def test_bad_mask_of_the_next_state_is_named(self) -> None:
        """As that of the next state."""
        batch = with_teacher_values(transitions())
        batch["next", "action_mask"] = torch.ones(5, 3)
        with pytest.raises(TypeError, match=r"\('next', 'action_mask'\) is torch.float32"):
            make(StudentDQNLoss, actor())(batch)

    @pytest.mark.parametrize("shape", [(5, 3), (5, 1, 1)])
    def test_weights_of_another_shape_are_named(self, shape: tuple[int, ...]) -> None:
        """One a sample."""
        batch = with_teacher_values(transitions()).set("priority_weight", torch.ones(shape))
        message = rf"one a sample, \[5\] or \[5, 1\]: 'priority_weight' is \[{', '.join(map(str, shape))}\]"
        with pytest.raises(ValueError, match=message):
            DistillationLoss(actor())(batch)

    @pytest.mark.parametrize(
        ("action", "message"),
        [
            (torch.zeros(5), r"'action' is torch.float32 \[5\]"),
            (torch.zeros(5, 2, dtype=torch.long), r"'action' is torch.int64 \[5, 2\]"),
        ],
    )
    def test_bad_actions_are_named(self, action: Tensor, message: str) -> None:
        """Type and shape, with what they may be."""
        batch = with_teacher_values(transitions()).set("action", action)
        with pytest.raises(ValueError, match=r"integers \[5\] or one-hot \[5, 3\]: " + message):
            make(StudentDQNLoss, actor())(batch)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_student_whose_outputs_are_not_finite_is_named_at_the_first_call(self, value: float) -> None:
        """With how many samples it spoils."""
        batch = with_teacher_values(transitions())
        batch["observation"][1:3] = value
        message = "student's outputs must be finite: 2 of 5 samples are not; check its inputs, lower its learning rate"
        with pytest.raises(ValueError, match=message):
            DistillationLoss(actor())(batch)

    def test_numbers_are_looked_at_ever_more_rarely(self) -> None:
        """Looking waits for the device: at the 1st, 2nd, 4th, 8th call and so on."""
        loss, batch = DistillationLoss(actor()), with_teacher_values(transitions())
        found = []
        for call in range(1, 20):
            batch["observation"] = torch.full((5, 4), math.nan)
            try:
                loss(batch)
            except ValueError:
                found.append(call)
        assert found == [1, 2, 4, 8, 16]

    def test_what_takes_no_part_may_be_anything(self) -> None:
        """Forbidden actions, padding, and minus infinity where the teacher's policy has it, too."""
        forbidden = torch.tensor([0.0, 0.0, -math.inf])
        student = TensorDictModule(lambda observation: observation[:, :3], ["observation"], ["logits"])
        batch = transitions().set(("teacher", "action_value"), torch.zeros(5, 3) + forbidden)
        batch["observation"] = torch.cat([torch.zeros(5, 3) + forbidden, torch.zeros(5, 1)], -1)
        assert DistillationLoss(student)(batch)["loss_distill"].item() == 0.0
        batch["observation"][:, 2] = math.nan
        batch["action_mask"] = torch.tensor([[True, True, False]] * 5)
        assert DistillationLoss(student)(batch)["loss_distill"].item() == 0.0
        del batch["action_mask"]
        batch["collector", "mask"] = torch.zeros(5, 1, dtype=torch.bool)
        assert DistillationLoss(student)(batch)["loss_distill"].item() == 0.0
