"""Students that learn in a thread beside their teacher: the same bits as with the hook, and nothing lost."""

from __future__ import annotations

import copy
import threading
from functools import partial
from typing import Any

import pytest
import torch
from on_policy_parts import RADAM, TRAINERS, pupils
from on_policy_parts import weights as named_weights
from stepper_parts import ADAM, actor, students, trainer_with, weights
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss
from torchrl.trainers import OptimizationStepper

from torchrl_rtpd import (
    AverageTeacher,
    ConcurrentStepper,
    DivergenceGuard,
    RealTimeDistillTrainer,
    RecyclingCheck,
    StudentDQNLoss,
)
from torchrl_rtpd.networks.recycling import UnitRecycler
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss
from torchrl_rtpd.trainers import DormancyCheck
from torchrl_rtpd.trainers._torchrl import logged_values

pytestmark = pytest.mark.filterwarnings(
    "ignore:PPOTrainer is an experimental", "ignore:OnPolicyTrainer is an experimental"
)


def both(make: Any, **options: Any) -> list[tuple[Any, RealTimeDistillTrainer]]:
    """Trainer and hook after training, by the hook and by the stepper; ``make`` builds the hook."""
    runs = []
    for beside in (False, True):
        hook = make()
        attach = ConcurrentStepper(hook).register if beside else hook.register
        trainer = trainer_with("cpu", attach, **options)
        trainer.train()
        runs.append((trainer, hook))
    return runs


def assert_same(runs: list[tuple[Any, RealTimeDistillTrainer]]) -> None:
    one, other = (weights(trainer.loss_module, *hook.students.values()) for trainer, hook in runs)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    assert runs[0][1].updates == runs[1][1].updates == 32


HOOKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped, twice a step": {"clip_norm": 1.0, "updates_per_step": 2, "metrics_every_updates": 3},
    "a teacher of averages": {"teacher": AverageTeacher},
    "checks": {
        "checks": lambda: [DormancyCheck(3), RecyclingCheck(UnitRecycler(every_updates=5, until_updates=30, seed=0))]
    },
}
LOSSES: dict[str, tuple[type[DQNLoss], dict[str, Any]]] = {
    "TorchRL's": (DQNLoss, {}),
    "ours": (TeacherDQNLoss, {}),
    "ours, double": (TeacherDQNLoss, {"double_dqn": True}),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("options", HOOKS)
def test_teacher_and_students_learn_bit_for_bit_what_they_learn_with_the_hook(options: str, loss: str) -> None:
    """Weights, targets, temperatures and every number that is logged."""

    def make() -> RealTimeDistillTrainer:
        made = {name: value() if callable(value) else value for name, value in HOOKS[options].items()}
        return RealTimeDistillTrainer(students("cpu"), optimizer=ADAM, **made)

    loss_class, loss_options = LOSSES[loss]
    runs = both(make, loss_class=loss_class, **loss_options)
    assert_same(runs)
    logs = [logged_values(trainer) for trainer, _ in runs]
    logs[0]["grad_norm"] = logs[0].pop("grad_norm_0")  # as TorchRL's own optimiser numbers it
    for name, values in logs[0].items():
        assert [float(value) for value in values] == pytest.approx([float(value) for value in logs[1][name]]), name


@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_the_teacher_learns_bit_for_bit_as_without_students(loss_class: type[DQNLoss]) -> None:
    """With students beside it, with the target network alone beside it, and as TorchRL's trainer does by itself."""
    attachments = [
        ConcurrentStepper(RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)).register,
        ConcurrentStepper().register,
        lambda trainer: None,
    ]
    found = []
    for attach in attachments:
        trainer = trainer_with("cpu", attach, loss_class=loss_class)
        trainer.train()
        found.append(weights(trainer.loss_module))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("method", ["pqn", "ppo"])
