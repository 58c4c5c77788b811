"""Students of another teacher than the network that is trained: they learn from it, whatever a minibatch holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hook_parts import FAST, Watching, actor, cartpole_trainer, content, filled, minibatches, update
from kickstart_parts import balancing, gaussian, sac_trainer, state_of
from on_policy_parts import policy, ppo_trainer, pqn_trainer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import ProbabilisticActor, QValueActor, TanhDelta, ValueOperator
from torchrl.objectives import DDPGLoss, DQNLoss
from torchrl.trainers import Trainer

from torchrl_rtpd import (
    AverageTeacher,
    ConcurrentStepper,
    ContinuousDistillationLoss,
    CudaGraphStepper,
    DistillationLoss,
    RealTimeDistillTrainer,
    StudentDQNLoss,
    TeacherByKey,
    TeacherDQNLoss,
    TeacherMixture,
)
from torchrl_rtpd.objectives.base import PolicyDistillationLoss
from torchrl_rtpd.trainers.checks import DriftCheck
from torchrl_rtpd.trainers.own_teachers import has_own_teacher

TRAINERS: dict[str, Callable[[], Trainer]] = {
    "dqn": cartpole_trainer,
    "dqn that writes": lambda: cartpole_trainer(loss_class=TeacherDQNLoss),
    "pqn": lambda: pqn_trainer()[0],
    "ppo": lambda: ppo_trainer()[0],
    "sac": sac_trainer,
}
ATTACH: dict[str, Callable[[RealTimeDistillTrainer, Trainer], None]] = {
    "hook": lambda hook, trainer: hook.register(trainer),
    "concurrent": lambda hook, trainer: ConcurrentStepper(hook).register(trainer),
    "graph": lambda hook, trainer: CudaGraphStepper(hook).register(trainer),
}


def expert(method: str) -> TensorDictModule:
    """A frozen network that no trainer knows."""
    network = gaussian(8, seed=9) if method == "sac" else policy(8, 9) if method == "ppo" else actor(8, seed=9)
    return network.requires_grad_(False)


def student(method: str, teacher: TensorDictModule | None) -> PolicyDistillationLoss:
    """A student of the expert; without one, of what lies under keys of its own."""
    if method == "sac":
        loss: Any = ContinuousDistillationLoss(gaussian(8, seed=5), teacher)
        keys = {"teacher_loc": ("expert", "loc"), "teacher_scale": ("expert", "scale")}
    elif method == "ppo":
        loss = DistillationLoss(policy(8, 5), teacher, teacher_temperature=1.0)
        keys = {"teacher_action_value": ("expert", "logits")}
    else:
        kind = DistillationLoss if method == "pqn" else StudentDQNLoss  # the latter asks for the next state as well
        loss = kind(actor(8, seed=5), teacher, teacher_temperature=0.1)
        keys = {"teacher_action_value": ("expert", "action_value")}
    if teacher is None:
        loss.set_keys(**keys)
    return loss


def stores(network: TensorDictModule, *, group: str = "expert", scale: float = 1.0) -> Callable[..., TensorDictBase]:
    """Put a network's outputs into each minibatch, as stored ones lie there."""

    @torch.no_grad()
    def store(batch: TensorDictBase) -> TensorDictBase:
        with torch.random.fork_rng():
            for states in (batch, batch["next"]):
                outputs = network(states.select(*network.in_keys))
                names = {"action_value": "action_value", "logits": "logits", "loc": "loc", "scale": "scale"}
                if group == "teacher":  # where a loss looks for logits as well
                    names["logits"] = "action_value"
                for key, name in names.items():
                    if key in outputs.keys():
                        states.set((group, name), scale * outputs[key])
        return batch

    return store


def trained(method: str, attach: str, made: PolicyDistillationLoss | None, store: Any = None) -> Trainer:
    """A trainer after its run, with a student or without."""
    trainer = TRAINERS[method]()
    random = torch.get_rng_state()
    if store is not None:
        trainer.register_op("process_optim_batch", store)
    if made is not None or attach != "hook":
        hook = None if made is None else RealTimeDistillTrainer({"small": made}, optimizer=FAST, checks=[])
        ATTACH[attach](hook, trainer)
    torch.set_rng_state(random)
    trainer.train()
    return trainer


@pytest.mark.parametrize("attach", ATTACH)
@pytest.mark.parametrize("method", TRAINERS)
def test_a_student_learns_from_the_teacher_that_it_was_given(method: str, attach: str) -> None:
    """Bit for bit what it learns from the expert's values under a key of its own, to which nothing is done.

    A minibatch holds values of the trained network as well, as a collector stores them, three times too large.
    """
    teacher = expert(method)
    before = content(dict(teacher.state_dict()))
    own, reading = student(method, teacher), student(method, None)
    stale = stores(expert(method), group="teacher", scale=3.0)
    trainer = trained(method, attach, own, stale)
    trained(method, attach, reading, stores(teacher))
    assert content(dict(own.state_dict())) == content(dict(reading.state_dict()))
    assert content(dict(teacher.state_dict())) == before
    alone = trained(method, attach if attach == "graph" else "hook", None)
    assert content(state_of(trainer)) == content(state_of(alone))


