"""Kickstarting: both terms in one step of a stock trainer, a pull that falls, and nothing of it at a weight of 0."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hook_parts import actor, cartpole_trainer, content
from kickstart_parts import StateAction, balancing, gaussian, pull_on, sac_trainer, state_of
from on_policy_parts import policy, ppo_trainer, pqn_trainer
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torchrl.data import Bounded
from torchrl.data import Categorical as Actions
from torchrl.modules import QValueActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, DiscreteSACLoss, DQNLoss, HardUpdate, SACLoss, SoftUpdate, TD3Loss

from torchrl_rtpd import (
    ContinuousDistillationLoss,
    DistillationLoss,
    GapSchedule,
    Kickstarting,
    KLGate,
    LinearSchedule,
    PQNLoss,
    TeacherDQNLoss,
)
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.schedules import Schedule
from torchrl_rtpd.trainers.policies import critic_parameters

Case = tuple[Any, PolicyDistillationLoss, TensorDict, Callable[[TensorDict], Tensor]]
TRAINERS = {
    "dqn": cartpole_trainer,
    "pqn": lambda: pqn_trainer()[0],
    "ppo": lambda: ppo_trainer()[0],
    "sac": sac_trainer,
}


def transitions(features: int, action: Tensor) -> TensorDict:
    """Eight transitions; what PPO needs is made up."""
    torch.manual_seed(3)
    steps = {name: torch.zeros(8, 1, dtype=torch.bool) for name in ("done", "terminated")}
    following = {"observation": torch.randn(8, features), "reward": torch.randn(8, 1), **steps}
    made_up = {"advantage": torch.randn(8, 1), "value_target": torch.randn(8, 1), "action_log_prob": -torch.rand(8)}
    return TensorDict({"observation": torch.randn(8, features), "action": action, "next": following, **made_up}, [8])


def discrete_kl(teacher: nn.Module, student: nn.Module, temperature: float) -> Callable[[TensorDict], Tensor]:
    """Mean KL by PyTorch's distributions, of modules on plain observations."""

    def divergence(batch: TensorDict) -> Tensor:
        policies = [Categorical(logits=net(batch["observation"]) / temperature) for net in (teacher, student)]
        return kl_divergence(*policies).mean()

    return divergence


def dqn_case() -> Case:
    student, teacher = actor(8, seed=1), actor(16, seed=2).requires_grad_(False)
    loss = DQNLoss(student, action_space="categorical", delay_value=False)
    pull = DistillationLoss(student, teacher, teacher_temperature=0.1, student_temperature=None)
    batch = transitions(4, torch.arange(8) % 2)
    return loss, pull, batch, discrete_kl(teacher.module[0].module, student.module[0].module, 0.1)


def ppo_case() -> Case:
    student, teacher = policy(8, 1), policy(16, 2).requires_grad_(False)
    loss = ClipPPOLoss(student, ValueOperator(nn.Linear(4, 1), in_keys=["observation"]))
    pull = DistillationLoss(student, teacher, teacher_temperature=1.0)
    return loss, pull, transitions(4, torch.arange(8) % 2), discrete_kl(teacher[0].module, student[0].module, 1.0)


def sac_case() -> Case:
    student, teacher = gaussian(8, seed=1), gaussian(16, seed=2).requires_grad_(False)
    loss = SACLoss(student, ValueOperator(StateAction(), in_keys=["observation", "action"]), delay_qvalue=False)

    def divergence(batch: TensorDict) -> Tensor:
        parts = [net[0].module(batch["observation"]) for net in (teacher, student)]
        return kl_divergence(*(Independent(Normal(*part), 1) for part in parts)).mean()

    return loss, ContinuousDistillationLoss(student, teacher), transitions(3, torch.rand(8, 1)), divergence


def discrete_sac_case() -> Case:
    student, teacher = policy(8, 1), policy(16, 2).requires_grad_(False)
    values = ValueOperator(nn.Linear(4, 2), in_keys=["observation"], out_keys=["action_value"])
    options: dict[str, Any] = {"action_space": "categorical", "num_actions": 2, "delay_qvalue": False}
    loss = DiscreteSACLoss(student, values, **options)
    pull = DistillationLoss(student, teacher, teacher_temperature=1.0)
    return loss, pull, transitions(4, torch.arange(8) % 2), discrete_kl(teacher[0].module, student[0].module, 1.0)


