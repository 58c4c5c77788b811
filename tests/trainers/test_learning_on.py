"""Learning on: a distilled student's weights, moments and targets go on in the trainer that it then learns by."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hook_parts import actor, cartpole_trainer, content, student_loss
from kickstart_parts import balancing, gaussian, sac_trainer
from on_policy_parts import policy, ppo_trainer
from tensordict import TensorDict
from torch import nn
from torch.optim import SGD, Adam, RAdam
from torchrl.objectives import SoftUpdate

from torchrl_rtpd import (
    ContinuousDistillationLoss,
    DistillationLoss,
    Kickstarting,
    LinearSchedule,
    RealTimeDistillTrainer,
    StudentDQNLoss,
    learn_on,
)
from torchrl_rtpd.trainers.student import Student


def taught(loss: Any, kind: Any = Adam, *, updates: int = 3, features: int = 4) -> Student:
    """A student after a few updates on made-up states, with moments."""
    student = Student("small", loss, partial(kind, lr=1e-2))
    if isinstance(loss, StudentDQNLoss):
        SoftUpdate(loss, tau=0.5)  # which TorchRL asks for
    torch.manual_seed(7)
    for _ in range(updates):
        following = {"observation": torch.randn(8, features), "reward": torch.rand(8, 1)}
        following |= {name: torch.ones(8, 1, dtype=torch.bool) for name in ("done", "terminated")}
        batch = {"observation": torch.randn(8, features), "action": torch.arange(8) % 2, "next": following}
        student.learn(TensorDict(batch, [8]))
    return student


def student_of(method: str, *, seed: int = 1) -> tuple[Student, Any, Any]:
    """A student, a trainer of another network of its layout, and that network."""
    if method == "dqn":
        trainer = cartpole_trainer()
        return (
            taught(StudentDQNLoss(actor(seed=seed), balancing(), imitation=False)),
            trainer,
            trainer.loss_module.value_network,
        )
    if method == "ppo":
        trainer, learner = ppo_trainer()
        return taught(DistillationLoss(policy(32, 5), balancing(), teacher_temperature=1.0), RAdam), trainer, learner
    trainer = sac_trainer()
    loss = ContinuousDistillationLoss(gaussian(8, seed=5), gaussian(8, seed=2).requires_grad_(False))
    return taught(loss, features=3), trainer, trainer.loss_module.actor_network


@pytest.mark.parametrize("method", ["dqn", "ppo", "sac"])
def test_weights_moments_and_targets_go_on(method):
    """Bit for bit, into a network of the same layout; what the student has not, such as a critic, is left alone."""
    student, trainer, learner = student_of(method)
    before = {id(parameter): content(parameter) for parameter in trainer.loss_module.parameters()}
    own = list(student.loss.student_network.parameters())
    learn_on(student, trainer)
    found = list(learner.parameters())
    assert content(found) == content(own)
    for source, parameter in zip(own, found, strict=True):
        assert content(trainer.optimizer.state[parameter]) == content(student.optimizer.state[source])
        for name, value in trainer.optimizer.state[parameter].items():
            assert value.data_ptr() != student.optimizer.state[source][name].data_ptr()
    others = [parameter for parameter in trainer.loss_module.parameters() if not any(parameter is one for one in found)]
    assert all(content(parameter) == before[id(parameter)] for parameter in others)
    for name, target in trainer.loss_module.named_children():
        if name.startswith("target_"):
            source = getattr(trainer.loss_module, name.removeprefix("target_"))
            assert content(target.to_dict()) == content(source.data.to_dict())
    state = content(trainer.optimizer.state_dict())
    trainer.train()
    assert content(trainer.optimizer.state_dict()) != state


def test_the_students_own_network_goes_on_as_it_is():
    """A loss on the student's network: the trainer's next step of RAdam is that of the student's optimiser."""
    trainer, learner = ppo_trainer(1)
    student = taught(DistillationLoss(learner[0], balancing(), teacher_temperature=1.0), RAdam)
    student.optimizer.param_groups[0]["lr"] = 1e-3
    weights = content(learner.state_dict())
    learn_on(student, trainer)
    assert content(learner.state_dict()) == weights
    parameters = list(learner.parameters())
    start, stepped = [parameter.detach().clone() for parameter in parameters], []
    for optimizer in (student.optimizer, trainer.optimizer):
        for parameter, value in zip(parameters, start, strict=True):
            parameter.data.copy_(value)
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        stepped.append(content(parameters))
    assert stepped[0] == stepped[1] != content(start)


