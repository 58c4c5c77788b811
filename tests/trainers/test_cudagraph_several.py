"""Several teachers in an update that is one CUDA graph; without a GPU the same update, uncaptured."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from device_parts import DEVICES, HostReads
from stepper_parts import ADAM, actor, trainer_with, weights
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Categorical
from torchrl.envs import UnaryTransform
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import CudaGraphStepper, DistillationLoss, RealTimeDistillTrainer, StudentDQNLoss
from torchrl_rtpd.networks import TeacherByKey, TeacherMixture
from torchrl_rtpd.networks.rhythm import Rhythm
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss

Losses = dict[str, DistillationLoss]


def halves(seen: Tensor) -> Tensor:
    """Number of a teacher ``[*B, 1]``: one for each direction in which the cart moves."""
    return (seen[..., 1:2] > 0).long()


def shares(seen: Tensor) -> Tensor:
    """Weights of two teachers ``[*B, 2]``."""
    return torch.stack([seen[..., 0], seen[..., 1]], -1).softmax(-1)


def trainer_of(device: str, attach: Any, loss_class: type[DQNLoss] = DQNLoss) -> DQNTrainer:
    """A trainer of two live teachers as one network, in a game of which each state has an id and weights."""
    teachers = TeacherByKey([actor(16, seed, device) for seed in (5, 6)])
    return trainer_with(
        device,
        attach,
        loss_class=loss_class,
        teacher=QValueActor(teachers, spec=Categorical(2)).to(device),
        transforms=[
            UnaryTransform(["observation"], ["teacher_id"], fn=halves),
            UnaryTransform(["observation"], ["weights"], fn=shares),
        ],
    )


def students_of_live(device: str) -> Losses:
    return {
        "paper": StudentDQNLoss(actor(8, 1, device), teacher_temperature="auto"),
        "pure": DistillationLoss(actor(4, 2, device), divergence="reverse_kl"),
    }


def students_of_frozen(device: str) -> Losses:
    """Of a mixture with weights in the data, and of teachers by key for state and next state."""
    frozen = [actor(16, seed, device).requires_grad_(False) for seed in (7, 8)]
    mixture = TeacherMixture(frozen, temperature=0.3, weights="weights")
    mixed = DistillationLoss(actor(8, 1, device), mixture, teacher_temperature=0.3)
    mixed.set_keys(teacher_action_value="logits")
    by_key = StudentDQNLoss(actor(8, 2, device), TeacherByKey(frozen), teacher_temperature=0.3)
    return {"mixture": mixed, "by_key": by_key}


STUDENTS = {"live": students_of_live, "frozen": students_of_frozen}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_students_of_several_teachers_learn_what_they_learn_with_the_hook(
    device: str, kind: str, loss_class: type[DQNLoss]
) -> None:
    """Teachers, students and targets; bit for bit on a CPU, to rounding where the update is captured."""
    found = []
    for captured in (False, True):
        losses = STUDENTS[kind](device)
        hook = RealTimeDistillTrainer(losses, optimizer=ADAM, clip_norm=1.0)
        trainer = trainer_of(device, CudaGraphStepper(hook).register if captured else hook.register, loss_class)
        before = [value.clone() for value in weights(*losses.values())]
        trainer.train()
        assert hook.updates == 32
        assert len(trainer.replay_buffer[:]["teacher_id"].unique()) == 2
        after = weights(*losses.values())
        assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        found.append(weights(trainer.loss_module, *losses.values()))
    tolerance = 0.0 if device == "cpu" else 1e-3
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("loss_class", [DQNLoss, TeacherDQNLoss])
def test_an_update_of_several_teachers_reads_nothing_on_the_host(
    kind: str, loss_class: type[DQNLoss], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way that a GPU takes, and as while it is captured, when no look at numbers is due.

    The way of a CPU counts the states of each teacher.
    """
    hook = RealTimeDistillTrainer(STUDENTS[kind]("cpu"), optimizer=ADAM)
    trainer = trainer_of("cpu", hook.register, loss_class)
    minibatches: list[TensorDictBase] = []
    trainer.register_op("process_optim_batch", lambda batch: minibatches.append(batch.clone()) or batch)
    trainer.train()
    learn = partial(_learn_from, trainer, hook)
    with HostReads() as found:
        learn(minibatches[0].clone())
    assert found.found
    monkeypatch.setattr(TeacherByKey, "_on_own_rows", TeacherByKey._on_all_rows)
    monkeypatch.setattr(Rhythm, "due", lambda self, waits=True: False)
    with HostReads() as found:
        learn(minibatches[0].clone())
    assert found.found == []


def _learn_from(trainer: DQNTrainer, hook: RealTimeDistillTrainer, batch: TensorDictBase) -> None:
    """Forward and backward passes of an update."""
    sum(value for key, value in trainer.compute_loss(batch).items() if key.startswith("loss")).backward()
    prepared = hook.prepare_batch(batch)
    for loss in hook.students.values():
        sum(value for key, value in loss.evaluate(prepared).items() if key.startswith("loss")).backward()
