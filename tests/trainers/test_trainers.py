"""Students inside running TorchRL trainers: the teacher never notices, and they learn from its very minibatches."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from hook_parts import (
    FAST,
    Students,
    TwoSteps,
    Watching,
    actor,
    atari_students,
    atari_trainer,
    base_trainer,
    cartpole,
    cartpole_trainer,
    content,
    dead,
    filled,
    fleet,
    minibatches,
    student_loss,
    student_state,
    teacher_state,
    trained,
    update,
)
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torchrl.checkpoint import Checkpoint
from torchrl.collectors import Collector
from torchrl.data import (
    Categorical,
    LazyTensorStorage,
    TensorDictReplayBuffer,
)
from torchrl.envs import RewardSum, TransformedEnv
from torchrl.modules import EGreedyModule
from torchrl.objectives import DQNLoss, HardUpdate, SoftUpdate
from torchrl.trainers import DefaultOptimizationStepper
from torchrl.trainers._execution import _Learner
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd.collectors.collector import DualNetworkCollector
from torchrl_rtpd.networks.dormancy import dormant_share
from torchrl_rtpd.networks.towers import make_actor
from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.objectives.student_dqn import StudentDQNLoss
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer
from torchrl_rtpd.trainers.off_policy import BoundedHistory, KeepWarmupData, SampleToDevice
from torchrl_rtpd.trainers.stepper import RealTimeDistillStepper


@pytest.mark.parametrize("double_dqn", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_the_teacher_is_bit_identical_with_and_without_students(count: int, double_dqn: bool) -> None:
    """On CartPole with a stock buffer: parameters, targets, optimiser and random stream."""
    alone = cartpole_trainer(double_dqn=double_dqn)
    start = teacher_state(alone)
    trained(alone, None)
    without = teacher_state(alone)
    watched = cartpole_trainer(double_dqn=double_dqn)
    hook = trained(watched, fleet(count), clip_norm=10.0, dormant_every_updates=5)
    assert teacher_state(watched) == without
    assert without["updates"] == hook.updates == 18
    for part in ("loss", "network", "optimizer", "target", "random"):
        assert without[part] != start[part], part


@pytest.mark.parametrize("count", [1, 3])
def test_the_atari_teacher_is_bit_identical_with_and_without_students(count: int) -> None:
    """With our environment, over several games, and our frame storage, written more often than it holds."""
    alone = atari_trainer()
    trained(alone, None)
    without = teacher_state(alone)
    watched = atari_trainer()
    hook = trained(watched, atari_students(count), updates_per_step=2, dormant_every_updates=5, dormant_warning=1.0)
    assert teacher_state(watched) == without
    assert without["updates"] == hook.updates == 12
    assert watched.replay_buffer.write_count == 96


def test_a_students_gradient_reaches_neither_the_teacher_nor_another_student() -> None:
    """No parameter but the student's own ever receives a gradient."""
    trainer = filled(cartpole_trainer())
    teacher = trainer.loss_module.value_network
    losses = {name: student_loss(seed=seed, teacher_network=teacher) for seed, name in enumerate(("first", "second"))}
    hook = RealTimeDistillTrainer(losses, optimizer=FAST)
    hook.register(trainer)
    received: list[str] = []
    for name, network in (("teacher", trainer.loss_module), *losses.items()):
        for parameter in network.parameters():
            parameter.register_hook(lambda gradient, name=name: received.append(name))
    (batch,) = minibatches(trainer, 1)
    hook.learn("first", batch)
    assert set(received) == {"first"}
    hook.step(batch)
    assert set(received) == {"first", "second"}
    assert all(parameter.grad is None for parameter in trainer.loss_module.parameters())


def test_students_see_the_very_minibatch_of_the_teacher_which_stays_as_it_is() -> None:
    """The same tensors, once an update; the hook adds nothing to the batch and changes nothing in it."""
    trainer = cartpole_trainer()
    loss = Watching(actor(8, seed=1))
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    seen: list[tuple[TensorDictBase, TensorDictBase]] = []
    trainer.register_op("post_optim_log", lambda batch: seen.append((batch, batch.clone())))
    hook.register(trainer)
    trainer.register_op("post_optim_log", lambda batch: seen.append((batch, batch.clone())))
    trainer.train()
    before, after = seen[::2], seen[1::2]
    assert len(before) == len(after) == len(loss.batches) == 18
    for (batch, old), (same, new), given in zip(before, after, loss.batches, strict=True):
        assert batch is same
        assert set(old.keys(True, True)) == set(new.keys(True, True))
        assert (old == new).all()
        for key in old.keys(True, True):
            assert given[key] is batch[key]


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


