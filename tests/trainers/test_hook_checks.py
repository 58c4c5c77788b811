"""Work of the hook that is due now and then: dormant units, recycling, drift, and checks of one's own."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from hook_parts import (
    FAST,
    actor,
    cartpole,
    cartpole_trainer,
    content,
    dead,
    filled,
    fleet,
    minibatches,
    student_loss,
    student_state,
    trained,
    update,
)
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torch.optim import SGD, Adam
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import functional as RF
from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.networks.recycling import UnitRecycler
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.trainers.checks import (
    Check,
    DormancyCheck,
    DriftCheck,
    RecyclingCheck,
    agreement_by_visitor,
    teacher_drift,
)
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer


def test_dormant_units_are_measured_logged_and_warned_of_once() -> None:
    """All hidden units of one student are switched off; measured at the first update and every fifth."""
    trainer = cartpole_trainer()
    losses = {"dying": dead(student_loss(), 8), "well": student_loss(seed=2)}
    with pytest.warns(UserWarning, match="dormant") as caught:
        trained(trainer, losses, optimizer=partial(SGD, lr=1e-6), checks=[DormancyCheck(5)])
    (message,) = [str(warning.message) for warning in caught if "dormant" in str(warning.message)]
    assert "100% of the units in a layer of student 'dying' are dormant after 1 updates (warned above 90%)" in message
    assert "lower its learning rate" in message
    assert trainer._log_dict["distill/dying/dormant"] == [1.0] * 6
    assert max(trainer._log_dict["distill/well/dormant"]) < 0.9


@pytest.mark.parametrize("warned", [False, True])
def test_the_warning_comes_above_the_share_that_was_asked_for(warned: bool) -> None:
    """Six of eight units are off; one that works may sleep on a small minibatch."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer(
        dead(student_loss(), 6),
        optimizer=partial(SGD, lr=1e-6),
        checks=[DormancyCheck(warning=0.7 if warned else 0.95)],
    )
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        update(trainer, hook, batch)
    assert any("above 70%" in str(warning.message) for warning in caught) == warned


def test_the_share_of_dormant_units_is_that_of_the_last_measurement() -> None:
    """All units die after the third update; the fourth does not look, the fifth does."""
    trainer = filled(cartpole_trainer())
    loss = student_loss()
    hook = RealTimeDistillTrainer(loss, optimizer=partial(SGD, lr=1e-6), checks=[DormancyCheck(5, warning=1.0)])
    hook.register(trainer)
    shares = []
    for count, batch in enumerate(minibatches(trainer, 5), 1):
        if count == 4:
            dead(loss, 8)
        update(trainer, hook, batch)
        shares.append(hook.log()["distill/student/dormant"])
    assert shares[0] == shares[1] == shares[2] == shares[3] < 1.0
    assert shares[4] == 1.0


def test_networks_without_relu_have_no_dormant_share() -> None:
    trainer = cartpole_trainer()
    trained(trainer, StudentDQNLoss(actor(8, seed=1, layer=nn.Tanh)), checks=[DormancyCheck(1)])
    assert "distill/student/dormant" not in trainer._log_dict
    assert "distill/student/loss" in trainer._log_dict


def test_dormant_units_are_recycled_when_due_and_counted() -> None:
    """All eight units die before the run; at the second update they get a new start, and the student learns again."""
    trainer = cartpole_trainer()
    loss = dead(student_loss(), 8)
    hook = trained(
        trainer,
        loss,
        optimizer=partial(SGD, lr=1e-6),
        checks=[RecyclingCheck(UnitRecycler(every_updates=2, until_updates=2))],
    )
    assert trainer._log_dict["distill/student/recycled"] == [8, 0, 0, 0, 0, 0]
    assert (loss.student_network.module[0].module[0].bias.abs() < 1e-3).all()  # they were -1
    assert hook.updates == 18


def test_recycling_is_the_same_alone_and_in_a_fleet() -> None:
    """Each student draws its new weights from a generator of its own."""
    states = []
    for names in (("a",), ("a", "b")):
        losses = {name: dead(student_loss(seed=index), 8) for index, name in enumerate(names)}
        hook = trained(
            cartpole_trainer(),
            losses,
            checks=[RecyclingCheck(UnitRecycler(every_updates=3))],
            optimizer=partial(Adam, lr=1e-3),
        )
        states.append(student_state(hook, "a"))
    assert states[0] == states[1]
    assert content(hook.students["a"].state_dict()) != content(hook.students["b"].state_dict())


