"""TorchRL's private attributes, read at one place: numbers and parts that a trainer has no public name for."""

from __future__ import annotations

import torch
from hook_parts import FAST, cartpole, cartpole_trainer, filled, student_loss, trained
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.checkpoint import Checkpoint
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.trainers.algorithms.ppo import PPOTrainer

from torchrl_rtpd.objectives.discrete import DistillationLoss
from torchrl_rtpd.trainers import _torchrl
from torchrl_rtpd.trainers.hook import RealTimeDistillTrainer


def policy(hidden: int) -> ProbabilisticTensorDictSequential:
    network = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2))
    logits = TensorDictModule(network, in_keys=["observation"], out_keys=["logits"])
    choice = ProbabilisticTensorDictModule(
        in_keys=["logits"], out_keys=["action"], distribution_class=Categorical, return_log_prob=True
    )
    return ProbabilisticTensorDictSequential(logits, choice)


def ppo_trainer(epochs: int = 2, steps_per_epoch: int | None = None, batches: int = 3) -> PPOTrainer:
    """Batches of 64 steps in minibatches of 16: four an epoch."""
    torch.manual_seed(0)
    actor, critic = policy(8), ValueOperator(nn.Linear(4, 1), in_keys=["observation"])
    loss = ClipPPOLoss(actor, critic)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64), sampler=SamplerWithoutReplacement(), batch_size=16)
    collector = Collector(
        cartpole(), actor, frames_per_batch=64, total_frames=64 * batches, auto_register_policy_transforms=False
    )
    return PPOTrainer(
        collector=collector,
        total_frames=64 * batches,
        frame_skip=1,
        num_epochs=epochs,
        optim_steps_per_batch=steps_per_epoch,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
        progress_bar=False,
        replay_buffer=buffer,
        log_actions=False,
        log_rewards=False,
    )


def hook_of(trainer: PPOTrainer) -> RealTimeDistillTrainer:
    loss = DistillationLoss(policy(4)[0], trainer.loss_module.actor_network[0], teacher_temperature=1.0)
    loss.set_keys(teacher_action_value=("teacher", "logits"), student_action_value="logits")
    hook = RealTimeDistillTrainer(loss, optimizer=FAST)
    hook.register(trainer)
    return hook


def test_updates_are_the_minibatches_learned_from() -> None:
    """Three batches, two epochs, four minibatches: 24. TorchRL counts the end of each epoch as well: 30."""
    trainer = ppo_trainer()
    hook = hook_of(trainer)
    seen: list[int] = []
    trainer.register_op("post_optim_log", lambda _: seen.append(_torchrl.updates_made(trainer)))
    trainer.train()
    assert _torchrl.updates_made(trainer) == hook.updates == 24
    assert seen == list(range(1, 25))
    assert trainer._optim_count == 30  # as without a hook: what it logs does not depend on us


def test_updates_are_counted_without_students() -> None:
    trainer = ppo_trainer(epochs=3, batches=1)
    _torchrl.count_learned_minibatches(trainer)
    _torchrl.count_learned_minibatches(trainer)
    trainer.train()
    assert _torchrl.updates_made(trainer) == 12


def test_where_torchrl_counts_right_it_is_its_number() -> None:
    """A fixed number of updates a batch, as in DQN, with or without students."""
    trainer = cartpole_trainer()
    hook = trained(trainer, {"net": student_loss()})
    assert _torchrl.updates_made(trainer) == trainer._optim_count == hook.updates == 18
    alone = cartpole_trainer()
    trained(alone, None)
    assert _torchrl.updates_made(alone) == 18


def test_the_number_survives_a_restart_in_either_order() -> None:
    """It was 24 where TorchRL's counter was 30; one more batch of 8 makes it 32."""
    for number_first in (True, False):
        trainer = ppo_trainer(batches=1)
        _torchrl.count_learned_minibatches(trainer)
        if number_first:
            _torchrl.restore_updates_made(trainer, 24)
            trainer._optim_count = 30
        else:
            trainer._optim_count = 30
            _torchrl.restore_updates_made(trainer, 24)
        assert _torchrl.updates_made(trainer) == 24
        trainer.train()
        assert (_torchrl.updates_made(trainer), trainer._optim_count) == (32, 40)


def test_the_other_accesses_say_what_the_trainer_holds() -> None:
    trainer = filled(cartpole_trainer(checkpoint=Checkpoint()))
    hook = RealTimeDistillTrainer(student_loss(), optimizer=FAST)
    hook.register(trainer, "mine")
    assert _torchrl.hooks_of(trainer)["mine"] is hook
    assert _torchrl.has_module(trainer, "mine") and not _torchrl.has_module(trainer, "other")
    assert "trainer_module.mine" in _torchrl.synced_checkpoint(trainer).components
    assert "collected_frames" in _torchrl.checkpoint_metadata(trainer) or _torchrl.checkpoint_metadata(trainer)
    assert not _torchrl.runs_elsewhere(trainer)
    assert not _torchrl.stopping(trainer)
    trainer.request_stop("enough")
    assert _torchrl.stopping(trainer)
    trainer.collected_frames = 40
    _torchrl.skip_counted_frames(trainer)
    assert trainer._greedy_last_frames == 40
    assert _torchrl.collect_rollout(trainer.collector).shape == (2, 10)
    trainer._log(loss=1.5)
    assert _torchrl.logged_values(trainer)["loss"] == [1.5]
    trainer.collector.shutdown()
