"""Networks, schedules and steps beside which students must not learn, or whose marks a step beside must leave."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recurrent_parts import recurrent_actor
from stepper_parts import ADAM, actor, students, trainer_with, weights
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss
from torchrl.trainers import DefaultOptimizationStepper, LRSchedulerHook, OptimizationStepper

from torchrl_rtpd import ConcurrentStepper, RealTimeDistillTrainer
from torchrl_rtpd.networks.beside import Beside
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss
from torchrl_rtpd.trainers._torchrl import hooks_of


class Recurrent(nn.Module):
    """Values by a recurrent layer that drops between its two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(1, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(observation.unsqueeze(-1))[0][:, -1])


class Dropping(nn.Module):
    """Drops by a function, which nothing about the module tells."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.dropout(observation, 0.5, self.training))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "recurrent": Recurrent,
    "RReLU": lambda: nn.Sequential(nn.Linear(4, 8), nn.RReLU(), nn.Linear(8, 2)),
    "a function": Dropping,
    "dropout": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)),
}


def drawing(kind: str) -> QValueActor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return QValueActor(NETWORKS[kind](), in_keys=["observation"], spec=Categorical(2))


def trained(make: Callable[[], RealTimeDistillTrainer], beside: bool, prepare: Any = None, **options: Any) -> list[Any]:
    """Weights of teacher and students after training, by the hook or by the stepper."""
    hook = make()
    trainer = trainer_with("cpu", (ConcurrentStepper(hook) if beside else hook).register, **options)
    if prepare is not None:
        prepare(trainer, hook)
    trainer.train()
    hook.wait()
    return weights(trainer.loss_module, *hook.students.values())


def assert_same(*found: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", NETWORKS)
def test_students_that_draw_learn_what_they_learn_with_the_hook(kind: str) -> None:
    def make() -> RealTimeDistillTrainer:
        losses = {"drawing": DistillationLoss(drawing(kind)), **students("cpu")}
        return RealTimeDistillTrainer(losses, optimizer=ADAM)

    assert_same(trained(make, False), trained(make, True))


@pytest.mark.parametrize("kind", ["RReLU", "a function"])
def test_a_teacher_that_draws_learns_what_it_learns_without_the_stepper(kind: str) -> None:
    """Its values of the next states stay in the trainer's thread."""
    found = []
    for attach in (lambda trainer: None, ConcurrentStepper().register):
        trainer = trainer_with("cpu", attach, loss_class=TeacherDQNLoss, teacher=drawing(kind))
        trainer.train()
        found.append(weights(trainer.loss_module))
    assert_same(*found)