def test_a_fresh_optimiser_has_no_moments_of_the_student():
    """Those it had of these parameters are dropped, and others stay."""
    student, trainer, learner = student_of("ppo")
    for parameter in trainer.loss_module.parameters():
        trainer.optimizer.state[parameter] = {"step": torch.tensor(1.0)}
    learn_on(student, trainer, optimizer="fresh")
    kept = {id(parameter) for parameter in trainer.optimizer.state}
    assert kept == {id(parameter) for parameter in trainer.loss_module.critic_network.parameters()}
    assert content(list(learner.parameters())) == content(list(student.loss.student_network.parameters()))


def test_a_loss_alone_gives_its_weights():
    """A student whose optimiser is gone."""
    student, trainer, learner = student_of("ppo")
    learn_on(student.loss, trainer, optimizer="fresh")
    assert content(list(learner.parameters())) == content(list(student.loss.student_network.parameters()))
    with pytest.raises(ValueError, match=r"got DistillationLoss, a loss, which has none; pass hook.learners\[name\]"):
        learn_on(student.loss, trainer)


def test_running_statistics_go_on_as_well():
    """Buffers of a batch normalisation, under the names that both networks have."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))

    trainer = cartpole_trainer()
    loss = type(trainer.loss_module)
    learner, source = network(), network()
    trainer.loss_module = loss(learner, action_space="categorical", delay_value=True)
    source(torch.randn(8, 4))
    learn_on(StudentDQNLoss(source), trainer, optimizer="fresh")
    assert content(learner.state_dict()) == content(source.state_dict())
    held = trainer.loss_module.value_network_params.flatten_keys(".")
    assert all(torch.equal(held["module.0.module." + name], value) for name, value in source.state_dict().items())


@pytest.mark.parametrize("method", ["ppo", "sac"])
def test_a_critic_may_learn_first(method):
    """The student's weights and moments wait for five updates, and its moments then go on."""
    student, trainer, learner = student_of(method)
    learn_on(student, trainer, critic_warmup_updates=5)
    assert not any(parameter.requires_grad for parameter in learner.parameters())
    trainer.train()
    updates = {"ppo": 24, "sac": 12}[method]
    steps = {int(trainer.optimizer.state[parameter]["step"]) for parameter in learner.parameters()}
    assert steps == {3 + updates - 5}


def test_a_hooks_student_goes_on():
    """The whole way: taught beside a teacher, then by its own games, with its target network set to it."""
    first = cartpole_trainer()
    hook = RealTimeDistillTrainer({"small": student_loss(16)}, optimizer=partial(Adam, lr=1e-2))
    hook.register(first)
    first.train()
    second = cartpole_trainer(seed=1)
    learn_on(hook.learners["small"], second)
    assert content(second.loss_module.value_network.state_dict()) == content(
        hook.students["small"].student_network.state_dict()
    )
    second.train()
    steps = {int(state["step"]) for state in second.optimizer.state.values()}
    assert steps == {18 + 18}