def test_on_policy_teachers_and_their_students_learn_the_same(method: str) -> None:
    """Beside PPO students' losses run the very network that is trained, so they learn after its step."""
    found = []
    for beside in (False, True):
        trainer = TRAINERS[method](device="cpu")[0]
        hook = RealTimeDistillTrainer(pupils(method, trainer, "cpu"), optimizer=RADAM)
        (ConcurrentStepper(hook).register if beside else hook.register)(trainer)
        trainer.train()
        found.append((hook.updates, named_weights(trainer.loss_module, *hook.students.values())))
    assert found[0][0] == found[1][0] == 24
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def threads_of(hook: RealTimeDistillTrainer) -> set[int]:
    """Threads in which the hook's students learn, filled as they do."""
    found: set[int] = set()
    for student in hook.learners.values():
        student.loss.register_forward_hook(lambda *_: found.add(threading.get_ident()))
    return found


def noisy() -> QValueActor:
    return QValueActor(
        nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), in_keys=["observation"], spec=Categorical(2)
    )


def with_priority() -> StudentDQNLoss:
    loss = StudentDQNLoss(actor(8, 1, "cpu"))
    loss.set_keys(priority="priority")
    return loss


@pytest.mark.parametrize(
    ("make", "beside"),
    [
        (lambda: StudentDQNLoss(actor(8, 1, "cpu")), True),
        (lambda: DistillationLoss(noisy()), False),
        (with_priority, False),
        (lambda: DistillationLoss(actor(8, 1, "cpu"), teacher_network=actor(8, 3, "cpu")), True),
    ],
)
def test_students_learn_beside_where_nothing_depends_on_who_comes_first(make: Any, beside: bool) -> None:
    torch.manual_seed(0)
    hook = RealTimeDistillTrainer(make(), optimizer=ADAM)
    threads = threads_of(hook)
    trainer_with("cpu", ConcurrentStepper(hook).register).train()
    assert bool(threads - {threading.get_ident()}) is beside  # and here, where one has not begun in time


def test_a_student_with_dropout_draws_what_it_draws_with_the_hook() -> None:
    def make() -> RealTimeDistillTrainer:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return RealTimeDistillTrainer(DistillationLoss(noisy()), optimizer=ADAM)

    assert_same(both(make))


def test_students_have_learned_all_before_anything_at_the_end_of_a_batch_reads_them() -> None:
    """Whatever was registered first; the thread is held back until it is waited for."""
    hook = RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)
    began, steps = [], []
    trainer = trainer_with("cpu", lambda trainer: None)
    trainer.register_op("post_optim_complete_log", lambda *_: steps.append(len(began)) or {})
    ConcurrentStepper(hook).register(trainer)
    for student in hook.learners.values():
        student.optimizer.register_step_post_hook(lambda *_: began.append(0))
    trainer.train()
    assert steps == [8 * batch for batch in range(1, 9)]  # two students, four updates a batch


def test_what_goes_wrong_beside_is_raised_in_the_trainers_thread_with_its_text() -> None:
    """At the next minibatch or at the end of the batch; the state can be saved afterwards."""
    hook = RealTimeDistillTrainer(DistillationLoss(actor(4, 2, "cpu")), optimizer=ADAM)
    trainer = trainer_with("cpu", ConcurrentStepper(hook).register)

    def break_student(*_: Any) -> None:
        if hook.updates == 8:
            next(hook.students["student"].parameters()).data.fill_(torch.nan)

    trainer.register_op("post_optim_log", break_student)
    with pytest.raises(ValueError, match=r"the student's outputs must be finite: 16 of 16 samples are not"):
        trainer.train()
    assert hook.state_dict()["updates"] < 20
    hook.wait()


def test_a_state_saved_between_updates_is_whole() -> None:
    """state_dict waits; what was restored learns on as the original did."""
    hook = RealTimeDistillTrainer(students("cpu"), optimizer=ADAM)
    trainer = trainer_with("cpu", ConcurrentStepper(hook).register)
    trainer.train()
    batches = [trainer.replay_buffer.sample() for _ in range(6)]

    def learn(some: list[TensorDictBase]) -> list[torch.Tensor]:
        for batch in some:
            trainer.optimization_stepper.step(trainer, batch.clone())
        hook.wait()
        return weights(trainer.loss_module, *hook.students.values())

    def saved() -> tuple[Any, ...]:
        return copy.deepcopy((hook.state_dict(), trainer.loss_module.state_dict(), trainer.optimizer.state_dict()))

    learn(batches[:2])
    trainer.optimization_stepper.step(trainer, batches[2].clone())
    state = saved()
    expected = learn(batches[3:])
    hook.load_state_dict(state[0])
    trainer.loss_module.load_state_dict(state[1])
    trainer.optimizer.load_state_dict(state[2])
    assert all(torch.equal(one, other) for one, other in zip(expected, learn(batches[3:]), strict=True))