def test_a_loss_whose_network_cannot_be_heard_leaves_the_values_to_the_students() -> None:
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


def test_a_copied_teacher_is_not_listened_to() -> None:
    """Copies of a network, such as the best one of a run, hold no minibatch in memory."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    copied = copy.deepcopy(trainer.loss_module.value_network)
    copied(batch.select("observation"))
    assert not hook._teacher._heard
    (listener,) = (method.__self__ for method in copied._forward_hooks.values())
    assert listener is not hook._teacher
    assert not listener._heard


def test_each_student_ends_up_bit_identical_alone_and_in_a_fleet() -> None:
    together = trained(cartpole_trainer(), fleet(3), clip_norm=1.0)
    for name in fleet(3):
        alone = trained(cartpole_trainer(), {name: fleet(3)[name]}, clip_norm=1.0)
        assert student_state(alone, name) == student_state(together, name)


@pytest.mark.parametrize("updates_per_step", [1, 3])
def test_updates_are_counted_exactly(updates_per_step: int) -> None:
    """Six batches of 20 steps with 3 updates each, one of them in the warm-up: 15 minibatches."""
    trainer = cartpole_trainer(warmup_steps=40)
    hook = trained(trainer, fleet(2), updates_per_step=updates_per_step)
    assert trainer._optim_count == hook.updates == 15
    for optimizer in hook.optimizers.values():
        steps = {int(state["step"]) for state in optimizer.state.values()}
        assert steps == {15 * updates_per_step}
    assert hook.target_updaters["small"].counter == 15 * updates_per_step % 5  # copies at every fifth step
    assert list(hook.target_updaters) == ["small"]  # the other one has no target


def test_several_updates_a_step_equal_several_steps_on_one_minibatch() -> None:
    trainer = filled(cartpole_trainer())
    thrice, once = (RealTimeDistillTrainer(student_loss(), optimizer=FAST, updates_per_step=n) for n in (3, 1))
    for hook in (thrice, once):
        hook.register(trainer, f"hook{hook.updates_per_step}")
    (batch,) = minibatches(trainer, 1)
    batch.set(("teacher", "action_value"), torch.randn(8, 2))
    batch.set(("next", "teacher", "action_value"), torch.randn(8, 2))
    thrice.step(batch)
    for _ in range(3):
        once.step(batch)
    assert student_state(thrice, "student") == student_state(once, "student")
    assert (thrice.updates, once.updates) == (1, 3)


@pytest.mark.parametrize(("clip_norm", "clipped"), [(0.01, True), (1e6, False), (None, False)])
def test_a_students_gradient_is_clipped_to_the_norm(clip_norm: float | None, clipped: bool) -> None:
    """Plain gradient descent with rate 1 moves the parameters by the gradient."""
    trainer = filled(cartpole_trainer())
    loss = student_loss()
    hook = RealTimeDistillTrainer(loss, optimizer=partial(SGD, lr=1.0), clip_norm=clip_norm)
    hook.register(trainer)
    (batch,) = minibatches(trainer, 1)
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    update(trainer, hook, batch)
    moved = [(parameter - old).flatten() for parameter, old in zip(loss.parameters(), before, strict=True)]
    norm = torch.cat(moved).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3) if clipped else norm > 0.02


def test_every_student_has_an_optimiser_of_its_own() -> None:
    """By one factory for all, or by a mapping."""
    losses = fleet(3)
    hook = RealTimeDistillTrainer(losses, optimizer={"small": partial(SGD, lr=0.1), "pure": FAST, "large": FAST})
    assert type(hook.optimizers["small"]) is SGD
    assert type(hook.optimizers["pure"]) is Adam
    held = [parameter for optimizer in hook.optimizers.values() for parameter in optimizer.param_groups[0]["params"]]
    assert len(held) == len({id(parameter) for parameter in held}) == 3 * 4
    for name, optimizer in hook.optimizers.items():
        for given, own in zip(optimizer.param_groups[0]["params"], losses[name].parameters(), strict=True):
            assert given is own


def test_a_student_gets_a_hard_update_of_the_trainers_interval() -> None:
    trainer = cartpole_trainer(updater=partial(HardUpdate, value_network_update_interval=7))
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    hook.register(trainer)
    assert type(hook.target_updaters["student"]) is HardUpdate
    assert hook.target_updaters["student"].value_network_update_interval == 7
    assert hook.target_updaters["student"].loss_module is hook.students["student"]


def test_a_student_gets_a_soft_update_of_the_trainers_rate_that_works() -> None:
    """After one update: target = 0.75 * old + 0.25 * new."""
    trainer = filled(cartpole_trainer(updater=partial(SoftUpdate, eps=0.75)))
    loss = student_loss()
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    old = loss.target_student_network_params.clone()
    update(trainer, hook, *minibatches(trainer, 1))
    new, target = loss.student_network_params, loss.target_student_network_params
    for key in old.keys(True, True):
        torch.testing.assert_close(target[key], (0.75 * old[key] + 0.25 * new[key]).detach())
        assert not torch.equal(target[key], old[key])


def test_a_target_updater_can_be_given() -> None:
    trainer = cartpole_trainer()
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST, target_updater=partial(SoftUpdate, tau=0.125))
    hook.register(trainer)
    assert hook.target_updaters["student"].eps == 0.875


def test_targets_without_an_updater_are_an_error() -> None:
    trainer = cartpole_trainer()
    trainer.target_net_updater = None
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    with pytest.raises(RuntimeError, match=r"no HardUpdate or SoftUpdate to copy: got NoneType; pass target_updater="):
        hook.register(trainer)
    RealTimeDistillTrainer(fleet(2)["pure"], optimizer=FAST).register(trainer)  # it has no target


def test_metrics_are_logged_once_a_batch_as_averages_over_its_updates() -> None:
    """Recomputed from what the loss returned: 4 batches after the warm-up, 3 minibatches of 2 updates each."""
    trainer = cartpole_trainer(warmup_steps=60, steps=120)
    loss = Watching(actor(8, seed=1))
    hook = trained(trainer, {"net": loss}, updates_per_step=2, metrics_every_updates=1)
    assert len(loss.results) == 4 * 3 * 2
    for key in ("loss_td", "loss_distill", "kl_to_teacher", "agreement", "teacher_entropy", "student_entropy"):
        values = torch.stack([result[key].detach() for result in loss.results]).view(4, 6).mean(1)
        assert trainer._log_dict[f"distill/net/{key}"] == pytest.approx(values.tolist())
    totals = [result["loss_td"].item() + result["loss_distill"].item() for result in loss.results]
    assert trainer._log_dict["distill/net/loss"] == pytest.approx(torch.tensor(totals).view(4, 6).mean(1).tolist())
    logged = {name for name in trainer._log_dict if name.startswith("distill/")}
    names = {"loss", "loss_td", "loss_distill", "kl_to_teacher", "agreement", "teacher_entropy", "student_entropy"}
    assert logged == {f"distill/net/{name}" for name in (*names, "dormant")}
    assert all(isinstance(value, float) for name in logged for value in trainer._log_dict[name])
    assert hook.metrics == {name: trainer._log_dict[name][-1] for name in logged}


def test_metrics_may_be_those_of_every_so_many_minibatches() -> None:
    """Of the first after each log and every second from there: the first and the third of three."""
    trainer = cartpole_trainer(warmup_steps=60, steps=120)
    loss = Watching(actor(8, seed=1))
    trained(trainer, {"net": loss}, metrics_every_updates=2)
    assert ["agreement" in result.keys() for result in loss.results] == [True, False, True] * 4
    totals = torch.tensor([(result["loss_td"] + result["loss_distill"]).item() for result in loss.results]).view(4, 3)
    assert trainer._log_dict["distill/net/loss"] == pytest.approx(totals[:, ::2].mean(1).tolist())


def test_students_learn_the_same_however_often_they_are_measured() -> None:
    states = []
    for every in (1, 3):
        hook = trained(cartpole_trainer(), fleet(3), metrics_every_updates=every)
        states.append([student_state(hook, name) for name in fleet(3)])
    assert states[0] == states[1]


def test_metrics_of_each_student_bear_its_name() -> None:
    trainer = cartpole_trainer()
    trained(trainer, fleet(2), dormant_every_updates=None)
    logged = {name for name in trainer._log_dict if name.startswith("distill/")}
    common = {"loss", "loss_distill", "kl_to_teacher", "agreement", "teacher_entropy", "student_entropy"}
    assert logged == {f"distill/{name}/{key}" for name in ("small", "pure") for key in common} | {
        "distill/small/loss_td"
    }


def test_there_is_nothing_to_log_before_an_update() -> None:
    assert RealTimeDistillTrainer(student_loss(), optimizer=FAST).averages() is None


def test_dormant_units_are_measured_logged_and_warned_of_once() -> None:
    """All hidden units of one student are switched off; measured at the first update and every fifth."""
    trainer = cartpole_trainer()
    losses = {"dying": dead(student_loss(), 8), "well": student_loss(seed=2)}
    with pytest.warns(UserWarning, match="dormant") as caught:
        trained(trainer, losses, optimizer=partial(SGD, lr=1e-6), dormant_every_updates=5)
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
        dead(student_loss(), 6), optimizer=partial(SGD, lr=1e-6), dormant_warning=0.7 if warned else 0.95
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
    hook = RealTimeDistillTrainer(loss, optimizer=partial(SGD, lr=1e-6), dormant_every_updates=5, dormant_warning=1.0)
    hook.register(trainer)
    shares = []
    for count, batch in enumerate(minibatches(trainer, 5), 1):
        if count == 4:
            dead(loss, 8)
        update(trainer, hook, batch)
        shares.append(hook.averages()["distill/student/dormant"])
    assert shares[0] == shares[1] == shares[2] == shares[3] < 1.0
    assert shares[4] == 1.0


def test_networks_without_relu_have_no_dormant_share() -> None:
    trainer = cartpole_trainer()
    trained(trainer, StudentDQNLoss(actor(8, seed=1, layer=nn.Tanh)), dormant_every_updates=1)
    assert "distill/student/dormant" not in trainer._log_dict
    assert "distill/student/loss" in trainer._log_dict


def test_a_hook_restored_in_the_middle_of_a_run_goes_on_identically() -> None:
    """Students, targets and their counters, automatic temperatures, optimisers; before or after registering."""
    trainer = trained_trainer = cartpole_trainer()
    first = trained(trained_trainer, fleet(3))
    state = copy.deepcopy(first.state_dict())
    batches = minibatches(trainer, 7)
    teacher = trainer.loss_module.value_network
    for batch in batches:
        batch.set(("teacher", "action_value"), teacher(batch.select("observation"))["action_value"].detach())
        following = batch["next"].select("observation")
        batch.set(("next", "teacher", "action_value"), teacher(following)["action_value"].detach())
    restored = []
    for early in (False, True):
        others = fleet(3)
        for loss in others.values():  # other weights, so that only the state can make them equal
            loss.student_network_params.apply_(lambda parameter: parameter.mul_(0.5))
        hook = RealTimeDistillTrainer(others, optimizer=FAST)
        if early:
            hook.load_state_dict(state)
        hook.register(cartpole_trainer())
        if not early:
            hook.load_state_dict(state)
        restored.append(hook)
    for hook in (first, *restored):
        for batch in batches:
            hook.step(batch)
    for hook in restored:
        assert hook.updates == first.updates == 18 + 7
        for name in fleet(3):
            assert student_state(hook, name) == student_state(first, name)
    assert student_state(first, "small")["students"] != content(state["students"]["small"])


def test_two_hooks_share_nothing() -> None:
    """Stepping one changes neither the other's students nor its counters nor its metrics."""
    trainer = filled(cartpole_trainer())
    hooks = [RealTimeDistillTrainer(fleet(3), optimizer=FAST) for _ in range(2)]
    for name, hook in zip("ab", hooks, strict=True):
        hook.register(trainer, name)
    before = content(hooks[1].state_dict())
    update(trainer, hooks[0], *minibatches(trainer, 1))
    assert content(hooks[1].state_dict()) == before
    assert content(hooks[0].state_dict()) != before
    assert hooks[1].averages() is None
    assert (hooks[0].updates, hooks[1].updates) == (1, 0)


