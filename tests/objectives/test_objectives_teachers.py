"""Teachers of every discrete kind TorchRL has: values, distributions of returns, policies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.distributions import Categorical as Distribution
from torch.distributions import kl_divergence
from torchrl.data import Categorical, OneHot
from torchrl.modules import (
    ActorValueOperator,
    DistributionalQValueActor,
    EGreedyModule,
    OneHotCategorical,
    ProbabilisticActor,
    QValueActor,
    ValueOperator,
)
from torchrl.objectives import ClipPPOLoss, DiscreteSACLoss, DistributionalDQNLoss, SoftUpdate

from torchrl_rtpd.objectives.discrete import DIVERGENCES, DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.schedules import LinearSchedule, RunState, apply_schedules

NUM_ATOMS = 5
SUPPORT = torch.linspace(-2.0, 2.0, NUM_ATOMS)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Weights are drawn from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def value_actor(spec: Any = None) -> QValueActor:
    return QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Categorical(3) if spec is None else spec)


def distributional_actor() -> DistributionalQValueActor:
    network = nn.Sequential(nn.Linear(4, NUM_ATOMS * 3), nn.Unflatten(-1, (NUM_ATOMS, 3)))
    return DistributionalQValueActor(network, support=SUPPORT, in_keys=["observation"], spec=OneHot(3))


def policy(
    distribution_class: type = OneHotCategorical, out_key: Any = "logits", network: nn.Module | None = None
) -> ProbabilisticActor:
    module = TensorDictModule(nn.Linear(4, 3) if network is None else network, ["observation"], [out_key])
    name = out_key if isinstance(out_key, str) else out_key[-1]
    return ProbabilisticActor(module, in_keys={name: out_key}, distribution_class=distribution_class)


def states(size: int = 5) -> TensorDict:
    return TensorDict({"observation": torch.randn(size, 4)}, [size])


def transitions(size: int = 5) -> TensorDict:
    batch = states(size).set("action", torch.randint(3, (size,)))
    over = torch.zeros(size, 1, dtype=torch.bool)
    return batch.set(
        "next", states(size).update({"reward": torch.randn(size, 1), "done": over, "terminated": over.clone()})
    )


def independent_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    return kl_divergence(Distribution(logits=teacher / temperature), Distribution(logits=student / temperature)).mean()


class TestDistributionalTeachers:
    """Distributions of returns are reduced to action values."""

    def expected_values(self, teacher: DistributionalQValueActor, batch: TensorDict) -> Tensor:
        """By hand, with the weights of the one layer."""
        with torch.no_grad():
            atoms = teacher[0].module[0](batch["observation"]).reshape(-1, NUM_ATOMS, 3).softmax(1)
        return sum(SUPPORT[atom] * atoms[:, atom] for atom in range(NUM_ATOMS))

    def test_support_of_a_c51_network_is_found(self) -> None:
        """TorchRL's actor writes log-probabilities over atoms as "action_value"."""
        student, teacher, batch = value_actor(), distributional_actor(), states()
        values = student[0].module(batch["observation"]).detach()
        expected = independent_kl(self.expected_values(teacher, batch), values)
        loss = DistillationLoss(student, teacher, teacher_temperature=1.0)
        torch.testing.assert_close(loss(batch)["loss_distill"], expected)
        exploring = TensorDictSequential(teacher, EGreedyModule(spec=OneHot(3)))
        loss = DistillationLoss(student, exploring, teacher_temperature=1.0)
        torch.testing.assert_close(loss(batch)["loss_distill"], expected)

    @pytest.mark.parametrize("support", [SUPPORT, SUPPORT.tolist()], ids=["tensor", "list"])
    @pytest.mark.parametrize("stored", ["distribution", "values"])
    def test_stored_distributions_are_reduced_with_the_support_given(self, support: Any, stored: str) -> None:
        """What is stored as action values already stays as it is."""
        student, teacher, batch = value_actor(), distributional_actor(), states()
        values = self.expected_values(teacher, batch)
        with torch.no_grad():
            distribution = teacher(batch.clone())["action_value"]
        assert distribution.shape == (5, NUM_ATOMS, 3)
        batch["teacher", "action_value"] = distribution if stored == "distribution" else values
        loss = DistillationLoss(student, teacher_temperature=1.0, teacher_support=support)
        expected = independent_kl(values, student[0].module(batch["observation"]).detach())
        torch.testing.assert_close(loss(batch)["loss_distill"], expected)

    def test_quantiles_are_averaged(self) -> None:
        """Whatever their number, from the batch and from a network."""
        student, batch = value_actor(), states()
        network = nn.Sequential(nn.Linear(4, 21), nn.Unflatten(-1, (7, 3)))
        teacher = TensorDictModule(network, ["observation"], ["action_value"])
        with torch.no_grad():
            quantiles = network(batch["observation"])
        values = student[0].module(batch["observation"]).detach()
        expected = independent_kl(quantiles.sum(1) / 7, values)
        computed = DistillationLoss(student, teacher, teacher_temperature=1.0, teacher_support="quantiles")
        torch.testing.assert_close(computed(batch)["loss_distill"], expected)
        given = DistillationLoss(student, teacher_temperature=1.0, teacher_support="quantiles")
        batch["teacher", "action_value"] = quantiles
        torch.testing.assert_close(given(batch)["loss_distill"], expected)

    @pytest.mark.parametrize("source", ["network", "batch"])
    def test_imitation_target_lets_the_expected_value_choose(self, source: str) -> None:
        """Also in the next state; the same from the network as from what it wrote."""
        teacher, batch = distributional_actor(), transitions()
        loss = StudentDQNLoss(value_actor(), teacher if source == "network" else None, teacher_support=SUPPORT)
        SoftUpdate(loss, tau=0.1)
        if source == "batch":
            with torch.no_grad():
                for part in (batch, batch["next"]):
                    part["teacher", "action_value"] = teacher(part.select("observation"))["action_value"]
        chosen = self.expected_values(teacher, batch["next"]).argmax(-1)
        student = loss.student_network[0].module
        with torch.no_grad():
            following, values = student(batch["next", "observation"]), student(batch["observation"])
        target = batch["next", "reward"].squeeze(-1) + 0.99 * following[torch.arange(5), chosen]
        expected = (target - values[torch.arange(5), batch["action"]]).square().mean()
        torch.testing.assert_close(loss(batch)["loss_td"], expected)

    def test_network_of_torchrls_own_loss_teaches(self) -> None:
        """DistributionalDQNLoss keeps the network it was given."""
        teacher = distributional_actor()
        DistributionalDQNLoss(teacher, gamma=0.9)
        loss = DistillationLoss(value_actor(), teacher)
        loss(states())["loss_distill"].backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_support_moves_with_the_loss_and_is_not_saved(self) -> None:
        """It is the teacher's, not the student's state."""
        loss = DistillationLoss(value_actor(), teacher_support=SUPPORT)
        assert "teacher_support" not in loss.state_dict()
        assert loss.to(torch.float64).teacher_support.dtype == torch.float64
        assert copy.deepcopy(loss).teacher_support is not loss.teacher_support

    def test_distributions_without_a_support_are_refused(self) -> None:
        """With the keyword that is missing."""
        batch = states().set(("teacher", "action_value"), torch.zeros(5, NUM_ATOMS, 3))
        message = r"must be \[\*B, A\] as the student's: got \[5, 5, 3\] and \[5, 3\]; pass teacher_support"
        with pytest.raises(ValueError, match=message):
            DistillationLoss(value_actor())(batch)

    def test_support_of_another_length_is_refused(self) -> None:
        """Before numbers are mixed up."""
        batch = states().set(("teacher", "action_value"), torch.zeros(5, NUM_ATOMS, 3))
        with pytest.raises(ValueError, match=r"N atoms as in the support: got \[5, 5, 3\] and \[7\]"):
            DistillationLoss(value_actor(), teacher_support=torch.arange(7.0))(batch)

    @pytest.mark.parametrize(
        ("support", "message"),
        [
            ("quantile", "teacher_support must be a tensor, quantiles or auto: got 'quantile'"),
            (torch.zeros(2, 3), r"teacher_support must be the returns of the atoms, \[N\]: got \[2, 3\]"),
        ],
    )
    def test_bad_supports_are_refused_at_construction(self, support: Any, message: str) -> None:
        """A name that is none, or too many dimensions."""
        with pytest.raises(ValueError, match=message):
            DistillationLoss(value_actor(), teacher_support=support)


