"""The teacher's values in a minibatch: written, captured or computed by a copy, and never those of another one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hook_parts import (
    FAST,
    Watching,
    actor,
    cartpole_trainer,
    filled,
    minibatches,
    student_loss,
    trained,
    update,
)
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import QValueModule, VDNMixer
from torchrl.objectives import QMixerLoss, SoftUpdate

from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.teacher_dqn import TeacherDQNLoss
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.teacher_copies import LaggingTeacher


@pytest.mark.parametrize("double_dqn", [False, True])
def test_the_teachers_values_are_those_its_own_update_computed(double_dqn: bool) -> None:
    """Before its step; on the next state those of its target network."""
    trainer = cartpole_trainer(double_dqn=double_dqn)
    teacher, targets = trainer.loss_module.value_network, trainer.loss_module.target_value_network_params
    expected: list[tuple[Tensor, Tensor]] = []

    def recompute(batch: TensorDictBase) -> TensorDictBase:
        with torch.no_grad():
            values = teacher(batch.select("observation"))["action_value"]
            with targets.to_module(teacher):
                next_values = teacher(batch["next"].select("observation"))["action_value"]
        expected.append((values, next_values))
        return batch

    trainer.register_op("process_optim_batch", recompute)
    loss = Watching(actor(8, seed=1))
    trained(trainer, {"net": loss})
    assert len(expected) == len(loss.batches) == 18
    for (values, next_values), given in zip(expected, loss.batches, strict=True):
        assert torch.equal(given["teacher", "action_value"], values)
        assert torch.equal(given["next", "teacher", "action_value"], next_values)
        assert not given["teacher", "action_value"].requires_grad
    online, target = loss.batches[-1]["teacher", "action_value"], loss.batches[-1]["next", "teacher", "action_value"]
    assert not torch.equal(online, target)


@pytest.mark.parametrize(("double_dqn", "calls_per_update"), [(False, 2), (True, 3)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_teacher_is_run_no_more_often_with_students(double_dqn: bool, calls_per_update: int, count: int) -> None:
    """Also when every student has the teacher at hand: 60 decisions of 2 slots and 18 updates."""
    trainer = cartpole_trainer(double_dqn=double_dqn)
    teacher, calls = trainer.loss_module.value_network, []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    trained(trainer, {f"net{seed}": student_loss(seed=seed, teacher_network=teacher) for seed in range(count)})
    assert len(calls) == 60 + 18 * calls_per_update


def test_values_of_another_batch_are_never_taken() -> None:
    """Whatever else the teacher was run on, the student distils its values of this minibatch."""
    trainer = filled(cartpole_trainer())
    teacher = trainer.loss_module.value_network
    loss = Watching(actor(8, seed=1), teacher)
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    first, second = minibatches(trainer, 2)
    trainer.loss_module(first)
    trainer.loss_module(second)
    for _ in range(9):
        teacher(first.select("observation").clone())
    hook.step(second)
    assert ("teacher", "action_value") not in loss.batches[0].keys(True)
    expected = DistillationLoss(loss.student_network, teacher, teacher_temperature=0.1, student_temperature=0.1)
    reference = TensorDict({"observation": second["observation"]}, second.batch_size)
    loss.results.clear()
    hook.step(first)
    torch.testing.assert_close(loss(second)["loss_distill"], expected(reference)["loss_distill"])


def test_stored_values_are_used_where_a_student_asks_for_them() -> None:
    """By a key of its own; under the usual key the teacher of the moment wins, as stored values go stale."""
    trainer = filled(cartpole_trainer())
    current, stored = Watching(actor(8, seed=1)), Watching(actor(8, seed=2))
    stored.set_keys(teacher_action_value=("stored", "action_value"))
    hook = RealTimeDistillTrainer({"current": current, "stored": stored}, optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    old = torch.tensor([[3.0, -3.0]]).expand(8, 2).clone()
    batch.set(("teacher", "action_value"), old)
    batch.set(("stored", "action_value"), old)
    now = trainer.loss_module.value_network(batch.select("observation"))["action_value"].detach()
    update(trainer, hook, batch)
    assert torch.equal(current.batches[0]["teacher", "action_value"], now)
    assert torch.equal(stored.batches[0]["stored", "action_value"], old)
    assert (
        "action_value" in stored.batches[0]["next", "stored"].keys()
    )  # not stored, so the teacher's own of the moment
    assert torch.equal(batch["teacher", "action_value"], old)


def test_a_teacher_with_dropout_is_asked_again_in_eval_mode() -> None:
    """Its own update's values are noisy; targets are not, and its mode stays."""
    trainer = filled(cartpole_trainer(layer=lambda: nn.Dropout(0.5)))
    teacher = trainer.loss_module.value_network
    loss = Watching(actor(8, seed=1), teacher, teacher_temperature=1.0)
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    trainer.loss_module(batch)
    hook.step(batch)
    assert ("teacher", "action_value") not in loss.batches[0].keys(True)
    assert all(module.training for module in teacher.modules())
    entropy = loss.results[0]["teacher_entropy"]
    teacher.eval()
    values = teacher(batch.select("observation"))["action_value"]
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=values).entropy().mean().detach())