def test_a_state_of_other_students_is_refused() -> None:
    state = RealTimeDistillTrainer(fleet(2), optimizer=FAST).state_dict()
    with pytest.raises(ValueError, match=r"those of this hook, \['small'\]: got \['pure', 'small'\]; build the hook"):
        RealTimeDistillTrainer(fleet(1), optimizer=FAST).load_state_dict(state)


def test_torchrls_checkpoint_holds_the_students(tmp_path: Path) -> None:
    """Saved through the trainer, loaded through another one with other weights; both go on identically."""
    arguments = {"save_trainer_file": tmp_path / "run", "save_trainer_interval": 10_000}
    first = cartpole_trainer(**arguments, checkpoint=Checkpoint())
    first_hook = trained(first, fleet(3))  # train() saves at its end
    assert Checkpoint.is_checkpoint(tmp_path / "run")
    second = cartpole_trainer(seed=1, checkpoint=Checkpoint())
    second_hook = RealTimeDistillTrainer(fleet(3), optimizer=FAST)
    second_hook.register(second)
    second.load_from_file(tmp_path / "run")
    assert second_hook.updates == 18
    assert second._optim_count == 18
    batches = minibatches(first, 6)
    for trainer, hook in ((first, first_hook), (second, second_hook)):
        for batch in batches:
            update(trainer, hook, batch.clone())
        trainer.collector.shutdown()
    states = [teacher_state(trainer) for trainer in (first, second)]
    assert states[0] == states[1]
    for name in fleet(3):
        assert student_state(first_hook, name) == student_state(second_hook, name)


