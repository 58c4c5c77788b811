"""The captured update, and the hook, with TorchRL's on-policy trainers: PQN and PPO."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from device_parts import DEVICES, HostReads
from on_policy_parts import RADAM, ROLLOUT, TRAINERS, ppo_trainer, pupils, weights
from tensordict import TensorDictBase

from torchrl_rtpd import CudaGraphStepper, DivergenceGuard, RealTimeDistillTrainer
from torchrl_rtpd.trainers._torchrl import logged_values, updates_made

METHODS = ("pqn", "ppo")
NEVER = 1_000_000  # updates before a capture

pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.filterwarnings("ignore:PPOTrainer is an experimental", "ignore:OnPolicyTrainer is an experimental"),
]


def trained(
    method: str, device: str, *, stepper: bool = True, students: bool = True, warmup: int = 3, **options: Any
) -> tuple[Any, RealTimeDistillTrainer | None]:
    """A trainer after three rollouts, and its students' hook."""
    trainer = TRAINERS[method](device=device, **options)[0]
    losses = pupils(method, trainer, device)
    hook = RealTimeDistillTrainer(losses, optimizer=RADAM, metrics_every_updates=1) if students else None
    if stepper:
        CudaGraphStepper(hook, warmup_updates=warmup).register(trainer)
    elif hook is not None:
        hook.register(trainer)
    trainer.train()
    return trainer, hook


def learned(trainer: Any, hook: RealTimeDistillTrainer | None) -> dict[str, torch.Tensor]:
    return weights(trainer.loss_module, *({} if hook is None else hook.students).values())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("method", METHODS)
def test_teacher_and_students_learn_what_they_learn_with_the_hook(method: str, device: str) -> None:
    """Bit for bit on a CPU; on a GPU RAdam counts its steps elsewhere, and a step is a thousandth."""
    one, other = (learned(*trained(method, device, stepper=stepper)) for stepper in (False, True))
    tolerance = 0.0 if device == "cpu" else 1e-3
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [32, 48])
@pytest.mark.parametrize("method", METHODS)
def test_captured_updates_are_those_uncaptured_to_the_last_bit(method: str, batch: int, device: str) -> None:
    """With RAdam; a rollout of 128 steps has minibatches of 48, 48 and 32, where those of PQN must be alike."""
    if device == "cpu" or (method == "pqn" and batch == 48):
        pytest.skip("needs a CUDA device, or is refused")
    one, other = (learned(*trained(method, device, warmup=warmup, batch=batch)) for warmup in (3, NEVER))
    assert same(one, other)


@pytest.mark.parametrize("stepper", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_learns_bit_for_bit_as_without_students(method: str, stepper: bool, device: str) -> None:
    alone, with_students = (trained(method, device, stepper=stepper, students=students) for students in (False, True))
    assert same(weights(alone[0].loss_module), weights(with_students[0].loss_module))


@pytest.mark.parametrize("method", METHODS)
def test_updates_are_the_minibatches_learned_from(method: str, device: str) -> None:
    """Three rollouts of four minibatches, in two epochs: 24. TorchRL counts the end of each epoch as well."""
    trainer, hook = trained(method, device)
    assert hook is not None
    assert updates_made(trainer) == hook.updates == 24


@pytest.mark.parametrize("method", METHODS)
def test_the_trainer_logs_the_same_numbers_as_with_the_hook(method: str, device: str) -> None:
    """All those of the teacher's loss, its gradient's norm before clipping, and the students' averages."""
    logs = [logged_values(trained(method, device, stepper=stepper)[0]) for stepper in (False, True)]
    logs[0]["grad_norm"] = logs[0].pop("grad_norm_0")  # as TorchRL's own optimiser numbers it
    wanted = {"pqn": {"loss", "td_error"}, "ppo": {"loss_objective", "loss_critic", "kl_approx", "ESS"}}[method]
    assert wanted <= logs[0].keys() <= logs[1].keys()
    for name, values in logs[0].items():
        one, other = (torch.tensor([float(value) for value in found]) for found in (values, logs[1][name]))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("method", METHODS)
def test_a_guard_leaves_out_updates_that_are_not_finite(method: str, device: str) -> None:
    """One observation that is no number, in one minibatch of the second rollout: teacher and students skip it."""
    trainer, _ = TRAINERS[method](device=device)[:2]
    hook = RealTimeDistillTrainer(pupils(method, trainer, device), optimizer=RADAM)
    CudaGraphStepper(hook).register(trainer)
    guard = DivergenceGuard(policy="skip")
    guard.register(trainer)

    def poison(batch: TensorDictBase) -> TensorDictBase:
        if hook.updates == 12:
            batch["observation"] = torch.full_like(batch["observation"], torch.nan)
        return batch

    trainer.register_op("process_optim_batch", poison)
    with pytest.warns(UserWarning, match="had a gradient that is not finite in 1 updates, which were left out"):
        trainer.train()
    assert guard.skipped == 1 + len(hook.students)
    assert all(value.isfinite().all() for value in learned(trainer, hook).values())


@pytest.mark.parametrize(("method", "reads"), [("pqn", []), ("ppo", []), ("ppo, entropy", ["_get_entropy"])])
def test_losses_that_are_captured_read_nothing_on_the_host(method: str, reads: list[str], device: str) -> None:
    """TorchRL's PPO looks whether its entropy is finite, which no graph can."""
    entropy = {"entropy_bonus": True} if method == "ppo, entropy" else {}
    trainer = TRAINERS[method[:3]](1, device=device, **entropy)[0]
    hook = RealTimeDistillTrainer(pupils(method[:3], trainer, device), optimizer=RADAM)
    hook.register(trainer)
    minibatches: list[TensorDictBase] = []
    trainer.register_op("process_optim_batch", lambda batch: minibatches.append(batch.clone()) or batch)
    trainer.train()
    with HostReads() as found:
        losses = trainer.compute_loss(minibatches[0])
        sum(value for key, value in losses.items() if key.startswith("loss")).backward()
        batch = hook.prepare_batch(minibatches[0])
        for loss in hook.students.values():
            sum(value for key, value in loss.evaluate(batch).items() if key.startswith("loss")).backward()
    assert [caller for _, caller in found.found] == reads


@pytest.mark.gpu
def test_an_entropy_bonus_is_refused_at_the_capture(device: str) -> None:
    if device == "cpu":
        pytest.skip("needs a CUDA device")
    trainer, _ = ppo_trainer(device=device, entropy_bonus=True)
    CudaGraphStepper().register(trainer)
    with pytest.raises(RuntimeError, match=r"must not read a value on the host: got .*\(entropy_bonus=False\)"):
        trainer.train()


@pytest.mark.parametrize("method", METHODS)
def test_minibatches_of_a_rollout_are_alike(method: str, device: str) -> None:
    """In entries, types and size, where it divides the rollout; so that one graph serves for all."""
    trainer = TRAINERS[method](device=device)[0]
    kinds = set()

    def look(batch: TensorDictBase) -> TensorDictBase:
        entries = sorted((str(key), str(value.dtype), value.shape) for key, value in batch.items(True, True))
        kinds.add((batch.batch_size, tuple(entries)))
        return batch

    trainer.register_op("process_optim_batch", look)
    trainer.train()
    assert len(kinds) == 1 and next(iter(kinds))[0] == (ROLLOUT // 4,)