CASES = {"dqn": dqn_case, "ppo": ppo_case, "sac": sac_case, "discrete_sac": discrete_sac_case}


def gradients(loss: nn.Module, total: Tensor) -> dict[str, Tensor]:
    loss.zero_grad()
    total.backward()
    return {name: value.grad.clone() for name, value in loss.named_parameters() if value.grad is not None}


def total_of(losses: TensorDict) -> Tensor:
    return sum(value for name, value in losses.items() if name.startswith("loss"))


@pytest.mark.parametrize("case", CASES)
def test_the_step_is_on_the_sum_of_both_losses(case):
    """Value and gradients are those of TorchRL's loss plus 0.7 times a KL by PyTorch's distributions.

    Critics have the very gradients that they have without.
    """
    loss, pull, batch, divergence = CASES[case]()
    torch.manual_seed(0)
    alone = loss(batch.clone())
    critics = {id(parameter) for parameter in critic_parameters(loss)}
    names = {name for name, parameter in loss.named_parameters() if id(parameter) in critics}
    assert bool(names) == (case != "dqn")
    expected = total_of(alone) + 0.7 * divergence(batch)
    theirs = gradients(loss, expected)
    torch.manual_seed(0)
    unpulled = gradients(loss, total_of(loss(batch.clone())))
    Kickstarting(pull, distill_coeff=0.7).attach(loss)
    torch.manual_seed(0)
    losses = loss(batch.clone())
    ours = gradients(loss, total_of(losses))
    torch.testing.assert_close(total_of(losses), expected)
    torch.testing.assert_close(losses["loss_distill"], 0.7 * divergence(batch))
    torch.testing.assert_close(losses["kl_to_teacher"], divergence(batch).detach())
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name])
    assert all(torch.equal(ours[name], unpulled[name]) for name in names)
    assert set(losses.keys()) == set(alone.keys()) | set(pull.out_keys)


def test_a_deterministic_policy_is_pulled_by_its_actions():
    """TD3: to the gradient of the actor come 2 times that of the squared distance, to the critic's nothing."""
    student, teacher = (
        TensorDictModule(nn.Sequential(nn.Linear(3, 1), nn.Tanh()), in_keys=["observation"], out_keys=["action"])
        for _ in range(2)
    )
    values = ValueOperator(StateAction(), in_keys=["observation", "action"])
    loss = TD3Loss(student, values, action_spec=Bounded(-1, 1, (1,)), num_qvalue_nets=2)
    SoftUpdate(loss, tau=0.5)
    batch = transitions(3, torch.rand(8, 1))
    torch.manual_seed(0)
    alone = total_of(loss(batch.clone()))
    actions = [network.module(batch["observation"]) for network in (teacher, student)]
    expected = gradients(loss, alone + 2.0 * (actions[0].detach() - actions[1]).square().sum(-1).mean())
    Kickstarting(ContinuousDistillationLoss(student, teacher, divergence="mse"), distill_coeff=2.0).attach(loss)
    torch.manual_seed(0)
    found = gradients(loss, total_of(loss(batch.clone())))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("case", CASES)
def test_parameters_appear_once_and_stay_the_networks_own(case):
    """The loss has the parameters it had, and those of the pull are among them."""
    loss, pull, _, _ = CASES[case]()
    before = [id(parameter) for parameter in loss.parameters()]
    saved = list(loss.state_dict())
    Kickstarting(pull).attach(loss)
    after = [id(parameter) for parameter in loss.parameters()]
    assert after == before and len(set(after)) == len(after)
    assert {id(parameter) for parameter in pull.parameters()} < set(after) or case == "dqn"
    assert list(loss.state_dict()) == saved