class TestPolicies:
    """Actors that write logits or probabilities."""

    @pytest.mark.parametrize("distribution_class", [OneHotCategorical, Distribution])
    @pytest.mark.parametrize("divergence", DIVERGENCES)
    def test_policy_teaches_a_policy_without_set_keys(self, distribution_class: type, divergence: str) -> None:
        """PPO's, A2C's and discrete SAC's actors write "logits"; every student parameter learns, no teacher's does."""
        student, teacher, batch = policy(distribution_class), policy(distribution_class), states()
        loss = DistillationLoss(student, teacher, divergence=divergence, teacher_temperature=1.0)
        losses = loss(batch)
        with torch.no_grad():
            logits = [actor[0].module(batch["observation"]) for actor in (teacher, student)]
        torch.testing.assert_close(losses["kl_to_teacher"], independent_kl(*logits))
        losses["loss_distill"].backward()
        assert all(parameter.grad.any() for parameter in loss.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())

    @pytest.mark.parametrize("out_key", ["logits", "probs"])
    @pytest.mark.parametrize("student", [value_actor, policy], ids=["values", "policy"])
    def test_student_may_be_of_another_kind(self, out_key: str, student: Callable[[], TensorDictModule]) -> None:
        """A value network learns from a policy; probabilities and logits of one policy teach the same."""
        layer = nn.Linear(4, 3)
        network = layer if out_key == "logits" else nn.Sequential(layer, nn.Softmax(-1))
        pupil, batch = student(), states()
        loss = DistillationLoss(pupil, policy(Distribution, out_key, network), teacher_temperature=1.0)
        with torch.no_grad():
            expected = independent_kl(*(net(batch["observation"]) for net in (layer, pupil[0].module)))
        torch.testing.assert_close(loss(batch)["loss_distill"], expected)

    def test_student_that_writes_probabilities_learns(self) -> None:
        """Finite also for those it has given up."""
        network = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1))
        nn.init.constant_(network[0].bias, 0.0)
        network[0].bias.data[0] = 200.0
        loss = DistillationLoss(policy(Distribution, "probs", network), policy(), teacher_temperature=1.0)
        losses = loss(states())
        losses["loss_distill"].backward()
        assert losses["loss_distill"].isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())

    @pytest.mark.parametrize("key", [("agent", "logits"), ("agent", "policy", "logits")])
    def test_nested_logits_are_read_where_set_keys_says(self, key: tuple[str, ...]) -> None:
        """The student's under its full key, the teacher's under the same."""
        student, teacher, batch = policy(Distribution, key), policy(Distribution, key), states()
        loss = DistillationLoss(student, teacher, teacher_temperature=1.0)
        loss.set_keys(student_action_value=key, teacher_action_value=key)
        with torch.no_grad():
            expected = independent_kl(*(actor[0].module(batch["observation"]) for actor in (teacher, student)))
        torch.testing.assert_close(loss(batch)["loss_distill"], expected)

    def test_a_name_that_was_set_is_meant(self) -> None:
        """A typo does not fall back to the usual names."""
        loss = DistillationLoss(policy(), policy())
        loss.set_keys(student_action_value="logit")
        with pytest.raises(KeyError, match=r"student network wrote no 'logit': it wrote .*'logits'"):
            loss(states())

    @pytest.mark.parametrize("stored", [False, True])
    @pytest.mark.parametrize("out_key", ["logits", "probs"])
    def test_a_default_temperature_between_policies_is_warned_of_once(self, stored: bool, out_key: str) -> None:
        """Of a network and of what is stored under the name of a policy's output."""
        layer = nn.Linear(4, 3)
        network = layer if out_key == "logits" else nn.Sequential(layer, nn.Softmax(-1))
        teacher, batch = policy(Distribution, out_key, network), states()
        loss = DistillationLoss(policy(), None if stored else teacher)
        if stored:
            batch["teacher", out_key] = network(batch["observation"]).detach()
            loss.set_keys(teacher_action_value=("teacher", out_key))
        with pytest.warns(UserWarning, match=r"policies, .* the default for action values, 0.01: the") as caught:
            loss(batch)
            loss(batch)
        assert len(caught) == 1
        assert "Pass teacher_temperature=1.0, or this one if that is the purpose" in str(caught[0].message)

    @pytest.mark.parametrize("divergence", DIVERGENCES)
    @pytest.mark.parametrize("given", [{"teacher_temperature": 0.01}, {"teacher_temperature": "auto"}, {}])
    def test_temperatures_that_mean_something_are_not_warned_of(self, divergence: str, given: dict[str, Any]) -> None:
        """A default was given, one is scheduled, one of the two has action values, or none is softened."""
        plain = {} if divergence in ("mse", "huber", "nll") else {"teacher_temperature": 0.01}
        DistillationLoss(policy(), policy(), divergence=divergence, **(given or plain))(states())
        DistillationLoss(policy(), value_actor(), divergence=divergence, **given)(states())
        DistillationLoss(value_actor(), policy(), divergence=divergence, **given)(states())
        if given.get("teacher_temperature") != "auto":
            loss = DistillationLoss(policy(), policy(), divergence=divergence, **given)
            apply_schedules(loss, {"teacher_temperature": LinearSchedule(1.0, 0.5, end_updates=9)}, RunState(0))
            loss(states())

    @pytest.mark.parametrize("hooked", [False, True])
    def test_nothing_is_drawn(self, hooked: bool) -> None:
        """The global generator stands where it stood, also if a hook makes the actors run whole."""
        student, teacher, batch = policy(), policy(), states()
        calls = []
        if hooked:
            for actor in (student, teacher):
                actor.register_forward_hook(lambda *_: calls.append(1))
        loss = DistillationLoss(student, teacher, teacher_temperature=1.0)
        before = torch.get_rng_state()
        loss(batch)["loss_distill"].backward()
        assert torch.equal(torch.get_rng_state(), before)
        assert len(calls) == (2 if hooked else 0)

    def test_actors_of_ppo_and_discrete_sac_teach(self) -> None:
        """The networks that TorchRL's own losses hold, one with a trunk that actor and critic share."""
        trunk = TensorDictModule(nn.Linear(4, 8), ["observation"], ["hidden"])
        head = ProbabilisticTensorDictSequential(*policy(network=nn.Linear(8, 3)))
        head[0].in_keys = ["hidden"]
        both = ActorValueOperator(trunk, head, ValueOperator(nn.Linear(8, 1), in_keys=["hidden"]))
        ppo = ClipPPOLoss(both.get_policy_operator(), both.get_value_operator())
        sac_teacher = policy()
        critic = TensorDictModule(nn.Linear(4, 3), ["observation"], ["action_value"])
        sac = DiscreteSACLoss(sac_teacher, critic, num_actions=3, action_space="one-hot")
        batch = states()
        for actor in (ppo.actor_network, sac_teacher, sac.actor_network):
            loss = DistillationLoss(policy(), actor, teacher_temperature=1.0)
            with torch.no_grad():
                wanted = actor(batch.clone())["logits"]
                expected = independent_kl(wanted, loss.student_network[0].module(batch["observation"]))
            torch.testing.assert_close(loss(batch)["loss_distill"], expected)

    def test_logits_may_be_stored(self) -> None:
        """Under a key that set_keys names; "probs" at its end says what they are."""
        student, batch = policy(), states()
        logits = torch.randn(5, 3)
        values = []
        for key, stored in ((("old", "logits"), logits), (("old", "probs"), logits.softmax(-1))):
            loss = DistillationLoss(student, teacher_temperature=1.0)
            loss.set_keys(teacher_action_value=key)
            values.append(loss(batch.copy().set(key, stored))["loss_distill"].item())
        assert values[0] == pytest.approx(values[1], rel=1e-5)