def test_torchrls_checkpoint_holds_students_beside_our_frame_storage(tmp_path: Path) -> None:
    """One call saves teacher, students and frames of an Atari run."""
    first = atari_trainer()
    first.checkpoint, first.save_trainer_file = Checkpoint(), tmp_path / "run"
    first_hook = trained(first, atari_students(2), dormant_every_updates=None)
    second = atari_trainer()
    second_hook = RealTimeDistillTrainer(atari_students(2), optimizer=FAST, dormant_every_updates=None)
    second_hook.register(second)
    second.load_from_file(tmp_path / "run")
    second.collector.shutdown()
    for name in atari_students(2):
        assert student_state(second_hook, name) == student_state(first_hook, name)
    assert (second.replay_buffer.storage[:] == first.replay_buffer.storage[:]).all()
    assert len(second.replay_buffer) == 64


def test_the_stepper_gives_the_same_students_as_the_hook_on_a_base_trainer() -> None:
    runs = []
    for stepper in (False, True):
        trainer, hook = base_trainer(fleet(3), stepper=stepper)
        trainer.train()
        runs.append((teacher_state(trainer), [student_state(hook, name) for name in fleet(3)], hook.updates))
        logged = trainer._log_dict["distill/small/kl_to_teacher"]
        runs[-1] += (pytest.approx([float(value) for value in logged], rel=1e-5),)
    assert runs[0][:3] == runs[1][:3]
    assert runs[0][3].expected == runs[1][3]
    assert runs[0][2] == 18