@pytest.mark.parametrize("method", TRAINERS)
def test_a_coefficient_of_zero_is_the_trainer_alone(method, monkeypatch):
    """Weights, targets, moments and random stream, to the last bit; the teacher is not run."""
    alone = TRAINERS[method]()
    alone.train()
    expected = content(state_of(alone))
    trainer = TRAINERS[method]()
    random = torch.get_rng_state()  # from which the training draws
    pull = pull_on(trainer)
    monkeypatch.setattr(pull, "evaluate", lambda *_, **__: pytest.fail("the teacher was run"))
    Kickstarting(pull, distill_coeff=0.0).register(trainer)
    torch.set_rng_state(random)
    trainer.train()
    assert content(state_of(trainer)) == expected


@pytest.mark.parametrize("method", TRAINERS)
def test_stock_trainers_take_both_terms_in_one_step(method):
    """The student comes nearer to its teacher than it does without; divergence and coefficient are logged."""
    plain, trainer = TRAINERS[method](), TRAINERS[method]()
    plain.train()
    pull = pull_on(trainer)
    hook = Kickstarting(pull, distill_coeff=10.0)
    hook.register(trainer)
    trainer.train()
    reference = pull_on(plain)
    torch.manual_seed(5)
    batch = TensorDict({"observation": 0.1 * torch.randn(64, 3 if method == "sac" else 4)}, [64])
    assert pull(batch)["loss_distill"].item() < reference(batch)["loss_distill"].item()
    logged = trainer._log_dict
    assert set(logged["kickstart/distill_coeff"]) == {10.0}
    assert len(logged["loss_distill"]) == len(logged["kl_to_teacher"]) == len(logged["kickstart/distill_coeff"])
    assert hook.updates == {"dqn": 18, "pqn": 24, "ppo": 24, "sac": 12}[method]


def test_the_pull_falls_once_a_batch_and_ends():
    """Three batches of 8 updates: 1, then 1/2 after 8 of 16 updates, then 0, and nothing is logged of the pull."""
    trainer, _ = ppo_trainer()
    Kickstarting(pull_on(trainer), distill_coeff=LinearSchedule(1.0, 0.0, end_updates=16)).register(trainer)
    trainer.train()
    assert trainer._log_dict["kickstart/distill_coeff"] == [1.0, 0.5, 0.0]
    assert len(trainer._log_dict["loss_distill"]) == 2 and len(trainer._log_dict["loss_objective"]) == 3


def test_schedules_may_follow_returns_and_the_teachers_entropy():
    """Half way from the random player's 0 to the teacher's 4 the gap is 1/2; a certain teacher opens the gate."""
    loss, pull, batch, _ = ppo_case()
    hook = Kickstarting(pull, distill_coeff=GapSchedule(scale=3.0))
    hook.report_returns(2.0, teacher_return=4.0, random_return=0.0)
    assert hook.log() == {"kickstart/distill_coeff": 3.0} and hook.distill_coeff == 1.5
    certain = DistillationLoss(policy(8, 1), balancing(1e6), teacher_temperature=1.0)
    loss = ClipPPOLoss(certain.student_network, ValueOperator(nn.Linear(4, 1), in_keys=["observation"]))
    gate = Kickstarting(certain, distill_coeff=KLGate(2, floor=0.1))
    gate.attach(loss)
    loss(batch)
    gate.log()
    assert gate.distill_coeff == pytest.approx(1.0)


class Silent(Schedule):
    """One of a user's own, which opens once it knows the teacher's entropy."""

    def __init__(self):
        self.seen = []

    def __call__(self, state):
        self.seen.append(state.teacher_entropy)
        return 0.0 if state.teacher_entropy is None else 2.0


@pytest.mark.parametrize("make", [lambda: KLGate(2), Silent])
@pytest.mark.parametrize("method", ["dqn", "pqn", "ppo"])
def test_a_schedule_of_the_teachers_entropy_begins_at_zero(method, make):
    """A closed gate measures the teacher once a batch, and opens; the first batch is the trainer's alone."""
    trainer = TRAINERS[method]()
    hook = Kickstarting(pull_on(trainer), distill_coeff=make())
    runs = []
    logged = trainer._log_dict["kickstart/distill_coeff"]
    hook.loss.teacher_network.register_forward_hook(lambda *_: runs.append(len(logged)))
    hook.register(trainer)
    trainer.train()
    assert logged[0] == 0.0 and min(logged[1:]) > 0.0
    assert runs.count(0) == 1 and runs.count(1) > 1


