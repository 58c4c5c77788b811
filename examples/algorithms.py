"""Algorithms by which the main example's first network learns: their data, losses, trainers and keys.

=====  ====================================================  ==================================================
name   data                                                  values to learn from
=====  ====================================================  ==================================================
dqn    a replay of earlier steps (Mnih et al. 2015)          n-step returns and a target network
pqn    the rollout just played, in epochs (Gallici et al.    returns of the whole rollout; no replay and no
       2024), with many games side by side                   target network
=====  ====================================================  ==================================================

Students learn from the same minibatches, by the divergence alone or with a TD term of the same kind.
"""

from __future__ import annotations

from typing import Any

from tasks import Task, batch_steps
from tensordict.nn import TensorDictModule
from torchrl.data import SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import EGreedyModule
from torchrl.objectives.common import LossModule
from torchrl.trainers import Trainer
from torchrl.trainers.algorithms.dqn import DQNTrainer
from torchrl.trainers.algorithms.on_policy import OnPolicyTrainer

from torchrl_rtpd import (
    AnnealExploration,
    DistillationLoss,
    KeepOnDevice,
    KeepWarmupData,
    LambdaTargets,
    PQNLoss,
    StudentDQNLoss,
    StudentPQNLoss,
    TeacherDQNLoss,
)
from torchrl_rtpd.trainers import hard_update_every


class DQN:
    """Deep Q-learning from a replay."""

    keys = ("warmup_steps", "steps_per_update", "n_step", "replay_capacity", "target_every_updates")
    """Keys that it needs a value of; others have no use for them."""
    options = {"imitation": True, "checkpoint_replay": False}
    """Further keys of its own, by the value that means nothing elsewhere."""
    kept: tuple[str, ...] = ()
    """Outputs of the network that acts, kept in the data."""
    next_states = True
    """True if its losses read the states after the transitions."""

    def check(self, config: Any) -> None:
        """Refuse a round of updates that does not come out even."""
        if batch_steps(config) % config.steps_per_update:
            raise ValueError(
                f"num_envs * rollout_steps must be a multiple of steps_per_update: got {config.num_envs} * "
                f"{config.rollout_steps} and {config.steps_per_update}; change num_envs or rollout_steps."
            )

    def updates(self, config: Any) -> int:
        """Updates after each batch collected."""
        return batch_steps(config) // config.steps_per_update

    def loss(self, config: Any, actor: TensorDictModule, terminated: str) -> LossModule:
        """Loss of the network that acts; ``terminated`` ends bootstrapping."""
        loss = TeacherDQNLoss(actor, loss_function=config.loss_function, action_space="categorical", delay_value=True)
        loss.set_keys(terminated=terminated)
        loss.make_value_estimator(gamma=config.gamma)
        return loss

    def reads_next(self, config: Any) -> bool:
        """True if students read the teacher's values of the next states, as the target of Eq. 5 does."""
        return config.imitation and config.td_coeff > 0

    def student_loss(self, config: Any, student: TensorDictModule, terminated: str) -> DistillationLoss:
        """The paper's loss (Eq. 3), or its divergence alone; the hook puts the teacher's values into each minibatch."""
        options = {
            "divergence": config.divergence,
            "teacher_temperature": config.temperature,
            "student_temperature": config.student_temperature,
        }
        if config.td_coeff == 0:
            return DistillationLoss(student, **options)
        options |= {"td_coeff": config.td_coeff, "distill_coeff": config.distill_coeff}
        return self._with_td(config, student, terminated, loss_function=config.loss_function, **options)

    def _with_td(self, config: Any, student: TensorDictModule, terminated: str, **options: Any) -> DistillationLoss:
        loss = StudentDQNLoss(student, imitation=config.imitation, **options)
        loss.set_keys(terminated=terminated)
        loss.make_value_estimator(gamma=config.gamma)
        return loss

    def trainer(self, config: Any, task: Task, exploration: EGreedyModule, **common: Any) -> Trainer:
        """TorchRL's trainer, with a replay that loses nothing."""
        capacity = config.replay_capacity - config.replay_capacity % batch_steps(config)
        replay_buffer = task.make_replay(config, task.make_storage(config, capacity))
        trainer = DQNTrainer(
            **common,
            optim_steps_per_batch=self.updates(config),
            replay_buffer=replay_buffer,
            target_net_updater=hard_update_every(common["loss_module"], config.target_every_updates),
            greedy_module=exploration,
        )
        KeepWarmupData(replay_buffer).register(trainer)
        KeepOnDevice().register(trainer)
        return trainer


class PQN(DQN):
    """Parallel Q-learning from the rollout just played."""

    keys = ("lmbda", "num_epochs")
    options: dict[str, Any] = {}
    kept = ("action_value",)
    next_states = False

    def check(self, config: Any) -> None:
        """Refuse a rollout that does not divide into minibatches."""
        if batch_steps(config) % config.batch_size:
            raise ValueError(
                f"num_envs * rollout_steps must be a multiple of batch_size: got {config.num_envs} * "
                f"{config.rollout_steps} and {config.batch_size}; change num_envs or rollout_steps."
            )
        if config.single_frames and config.acting != "teacher":
            raise ValueError(
                "single_frames=true needs the teacher's values of every step, which it computes where it acts alone: "
                f"got acting={config.acting}; leave one of them out."
            )

    def updates(self, config: Any) -> int:
        return config.num_epochs * batch_steps(config) // config.batch_size

    def loss(self, config: Any, actor: TensorDictModule, terminated: str) -> LossModule:
        loss = PQNLoss(actor, loss_function=config.loss_function)
        loss.set_keys(terminated=terminated)
        return loss

    def reads_next(self, config: Any) -> bool:
        return False

    def _with_td(self, config: Any, student: TensorDictModule, terminated: str, **options: Any) -> DistillationLoss:
        return StudentPQNLoss(student, **options)

    def trainer(self, config: Any, task: Task, exploration: EGreedyModule, **common: Any) -> Trainer:
        """TorchRL's trainer, with the returns written before the rollout is stored."""
        rollout = TensorDictReplayBuffer(
            storage=task.make_storage(config, batch_steps(config)),
            sampler=SamplerWithoutReplacement(),
            batch_size=config.batch_size,
        )
        trainer = OnPolicyTrainer(
            **common,
            optim_steps_per_batch=None,
            num_epochs=config.num_epochs,
            replay_buffer=rollout,
            add_gae=False,
            terminated_key=task.terminated,
        )
        LambdaTargets(gamma=config.gamma, lmbda=config.lmbda).register(trainer)
        AnnealExploration(exploration).register(trainer)
        return trainer


ALGORITHMS: dict[str, DQN] = {"dqn": DQN(), "pqn": PQN()}


def check_algorithm(config: Any) -> None:
    """Refuse keys that the algorithm has no use for, or that it lacks."""
    own = ALGORITHMS[config.teacher]
    for name, other in ALGORITHMS.items():
        unused = dict.fromkeys(set(other.keys) - set(own.keys)) | (other.options if other is not own else {})
        given = sorted(f"{key}={getattr(config, key)}" for key in unused if getattr(config, key) != unused[key])
        if given:
            raise ValueError(
                f"keys of teacher={name} have no use with teacher={config.teacher}: got {', '.join(given)}; leave them "
                f"out, or add teacher={name}."
            )
    missing = [key for key in own.keys if getattr(config, key) is None]
    if missing:
        raise ValueError(
            f"teacher={config.teacher} needs a number for {', '.join(missing)}: got null; give it, or "
            f"take a preset for teacher={config.teacher}."
        )
    own.check(config)