def test_a_run_that_learns_on_is_restored_from_its_state():
    """Saved in the middle of the warm-up by TorchRL, with a pull: weights, moments and what is left of both go on."""

    def built() -> tuple[Any, Any, Kickstarting]:
        trainer, learner = ppo_trainer(2)  # 16 updates
        pull = DistillationLoss(learner, balancing(), teacher_temperature=1.0)
        hook = Kickstarting(pull, distill_coeff=LinearSchedule(1.0, 0.0, end_updates=16))
        hook.register(trainer)
        student = taught(DistillationLoss(policy(32, 5), balancing(), teacher_temperature=1.0), RAdam)
        learn_on(student, trainer, critic_warmup_updates=10)
        return trainer, learner, hook

    first, learner, _ = built()
    states: list[dict[str, Any]] = []
    networks: list[Any] = []

    def save() -> None:
        states.append(copy.deepcopy(first.state_dict()))
        networks.append(content(learner.state_dict()))

    first.register_op("post_steps", save)
    first.train()
    second, other, hook = built()
    second.load_state_dict(states[0])
    assert hook.updates == 8 and hook.distill_coeff == 0.5
    assert content(other.state_dict()) == networks[0] != networks[1]
    assert content(second.optimizer.state_dict()) == content(states[0]["optimizer"])
    second.train()  # 8 updates more, in the last 6 of which the actor learns
    assert {int(second.optimizer.state[parameter]["step"]) for parameter in other.parameters()} == {3 + 6}


def test_the_collector_is_sent_the_weights(monkeypatch):
    """Before the first batch, as after every batch: workers have weights of their own."""
    student, trainer, learner = student_of("ppo")
    sent = []
    monkeypatch.setattr(trainer.collector, "update_policy_weights_", lambda weights: sent.append(weights))
    learn_on(student, trainer)
    assert len(sent) == 1
    assert content(sent[0].flatten_keys(".").to_dict()) == content(dict(learner.state_dict()))


@pytest.mark.parametrize("kind", [Adam, SGD])  # the latter remembers nothing
def test_a_student_that_never_learned_is_reported(kind):
    """Not one that was restored, nor one that has learned."""
    trainer = cartpole_trainer()
    student = Student("small", student_loss(16), partial(kind, lr=1e-2))
    with pytest.warns(UserWarning, match=r"student 'small' has learned nothing .* Train its hook first"):
        learn_on(student, trainer, optimizer="fresh")
    restored = Student("small", student_loss(16), partial(kind, lr=1e-2))
    restored.load_state_dict(taught(student_loss(16, imitation=False, teacher_network=balancing()), kind).state_dict())
    learn_on(restored, cartpole_trainer(), optimizer="fresh")


# Refused


@pytest.mark.parametrize("make", [cartpole_trainer, lambda: ppo_trainer()[0]])
def test_a_trainer_that_has_ended_is_refused(make):
    """It would train nothing more: its collector is closed."""
    trainer = make()
    trainer.train()
    student = taught(DistillationLoss(policy(32, 5), balancing(), teacher_temperature=1.0), RAdam)
    with pytest.raises(RuntimeError, match=r"still to train: got one whose collector is closed .*; build the trainer"):
        learn_on(student, trainer, optimizer="fresh")
    trainer = make()
    trainer.collected_frames = trainer.total_frames
    with pytest.raises(RuntimeError, match=r"or has all its frames, as after train\(\); build the trainer again, or"):
        learn_on(student, trainer, optimizer="fresh")
    trainer.collector.shutdown()


def test_other_students_and_words_are_refused():
    student, trainer, _ = student_of("ppo")
    with pytest.raises(
        TypeError, match=r"a hook's learner or a distillation loss: got Linear; pass hook.learners\[name\]"
    ):
        learn_on(nn.Linear(4, 2), trainer)
    for updates in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match=f"critic_warmup_updates must be an integer of at least 0: got {updates}"):
            learn_on(student, trainer, critic_warmup_updates=updates)
    with pytest.raises(ValueError, match="optimizer must be 'kept' or 'fresh': got 'new'; 'fresh' forgets all moments"):
        learn_on(student, trainer, optimizer="new")
    trainer.loss_module = nn.Linear(4, 2)
    with pytest.raises(TypeError, match="with one of actor_network, local_value_network, value_network: got Linear"):
        learn_on(student, trainer)
    trainer.learner_backend = "ray"
    with pytest.raises(RuntimeError, match="learner_backend='ray' has others; save the student's weights"):
        learn_on(student, trainer)