def test_a_loss_without_teacher_values_says_what_to_do() -> None:
    """A trainer whose network writes no action values, and a student without a teacher."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    with pytest.raises(RuntimeError, match="pass teacher_network to the loss"):
        hook.step(batch)  # the teacher's loss has not run


def test_a_loss_without_a_network_leaves_the_values_to_the_students() -> None:
    """Any callable may be a trainer's loss; each student's loss then runs the teacher it was given."""
    trainer = filled(cartpole_trainer())
    teacher = trainer.loss_module.value_network
    trainer.loss_module = nn.Identity()
    loss = Watching(actor(8, seed=1), teacher, teacher_temperature=1.0)
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    teacher(batch.select("observation"))
    hook.step(batch)
    assert ("teacher", "action_value") not in loss.batches[0].keys(True)
    values = teacher(batch.select("observation"))["action_value"]
    entropy = torch.distributions.Categorical(logits=values).entropy().mean().detach()
    torch.testing.assert_close(loss.results[0]["teacher_entropy"], entropy)


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_nothing_is_captured_from_a_copied_teacher(copied_by: Callable[[nn.Module], nn.Module]) -> None:
    """Copies of a network, such as the best one of a run, hold no minibatch in memory."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    trainer.loss_module(batch)
    size = len(pickle.dumps(trainer.loss_module.value_network))
    copied = copied_by(trainer.loss_module.value_network)
    hook.step(batch)
    assert len(pickle.dumps(trainer.loss_module.value_network)) == size  # which holds no minibatch
    copied(batch.select("observation"))
    assert not hook._values._captured
    (watcher,) = (method.__self__ for method in copied._forward_hooks.values())
    assert watcher is not hook._values
    assert not watcher._captured


# Values that were stored


def with_stored(batch: TensorDictBase, key: tuple[str, ...] | str) -> TensorDictBase:
    batch = batch.clone()
    batch.set(key, torch.tensor([[3.0, -3.0]]).expand(8, 2).clone())
    return batch


@pytest.mark.parametrize("key", [("teacher", "action_value"), "action_value"])
def test_stored_values_that_nothing_renews_are_reported_once(key: tuple[str, ...] | str) -> None:
    """Under the key of the teacher of the moment, or that under which the collector stores what its actor computed."""
    trainer = filled(cartpole_trainer(layer=lambda: nn.Dropout(0.5)))  # nothing is captured from it
    loss = DistillationLoss(actor(8, seed=1))
    loss.set_keys(teacher_action_value=key)
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    batches = [with_stored(batch, key) for batch in minibatches(trainer, 2)]
    with pytest.warns(UserWarning, match="those of the teacher at the time of collection") as caught:
        hook.step(batches[0])
        hook.step(batches[1])
    assert len(caught) == 1
    assert f"students read {key!r}" in str(caught[0].message)