class TestParts:
    """Networks are run as far as they are needed, and no further."""

    @pytest.mark.parametrize("kind", ["values", "policy", "distribution"])
    def test_choice_of_an_action_is_left_out(self, kind: str) -> None:
        """It costs more than a tiny student's own layers."""
        network = {"values": value_actor, "policy": policy, "distribution": distributional_actor}[kind]()
        calls = []
        handle = nn.modules.module.register_module_forward_pre_hook(lambda module, _: calls.append(type(module)))
        try:
            DistillationLoss(value_actor(), network)(states())
        finally:
            handle.remove()
        assert type(network[-1]) not in calls
        assert calls.count(nn.Linear) == 2

    def test_network_with_a_hook_is_run_whole(self) -> None:
        """Its owner expects to see every call, here one a loss."""
        student, seen = value_actor(), []
        student.register_forward_hook(lambda module, inputs, output: seen.append(sorted(output.keys())))
        loss = DistillationLoss(student, value_actor())
        loss(states())
        assert seen == [["action", "action_value", "chosen_action_value", "observation"]]

    def test_module_with_several_outputs_is_read_at_its_key(self) -> None:
        """Values second, as a tuple or by name."""

        class Both(nn.Module):
            def __init__(self, named: bool) -> None:
                super().__init__()
                self.layer, self.named = nn.Linear(4, 3), named

            def forward(self, observation: Tensor) -> Any:
                values = self.layer(observation)
                if self.named:
                    return TensorDict({"other": -values, "action_value": values}, values.shape[:-1])
                return -values, values

        batch = states()
        for named in (False, True):
            student = TensorDictModule(Both(named), ["observation"], ["other", "action_value"])
            teacher = TensorDictModule(Both(named), ["observation"], ["other", "action_value"])
            with torch.no_grad():
                expected = independent_kl(*(net.module.layer(batch["observation"]) for net in (teacher, student)))
            found = DistillationLoss(student, teacher, teacher_temperature=1.0)(batch)["loss_distill"]
            torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("moved", ["deepcopy", "float64 and back", "target"])
    def test_parameters_of_the_loss_are_those_that_run(self, moved: str) -> None:
        """A copy or a cast may part the network's own from the loss's, which are the ones trained and saved."""
        batch = transitions()
        norm = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        student = QValueActor(norm, in_keys=["observation"], spec=Categorical(3)).eval()
        loss = StudentDQNLoss(student, value_actor())
        SoftUpdate(loss, tau=0.1)
        loss.target_student_network_params.data.apply_(lambda value: value + 1 if value.is_floating_point() else value)
        expected = loss(batch)
        if moved == "deepcopy":
            loss = copy.deepcopy(loss)
        elif moved == "float64 and back":
            loss = loss.to(torch.float64).to(torch.float32)
        for key, value in loss(batch).items():
            torch.testing.assert_close(value, expected[key])
        with loss.student_network_params.to_module(loss.student_network, preserve_module_state=False):
            values = loss.student_network(batch.select("observation"))["action_value"]
        with loss.target_student_network_params.to_module(loss.student_network, preserve_module_state=False):
            following = loss.student_network(batch["next"].select("observation"))["action_value"]
        with loss._student() as network:
            assert torch.equal(network(batch.select("observation"))["action_value"], values)
        with loss._student(loss.target_student_network_params) as network:
            assert torch.equal(network(batch["next"].select("observation"))["action_value"], following)
        assert not torch.equal(values, following)

    def test_networks_own_parameters_are_back_after_an_error(self) -> None:
        """Whatever happens while others are lent."""
        student = value_actor()
        loss = StudentDQNLoss(student, value_actor())
        SoftUpdate(loss, tau=0.1)
        own = list(student.parameters())
        with pytest.raises(RuntimeError, match="on purpose"):
            with loss._student(loss.target_student_network_params):
                raise RuntimeError("on purpose")
        assert all(mine is now for mine, now in zip(own, student.parameters(), strict=True))

    def test_recurrent_students_are_lent_targets_too(self) -> None:
        """PyTorch's recurrent layers keep their weights in a list besides."""

        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.memory, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3)

            def forward(self, observation: Tensor) -> Tensor:
                return self.head(self.memory(observation.unsqueeze(-2))[0].squeeze(-2))

        student = QValueActor(Recurrent(), in_keys=["observation"], spec=Categorical(3))
        loss, batch = StudentDQNLoss(student, value_actor()), states()
        SoftUpdate(loss, tau=0.1)
        loss.target_student_network_params.data.zero_()
        with loss._student(loss.target_student_network_params) as network:
            assert not network(batch.select("observation"))["action_value"].any()
        assert student(batch.select("observation"))["action_value"].any()