def frozen() -> QValueActor:
    """A network that was left in training mode, where it draws and counts."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    return QValueActor(layers, in_keys=["observation"], spec=Categorical(2))


def from_other(teacher: Callable[[Any], QValueActor]) -> Callable[[Any], RealTimeDistillTrainer]:
    """Hook of four students that run a network of their own, made from the trainer."""

    def make(trainer: Any) -> RealTimeDistillTrainer:
        network = teacher(trainer)
        losses = {str(seed): DistillationLoss(actor(4, seed, "cpu"), teacher_network=network) for seed in range(4)}
        for loss in losses.values():
            loss.set_keys(teacher_action_value=("other", "action_value"))
        return RealTimeDistillTrainer(losses, optimizer=ADAM)

    return make


def target_of(trainer: Any) -> QValueActor:
    """The very parameters of the target network."""
    network = copy.deepcopy(trainer.loss_module.value_network)
    trainer.loss_module.target_value_network_params.to_module(network)
    return network


@pytest.mark.parametrize("teacher", [lambda trainer: frozen(), target_of], ids=["frozen, in training mode", "target"])
def test_networks_that_students_learn_from_are_read_by_nobody_else_meanwhile(teacher: Any) -> None:
    """Weights of all, and statistics of the one that students share: it is run in eval mode by two at no time."""
    found = []
    for beside in (False, True):
        trainer = trainer_with("cpu", lambda trainer: None)
        hook = from_other(teacher)(trainer)
        threads: set[int] = set()
        for loss in hook.students.values():
            loss.register_forward_hook(lambda *_, threads=threads: threads.add(threading.get_ident()))
        (ConcurrentStepper(hook) if beside else hook).register(trainer)
        trainer.train()
        shared = next(iter(hook.students.values())).teacher_network
        found.append([*weights(trainer.loss_module, *hook.students.values()), *weights(shared)])
        assert threads == {threading.get_ident()}
    assert_same(*found)


class OwnOptimizer(OptimizationStepper):
    """A step whose optimiser the trainer does not know, as TorchRL's of TD3."""

    def __init__(self, loss: nn.Module) -> None:
        self.optimizer, self.count = ADAM(loss.parameters()), 0

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        losses = trainer.compute_loss(sub_batch)
        losses["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.count += 1
        return losses.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.count = state_dict["count"]


def test_students_of_a_teacher_with_an_optimiser_of_its_own_learn_after_its_step() -> None:
    """They run its network, which its next step changes; what the step remembers is saved with checkpoints."""
    trainer = trainer_with("cpu", lambda trainer: None)
    trainer.optimizer = None
    network = trainer.loss_module.value_network
    loss = DistillationLoss(actor(4, 1, "cpu"), teacher_network=network)
    loss.set_keys(teacher_action_value=("other", "action_value"))
    hook, threads = RealTimeDistillTrainer(loss, optimizer=ADAM), set()
    loss.register_forward_hook(lambda *_: threads.add(threading.get_ident()))
    own = OwnOptimizer(trainer.loss_module)
    ConcurrentStepper(hook, own).register(trainer)
    trainer.train()
    assert threads == {threading.get_ident()}
    assert hooks_of(trainer)["optimization_stepper"].state_dict()["count"] == own.count == 32


def test_under_autocast_students_learn_what_they_learn_with_the_hook() -> None:
    """PyTorch keeps cast weights until the context ends, for each thread."""

    def make() -> RealTimeDistillTrainer:
        return RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)

    for loss_class in (DQNLoss, TeacherDQNLoss):
        with torch.autocast("cpu", torch.bfloat16):
            found = [trained(make, beside, loss_class=loss_class) for beside in (False, True)]
        assert_same(*found)


def test_a_learning_rate_that_is_stepped_with_each_update_stays_while_students_learn() -> None:
    """It is stepped after them, 32 times; nobody is in the thread beside."""
    hook = RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)
    trainer = trainer_with("cpu", ConcurrentStepper(hook).register)
    found: dict[str, list[float]] = {name: [] for name in hook.optimizers}
    for name, optimizer in hook.optimizers.items():
        rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        LRSchedulerHook(rates, interval="optim").register(trainer, f"rate.{name}")
        optimizer.register_step_pre_hook(
            lambda optimizer, *_, name=name: found[name].append(optimizer.param_groups[0]["lr"])
        )
    trainer.train()
    assert all(rates == [0.01 * 0.5**update for update in range(32)] for rates in found.values())


def test_priorities_are_written_beside_another_step() -> None:
    """TorchRL's own step leaves them to the trainer, which does not write them beside any step."""
    hook = RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)
    attach = ConcurrentStepper(hook, DefaultOptimizationStepper()).register
    trainer = trainer_with("cpu", attach, prioritized=True)
    trainer.train()
    sampled = trainer.replay_buffer.sample()
    assert sampled["priority_weight"].unique().numel() > 1


def test_a_teacher_with_forward_hooks_has_all_its_calls_seen() -> None:
    """By an owner that cannot be copied, state and next state, in each of 32 updates."""

    class Recorder:
        def __init__(self) -> None:
            self.lock, self.calls = threading.Lock(), 0

        def __call__(self, *_: Any) -> None:
            with self.lock:
                self.calls += 1

    counts = []
    for attach in (lambda trainer: None, ConcurrentStepper().register):
        trainer, recorder = trainer_with("cpu", attach, loss_class=TeacherDQNLoss), Recorder()
        layer = trainer.loss_module.value_network.module[0].module[0]
        layer.register_forward_hook(recorder)
        trainer.train()
        counts.append(recorder.calls)
    assert counts[0] == counts[1] >= 64