def test_a_teachers_entropy_is_measured_at_no_cost_to_the_training():
    """A student with dropout and running statistics: weights, statistics and random stream are those without a hook."""
    found = []
    for gated in (False, True):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        loss = DQNLoss(QValueActor(layers, in_keys=["observation"], spec=Actions(2)), delay_value=False)
        if gated:
            student = loss.value_network
            pull = DistillationLoss(student, balancing(), teacher_temperature=1.0, student_temperature=None)
            pull.set_keys(priority="urgency")
            hook = Kickstarting(pull, distill_coeff=KLGate(2))
            hook.attach(loss)
        batch = transitions(4, torch.arange(8) % 2)
        torch.manual_seed(1)
        total_of(loss(batch)).backward()
        assert "urgency" not in batch.keys() and all(module.training for module in layers.modules())
        found.append(content([dict(layers.state_dict()), [p.grad for p in layers.parameters()], torch.get_rng_state()]))
    assert found[0] == found[1]
    hook.log()
    assert hook.distill_coeff > 0


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), np.int64(2)])
def test_every_real_number_is_a_coefficient(number):
    hook = Kickstarting(ppo_case()[1], distill_coeff=number)
    assert type(hook.distill_coeff) is float and hook.distill_coeff == float(number)
    values = {"scale": number, "floor": torch.tensor(0.25), "decay": np.float32(0.5)}
    gate = Kickstarting(ppo_case()[1], distill_coeff=KLGate(np.int64(2), **values))
    assert gate.distill_coeff == 0.25 * float(number)
    line = Kickstarting(ppo_case()[1], distill_coeff=LinearSchedule(number, np.float16(0), end_updates=np.int64(2)))
    line.after_update()
    line.log()
    assert line.distill_coeff == 0.5 * float(number) and type(line.state_dict()["distill_coeff"]) is float


def test_a_run_goes_on_where_it_was_saved():
    """Both terms of the next minibatch are the same in the restored run, with the noise of an estimate."""

    def built(batches: int) -> tuple[Any, Kickstarting]:
        trainer = sac_trainer(20 * batches)
        teacher = gaussian(8, seed=2, bound=1.0).requires_grad_(False)  # narrower: the KL to it is an estimate
        pull = ContinuousDistillationLoss(trainer.loss_module.actor_network, teacher)
        hook = Kickstarting(pull, distill_coeff=LinearSchedule(1.0, 0.0, end_updates=9))
        hook.register(trainer)
        return trainer, hook

    first, saved = built(1)
    first.train()
    state = copy.deepcopy(saved.state_dict())
    assert state["updates"] == 4 and state["distill_coeff"] == pytest.approx(5 / 9)
    assert not any("student_network" in name for name in state["loss"]) and "noise_state" in state["loss"]
    second, restored = built(1)
    restored.load_state_dict(state)
    assert content(restored.state_dict()) == content(state)
    second.loss_module.load_state_dict(first.loss_module.state_dict())
    batch = first.replay_buffer.sample()
    results = []
    for trainer in (first, second):
        torch.manual_seed(4)
        results.append(trainer.loss_module(batch.clone()))
    assert content(results[0].to_dict()) == content(results[1].to_dict())