def test_values_that_the_teachers_loss_writes_are_its_own() -> None:
    """And so are those under another key that both were told: the student follows."""
    trainer = filled(cartpole_trainer(loss_class=TeacherDQNLoss))
    trainer.loss_module.set_keys(teacher_action_value=("now", "values"))
    loss = Watching(actor(8, seed=1))
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    update(trainer, hook, with_stored(batch, ("teacher", "action_value")))
    assert loss.tensor_keys.teacher_action_value == ("now", "values")
    assert loss.batches[0]["now", "values"].shape == (8, 2)


def test_a_copys_values_replace_those_that_the_teachers_loss_has_written() -> None:
    """Under whatever key."""
    trainer = filled(cartpole_trainer(loss_class=TeacherDQNLoss))
    trainer.loss_module.set_keys(teacher_action_value=("now", "values"))
    loss, original = Watching(actor(8, seed=1)), actor(seed=100)
    hook = RealTimeDistillTrainer(loss, optimizer=FAST, teacher=LaggingTeacher(100))
    hook.register(trainer)
    for batch in minibatches(trainer, 2):
        update(trainer, hook, batch)
    given = loss.batches[-1]
    torch.testing.assert_close(given["now", "values"], original(given.select("observation"))["action_value"].detach())


def agents_trainer() -> tuple[SimpleNamespace, TensorDict]:
    """A loss of two agents by TorchRL's QMIX, and a minibatch as a collector stores it."""
    torch.manual_seed(0)
    agents = TensorDictSequential(
        TensorDictModule(nn.Linear(3, 2), in_keys=[("agents", "observation")], out_keys=[("agents", "action_value")]),
        QValueModule(
            action_value_key=("agents", "action_value"),
            out_keys=[("agents", "action"), ("agents", "action_value"), ("agents", "chosen_action_value")],
            action_space="categorical",
        ),
    )
    mixer = TensorDictModule(
        VDNMixer(n_agents=2, device="cpu"),
        in_keys=[("agents", "chosen_action_value")],
        out_keys=["chosen_action_value"],
    )
    loss = QMixerLoss(agents, mixer, delay_value=True, action_space="categorical")
    loss.set_keys(
        action_value=("agents", "action_value"),
        local_value=("agents", "chosen_action_value"),
        action=("agents", "action"),
    )
    sides = [{"agents": {"observation": torch.randn(8, 2, 3)}} for _ in range(2)]
    over = torch.zeros(8, 1, dtype=torch.bool)
    batch = TensorDict(
        {**sides[0], "next": {**sides[1], "reward": torch.ones(8, 1), "done": over, "terminated": over}}, [8]
    )
    with torch.no_grad():
        agents(batch)
    return SimpleNamespace(loss_module=loss, target_net_updater=SoftUpdate(loss, tau=0.1)), batch


def test_the_values_of_several_agents_are_captured_as_well() -> None:
    """``[B, agents, A]``; those that the collector stored are another network's by now."""
    trainer, batch = agents_trainer()
    student = TensorDictModule(nn.Linear(3, 2), in_keys=[("agents", "observation")], out_keys=["action_value"])
    loss = DistillationLoss(student, teacher_temperature=1.0)
    hook = RealTimeDistillTrainer(loss, optimizer=FAST, checks=[])
    hook.attach(trainer)
    with torch.no_grad():
        trainer.loss_module.local_value_network_params.apply_(lambda parameter: parameter.mul_(2.0))
    trainer.loss_module(batch)
    given = hook.prepare_batch(batch)
    torch.testing.assert_close(given["teacher", "action_value"], 2.0 * batch["agents", "action_value"])
    trainer.loss_module(batch)
    hook.step(batch)
    assert hook.updates == 1


def test_the_values_that_the_collector_stored_of_several_agents_are_reported() -> None:
    trainer, batch = agents_trainer()
    student = TensorDictModule(nn.Linear(3, 2), in_keys=[("agents", "observation")], out_keys=["action_value"])
    loss = DistillationLoss(student, teacher_temperature=1.0)
    loss.set_keys(teacher_action_value=("agents", "action_value"))
    hook = RealTimeDistillTrainer(loss, optimizer=FAST, checks=[])
    hook.attach(trainer)
    trainer.loss_module(batch)
    with pytest.warns(UserWarning, match=r"students read \('agents', 'action_value'\), which the minibatch held"):
        hook.step(batch)
