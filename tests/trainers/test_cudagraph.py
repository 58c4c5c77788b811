"""The update of a teacher and its students as one CUDA graph; without a GPU the same update, uncaptured."""

from __future__ import annotations

import copy

import pytest
import torch
from device_parts import DEVICES
from stepper_parts import ADAM, students, trainer_with, weights
from tensordict import TensorDictBase
from torchrl.objectives import DQNLoss
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import CudaGraphStepper, DivergenceGuard, RealTimeDistillTrainer
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_teacher_and_students_learn_what_they_learn_with_the_hook(device: str, loss_class: type[DQNLoss]) -> None:
    """Weights, targets and temperatures; bit for bit on a CPU, to rounding where the update is captured."""
    found = {}
    for name in ("hook", "stepper"):
        losses = students(device)
        hook = RealTimeDistillTrainer(losses, optimizer=ADAM, clip_norm=1.0)
        attach = hook.register if name == "hook" else CudaGraphStepper(hook).register
        trainer = trainer_with(device, attach, loss_class=loss_class)
        trainer.train()
        assert hook.updates == 32
        found[name] = weights(trainer.loss_module, *losses.values())
    tolerance = 0.0 if device == "cpu" else 1e-3
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_a_captured_teacher_learns_bit_for_bit_as_without_students(device: str) -> None:
    found = []
    for hook in (None, RealTimeDistillTrainer(students(device), optimizer=ADAM)):
        trainer = trainer_with(device, CudaGraphStepper(hook).register)
        trainer.train()
        found.append(weights(trainer.loss_module))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_trainer_logs_the_teachers_loss_and_the_students_averages(device: str, clip_norm: float | None) -> None:
    """The gradient's norm is that before clipping, as TorchRL's own, which its optimiser's hook calls by a number."""
    same = ("loss", "distill/paper/kl_to_teacher", "distill/paper/loss_td", "distill/pure/loss")
    keys = {"hook": ("grad_norm_0", *same), "stepper": ("grad_norm", *same)}
    logged = {}
    for name in keys:
        hook = RealTimeDistillTrainer(students(device), optimizer=ADAM, metrics_every_updates=1)
        attach = hook.register if name == "hook" else CudaGraphStepper(hook).register
        trainer = trainer_with(device, attach, clip_norm=clip_norm)
        trainer.train()
        logged[name] = torch.tensor([[float(value) for value in trainer._log_dict[key]] for key in keys[name]])
    assert logged["hook"].shape == (5, 8)
    torch.testing.assert_close(logged["hook"], logged["stepper"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_priorities_are_updated(device: str) -> None:
    """Though the trainer's own stage for it is not called with a stepper."""
    try:
        trainer = trainer_with(device, CudaGraphStepper().register, prioritized=True)
    except (RuntimeError, ImportError, NameError):
        pytest.skip("needs TorchRL's compiled extension")
    trainer.train()
    priorities = trainer.replay_buffer.sampler._sum_tree[range(256)]
    assert len(set(priorities.tolist())) > 2


@pytest.mark.parametrize("device", DEVICES)
def test_a_schedule_reaches_the_captured_learning_rates(device: str) -> None:
    """A rate of zero stops all learning."""
    hook = RealTimeDistillTrainer(students(device), optimizer=ADAM)
    trainer = trainer_with(device, CudaGraphStepper(hook).register)
    trainer.train()
    learning = [
        trainer.loss_module.value_network_params,
        *(loss.student_network_params for loss in hook.students.values()),
    ]
    before = weights(*copy.deepcopy(learning))
    for optimizer in (trainer.optimizer, *hook.optimizers.values()):
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    update(trainer, [trainer.replay_buffer.sample() for _ in range(3)])
    assert all(torch.equal(one, other) for one, other in zip(weights(*learning), before, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_a_restored_state_goes_on_as_it_would_have(device: str) -> None:
    """Optimisers hold other tensors then, so the update is captured again."""
    hook = RealTimeDistillTrainer(students(device), optimizer=ADAM)
    trainer = trainer_with(device, CudaGraphStepper(hook).register)
    trainer.train()
    saved = copy.deepcopy((trainer.loss_module.state_dict(), trainer.optimizer.state_dict(), hook.state_dict()))
    batches = [trainer.replay_buffer.sample() for _ in range(6)]
    found = []
    for _ in range(2):
        update(trainer, batches)
        found.append(weights(trainer.loss_module, *hook.students.values()))
        trainer.loss_module.load_state_dict(saved[0])
        trainer.optimizer.load_state_dict(saved[1])
        hook.load_state_dict(saved[2])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if device == "cpu" else 1e-3, atol=0 if device == "cpu" else 1e-3)


def update(trainer: DQNTrainer, batches: list[TensorDictBase]) -> None:
    for batch in batches:
        trainer.optimization_stepper.step(trainer, batch.clone())


def test_what_cannot_be_captured_is_refused() -> None:
    with pytest.raises(
        ValueError, match="warmup_updates must be an integer of at least 2: got 1; optimisers make their state"
    ):
        CudaGraphStepper(warmup_updates=1)
    hook = RealTimeDistillTrainer(students("cpu"), optimizer=ADAM, updates_per_step=2)
    with pytest.raises(ValueError, match="holds one update of each student: got updates_per_step=2; use 1, or"):
        CudaGraphStepper(hook)


@pytest.mark.parametrize("device", DEVICES)
def test_a_guard_leaves_out_updates_that_are_not_finite(device: str) -> None:
    """A reward that is no number reaches the teacher and the student that has a TD error, not the pure one."""
    losses = students(device)
    trainer = trainer_with(
        device, CudaGraphStepper(RealTimeDistillTrainer(losses, optimizer=ADAM)).register, clip_norm=None
    )
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