def test_target_updaters_find_what_they_know():
    """Hard and soft updates of the loss itself: after a hard one targets are the weights."""
    student = actor(8, seed=1)
    loss = DQNLoss(student, action_space="categorical", delay_value=True)
    pull = DistillationLoss(
        student, actor(8, seed=2).requires_grad_(False), teacher_temperature=0.1, student_temperature=None
    )
    Kickstarting(pull).attach(loss)
    assert [type(kind).__name__ for kind in (SoftUpdate(loss, tau=0.5), HardUpdate(loss))] == [
        "SoftUpdate",
        "HardUpdate",
    ]
    updater = HardUpdate(loss, value_network_update_interval=0)
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    updater.step()
    target = loss.target_value_network_params.flatten_keys()
    assert all(torch.equal(target[name], value) for name, value in student.state_dict().items())


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "copy"])
@pytest.mark.parametrize("method", ["ppo", "pqn", "dqn"])
def test_a_copied_loss_works_and_holds_nothing_of_the_trainer(method, way):
    """It returns what the loss alone does; a hundred thousand bytes do not hold a replay of a million."""
    trainer = TRAINERS[method]()
    loss = trainer.loss_module
    Kickstarting(pull_on(trainer)).register(trainer)
    trainer.replay_buffer.ballast = bytearray(1_000_000)
    saved = io.BytesIO()
    if way == "torch.save":
        torch.save(loss, saved)
        other = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    elif way == "pickle":
        saved.write(pickle.dumps(loss))
        other = pickle.loads(saved.getvalue())
    else:
        other = getattr(copy, way)(loss)
    assert len(saved.getvalue()) < 100_000
    assert not any(getattr(hook, "hook", None) for hook in other._forward_hooks.values()) or way == "copy"
    batch = transitions(4, torch.arange(8) % 2)
    torch.manual_seed(0)
    plain = other(batch.clone())
    torch.manual_seed(0)
    pulled = loss(batch.clone())
    assert "loss_distill" in pulled and "loss_distill" not in plain
    assert all(torch.equal(plain[name], pulled[name]) for name in plain.keys())
    trainer.collector.shutdown()


def test_a_copied_loss_is_not_pulled_as_a_network_of_its_own():
    """A copy trains other parameters than those of its network, TorchRL's way, so that no pull can find them."""
    loss, pull, batch, _ = ppo_case()
    Kickstarting(pull).attach(loss)
    other = copy.deepcopy(loss)
    assert "loss_distill" in loss(batch) and "loss_distill" not in other(batch)
    own = DistillationLoss(other.actor_network, pull.teacher_network, teacher_temperature=1.0)
    with pytest.raises(
        ValueError, match=r"got a ClipPPOLoss that trains others, as copy.deepcopy leaves it; build the"
    ):
        Kickstarting(own).attach(other)


def test_weights_move_together():
    """In double precision both losses see one network."""
    loss, pull, batch, divergence = ppo_case()
    Kickstarting(pull).attach(loss)
    loss.double()
    pull.double()
    pull.teacher_network.double()
    batch = batch.apply(lambda value: value.double() if value.is_floating_point() else value)
    torch.testing.assert_close(loss(batch)["loss_distill"], divergence(batch))


def shared_values(kind: str) -> tuple[Any, QValueActor, TensorDict]:
    """A loss that writes its network's values for students, its network and a minibatch that both losses read."""
    student = QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Actions(3))
    loss = PQNLoss(student) if kind == "pqn" else TeacherDQNLoss(student, action_space="categorical")
    flags = torch.zeros(5, 1, dtype=torch.bool)
    following = {"observation": torch.randn(5, 4), "reward": torch.ones(5, 1), "done": flags, "terminated": flags}
    batch = {"observation": torch.randn(5, 4), "action": torch.zeros(5, dtype=torch.long), "next": following}
    return loss, student, TensorDict({**batch, "value_target": torch.ones(5, 1)}, [5])


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize("kind", ["dqn", "pqn"])
def test_the_pull_is_to_its_teacher_beside_losses_that_write_their_own_values(kind: str) -> None:
    """They write the student's, to which the student's divergence is nothing."""
    torch.manual_seed(0)
    rl_loss, student, batch = shared_values(kind)
    teacher = QValueActor(nn.Linear(4, 3), in_keys=["observation"], spec=Actions(3)).requires_grad_(False)
    pull = DistillationLoss(student, teacher, teacher_temperature=0.1, student_temperature=None)
    wanted = pull(batch.clone())
    Kickstarting(pull, distill_coeff=1.0).attach(rl_loss)
    found = rl_loss(batch)
    assert found["kl_to_teacher"] == wanted["kl_to_teacher"] > 0.1


@pytest.mark.parametrize("kind", ["dqn", "pqn"])
def test_without_a_teacher_beside_such_a_loss_is_refused(kind: str) -> None:
    rl_loss, student, _ = shared_values(kind)
    pull = DistillationLoss(student, teacher_temperature=0.1, student_temperature=None)
    with pytest.raises(ValueError, match=f"needs a teacher of its own: {type(rl_loss).__name__} writes the student's"):
        Kickstarting(pull).attach(rl_loss)