def test_a_student_that_cannot_be_recycled_is_named_before_anything_has_learned() -> None:
    trainer = filled(cartpole_trainer())
    linear = QValueActor(nn.Linear(4, 2), in_keys=["observation"], spec=Categorical(2))
    losses = {"fine": student_loss(), "linear": DistillationLoss(linear, teacher_temperature=0.1)}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, checks=[RecyclingCheck(UnitRecycler())])
    hook.register(trainer)
    before = content(hook.state_dict())
    with pytest.raises(ValueError, match="units of student 'linear' cannot be recycled: recycling needs Conv2d or Li"):
        update(trainer, hook, *minibatches(trainer, 1))
    assert content(hook.state_dict()) == before


def recording_trainer(acting: float) -> tuple[DQNTrainer, RealTimeDistillTrainer]:
    """A trainer whose data hold who acted and the teacher's values of then, with two students."""
    torch.manual_seed(0)
    teacher, students = actor(seed=100), {"a": actor(8, seed=1), "b": actor(4, seed=2)}
    exploration = EGreedyModule(Categorical(2), annealing_num_steps=200)
    collector = DualNetworkCollector(
        cartpole(),
        teacher,
        students,
        acting=acting,
        record=True,
        exploration=exploration,
        frames_per_batch=20,
        total_frames=120,
        acting_seed=0,
    )
    loss = DQNLoss(teacher, action_space="categorical", delay_value=True)
    trainer = DQNTrainer(
        collector=collector,
        total_frames=120,
        frame_skip=1,
        optim_steps_per_batch=3,
        loss_module=loss,
        optimizer=Adam(loss.parameters(), lr=1e-2),
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=32),
        target_net_updater=SoftUpdate(loss, tau=0.1),
        greedy_module=exploration,
        progress_bar=False,
    )
    losses = {
        name: DistillationLoss(student, teacher_temperature=0.5, student_temperature=None)
        for name, student in students.items()
    }
    hook = RealTimeDistillTrainer(losses, optimizer=FAST, checks=[DormancyCheck(), DriftCheck(1)])
    hook.register(trainer)
    return trainer, hook


def test_drift_and_agreement_are_measured_on_the_minibatch() -> None:
    """Against the same by hand, with the students as they were after the last update."""
    trainer, hook = recording_trainer(0.4)
    seen: list[TensorDict] = []
    trainer.register_op("post_optim_log", lambda sub_batch: seen.append(sub_batch.clone()))
    trainer.train()
    batch, metrics = seen[-1], hook.metrics
    assert metrics["distill/teacher/drift"] > 0  # values of up to 18 updates ago
    assert 0 < metrics["distill/teacher/kept"] <= 1
    by_teacher = batch["acted_by"] == 1
    assert 0 < by_teacher.sum() < 32
    with torch.no_grad():
        teacher = trainer.loss_module.value_network(batch.select("observation"))["action_value"]
    for name, loss in hook.students.items():
        with torch.no_grad():
            agrees = RF.greedy_agreement(teacher, loss.student_q_values(batch)).float()
        for visitor, rows in (("teacher", by_teacher), ("student", ~by_teacher)):
            found = metrics[f"distill/{name}/agreement_on_{visitor}_states"]
            # the teacher has made one step since its values were captured
            assert found == pytest.approx(agrees[rows].mean().item(), abs=2 / rows.sum().item())


def test_drift_by_hand() -> None:
    recorded, now = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    found = teacher_drift(recorded, now, 1.0)
    difference = RF.forward_kl(recorded.log_softmax(-1), now.log_softmax(-1)).mean()
    assert found == {"drift": pytest.approx(difference.item()), "kept": 0.5}
    # KL of (e, 1) / (1 + e) against (1, e) / (1 + e) is (e - 1) / (e + 1), and the second state's is 0
    assert found["drift"] == pytest.approx(0.462117 / 2, abs=1e-6)