def frozen(seed: int) -> QValueActor:
    return actor(8, seed=seed).requires_grad_(False)


def mixture_of(*teachers: nn.Module) -> TeacherMixture:
    return TeacherMixture(list(teachers), temperature=0.1)


def inside(live: Any) -> nn.Module:
    """The module that computes."""
    return live.module[0].module


def writing(layer: Any, key: str = "observation", **kwargs: Any) -> TensorDictModule:
    return TensorDictModule(layer, in_keys=[key], out_keys=["action_value"], **kwargs)


class Negating(TensorDictModule):
    """A wrapper of one's own, which negates."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict["action_value"] = -self.module(tensordict["observation"])
        return tensordict


def negated(part: TensorDictModule) -> TensorDictModule:
    """With a hook that changes the values."""
    part.register_forward_hook(lambda part, given, written: written.set("action_value", -written["action_value"]))
    return part


KINDS: dict[str, Callable[[Any], nn.Module]] = {
    "a function of its values": lambda live: TensorDictSequential(
        live, writing(lambda values: -values, "action_value")
    ),
    "a function before it": lambda live: TensorDictSequential(
        TensorDictModule(lambda observation: -observation, in_keys=["observation"], out_keys=["observation"]), live
    ),
    "it, of another entry": lambda live: writing(inside(live), "clean"),
    "an actor of another entry": lambda live: QValueActor(inside(live), in_keys=["clean"], spec=Categorical(2)),
    "a subclass of the wrapper": lambda live: Negating(
        inside(live), in_keys=["observation"], out_keys=["action_value"]
    ),
    "a hook": lambda live: negated(writing(inside(live))),
    "a frozen network": lambda live: frozen(9),
    "a scaled one": lambda live: nn.Sequential(live.module[0].module, nn.Hardtanh()),
    "one without weights": lambda live: TensorDictModule(
        lambda observation: observation[..., :2], in_keys=["observation"], out_keys=["action_value"]
    ),
    "a mixture of frozen ones": lambda live: mixture_of(frozen(8), frozen(9)),
    "a mixture with the trained one": lambda live: mixture_of(live, frozen(9)),
    "by key": lambda live: TeacherByKey({"a": live, "b": frozen(9)}),
}


@pytest.mark.parametrize("loss_class", [None, TeacherDQNLoss])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_another_network_is_run(kind: str, loss_class: Any) -> None:
    """Also one that has the trained network's weights, but does something else with them."""
    trainer = filled(cartpole_trainer(**({} if loss_class is None else {"loss_class": loss_class})))
    teacher = KINDS[kind](trainer.loss_module.value_network)
    loss = Watching(actor(8, seed=1), teacher, teacher_temperature=0.1)
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    batch["teacher_id"] = batch["next", "teacher_id"] = torch.arange(8)[:, None] % 2
    batch["clean"], batch["next", "clean"] = 1 - batch["observation"], 1 - batch["next", "observation"]
    update(trainer, hook, batch)
    given = loss.batches[0]
    assert ("teacher", "action_value") not in given.keys(True)
    assert ("next", "teacher", "action_value") not in given.keys(True)
    assert hook.learners["student"].own_teacher


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "the actor": lambda live: live,
    "a part of it": lambda live: live.module[0],
    "the module inside": lambda live: live.module[0].module,
    "another actor": lambda live: QValueActor(live.module[0].module, in_keys=["observation"], spec=Categorical(2)),
    "compiled": lambda live: torch.compile(live),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_trained_network_in_another_wrapper_is_not_run_again(kind: str) -> None:
    trainer = filled(cartpole_trainer())
    loss = Watching(actor(8, seed=1), WRAPPERS[kind](trainer.loss_module.value_network))
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    update(trainer, hook, *minibatches(trainer, 1))
    assert loss.batches[0]["teacher", "action_value"].shape == (8, 2)
    assert not hook.learners["student"].own_teacher