def test_after_an_interrupt_a_state_still_waits_for_who_learns() -> None:
    """The student is held in its forward pass when the trainer's thread is interrupted."""
    hook = RealTimeDistillTrainer(DistillationLoss(actor(4, 2, "cpu")), optimizer=ADAM)
    trainer = trainer_with("cpu", ConcurrentStepper(hook).register)
    trainer.train()
    inside, go_on = threading.Event(), threading.Event()
    main = threading.get_ident()

    def hold(*_: Any) -> None:
        if threading.get_ident() != main:
            inside.set()
            assert go_on.wait(20)

    hook.students["student"].register_forward_pre_hook(hold)
    steps = hook.optimizers["student"].state_dict()["state"][0]["step"].item()
    trainer.optimization_stepper.step(trainer, trainer.replay_buffer.sample())
    assert inside.wait(20)
    future = hook._learning["student"]._future
    interrupted, future.exception = future.exception, _interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        hook.wait()
    future.exception = interrupted  # type: ignore[method-assign]
    threading.Timer(0.2, go_on.set).start()
    assert hook.state_dict()["optimizers"]["student"]["state"][0]["step"].item() == steps + 1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_hook_that_is_registered_already_is_refused_and_the_trainer_stays_as_it_was() -> None:
    hook = RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)
    trainer = trainer_with("cpu", hook.register)
    before = trainer.optimization_stepper
    with pytest.raises(RuntimeError, match="has a part called 'real_time_distill' already"):
        ConcurrentStepper(hook).register(trainer)
    assert trainer.optimization_stepper is before
    trainer.train()
    assert hook.updates == 32


@pytest.mark.parametrize("hook", ["x", 5])
def test_something_else_than_a_hook_is_refused(hook: Any) -> None:
    with pytest.raises(TypeError, match=f"hook must be a RealTimeDistillTrainer or None: got {type(hook).__name__}"):
        ConcurrentStepper(hook)


def test_torchrls_exploration_type_is_afterwards_what_it_was() -> None:
    """The student's loss begins within the teacher's, which sets the type of all threads, and ends after it."""
    hook = RealTimeDistillTrainer(DistillationLoss(actor(4, 2, "cpu")), optimizer=ADAM)
    trainer = trainer_with("cpu", hook.register)
    trainer.train()
    loss, begin, inside, end = hook.students["student"], *(threading.Event() for _ in range(3))
    main = threading.get_ident()

    def at(event: threading.Event, then: threading.Event | None) -> Callable[..., None]:
        def wait(*_: Any) -> None:
            if threading.get_ident() != main:
                if then is not None:
                    then.set()
                assert event.wait(20)

        return wait

    loss.register_forward_pre_hook(at(begin, None))
    loss.student_network.module[0].module[0].register_forward_pre_hook(at(end, inside))
    assert exploration_type() is None
    batch = trainer.replay_buffer.sample().set(("teacher", "action_value"), torch.zeros(16, 2))
    hook.learn_beside(beside := Beside(), batch)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        begin.set()
        assert inside.wait(20)
    end.set()
    beside.call(int)._future.result(timeout=20)  # after the student
    hook.wait()
    assert exploration_type() is None


@pytest.mark.parametrize("memory", [True, False])
def test_a_teacher_that_remembers_has_torchrls_own_loss(memory: bool) -> None:
    """With memory in the data and without; TorchRL runs it over whole rows."""
    torch.manual_seed(0)
    teacher = recurrent_actor("gru", 3)
    flags, rows = torch.zeros(2, 5, 1, dtype=torch.bool), {}
    for place in ("now", "next"):
        rows[place] = {"observation": torch.randn(2, 5, 1), "is_init": flags, "done": flags, "terminated": flags}
        if memory:
            rows[place]["recurrent_state"] = torch.randn(2, 5, 1, 3)
    following = {**rows["next"], "reward": torch.ones(2, 5, 1)}
    batch = TensorDict({**rows["now"], "action": torch.zeros(2, 5, dtype=torch.long), "next": following}, [2, 5])
    found = []
    for kind in (DQNLoss, TeacherDQNLoss):
        loss = kind(teacher, action_space="categorical", delay_value=False)
        if kind is TeacherDQNLoss:
            loss.value_next_states_in(Beside())
        found.append(loss(batch.clone())["loss"])
    assert torch.equal(*found)