def test_networks_of_another_layout_are_refused():
    """Eight units against 32, and a network that shares one layer; nothing has changed then."""
    trainer, learner = ppo_trainer()
    before = content([learner.state_dict(), trainer.optimizer.state_dict()])
    small = taught(DistillationLoss(policy(8, 5), balancing(), teacher_temperature=1.0), RAdam)
    with pytest.raises(
        ValueError, match=r"student's has .*0.weight \[8, 4\].* trainer's has .*0.weight \[32, 4\].*; build"
    ):
        learn_on(small, trainer)
    mixed = policy(32, 5)
    mixed[0].module[0] = learner[0].module[0]
    half = taught(DistillationLoss(mixed, balancing(), teacher_temperature=1.0), RAdam, updates=0)
    with pytest.raises(ValueError, match="share all of the student's parameters, or none: got 2 of 4 shared; build"):
        learn_on(half, trainer)
    assert content([learner.state_dict(), trainer.optimizer.state_dict()]) == before


def test_optimisers_that_do_not_fit_are_refused():
    """Another kind, another option, one that lacks the parameters, or none; nothing has changed then."""
    student, trainer, learner = student_of("ppo")
    before, own = content(learner.state_dict()), trainer.optimizer
    trainer.optimizer = SGD(trainer.loss_module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="got RAdam of the student and SGD of the trainer; use the student's kind, or"):
        learn_on(student, trainer)
    adam, _, _ = student_of("sac")
    other = sac_trainer()
    other.optimizer = Adam(other.loss_module.parameters(), amsgrad=True)
    with pytest.raises(ValueError, match="got Adam of the student and Adam of the trainer, of different amsgrad; use"):
        learn_on(adam, other)
    trainer.optimizer = RAdam(trainer.loss_module.critic_network.parameters())
    with pytest.raises(ValueError, match=r"got one that lacks 4 of 4; build it from loss_module.parameters"):
        learn_on(student, trainer, critic_warmup_updates=5)
    trainer.optimizer = None
    with pytest.raises(RuntimeError, match="needs an optimiser of the trainer: got optimizer=None; pass one to"):
        learn_on(student, trainer)
    trainer.optimizer = own
    assert content(learner.state_dict()) == before and not own.state
    assert all(parameter.requires_grad for parameter in learner.parameters())


def test_a_warm_up_without_a_critic_is_refused():
    """A network of action values is its own critic; nothing has changed then."""
    student, trainer, learner = student_of("dqn")
    before = content(learner.state_dict())
    with pytest.raises(ValueError, match="needs a loss with an actor and a critic: got DQNLoss; leave it out"):
        learn_on(student, trainer, critic_warmup_updates=5)
    assert content(learner.state_dict()) == before and not trainer.optimizer.state


# Warned of


def test_a_student_of_preferences_has_no_action_values():
    """A KL alone leaves them open; a distance of values does not."""
    trainer = cartpole_trainer()
    with pytest.warns(UserWarning, match="DQNLoss goes on from action values, and .*'forward_kl' has none, only pref"):
        learn_on(DistillationLoss(actor(seed=1), balancing()), trainer, optimizer="fresh")
    learn_on(DistillationLoss(actor(seed=1), balancing(), divergence="mse"), trainer, optimizer="fresh")


def test_a_student_of_another_temperature_would_act_differently():
    trainer, _ = ppo_trainer()
    loss = DistillationLoss(policy(32, 5), balancing(), teacher_temperature=0.1, student_temperature=None)
    with pytest.warns(UserWarning, match="ClipPPOLoss draws actions by .* at temperature 1, .* distilled at 0.1: the"):
        learn_on(loss, trainer, optimizer="fresh")