class Ways(nn.Module):
    """Two ways to values of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, observation: Tensor, gain: float = 1.0) -> Tensor:
        return gain * self.layer(observation)

    def expert(self, observation: Tensor) -> Tensor:
        return -self.layer(observation)


@pytest.mark.parametrize(
    "calls", [{"method": "expert"}, {"method_kwargs": {"gain": -2.0}}, {"method": "forward", "method_kwargs": {}}]
)
def test_the_trained_network_by_another_call_is_another_teacher(calls: dict[str, Any]) -> None:
    """Also by a call that has the same effect, which cannot be seen."""
    network = Ways()
    live = QValueActor(writing(network, **calls), spec=Categorical(2))
    rl_loss = DQNLoss(QValueActor(writing(network), spec=Categorical(2)), delay_value=True)
    assert has_own_teacher(DistillationLoss(actor(8, seed=1), live), rl_loss)
    assert not has_own_teacher(DistillationLoss(actor(8, seed=1), live), DQNLoss(live, delay_value=True))


def test_outputs_in_another_order_are_those_of_another_teacher() -> None:
    network = nn.Linear(4, 2)
    both = lambda observation: (network(observation), -network(observation))  # noqa: E731
    one, other = (
        TensorDictModule(both, in_keys=["observation"], out_keys=keys)
        for keys in (["action_value", "features"], ["features", "action_value"])
    )
    rl_loss = DQNLoss(QValueActor(one, spec=Categorical(2)), delay_value=False)
    assert not has_own_teacher(DistillationLoss(actor(8, seed=1), one), rl_loss)
    assert has_own_teacher(DistillationLoss(actor(8, seed=1), other), rl_loss)


def test_a_deterministic_policy_within_other_bounds_is_another_teacher() -> None:
    """Its action is another one; of a Gaussian policy only location and scale are compared, which are the same."""
    layer = TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["param"])
    narrow, wide = (
        ProbabilisticActor(
            layer, in_keys=["param"], distribution_class=TanhDelta, distribution_kwargs={"low": -size, "high": size}
        )
        for size in (1.0, 9.0)
    )
    critic = ValueOperator(nn.Linear(6, 1), in_keys=["observation", "action"], out_keys=["state_action_value"])
    rl_loss = DDPGLoss(narrow, critic)
    student = ProbabilisticActor(layer, in_keys=["param"], distribution_class=TanhDelta)
    for teacher, own in ((narrow, False), (wide, True)):
        loss = ContinuousDistillationLoss(copy.deepcopy(student), teacher, divergence="mse")
        assert has_own_teacher(loss, rl_loss) is own


def test_students_of_both_kinds_learn_side_by_side() -> None:
    """One gets the values of the moment, and the other one none."""
    trainer = filled(cartpole_trainer())
    losses = {"latest": Watching(actor(8, seed=1)), "expert": Watching(actor(8, seed=1), frozen(9))}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, teacher=AverageTeacher())
    hook.register(trainer)
    update(trainer, hook, *minibatches(trainer, 1))
    assert ("teacher", "action_value") in losses["latest"].batches[0].keys(True)
    assert ("teacher", "action_value") not in losses["expert"].batches[0].keys(True)


def test_a_copy_from_which_nobody_learns_is_refused() -> None:
    hook = RealTimeDistillTrainer(StudentDQNLoss(actor(seed=1), frozen(9)), optimizer=FAST, teacher=AverageTeacher())
    with pytest.raises(
        ValueError, match="AverageTeacher is a copy of the network that is trained: got students that all"
    ):
        hook.register(cartpole_trainer())


@pytest.mark.parametrize("key", ["action_value", ("teacher", "action_value")])
def test_no_student_that_runs_its_teacher_is_warned_of_stored_values(key: Any) -> None:
    """Under a key that its own teacher writes, live or frozen, it reads nothing; warnings are errors here."""
    trainer = filled(cartpole_trainer(layer=lambda: nn.Dropout(0.5)))  # nothing is captured from it
    losses = {"live": StudentDQNLoss(actor(8, seed=1), trainer.loss_module.value_network)} if key[0] == "a" else {}
    losses["frozen"] = StudentDQNLoss(actor(8, seed=2), frozen(9))
    for loss in losses.values():
        loss.set_keys(teacher_action_value=key)
    hook = RealTimeDistillTrainer(losses, optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    batch.set(key, torch.zeros(8, 2))
    update(trainer, hook, batch)
    assert hook.updates == 1


def test_drift_is_that_of_the_trained_network_alone() -> None:
    """A student of another one does not agree with it, and need not."""
    trainer = filled(cartpole_trainer())
    losses = {"latest": StudentDQNLoss(actor(8, seed=1)), "expert": StudentDQNLoss(actor(8, seed=2), frozen(9))}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, checks=[DriftCheck(1)])
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    batch["teacher", "action_value"] = torch.zeros(8, 2)
    batch["acted_by"] = torch.tensor([1, 2] * 4, dtype=torch.uint8)
    update(trainer, hook, batch)
    logged = hook.log()
    assert logged is not None
    measured = {name.split("/")[1] for name in logged if "agreement_" in name or name.endswith(("drift", "kept"))}
    assert measured == {"latest", "teacher"}


def test_a_priority_that_the_students_loss_writes_reaches_the_minibatch() -> None:
    """Its divergence to its own teacher, at temperatures of 1."""
    trainer, _ = ppo_trainer()
    teacher = balancing()
    loss = DistillationLoss(policy(8, 5), teacher, teacher_temperature=1.0)
    loss.set_keys(priority="urgency")
    hook = RealTimeDistillTrainer(loss, optimizer=FAST, checks=[])
    hook.attach(trainer)
    batch = next(iter(trainer.collector)).reshape(-1)[:8]
    trainer.collector.shutdown()
    batch["teacher", "action_value"] = torch.zeros(8, 2)
    log_probs: list[Tensor] = []
    with torch.no_grad():
        for network in (teacher.module, loss.student_network[0].module):
            log_probs.append(network(batch["observation"]).log_softmax(-1))
    hook.step(batch)
    expected = (log_probs[0].exp() * (log_probs[0] - log_probs[1])).sum(-1, keepdim=True)
    torch.testing.assert_close(batch["urgency"], expected)