def test_the_stepper_gives_the_same_students_as_the_hook_on_a_dqn_trainer() -> None:
    """Set after construction, since DQNTrainer takes no stepper."""
    with_hook = cartpole_trainer()
    hook = trained(with_hook, fleet(3))
    expected = teacher_state(with_hook)
    with_stepper = cartpole_trainer()
    inner = RealTimeDistillTrainer(fleet(3), optimizer=FAST)
    with_stepper.optimization_stepper = RealTimeDistillStepper(inner)
    with_stepper.optimization_stepper.register(with_stepper)
    with_stepper.train()
    assert teacher_state(with_stepper) == expected
    for name in fleet(3):
        assert student_state(inner, name) == student_state(hook, name)


def test_the_stepper_returns_detached_metrics_the_same_at_every_update() -> None:
    """The trainer averages them over a batch and would stumble over one that appears on the way."""
    trainer = filled(cartpole_trainer())
    stepper = RealTimeDistillStepper(RealTimeDistillTrainer(fleet(2), optimizer=FAST, dormant_every_updates=2))
    results = [stepper.step(trainer, batch) for batch in minibatches(trainer, 4)]
    assert len({frozenset(result.keys()) for result in results}) == 1
    assert {"loss", "grad_norm", "distill/small/dormant", "distill/pure/loss"} <= set(results[0].keys())
    assert not any(value.requires_grad for result in results for value in result.values())