def test_a_guard_leaves_out_updates_that_are_not_finite() -> None:
    """A reward that is no number reaches the teacher and the student that has a TD error, not the pure one."""
    losses = students("cpu")
    stepper = ConcurrentStepper(RealTimeDistillTrainer(losses, optimizer=ADAM))
    trainer = trainer_with("cpu", stepper.register, clip_norm=None)
    guard = DivergenceGuard(policy="skip")
    guard.register(trainer)

    def poison(batch: TensorDictBase) -> TensorDictBase:
        if trainer._optim_count == 12:
            batch["next", "reward"] = torch.full_like(batch["next", "reward"], torch.nan)
        return batch

    trainer.register_op("process_optim_batch", poison)
    with pytest.warns(UserWarning, match="had a gradient that is not finite in 1 updates, which were left out"):
        trainer.train()
    assert guard.skipped == 2
    assert all(value.isfinite().all() for value in weights(trainer.loss_module, *losses.values()))


class Frozen(OptimizationStepper):
    """Writes the teacher's values in place of an update."""

    @torch.no_grad()
    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        loss = trainer.loss_module
        with loss.value_network_params.to_module(loss.value_network):
            values = loss.value_network(sub_batch.select("observation"))["action_value"]
        sub_batch["teacher", "action_value"] = values
        return TensorDict({}, [])


def test_students_learn_beside_a_teacher_that_another_step_serves() -> None:
    """Such as a frozen one, whose values are there before they begin."""
    hook = RealTimeDistillTrainer({"pure": students("cpu")["pure"]}, optimizer=ADAM)
    threads = threads_of(hook)
    trainer = trainer_with("cpu", ConcurrentStepper(hook, Frozen()).register)
    before = weights(copy.deepcopy(trainer.loss_module))
    student = weights(copy.deepcopy(hook.students["pure"]))
    trainer.train()
    assert all(torch.equal(one, other) for one, other in zip(weights(trainer.loss_module), before, strict=True))
    moved = [torch.equal(one, other) for one, other in zip(weights(hook.students["pure"]), student, strict=True)]
    assert not all(moved) and threads - {threading.get_ident()}


def test_a_trainer_without_an_optimiser_is_refused() -> None:
    trainer = trainer_with("cpu", ConcurrentStepper().register)
    trainer.optimizer = None
    with pytest.raises(RuntimeError, match="the update of a teacher needs its optimiser: got optimizer=None; pass it"):
        trainer.train()


def test_networks_elsewhere_than_on_a_cpu_are_refused() -> None:
    trainer = trainer_with("cpu", lambda trainer: None)
    trainer.loss_module = DQNLoss(actor(4, 0, "meta"), action_space="categorical")
    with pytest.raises(RuntimeError, match=r"on a CPU: got networks on meta, where .* CudaGraphStepper; use that, or"):
        ConcurrentStepper().step(trainer, TensorDict({}, [4]))


@pytest.mark.parametrize("clip_norm", [1e-3, 0.5, 1e6, partial(float, "nan")])
def test_clipping_is_torchrls_to_the_last_bit(clip_norm: Any) -> None:
    """Where nothing is to be clipped, too, and where the norm is no number."""
    from torchrl_rtpd.trainers.whole_update import _clipped

    torch.manual_seed(0)
    gradients = [torch.randn(5, 3), torch.randn(7)]
    if callable(clip_norm):
        gradients[0][0, 0], clip_norm = clip_norm(), 0.5
    found = []
    for clip in (_clipped, nn.utils.clip_grad_norm_):
        parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        norm = clip(parameters, clip_norm)
        found.append([norm.reshape(1), *(parameter.grad.flatten() for parameter in parameters)])
    torch.testing.assert_close(torch.cat(found[0]), torch.cat(found[1]), rtol=0, atol=0, equal_nan=True)