def test_agreement_by_visitor_by_hand() -> None:
    """Four states: random, teacher, first and second student; the student agrees on the second and third."""
    teacher = torch.eye(2)[[0, 0, 1, 1]]
    student = torch.eye(2)[[1, 0, 1, 0]]
    found = agreement_by_visitor(teacher, student, torch.tensor([0, 1, 2, 3], dtype=torch.uint8))
    assert found == {"agreement_on_teacher_states": 1.0, "agreement_on_student_states": 0.5}


def test_nothing_is_measured_without_records() -> None:
    hook = trained(cartpole_trainer(), fleet(3), checks=[DormancyCheck(), DriftCheck(1)])
    assert not any("drift" in name or "agreement_on" in name for name in hook.metrics)


# The protocol


class Count(Check):
    """Notes when it is asked for what."""

    def __init__(self, every: int) -> None:
        self.every, self.began, self.ran = every, 0, []

    def before_first_update(self, students: Any, batch: TensorDictBase) -> None:
        self.began += 1

    def due(self, updates: int) -> bool:
        return updates % self.every == 0

    def run(self, students: Any, sub_batch: TensorDictBase, batch: TensorDictBase, updates: int) -> None:
        assert ("teacher", "action_value") in batch.keys(True) and ("teacher", "action_value") not in sub_batch.keys(
            True
        )
        self.ran.append(updates)

    def log(self, students: Any) -> dict[str, float]:
        return {f"{name}/counted": float(len(self.ran)) for name in students}

    def state_dict(self) -> dict[str, Any]:
        return {"count": list(self.ran)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.ran = list(state_dict.get("count", ()))


def test_a_check_of_ones_own_runs_when_it_is_due_is_logged_and_saved() -> None:
    """18 updates in six batches of three."""
    trainer, check = cartpole_trainer(), Count(7)
    hook = trained(trainer, fleet(2), checks=[check])
    assert (check.began, check.ran) == (1, [7, 14])
    assert trainer._log_dict["distill/pure/counted"] == [0, 0, 1, 1, 2, 2]
    restored = Count(7)
    other = RealTimeDistillTrainer(fleet(2), optimizer=FAST, checks=[DormancyCheck(), restored])
    other.load_state_dict(hook.state_dict())
    assert restored.ran == [7, 14]


def test_checks_run_in_their_order() -> None:
    """Units that are recycled before they are measured are not dormant; eight of eight are off at first."""
    shares = []
    for recycles_first in (False, True):
        trainer = filled(cartpole_trainer())
        checks: list[Check] = [DormancyCheck(1, warning=1.0), RecyclingCheck(UnitRecycler(every_updates=1))]
        loss = dead(student_loss(), 8)
        hook = RealTimeDistillTrainer(
            loss, optimizer=partial(SGD, lr=1e-6), checks=checks[::-1] if recycles_first else checks
        )
        hook.register(trainer)
        update(trainer, hook, *minibatches(trainer, 1))
        shares.append(hook.log()["distill/student/dormant"])
    assert shares[0] == 1.0 > shares[1]


def test_checks_that_would_save_under_one_key_and_things_that_are_no_checks_are_refused() -> None:
    with pytest.raises(ValueError, match="under 'dormant': got DormancyCheck and DormancyCheck; keep one of them"):
        RealTimeDistillTrainer(student_loss(), optimizer=FAST, checks=[DormancyCheck(), DormancyCheck()])
    with pytest.raises(TypeError, match="checks must be of class Check: got UnitRecycler; a UnitRecycler goes into a"):
        RealTimeDistillTrainer(student_loss(), optimizer=FAST, checks=[UnitRecycler()])


@pytest.mark.parametrize("kind", [DormancyCheck, DriftCheck])
def test_an_interval_of_less_than_a_minibatch_is_refused(kind: type[Check]) -> None:
    with pytest.raises(ValueError, match="every_updates must be an integer of at least 1: got 0; leave the check out"):
        kind(0)


@pytest.mark.parametrize("warning", [-0.5, 1.5])
def test_a_share_out_of_range_is_refused(warning: float) -> None:
    with pytest.raises(ValueError, match=f"warning must be a share within 0 and 1: got {warning}; 1 never"):
        DormancyCheck(warning=warning)