def test_the_stepper_updates_the_priorities_once() -> None:
    """TorchRL leaves that to a stepper."""
    trainer, _ = base_trainer(fleet(1), stepper=True, prioritized=True)
    calls = []
    original = trainer.replay_buffer.update_tensordict_priority
    trainer.replay_buffer.update_tensordict_priority = lambda batch: (calls.append(1), original(batch))
    trainer.train()
    assert len(calls) == 18
    batch = trainer.replay_buffer.sample()
    assert len(set(batch["priority_weight"].tolist())) > 1

    class UpdatesItself(DefaultOptimizationStepper):
        updates_replay_priority = True

    stepper = RealTimeDistillStepper(RealTimeDistillTrainer(fleet(1), optimizer=FAST), UpdatesItself())
    stepper.step(trainer, batch)
    assert len(calls) == 18


def test_the_stepper_saves_and_restores_the_hook() -> None:
    """Also before its first step, where the students' target updaters are still to be built."""
    trainer = filled(cartpole_trainer())
    first, second = (RealTimeDistillStepper(RealTimeDistillTrainer(fleet(3), optimizer=FAST)) for _ in range(2))
    batches = minibatches(trainer, 6)
    for batch in batches[:3]:
        first.step(trainer, batch)
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    teacher = copy.deepcopy((trainer.loss_module.state_dict(), trainer.optimizer.state_dict()))
    for stepper in (first, second):
        trainer.loss_module.load_state_dict(teacher[0])
        trainer.optimizer.load_state_dict(copy.deepcopy(teacher[1]))
        for batch in batches[3:]:
            stepper.step(trainer, batch.clone())
    assert second.hook.updates == 6
    for name in fleet(3):
        assert student_state(second.hook, name) == student_state(first.hook, name)
    assert first.hook.target_updaters["small"].counter == 1  # 6 steps, copied at the fifth


def test_the_stepper_runs_on_what_a_remote_learner_is_made_of() -> None:
    """TorchRL's own learner of a Ray rank, here in this process, with a state that goes round."""
    trainer = filled(cartpole_trainer())
    hook = RealTimeDistillTrainer(fleet(2), optimizer=FAST)
    learner = _Learner(
        loss_module=trainer.loss_module,
        replay_buffer=trainer.replay_buffer,
        local_batch_size=8,
        optimizer=trainer.optimizer,
        optimization_stepper=RealTimeDistillStepper(hook),
        target_net_updater=trainer.target_net_updater,
        update_replay_priority=False,
    ).initialize()
    result = learner.step(4, round_id=1)
    assert hook.updates == 4
    assert result.metrics["distill/small/agreement"].shape == ()
    state = learner.state_dict()["optimization_stepper"]["hook"]
    assert state["updates"] == 4


@pytest.mark.parametrize("backend", ["ray"])
def test_the_ray_backend_is_refused_with_the_remedy(backend: str) -> None:
    trainer = cartpole_trainer()
    trainer.learner_backend = backend
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    with pytest.raises(RuntimeError, match=r"learner_backend='ray' .* pass RealTimeDistillStepper as the trainer's"):
        hook.register(trainer)


@pytest.mark.parametrize(
    ("students", "arguments", "error", "message"),
    [
        ({}, {}, ValueError, "at least one loss: got none"),
        ({"net": nn.Linear(2, 2)}, {}, TypeError, "student 'net' must be a DistillationLoss or .*: got Linear"),
        (fleet(2), {"optimizer": {"small": FAST}}, ValueError, r"every student, \['pure', 'small'\]: got \['small'\]"),
        (fleet(1), {"optimizer": {"small": FAST, "x": FAST}}, ValueError, r"\['small'\]: got \['small', 'x'\]"),
        (fleet(1), {"clip_norm": 0.0}, ValueError, r"got updates_per_step=1, metrics_every_updates=4, clip_norm=0\.0"),
        (fleet(1), {"updates_per_step": 0}, ValueError, "got updates_per_step=0, metrics_every_updates=4, clip_"),
        (fleet(1), {"metrics_every_updates": 0}, ValueError, "got updates_per_step=1, metrics_every_updates=0, clip_"),
        (
            {"raw": student_loss(reduction="none")},
            {},
            ValueError,
            "the loss of student 'raw' must be reduced: got reduction='none'; use 'mean'",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_construction(
    students: Students, arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RealTimeDistillTrainer(students, **{"optimizer": FAST, **arguments})


def test_a_single_loss_is_called_student() -> None:
    assert (
        repr(RealTimeDistillTrainer(student_loss(), optimizer=FAST)) == "RealTimeDistillTrainer(students=['student'])"
    )


@pytest.mark.parametrize(("keeps", "expected"), [(False, 700), (True, 1_000)])
def test_the_buffer_holds_every_collected_step_when_warm_up_data_is_kept(keeps: bool, expected: int) -> None:
    """Of 1000 steps in batches of 100 a stock trainer loses the 300 before the first batch that learns."""
    trainer = cartpole_trainer(steps=1_000, warmup_steps=400, steps_per_batch=100, updates_per_batch=1)
    collected: list[Tensor] = []
    if keeps:
        hook = KeepWarmupData(trainer.replay_buffer)
        hook.register(trainer)
        assert hook.state_dict() == {}
        hook.load_state_dict({})
    trainer.register_op("batch_process", lambda batch: (collected.append(batch["observation"].clone()), batch)[1])
    trainer.train()
    assert len(trainer.replay_buffer) == trainer.replay_buffer.write_count == expected
    everything = torch.cat([observation.reshape(-1, 4) for observation in collected])
    stored = trainer.replay_buffer.storage[:expected]["observation"]
    assert torch.equal(stored, everything[1_000 - expected :])  # in the order of collection, none twice


def test_padding_is_not_kept() -> None:
    """Batches that TorchRL splits into games and pads: only steps that were played are counted and stored."""
    trainer = cartpole_trainer(steps=200, warmup_steps=150, steps_per_batch=50, updates_per_batch=1)
    with pytest.warns(UserWarning, match="split_trajs"):
        trainer.collector = Collector(
            cartpole(),
            trainer.loss_module.value_network,
            frames_per_batch=50,
            total_frames=200,
            init_random_frames=150,
            split_trajs=True,
            auto_register_policy_transforms=False,
        )
    KeepWarmupData(trainer.replay_buffer).register(trainer)
    batches: list[TensorDictBase] = []
    trainer.register_op("batch_process", lambda batch: (batches.append(batch.clone()), batch)[1])
    trainer.train()
    assert any(not batch["collector", "mask"].all() for batch in batches)
    played = sum(int(batch["collector", "mask"].sum()) for batch in batches)
    assert len(trainer.replay_buffer) == played == 200


def test_warm_up_data_is_kept_only_inside_a_trainer() -> None:
    with pytest.raises(RuntimeError, match=r"extend was called before register: call hook\.register\(trainer\) first"):
        KeepWarmupData(TensorDictReplayBuffer(storage=LazyTensorStorage(2))).extend(TensorDict(batch_size=[2]))


def test_a_trainer_keeps_the_newest_values_it_logged_and_learns_as_before() -> None:
    """TorchRL's own keeps them all."""
    plain = cartpole_trainer()
    trained(plain, None)
    expected = teacher_state(plain)
    bounded = cartpole_trainer()
    hook = BoundedHistory(keep=2)
    hook.register(bounded)
    assert hook.state_dict() == {}
    hook.load_state_dict({})
    trained(bounded, None)
    assert teacher_state(bounded) == expected
    assert max(len(values) for values in plain._log_dict.values()) > 2
    assert bounded._log_dict.keys() == plain._log_dict.keys()
    for name, values in plain._log_dict.items():
        assert bounded._log_dict[name][-1] == values[-1]
        assert len(bounded._log_dict[name]) <= 2 + 1  # what is logged after the last look


def test_a_history_holds_the_newest_value_at_least() -> None:
    with pytest.raises(ValueError, match="keep must be at least 1, the newest value: got 0"):
        BoundedHistory(keep=0)


def test_minibatches_are_moved_after_torchrl_has_sampled_them() -> None:
    """PyTorch's meta device stands in for an accelerator."""
    trainer = filled(cartpole_trainer())
    hook = SampleToDevice("meta")
    hook.register(trainer)
    assert hook.state_dict() == {}
    hook.load_state_dict({})
    batch = trainer._process_optim_batch_hook(None)
    assert batch.batch_size == torch.Size([8])
    assert batch["next", "observation"].device.type == "meta"


def test_moving_to_where_the_minibatch_is_changes_nothing() -> None:
    """So the hook can stay in a script that also runs without an accelerator."""
    plain = cartpole_trainer()
    trained(plain, None)
    expected = teacher_state(plain)
    moved = cartpole_trainer()
    SampleToDevice("cpu").register(moved)
    hook = trained(moved, fleet(1))
    assert teacher_state(moved) == expected
    assert hook.updates == 18


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_learner_on_the_gpu_learns_from_a_buffer_in_memory() -> None:
    trainer = filled(cartpole_trainer())
    trainer.loss_module.to("cuda")
    SampleToDevice("cuda").register(trainer)
    hook = RealTimeDistillTrainer(student_loss().to("cuda"), optimizer=FAST)
    hook.register(trainer)
    batch = trainer._process_optim_batch_hook(None)
    update(trainer, hook, batch)
    assert hook.averages()["distill/student/loss"] > 0


def test_a_student_learns_the_known_answer_of_a_game_of_two_steps_with_its_teacher() -> None:
    """With discount 0.9 the values are 0.9 and 0.45, then 1 and 0, 0.2 and 0.5: go to state 1, take action 0 there."""
    torch.manual_seed(0)
    teacher, student = actor(32, seed=0, features=3), actor(8, seed=1, features=3)
    env = TransformedEnv(TwoSteps(8), RewardSum(in_keys=["reward"], out_keys=["reward_sum"]))
    exploration = EGreedyModule(Categorical(2), eps_init=1.0, eps_end=1.0)
    collector = DualNetworkCollector(env, teacher, exploration=exploration, frames_per_batch=32, total_frames=3_200)
    loss = DQNLoss(teacher, action_space="categorical", delay_value=True)
    loss.make_value_estimator(gamma=0.9)
    trainer = DQNTrainer(
        collector=collector,
        total_frames=3_200,
        frame_skip=1,
        optim_steps_per_batch=4,
        loss_module=loss,
        optimizer=Adam(loss.parameters(), lr=5e-3),
        replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=32),
        target_net_updater=HardUpdate(loss, value_network_update_interval=20),
        greedy_module=exploration,
        progress_bar=False,
    )
    student_loss = StudentDQNLoss(student)
    student_loss.make_value_estimator(gamma=0.9)
    trained(trainer, {"net": student_loss}, optimizer=partial(Adam, lr=5e-3))
    states = TensorDict({"observation": torch.eye(3)}, [3])
    expected = torch.tensor([[0.9, 0.45], [1.0, 0.0], [0.2, 0.5]])
    for network in (teacher, student):
        assert network(states.clone())["action"].tolist() == [0, 0, 1]
        torch.testing.assert_close(network(states.clone())["action_value"].detach(), expected, atol=0.1, rtol=0)
    assert trainer._log_dict["distill/net/agreement"][-1] == 1.0


def test_the_tiniest_student_stays_alive_on_a_real_game_with_the_default_settings() -> None:
    """Road Runner, 200 updates from the teacher's first one on: units work, and values depend on the state."""
    trainer = atari_trainer(
        game="road_runner", steps=1_600, teacher="net3", batch_size=32, capacity=1_600, max_frames=4_000
    )
    student = make_actor("net17", trainer.collector.env.action_spec, seed=0)
    loss = StudentDQNLoss(student)
    loss.set_keys(terminated="end_of_life")
    hook = trained(trainer, {"net17": loss}, optimizer=partial(Adam, lr=2e-4, eps=1e-5), dormant_every_updates=50)
    assert hook.updates == 200
    states = torch.cat(minibatches(trainer, 4)).select("pixels")
    assert dormant_share(student, states) < 0.7  # of the worst layer; 1 once a layer is dead
    with torch.no_grad():
        values = student(states)["action_value"]
    assert values.std(0).max() > 1e-3
    assert len(values.unique(dim=0)) > 64  # of 128 states, some of them alike
